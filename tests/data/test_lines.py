import dataclasses
import gzip
import json
import os
import re
import subprocess
import sys

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import seqio

from prompt_tuning.data import lines
from prompt_tuning.data.file_task import FileTask
from prompt_tuning.data.lines import file_split
from prompt_tuning.data.seqio_tasks import examples_of
from prompt_tuning.data.task_split import Judge
from prompt_tuning.errors import ConfigError, DataError
from prompt_tuning.tasks.text_files import TsvTask, register_tsv_task
from prompt_tuning.vocabulary import ByteVocabulary
from tests.small_vocabulary import SENTENCES

NAMES = ("negative", "positive")
FILMS = FileTask(
    inputs="films sentence: {sentence}", targets="{label}", names={"label": NAMES}, name="films"
)
HEADER = ["sentence", "label"]
ROWS = [['so good , it "hurts", twice', "1"], ["dull and\u2028careless ", "0"], ["no", "-1"]]


def as_tsv(path, rows):
    write(path, "".join("\t".join(row) + "\n" for row in [HEADER, *rows]))


def as_csv(path, rows):
    quoted = [['"' + field.replace('"', '""') + '"' for field in row] for row in [HEADER, *rows]]
    write(path, "".join(",".join(row) + "\r\n" for row in quoted))


def as_json_lines(path, rows):
    records = [dict(zip(HEADER, [text, int(label)], strict=True)) for text, label in rows]
    write(path, "".join(json.dumps(record) + "\n" for record in records))


def as_parquet(path, rows):
    texts, labels = zip(*rows, strict=True)
    columns = {"sentence": list(texts), "label": [int(label) for label in labels]}
    pyarrow.parquet.write_table(pyarrow.table(columns), path)


FORMATS = {
    ".tsv": as_tsv, ".csv": as_csv, ".jsonl": as_json_lines,
    ".tsv.gz": as_tsv, ".csv.gz": as_csv, ".jsonl.gz": as_json_lines,
    ".parquet": as_parquet,
}  # fmt: skip


@pytest.fixture
def registry():
    """Takes away what a test registers."""
    before = set(seqio.TaskRegistry.names())
    yield
    for name in set(seqio.TaskRegistry.names()) - before:
        seqio.TaskRegistry.remove(name)


def write(path, text):
    data = text if isinstance(text, bytes) else text.encode()
    with (gzip.open if str(path).endswith(".gz") else open)(path, "wb") as file:
        file.write(data)
    return str(path)


def load(path, vocabulary, split="train", task=FILMS, **how):
    cache_dir = os.path.join(os.path.dirname(path), "cache")
    return file_split(
        str(path), split=split, task=task, vocabulary=vocabulary, cache_dir=cache_dir, **how
    )


def raises(kind, message):
    return pytest.raises(kind, match=f"^{re.escape(message)}$")


def same(ours, theirs):
    """Compares all that two splits hold, texts as bytes as seqio keeps them."""
    assert len(ours.examples) == len(theirs.examples)
    assert set(ours.columns) == set(theirs.columns)
    for index in range(len(ours.examples)):
        for name, value in theirs.record(index).items():
            found = ours.record(index)[name]
            found = found.encode() if isinstance(found, str) else found
            assert np.array_equal(found, value) and type(found) is type(value), (index, name)


@pytest.mark.parametrize("ending", FORMATS)
def test_a_row_becomes_inputs_and_targets_in_every_format(tmp_path, vocabulary, ending):
    path = tmp_path / f"train{ending}"
    FORMATS[ending](path, ROWS)
    assert lines.is_file_task(str(path))
    loaded = load(path, vocabulary)
    for example, (text, _), label in zip(
        loaded.examples, ROWS, ["positive", "negative", "<unk>"], strict=True
    ):
        assert example.inputs.tolist() == [*vocabulary.encode(f"films sentence: {text}"), 1]
        assert example.targets.tolist() == [*vocabulary.encode(label), 1]
    assert loaded.record(0) | {"inputs": 0, "targets": 0} == {
        "sentence": ROWS[0][0],
        "label": 1,
        "idx": 0,
        "inputs_pretokenized": f"films sentence: {ROWS[0][0]}",
        "targets_pretokenized": "positive",
        "inputs": 0,
        "targets": 0,
    }


