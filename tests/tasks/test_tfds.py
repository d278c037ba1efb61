"""Registered tasks over data that TFDS has built, as a run loads them."""

import socket

import numpy as np
import pytest
import seqio

from prompt_tuning.data import seqio_tasks, task_batches
from prompt_tuning.errors import ConfigError, DataError
from prompt_tuning.vocabulary import ByteVocabulary
from tests.tasks import tfds_data

LENGTHS = {"inputs": 64, "targets": 16}
BYTES = ByteVocabulary()


@pytest.fixture(scope="session")
def tfds_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    tfds_data.build(folder)
    return str(folder)


@pytest.fixture(autouse=True)
def data_dir(tfds_folder, monkeypatch):
    """TFDS looks into that folder, and whoever asks the network for anything fails."""

    def no_network(*_):
        raise AssertionError("somebody asks the network")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    use(tfds_folder)
    yield
    use("")
    seqio.set_tfds_data_dir_override(None)


def use(folder):
    seqio_tasks.use_folders(tfds_data_dir=folder)


def load(name, vocabulary, split="train", **options):
    return task_batches.task_split(
        name,
        split=split,
        vocabulary=vocabulary,
        lengths=LENGTHS,
        modules=("prompt_tuning.tasks.glue", "prompt_tuning.tasks.super_glue"),
        **options,
    )


@pytest.mark.parametrize("variant", ["", "_examples"])
@pytest.mark.parametrize("form", ["", "taskless_", "task_index_"])
@pytest.mark.parametrize("model", ["", "mt5_", "byt5_"])
def test_examples_are_in_the_run_s_vocabulary(vocabulary, model, form, variant):
    used = BYTES if model == "byt5_" else vocabulary
    loaded = load(f"{model}{form}glue_sst2_v200{variant}", used)
    head = "sst2 " if form == "" else ""
    start = [used.size - 7] if form == "task_index_" else []
    assert len(loaded.examples) == 4
    read = set()
    for index, example in enumerate(loaded.examples):
        record = loaded.record(index)
        sentence, label = tfds_data.SST2["train"][int(record["idx"])]
        text = f"{head}sentence: {sentence}"
        assert record["inputs_pretokenized"].decode() == text
        assert example.inputs.tolist() == [*start, *used.encode(text), 1]
        assert example.targets.tolist() == [*used.encode(["negative", "positive"][label]), 1]
        read.add(int(record["idx"]))
    assert read == {0, 1, 2, 3}


@pytest.mark.parametrize("variant", ["", "_examples"])
def test_answers_are_judged(vocabulary, variant):
    loaded = load(f"taskless_glue_sst2_v200{variant}", vocabulary, "validation")
    right = [["negative", "positive"][label] for label in loaded.targets()]
    assert loaded.metrics(right)["accuracy"] == 100.0
    assert loaded.metrics(["", right[1]])["accuracy"] == 50.0
    assert loaded.judge.label_names == ("negative", "positive")


def test_a_test_split_has_unknown_labels(vocabulary):
    loaded = load("taskless_glue_sst2_v200", vocabulary, "test")
    assert loaded.record(0)["targets_pretokenized"] == b"<unk>" and loaded.targets() == [-1]


def test_slices_of_a_split_can_be_asked_for(vocabulary):
    assert len(load("glue_sst2_v200", vocabulary, "train[:2]").examples) == 2


def test_multirc_keeps_the_question_of_each_answer(vocabulary):
    loaded = load("taskless_super_glue_multirc_v102", vocabulary, "validation")
    assert sorted(target["group"] for target in loaded.targets()) == [0, 0, 1]
    right = [["False", "True"][target["value"]] for target in loaded.targets()]
    assert loaded.metrics(right) == {"f1": 100.0, "exact_match": 100.0}
    assert loaded.metrics(["True"] * 3) == {"f1": pytest.approx(50.0), "exact_match": 0.0}


