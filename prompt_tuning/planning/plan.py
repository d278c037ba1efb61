"""What one program takes on each device of a topology, as its compiler says."""

import dataclasses
import re
import time
from typing import Any

import jax

from prompt_tuning.planning import shapes
from prompt_tuning.planning.chips import GIB, Chip
from prompt_tuning.planning.counts import Counts, count
from prompt_tuning.planning.topologies import Topology


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one device: of arguments, of what is between, of results, and at the worst moment.

    What is donated counts as an argument only.
    """

    argument: int
    temporary: int
    output: int
    peak: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What one program takes on each device.

    Attributes:
        program: `train`, `eval` or `decode`.
        topology: its name.
        chip: what it is compiled for.
        devices: how many of them.
        mesh: in words.
        rows: of a batch, of all devices together.
        inputs: tokens of an input, without the prompt.
        targets: tokens of a target or an answer.
        microbatches: parts of a batch.
        minimum: the fewest FLOPs, with everything kept for the backward pass.
        recomputed: what the rematerialisation policy adds to them.
        argument: bytes of the arguments, counted from their shapes.
        memory: as the compiler says; None if it refused.
        counts: of the compiled program; None if the compiler refused.
        refusal: the compiler's words.
        asked: bytes that it would have needed, as far as it says.
        seconds: of compilation.
        is_estimate: compiled for another platform than the chip's.
    """

    program: str
    topology: str
    chip: Chip
    devices: int
    mesh: str
    rows: int
    inputs: int
    targets: int
    microbatches: int = 1
    minimum: float
    recomputed: float
    argument: int
    memory: Memory | None = None
    counts: Counts | None = None
    refusal: str | None = None
    asked: int | None = None
    seconds: float = 0.0
    is_estimate: bool = False

    @property
    def fits(self) -> bool:
        return self.memory is not None and self.memory.peak <= self.chip.memory

    @property
    def peak(self) -> int:
        """The most bytes at a time; what the compiler would have needed if it refused."""
        return self.memory.peak if self.memory else max(self.asked or 0, self.argument)

    @property
    def ratio(self) -> float | None:
        """FLOPs over the minimum; 1.4 computes 40 % more than it must."""
        return self.counts.flops / self.minimum if self.counts and self.minimum else None

    @property
    def policy_ratio(self) -> float | None:
        """FLOPs over the minimum of the rematerialisation policy."""
        least = self.minimum + self.recomputed
        return self.counts.flops / least if self.counts and least else None

    def seconds_by(self) -> dict[str, float]:
        """Returns how long the chip needs at least for products, memory and collectives."""
        if self.counts is None or not self.chip.bf16:
            return {}
        return {
            "compute": self.counts.flops / self.chip.bf16,
            "memory": self.counts.bytes / self.chip.bandwidth,
            "collectives": sent(self.counts, self.devices) / self.chip.link,
        }

    def as_dict(self) -> dict[str, Any]:
        """Returns all figures, for JSON."""
        times = self.seconds_by()
        return {
            "program": self.program,
            "topology": self.topology,
            "chip": self.chip.name,
            "devices": self.devices,
            "mesh": self.mesh,
            "batch": self.rows,
            "inputs": self.inputs,
            "targets": self.targets,
            "microbatches": self.microbatches,
            "fits": self.fits,
            "is_estimate": self.is_estimate,
            "memory_bytes": {
                "available": self.chip.memory,
                "peak": self.peak,
                "argument": self.memory.argument if self.memory else self.argument,
                "temporary": self.memory.temporary if self.memory else None,
                "output": self.memory.output if self.memory else None,
            },
            "refusal": self.refusal,
            "flops": self.counts.flops if self.counts else None,
            "minimum_flops": self.minimum,
            "recomputed_flops": self.recomputed,
            "flops_over_minimum": self.ratio,
            "flops_over_policy": self.policy_ratio,
            "bytes_moved": self.counts.bytes if self.counts else None,
            "collectives": collectives(self.counts),
            "not_counted": sorted(self.counts.unknown) if self.counts else [],
            "seconds": times,
            "step_seconds": max(times.values()) if times else None,
            "bound_by": max(times, key=lambda name: times[name]) if times else None,
            "compile_seconds": self.seconds,
        }


