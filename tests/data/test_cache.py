import contextlib
import errno
import fcntl
import json
import logging
import os
import pathlib
import re
import resource
import subprocess
import sys
import time

import numpy as np
import pytest

from prompt_tuning.data import cache
from prompt_tuning.data.records import UnstorableError
from prompt_tuning.data.task_split import Lengths
from prompt_tuning.errors import DataError
from prompt_tuning.vocabulary import ByteVocabulary
from tests.data.cached_splits import DESCRIPTION, MOMENTS, ROWS, records, row
from tests.fake_bucket import fake_bucket

ROOT = pathlib.Path(__file__).parent.parent.parent


def never():
    raise AssertionError("The split is tokenised again.")


def make(count=100):
    return lambda: records(count)


def start(*arguments, **values):
    command = [sys.executable, "-m", "tests.data.cached_splits", *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **values
    )


def only_folder(tmp_path):
    """Returns the split's folder, with nothing left beside it but the lock."""
    names = sorted(path.name for path in (tmp_path / "tiny").iterdir())
    assert len(names) == 2 and names[0] == ".lock", names
    return tmp_path / "tiny" / names[1]


def same(one, other):
    assert type(one) is type(other) or one.dtype == other.dtype
    np.testing.assert_array_equal(one, other)
    assert np.shape(one) == np.shape(other)


@pytest.mark.parametrize("count", [1, 100, ROWS])
def test_a_split_comes_back_as_it_went_in(tmp_path, count):
    cache.cached(tmp_path, DESCRIPTION, make(count))
    split = cache.cached(tmp_path, DESCRIPTION, never)
    assert len(split.examples) == count
    assert list(split.columns) == list(row(0))[2:]
    for number in {0, 1, 2, 3, count // 2, count - 1} & set(range(count)):
        wanted = row(number)
        for name, column in split.columns.items():
            same(column[number], wanted[name])
        for found, name in zip(split.examples[number], ("inputs", "targets"), strict=True):
            same(found, wanted[name])


def test_examples_are_read_by_any_index_and_slice(tmp_path):
    split = cache.cached(tmp_path, DESCRIPTION, make())
    numbers = split.columns["idx"]
    assert numbers[-1] == 99 and numbers[-100] == 0 and numbers[np.int64(7)] == 7
    assert numbers[3:90:40] == [3, 43, 83]
    assert [example.targets[0] for example in split.examples[97:]] == [97, 98, 99]
    assert len(list(split.examples)) == len(list(numbers)) == 100
    for wrong in (100, -101):
        with pytest.raises(IndexError, match=f"no record {wrong}"):
            split.examples[wrong]


def test_examples_are_views_of_the_file(tmp_path):
    split = cache.cached(tmp_path, DESCRIPTION, make())
    example = split.examples[3]
    assert not example.inputs.flags.owndata and not example.inputs.flags.writeable


def test_lengths_and_fingerprint_are_those_of_the_ids(tmp_path):
    split = cache.cached(
        tmp_path, DESCRIPTION, lambda: records(100, truncated=lambda: {"inputs": 3})
    )
    again = cache.open_cached(only_folder(tmp_path))
    assert split.lengths == again.lengths
    assert again.lengths == {
        "inputs": Lengths(counts=dict.fromkeys(range(1, 6), 20), limit=5, truncated=3),
        "targets": Lengths(counts={1: 50, 2: 50}, limit=None, truncated=0),
    }
    # Other columns and descriptions do not matter to the order of batches; one id does.
    other = cache.cached(tmp_path, DESCRIPTION | {"seed": 1}, make())
    assert other.fingerprint == split.fingerprint
    assert cache.in_memory(DESCRIPTION, make()).fingerprint == split.fingerprint
    assert cache.in_memory(DESCRIPTION, make(99)).fingerprint != split.fingerprint


def test_nobody_may_have_counted_what_was_truncated(tmp_path):
    assert cache.cached(tmp_path, DESCRIPTION, make()).lengths["inputs"].truncated is None


def test_the_records_are_never_all_in_memory(tmp_path):
    seen = []

    def rows():
        for number in range(12_000):
            if number % 4_500 == 0:
                sizes = (path.stat().st_size for path in tmp_path.rglob("*.arrow"))
                seen.append(sum(sizes))
            yield row(number)

    cache.cached(tmp_path, DESCRIPTION, lambda: cache.Records(rows=rows()))
    assert seen[0] < seen[1] < seen[2]


@pytest.mark.parametrize("name", DESCRIPTION)
def test_a_change_of_what_it_was_made_of_makes_another_split(tmp_path, name):
    cache.cached(tmp_path, DESCRIPTION, make(2))
    changed = {"lengths": {"inputs": 6}}.get(name, "other")
    split = cache.cached(tmp_path, DESCRIPTION | {name: changed}, make(3))
    assert len(split.examples) == 3
    assert len(cache.cached(tmp_path, DESCRIPTION, never).examples) == 2


def test_another_format_makes_another_split(monkeypatch):
    before = cache.key_of(DESCRIPTION)
    monkeypatch.setattr(cache, "FORMAT", 2)
    assert cache.key_of(DESCRIPTION) != before


def test_names_of_tasks_and_slices_are_made_fit_for_folders(tmp_path):
    names = {"task": "my:task/one", "split": "train[:10%]"}
    cache.cached(tmp_path, DESCRIPTION | names, make(2))
    [folder] = tmp_path.glob("my_task_one/train__*")
    assert cache.open_cached(folder).description["split"] == "train[:10%]"


def test_the_cache_lies_where_the_user_says(monkeypatch):
    monkeypatch.setenv("PROMPT_TUNING_CACHE", "/disk/splits")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    monkeypatch.setenv("HOME", "/somebody")
    assert cache.default_cache_dir() == "/disk/splits"
    monkeypatch.delenv("PROMPT_TUNING_CACHE")
    assert cache.default_cache_dir() == "/caches/prompt_tuning"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.default_cache_dir() == "/somebody/.cache/prompt_tuning"


def test_no_examples_are_refused_and_leave_nothing(tmp_path):
    message = "^The split 'train' of the task 'tiny' has no examples[.]$"
    for attempt in (cache.cached, lambda _, *rest: cache.in_memory(*rest)):
        with pytest.raises(DataError, match=message):
            attempt(tmp_path, DESCRIPTION, make(0))
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [".lock"]


def test_an_error_of_the_records_leaves_nothing(tmp_path):
    def rows():
        yield row(0)
        raise OSError(errno.ENOSPC, "not ours")

    with pytest.raises(OSError, match="not ours"):
        cache.cached(tmp_path, DESCRIPTION, lambda: cache.Records(rows=rows()))
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [".lock"]
    assert len(cache.cached(tmp_path, DESCRIPTION, make(2)).examples) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"idx": np.int32(1)}, "has 'idx' of int32 with 0 dimensions, but expected int64 with 0"),
        ({"idx": np.zeros(1, np.int64)}, "of int64 with 1 dimensions, but expected int64 with 0"),
        ({"new": 1}, "has the features .*, new, but expected inputs, targets"),
    ],
)
def test_records_have_the_same_features(tmp_path, change, message):
    rows = [row(0), row(1) | change]
    with pytest.raises(DataError, match=f"^Record 1 .*{message}"):
        cache.cached(tmp_path, DESCRIPTION, lambda: cache.Records(rows=rows))


