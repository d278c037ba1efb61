"""A seqio task's split as plain arrays: the only module that imports seqio and TensorFlow.

Everything the task says about its text happens here, once: its preprocessors, its tokenisation, its
trimming and end tokens. What comes out is as long as the split, in its order, and needs TensorFlow
no more; only postprocessors and metrics still belong to the task.
"""

import dataclasses
import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from prompt_tuning.data.examples import Example
from prompt_tuning.errors import ConfigError, DataError, nearest
from prompt_tuning.vocabulary import ByteVocabulary, Vocabulary

# TensorFlow takes a whole GPU's memory on its first operation, and here it only handles text.
tf.config.set_visible_devices([], "GPU")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskSplit:
    """The tokenised examples of one split, and how the task judges answers to them.

    Attributes:
        task: the seqio task.
        split: the name of the split.
        examples: the ids, in the order of the split.
        columns: the other features of the records (untokenised text, labels, indices), each as
            long as `examples`.
    """

    task: seqio.Task
    split: str
    examples: Sequence[Example] = dataclasses.field(repr=False)
    columns: Mapping[str, Sequence[Any]] = dataclasses.field(repr=False)

    @property
    def longest(self) -> tuple[int, int]:
        """The lengths of the longest inputs and of the longest targets."""
        return (
            max(len(example.inputs) for example in self.examples),
            max(len(example.targets) for example in self.examples),
        )

    def record(self, index: int) -> dict[str, Any]:
        """Returns one example with all its features, as the task's functions expect it."""
        features = {name: column[index] for name, column in self.columns.items()}
        return features | self.examples[index]._asdict()

    def targets(self) -> list[Any]:
        """Returns the right answers, postprocessed by the task."""
        return [self._target(self.record(index)) for index in range(len(self.examples))]

    def predictions(self, texts: Sequence[str]) -> list[Any]:
        """Returns decoded answers, one for each example, postprocessed by the task."""
        if len(texts) != len(self.examples):
            raise DataError(
                f"There are {len(texts)} answers to the {len(self.examples)} examples of "
                f"{self.task.name!r}, split {self.split!r}. Give one for each, in order."
            )
        return [
            self.task.postprocess_fn(text, example=self.record(index), is_target=False)
            for index, text in enumerate(texts)
        ]

    def metrics(self, texts: Sequence[str]) -> dict[str, Any]:
        """Returns the task's metrics over decoded answers, one for each example.

        Scalars come as numbers, other seqio metric values as they are.
        """
        targets, predictions = self.targets(), self.predictions(texts)
        values = {}
        for metric in self.task.predict_metric_fns:
            values |= metric(targets=targets, predictions=predictions)
        return {name: getattr(value, "value", value) for name, value in values.items()}

    def _target(self, record: Mapping[str, Any]) -> Any:
        text = record.get("targets_pretokenized")
        if text is None:
            text = self.task.output_features["targets"].vocabulary.decode(record["targets"])
        if isinstance(text, bytes):
            text = text.decode("utf-8")
        return self.task.postprocess_fn(text, example=record, is_target=True)


def use_folders(*, tfds_data_dir: str | None = None, cache_dirs: Sequence[str] = ()) -> None:
    """Says where TFDS keeps its data sets, and where else seqio's cached tasks lie.

    For every task of this process, whatever folder it was registered with (t5x's `--tfds_data_dir`
    and `--seqio_additional_cache_dirs`).
    """
    if tfds_data_dir is not None:
        seqio.set_tfds_data_dir_override(tfds_data_dir)
    seqio.add_global_cache_dirs(cache_dirs)


def import_task_modules(modules: str | Sequence[str] | None) -> tuple[str, ...]:
    """Imports the modules that register tasks, and returns their names.

    Raises:
        ConfigError: there is no such module.
    """
    names = (modules,) if isinstance(modules, str) else tuple(modules or ())
    for name in names:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            # A module that exists, but lacks something itself, speaks for itself.
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise
            raise ConfigError(
                f"MIXTURE_OR_TASK_MODULE names {name!r}, but there is no module {error.name!r}. "
                "Install its package or put its folder on PYTHONPATH."
            ) from error
    return names


