import pathlib
import pickle
import re
import struct

import ml_dtypes
import numpy as np
import pytest
from etils import epath

from prompt_tuning.checkpoints.numpy_file import (
    load_embeddings,
    load_numpy,
    looks_like_numpy,
    oldest,
    open_numpy,
    save_numpy,
    save_numpy_file,
    write,
)
from prompt_tuning.checkpoints.prompt_file import PromptFile
from prompt_tuning.errors import CheckpointError, ConfigError
from tests.reference_models import GOLDEN

VECTORS = np.random.default_rng(0).normal(size=(5, 32)).astype(np.float32)
NAME = "encoder.prompt.prompt.prompt"
IN_A_RUN = f"numpy_checkpoints/checkpoint_50/{NAME}"


def raises(message):
    return pytest.raises(CheckpointError, match=f"^{re.escape(message)}$")


def test_a_prompt_lies_where_the_original_puts_it(tmp_path):
    save_numpy(tmp_path, 50, VECTORS)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files == [tmp_path / IN_A_RUN]
    np.testing.assert_array_equal(np.load(files[0]), VECTORS)
    np.testing.assert_array_equal(load_numpy(files[0]), VECTORS)


def test_a_prompt_of_the_original_is_read(golden):
    vectors = load_numpy(GOLDEN / "A" / NAME)
    np.testing.assert_array_equal(vectors, golden("A/trajectory.npz")["prompt/50"])


@pytest.mark.parametrize("name", ["prompt.npy", NAME])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4", "bfloat16"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_prompt_may_have_a_suffix_another_float_and_another_order(tmp_path, name, dtype, order):
    dtype = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    stored = np.asarray(VECTORS.astype(dtype), order=order)
    with (tmp_path / name).open("wb") as file:
        np.save(file, stored)
    loaded = load_numpy(tmp_path / name)
    assert loaded.dtype == np.float32 and loaded.flags.c_contiguous
    np.testing.assert_array_equal(loaded, stored.astype(np.float32))


def test_a_file_of_bfloat16_is_raw_bytes_to_numpy(tmp_path):
    np.save(tmp_path / "prompt.npy", VECTORS.astype(ml_dtypes.bfloat16))
    assert np.load(tmp_path / "prompt.npy").dtype == "V2"


def test_numbers_that_float32_cannot_hold_are_refused(tmp_path):
    np.save(tmp_path / "prompt.npy", np.full((1, 2), 1e39))
    with raises(f"{tmp_path}/prompt.npy holds numbers that are too large for float32."):
        load_numpy(tmp_path / "prompt.npy")


def test_a_folder_stands_for_the_newest_prompt_in_it(tmp_path):
    for step in (9, 10, 2):
        save_numpy(tmp_path, step, np.full((1, 2), float(step), np.float32))
    folder = epath.Path(tmp_path / "numpy_checkpoints")
    # What is not whole, and what is something else.
    (folder / "checkpoint_11.tmp-1700000000").mkdir()
    (folder / "checkpoint_12").mkdir()
    for path, step in ((folder, 10), (folder / "checkpoint_2", 2), (folder / "checkpoint_9", 9)):
        assert looks_like_numpy(path)
        file = open_numpy(path)
        assert (file.step, file.base, file.vectors[0, 0]) == (step, None, step)
    np.testing.assert_array_equal(oldest(folder), [[2.0, 2.0]])


def test_a_folder_without_a_prompt_names_what_is_missing(tmp_path):
    (tmp_path / "encoder.prompt.prompt.promt").touch()
    assert not looks_like_numpy(epath.Path(tmp_path))
    message = (
        f"There is no {NAME!r} in {tmp_path} (PROMPT_FILE), and no checkpoint_<step> with one. "
        "Did you mean 'encoder.prompt.prompt.promt'?"
    )
    with raises(message):
        open_numpy(tmp_path)
    assert oldest(epath.Path(tmp_path)) is None


def test_a_file_is_known_by_its_name_or_its_first_bytes(tmp_path):
    np.save(tmp_path / "prompt.npy", VECTORS)
    (tmp_path / "prompt.npy").rename(tmp_path / "trained")
    (tmp_path / "text").write_text("a text")
    (tmp_path / "wrong.npy").write_text("a text")
    known = {name: looks_like_numpy(epath.Path(tmp_path / name)) for name in ("trained", "text")}
    assert known == {"trained": True, "text": False}
    assert looks_like_numpy(epath.Path(tmp_path / "wrong.npy"))
    assert not looks_like_numpy(epath.Path(tmp_path / "nothing"))


def test_a_prompt_of_unknown_step_has_none(tmp_path):
    np.save(tmp_path / "prompt.npy", VECTORS)
    file = open_numpy(tmp_path / "prompt.npy")
    assert (file.step, file.base, file.method) == (None, None, "prompt")


def test_embeddings_are_read_as_extract_writes_them(tmp_path):
    write(epath.Path(tmp_path / "table.npy"), VECTORS)
    np.testing.assert_array_equal(load_embeddings(tmp_path / "table.npy"), VECTORS)
    np.save(tmp_path / "half.npy", VECTORS.astype(ml_dtypes.bfloat16))
    assert load_embeddings(tmp_path / "half.npy").dtype == np.float32


@pytest.mark.parametrize("name", ["missing.npy", ""])
def test_missing_embeddings_are_answered_with_how_to_make_them(tmp_path, name):
    path = tmp_path / name
    message = (
        f"There is no numpy file at {path} (EMBEDDING_FILE). Write it with `prompt-tuning extract "
        "--checkpoint_dir=BASE --variable_path=token_embedder/embedding --output_path=FILE`."
    )
    with raises(message):
        load_embeddings(path)


