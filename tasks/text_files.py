"""Tasks over the user's own tab-separated files, without TFDS."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import seqio
import tensorflow as tf

from prompt_tuning.data import tables
from prompt_tuning.data.file_task import check_column, class_number, class_numbers
from prompt_tuning.errors import ConfigError
from prompt_tuning.vocabulary import Vocabulary

from . import features, metrics, postprocessors, preprocessors


@dataclasses.dataclass(frozen=True, kw_only=True)
class TsvTask:
    """A classification task: its files, how a line becomes text, and what its labels are called.

    Attributes:
        name: the name to register.
        splits: the path of each split's file. Its first line names the columns; fields are
            separated by tabs and never quoted, as in GLUE's own files.
        text_format: the inputs, with columns in braces: `"sst2 sentence: {sentence}"`.
        label_names: what the model says for the labels 0, 1 ... The files may hold the numbers or
            the names, and -1 where nobody knows.
        vocabulary: the model's.
        taskless: leaves out the first word of `text_format`, the name of the task.
        label_column: the column that holds the labels.
    """

    name: str
    splits: Mapping[str, str]
    text_format: str
    label_names: Sequence[str]
    vocabulary: Vocabulary
    taskless: bool = False
    label_column: str = "label"

    def __post_init__(self):
        # Lists and tuples of the same names make the same task.
        object.__setattr__(self, "label_names", tuple(self.label_names))


def register_tsv_task(task: TsvTask) -> str:
    """Registers a task and returns its name; doing so again with the same task changes nothing.

    A gin file can bind the name of the task to the registration:
    `MIXTURE_OR_TASK_NAME = @text_files.register_tsv_task()`.

    Raises:
        ConfigError: the name belongs to another task.
    """
    if task.name in seqio.TaskRegistry.names():
        _check_same(task, seqio.TaskRegistry.get(task.name))
        return task.name
    to_text = functools.partial(
        preprocessors.classification,
        text_format=task.text_format,
        label_names=task.label_names,
        label_key=task.label_column,
    )
    shorten = [seqio.map_over_dataset(preprocessors.remove_first_text_token)]
    seqio.TaskRegistry.add(
        task.name,
        source=_TsvSource(task),
        output_features=features.t5_features(task.vocabulary),
        preprocessors=[
            seqio.map_over_dataset(to_text),
            *(shorten if task.taskless else []),
            seqio.preprocessors.tokenize,
            seqio.CacheDatasetPlaceholder(),
            seqio.preprocessors.append_eos_after_trim,
        ],
        postprocess_fn=functools.partial(
            postprocessors.string_label_to_class_id, label_names=task.label_names
        ),
        metric_fns=[metrics.accuracy],
    )
    return task.name


class _TsvSource(seqio.FunctionDataSource):
    """The lines of a task's files; it keeps the task's description, to know it again."""

    def __init__(self, task: TsvTask):
        self.task = task
        super().__init__(dataset_fn=self._dataset, splits=tuple(task.splits))

    def _dataset(self, split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
        del shuffle_files, seed  # There is one file, and it is read in its order.
        path = self.task.splits[split]
        rows = list(tables.read_tsv(path))
        columns = list(rows[0].fields)
        check_column(path, self.task.label_column, columns, "TsvTask.label_column")
        for key in preprocessors.format_keys(self.task.text_format):
            check_column(path, key, columns, f"TsvTask.text_format {self.task.text_format!r}")
        known = class_numbers(self.task.label_names)
        labels = [
            class_number(row.fields[self.task.label_column], known, row.place) for row in rows
        ]
        tensors = {
            name: tf.constant([row.fields[name] for row in rows], tf.string) for name in columns
        }
        tensors[self.task.label_column] = tf.constant(labels, tf.int32)
        tensors["idx"] = tf.range(len(labels))
        return tf.data.Dataset.from_tensor_slices(tensors)


def _check_same(task: TsvTask, registered: seqio.Task) -> None:
    if not isinstance(registered.source, _TsvSource):
        raise ConfigError(
            f"The name {task.name!r} belongs to a task over {registered.source}. Choose another."
        )
    known = registered.source.task
    different = [
        f"{field.name} was {getattr(known, field.name)!r} and is {getattr(task, field.name)!r}"
        for field in dataclasses.fields(TsvTask)
        if getattr(known, field.name) != getattr(task, field.name)
    ]
    if different:
        raise ConfigError(
            f"The task {task.name!r} is already registered, but {'; '.join(different)}. "
            "Choose another name."
        )
