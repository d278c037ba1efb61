"""`prompt-tuning plan`: what a configuration takes on devices that are not here."""

import dataclasses
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import jax
from etils import epath

from prompt_tuning.checkpoints.containers import storage
from prompt_tuning.cli import config
from prompt_tuning.cli.configuration.bound_arguments import Missing
from prompt_tuning.cli.configuration.gin_reader import Configuration
from prompt_tuning.cli.launch import start_logging
from prompt_tuning.cli.plan_arguments import STDOUT, PlanArguments
from prompt_tuning.cli.planned_run import PlannedRun, planned_run
from prompt_tuning.cli.reports import planned
from prompt_tuning.errors import ConfigError, DeviceError
from prompt_tuning.planning import Plan, Topology, search, topologies

log = logging.getLogger("prompt_tuning")
Found = TypeVar("Found")


def run(arguments: PlanArguments) -> int:
    """Prints what the configuration takes; returns 0 whether it fits or not."""
    start_logging()
    for name in arguments.topology:
        topologies.check(name)
    configuration = config.parse(arguments.run, demanded=())
    _choose_platform(arguments.topology)
    found = _with_what_it_needs(configuration, planned_run)
    programs = _programs(arguments.what, found)
    quiet = arguments.json == STDOUT
    every: list[Plan] = []
    for name in arguments.topology:
        plans, text = _SEARCHES[arguments.search](found, programs, name)
        every += plans
        if not quiet:
            print(text, end="\n\n", flush=True)
    if len(arguments.topology) > 1 and arguments.search is None and not quiet:
        print(planned.of_several(every, "All of them"))
    if arguments.json is not None:
        whole = json.dumps([plan.as_dict() for plan in every], indent=1)
        if quiet:
            print(whole)
        else:
            storage.write_whole(epath.Path(arguments.json), f"{whole}\n".encode())
    return 0


def _as_configured(found: PlannedRun, programs: Sequence[str], name: str) -> tuple[list[Plan], str]:
    chosen = topologies.topology(name)
    plans = [_told(found, program, chosen) for program in programs]
    return plans, planned.of_topology(plans, f"Plan for {name}")


def _largest_batch(found: PlannedRun, programs: Sequence[str], name: str) -> tuple[list[Plan], str]:
    """Finds how many rows each copy of the model takes at a time."""
    chosen, program = topologies.topology(name), programs[0]
    copies = found.partitioning.placement(chosen.devices).rows

    def plan(rows: int) -> Plan:
        shape = dataclasses.replace(found.shapes[program], rows=rows * copies)
        field = {"train": "training", "eval": "evaluation", "decode": "answers"}[program]
        whole = dataclasses.replace(found, **{field: shape}, microbatches=1)
        return _told(whole, program, chosen)

    wanted = found.shapes[program].rows
    start = max(1, wanted // copies // found.microbatches)
    tried = search.largest(plan, start)
    fitting = [rows for rows, one in tried if one.fits]
    text = planned.of_several([one for _, one in tried], f"Batches that fit on {name} ({program})")
    if not fitting:
        return [one for _, one in tried], f"{text}\nNot even one row fits."
    rows = fitting[-1] * copies
    text += f"\nThe most at a time: {rows:,} examples."
    if program == "train":
        text += f" BATCH_SIZE={wanted} takes MICROBATCHES={_parts(wanted, rows)}."
    return [one for _, one in tried], text


def _parts(batch: int, most: int) -> int:
    """Returns the fewest parts of equal size of at most `most` examples."""
    return next(parts for parts in range(-(-batch // most), batch + 1) if batch % parts == 0)


def _smallest_slice(
    found: PlannedRun, programs: Sequence[str], name: str
) -> tuple[list[Plan], str]:
    """Finds the fewest chips, and the fewest of them that share a copy of the model."""
    plans = search.first(_on_slices(found, programs[0], name))
    family = name.partition(":")[0]
    text = planned.of_several(plans, f"Slices of {family} ({programs[0]})")
    if plans and plans[-1].fits:
        last = plans[-1]
        partitions = last.mesh.partition("model ")[2].split()[0]
        text += f"\nThe smallest that fits: {last.topology} with NUM_PARTITIONS={partitions}."
    else:
        text += "\nNone of them fits."
    return plans, text


def _on_slices(found: PlannedRun, program: str, name: str) -> Iterator[Plan]:
    for one in topologies.family_of(name):
        chosen = topologies.topology(one)
        partitions = 1
        while partitions <= len(chosen.devices):
            divided = dataclasses.replace(
                found.partitioning, num_partitions=partitions, model_parallel_submesh=None
            )
            partitions *= 2
            try:
                yield _told(dataclasses.replace(found, partitioning=divided), program, chosen)
            except DeviceError:  # the model has sizes that this does not divide
                continue


_SEARCHES: dict[str | None, Callable[[PlannedRun, Sequence[str], str], tuple[list[Plan], str]]] = {
    None: _as_configured,
    "batch": _largest_batch,
    "slice": _smallest_slice,
}


def _told(found: PlannedRun, program: str, chosen: Topology) -> Plan:
    log.info("Compiling %s for %s ...", program, chosen.name)
    return found.plan(program, chosen)


def _programs(asked: Sequence[str] | None, found: PlannedRun) -> Sequence[str]:
    known = list(found.shapes)
    for program in asked or ():
        if program not in known:
            raise ConfigError(
                f"--what={','.join(asked or ())}: this configuration has no {program}; it has "
                f"{', '.join(known)}. EVAL_SPLIT=None evaluates nothing, and ChooseLabel scores "
                "labels instead of decoding."
            )
    return asked or known


def _with_what_it_needs(configuration: Configuration, ask: Callable[[], Found]) -> Found:
    """Demands those settings that decide about shapes, and no others."""
    try:
        return ask()
    except Missing as missing:
        config.demand(configuration, missing.names)
        raise


def _choose_platform(names: Sequence[str]) -> None:
    """Uses CPUs alone unless a GPU may be asked, and as many as the largest topology has."""
    families = [name.partition(":")[0] for name in names]
    try:
        if all(family in topologies.TPUS or family == "cpu" for family in families):
            jax.config.update("jax_platforms", "cpu")
        others = zip(families, names, strict=True)
        counts = [topologies.devices_in(name) for one, name in others if one not in topologies.TPUS]
        if counts and jax.config.jax_num_cpu_devices < max(counts):
            jax.config.update("jax_num_cpu_devices", max(counts))
    except RuntimeError:  # JAX runs already, with the devices that it has
        pass
