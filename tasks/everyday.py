"""Everyday sentences of this project's own: is one negative or positive, and what is it about?

`everyday_sentiment` and `everyday_aspect` in all forms of `registration`, and each once more with
the domain that nobody trains on: `everyday_sentiment_held_out`, `everyday_aspect_held_out`. The
sentences come with the package (docs/everyday.md); TFDS builds its files from them on first use
and asks no network.
"""

import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import seqio
import tensorflow_datasets as tfds
from etils import epath

from prompt_tuning import shipped
from prompt_tuning.data import tables

from . import metrics, preprocessors
from .benchmarks import class_of, sentinels
from .registration import TRAIN_VALIDATION_TEST, TextTask, register
from .samples import Samples

# The columns that are asked for, and what the model says for their classes 0, 1 ...
LABELS = {
    "sentiment": ("negative", "positive"),
    "aspect": ("price", "quality", "people", "time", "comfort"),
}
# The split of the domain that is in no other one.
HELD_OUT = "held_out"
SENTINELS = sentinels(list(LABELS))


class Everyday(tfds.core.GeneratorBasedBuilder):
    """The sentences with their labels, in the order of the files that the package brings along."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "1,600 sentences of eight domains."}
    url_infos: ClassVar = {}  # Nothing is downloaded, so there are no checksums to look for.

    def _info(self) -> tfds.core.DatasetInfo:
        labels = {key: tfds.features.ClassLabel(names=names) for key, names in LABELS.items()}
        texts = {key: tfds.features.Text() for key in ("sentence", "domain")}
        number = {"idx": np.int32}
        return tfds.core.DatasetInfo(
            builder=self,
            description="Short everyday sentences with their sentiment and what they are about.",
            features=tfds.features.FeaturesDict(texts | labels | number),
            # The files are shuffled, and so both ways to read them give the same order.
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> Mapping[str, Any]:
        del dl_manager  # There is nothing to download.
        return {
            split: self._generate_examples(split) for split in (*TRAIN_VALIDATION_TEST, HELD_OUT)
        }

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        path = epath.Path(shipped.everyday()) / f"{split}.tsv"
        for number, row in enumerate(tables.read_tsv(os.fspath(path))):
            yield number, {**row.fields, "idx": number}


def _task(label: str, name: str, splits: Sequence[str] | Mapping[str, str]) -> TextTask:
    to_text = functools.partial(
        preprocessors.classification,
        text_format=preprocessors.glue_format(label, ["sentence"]),
        label_names=LABELS[label],
        label_key=label,
    )
    return TextTask(
        name=name,
        source=f"everyday:{Everyday.VERSION}",
        splits=splits,
        text=(seqio.map_over_dataset(to_text),),
        postprocess=class_of(LABELS[label]),
        metrics=(metrics.accuracy,),
        samples=Samples(title=name),
        index=SENTINELS[label],
    )


TASKS = (
    *(_task(label, f"everyday_{label}", TRAIN_VALIDATION_TEST) for label in LABELS),
    *(
        # Whatever asks for a validation or a test split finds it.
        _task(
            label, f"everyday_{label}_{HELD_OUT}", dict.fromkeys(("validation", "test"), HELD_OUT)
        )
        for label in LABELS
    ),
)

NAMES = register(*TASKS)
