"""The mesh of all devices of all processes, and how a run's arrays lie on it.

The rows of a batch are divided along the axes `data` and `fsdp`. The base lies whole on every
device, so that a step needs one exchange, the sum of the gradients, as large as the prompt; or it
is divided along `model`, and the devices exchange activations in every layer; or its kernels are
along `fsdp`, and the devices exchange the kernels of every layer.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.core import Tracer
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Num

from prompt_tuning.batch import PAD, Batch
from prompt_tuning.errors import ConfigError
from prompt_tuning.layout import Layout
from prompt_tuning.partitioning.rules import (
    BATCH,
    DATA,
    FSDP,
    MODEL,
    Rules,
    check_sizes,
    partition_spec,
)

Tree = TypeVar("Tree")

# JAX's name of the host's memory from which a device can read.
HOST = "pinned_host"


@dataclasses.dataclass(frozen=True)
class Placement:
    """Puts arrays on the devices of a mesh, see `Partitioning`.

    Inside a compiled function it says where they are to be put, for what a function returns. In
    several processes every one of them makes the same arrays and hands over its part.
    """

    mesh: Mesh
    rules: Rules
    offload: bool = False

    @property
    def rows(self) -> int:
        """The number of groups of devices that share the rows of a batch."""
        return self.mesh.shape[DATA] * self.mesh.shape[FSDP]

    @property
    def everywhere(self) -> NamedSharding:
        """Whole on every device."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def by_rows(self) -> NamedSharding:
        """An equal part of the rows on each device, or on each group that shares a model."""
        return NamedSharding(self.mesh, self._spec((BATCH,)))

    def axes(self) -> dict[str, int]:
        """Returns the size of each axis that is worth a word; `fsdp` is one where it is in use."""
        return {axis: n for axis, n in self.mesh.shape.items() if axis != FSDP or n > 1}

    def describe(self) -> str:
        """Returns the mesh in words: `mesh data 4 x model 2 over 8 cpu devices in 1 process`."""
        processes = len({device.process_index for device in self.mesh.devices.flat})
        platform = self.mesh.devices.flat[0].platform
        axes = " x ".join(f"{axis} {size}" for axis, size in self.axes().items())
        return (
            f"mesh {axes} over {_count(self.mesh.size, f'{platform} device')} in "
            f"{_count(processes, 'process', 'processes')}"
        )

    def sharding(self, variable: nnx.Variable) -> NamedSharding:
        """Returns how the rules divide a variable; one that does not name its axes is whole."""
        return NamedSharding(self.mesh, self._spec(_axes(variable)))

    def shardings(self, state: nnx.State) -> dict[str, NamedSharding]:
        """Returns how the rules divide each parameter, by name; shapes are enough.

        With `offload` the kernels of the layers lie in the host's memory. What else layers have is
        small.

        Raises:
            DeviceError: a dimension does not divide into equal parts.
        """
        named = _named(state)
        check_sizes(
            [(name, _axes(leaf), leaf.shape) for name, leaf in named.items() if _axes(leaf)],
            self.rules,
            self.mesh.shape,
        )
        return {
            name: self.sharding(leaf).with_memory_kind(HOST)
            if self.offload and _is_kernel_of_layers(name, leaf)
            else self.sharding(leaf)
            for name, leaf in named.items()
        }

    def parameters(self, state: nnx.State) -> nnx.State:
        """Returns a state whose every variable lies as the rules divide it.

        Raises:
            DeviceError: a dimension does not divide into equal parts.
        """
        shardings = self.shardings(state)
        return nnx.from_flat_state(
            [
                (path, leaf.replace(_put(leaf.get_value(), shardings[_name(path)])))
                for path, leaf in nnx.to_flat_state(state)
            ]
        )

    def slots(self, slots: Tree, parameters: nnx.State) -> Tree:
        """Returns an optimizer's state where its parameters lie.

        What it has under a parameter's name and of its shape is divided likewise; the rest, which
        is small or a prompt's, is whole on every device.

        Raises:
            ConfigError: the parameters are to lie in the host's memory, where none are trained.
        """
        own = _named(parameters)
        if self.offload and any(_is_kernel_of_layers(*one) for one in own.items()):
            raise ConfigError(
                "OFFLOAD keeps the layers in the host's memory, but here they are trained, and lie "
                "on the devices. Set --gin.OFFLOAD=False, and divide the model with NUM_PARTITIONS "
                "or FSDP instead."
            )

        def put(path: tuple, leaf: Any) -> Any:
            parameter = own.get(getattr(path[0], "key", "")) if path else None
            if parameter is None or parameter.shape != getattr(leaf, "shape", None):
                return _put(leaf, self.everywhere)
            return _put(leaf, self.sharding(parameter))

        return jax.tree_util.tree_map_with_path(put, slots)

    @property
    def layout(self) -> Layout:
        """What a model on this mesh must know, for `T5.hold`."""
        names = [(name,) if isinstance(name, str) else name for name, _ in self.rules]
        divided = any(self._spec(one) for one in names if one != (BATCH,))
        return Layout(
            stream=self._hold if divided else None,
            mesh=self.mesh,
            # Kernels along `fsdp` are gathered for one layer at a time.
            cross_first=self.mesh.shape[MODEL] > 1 and self.mesh.shape[FSDP] == 1,
            fetch=self.offload,
        )

    def _hold(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        spec = self._spec((BATCH, "length", "embed"))
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, spec))

    def _spec(self, axes: Sequence[str]) -> PartitionSpec:
        """Equal shardings are equal only when they are written alike: without Nones at the end."""
        spec = list(partition_spec(axes, self.rules, self.mesh.shape))
        while spec and spec[-1] is None:
            spec.pop()
        return PartitionSpec(*spec)

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
    if isinstance(leaf, Tracer):
        return jax.lax.with_sharding_constraint(leaf, sharding)
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


def _named(state: nnx.State) -> dict[str, nnx.Variable]:
    return {_name(path): leaf for path, leaf in nnx.to_flat_state(state)}


def _is_kernel_of_layers(name: str, variable: nnx.Variable) -> bool:
    return name.endswith("/kernel") and "layers" in _axes(variable)


def _name(path: tuple) -> str:
    return "/".join(map(str, path))


def _axes(variable: nnx.Variable) -> Sequence[str]:
    return variable.get_metadata().get("axes", ())


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"
