"""Plans as tables: what each program takes of a device, and what to change if that is too much."""

from collections.abc import Sequence

from prompt_tuning.cli.reports.layout import block, many, size, table
from prompt_tuning.model import T5Config
from prompt_tuning.planning import Plan
from prompt_tuning.planning.plan import collectives

# Of seconds that the chip needs for one thing, in words.
BOUNDS = {"compute": "products", "memory": "memory", "collectives": "exchanges"}


def of_topology(plans: Sequence[Plan], title: str) -> str:
    """Returns the figures of all programs on one topology, side by side."""
    one = plans[0]
    rows = [
        ("chip", _chip(one)),
        ("mesh", one.mesh.removeprefix("mesh ")),
        ("", table(["", *(plan.program for plan in plans)], _rows(plans))),
        *((f"{plan.program}", _verdict(plan)) for plan in plans),
    ]
    unknown = sorted({what for plan in plans if plan.counts for what in plan.counts.unknown})
    if unknown:
        rows.append(("uncounted", f"{', '.join(unknown)}."))
    return block(title, rows)


def of_several(plans: Sequence[Plan], title: str) -> str:
    """Returns one line for each plan, for comparing topologies or sizes of batches."""
    header = ["", "mesh", "batch", "parts", "peak", "of", "FLOPs/min", "exchanged", "time", "fits"]
    lines = [
        [
            f"{plan.topology} {plan.program}",
            _axes(plan),
            f"{plan.rows:,}",
            f"{plan.microbatches}",
            _peak(plan),
            size(plan.chip.memory),
            _ratio(plan.ratio),
            _exchanged(plan),
            _step(plan),
            "yes" if plan.fits else "no",
        ]
        for plan in plans
    ]
    return block(title, [("", table(header, lines))])


def advice(config: T5Config, *, microbatches: int | None, rows: int) -> list[str]:
    """Returns what to change to make a program fit, in the order of what costs least.

    Args:
        config: of the model.
        microbatches: of a training; None for programs without a gradient.
        rows: of a batch on each device.
    """
    found = []
    if microbatches is not None and rows > 1:
        found.append(f"MICROBATCHES={2 * microbatches} or more (now {microbatches}): same result")
    if microbatches is None and rows > 1:
        found.append("BATCH_SIZE smaller: same answers")
    if microbatches is not None and config.remat == "none":
        found.append("REMAT='projections', then 'full': recomputes part of the forward pass")
    elif microbatches is not None and config.remat != "full":
        found.append(f"REMAT='full' (now {config.remat!r}): about 40 % more to compute")
    if config.param_dtype == "float32":
        found.append("PARAM_DTYPE='bfloat16': half of the base")
    if config.quantization != "int4":
        stored = "'int8', then 'int4'" if config.quantization is None else "'int4'"
        found.append(f"QUANTIZATION={stored}: the base rounded to fewer bits")
    found.append("NUM_PARTITIONS=2, 4, ...: that many devices hold one copy of the model")
    return found


def _rows(plans: Sequence[Plan]) -> list[list[str]]:
    def row(name: str, cell) -> list[str]:
        return [name, *(cell(plan) for plan in plans)]

    rows = [
        row("batch", lambda plan: f"{plan.rows:,} x {plan.inputs}, {plan.targets}"),
        row("parts of it", lambda plan: f"{plan.microbatches}"),
        row("arguments", lambda plan: size(plan.memory.argument if plan.memory else plan.argument)),
        row("temporaries", lambda plan: size(plan.memory.temporary) if plan.memory else "?"),
        row("results", lambda plan: size(plan.memory.output) if plan.memory else "?"),
        row("peak", _peak),
        row("of", lambda plan: size(plan.chip.memory)),
        row("FLOPs", lambda plan: _flops(plan.counts.flops if plan.counts else None)),
        row("the minimum", lambda plan: _flops(plan.minimum)),
        row("times that", lambda plan: _ratio(plan.ratio)),
    ]
    if any(plan.recomputed for plan in plans):
        rows.append(row("times the policy's", lambda plan: _ratio(plan.policy_ratio)))
    rows.append(row("memory moved", _moved))
    kinds = dict.fromkeys(
        (one["kind"], one["dtype"]) for plan in plans for one in collectives(plan.counts)
    )
    for kind, dtype in kinds:
        rows.append(row(f"{kind} {dtype}", lambda plan, key=(kind, dtype): _collective(plan, key)))
    if not kinds:
        rows.append(row("collectives", lambda plan: "none" if plan.counts else "?"))
    rows.append(row("compiled in", lambda plan: f"{plan.seconds:.0f} s"))
    for name, words in BOUNDS.items():
        if any(plan.seconds_by().get(name) for plan in plans):
            rows.append(row(words, lambda plan, name=name: _seconds(plan.seconds_by().get(name))))
    return rows


def _verdict(plan: Plan) -> str:
    if plan.memory is None:
        return f"does not fit: {plan.refusal}"
    room = plan.chip.memory - plan.peak
    if room < 0:
        return f"does not fit: {size(-room)} too much."
    times = plan.seconds_by()
    if not times:
        return f"fits, {size(room)} to spare."
    slowest = max(times, key=lambda name: times[name])
    return (
        f"fits, {size(room)} to spare; at least {_seconds(times[slowest])}, which "
        f"{BOUNDS[slowest]} take{'s' if slowest == 'memory' else ''}."
    )


def _chip(plan: Plan) -> str:
    chip = plan.chip
    peak = f", {chip.bf16 / 1e12:,.0f} TFLOP/s in bfloat16" if chip.bf16 else ""
    speed = f", {chip.bandwidth / 1e9:,.0f} GB/s" if chip.bandwidth else ""
    guess = (
        ". An estimate: compiled for CPUs, and a GPU's compiler has other temporaries"
        if plan.is_estimate
        else ""
    )
    return f"{many(plan.devices, 'device')}: {chip.name}, {size(chip.memory)}{peak}{speed}{guess}"


def _axes(plan: Plan) -> str:
    """Returns the sizes of the axes: `8 x 2` are data and model."""
    words = plan.mesh.removeprefix("mesh ").partition(" over ")[0].split()
    return " x ".join(word for word in words if word.isdigit())


def _peak(plan: Plan) -> str:
    return size(plan.peak) if plan.memory else f"{size(plan.peak)}+"


def _ratio(ratio: float | None) -> str:
    return "?" if ratio is None else f"{ratio:.3f}"


def _flops(flops: float | None) -> str:
    if flops is None:
        return "?"
    for unit, power in (("P", 15), ("T", 12), ("G", 9)):
        if flops >= 10**power:
            return f"{flops / 10**power:,.3f} {unit}"
    return f"{flops / 1e6:,.3f} M"


def _moved(plan: Plan) -> str:
    return size(round(plan.counts.bytes)) if plan.counts else "?"


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def _step(plan: Plan) -> str:
    times = plan.seconds_by()
    return _seconds(max(times.values())) if times else "-"


def _collective(plan: Plan, key: tuple[str, str]) -> str:
    count, exchanged = plan.counts.collectives.get(key, (0, 0)) if plan.counts else (0, 0)
    return f"{count:,} of {size(exchanged)}" if count else "-"


def _exchanged(plan: Plan) -> str:
    found = collectives(plan.counts)
    return size(sum(one["bytes"] for one in found)) if found else "-"
