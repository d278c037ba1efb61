"""What a model answered at one step: which classes it takes for which, and some examples."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from prompt_tuning.errors import CheckpointError
from prompt_tuning.evaluation.confusion import OTHER, Confusion, confusion
from prompt_tuning.reporting.blocks import (
    Block,
    Example,
    Examples,
    Figures,
    Section,
    Text,
    number,
    table,
)
from prompt_tuning.reporting.measured import best_step, is_falling, values_of, watched
from prompt_tuning.reporting.plots import Colours, Plot, drawn
from prompt_tuning.reporting.run_files import TASKS, Log, RunFiles

# Classes of a matrix that can be read; texts that are taken for classes where the task names none.
CLASSES, TEXTS = 24, 12
# Examples of each kind, and characters of one.
SHOWN, LONGEST = 6, 700
_TEXT = "_pretokenized"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answered:
    """The answers of one task at the step that is looked at."""

    task: str
    step: int
    rows: Sequence[Mapping[str, Any]]
    confusion: Confusion | None


def answered(run: RunFiles) -> list[Answered]:
    """Returns the answers of every task: those of the best step where the run knows it."""
    found = []
    for log in run.logs:
        steps = run.steps_with_rows(log) if log.folder == TASKS else []
        if steps:
            step = _looked_at(run, log, steps)
            rows = run.rows(log, step)
            known = run.confusion(log, step)
            matrix = _read(known, f"{log.task}-{step:06}") if known else _counted(rows)
            found.append(Answered(task=log.task, step=step, rows=rows, confusion=matrix))
    return found


def confusions_of(all_answers: Sequence[Answered]) -> Section:
    """Returns the confusion matrix of every task whose answers are classes."""
    name, title = "confusion", "Confusion"
    if not all_answers:
        return Section(name=name, title=title, reason=_NO_ANSWERS)
    blocks: list[Block] = []
    for one in all_answers:
        matrix = one.confusion
        if matrix is not None and len(matrix.labels) <= CLASSES:
            where = f"{one.task}, step {one.step:,}"
            blocks += [Figures(plots=[drawn(_matrix(one, matrix))]), _by_class(matrix, where)]
    if not blocks:
        reason = f"The answers are no classes, or of more than {CLASSES}."
        return Section(name=name, title=title, reason=reason)
    return Section(name=name, title=title, blocks=blocks)


def examples_of(all_answers: Sequence[Answered]) -> Section:
    """Returns examples that were answered rightly and wrongly, the surest of each if scores say."""
    name, title = "examples", "Examples"
    if not any(one.rows for one in all_answers):
        return Section(name=name, title=title, reason=_NO_ANSWERS)
    blocks: list[Block] = []
    for one in all_answers:
        found = [example for row in one.rows if (example := _example(row)) is not None]
        scored = all(example.score is not None for example, _ in found)
        # A log-probability: the largest is the surest.
        ordered = sorted(found, key=lambda pair: -pair[1]) if scored else found
        for right, word in ((False, "other"), (True, "the same")):
            chosen = [example for example, _ in ordered if example.right == right]
            if chosen:
                which = "the surest" if scored else "the first"
                count = min(SHOWN, len(chosen))
                said = (
                    f"{one.task}, step {one.step:,}: {len(chosen):,} of {len(found):,} answers are "
                    f"{word} {'than' if not right else 'as'} the right one; {which} {count}"
                )
                blocks.append(Examples(title=said, examples=chosen[:count]))
    if not blocks:
        return Section(name=name, title=title, reason="The answers are no texts.")
    note = (
        "Answers are compared with the right text letter by letter; a task's own metric may take "
        "others for right as well."
    )
    return Section(name=name, title=title, blocks=[Text(text=note), *blocks])


_NO_ANSWERS = (
    "There are no answers: no task was evaluated by its own metrics, or only with "
    "JSON_WRITE_N_RESULTS = 0."
)


def _looked_at(run: RunFiles, log: Log, steps: Sequence[int]) -> int:
    """Returns the best step of what the run watches, of other runs the newest."""
    name = watched(run)
    folder, _, rest = (name or "").partition("/")
    if name is None or folder != TASKS or rest.rpartition("/")[0] != log.task:
        return max(steps)
    best = best_step(values_of(log, rest.rpartition("/")[2]), is_falling(run, name))
    return best if best is not None and best in steps else max(steps)


def _read(known: Mapping[str, Any], where: str) -> Confusion:
    try:
        labels, counts = tuple(known["targets"]), np.asarray(known["counts"], np.int64)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"The counts of classes {where}-confusion.json are not what was written ({error!r})."
        ) from error
    if counts.shape != (len(labels), len(labels) + 1):
        raise CheckpointError(
            f"The counts of classes {where}-confusion.json have shape {counts.shape} for "
            f"{len(labels)} classes: they are not what was written."
        )
    return Confusion(labels, counts)


def _counted(rows: Sequence[Mapping[str, Any]]) -> Confusion | None:
    """Returns the matrix of a task that names no classes, if few texts are ever right."""
    pairs = [(row.get("target"), row.get("prediction")) for row in rows]
    texts = [(a, b) for a, b in pairs if isinstance(a, str) and isinstance(b, str)]
    labels = sorted({target for target, _ in texts})
    # Of a few examples nearly every text is another, and no class.
    if not 2 <= len(labels) <= min(TEXTS, len(rows) // 4) or len(texts) < len(rows):
        return None
    return confusion(labels, *zip(*texts, strict=True))


def _matrix(one: Answered, matrix: Confusion) -> Plot:
    others = bool(matrix.counts[:, -1].any())
    columns = [*matrix.labels, *([OTHER] if others else [])]
    counts = matrix.counts[:, : len(columns)]
    shares = counts / np.maximum(matrix.counts.sum(axis=1, keepdims=True), 1)
    side = max(2.2, 0.5 * len(matrix.labels) + 1.2)

    def draw(axes: Axes, colours: Colours) -> None:
        for i, row in enumerate(shares):
            for j, share in enumerate(row):
                axes.fill_between(
                    [j - 0.48, j + 0.48], i - 0.48, i + 0.48, color=colours.accent,
                    alpha=float(round(share, 3)), linewidth=0,
                )  # fmt: skip
                colour = colours.paper if share > 0.68 else colours.ink
                axes.text(j, i, f"{counts[i, j]:,}", ha="center", va="center", color=colour)
        axes.set_xticks(range(len(columns)), [_cut(name) for name in columns])
        axes.set_yticks(range(len(matrix.labels)), [_cut(name) for name in matrix.labels])
        if max(map(len, columns)) * len(columns) > 40:
            axes.tick_params(axis="x", labelrotation=45)
        axes.set_xlim(-0.5, len(columns) - 0.5)
        axes.set_ylim(len(matrix.labels) - 0.5, -0.5)
        axes.set_xlabel("answered")
        axes.set_ylabel("right")
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.tick_params(length=0)

    right = int(np.trace(matrix.counts[:, :-1]))
    total = int(matrix.counts.sum())
    return Plot(
        name=f"confusion-{one.task}",
        title=f"{one.task}, step {one.step:,}",
        alt=f"Confusion of {one.task} at step {one.step:,}: {right:,} of {total:,} answers are "
        "the right class. The table beside it has all counts.",
        draw=draw,
        note="Shaded by the share of a row: of the examples of a class, how many were answered so.",
        inches=(max(4.4, 0.5 * len(columns) + 1.6), side),
    )


def _by_class(matrix: Confusion, where: str) -> Block:
    answered_so = matrix.counts[:, :-1].sum(axis=0)
    rows = []
    for i, label in enumerate(matrix.labels):
        right, wanted, said = matrix.counts[i, i], matrix.counts[i].sum(), answered_so[i]
        precision, recall = _ratio(right, said), _ratio(right, wanted)
        both = precision + recall
        score = 2 * precision * recall / both if both else 0.0 if both == 0.0 else math.nan
        rows.append([label, f"{wanted:,}", f"{said:,}", *map(number, (precision, recall, score))])
    return table(
        ["class", "examples", "answered", "precision", "recall", "F1"],
        rows,
        caption=f"{where}, by class.",
    )


def _ratio(part: Any, whole: Any) -> float:
    return float(part) / float(whole) if whole else math.nan


def _example(row: Mapping[str, Any]) -> tuple[Example, float] | None:
    """Returns an example with its score as a number; None if its answer is no text."""
    said, fields = row.get("prediction"), row.get("input")
    if not isinstance(said, str) or not isinstance(fields, Mapping):
        return None
    wanted = _wanted(row, fields)
    score = row.get("aux_scores", row.get("score"))
    is_number = isinstance(score, int | float)
    asked = fields.get(f"inputs{_TEXT}", fields.get("inputs"))
    if not isinstance(asked, str):
        asked = _told(fields)
    example = Example(
        name=str(row.get("id", "")),
        asked=_cut(asked, LONGEST),
        wanted=_cut(" | ".join(wanted), LONGEST),
        answered=_cut(said, LONGEST),
        right=said.strip() in wanted,
        score=f"score {score:.3f}" if is_number else None,
    )
    return example, float(score) if is_number else 0.0


def _told(fields: Mapping[str, Any]) -> str:
    """Returns the texts of an example that has none called inputs."""
    texts = {
        name: one
        for name, one in fields.items()
        if isinstance(one, str) and not name.startswith("targets")
    }
    named = [f"{name}: {one}" for name, one in texts.items()]
    return "\n".join(texts.values() if len(texts) == 1 else named)


def _wanted(row: Mapping[str, Any], fields: Mapping[str, Any]) -> list[str]:
    """Returns the texts that are right, as far as an example says."""
    target = row.get("target")
    several = target if isinstance(target, list) else [target]
    texts = [one.strip() for one in several if isinstance(one, str)]
    written = fields.get(f"targets{_TEXT}")
    if isinstance(written, str):
        texts.insert(0, written.strip())
    return list(dict.fromkeys(texts)) or [str(target)]


def _cut(text: str, longest: int = 18) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"
