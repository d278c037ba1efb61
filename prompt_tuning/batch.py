"""The arrays of one step: the only type that crosses from data to the core."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Num

PAD = 0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """A batch of input and target token ids, padded on the right with `PAD`.

    The decoder's inputs are not stored: they are always the targets shifted right. Data sources
    make numpy arrays, which travel to the device when a step is called.
    """

    inputs: Int[Array | np.ndarray, "B T"]
    targets: Int[Array | np.ndarray, "B U"]
    weights: Num[Array | np.ndarray, "B U"]

    @property
    def size(self) -> int:
        """The number of examples, B."""
        return self.inputs.shape[0]


def shift_right(targets: Int[Array, "B U"]) -> Int[Array, "B U"]:
    """Turns targets into decoder inputs: what was said before each position.

    targets  5 7 1 0
    inputs   0 5 7 1    (0 is both padding and the start of a sequence, as in every T5)
    """
    return jnp.pad(targets[:, :-1], ((0, 0), (1, 0)), constant_values=PAD)
