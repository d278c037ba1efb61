"""The evaluations of a task that a training run makes."""

from collections.abc import Sequence
from typing import Any

from prompt_tuning.data.task_split import TaskSplit
from prompt_tuning.errors import ConfigError
from prompt_tuning.evaluation.evaluate import Decoded, Evaluation, TeacherForced
from prompt_tuning.losses import Loss
from prompt_tuning.vocabulary import Vocabulary


def task_evaluations(
    split: TaskSplit | Sequence[tuple[TaskSplit, float]] | Any | None,
    *,
    vocabulary: Vocabulary,
    batch_size: int,
    teacher_forced_steps: int | None = 20,
    loss: Loss | None = None,
) -> Sequence[Evaluation]:
    """Returns the teacher-forced evaluation of a split and the one of its decoded answers.

    Args:
        split: usually the validation split, not trimmed. Of a mixture (splits with rates, as
            `task_batches.task_split` gives them) every task is evaluated on its own. None
            evaluates nothing.
        vocabulary: the model's.
        batch_size: rows of a batch.
        teacher_forced_steps: batches of the teacher-forced evaluation (EVAL_STEPS); the decoded
            one always reads the whole split.
        loss: as in training.

    Raises:
        ConfigError: what was given is a stream, which has no end to evaluate.
    """
    if split is None:
        return ()
    splits = [split] if isinstance(split, TaskSplit) else _of_mixture(split)
    return tuple(
        evaluation
        for one in splits
        for evaluation in (
            TeacherForced(
                name=one.task,
                split=one,
                batch_size=batch_size,
                steps=teacher_forced_steps,
                loss=loss or Loss(),
            ),
            Decoded(name=one.task, split=one, vocabulary=vocabulary, batch_size=batch_size),
        )
    )


def _of_mixture(parts: Any) -> list[TaskSplit]:
    if not isinstance(parts, Sequence):
        raise ConfigError(
            f"There is no evaluation over a {type(parts).__name__}: its examples have no end. Set "
            "EVAL_SPLIT to a split of known size, or to None."
        )
    return [split for split, _ in parts]
