"""Data sets of TFDS that are there, that are built, and that cannot be."""

import re
from typing import ClassVar

import pytest
import seqio
import tensorflow as tf
import tensorflow_datasets as tfds
from tensorflow_datasets.core.utils import gcs_utils

from prompt_tuning.data.seqio_tasks import TfdsSource
from prompt_tuning.data.seqio_tasks.registry import is_split
from prompt_tuning.data.seqio_tasks.sources import describe_source
from prompt_tuning.data.seqio_tasks.tfds_source import build
from prompt_tuning.errors import DataError

FAULTS = []


class BuiltOnDemand(tfds.core.GeneratorBasedBuilder):
    """Three words, unless a fault is to be met on the way."""

    VERSION = tfds.core.Version("1.0.0")
    url_infos: ClassVar = {}  # Nothing is downloaded, so there are no checksums to look for.

    def _info(self):
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict({"text": tf.string})
        )

    def _split_generators(self, dl_manager):
        if FAULTS:
            raise FAULTS[0]
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        yield from ((number, {"text": text}) for number, text in enumerate("abc"))


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Google's bucket is not asked for data sets; new builders for every test."""
    monkeypatch.setattr(gcs_utils, "_is_gcs_disabled", True)
    monkeypatch.setattr(seqio.LazyTfdsLoader, "_MEMOIZED_BUILDERS", {})
    yield
    FAULTS.clear()


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setattr(seqio.utils, "_TFDS_DATA_DIR_OVERRIDE", str(tmp_path))
    return TfdsSource("built_on_demand:1.0.0", splits=["train"])


def words(source, split="train"):
    return sorted(record["text"] for record in source.get_dataset(split).as_numpy_iterator())


def test_a_missing_data_set_is_built_and_read(source, tmp_path):
    assert not any(tmp_path.iterdir())
    assert words(source) == [b"a", b"b", b"c"]
    assert (tmp_path / "built_on_demand/1.0.0/dataset_info.json").exists()
    assert source.num_input_examples("train") == 3


def test_the_splits_are_known_before_it_is_built(source, tmp_path):
    assert list(source.splits) == ["train"]
    assert not any(tmp_path.iterdir())


def test_the_one_that_is_there_is_read_without_asking_the_bucket(source, monkeypatch):
    build(source)

    def fail(*_):
        raise AssertionError("the bucket was asked")

    monkeypatch.setattr(gcs_utils, "_is_gcs_disabled", False)
    monkeypatch.setattr(gcs_utils, "exists", fail)
    monkeypatch.setattr(seqio.LazyTfdsLoader, "_MEMOIZED_BUILDERS", {})
    again = TfdsSource("built_on_demand:1.0.0", splits=["train"])
    assert words(again) == [b"a", b"b", b"c"]
    plain = seqio.TfdsDataSource("built_on_demand:1.0.0")
    build(plain, "train")
    assert len(list(plain.get_dataset("train"))) == 3


def test_its_description_is_the_same_before_and_after_it_was_built(source):
    first = describe_source(source, "train", seed=0)
    assert first == describe_source(source, "train", seed=0)
    seqio.LazyTfdsLoader._MEMOIZED_BUILDERS.clear()
    assert first == describe_source(source, "train", seed=0)


@pytest.mark.parametrize(
    "fault",
    [ConnectionError("no route to the host\nand more of it"), OSError("disk full."), KeyError()],
)
def test_what_cannot_be_built_says_why_and_can_be_built_later(source, tmp_path, fault):
    FAULTS.append(fault)
    why = {"ConnectionError": "no route to the host.", "OSError": "disk full."}
    with pytest.raises(DataError) as caught:
        source.get_dataset("train")
    assert re.fullmatch(
        rf"The data set 'built_on_demand:1\.0\.0' of TFDS is not in '{tmp_path}', and cannot be "
        rf"built there: {re.escape(why.get(type(fault).__name__, 'KeyError.'))} Run `tfds build "
        rf"built_on_demand:1\.0\.0 --data_dir {tmp_path}` where there is a network and a TFDS that "
        r"makes this version, or set --tfds_data_dir to a folder that has it\.",
        str(caught.value),
    )
    FAULTS.clear()
    assert words(source) == [b"a", b"b", b"c"]


@pytest.mark.parametrize("name", ["no_such_data_set:1.0.0", "built_on_demand:7.0.0"])
def test_what_tfds_does_not_know_is_named(name, tmp_path, monkeypatch):
    monkeypatch.setattr(seqio.utils, "_TFDS_DATA_DIR_OVERRIDE", str(tmp_path))
    with pytest.raises(DataError, match=f"^The data set '{name}' of TFDS is not in '{tmp_path}'"):
        build(TfdsSource(name, splits=["train"]), "train")


def test_slices_are_splits_unless_the_splits_have_other_names_in_tfds(source):
    def task(source):
        return seqio.Task("t", source=source, output_features={})

    renamed = TfdsSource("built_on_demand:1.0.0", splits={"train": "train[:2]"})
    assert (len(words(source, "train[:1]")), len(words(renamed))) == (1, 2)
    assert is_split(task(source), "train[:1]") and is_split(task(renamed), "train")
    assert not is_split(task(renamed), "train[:1]") and not is_split(task(source), "test")


def test_a_task_whose_splits_nobody_named_is_built_to_know_them(source, tmp_path):
    plain = seqio.TfdsDataSource("built_on_demand:1.0.0")
    task = seqio.Task("t", source=plain, output_features={})
    assert not is_split(task, "test") and is_split(task, "train")
    assert (tmp_path / "built_on_demand/1.0.0/dataset_info.json").exists()