@pytest.mark.parametrize("lengths", [None, {"inputs": 12, "targets": 3}, {"inputs": 1}])
def test_the_examples_are_those_of_the_same_seqio_task(tmp_path, registry, vocabulary, lengths):
    rows = [[text.replace("\t", " "), str(i % 2)] for i, text in enumerate(SENTENCES)]
    for split in ("train", "validation"):
        as_tsv(tmp_path / f"{split}.tsv", rows)
        rows = rows[:5]
    task = TsvTask(
        name="films",
        splits={split: str(tmp_path / f"{split}.tsv") for split in ("train", "validation")},
        text_format=FILMS.inputs,
        label_names=NAMES,
        vocabulary=vocabulary,
    )
    register_tsv_task(task)
    for split in task.splits:
        theirs = examples_of(
            "films", split, lengths, vocabulary=vocabulary, cache_dir=tmp_path / "cache"
        )
        ours = load(tmp_path / "train.tsv", vocabulary, split, lengths=lengths)
        same(ours, theirs)
        assert ours.lengths == theirs.lengths
        assert ours.targets() == theirs.targets()
        texts = ["positive", "Positive", "<unk>", "negative ", "negative"] * len(rows)
        texts = texts[: len(ours.examples)]
        assert ours.predictions(texts) == theirs.predictions(texts)
        assert ours.metrics(texts) == theirs.metrics(texts)


def test_truncated_examples_are_counted(tmp_path, vocabulary):
    as_tsv(tmp_path / "train.tsv", ROWS)
    whole = load(tmp_path / "train.tsv", vocabulary)
    longest = whole.lengths["inputs"].longest
    assert whole.lengths["inputs"].truncated == 0
    for limit, truncated in [(longest, 0), (longest - 1, 1), (2, 3)]:
        trimmed = load(tmp_path / "train.tsv", vocabulary, lengths={"inputs": limit})
        assert trimmed.lengths["inputs"].truncated == truncated
        assert trimmed.longest[0] == min(limit, longest)
        assert all(example.inputs[-1] == 1 for example in trimmed.examples)


def test_bytes_are_tokens_too(tmp_path):
    as_tsv(tmp_path / "train.tsv", ROWS)
    loaded = load(tmp_path / "train.tsv", ByteVocabulary())
    assert loaded.examples[2].targets.tolist() == [*ByteVocabulary().encode("<unk>"), 1]


def test_answers_that_are_classes_are_judged_as_classes(tmp_path, vocabulary):
    as_tsv(tmp_path / "train.tsv", ROWS)
    loaded = load(tmp_path / "train.tsv", vocabulary)
    assert loaded.targets() == [1, 0, -1]
    assert loaded.predictions(["positive", "good", "positive "]) == [1, -1, -1]
    assert loaded.metrics(["positive", "positive", "x"]) == {"accuracy": pytest.approx(200 / 3)}


def test_other_answers_are_judged_as_texts(tmp_path, vocabulary):
    as_tsv(tmp_path / "train.tsv", ROWS)
    task = dataclasses.replace(FILMS, targets="it is {label}", inputs="{label}{{}}")
    loaded = load(tmp_path / "train.tsv", vocabulary, task=task)
    assert loaded.record(0)["inputs_pretokenized"] == "positive{}"
    assert loaded.targets() == ["it is positive", "it is negative", "it is <unk>"]
    assert loaded.metrics(["it is positive", "", "it is positive"])["accuracy"] < 50


def test_classes_may_be_written_as_names_and_columns_be_named_like_ours(tmp_path, vocabulary):
    write(tmp_path / "train.jsonl", '{"inputs": "a b", "targets": "positive", "note": null}\n')
    task = FileTask(inputs="say: {inputs}", targets="{targets}", names={"targets": NAMES})
    loaded = load(tmp_path / "train.jsonl", vocabulary, task=task)
    assert loaded.record(0)["inputs_pretokenized"] == "say: a b"
    assert loaded.examples[0].inputs.tolist() == [*vocabulary.encode("say: a b"), 1]
    assert loaded.targets() == [1]
    assert loaded.record(0)["note"] == ""


