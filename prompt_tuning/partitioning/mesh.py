"""The mesh of all devices of all processes, and how a run's arrays lie on it.

Parameters lie whole on every device and the rows of a batch are divided among them, so that a step
needs one exchange: the sum of the gradients, as large as the prompt.
"""

import dataclasses
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Num

from prompt_tuning.batch import PAD, Batch
from prompt_tuning.errors import DeviceError

DATA = "data"

Tree = TypeVar("Tree")


@dataclasses.dataclass(frozen=True)
class Placement:
    """Puts arrays on the devices of a mesh with the one axis `data`.

    In several processes every one of them makes the same arrays and hands over its part.
    """

    mesh: Mesh

    @property
    def rows(self) -> int:
        """The number of devices that share the rows of a batch."""
        return self.mesh.shape[DATA]

    @property
    def everywhere(self) -> NamedSharding:
        """Whole on every device."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def by_rows(self) -> NamedSharding:
        """An equal part of the rows on each device."""
        return NamedSharding(self.mesh, PartitionSpec(DATA))

    def replicated(self, tree: Tree) -> Tree:
        """Returns the tree with every array whole on every device; plain numbers stay as they are.

        A leaf that lies there already is not copied: whoever donates the result gives it away.
        """
        return jax.tree.map(lambda leaf: _put(leaf, self.everywhere), tree)

    def batch(self, batch: Batch, *, microbatches: int = 1) -> Batch:
        """Returns a batch with its rows divided among the devices.

        It gets as many empty rows as it takes to divide evenly; they weigh nothing and are counted
        nowhere, so the loss and all metrics are those of the batch as it was. The rows of one
        microbatch stay together, but lie on all devices:

            microbatches=2    rows 0 1 2 3 4 5    on two devices (- is empty)
                                                  0 1 3 4 | 2 - 5 -

        `make_train_step(microbatches=2, placement=...)` knows this order; with one microbatch all
        rows keep their places.
        """
        return jax.tree.map(
            lambda rows: _put(self._laid_out(rows, microbatches), self.by_rows), batch
        )

    def _laid_out(self, rows: Num[Array | np.ndarray, "B U"], parts: int) -> Num[np.ndarray, "R U"]:
        whole = _padded(np.asarray(rows), parts, axis=0).reshape(parts, -1, rows.shape[1])
        even = _padded(whole, self.rows, axis=1).reshape(parts, self.rows, -1, rows.shape[1])
        return even.swapaxes(0, 1).reshape(-1, rows.shape[1])


def placement(devices: int | None = None) -> Placement:
    """Returns the placement on all devices of all processes, or on the first few of them.

    Raises:
        DeviceError: there are fewer devices, or a process would have none of them.
    """
    every = jax.devices()
    chosen = every[: len(every) if devices is None else devices]
    if devices is not None and not 1 <= devices <= len(every):
        raise DeviceError(
            f"{devices} devices were asked for, but there are {len(every)} ({every[0].platform}). "
            f"Choose 1 to {len(every)}, or leave the number out to use all."
        )
    idle = set(range(jax.process_count())) - {device.process_index for device in chosen}
    if idle:
        raise DeviceError(
            f"{devices} of {len(every)} devices leave process {min(idle)} of "
            f"{jax.process_count()} without any. Start fewer processes, or use all devices."
        )
    return Placement(Mesh(np.array(chosen), (DATA,)))


def on_host(array: Num[Array | np.ndarray, "..."]) -> Num[np.ndarray, "..."]:
    """Returns an array whole, also if parts of it lie in other processes.

    All processes must ask for it, in the same order.
    """
    if isinstance(array, jax.Array) and not (
        array.is_fully_addressable or array.is_fully_replicated
    ):
        return np.asarray(multihost_utils.process_allgather(array, tiled=True))
    return np.asarray(array)


def _put(leaf: Any, sharding: NamedSharding) -> Any:
    if isinstance(leaf, np.generic):
        leaf = np.asarray(leaf)
    if not isinstance(leaf, jax.Array | np.ndarray):
        return leaf
    if isinstance(leaf, jax.Array):
        if leaf.sharding == sharding:
            return leaf
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            data = _put(jax.random.key_data(leaf), sharding)
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    if jax.process_count() == 1:
        return jax.device_put(leaf, sharding)
    # `device_put` would compare the arrays of all processes, over the network.
    whole = on_host(leaf)
    return jax.make_array_from_callback(whole.shape, sharding, lambda part: whole[part])


def _padded(rows: np.ndarray, multiple: int, *, axis: int) -> np.ndarray:
    """Returns the rows with empty ones behind them, up to a multiple."""
    widths = [(0, 0)] * rows.ndim
    widths[axis] = (0, -rows.shape[axis] % multiple)
    return np.pad(rows, widths, constant_values=PAD) if widths[axis][1] else rows