def test_embeddings_are_a_table(tmp_path):
    np.save(tmp_path / "row.npy", VECTORS[0])
    expected = "an array of shape (32,), a table of embeddings has two dimensions [V, D]."
    with raises(f"{tmp_path}/row.npy holds {expected}"):
        load_embeddings(tmp_path / "row.npy")


def test_there_is_no_task_to_choose(tmp_path):
    with pytest.raises(ConfigError, match=r"^Task 1 was asked for, but .+ holds a single prompt"):
        open_numpy(tmp_path / "prompt.npy", task=1)


def test_a_saved_file_has_exactly_the_name_that_was_asked_for(tmp_path):
    path = epath.Path(tmp_path / NAME)
    save_numpy_file(PromptFile.of(VECTORS), path)
    assert [child.name for child in path.parent.iterdir()] == [NAME]
    assert load_numpy(path).tobytes() == VECTORS.tobytes()
    with raises(f"{path} already exists; choose another path or remove it."):
        write(path, VECTORS)


def test_what_is_not_a_prompt_has_no_numpy_file(tmp_path):
    keys = np.ones((2, 3, 4, 5), np.float32)
    file = PromptFile(arrays={"decoder/prefix/keys": keys, "decoder/prefix/values": keys})
    with pytest.raises(CheckpointError, match=r"^This is not a prompt but prefix, "):
        save_numpy_file(file, epath.Path(tmp_path / "prompt.npy"))
    assert not list(tmp_path.iterdir())


class Trap:
    """What runs when it is unpickled."""

    def __reduce__(self):
        return (pathlib.Path("/nowhere/at/all").unlink, ())


def header(text, version=1):
    size = struct.pack("<H" if version == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes([version, 0]) + size + text.encode("latin1")


def described(descr, shape, order="False"):
    return header(f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}}}\n")


def saved(array, save=np.save):
    def write(path):
        with path.open("wb") as file:
            save(file, array)

    return write


DAMAGED = {
    "nothing": b"",
    "text": b"only text",
    "another magic": b"\x93NUMPZ" + described("'<f4'", (1, 1))[6:] + bytes(4),
    "an unknown version": described("'<f4'", (1, 1)).replace(b"\x01\x00", b"\x09\x00", 1),
    "version 3": header("{}", version=3),
    "a pickled object": pickle.dumps(Trap()),
    "an array of objects": saved(np.array([[Trap()]])),
    "an archive": saved(VECTORS, np.savez),
    "records": saved(np.zeros((2, 2), [("a", "f4"), ("b", "f4")])),
    "a header of records": described("[('a', '<f4')]", (1, 1)) + bytes(4),
    "arrays inside an array": described("('<f4', (3,))", (1, 1)) + bytes(12),
    "whole numbers": saved(np.ones((2, 2), np.int32)),
    "texts": saved(np.array([["a", "b"]])),
    "complex numbers": saved(np.ones((2, 2), np.complex64)),
    "a dtype that is none": described("'nonsense'", (1, 1)) + bytes(4),
    "a huge shape": described("'<f4'", (10**12, 10**12)),
    "a shape of many digits": described("'<f4'", f"(1, 1{'0' * 5000})"),
    "a negative shape": described("'<f4'", (-1, -4)) + bytes(16),
    "a shape that is none": described("'<f4'", "'ab'"),
    "a shape of truths": described("'<f4'", "(True, 1.5)"),
    "an order that is none": described("'<f4'", (1, 1), order="'F'") + bytes(4),
    "more numbers than the shape says": described("'<f4'", (1, 2)) + bytes(12),
    "fewer numbers than the shape says": described("'<f4'", (1, 2)) + bytes(4),
    "a header of other keys": header("{'descr': '<f4'}\n"),
    "a header that is no literal": header("{__import__('os')}\n"),
    "a header of many brackets": header("(" * 9000),
    "a header that is too long": header(" " * 60_000),
    "a header that is longer than the file": b"\x93NUMPY\x02\x00\xff\xff\xff\x7f{",
    "a header of broken text": header("{'descr': '<f4\n"),
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED.keys())
def test_what_is_not_an_array_of_floats_is_refused(tmp_path, content):
    path = tmp_path / NAME
    if callable(content):
        content(path)
    else:
        path.write_bytes(content)
    with pytest.raises(CheckpointError) as error:
        load_numpy(path)
    assert str(path) in str(error.value)
    assert len(str(error.value)) < 1000


def test_an_array_that_is_cut_off_anywhere_is_refused(tmp_path):
    save_numpy(tmp_path, 50, VECTORS)
    path = tmp_path / IN_A_RUN
    whole = path.read_bytes()
    for length in range(0, len(whole), 37):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            load_numpy(path)


@pytest.mark.parametrize("shape", [(), (160,), (1, 5, 32), (0, 32), (5, 0)])
def test_an_array_of_other_dimensions_is_refused(tmp_path, shape):
    path = tmp_path / "prompt.npy"
    np.save(path, np.zeros(shape, np.float32))
    message = f"{path} holds an array of shape {shape}, a prompt has two dimensions [P, D]."
    with raises(message):
        load_numpy(path)


def test_a_file_that_is_not_there_names_its_setting(tmp_path):
    with raises(f"No prompt file at {tmp_path}/prompt.npy (PROMPT_FILE)."):
        open_numpy(tmp_path / "prompt.npy")
