"""Which devices hold a copy of the model together, and which have different examples."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from prompt_tuning.errors import ConfigError, DeviceError
from prompt_tuning.partitioning.mesh import Placement
from prompt_tuning.partitioning.rules import DATA, MODEL, Rules, standard_logical_axis_rules


@dataclasses.dataclass(frozen=True, kw_only=True)
class Partitioning:
    """How a model is divided among devices, as t5x's `PjitPartitioner` says it.

    Attributes:
        num_partitions: how many devices hold one copy of the model (NUM_PARTITIONS).
        model_parallel_submesh: the same as a box `(x, y, z, core)` of a TPU's chips, so that these
            devices are neighbours (MODEL_PARALLEL_SUBMESH). Elsewhere its product counts.
        parameter_partitioning_dims: 2 divides every kernel along `data` too; each layer is then
            gathered when its turn comes.
        activation_partitioning_dims: 2 divides what runs between layers along `model` too.
    """

    num_partitions: int = 1
    model_parallel_submesh: Sequence[int] | None = None
    parameter_partitioning_dims: int = 1
    activation_partitioning_dims: int = 1

    def __post_init__(self):
        self._rules()
        if self.num_partitions < 1:
            raise ConfigError(
                f"NUM_PARTITIONS is {self.num_partitions}, expected 1 or more devices for each "
                "copy of the model."
            )
        submesh = self.model_parallel_submesh
        if submesh is None:
            return
        if len(submesh) != 4 or not all(isinstance(n, int) and n > 0 for n in submesh):
            raise ConfigError(
                f"MODEL_PARALLEL_SUBMESH is {submesh!r}, expected four numbers (x, y, z, core) "
                "such as (2, 2, 1, 1), or None."
            )
        # 1 is what t5x's own files say beside a submesh.
        if self.num_partitions > 1:
            raise ConfigError(
                f"NUM_PARTITIONS is {self.num_partitions} and MODEL_PARALLEL_SUBMESH {submesh!r}, "
                "but they say the same thing in two ways. Set one of them."
            )

    @property
    def partitions(self) -> int:
        """How many devices hold one copy of the model."""
        return math.prod(self.model_parallel_submesh or (self.num_partitions,))

    def placement(self, devices: int | Sequence[Any] | None = None) -> Placement:
        """Returns the placement on all devices of all processes, or on some of them.

        Args:
            devices: how many, the first ones; or which, also those of a topology that is not here.

        Raises:
            DeviceError: there are fewer devices, they do not divide into copies of the model, or a
                process would have none of them.
        """
        chosen = _chosen(devices) if isinstance(devices, int | None) else devices
        if len(chosen) % self.partitions:
            raise DeviceError(self._does_not_divide(chosen))
        if chosen[0].platform == "tpu" and self.model_parallel_submesh:
            grid = boxes(chosen, self.model_parallel_submesh)
        else:
            grid = _neighbours(chosen, self.partitions)
        mesh = Mesh(grid, (DATA, MODEL), axis_types=(AxisType.Auto, AxisType.Auto))
        return Placement(mesh, self._rules())

    def _rules(self) -> Rules:
        return standard_logical_axis_rules(
            parameter_partitioning_dims=self.parameter_partitioning_dims,
            activation_partitioning_dims=self.activation_partitioning_dims,
        )

    def _does_not_divide(self, devices: Sequence[Any]) -> str:
        submesh, count, platform = self.model_parallel_submesh, len(devices), devices[0].platform
        box = f"MODEL_PARALLEL_SUBMESH is {tuple(submesh or ())}, which makes"
        possible = ", ".join(str(n) for n in range(1, count + 1) if count % n == 0)
        unset = " and MODEL_PARALLEL_SUBMESH to None" if submesh else ""
        hint = (
            f" A CPU can pass for several devices: JAX_NUM_CPU_DEVICES={self.partitions}."
            if platform == "cpu"
            else ""
        )
        return (
            f"{box if submesh else 'NUM_PARTITIONS is'} {self.partitions} devices for each copy of "
            f"the model, which {count} ({platform}) are not a multiple of. Set "
            f"--gin.NUM_PARTITIONS to one of {possible}{unset}: the smallest with which the model "
            f"fits.{hint}"
        )


def placement(devices: int | None = None) -> Placement:
    """Returns the placement of a model that is whole on each device, see `Partitioning`.

    Raises:
        DeviceError: there are fewer devices, or a process would have none of them.
    """
    return Partitioning().placement(devices)


def boxes(devices: Sequence[Any], submesh: Sequence[int]) -> np.ndarray:
    """Returns devices as `[data, model]`, each row a box of neighbouring chips.

    Raises:
        DeviceError: the box does not divide the slice that the devices make.
    """
    slices: dict[int, list[Any]] = {}
    for device in devices:
        slices.setdefault(getattr(device, "slice_index", 0) or 0, []).append(device)
    return np.concatenate([_boxes_of_slice(slices[i], submesh) for i in sorted(slices)])


def _boxes_of_slice(devices: Sequence[Any], submesh: Sequence[int]) -> np.ndarray:
    places = np.array([(*device.coords, device.core_on_chip) for device in devices])
    places -= places.min(axis=0)
    bounds = tuple(int(n) for n in places.max(axis=0) + 1)
    whole = math.prod(bounds) == len(devices)
    if not whole or any(n % m for n, m in zip(bounds, submesh, strict=True)):
        raise DeviceError(
            f"MODEL_PARALLEL_SUBMESH is {tuple(submesh)}, but the {len(devices)} devices are a "
            f"slice of {bounds} (x, y, z, core), whose every side must be a multiple of the box's. "
            "Boxes of TPU v3 have 2 cores a chip, those of later chips 1. Set "
            f"--gin.NUM_PARTITIONS={math.prod(submesh)} instead to have neighbours chosen for you."
        )
    grid = np.empty(bounds, object)
    for device, place in zip(devices, places, strict=True):
        grid[tuple(place)] = device
    sides = [part for n, m in zip(bounds, submesh, strict=True) for part in (n // m, m)]
    return grid.reshape(sides).transpose(0, 2, 4, 6, 1, 3, 5, 7).reshape(-1, math.prod(submesh))


def _neighbours(devices: Sequence[Any], partitions: int) -> np.ndarray:
    """Returns devices as `[data, model]`, devices of a process, or neighbouring chips, together."""
    shape = (len(devices) // partitions, partitions)
    if devices[0].platform != "tpu" or 1 in shape:
        # In the order of processes, whose own devices have the fast links.
        return np.array(devices, object).reshape(shape)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices > 1 and shape[0] % slices == 0:
        return mesh_utils.create_hybrid_device_mesh(
            (shape[0] // slices, partitions), (slices, 1), devices, allow_split_physical_axes=True
        )
    return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)


def _chosen(devices: int | None) -> Sequence[Any]:
    every = jax.devices()
    if devices is not None and not 1 <= devices <= len(every):
        raise DeviceError(
            f"{devices} devices were asked for, but there are {len(every)} ({every[0].platform}). "
            f"Choose 1 to {len(every)}, or leave the number out to use all."
        )
    chosen = every[: len(every) if devices is None else devices]
    idle = set(range(jax.process_count())) - {device.process_index for device in chosen}
    if idle:
        raise DeviceError(
            f"{devices} of {len(every)} devices leave process {min(idle)} of "
            f"{jax.process_count()} without any. Start fewer processes, or use all devices."
        )
    return chosen