def examples_of(
    name: str,
    split: str,
    lengths: Mapping[str, int] | None,
    *,
    vocabulary: Vocabulary,
    modules: Sequence[str] = (),
    use_cached: bool = False,
    seed: int = 0,
    max_examples: int | None = None,
) -> TaskSplit:
    """Loads a finite split of a registered task.

    Args:
        name: the task.
        split: a split of the task.
        lengths: the longest inputs and targets, by feature name; longer ones are trimmed as the
            task says. `None` trims nothing.
        vocabulary: the model's, which the task must share.
        modules: the modules imported for their tasks, to be named if the task is missing.
        use_cached: reads seqio's cache of the task instead of its source.
        seed: for preprocessors that draw at random; they draw once, not once an epoch.
        max_examples: reads only the first so many examples.

    Raises:
        DataError: no such task or split, or examples that a T5 cannot take.
        ConfigError: another vocabulary than the model's, or a length of an unknown feature.
    """
    task = _find_task(name, modules)
    _check_split(task, split)
    for feature in ("inputs", "targets"):
        _check_vocabulary(task, feature, vocabulary)
    _check_lengths(task, lengths)
    if use_cached and task.supports_caching and not task.cache_dir:
        raise DataError(
            f"The task {name!r} is not in seqio's cache. Add its folder with "
            "--seqio_additional_cache_dirs, or set `USE_CACHED_TASKS = False`."
        )
    dataset = task.get_dataset(
        sequence_length=lengths, split=split, use_cached=use_cached, shuffle=False, seed=seed
    )
    _check_features(task, dataset.element_spec)
    if max_examples is not None:
        dataset = dataset.take(max_examples)
    return _collect(task, split, dataset)


def _collect(task: seqio.Task, split: str, dataset: tf.data.Dataset) -> TaskSplit:
    names = [name for name in dataset.element_spec if name not in ("inputs", "targets")]
    examples: list[Example] = []
    columns: dict[str, list[Any]] = {name: [] for name in names}
    for record in dataset.as_numpy_iterator():
        examples.append(
            Example(record["inputs"].astype(np.int32), record["targets"].astype(np.int32))
        )
        for name in names:
            columns[name].append(record[name])
    if not examples:
        raise DataError(f"The split {split!r} of the task {task.name!r} has no examples.")
    return TaskSplit(task=task, split=split, examples=examples, columns=columns)


def _find_task(name: str, modules: Sequence[str]) -> seqio.Task:
    if name in seqio.MixtureRegistry.names():
        tasks = ", ".join(sorted(task.name for task in seqio.MixtureRegistry.get(name).tasks))
        raise DataError(f"{name!r} is a mixture. Name one of its tasks: {tasks}.")
    known = seqio.TaskRegistry.names()
    if name not in known:
        imported = ", ".join(modules) or "none"
        raise DataError(
            f"There is no task named {name!r}.{nearest(name, known)} Task modules imported: "
            f"{imported}; set `MIXTURE_OR_TASK_MODULE` to the module that registers it."
        )
    return seqio.TaskRegistry.get(name)


def _check_split(task: seqio.Task, split: str) -> None:
    # TFDS understands "train[:100]" and "train+test"; only it can tell whether they are right.
    if split not in task.splits and not {"[", "+"} & set(split):
        raise DataError(
            f"The task {task.name!r} has no split {split!r}.{nearest(split, task.splits)} "
            f"It has: {', '.join(task.splits)}."
        )


def _check_lengths(task: seqio.Task, lengths: Mapping[str, int] | None) -> None:
    for feature in lengths or {}:
        if feature not in task.output_features:
            raise ConfigError(
                f"TASK_FEATURE_LENGTHS has a length for {feature!r}, but the features of the task "
                f"{task.name!r} are: {', '.join(task.output_features)}."
                f"{nearest(feature, task.output_features)}"
            )


def _check_features(task: seqio.Task, spec: Mapping[str, Any]) -> None:
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


def _check_vocabulary(task: seqio.Task, feature: str, vocabulary: Vocabulary) -> None:
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
