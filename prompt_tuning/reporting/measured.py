"""What was measured of a run while it trained: curves, and a table of every evaluation."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prompt_tuning.evaluation.confusion import Confusion
from prompt_tuning.reporting.blocks import Cell, Figures, Section, Text, number, table
from prompt_tuning.reporting.curves import Line, curves
from prompt_tuning.reporting.plots import Plot, drawn
from prompt_tuning.reporting.run_files import LOG, LOSSES, TASKS, Log, RunFiles

# Of the many numbers of a log, those that say how well a model predicts.
LOSS, ACCURACY = "loss_per_nonpadding_target_token", "accuracy"
_SHOWN = {LOSS: "loss per target token", ACCURACY: "token accuracy"}
# Rows of a table; of more evaluations every so many is shown.
ROWS = 100


def curves_of(run: RunFiles, confusions: Mapping[str, Confusion]) -> Section:
    """Returns the learning curves of a run.

    Args:
        run: its files.
        confusions: by task, which say how large the largest class is.
    """
    plots = [*_of_training(run), *_of_tasks(run, confusions)]
    section = Section(name="curves", title="Learning curves")
    if not plots:
        return _without(section, f"There is no {LOG} and nothing was evaluated.")
    return _with(section, Figures(plots=[drawn(one) for one in plots]))


def table_of(run: RunFiles) -> Section:
    """Returns what every evaluation found, the best of each column marked."""
    section = Section(name="metrics", title="Metrics")
    tasks = list(dict.fromkeys(log.task for log in run.logs))
    blocks = []
    for task in tasks:
        columns = dict(_columns(run, task))
        steps = sorted({step for values, _ in columns.values() for step in values})
        best = {name: best_step(values, falling) for name, (values, falling) in columns.items()}
        shown = _thinned(steps, {step for step in best.values() if step is not None})
        left_out = (
            "" if len(shown) == len(steps) else f", of which {len(shown)} of {len(steps)} are shown"
        )
        rows = [
            [
                f"{step:,}",
                *(
                    Cell(text=number(values.get(step, math.nan)), best=best[name] == step)
                    for name, (values, _) in columns.items()
                ),
            ]
            for step in shown
        ]
        if rows:
            found = ", ".join(
                f"{name} {number(columns[name][0][step])} at step {step:,}"
                for name, step in best.items()
                if step is not None
            )
            caption = f"{task}: every evaluated step{left_out}. Best: {found}."
            blocks.append(table(["step", *columns], rows, caption=caption))
        for log in run.logs:
            if log.task == task and log.alarms:
                step = max(log.alarms)
                text = f"{task}, step {step:,}: {log.alarms[step]}"
                blocks.append(Text(text=text, warning=True))
    if not blocks:
        return _without(section, "Nothing was evaluated: the run had no EVAL_SPLIT, or was "
                        "stopped before its first evaluation.")  # fmt: skip
    return _with(section, *blocks)


def is_falling(run: RunFiles, name: str) -> bool:
    """Whether the lowest value of a metric is its best, as the run says, or else its name."""
    known: Mapping[str, Any] = run.summary.get("metrics", {}).get(name, {})
    return known["best_is"] == "lowest" if "best_is" in known else "loss" in name


def best_step(values: Mapping[int, float], falling: bool) -> int | None:
    """Returns the first step with the best value."""
    finite = {step: value for step, value in sorted(values.items()) if math.isfinite(value)}
    if not finite:
        return None
    return (min if falling else max)(finite, key=lambda step: finite[step])


def watched(run: RunFiles) -> str | None:
    """Returns the full name of the metric that decides which step is the best, if one does."""
    metrics: Mapping[str, Any] = run.summary.get("metrics", {})
    return next((name for name, one in metrics.items() if one.get("watched")), None)


def values_of(log: Log, name: str) -> dict[int, float]:
    """Returns one metric of an evaluation by step."""
    return {step: values[name] for step, values in log.metrics.items() if name in values}


def names_of(log: Log) -> list[str]:
    """Returns the names of all metrics of an evaluation, in their order."""
    return list(dict.fromkeys(name for values in log.metrics.values() for name in values))


def _columns(run: RunFiles, task: str) -> Iterator[tuple[str, tuple[dict[int, float], bool]]]:
    """Yields the columns of a task's table: a heading, with values and whether they should fall."""
    for log in run.logs:
        for name in names_of(log) if log.task == task else ():
            full = f"{log.folder}/{task}/{name}"
            if log.folder == TASKS or name in _SHOWN:
                title = name if log.folder == TASKS else _SHOWN[name]
                yield title, (values_of(log, name), is_falling(run, full))


def _of_training(run: RunFiles) -> Iterator[Plot]:
    trained = {
        name: {step: one[name] for step, one in run.train.items() if name in one}
        for name in (*_SHOWN, "learning_rate")
    }
    losses = [log for log in run.logs if log.folder == LOSSES]
    for log in losses or [None]:
        task = "" if log is None or len(losses) == 1 else f"{log.task}: "
        for name, title in _SHOWN.items():
            lines = [Line(label="train", values=trained[name], colour="second")]
            lines += [] if log is None else [Line(label="eval", values=values_of(log, name))]
            plot = curves(
                f"{task}{name.partition('_')[0]}",
                f"{task}{title if task else title.capitalize()}",
                lines,
                whole=name == ACCURACY,
            )
            if plot is not None:
                yield plot
    if len({f"{rate:.5g}" for rate in trained["learning_rate"].values()}) > 1:
        line = Line(label="", values=trained["learning_rate"], colour="second")
        if (plot := curves("learning_rate", "Learning rate", [line])) is not None:
            yield plot


def _of_tasks(run: RunFiles, confusions: Mapping[str, Confusion]) -> Iterator[Plot]:
    for log in run.logs:
        for name in names_of(log) if log.folder == TASKS else ():
            values = values_of(log, name)
            best = best_step(values, is_falling(run, f"{log.folder}/{log.task}/{name}"))
            level = _largest_class(confusions.get(log.task), values) if name == ACCURACY else None
            plot = curves(
                f"{log.task}-{name}",
                f"{log.task}: {name}",
                [Line(label="", values=values)],
                best=None if best is None else (best, values[best]),
                level=level,
                whole=name == ACCURACY,
            )
            if plot is not None:
                yield plot


def _largest_class(
    confusion: Confusion | None, values: Mapping[int, float]
) -> tuple[str, float] | None:
    """Returns what it is worth to answer always with the class that is right most often."""
    if confusion is None or not confusion.counts.any():
        return None
    share = float(confusion.counts.sum(axis=1).max() / confusion.counts.sum())
    in_percent = any(value > 1.0 for value in values.values())
    return "largest class", 100.0 * share if in_percent else share


def _thinned(steps: Sequence[int], kept: set[int]) -> list[int]:
    """Returns at most about ROWS of the steps, those that are kept and the last among them."""
    every = -(-len(steps) // ROWS)
    return [
        step for i, step in enumerate(reversed(steps)) if i % max(every, 1) == 0 or step in kept
    ][::-1]


def _with(section: Section, *blocks: Any) -> Section:
    return Section(name=section.name, title=section.title, blocks=blocks)


def _without(section: Section, reason: str) -> Section:
    return Section(name=section.name, title=section.title, reason=reason)