def collectives(counts: Counts | None) -> list[dict[str, Any]]:
    """Returns the collectives as rows for a table, the largest first."""
    found = counts.collectives.items() if counts else ()
    rows = [
        {"kind": kind, "dtype": dtype, "count": times, "bytes": size}
        for (kind, dtype), (times, size) in found
    ]
    return sorted(rows, key=lambda row: -row["bytes"])


def sent(counts: Counts, devices: int) -> float:
    """Returns the bytes that each device sends for the collectives, over a ring of all devices."""
    share = (devices - 1) / devices
    total = 0.0
    for (kind, _), (_, size) in counts.collectives.items():
        match kind:
            case "all-reduce":
                total += 2 * share * size
            case "reduce-scatter":  # of which a part comes out
                total += (devices - 1) * size
            case "collective-permute" | "collective-broadcast":
                total += size
            case _:
                total += share * size
    return total


def planned(
    program: str,
    function: Any,
    arguments: tuple[Any, ...],
    topology: Topology,
    *,
    mesh: str,
    minimum: float,
    recomputed: float = 0.0,
    most_trips: int | None = None,
    rows: int,
    inputs: int,
    targets: int,
    microbatches: int = 1,
) -> Plan:
    """Compiles a jitted function on shapes and returns what it takes.

    Args:
        program: what to call it.
        function: what `jax.jit` returned.
        arguments: shapes that lie on the devices of the topology.
        topology: what it is compiled for.
        mesh: in words.
        minimum: FLOPs of all devices together that the program needs.
        recomputed: what rematerialisation adds to them.
        most_trips: of loops that end when their data say so.
        rows: of a batch.
        inputs: tokens of an input.
        targets: tokens of a target or an answer.
        microbatches: parts of a batch.
    """
    devices = len(topology.devices)
    plan = Plan(
        program=program,
        topology=topology.name,
        chip=topology.chip,
        devices=devices,
        mesh=mesh,
        minimum=minimum / devices,
        recomputed=recomputed / devices,
        argument=shapes.bytes_each(arguments),
        is_estimate=topology.is_estimate,
        rows=rows,
        inputs=inputs,
        targets=targets,
        microbatches=microbatches,
    )
    began = time.monotonic()
    try:
        compiled = function.lower(*arguments).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return dataclasses.replace(
            plan,
            refusal=str(error).partition("\n")[0],
            asked=plan.argument + asked(str(error)),
            seconds=time.monotonic() - began,
        )
    seconds = time.monotonic() - began
    counts = count(compiled.as_text(), most_trips=most_trips)
    return dataclasses.replace(plan, memory=memory_of(compiled), counts=counts, seconds=seconds)


def memory_of(compiled: Any) -> Memory:
    """Returns what a compiled program says of its memory."""
    stats = compiled.memory_analysis()
    output = stats.output_size_in_bytes - stats.alias_size_in_bytes
    whole = stats.argument_size_in_bytes + stats.temp_size_in_bytes + output
    # Less than the sum, as not all is there at a time. That of the CPU is of something else.
    peak = getattr(stats, "peak_memory_in_bytes", 0)
    parts = stats.argument_size_in_bytes, stats.temp_size_in_bytes
    return Memory(
        argument=parts[0],
        temporary=parts[1],
        output=output,
        peak=peak if peak >= max(parts) else whole,
    )


def asked(refusal: str) -> int:
    """Returns the bytes of temporaries that a compiler's refusal speaks of, 0 if of none.

    >>> asked("total memory required for HLO temporaries (1.50G) exceeds available HBM (0.75G)")
    1610612736
    """
    found = re.search(r"temporaries \(([\d.]+)([KMGT])\)", refusal)
    found = found or re.search(r"Used ([\d.]+)([KMGT]) of", refusal)
    if found is None:
        return 0
    return round(float(found[1]) * {"K": 2**10, "M": 2**20, "G": GIB, "T": 2**40}[found[2]])
