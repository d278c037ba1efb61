"""What a task must be for a T5 to learn it."""

from collections.abc import Mapping
from typing import Any

import seqio

from prompt_tuning.data.seqio_tasks.registry import is_split
from prompt_tuning.errors import ConfigError, DataError, nearest
from prompt_tuning.vocabulary import ByteVocabulary, Vocabulary


def check_task(
    task: seqio.Task, split: str, lengths: Mapping[str, int] | None, vocabulary: Vocabulary
) -> None:
    """Checks all that can be told before an example is made.

    Raises:
        DataError: the task has no such split, or no inputs or targets.
        ConfigError: another vocabulary than the model's, or a length of an unknown feature.
    """
    check_split(task, split)
    for feature in ("inputs", "targets"):
        check_vocabulary(task, feature, vocabulary)
    check_lengths(task, lengths)


def check_split(task: seqio.Task, split: str) -> None:
    """Raises DataError if a task has no such split."""
    if not is_split(task, split):
        raise DataError(
            f"The task {task.name!r} has no split {split!r}.{nearest(split, task.splits)} "
            f"It has: {', '.join(task.splits)}. EVAL_SPLIT names the one to evaluate on; None "
            "evaluates nothing."
        )


def check_lengths(task: seqio.Task, lengths: Mapping[str, int] | None) -> None:
    """Raises ConfigError if there is a length of a feature that the task does not have."""
    for feature in lengths or {}:
        if feature not in task.output_features:
            raise ConfigError(
                f"TASK_FEATURE_LENGTHS has a length for {feature!r}, but the features of the task "
                f"{task.name!r} are: {', '.join(task.output_features)}."
                f"{nearest(feature, task.output_features)}"
            )


def check_features(task: seqio.Task, spec: Mapping[str, Any]) -> None:
    """Raises DataError unless the examples have rows of ids as inputs and as targets."""
    for feature in ("inputs", "targets"):
        if feature not in spec:
            raise DataError(
                f"The examples of the task {task.name!r} have no {feature!r}, but a T5 reads "
                f"inputs and writes targets. They have: {', '.join(spec)}."
            )
        if spec[feature].shape.rank != 1:
            raise DataError(
                f"The {feature!r} of the task {task.name!r} have shape {spec[feature].shape}, "
                "but one row of token ids is needed. Is the task tokenised?"
            )


def check_vocabulary(task: seqio.Task, feature: str, vocabulary: Vocabulary) -> None:
    """Compares what the vocabularies contain: the same one may lie in two files."""
    if feature not in task.output_features:
        raise DataError(
            f"The task {task.name!r} has no output feature {feature!r}. "
            f"It has: {', '.join(task.output_features)}."
        )
    theirs = _pieces(task, feature)
    if len(theirs) != vocabulary.size:
        raise ConfigError(
            f"The {feature!r} of the task {task.name!r} use a vocabulary of {len(theirs)} ids, but "
            f"the model's has {vocabulary.size}. Set `VOCABULARY` to the vocabulary that the "
            "checkpoint was trained with and register the task with the same one."
        )
    for index, piece in enumerate(theirs):
        if piece != vocabulary.piece(index):
            raise ConfigError(
                f"The {feature!r} of the task {task.name!r} use another vocabulary than the model: "
                f"id {index} is {piece!r} in the task's and {vocabulary.piece(index)!r} in the "
                "model's. Set `VOCABULARY` to the vocabulary that the checkpoint was trained with "
                "and register the task with the same one."
            )


def _pieces(task: seqio.Task, feature: str) -> list[str]:
    vocabulary = task.output_features[feature].vocabulary
    if isinstance(vocabulary, seqio.SentencePieceVocabulary):
        return [vocabulary.tokenizer.IdToPiece(i) for i in range(vocabulary.vocab_size)]
    if isinstance(vocabulary, seqio.ByteVocabulary):
        return [ByteVocabulary(vocabulary.extra_ids).piece(i) for i in range(vocabulary.vocab_size)]
    raise ConfigError(
        f"The {feature!r} of the task {task.name!r} use a {type(vocabulary).__name__}, but a T5 "
        "reads seqio.SentencePieceVocabulary or seqio.ByteVocabulary."
    )
