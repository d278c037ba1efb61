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
from prompt_tuning.partitioning.mesh import HOST, Placement
from prompt_tuning.partitioning.rules import (
    DATA,
    FSDP,
    MODEL,
    Rules,
    standard_logical_axis_rules,
)

AXES = (DATA, FSDP, MODEL)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Partitioning:
    """How a model is divided among devices, as t5x's `PjitPartitioner` says it.

    Attributes:
        num_partitions: how many devices hold one copy of the model (NUM_PARTITIONS).
        model_parallel_submesh: the same as a box `(x, y, z, core)` of a TPU's chips, so that these
            devices are neighbours (MODEL_PARALLEL_SUBMESH). Elsewhere its product counts.
        parameter_partitioning_dims: 2 divides every kernel among all devices that have different
            examples too, as t5x does.
        activation_partitioning_dims: 2 divides what runs between layers along `model` too.
        fsdp: how many devices with different examples share the kernels of the layers, each of
            which is gathered when its turn comes (FSDP).
        offload: whether the layers lie in the host's memory, and each is fetched when its turn
            comes (OFFLOAD).
    """

    num_partitions: int = 1
    model_parallel_submesh: Sequence[int] | None = None
    parameter_partitioning_dims: int = 1
    activation_partitioning_dims: int = 1
    fsdp: int = 1
    offload: bool = False

    def __post_init__(self):
        self._rules()
        if self.num_partitions < 1:
            raise ConfigError(
                f"NUM_PARTITIONS is {self.num_partitions}, expected 1 or more devices for each "
                "copy of the model."
            )
        if self.fsdp < 1:
            raise ConfigError(
                f"FSDP is {self.fsdp}, expected 1 or more devices to share the kernels of the "
                "layers."
            )
        if self.fsdp > 1 and self.parameter_partitioning_dims == 2:
            raise ConfigError(
                f"FSDP is {self.fsdp} and parameter_partitioning_dims 2, which divides the kernels "
                "among all devices. Leave one of them at 1 (partitioning.Partitioning)."
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
            DeviceError: there are fewer devices, they do not divide into copies of the model or
                into groups that share its kernels, a slice does not hold such a group, a process
                would have none of them, or `offload` is asked of devices that cannot.
        """
        chosen = _chosen(devices) if isinstance(devices, int | None) else devices
        if len(chosen) % self.partitions:
            raise DeviceError(self._does_not_divide(chosen))
        copies = len(chosen) // self.partitions
        fsdp = copies if self.parameter_partitioning_dims == 2 else self.fsdp
        if copies % fsdp:
            raise DeviceError(_do_not_share(chosen, self.fsdp, self.partitions))
        if self.offload:
            _check_host_memory(chosen[0])
        shape = (copies // fsdp, fsdp, self.partitions)
        mesh = Mesh(self._grid(chosen, shape), AXES, axis_types=(AxisType.Auto,) * len(AXES))
        return Placement(mesh, self._rules(), offload=self.offload)

    def _grid(self, devices: Sequence[Any], shape: tuple[int, int, int]) -> np.ndarray:
        """Returns devices as `[data, fsdp, model]`; only `data` leads from slice to slice."""
        if devices[0].platform != "tpu":
            # In the order of processes, whose own devices have the fast links.
            return np.array(devices, object).reshape(shape)
        slices, submesh = _slices(devices), self.model_parallel_submesh
        _check_slices(slices, shape)
        if submesh:
            return boxes(devices, submesh).reshape(shape)
        inside = (shape[0] // len(slices), *shape[1:])
        return np.concatenate([_neighbours(one, inside) for one in slices])

    def _rules(self) -> Rules:
        return standard_logical_axis_rules(
            parameter_partitioning_dims=self.parameter_partitioning_dims,
            activation_partitioning_dims=self.activation_partitioning_dims,
        )

    def _does_not_divide(self, devices: Sequence[Any]) -> str:
        submesh, count, platform = self.model_parallel_submesh, len(devices), devices[0].platform
        box = f"MODEL_PARALLEL_SUBMESH is {tuple(submesh or ())}, which makes"
        possible = _divisors(count)
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


def _do_not_share(devices: Sequence[Any], fsdp: int, partitions: int) -> str:
    count, needed, platform = len(devices), fsdp * partitions, devices[0].platform
    hint = (
        f" A CPU can pass for several devices: JAX_NUM_CPU_DEVICES={needed}."
        if platform == "cpu"
        else ""
    )
    return (
        f"FSDP is {fsdp} with {partitions} devices for each copy of the model, which makes "
        f"{needed} devices that share its kernels; {count} ({platform}) are not a multiple of "
        f"that. Set --gin.FSDP to one of {_divisors(count // partitions)}: the smallest with which "
        f"the model fits.{hint}"
    )


def boxes(devices: Sequence[Any], submesh: Sequence[int]) -> np.ndarray:
    """Returns devices as `[data, model]`, each row a box of neighbouring chips.

    Raises:
        DeviceError: the box does not divide the slice that the devices make.
    """
    return np.concatenate([_boxes_of_slice(one, submesh) for one in _slices(devices)])


def _slices(devices: Sequence[Any]) -> list[list[Any]]:
    """Returns the devices of each slice of TPUs, which the network of the data centre joins."""
    slices: dict[int, list[Any]] = {}
    for device in devices:
        slices.setdefault(getattr(device, "slice_index", 0) or 0, []).append(device)
    return [slices[i] for i in sorted(slices)]


def _check_slices(slices: list[list[Any]], shape: tuple[int, int, int]) -> None:
    sizes = sorted({len(one) for one in slices})
    if len(sizes) > 1:
        raise DeviceError(
            f"The {len(slices)} slices have {' and '.join(map(str, sizes))} devices, expected as "
            "many in each. Use all devices of slices of one size."
        )
    _, fsdp, partitions = shape
    if sizes[0] % (fsdp * partitions):
        raise DeviceError(
            f"FSDP x NUM_PARTITIONS is {fsdp} x {partitions}, but each of the {len(slices)} slices "
            f"has {sizes[0]} devices, and what devices share of a model must lie in one slice. Set "
            f"--gin.NUM_PARTITIONS to one of {_divisors(sizes[0])} and --gin.FSDP to what divides "
            f"the rest; parameter_partitioning_dims=2 takes all devices, which is one slice's."
        )


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


def _neighbours(devices: Sequence[Any], shape: tuple[int, int, int]) -> np.ndarray:
    """Returns the devices of a slice as `[data, fsdp, model]`, neighbouring chips together."""
    if max(shape) == len(devices):
        return np.array(devices, object).reshape(shape)
    return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)


def _divisors(number: int) -> str:
    return ", ".join(str(n) for n in range(1, number + 1) if number % n == 0)


def _check_host_memory(device: Any) -> None:
    kinds = [memory.kind for memory in device.addressable_memories()]
    if HOST not in kinds:
        raise DeviceError(
            f"OFFLOAD needs devices that read from the memory of their host ({HOST!r}), but "
            f"{device.device_kind} ({device.platform}) has {', '.join(map(repr, kinds))}. Set "
            "--gin.OFFLOAD=False."
        )


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