def test_the_model_may_say_other_words_than_the_file(tmp_path, vocabulary):
    rows = "sentence\tlabel\na\tpositive\nb\tnegative\nc\t1\nd\t-1\n"
    path = write(tmp_path / "train.tsv", rows)
    words = {"negative": "bad", "positive": "good"}
    task = dataclasses.replace(FILMS, names={"label": words})
    loaded = load(path, vocabulary, task=task)
    assert loaded.targets() == [1, 0, 1, -1]
    assert loaded.examples[0].targets.tolist() == [*vocabulary.encode("good"), 1]
    assert loaded.judge.label_names == ("bad", "good")
    assert loaded.predictions(["good", "bad", "positive", ""]) == [1, 0, -1, -1]
    # The same words for other names are other examples.
    turned = dict(zip(reversed(words), words.values(), strict=True))
    task = dataclasses.replace(FILMS, names={"label": turned})
    assert load(path, vocabulary, task=task).targets() == [0, 1, 1, -1]


def test_a_file_is_tokenised_once(tmp_path, vocabulary, monkeypatch):
    as_tsv(tmp_path / "train.tsv", ROWS)
    first = load(tmp_path / "train.tsv", vocabulary)
    monkeypatch.setattr(lines.tables, "read_rows", None)
    again = load(tmp_path / "train.tsv", vocabulary)
    assert again.fingerprint == first.fingerprint
    assert [one.inputs.tolist() for one in again.examples] == [
        one.inputs.tolist() for one in first.examples
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"inputs": "{sentence}"},
        {"targets": "is {label}"},
        {"names": {"label": ("bad", "good")}},
    ],
)
def test_another_template_makes_other_examples(tmp_path, vocabulary, change):
    as_tsv(tmp_path / "train.tsv", ROWS)
    first = load(tmp_path / "train.tsv", vocabulary)
    other = load(tmp_path / "train.tsv", vocabulary, task=dataclasses.replace(FILMS, **change))
    assert other.fingerprint != first.fingerprint


def test_a_changed_file_is_read_again(tmp_path, vocabulary):
    as_tsv(tmp_path / "train.tsv", ROWS)
    assert len(load(tmp_path / "train.tsv", vocabulary).examples) == 3
    as_tsv(tmp_path / "train.tsv", ROWS[:2])
    assert len(load(tmp_path / "train.tsv", vocabulary).examples) == 2


def test_a_file_task_needs_no_tensorflow(tmp_path, vocabulary):
    as_tsv(tmp_path / "train.tsv", ROWS)
    code = (
        "import sys\n"
        "from prompt_tuning.data.lines import FileTask, file_split\n"
        "from prompt_tuning.vocabulary import SentencePieceVocabulary\n"
        "task = FileTask(inputs='{sentence}', targets='{label}')\n"
        "vocabulary = SentencePieceVocabulary(sys.argv[2])\n"
        "split = file_split(sys.argv[1], split='train', task=task, vocabulary=vocabulary,\n"
        "                   cache_dir=sys.argv[3])\n"
        "assert len(split.examples) == 3\n"
        "print({'tensorflow', 'seqio', 'gin'} & set(sys.modules))\n"
    )
    paths = [str(tmp_path / "train.tsv"), vocabulary.path, str(tmp_path / "cache")]
    done = subprocess.run(
        [sys.executable, "-c", code, *paths], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.returncode) == ("set()\n", 0), done.stderr


def test_a_file_without_templates_says_what_to_write(tmp_path, vocabulary):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "train.tsv", vocabulary, task=None)
    assert "FILE_TASK = @file_task.FileTask()" in str(caught.value)
    assert str(caught.value).startswith(f"MIXTURE_OR_TASK_NAME is the file '{tmp_path}/train.tsv'")


