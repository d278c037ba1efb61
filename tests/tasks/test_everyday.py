"""The data set `everyday`: facts of its sentences, and both ways to read them."""

import collections
import hashlib
import os
import re
import socket

import pytest
import seqio
import tensorflow_datasets as tfds
from tensorflow_datasets.core.utils import gcs_utils

from prompt_tuning import shipped
from prompt_tuning.cli import config
from prompt_tuning.cli.arguments import parse_run
from prompt_tuning.data import seqio_tasks, tables, task_batches
from prompt_tuning.tasks import everyday
from prompt_tuning.vocabulary import ByteVocabulary

SIZES = {"train": 980, "validation": 210, "test": 210, "held_out": 200}
# Of the twenty sentences of a domain, a sentiment and an aspect.
SHARES = {"train": 14, "validation": 3, "test": 3, "held_out": 20}

every_label = pytest.mark.parametrize("label", everyday.LABELS)


def rows_of(split):
    return [row.fields for row in tables.read_tsv(os.path.join(shipped.everyday(), f"{split}.tsv"))]


SPLITS = {split: rows_of(split) for split in SIZES}
ROWS = [row for rows in SPLITS.values() for row in rows]


def words(text):
    return re.findall(r"[a-z]+", text.lower())


def digest(row):
    return hashlib.sha256(row["sentence"].encode()).hexdigest()


def combination(row):
    return row["domain"], row["sentiment"], row["aspect"]


def test_every_split_has_its_columns_and_size():
    assert {split: len(rows) for split, rows in SPLITS.items()} == SIZES
    assert {tuple(row) for row in ROWS} == {("sentence", "sentiment", "aspect", "domain")}


def test_every_combination_of_labels_is_equally_frequent_in_every_domain():
    for split, rows in SPLITS.items():
        domains = {row["domain"] for row in rows}
        counts = collections.Counter(map(combination, rows))
        assert len(counts) == len(domains) * 2 * 5
        assert set(counts.values()) == {SHARES[split]}
    seen = {row["domain"] for split in ("train", "validation", "test") for row in SPLITS[split]}
    assert len(seen) == 7
    assert {row["domain"] for row in SPLITS["held_out"]} == {"animals"}


def test_a_sentence_stands_once_in_all_splits():
    """Nor another of the same words, whatever their case and punctuation."""
    assert len({" ".join(words(row["sentence"])) for row in ROWS}) == len(ROWS)


def test_hardly_four_words_in_a_row_are_in_two_splits():
    """So that a sentence of one split tells nothing of another's."""
    where = collections.defaultdict(set)
    for split, rows in SPLITS.items():
        for row in rows:
            found = words(row["sentence"])
            for start in range(len(found) - 3):
                where[tuple(found[start : start + 4])].add(split)
    shared = [" ".join(run) for run, splits in where.items() if len(splits) > 1]
    assert len(shared) <= 31, shared


def test_sentences_are_short_lines_of_plain_ascii():
    for row in ROWS:
        text = row["sentence"]
        assert text.isascii() and text.isprintable() and text == " ".join(text.split())
        assert 5 <= len(text.split()) <= 24 and text[-1] in ".!?" and '"' not in text


@every_label
def test_the_name_of_a_label_is_in_few_sentences(label):
    for name in everyday.LABELS[label]:
        having = [row[label] for row in ROWS if name in words(row["sentence"])]
        assert len(having) <= len(ROWS) / 50, name


def test_no_word_alone_gives_the_sentiment_away():
    """Of the words in at least 2 % of the sentences, none is mostly in those of one class."""
    counts = collections.defaultdict(collections.Counter)
    for row in ROWS:
        for word in set(words(row["sentence"])):
            counts[word][row["sentiment"]] += 1
    frequent = {word: found for word, found in counts.items() if found.total() >= len(ROWS) / 50}
    assert len(frequent) > 50
    for word, found in frequent.items():
        assert max(found.values()) <= 0.8 * found.total(), (word, found)


def test_the_first_sentences_by_digest_of_every_combination_are_those_to_train_on():
    """The rule of docs/everyday.md, by which a sentence that is mended may change its split."""
    ranked = collections.defaultdict(list)
    for split in ("train", "validation", "test"):
        assert SPLITS[split] == sorted(SPLITS[split], key=digest)
        for row in SPLITS[split]:
            ranked[combination(row)].append((digest(row), split))
    for found in ranked.values():
        order = [split for _, split in sorted(found)]
        assert order == ["train"] * 14 + ["validation"] * 3 + ["test"] * 3


