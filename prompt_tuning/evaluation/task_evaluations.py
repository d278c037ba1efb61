"""The evaluations of a registered task that a training run makes."""

from collections.abc import Sequence

from prompt_tuning.data.seqio_tasks import TaskSplit
from prompt_tuning.evaluation.evaluate import Decoded, Evaluation, TeacherForced
from prompt_tuning.losses import Loss
from prompt_tuning.vocabulary import Vocabulary


def task_evaluations(
    split: TaskSplit,
    *,
    vocabulary: Vocabulary,
    batch_size: int,
    teacher_forced_steps: int | None = 20,
    loss: Loss | None = None,
) -> Sequence[Evaluation]:
    """Returns the teacher-forced evaluation of a split and the one of its decoded answers.

    Args:
        split: usually the validation split, not trimmed.
        vocabulary: the model's.
        batch_size: rows of a batch.
        teacher_forced_steps: batches of the teacher-forced evaluation (EVAL_STEPS); the decoded
            one always reads the whole split.
        loss: as in training.
    """
    name = split.task.name
    return (
        TeacherForced(
            name=name,
            examples=split.examples,
            batch_size=batch_size,
            steps=teacher_forced_steps,
            loss=loss or Loss(),
        ),
        Decoded(name=name, split=split, vocabulary=vocabulary, batch_size=batch_size),
    )
