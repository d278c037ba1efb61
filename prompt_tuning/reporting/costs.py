"""What a run took and what it made: time, speed, tokens, bytes; and where it was made."""

import math
from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes

from prompt_tuning.checkpoints import prompt_file
from prompt_tuning.reporting.blocks import Block, Fact, Figures, Section, number, table
from prompt_tuning.reporting.curves import Line, curves
from prompt_tuning.reporting.measured import best_step, is_falling, names_of, values_of, watched
from prompt_tuning.reporting.plots import Colours, Plot, drawn
from prompt_tuning.reporting.run_files import ENVIRONMENT, TASKS, RunFiles
from prompt_tuning.training.clock import duration

_SPEED = "timing/steps_per_second"


def progress_of(run: RunFiles) -> dict[str, Any]:
    """Returns what was counted of a run: by its summary, else by its newest checkpoint."""
    record = {} if run.record is None else run.record.details.get("progress") or {}
    if run.summary.get("timing") and not _is_older(run):
        counted = {name: run.summary.get(name) for name in ("examples", "target_tokens")}
        timing = run.summary["timing"]
        return {**counted, "seconds": timing["seconds"], "processes": timing["processes"]}
    return dict(record)


def status_of(run: RunFiles) -> str:
    """Says how a run stands, in a few words."""
    if run.summary and not _is_older(run):
        return str(run.summary.get("status", "finished"))
    return "not finished (at work, or stopped before its end)"


def steps_of(run: RunFiles) -> tuple[int | None, int | None]:
    """Returns the first and the newest step that are known."""
    known = [*run.train, *run.prompts, *(step for log in run.logs for step in log.metrics)]
    if run.record is not None:
        known.append(run.record.step)
    first = run.summary.get("first_step", min(run.prompts, default=None))
    return first, max(known, default=None)


def costs_of(run: RunFiles) -> Section:
    """Returns time, speed and bytes."""
    name, title = "cost", "Cost"
    blocks: list[Block] = []
    progress = progress_of(run)
    seconds = {
        part: spent for part, spent in (progress.get("seconds") or {}).items() if spent >= 0.005
    }
    plots = []
    if seconds:
        plots.append(_spent(seconds))
    speeds = {step: one[_SPEED] for step, one in run.train.items() if _SPEED in one}
    speed = curves("speed", "Steps per second", [Line(label="", values=speeds, colour="second")])
    plots += [speed] if speed is not None else []
    if plots:
        blocks.append(Figures(plots=[drawn(one) for one in plots]))
    rows = [*_time(run, progress, seconds), *_bytes(run)]
    if rows:
        caption = "Counted over all processes of the run."
        blocks.append(table(["", ""], rows, caption=caption, numeric=False))
    if not blocks:
        return Section(name=name, title=title, reason="The folder holds no log of steps.")
    return Section(name=name, title=title, blocks=blocks)


def environment_of(run: RunFiles) -> Section:
    """Returns with what the run was made, as it wrote it down itself."""
    name, title = "environment", "Environment"
    if not run.environment:
        reason = (
            "Evaluations do not write down with what they were made."
            if run.is_evaluation
            else f"There is no {ENVIRONMENT}: the run is of an older version of this program."
        )
        return Section(name=name, title=title, reason=reason)
    rows = [[key, str(value)] for key, value in run.environment.items()]
    caption = "Of the process that started or continued the run last."
    return Section(
        name=name,
        title=title,
        blocks=[table(["", ""], rows, caption=caption, numeric=False)],
    )


def facts_of(run: RunFiles) -> list[Fact]:
    """Returns the figures at the head of the page."""
    found = []
    first, newest = steps_of(run)
    if (best := _best(run)) is not None:
        found.append(best)
    if newest is not None and first is not None and newest > first:
        found.append(Fact(label="steps", value=f"{newest - first:,}", about=f"to step {newest:,}"))
    elif newest is not None:
        found.append(Fact(label="step", value=f"{newest:,}"))
    seconds = sum((progress_of(run).get("seconds") or {}).values())
    if seconds:
        found.append(Fact(label="time", value=duration(seconds), about="all processes"))
    learned, base = _numbers(run)
    if learned and base:
        share = learned / (learned + base)
        found.append(
            Fact(label="trained", value=f"{learned:,} numbers", about=f"{share:.2%} of the model")
        )
    elif base:
        found.append(Fact(label="trained", value=f"{base:,} numbers", about="the whole model"))
    return found


