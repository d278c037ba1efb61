"""Devices that are not here, by name: `v5e:4x4`, `v5p:2x2x1`, `h100:8`, `cpu:8`.

A TPU's program is compiled by libtpu, which needs no TPU for it. Programs for GPUs need a GPU to be
compiled: where there is none, what they take is estimated from the same program for CPUs.
"""

import dataclasses
import math
import os
import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import topologies

from prompt_tuning.errors import ConfigError, DeviceError, nearest
from prompt_tuning.libtpu import look_for_no_tpu
from prompt_tuning.planning.chips import CHIPS, GIB, GPU_FRACTION, GPUS, TPUS, Chip, like

# Those that libtpu knows, the smallest first. Chips of v4 and v5p are cubes and their parts.
FLAT = ("1x1", "1x2", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
CUBIC = ("1x1x1", "2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")
SLICES = {"v4": CUBIC[1:], "v5e": FLAT, "v5p": CUBIC, "v6e": FLAT}
COUNTS = tuple(2**i for i in range(9))
# Of a host: that of larger slices is known.
_BOUNDS = {"1x1": (1, 1, 1), "1x2": (1, 2, 1), "1x1x1": (1, 1, 1)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Topology:
    """Devices to compile for.

    Attributes:
        name: as it was asked for.
        chip: what each of them can do.
        devices: to make a mesh of.
        is_estimate: the program is compiled for CPUs in place of the chip.
    """

    name: str
    chip: Chip
    devices: Sequence[Any]
    is_estimate: bool = False


def check(name: str) -> None:
    """Raises ConfigError if a name means nothing; no device is looked for."""
    family, _, size = name.partition(":")
    if family not in (*CHIPS, "cpu", "gpu"):
        known = [*TPUS, *GPUS, "gpu", "cpu"]
        raise ConfigError(
            f"--topology={name}: there is no chip {family!r}.{nearest(family, known)} Known are "
            f"{', '.join(known)}, each with its size: v5e:4x4, v5p:2x2x1, h100:8, cpu:8."
        )
    if family not in TPUS:
        if not re.fullmatch(r"[1-9]\d*", size):
            raise ConfigError(
                f"--topology={name}: expected the number of devices, as in {family}:8."
            )
        return
    sides = 3 if family in ("v4", "v5p") else 2
    if not re.fullmatch(r"[1-9]\d*" + r"x[1-9]\d*" * (sides - 1), size):
        sizes = SLICES[family]
        raise ConfigError(
            f"--topology={name}: slices of {family} have {sides} sides: "
            f"{', '.join(f'{family}:{one}' for one in sizes)}.{nearest(size, sizes)}"
        )


def family_of(name: str) -> list[str]:
    """Returns the slices of the same chip, the smallest first; of CPUs and GPUs up to the name's.

    >>> family_of("v5e:4x4")[:3]
    ['v5e:1x1', 'v5e:1x2', 'v5e:2x2']
    >>> family_of("h100:4")
    ['h100:1', 'h100:2', 'h100:4']
    """
    family, _, size = name.partition(":")
    if family in SLICES:
        return [f"{family}:{one}" for one in SLICES[family]]
    return [f"{family}:{count}" for count in COUNTS if count <= int(size)]


def devices_in(name: str) -> int:
    """Returns how many devices a topology has, without looking for them."""
    family, _, size = name.partition(":")
    return math.prod(map(int, size.split("x"))) * (2 if family == "v4" else 1)


def topology(name: str) -> Topology:
    """Returns the devices of a topology.

    Raises:
        ConfigError: there is no such topology, or no compiler for it here.
        DeviceError: there are not as many CPU devices.
    """
    check(name)
    family, _, size = name.partition(":")
    if family in TPUS:
        return Topology(name=name, chip=TPUS[family], devices=_tpus(name, family, size))
    wanted = int(size)
    gpus = _gpus()
    if family == "gpu" and not gpus:
        raise ConfigError(
            f"--topology={name}: there is no GPU here to ask. Name the kind, for an estimate: "
            f"{', '.join(f'{one}:{wanted}' for one in GPUS)}."
        )
    chip = GPUS.get(family) or (like(gpus[0].device_kind) if family == "gpu" else None)
    if gpus and wanted <= len(gpus) and family != "cpu" and chip == like(gpus[0].device_kind):
        return here(gpus[:wanted], name=name)
    cpus = _cpus(wanted, name)
    if family == "cpu":
        return here(cpus, name=name)
    if chip is None:
        raise ConfigError(
            f"--topology={name}: nothing is known of {gpus[0].device_kind}. Name one of "
            f"{', '.join(f'{one}:{wanted}' for one in GPUS)}."
        )
    return Topology(name=name, chip=_allocated(chip), devices=cpus, is_estimate=True)


def here(devices: Sequence[Any], *, name: str | None = None) -> Topology:
    """Returns devices of this machine as a topology."""
    first = devices[0]
    chip = like(first.device_kind)
    if first.platform == "cpu":
        chip = Chip(name="cpu", platform="cpu", memory=_memory_of_host() // len(devices))
    elif chip is None:
        chip = Chip(name=first.device_kind, platform=first.platform, memory=_limit())
    elif chip.platform == "gpu":
        limit = _limit()
        chip = dataclasses.replace(chip, memory=limit) if limit else _allocated(chip)
    return Topology(name=name or f"{chip.name}:{len(devices)}", chip=chip, devices=devices)


def _limit() -> int:
    """Returns how much memory JAX says that a device of this process has, 0 if nothing."""
    return (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", 0)


def _tpus(name: str, family: str, size: str) -> Sequence[Any]:
    look_for_no_tpu()
    bounds = {"chips_per_host_bounds": _BOUNDS[size]} if size in _BOUNDS else {}
    try:
        return topologies.get_topology_desc(
            platform="tpu", topology_name=f"{family}:{size}", **bounds
        ).devices
    except (RuntimeError, ValueError, ImportError) as error:
        if "libtpu" in str(error) or isinstance(error, ImportError):
            raise ConfigError(
                f"--topology={name}: programs for TPUs are compiled by libtpu, which is not "
                'installed. It needs no TPU: pip install "prompt-tuning[tpu-plan]"'
            ) from error
        slices = family_of(name)
        raise ConfigError(
            f"--topology={name}: libtpu knows no such slice ({_first_line(error)}). Choose one of "
            f"{', '.join(slices)}.{nearest(name, slices)}"
        ) from error


def _gpus() -> Sequence[Any]:
    try:
        return jax.devices("gpu")
    except RuntimeError:
        return []


def _cpus(count: int, name: str) -> Sequence[Any]:
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise DeviceError(
            f"--topology={name}: this process has {len(devices)} CPU devices. A CPU can pass for "
            f"several: JAX_NUM_CPU_DEVICES={count}."
        )
    return devices[:count]


def _allocated(chip: Chip) -> Chip:
    fraction = float(os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION", GPU_FRACTION))
    return dataclasses.replace(chip, memory=round(chip.memory * fraction))


def _memory_of_host() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):  # not on every system
        return 64 * GIB


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]