@pytest.mark.parametrize("value", [None, {"a": 1}, 1j, [b"a", "b"], [[1], [1, 2]]])
def test_what_no_file_can_hold_is_kept_in_memory_only(tmp_path, value):
    rows = [row(0) | {"odd": value}]
    with pytest.raises(UnstorableError):
        cache.cached(tmp_path, DESCRIPTION, lambda: cache.Records(rows=rows))
    split = cache.in_memory(DESCRIPTION, lambda: cache.Records(rows=rows))
    assert split.columns["odd"] == [value]
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [".lock"]


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_writer_leaves_nothing_that_counts(tmp_path, moment, caplog):
    caplog.set_level(logging.INFO, "prompt_tuning")
    child = start(tmp_path, moment, os.devnull)
    assert child.stdout.readline().strip() == moment
    child.kill()
    child.communicate()
    [left] = (tmp_path / "tiny").glob(".tmp-*")
    split = cache.cached(tmp_path, DESCRIPTION, make())
    assert len(split.examples) == 100
    assert f"Removing {left}, which a killed run left" in caplog.text
    only_folder(tmp_path)


def test_what_another_machine_may_be_writing_is_left_for_a_day(tmp_path):
    other = tmp_path / "tiny" / ".tmp-somewhere-1-abc"
    other.mkdir(parents=True)
    cache.cached(tmp_path, DESCRIPTION, make(2))
    assert other.exists()
    os.utime(other, (time.time() - 90_000,) * 2)
    cache.cached(tmp_path, DESCRIPTION | {"seed": 1}, make(2))
    assert not other.exists()


def test_of_two_processes_one_tokenises_and_the_other_waits(tmp_path):
    calls = tmp_path / "calls"
    children = [start(tmp_path / "cache", "slowly", calls) for _ in range(2)]
    done = [child.communicate(timeout=60) for child in children]
    assert [child.returncode for child in children] == [0, 0], done
    assert len(calls.read_text().split()) == 1
    assert done[0][0] == done[1][0] != ""
    assert "Waiting for the process that is tokenising into" in done[0][1] + done[1][1]
    only_folder(tmp_path / "cache")


