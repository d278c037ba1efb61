"""Learned keys and values in front of what the decoder said: prefix tuning of the decoder."""

import math

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from prompt_tuning.errors import ConfigError
from prompt_tuning.prompts.initializers import Initializer
from prompt_tuning.prompts.prompt import PromptParam


class KeyValuePrefix(nnx.Module):
    """`length` learned keys and values before the decoder's own, in every layer.

    Li and Liang (2021), in the decoder's self-attention alone, which is what the PREFIX_TUNING of
    Hugging Face's PEFT does to a T5. The prefix has the positions 0 to P - 1, the text follows at
    P. A model's constructor supplies the last three arguments; a user gives it the rest:

        T5(config, prefix=functools.partial(KeyValuePrefix, length=20, init=uniform()), rngs=rngs)

    Args:
        length: the number of keys and values in each layer, P.
        init: `(key, shape) -> array`, see `initializers.py`; called for the keys, then for the
            values, with a row for each position of each layer: [L * P, N * H].
        layers: of the decoder, L.
        heads: N and H.
        rngs: the initializer's keys come from the stream `params`.

    Raises:
        ConfigError: a length below 1.
    """

    def __init__(
        self,
        *,
        length: int,
        init: Initializer,
        layers: int,
        heads: tuple[int, int],
        rngs: nnx.Rngs,
    ) -> None:
        if length < 1:
            raise ConfigError(f"KeyValuePrefix.length is {length}, expected 1 or more.")

        def drawn() -> PromptParam:
            rows = init(rngs.params(), (layers * length, math.prod(heads)))
            array = jnp.asarray(rows, jnp.float32).reshape(layers, length, *heads)
            return PromptParam(array, axes=("layers", "prompt", "heads", "kv"))

        self.keys, self.values = drawn(), drawn()

    def __call__(self) -> tuple[Float[Array, "L P N H"], Float[Array, "L P N H"]]:
        """Returns the keys and the values of every layer, in float32."""
        return self.keys[...], self.values[...]
