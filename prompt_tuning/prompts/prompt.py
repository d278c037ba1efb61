"""The trainable prompt: the only variables that prompt tuning changes."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from prompt_tuning.errors import ConfigError
from prompt_tuning.prompts.combine import Combine, prefix
from prompt_tuning.prompts.initializers import Initializer


class PromptParam(nnx.Param):
    """A trainable prompt variable: `nnx.split(model, PromptParam, ...)` finds exactly these."""


class Prompt(nnx.Module):
    """`length` learned vectors that are combined with every embedded text.

    The vectors are float32 whatever the model computes in. A model's constructor supplies the last
    two arguments; a user gives it the rest:

        T5(config, prompt=functools.partial(Prompt, length=100, init=uniform()), rngs=rngs)

    Args:
        length: the number of vectors, P.
        init: `(key, shape) -> array`, see `initializers.py`.
        combine: where the prompt goes, see `combine.py`.
        embed_dim: the model's width, D.
        rngs: the initializer's key comes from the stream `params`.

    Raises:
        ConfigError: a length below 1, or an initializer whose array is not [P, D].
    """

    def __init__(
        self,
        *,
        length: int,
        init: Initializer,
        combine: Combine = prefix,
        embed_dim: int,
        rngs: nnx.Rngs,
    ) -> None:
        if length < 1:
            raise ConfigError(
                f"Prompt.length is {length}, expected 1 or more. For a model without a prompt "
                "leave the model's `prompt` out."
            )
        wanted = (length, embed_dim)
        vectors = jnp.asarray(init(rngs.params(), wanted), jnp.float32)
        if vectors.shape != wanted:
            raise ConfigError(
                f"Prompt.init returned an array of shape {vectors.shape}, but "
                f"Prompt(length={length}) on this model needs {wanted}. An initializer must "
                "return the shape that it is given."
            )
        self.length = length
        self.combine = combine
        self.prompt = PromptParam(vectors, axes=("prompt", "prompt_embed"))

    def __call__(
        self, embedded: Float[Array, "B T D"], tokens: Int[Array, "B T"]
    ) -> tuple[Float[Array, "B {self.length}+T D"], Bool[Array, "B {self.length}+T"]]:
        """Returns the text with the prompt in it, in its dtype, and what may be attended to."""
        vectors = self.prompt[...]
        # Broadcast first, cast second: the prompt's gradient is the sum of every example's, and
        # this order makes it a float32 sum. The other way round it would be summed in the model's
        # dtype, and bfloat16 has 8 bits.
        each = jnp.broadcast_to(vectors[None], (embedded.shape[0], *vectors.shape))
        return self.combine(each.astype(embedded.dtype), embedded, tokens)