def test_without_locks_both_write_and_one_wins(tmp_path, monkeypatch):
    def no_locks(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    def while_another_one_writes():
        for number in range(50):
            if number == 20:
                cache.cached(tmp_path, DESCRIPTION, make(50))
            yield row(number)

    monkeypatch.setattr(fcntl, "flock", no_locks)
    split = cache.cached(
        tmp_path, DESCRIPTION, lambda: cache.Records(rows=while_another_one_writes())
    )
    assert len(split.examples) == 50
    only_folder(tmp_path)


def damage(folder, expected):
    """Opens a damaged split in both ways, and sees that it is refused and not made again."""
    before = {path: path.read_bytes() for path in folder.iterdir()}
    message = f"The cached split {str(folder)!r} {expected}"
    for attempt in (
        lambda: cache.open_cached(folder),
        lambda: cache.cached(folder.parent.parent, DESCRIPTION, never),
    ):
        with pytest.raises(DataError, match=f"^{re.escape(message)}.* Delete the folder"):
            attempt()
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("name", ["examples.arrow", "split.json"])
def test_a_flipped_byte_anywhere_is_seen(tmp_path, name):
    cache.cached(tmp_path, DESCRIPTION, make(10))
    path = only_folder(tmp_path) / name
    content = path.read_bytes()
    offsets = np.random.default_rng(0).choice(len(content), 150, replace=False)
    for offset in {0, 1, len(content) - 2, len(content) - 1, *offsets.tolist()}:
        for flip in (1, 0x80, 0xFF):
            changed = bytearray(content)
            changed[offset] ^= flip
            path.write_bytes(changed)
            with pytest.raises(DataError, match="Delete the folder"):
                cache.open_cached(path.parent)
    path.write_bytes(content)
    cache.open_cached(path.parent)


def test_damaged_files_are_refused_and_not_made_again(tmp_path):
    cache.cached(tmp_path, DESCRIPTION, make(10))
    folder = only_folder(tmp_path)
    arrow, document = folder / "examples.arrow", folder / "split.json"
    rows, text = arrow.read_bytes(), document.read_text()
    size = len(rows)

    arrow.write_bytes(rows[:-1])
    damage(folder, f"is damaged: examples.arrow has {size - 1} bytes, but expected {size}.")
    arrow.write_bytes(b"")
    damage(folder, f"is damaged: examples.arrow has 0 bytes, but expected {size}.")
    arrow.write_bytes(bytes(size))
    damage(folder, "is damaged: the checksum of examples.arrow is wrong.")
    arrow.unlink()
    damage(folder, "is damaged: examples.arrow cannot be read (")
    arrow.write_bytes(rows)

    document.write_text(text[:-5])
    damage(folder, "is damaged: split.json is not JSON (")
    document.write_text("[]")
    damage(folder, "is damaged: split.json is not JSON (")
    document.write_text(text.replace(" ", ""))
    damage(folder, "is damaged: the checksum of split.json is wrong.")
    document.write_text(text.replace('"format": 1', '"format": 2'))
    damage(folder, "has format 2, but this version reads format 1.")
    document.unlink()
    damage(folder, "is damaged: split.json cannot be read (")
    document.write_text(text)
    assert len(cache.cached(tmp_path, DESCRIPTION, never).examples) == 10


def test_the_split_of_another_key_is_refused(tmp_path):
    cache.cached(tmp_path, DESCRIPTION, make(10))
    cache.cached(tmp_path, DESCRIPTION | {"seed": 1}, make(10))
    one, other = sorted((tmp_path / "tiny").glob("train-*"))
    for path in one.iterdir():
        path.write_bytes((other / path.name).read_bytes())
    wanted = [DESCRIPTION, DESCRIPTION | {"seed": 1}]
    with pytest.raises(DataError, match=r"is damaged: its key is .*, but expected "):
        [cache.cached(tmp_path, one, never) for one in wanted]


@contextlib.contextmanager
def largest_file(count):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("room", [0, 100, 1_000_000])
def test_a_full_disk_is_said_and_leaves_nothing(tmp_path, room):
    with largest_file(room), pytest.raises(DataError) as caught:
        cache.cached(tmp_path, DESCRIPTION, make(ROWS))
    where = re.escape(repr(str(tmp_path / "tiny")))
    assert re.fullmatch(
        f"There is no room for the tokenised split 'train' of 'tiny' in {where}: File too large "
        r"after [\d.]+ [kM]B and [\d,]+ examples of 10,000; about [\d.]+ [kM]B are needed\. "
        r"Make room, or set `CACHE_DIR` to another disk\.",
        str(caught.value),
    )
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [".lock"]
    assert len(cache.cached(tmp_path, DESCRIPTION, make(2)).examples) == 2


def test_a_full_file_system_is_said_and_leaves_nothing(tmp_path):
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path],
        capture_output=True,
        check=False,
    )
    # Only root may mount. A limit on the size of files stands in for a full disk everywhere, above.
    if mounted.returncode:
        pytest.skip("only who may mount a file system can fill it")
    try:
        with pytest.raises(DataError, match=r"There is no room for .*: No space left on device"):
            cache.cached(tmp_path, DESCRIPTION, make(ROWS))
        assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [".lock"]
        assert len(cache.cached(tmp_path, DESCRIPTION, make(2)).examples) == 2
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    where = re.escape(repr(str(tmp_path / "file" / "cache" / "tiny")))
    message = (
        f"^Cannot keep the tokenised split 'train' of 'tiny' in {where}: Not a directory[.] Set "
        "`CACHE_DIR` to a folder that can be written[.]$"
    )
    with pytest.raises(DataError, match=message):
        cache.cached(tmp_path / "file" / "cache", DESCRIPTION, make())


