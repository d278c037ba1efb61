import contextlib
import itertools
import os

import pytest
from etils import epath

from prompt_tuning.checkpoints.containers import storage
from prompt_tuning.errors import ConfigError
from prompt_tuning.evaluation.shard_file import COMPLETED, RECORD, ShardFile

MADE_OF = {"base": "1234", "infer.mode": "'predict'"}
CHUNKS = [b"one\ntwo\n", b"three\nfour\n", b"five\n"]
WHOLE = b"".join(CHUNKS)
NAME = "sst2-predict.jsonl-00000-of-00001"


def shard(folder, **changes):
    settings = {"task": "sst2", "mode": "predict", "made_of": MADE_OF} | changes
    return ShardFile(folder=epath.Path(folder), **settings)


def write(file, *, merge=True, chunks=CHUNKS):
    """Does what `infer` does; returns the chunks that were not there."""
    if file.is_complete():
        if merge:
            file.clean()
        return []
    missing = [number for number in range(len(chunks)) if not file.has_chunk(number)]
    for number in missing:
        file.write_chunk(number, chunks[number])
    file.finish(len(chunks), merge=merge)
    return missing


def tree(folder):
    """All files below a folder and what is in them."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def lay_out(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def test_the_names_are_those_of_t5x(tmp_path):
    file = shard(tmp_path, mode="score", shard=2, shards=10)
    for number, lines in enumerate(CHUNKS):
        file.write_chunk(number, lines)
    chunk = "tmp-sst2-00002-of-00010/sst2-score.jsonl-00002-of-00010-chunk"
    numbers = range(len(CHUNKS))
    assert tree(tmp_path).keys() == {
        f"tmp-sst2-00002-of-00010/{RECORD}",
        *(f"{chunk}{number:05}" for number in numbers),
        *(f"{chunk}{number:05}.COMPLETED" for number in numbers),
    }
    file.finish(len(CHUNKS))
    assert tree(tmp_path).keys() == {
        "sst2-score.jsonl-00002-of-00010",
        "sst2-score.jsonl-00002-of-00010.COMPLETED",
    }


def test_chunks_are_put_together_in_their_order_whatever_the_order_they_came_in(tmp_path):
    file = shard(tmp_path)
    for number in (2, 0, 1):
        file.write_chunk(number, CHUNKS[number])
    file.finish(3)
    assert file.path.read_bytes() == WHOLE


def test_more_chunks_than_a_name_has_digits_for_keep_their_order(tmp_path):
    lines = [b"%d\n" % number for number in range(12)]
    file = shard(tmp_path)
    write(file, chunks=lines)
    assert file.path.read_bytes() == b"".join(lines)


def test_what_is_complete_is_not_made_again(tmp_path):
    assert write(shard(tmp_path)) == [0, 1, 2]
    before = tree(tmp_path)
    assert write(shard(tmp_path)) == []
    assert tree(tmp_path) == before


def test_without_merging_the_chunks_stay(tmp_path):
    assert write(shard(tmp_path), merge=False) == [0, 1, 2]
    chunk = f"tmp-sst2-00000-of-00001/{NAME}-chunk"
    files = tree(tmp_path)
    assert [files[f"{chunk}{number:05}"] for number in range(3)] == CHUNKS
    assert NAME not in files and f"{NAME}{COMPLETED}" in files
    assert write(shard(tmp_path), merge=False) == []
    assert tree(tmp_path) == files


def test_a_shard_without_examples_is_an_empty_file(tmp_path):
    assert write(shard(tmp_path), chunks=[]) == []
    assert tree(tmp_path).keys() == {NAME, f"{NAME}{COMPLETED}"}
    assert shard(tmp_path).is_complete()


def test_shards_and_tasks_leave_each_other_alone(tmp_path):
    first = shard(tmp_path, shard=0, shards=2)
    others = [shard(tmp_path, shard=1, shards=2), shard(tmp_path, task="sst2-x", shards=2)]
    for file in (first, *others):
        file.write_chunk(0, file.task.encode())
    first.finish(1)
    assert first.is_complete()
    for file in others:
        assert not file.is_complete() and file.has_chunk(0)
        file.finish(1)
    assert sorted(one for name, one in tree(tmp_path).items() if COMPLETED not in name) == [
        b"sst2",
        b"sst2",
        b"sst2-x",
    ]


def moments_of(folder, work, monkeypatch):
    """Collects what lies in a folder before and after every write, and in the midst of it."""
    found = []
    replaced_file = storage.replaced_file

    @contextlib.contextmanager
    def watched(path):
        found.append(tree(folder))
        with replaced_file(path) as partial:
            yield partial
            found.append(tree(folder))
            # Written as far as half, under the name that it has before it is whole.
            name, content = partial.relative_to(folder).as_posix(), partial.read_bytes()
            found.append(found[-1] | {name: content[: len(content) // 2]})
        found.append(tree(folder))

    with monkeypatch.context() as patch:
        patch.setattr(storage, "replaced_file", watched)
        work()
    return found


@pytest.mark.parametrize("merge", [True, False], ids=["merged", "in chunks"])
def test_a_kill_between_any_two_writes_loses_and_doubles_nothing(tmp_path, monkeypatch, merge):
    whole = tmp_path / "whole"
    moments = moments_of(whole, lambda: write(shard(whole), merge=merge), monkeypatch)
    expected = tree(whole)
    # The record, three chunks with their markers, the whole and its marker.
    assert len(moments) == 4 * (1 + 2 * 3 + merge + 1)
    for number, moment in enumerate(moments):
        folder = lay_out(tmp_path / str(number), moment)
        folder.mkdir(exist_ok=True)
        marked = [name for name in moment if name.endswith(COMPLETED) and "-chunk" in name]
        left = [] if f"{NAME}{COMPLETED}" in moment else [0, 1, 2][len(marked) :]
        assert write(shard(folder), merge=merge) == left, moment
        assert tree(folder) == expected, moment


def test_a_kill_while_chunks_are_removed_loses_nothing(tmp_path):
    file = shard(tmp_path / "whole")
    for number, lines in enumerate(CHUNKS):
        file.write_chunk(number, lines)
    chunks = tree(tmp_path / "whole")
    file.finish(3)
    expected = tree(tmp_path / "whole")
    names = sorted(chunks)
    for number, left in enumerate(
        itertools.chain(*((names[n:], names[:n]) for n in range(len(names) + 1)))
    ):
        folder = lay_out(tmp_path / str(number), expected | {name: chunks[name] for name in left})
        assert write(shard(folder)) == []
        assert tree(folder) == expected


def test_a_chunk_counts_only_with_its_marker(tmp_path):
    file = shard(tmp_path)
    file.write_chunk(0, CHUNKS[0])
    file.write_chunk(1, CHUNKS[1])
    folder = tmp_path / "tmp-sst2-00000-of-00001"
    os.remove(folder / f"{NAME}-chunk00001{COMPLETED}")
    (folder / f"{NAME}-chunk00001").write_bytes(b"half a li")
    assert [file.has_chunk(number) for number in range(3)] == [True, False, False]
    assert write(file) == [1, 2]
    assert file.path.read_bytes() == WHOLE


OTHERS = {
    "another value": ({"base": "5678"}, "base: was 1234, is 5678"),
    "one more": ({"seed": "3"}, "seed: was not set, is 3"),
}


@pytest.mark.parametrize("case", OTHERS)
@pytest.mark.parametrize("finished", [True, False], ids=["complete", "begun"])
@pytest.mark.parametrize("merge", [True, False], ids=["merged", "in chunks"])
def test_predictions_of_something_else_are_never_mixed_in(tmp_path, case, finished, merge):
    changes, difference = OTHERS[case]
    if finished:
        write(shard(tmp_path), merge=merge)
    else:
        shard(tmp_path).write_chunk(0, CHUNKS[0])
    before = tree(tmp_path)
    where = tmp_path / (NAME if finished else "tmp-sst2-00000-of-00001")
    with pytest.raises(ConfigError) as caught:
        shard(tmp_path, made_of=MADE_OF | changes).is_complete()
    assert str(caught.value) == (
        f"{where} holds predictions of something else:\n  {difference}\nChoose another "
        "INFER_OUTPUT_DIR, or remove what is in this one."
    )
    assert tree(tmp_path) == before


def test_chunks_that_nobody_knows_the_origin_of_are_refused(tmp_path):
    shard(tmp_path).write_chunk(0, CHUNKS[0])
    folder = tmp_path / "tmp-sst2-00000-of-00001"
    os.remove(folder / RECORD)
    with pytest.raises(ConfigError) as caught:
        shard(tmp_path).is_complete()
    assert str(caught.value) == (
        f"{folder} holds chunks of predictions, but no made_of.json says what they are of. Choose "
        "another INFER_OUTPUT_DIR, or remove what is in this one."
    )


@pytest.mark.parametrize("merged", [True, False], ids=["merged", "in chunks"])
def test_what_t5x_has_completed_counts(tmp_path, merged):
    # Its markers are empty, and it keeps no record beside its chunks.
    chunk = f"tmp-sst2-00000-of-00001/{NAME}-chunk00000"
    files = {NAME: WHOLE} if merged else {chunk: WHOLE, f"{chunk}{COMPLETED}": b""}
    lay_out(tmp_path, files | {f"{NAME}{COMPLETED}": b""})
    before = tree(tmp_path)
    assert write(shard(tmp_path), merge=merged) == []
    assert tree(tmp_path) == before


def test_a_marker_whose_results_were_removed_counts_for_nothing(tmp_path):
    write(shard(tmp_path))
    os.remove(tmp_path / NAME)
    assert write(shard(tmp_path)) == [0, 1, 2]
    assert (tmp_path / NAME).read_bytes() == WHOLE


def test_nothing_is_written_where_nothing_is_asked(tmp_path):
    file = shard(tmp_path / "new")
    assert not file.is_complete() and not file.has_chunk(0)
    assert not (tmp_path / "new").exists()