def _best(run: RunFiles) -> Fact | None:
    """Returns the best value of what is watched, or of the first task's first metric."""
    name = watched(run)
    for log in run.logs:
        for metric in names_of(log) if log.folder == TASKS else ():
            full = f"{log.folder}/{log.task}/{metric}"
            values = values_of(log, metric)
            step = best_step(values, is_falling(run, full))
            if step is not None and name in (None, full):
                about = f"{log.task}, best, at step {step:,}"
                return Fact(label=metric, value=number(values[step]), about=about)
    return None


def _is_older(run: RunFiles) -> bool:
    """Whether the run went on after it wrote its summary."""
    _, newest = steps_of(run)
    return newest is not None and newest > run.summary.get("step", newest)


def _spent(seconds: Mapping[str, float]) -> Plot:
    parts = sorted(seconds.items(), key=lambda part: part[1])

    def draw(axes: Axes, colours: Colours) -> None:
        names, values = zip(*parts, strict=True)
        axes.barh(names, values, color=colours.accent, height=0.62)
        for i, value in enumerate(values):
            axes.annotate(
                duration(value),
                (value, i),
                xytext=(5, 0),
                textcoords="offset points",
                va="center",
                annotation_clip=False,
            )
        axes.set_xlim(0, max(values))
        axes.xaxis.set_visible(False)
        axes.spines["bottom"].set_visible(False)
        axes.tick_params(length=0)

    said = ", ".join(f"{name} {duration(value)}" for name, value in reversed(parts))
    return Plot(name="time", title="Where the time went", alt=f"Time spent: {said}.", draw=draw)


def _time(
    run: RunFiles, progress: Mapping[str, Any], seconds: Mapping[str, float]
) -> list[list[str]]:
    rows = []
    if seconds:
        rows.append(["time", duration(sum(seconds.values()))])
        processes = progress.get("processes")
        rows += [["processes, one after another", f"{processes:,}"]] if processes else []
    training = seconds.get("train", 0.0)
    for name, label in (("examples", "examples seen"), ("target_tokens", "target tokens seen")):
        count = progress.get(name)
        if count:
            each = f" ({number(count / training)} a second of training)" if training else ""
            rows.append([label, f"{count:,}{each}"])
    speeds = [one[_SPEED] for one in run.train.values() if _SPEED in one]
    finite = sorted(speed for speed in speeds if math.isfinite(speed))
    if finite:
        rows.append(["steps per second, median of the log", number(finite[len(finite) // 2])])
    return rows


def _bytes(run: RunFiles) -> list[list[str]]:
    learned, base = _numbers(run)
    rows = []
    if learned:
        rows.append(["trained", f"{learned:,} numbers, {_size(4 * learned)} in float32"])
    if base:
        word = "frozen base" if learned else "the model, all of it trained"
        rows.append([word, f"{base:,} numbers, {_size(4 * base)} in float32"])
    if learned and base:
        rows.append(["base to prompt", f"{base / learned:,.0f} to 1"])
    path = run.folder / prompt_file.FILE
    if path.exists():
        rows.append([f"the file {prompt_file.FILE}", _size(path.stat().length)])
    return rows


def _numbers(run: RunFiles) -> tuple[int, int]:
    """Returns how many numbers were trained beside the base's, and how many the base has."""
    return run.learned, sum(run.parameters.values()) - run.learned


def _size(count: int) -> str:
    """Returns a number of bytes as a person says it."""
    for unit, power in (("GB", 9), ("MB", 6), ("kB", 3)):
        if count >= 10**power:
            return f"{count / 10**power:,.1f} {unit}"
    return f"{count:,} bytes"
