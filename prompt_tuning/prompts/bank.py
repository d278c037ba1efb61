"""Many prompts over one frozen model in one batch: every row chooses its own."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from prompt_tuning.errors import ConfigError
from prompt_tuning.prompts.combine import Combine, prefix
from prompt_tuning.prompts.prompt import PromptParam


class Choice(nnx.Variable):
    """Which prompt of a bank each row has: [B], or one number for all rows."""


class PromptLengths(nnx.Variable):
    """How many vectors each prompt of a bank has, [K]."""


class PromptBank(nnx.Module):
    """K prompts of one model, in the place of its `Prompt`; a row is what it would be alone.

    A choice is an argument of a compiled function, and so are the prompts: neither compiles it
    again.

        graph, prompts, choice, frozen = nnx.split(model, PromptParam, Choice, ...)
        choice = chosen(choice, jnp.array([0, 2, 1]))  # for three rows; at first all have prompt 0

    All rows are as long as those of the longest prompt. In a row with a shorter one the text moves
    up to it, whatever the place of the prompt, and hidden positions fill the end:

        prompts of 2 and 1, prefix          p  p  E5 E6 E1 .
                                            p  E5 E6 E1 .  .
        prompts of 2 and 1, Suffix()        E5 E6 p  p  E1 .
                                            E5 E6 p  E1 .  .

    Args:
        prompts: the vectors of each, [P D] with a P of its own.
        combine: where all of them go, see `combine.py`. A function of yours must put every vector
            somewhere as it is, and where must not depend on its values.
        embed_dim: the model's width, D, if a model's constructor makes the bank.
        rngs: not used; a model's constructor supplies it.

    Raises:
        ConfigError: no prompts, or one that is not [P D] with the D of the others.
    """

    def __init__(
        self,
        prompts: Sequence[Float[Array | np.ndarray, "..."]],
        *,
        combine: Combine = prefix,
        embed_dim: int | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> None:
        shapes = [tuple(prompt.shape) for prompt in prompts]
        _check(shapes, embed_dim)
        longest = max(length for length, _ in shapes)
        vectors = [
            jnp.pad(jnp.asarray(prompt, jnp.float32), ((0, longest - len(prompt)), (0, 0)))
            for prompt in prompts
        ]
        lengths = jnp.asarray([length for length, _ in shapes], jnp.int32)
        self.combine = combine
        self.prompts = PromptParam(jnp.stack(vectors), axes=("prompts", "prompt", "prompt_embed"))
        self.lengths = PromptLengths(lengths, axes=("prompts",))
        self.choice = Choice(jnp.zeros((), jnp.int32), axes=())

    @property
    def size(self) -> int:
        """The number of prompts, K."""
        return self.prompts.shape[0]

    @property
    def length(self) -> int:
        """The number of vectors of the longest prompt, P."""
        return self.prompts.shape[1]

    def __call__(
        self, embedded: Float[Array, "B T D"], tokens: Int[Array, "B T"]
    ) -> tuple[Float[Array, "B {self.length}+T D"], Bool[Array, "B {self.length}+T"]]:
        """Returns every text with its prompt in it, in its dtype, and what may be attended to."""
        choice = self._choice(embedded.shape[0])
        # Gathered first, cast second, so that gradients are summed in float32 (see `Prompt`).
        each = jnp.take(self.prompts[...], choice, axis=0, fill_value=jnp.nan)
        lengths = jnp.take(self.lengths[...], choice, fill_value=self.length)
        surplus = jnp.arange(each.shape[1])[None] >= lengths[:, None]
        rows, real = self.combine(each.astype(embedded.dtype), embedded, tokens)
        return _behind(self._places(surplus, embedded, tokens), rows, real)

    def _choice(self, batch: int) -> Int[Array, " B"]:
        choice = self.choice[...]
        if choice.shape not in ((), (batch,)):
            raise ConfigError(
                f"The choice of a prompt has shape {choice.shape}, but the batch has {batch} rows: "
                f"expected ({batch},), a prompt for each, or one number for all."
            )
        # A number that is no prompt's gives NaN, not a neighbour. JAX counts -1 from the end.
        return jnp.broadcast_to(jnp.where(choice < 0, self.size, choice), (batch,))

    def _places(
        self,
        surplus: Bool[Array, "B P"],
        embedded: Float[Array, "B T D"],
        tokens: Int[Array, "B T"],
    ) -> Bool[Array, "B S"]:
        """Says which positions of the longer sequence got no vector, by sending marks there."""
        marks = surplus[:, :, None].astype(embedded.dtype)
        return self.combine(marks, jnp.zeros_like(embedded[:, :, :1]), tokens)[0][:, :, 0] != 0


def chosen(state: nnx.State, rows: Int[Array | np.ndarray, "*B"]) -> nnx.State:
    """Returns a split state with another choice in it: a prompt for each row, or one for all.

    Raises:
        ConfigError: the state has no choice.
    """
    flat = list(nnx.to_flat_state(state))
    if not any(isinstance(leaf, Choice) for _, leaf in flat):
        raise ConfigError(
            "There is no choice to make in this state: the model has no `PromptBank`, or `Choice` "
            "went to another part of the split. Split with `nnx.split(model, PromptParam, Choice, "
            "...)`."
        )
    rows = jnp.asarray(rows, jnp.int32)
    return nnx.from_flat_state(
        [(path, leaf.replace(rows) if isinstance(leaf, Choice) else leaf) for path, leaf in flat]
    )


def _behind(
    empty: Bool[Array, "B S"], rows: Float[Array, "B S D"], real: Bool[Array, "B S"]
) -> tuple[Float[Array, "B S D"], Bool[Array, "B S"]]:
    """Moves empty positions to the end of their rows and hides them."""
    order = jnp.argsort(empty, axis=1, stable=True)
    rows = jnp.take_along_axis(rows, order[:, :, None], axis=1)
    return rows, jnp.take_along_axis(real & ~empty, order, axis=1)


def _check(shapes: list[tuple[int, ...]], embed_dim: int | None) -> None:
    if not shapes:
        raise ConfigError("PromptBank got no prompts, expected at least one array [P, D].")
    width = embed_dim or shapes[0][-1]
    for k, shape in enumerate(shapes):
        if len(shape) != 2 or shape[0] < 1 or shape[1] != width:
            raise ConfigError(
                f"Prompt {k} of the bank has shape {shape}, expected [P, {width}] with a P of 1 or "
                "more. The prompts of a bank belong to one model."
            )
