import re

import pytest

from prompt_tuning.data.split_files import find_split, in_folder, task_name
from prompt_tuning.errors import DataError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name in (
        "train.tsv",
        "dev.tsv",
        "books.train.tsv",
        "books.test.tsv",
        "all.tsv",
        "train_1.dev.csv",
    ):
        (tmp_path / name).touch()
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "part.csv.gz").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "split", "file"),
    [
        ("train.tsv", "train", "train.tsv"),
        ("train.tsv", "dev", "dev.tsv"),
        ("books.train.tsv", "test", "books.test.tsv"),
        ("all.tsv", "train", "all.tsv"),
        ("train_1.train.csv", "dev", "train_1.dev.csv"),
        ("{split}.tsv", "dev", "dev.tsv"),
        ("{split}/part.csv.gz", "test", "test/part.csv.gz"),
    ],
)
def test_a_split_lies_where_its_name_stands_for_train(folder, name, split, file):
    found = find_split(str(folder / name), split, {})
    assert found == str(folder / file)
    assert find_split(name, split, {}) == file


def test_a_split_may_be_named_outright(folder):
    assert find_split("train.tsv", "validation", {"validation": "dev.tsv"}) == "dev.tsv"


@pytest.mark.parametrize(
    ("name", "split", "splits", "file"),
    [
        ("all.tsv", "validation", {}, "all.tsv"),
        ("all.tsv", "train", {}, "all.tsv"),
        ("all.tsv", "test", {"test": "dev.tsv"}, "dev.tsv"),
        ("train.tsv", "dev", {}, "dev.tsv"),
        ("books.train.tsv", "test", {}, "books.test.tsv"),
        ("{split}.tsv", "dev", {}, "dev.tsv"),
        ("{split}/part.csv.gz", "test", {}, "test/part.csv.gz"),
    ],
)
def test_a_file_without_a_place_for_a_split_may_be_all_of_them(folder, name, split, splits, file):
    assert find_split(name, split, splits, itself=True) == file


def test_a_folder_of_a_split_stands_for_no_other_split(folder):
    (folder / "train").mkdir()
    (folder / "train" / "part.csv.gz").touch()
    with pytest.raises(DataError, match=r"no split 'dev': there is no file 'dev/part\.csv\.gz'"):
        find_split("{split}/part.csv.gz", "dev", {}, itself=True)


MISSING = {
    "derived": (
        ("train.tsv", "validation", {}),
        "there is no file 'validation.tsv', its name with 'validation' in place of 'train'. There "
        "are: all, dev, train.",
    ),
    "misspelt": (
        ("books.train.tsv", "tset", {}),
        "there is no file 'books.tset.tsv', its name with 'tset' in place of 'train'. There are: "
        "test, train. Did you mean 'test'?",
    ),
    "no place": (
        ("all.tsv", "validation", {}),
        "its file's name has no 'train' that 'validation' could stand in place of.",
    ),
    "part of a word": (
        ("training.tsv", "dev", {}),
        "its file's name has no 'train' that 'dev' could stand in place of.",
    ),
    "pattern": (("{split}/part.csv.gz", "dev", {}), "there is no file 'dev/part.csv.gz'."),
    "named": (
        ("train.tsv", "test", {"test": "x.tsv"}),
        "`FileTask.splits` says 'x.tsv', but there is no such file. There are: all, dev, test, "
        "train. Did you mean 'test'?",
    ),
}


@pytest.mark.parametrize("case", MISSING)
def test_a_missing_split_says_where_it_was_looked_for_and_what_is_there(folder, case):
    (name, split, splits), reason = MISSING[case]
    message = (
        f"The file task {name!r} has no split {split!r}: {reason} Name its file in "
        f"`FileTask.splits = {{{split!r}: 'PATH'}}`, or choose another split (EVAL_SPLIT for the "
        "one to evaluate on)."
    )
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        find_split(name, split, splits)


def test_a_missing_file_of_training_is_named_with_those_beside_it(folder):
    with pytest.raises(
        DataError,
        match=r"^MIXTURE_OR_TASK_NAME is the file 'trian\.tsv', but there "
        r"is no such file\. Did you mean 'train\.tsv'",
    ):
        find_split("trian.tsv", "train", {})
    with pytest.raises(DataError, match=r"'none/x\.tsv', but there is no such file\.$"):
        find_split("none/x.tsv", "train", {})


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/data/sst2/train.tsv", "sst2"),
        ("/data/amazon/books.train.tsv", "books"),
        ("/data/sst2_train.jsonl.gz", "sst2"),
        ("/data/sst2/{split}.csv", "sst2"),
        ("/data/sst2/{split}/{split}.csv", "sst2"),
        ("/data/rte/{split}/part.parquet", "part"),
        ("/data/training.tsv", "training"),
        ("gs://bucket/trec/train.tsv", "trec"),
        ("train.tsv", "task"),
    ],
)
def test_a_task_is_called_after_its_file_or_folder(path, name):
    assert task_name(path) == name


def test_a_folder_names_the_task_in_it(tmp_path):
    assert in_folder(tmp_path) == f"{tmp_path}/{{split}}.tsv"
    assert in_folder(tmp_path, "books.{split}.csv") == f"{tmp_path}/books.{{split}}.csv"