BYTES = ByteVocabulary()


@pytest.fixture
def task_folder(tmp_path):
    for split in ("train", "validation"):
        for lengths in (None, {"inputs": 5}):
            description = DESCRIPTION | {"vocabulary": BYTES.fingerprint, "split": split}
            cache.cached(tmp_path, description | {"lengths": lengths}, make(4))
    return tmp_path / "tiny"


def test_a_split_is_opened_by_its_path(task_folder):
    split = cache.open_split(task_folder, split="train", vocabulary=BYTES, lengths={"inputs": 5})
    assert (split.task, split.split, len(split.examples)) == ("tiny", "train", 4)
    assert split.lengths["inputs"].limit == 5
    assert split.record(3)["text"] == b"number 3\0"
    [folder] = [
        path
        for path in task_folder.glob("validation-*")
        if json.loads((path / "split.json").read_text())["description"]["lengths"] is None
    ]
    for name in (None, "validation"):
        again = cache.open_split(str(folder), split=name, vocabulary=BYTES)
        assert (again.split, again.lengths["inputs"].limit) == ("validation", None)
    assert again.metrics([BYTES.decode(example.targets) for example in again.examples]) == {
        "accuracy": 100
    }


def test_several_splits_at_a_path_are_named(task_folder):
    names = ", ".join(sorted(path.name for path in task_folder.glob("train-*")))
    message = (
        f"2 cached splits in {str(task_folder)!r} can be used: {names}. Give the path of one of "
        "them, or set TASK_FEATURE_LENGTHS."
    )
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        cache.open_split(task_folder, split="train", vocabulary=BYTES)


def test_a_missing_split_at_a_path_is_named_with_those_there_are(task_folder, tmp_path):
    message = (
        f"{str(task_folder)!r} holds no split 'valid'. Did you mean 'validation'? It holds: train, "
        "validation."
    )
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        cache.open_split(task_folder, split="valid", vocabulary=BYTES)
    with pytest.raises(DataError, match=r"^There is no cached split in .*nowhere'"):
        cache.open_split(tmp_path / "nowhere", split="train", vocabulary=BYTES)


def test_a_split_of_another_vocabulary_or_other_lengths_is_refused(task_folder):
    with pytest.raises(DataError, match=r"can be used[.] train-\w+: was made with another vocab"):
        cache.open_split(task_folder, split="train", vocabulary=ByteVocabulary(100))
    message = r"lengths \{'inputs': 5\}, but TASK_FEATURE_LENGTHS is \{'inputs': 9\}"
    with pytest.raises(DataError, match=message):
        cache.open_split(task_folder, split="train", vocabulary=BYTES, lengths={"inputs": 9})


def test_a_path_is_told_from_the_name_of_a_task(task_folder, monkeypatch):
    assert cache.is_cached(str(task_folder)) and cache.is_cached("/no/such/folder")
    monkeypatch.chdir(task_folder.parent)
    assert cache.is_cached("tiny") and not cache.is_cached("other")


def test_a_cached_split_needs_no_tensorflow(task_folder):
    code = (
        "import sys\n"
        "from prompt_tuning.data import cache\n"
        "from prompt_tuning.vocabulary import ByteVocabulary\n"
        "split = cache.open_split(sys.argv[1], split='train', vocabulary=ByteVocabulary(), "
        "lengths={'inputs': 5})\n"
        "print(len(split.examples), {'tensorflow', 'seqio', 'gin', 'grain'} & set(sys.modules))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, task_folder],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "4 set()\n"


def test_splits_may_lie_in_an_object_store():
    with fake_bucket() as bucket:
        child = start("gs://splits/cache", env=os.environ | bucket.environment)
        out, err = child.communicate(timeout=100)
    assert child.returncode == 0, err
    assert re.fullmatch(
        r"The cached split 'gs://splits/cache/tiny/train-\w+' is damaged: \w+-examples.arrow has "
        r"\d+ bytes, but expected \d+[.] Delete the folder; the next run makes it again[.]\n",
        out,
    )
