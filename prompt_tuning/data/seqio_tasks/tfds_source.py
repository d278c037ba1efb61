"""Data sets of TFDS: built if they are not there, and asked for nothing before."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import seqio
import tensorflow as tf
import tensorflow_datasets as tfds

from prompt_tuning.errors import DataError

log = logging.getLogger("prompt_tuning")


class TfdsSource(seqio.TfdsDataSource):
    """A data set of TFDS whose splits are known without asking for it.

    Args:
        name: with its version: "glue/sst2:2.0.0".
        splits: their names, or for each name what it is in TFDS: {"train": "train[:-500]"}.
    """

    def __init__(self, name: str, *, splits: Sequence[str] | Mapping[str, str]):
        super().__init__(name, splits=dict(splits) if isinstance(splits, Mapping) else None)
        # seqio would map a list onto itself, and then could not take a slice of a split.
        self._splits = tuple(splits)

    def get_dataset(self, split: str | None = None, **options: Any) -> tf.data.Dataset:
        """Returns the records of a split, of a data set that is built now if it is not there."""
        build(self, split)
        return super().get_dataset(split, **options)


def build(source: seqio.TfdsDataSource, split: str | None = None) -> None:
    """Builds the data set of a source, in its folder, if it is not there.

    Raises:
        DataError: it cannot be built: TFDS does not know it, or its files cannot be downloaded.
    """
    loader = source.tfds_dataset
    name, folder = loader.get_split_params(split)
    try:
        builder = loader._get_builder(split)
        if not builder.is_prepared():
            log.info("%r is not in %r; TFDS builds it now", name, builder.data_dir)
            builder.download_and_prepare()
            _forget(loader, split)
    # TFDS, and what it downloads with, raise errors of any class.
    except Exception as error:
        _forget(loader, split)
        folder = str(folder or tfds.core.constants.DATA_DIR)
        raise DataError(
            f"The data set {name!r} of TFDS is not in {folder!r}, and cannot be built there: "
            f"{_first_line(error)} Run `tfds build {name} --data_dir {folder}` where there is a "
            "network and a TFDS that makes this version, or set --tfds_data_dir to a folder that "
            "has it."
        ) from error
    if loader.tfds_splits is None:
        # Otherwise seqio asks Google's bucket for the data set before it reads the one that is
        # here, which needs a network, and refuses to go on if it is in both.
        loader._read_only = True


def _forget(loader: seqio.LazyTfdsLoader, split: str | None) -> None:
    """Lets seqio look again: a builder that found no files would not notice that there are some."""
    loader._MEMOIZED_BUILDERS.pop(loader._get_builder_key(*loader.get_split_params(split)), None)


def _first_line(error: Exception) -> str:
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return text if text.endswith((".", "!")) else f"{text}."