def test_a_text_is_asked_line_by_line(tmp_path, vocabulary):
    path = write(tmp_path / "questions.txt", "is it dull?\n\nlast\n")
    assert lines.is_file_task(path)
    loaded = load(path, vocabulary, "test", task=None, plain_text=True)
    assert (loaded.task, loaded.split, len(loaded.examples)) == ("questions", "test", 3)
    for example, text in zip(loaded.examples, ["is it dull?", "", "last"], strict=True):
        assert example.inputs.tolist() == [*vocabulary.encode(text), 1]
        assert example.targets.tolist() == [1]
    assert loaded.record(0) | {"inputs": 0, "targets": 0} == {
        "idx": 0,
        "inputs_pretokenized": "is it dull?",
        "inputs": 0,
        "targets": 0,
    }
    assert loaded.judge.modes == frozenset() and loaded.judge.label_names is None
    assert loaded.targets() == [None] * 3
    assert loaded.predictions(["a", "b", "c"]) == ["a", "b", "c"]
    assert loaded.metrics(["a", "b", "c"]) == loaded.score_metrics([1.0, 2.0, 3.0]) == {}


@pytest.mark.parametrize("ending", FORMATS)
def test_a_table_with_inputs_and_targets_needs_no_templates(tmp_path, vocabulary, ending):
    path = tmp_path / f"asked{ending}"
    asked = [["is it {dull}?", "1"], ["why", "0"]]
    FORMATS[ending](path, asked)
    named = [name.replace("sentence", "inputs").replace("label", "targets") for name in HEADER]
    if ending == ".parquet":
        table = pyarrow.parquet.read_table(path).rename_columns(named)
        pyarrow.parquet.write_table(table, path)
    else:
        packed = gzip.open if ending.endswith(".gz") else open
        with packed(path, "rt", encoding="utf-8", newline="") as file:
            text = file.read()
        write(path, text.replace("sentence", "inputs").replace("label", "targets"))
    loaded = load(path, vocabulary, "any", task=None, plain_text=True)
    assert [one["inputs_pretokenized"] for one in map(loaded.record, (0, 1))] == [
        "is it {dull}?",
        "why",
    ]
    assert loaded.targets() == ["1", "0"]
    assert loaded.metrics(["1", " 1 "]) == {"accuracy": 50.0}


def test_a_file_without_inputs_says_what_it_has(tmp_path, vocabulary):
    as_tsv(tmp_path / "asked.tsv", ROWS)
    message = (
        f"{tmp_path}/asked.tsv has no column 'inputs', which a file without a FILE_TASK asks for. "
        "It has: sentence, label."
    )
    with raises(DataError, message):
        load(tmp_path / "asked.tsv", vocabulary, task=None, plain_text=True)


def test_with_templates_a_file_may_be_asked_too(tmp_path, vocabulary):
    as_tsv(tmp_path / "all.tsv", ROWS)
    loaded = load(tmp_path / "all.tsv", vocabulary, "validation", plain_text=True)
    assert (loaded.split, loaded.targets()) == ("validation", [1, 0, -1])


def test_without_right_answers_a_task_can_only_be_asked(tmp_path, vocabulary):
    as_tsv(tmp_path / "train.tsv", ROWS)
    task = dataclasses.replace(FILMS, targets=None)
    loaded = load(tmp_path / "train.tsv", vocabulary, task=task, plain_text=True)
    assert "targets_pretokenized" not in loaded.record(0)
    assert [one.targets.tolist() for one in loaded.examples] == [[1], [1], [1]]
    message = (
        "FileTask.targets is None, but without the right answers there is nothing to learn and "
        "nothing to judge. Say what the answer to a row is; only `infer` can do without."
    )
    with raises(ConfigError, message):
        load(tmp_path / "train.tsv", vocabulary, task=task)


def test_an_empty_text_has_no_examples(tmp_path, vocabulary):
    path = write(tmp_path / "questions.txt", "")
    message = f"{path} is empty or has only the names of its columns: there are no examples in it."
    with raises(DataError, message):
        load(path, vocabulary, task=None, plain_text=True)


