"""The evaluations of a task, as its metrics ask for them."""

from collections.abc import Sequence
from typing import Any

from prompt_tuning.data.task_split import TaskSplit
from prompt_tuning.errors import ConfigError
from prompt_tuning.evaluation.answering import Answering
from prompt_tuning.evaluation.evaluate import Evaluation, TeacherForced
from prompt_tuning.evaluation.task_metrics import TaskMetrics
from prompt_tuning.losses import Loss


def task_evaluations(
    split: TaskSplit | Sequence[tuple[TaskSplit, float]] | Any | None,
    *,
    answering: Answering,
    batch_size: int,
    teacher_forced: bool = True,
    teacher_forced_steps: int | None = 20,
    loss: Loss | None = None,
    write_rows: int | None = None,
) -> Sequence[Evaluation]:
    """Returns the teacher-forced evaluation of a split and those by the task's own metrics.

    Args:
        split: usually the validation split, not trimmed. Of a mixture (splits with rates, as
            `task_batches.task_split` gives them) every task is evaluated on its own. None
            evaluates nothing.
        answering: how the model answers.
        batch_size: rows of a batch.
        teacher_forced: whether to measure the loss as well.
        teacher_forced_steps: batches of the teacher-forced evaluation (EVAL_STEPS); None, and the
            other evaluations always, read the whole split.
        loss: as in training.
        write_rows: how many examples to write with their answers; None for all
            (JSON_WRITE_N_RESULTS).

    Raises:
        ConfigError: what was given is a stream, which has no end to evaluate, or an empty batch.
    """
    if batch_size < 1:
        raise ConfigError(f"BATCH_SIZE is {batch_size}, expected 1 or more.")
    evaluations: list[Evaluation] = []
    for one in splits_of(split):
        if teacher_forced:
            evaluations.append(
                TeacherForced(
                    name=one.task,
                    split=one,
                    batch_size=batch_size,
                    steps=teacher_forced_steps,
                    loss=loss or Loss(),
                )
            )
        if one.judge.modes:
            evaluations.append(
                TaskMetrics(
                    name=one.task,
                    split=one,
                    answering=answering,
                    batch_size=batch_size,
                    write_rows=write_rows,
                )
            )
    return tuple(evaluations)


def splits_of(split: TaskSplit | Sequence[tuple[TaskSplit, float]] | Any | None) -> list[TaskSplit]:
    """Returns the one split of a task, those of a mixture's tasks, or none.

    Raises:
        ConfigError: a stream.
    """
    if split is None:
        return []
    if isinstance(split, TaskSplit):
        return [split]
    if not isinstance(split, Sequence):
        raise ConfigError(
            f"There is no evaluation over a {type(split).__name__}: its examples have no end. Set "
            "EVAL_SPLIT to a split of known size, or to None."
        )
    return [one for one, _ in split]
