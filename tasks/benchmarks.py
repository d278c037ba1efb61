"""The data sets of a benchmark, as rows of a table: text, answers and metrics without names.

`glue`, `super_glue` and whatever builds on them turn a row into tasks.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import seqio

from . import metrics, postprocessors, preprocessors
from .registration import TRAIN_VALIDATION_TEST, Metric, Postprocess, TextTask
from .samples import Samples


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSet:
    """One data set of a benchmark.

    Attributes:
        config: its name in TFDS, and in the names of its tasks.
        head: the task that its text says it is, which an auxiliary test set shares with another.
        text: functions of a `tf.data.Dataset` that write `inputs` and `targets`.
        postprocess: of an answer.
        metrics: of all answers; none for a test set whose labels nobody knows.
        splits: in TFDS.
        label_names: what stands for the classes 0, 1 ... if these are the answers.
    """

    config: str
    head: str
    text: Sequence[Callable[..., Any]]
    postprocess: Postprocess
    metrics: Sequence[Metric]
    splits: Sequence[str] = TRAIN_VALIDATION_TEST
    label_names: Sequence[str] | None = None

    def task(self, name: str, *, source: str, **options: Any) -> TextTask:
        """Returns its row of tasks.

        Args:
            name: see `TextTask.name`.
            source: the data set with its version, "glue/sst2:2.0.0".
            **options: of `TextTask`, instead of this data set's own.
        """
        known = {
            "splits": self.splits,
            "text": self.text,
            "postprocess": self.postprocess,
            "metrics": self.metrics,
            "samples": Samples(title=self.config),
        }
        return TextTask(name=name, source=source, **(known | options))


def classes(
    config: str,
    keys: Sequence[str],
    label_names: Sequence[str],
    *,
    head: str | None = None,
    metrics: Sequence[Metric] = (metrics.accuracy,),
    splits: Sequence[str] = TRAIN_VALIDATION_TEST,
    names: Mapping[str, str] | None = None,
) -> DataSet:
    """Returns a data set whose answers are the names of classes.

    Args:
        config: its name in TFDS.
        keys: the features that make the text, in any order.
        label_names: of the classes 0, 1 ...
        head: the word before the text; `config` by default.
        metrics: of the classes.
        splits: in TFDS.
        names: the features' new names and their old ones, if they are renamed first.
    """
    head = head or config
    rename = functools.partial(preprocessors.rename, names=names or {})
    to_text = functools.partial(
        preprocessors.glue,
        text_format=preprocessors.glue_format(head, keys),
        label_names=tuple(label_names),
    )
    return DataSet(
        config=config,
        head=head,
        text=tuple(map(seqio.map_over_dataset, [rename, to_text] if names else [to_text])),
        postprocess=class_of(label_names),
        metrics=tuple(metrics),
        splits=tuple(splits),
        label_names=tuple(label_names),
    )


def class_of(label_names: Sequence[str]) -> Postprocess:
    """Returns the postprocessor that numbers the labels; evaluation finds their names in it."""
    return functools.partial(
        postprocessors.string_label_to_class_id, label_names=tuple(label_names)
    )


def sentinels(heads: Sequence[str]) -> dict[str, int]:
    """Returns the number of each task's sentinel: its place in the alphabet of a benchmark."""
    return {head: index for index, head in enumerate(sorted(set(heads)))}