@pytest.fixture(scope="module")
def tfds_folder(tmp_path_factory):
    """Built without a network: whoever asks for one fails."""
    folder = str(tmp_path_factory.mktemp("tfds"))

    def no_network(*_):
        raise AssertionError("somebody asks the network")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gcs_utils, "exists", no_network)
        patch.setattr(socket.socket, "connect", no_network)
        patch.setattr(socket, "getaddrinfo", no_network)
        tfds.builder("everyday:1.0.0", data_dir=folder).download_and_prepare()
    return folder


@pytest.fixture
def data_dir(tfds_folder):
    seqio_tasks.use_folders(tfds_data_dir=tfds_folder)
    yield
    seqio_tasks.use_folders(tfds_data_dir="")
    seqio.set_tfds_data_dir_override(None)


@pytest.fixture
def nothing_configured():
    yield
    config.clear()


def registered(name, split, vocabulary, cache_dir):
    return task_batches.task_split(
        name,
        split=split,
        vocabulary=vocabulary,
        modules="prompt_tuning.tasks.everyday",
        cache_dir=cache_dir,
    )


def configured(example, split, vocabulary, cache_dir):
    """Loads a split as a run does that is configured by the gin file of an example."""
    values = {
        "MODEL_DIR": "'nowhere'",
        "INITIAL_CHECKPOINT_PATH": "'nowhere'",
        "VOCABULARY_FILE": repr(vocabulary.path),
        "CACHE_DIR": repr(str(cache_dir)),
        "TRAIN_STEPS": "1",
        "BATCH_SIZE": "1",
    }
    names = ["models/ours_tiny.gin", "runs/prompt_finetune.gin", f"examples/{example}.gin"]
    flags = [f"--gin_file={name}" for name in names]
    flags += [f"--gin.{name}={value}" for name, value in values.items()]
    config.parse(parse_run("prompt-tuning", "", flags))
    return config.call(task_batches.task_split, split=split)


def same(first, second):
    assert len(first.examples) == len(second.examples) > 0
    assert str(list(first.examples)) == str(list(second.examples))
    assert (first.targets(), first.judge.label_names) == (
        second.targets(),
        second.judge.label_names,
    )


@pytest.mark.parametrize("split", SIZES)
@every_label
@pytest.mark.usefixtures("data_dir", "nothing_configured")
def test_the_files_and_seqio_give_the_same_examples_in_the_same_order(
    vocabulary, tmp_path, label, split
):
    held_out = split == "held_out"
    name = f"taskless_everyday_{label}{'_held_out' if held_out else ''}"
    theirs = registered(name, "test" if held_out else split, vocabulary, tmp_path)
    ours = configured(f"everyday_{label}", split, vocabulary, tmp_path)
    same(ours, theirs)
    assert len(ours.examples) == SIZES[split]
    names = everyday.LABELS[label]
    assert [names[target] for target in ours.targets()] == [row[label] for row in SPLITS[split]]
    assert ours.metrics([row[label] for row in SPLITS[split]]) == {"accuracy": 100.0}


@pytest.mark.usefixtures("data_dir", "nothing_configured")
def test_the_gin_file_of_seqio_s_task_names_it(vocabulary, tmp_path):
    named = configured("everyday_seqio", "validation", vocabulary, tmp_path)
    assert named.task == "taskless_everyday_sentiment"
    same(named, registered(named.task, "validation", vocabulary, tmp_path))


@every_label
@pytest.mark.usefixtures("data_dir")
def test_a_registered_task_says_its_name_and_keeps_what_is_known(tmp_path, label):
    loaded = registered(f"byt5_everyday_{label}", "validation", ByteVocabulary(), tmp_path)
    record, row = loaded.record(0), SPLITS["validation"][0]
    assert record["inputs_pretokenized"].decode() == f"{label} sentence: {row['sentence']}"
    assert record["targets_pretokenized"].decode() == row[label]
    assert (record["domain"].decode(), record["idx"]) == (row["domain"], 0)


@every_label
@pytest.mark.usefixtures("data_dir")
def test_every_split_of_the_held_out_task_is_the_held_out_domain(tmp_path, label):
    name = f"byt5_everyday_{label}_held_out"
    splits = [
        registered(name, split, ByteVocabulary(), tmp_path) for split in ("validation", "test")
    ]
    same(*splits)
    assert {splits[0].record(index)["domain"] for index in range(200)} == {b"animals"}


def test_every_form_is_registered():
    forms = [
        f"{model}{form}everyday_{label}{held_out}{examples}"
        for model in ("", "mt5_", "byt5_")
        for form in ("", "taskless_", "task_index_")
        for label in ("sentiment", "aspect")
        for held_out in ("", "_held_out")
        for examples in ("", "_examples")
    ]
    assert sorted(forms) == sorted(everyday.NAMES)
    for name in everyday.NAMES:
        splits = list(seqio.TaskRegistry.get(name).splits)
        known = ["validation", "test"] if "held_out" in name else ["train", "validation", "test"]
        assert splits == known