@pytest.mark.parametrize("name", ["taskless_glue_sst2_v200", "task_index_glue_sst2_v200"])
def test_a_stream_is_in_the_run_s_vocabulary_too(vocabulary, name):
    stream = load(name, vocabulary, stream_above=1)
    batches = task_batches.task_batches(stream, batch_size=4, seed=0)
    batch = next(batches.batches())
    known = {tuple(example.inputs.tolist()) for example in load(name, vocabulary).examples}
    assert {tuple(int(i) for i in row if i) for row in np.asarray(batch.inputs)} <= known


def test_a_mixture_is_in_the_run_s_vocabulary_too(vocabulary):
    names = ["taskless_glue_sst2_v200", "taskless_super_glue_multirc_v102"]
    name = "sst2_and_multirc"
    seqio.MixtureRegistry.add(name, [(names[0], 3.0), (names[1], 1.0)])
    try:
        parts = load(name, vocabulary)
        assert {part.task: rate for part, rate in parts} == {names[0]: 3.0, names[1]: 1.0}
        stream = load(name, vocabulary, stream_above=1)
        assert stream.rates == {names[0]: 3.0, names[1]: 1.0}
        next(task_batches.task_batches(stream, batch_size=2, seed=0).batches())
    finally:
        seqio.MixtureRegistry.remove(name)


@pytest.mark.parametrize(
    ("name", "reads", "has", "fitting"),
    [
        (
            "byt5_taskless_glue_sst2_v200",
            "bytes",
            "SentencePiece pieces",
            "'taskless_glue_sst2_v200' or 'mt5_taskless_glue_sst2_v200'",
        ),
        (
            "mt5_glue_sst2_v200",
            "SentencePiece pieces",
            "bytes",
            "'byt5_glue_sst2_v200'",
        ),
        (
            "glue_mnli_and_dev_v200",
            "SentencePiece pieces",
            "bytes",
            "'byt5_glue_mnli_and_dev_v200'",
        ),
    ],
)
def test_a_task_for_another_kind_of_vocabulary_is_refused(vocabulary, name, reads, has, fitting):
    used = vocabulary if name.startswith("byt5_") else BYTES
    with pytest.raises(ConfigError) as caught:
        load(name, used)
    assert f"is for models that read {reads}, but the model's VOCABULARY has {has}." in str(
        caught.value
    )
    assert str(caught.value).endswith(f"Set `MIXTURE_OR_TASK_NAME` to {fitting}.")


def test_the_folder_that_was_named_last_is_read(vocabulary, tmp_path, tfds_folder):
    load("taskless_glue_sst2_v200", vocabulary)
    use(str(tmp_path))
    source = seqio.TaskRegistry.get("taskless_glue_sst2_v200").source
    assert source.tfds_dataset.data_dir == str(tmp_path)
    use(tfds_folder)
    assert source.tfds_dataset.data_dir == tfds_folder


def test_a_split_that_a_task_does_not_have_is_known_without_tfds(vocabulary, tmp_path):
    use(str(tmp_path))
    with pytest.raises(DataError, match=r"has no split 'validation'.*It has: train, validation_m"):
        load("taskless_glue_mnli_v200", vocabulary, "validation")


@pytest.mark.parametrize(
    ("name", "data_set"),
    [
        ("taskless_glue_sst2_v002", "glue/sst2:1.0.0"),
        ("taskless_glue_mnli_and_dev_v002_examples", "glue/mnli:1.0.0"),
    ],
)
def test_a_data_set_that_is_missing_is_named_with_its_folder_and_command(
    vocabulary, tmp_path, name, data_set
):
    """TFDS makes its version 1.0.0 no more, so it does not look for it elsewhere either."""
    use(str(tmp_path))
    with pytest.raises(DataError) as caught:
        load(name, vocabulary)
    message = str(caught.value)
    assert f"The data set '{data_set}' of TFDS is not in '{tmp_path}', and cannot" in message
    assert f"`tfds build {data_set} --data_dir {tmp_path}`" in message
    assert "--tfds_data_dir" in message