def test_the_judge_of_a_file_says_what_it_wants_and_what_it_knows(vocabulary):
    classes, texts, nobody = (
        dataclasses.replace(FILMS, targets=targets).judge(vocabulary)
        for targets in ("{label}", "it is {label}", None)
    )
    assert [one.modes for one in (classes, texts)] == [frozenset({"predict"})] * 2
    assert nobody.modes == frozenset()
    assert [one.label_names for one in (classes, texts, nobody)] == [NAMES, None, None]
    assert all(isinstance(one, Judge) for one in (classes, texts, nobody))


@pytest.mark.parametrize(
    ("lengths", "length"), [(None, 0), ({"inputs": 3}, 0), ({"targets": 30}, 30)]
)
def test_answers_may_be_as_long_as_targets_are_allowed_to_be(tmp_path, vocabulary, lengths, length):
    as_tsv(tmp_path / "train.tsv", ROWS)
    loaded = load(tmp_path / "train.tsv", vocabulary, lengths=lengths)
    assert loaded.answer_length == (length or loaded.longest[1])


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        (
            {"input": 12},
            "TASK_FEATURE_LENGTHS has a length for 'input', but the features of a file task are: "
            "inputs, targets. Did you mean 'inputs'?",
        ),
        (
            {"inputs": 0},
            "TASK_FEATURE_LENGTHS trims the inputs to 0 tokens, but the end token alone is 1.",
        ),
    ],
)
def test_lengths_that_cannot_be_are_refused(tmp_path, vocabulary, lengths, message):
    with raises(ConfigError, message):
        load(tmp_path / "train.tsv", vocabulary, lengths=lengths)


@pytest.mark.parametrize(
    ("rows", "task", "message"),
    [
        (
            [["a", "1"], ["b", "positiv"]],
            FILMS,
            "{path}, line 3 has the label 'positiv', but it should be one of: -1, 0, 1, negative, "
            "positive. Did you mean 'positive'?",
        ),
        (
            ROWS,
            dataclasses.replace(FILMS, inputs="{sentense}"),
            "{path} has no column 'sentense', which FileTask.inputs '{{sentense}}' asks for. Did "
            "you mean 'sentence'? It has: sentence, label.",
        ),
        (
            ROWS,
            dataclasses.replace(FILMS, names={"class": NAMES}),
            "{path} has no column 'class', which FileTask.names asks for. It has: sentence, label.",
        ),
    ],
)
def test_a_file_that_does_not_fit_its_templates_is_refused(
    tmp_path, vocabulary, rows, task, message
):
    path = tmp_path / "train.tsv"
    as_tsv(path, rows)
    with raises(DataError, message.format(path=path)):
        load(path, vocabulary, task=task)
    assert not list(tmp_path.glob("cache/films/[!.]*"))


def test_a_null_that_is_asked_for_is_refused(tmp_path, vocabulary):
    path = write(tmp_path / "train.jsonl", '{"sentence": null, "label": 1}\n')
    message = f"{path}, line 1 has no value for the column 'sentence': it is null."
    with raises(DataError, message):
        load(path, vocabulary)


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("inputs", "a {b", "FileTask.inputs is 'a {b': expected '}' before end of string. Braces "),
        ("inputs", "a {}", "FileTask.inputs is 'a {}', but braces hold the name of a column and "),
        ("targets", "{b!r}", "FileTask.targets is '{b!r}', but braces hold the name of a column "),
        ("inputs", "{b:>3}", "FileTask.inputs is '{b:>3}', but braces hold the name of a column "),
        (
            "names",
            {"b": "yes"},
            "FileTask.names['b'] is 'yes', but it should list what to say for ",
        ),
        ("names", {"b": []}, "FileTask.names['b'] is [], but it should list what to say for the "),
        ("names", {"b": ["x", "x"]}, "FileTask.names['b'] has 'x' twice. Give every class its own"),
        (
            "names",
            {"b": {"x": "yes", "y": "yes"}},
            "FileTask.names['b'] has 'yes' twice. Give every class its own",
        ),
        (
            "names",
            {"b": ["1", "2", "3"]},
            "FileTask.names['b'] calls the class 0 '1', which is the number of another class. If ",
        ),
    ],
)
def test_templates_that_make_no_sense_are_refused_before_any_file_is_read(setting, value, message):
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        dataclasses.replace(FILMS, **{setting: value})
