import json
import re
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from etils import epath
from hypothesis import given, settings
from hypothesis import strategies as st

from prompt_tuning.checkpoints.containers import safetensors_file
from prompt_tuning.checkpoints.containers.safetensors_file import (
    DTYPES,
    open_safetensors,
    write_safetensors,
)
from prompt_tuning.checkpoints.containers.stored import Stored
from prompt_tuning.errors import CheckpointError

RNG = np.random.default_rng(0)
# Every dtype in every kind of shape, under names that are not sorted as the file is.
ARRAYS = {
    f"{'zyx'[i % 3]}.{code} {shape}": np.asarray(10 * RNG.normal(size=shape)).astype(dtype)
    for i, (code, dtype) in enumerate(DTYPES.items())
    for shape in [(), (3,), (0, 4), (5, 4), (2, 3, 4)]
} | {'é " \\ names': np.zeros(3, np.float32)}

SOME = RNG.normal(size=(5, 4)).astype(np.float32)


def stored(arrays):
    return {name: Stored.of(array, name) for name, array in arrays.items()}


@pytest.fixture
def path(tmp_path):
    return epath.Path(tmp_path / "model.safetensors")


def write_header(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


@pytest.mark.parametrize("block", [1, 50, 10**6])
def test_files_are_those_of_the_library_byte_for_byte(path, monkeypatch, block):
    monkeypatch.setattr(safetensors_file, "_BLOCK", block)
    write_safetensors(path, stored(ARRAYS), {"format": "pt"})
    assert path.read_bytes() == safetensors.numpy.save(ARRAYS, metadata={"format": "pt"})


def test_the_library_reads_what_we_write(path):
    metadata = {"format": "pt", "step": "7"}
    write_safetensors(path, stored(ARRAYS), metadata)
    with safetensors.safe_open(path, framework="numpy") as reader:
        assert reader.metadata() == metadata
        assert set(reader.keys()) == set(ARRAYS)
        for name, array in ARRAYS.items():
            np.testing.assert_array_equal(reader.get_tensor(name), array, strict=True)


def test_we_read_what_the_library_writes(path):
    path.write_bytes(safetensors.numpy.save(ARRAYS, metadata={"format": "pt", "step": "7"}))
    opened = open_safetensors(path)
    assert opened.metadata == {"format": "pt", "step": "7"}
    assert set(opened.tensors) == set(ARRAYS)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(opened.tensors[name].load(), array, strict=True)


def test_bfloat16_keeps_its_bits(path):
    bits = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    write_safetensors(path, stored({"x": bits.view(ml_dtypes.bfloat16)}), {})
    loaded = open_safetensors(path).tensors["x"].load()
    np.testing.assert_array_equal(loaded.view(np.uint16), bits)


@settings(max_examples=40)
@given(data=st.data(), shape=st.lists(st.integers(1, 5), min_size=1, max_size=3))
def test_parts_are_those_of_the_whole(tmp_path_factory, data, shape):
    array = RNG.normal(size=shape).astype(np.float32)
    path = epath.Path(tmp_path_factory.mktemp("parts") / "x.safetensors")
    write_safetensors(path, stored({"before": SOME, "x": array}), {})
    index = tuple(slice(*sorted(data.draw(st.tuples(*[st.integers(0, n)] * 2)))) for n in shape)
    x = open_safetensors(path).tensors["x"]
    np.testing.assert_array_equal(x[index], array[index], strict=True)
    np.testing.assert_array_equal(x.transposed()[index[::-1]], array[index].T, strict=True)


def test_only_the_rows_that_are_needed_are_read(path):
    # A file of 8 GB on a disk that has none of it.
    rows, columns = 2_000_000, 1_000
    header = {
        "x": {"dtype": "F32", "shape": [rows, columns], "data_offsets": [0, 4 * rows * columns]}
    }
    write_header(path, header)
    begin = path.stat().length
    with open(path, "r+b") as file:
        file.truncate(begin + 4 * rows * columns)
        file.seek(begin + 4 * 1_234_567 * columns)
        file.write(np.arange(columns, dtype=np.float32).tobytes())
    tracemalloc.start()
    part = open_safetensors(path).tensors["x"][slice(1_234_567, 1_234_569), slice(None)]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    np.testing.assert_array_equal(part, [np.arange(columns), np.zeros(columns)])
    assert peak < 1_000_000


def made(i, values):
    """Returns an array of 2 MB that is made anew whenever it is read."""
    return Stored(
        shape=(500, 1000),
        dtype=np.dtype(np.float32),
        read=lambda index: values(i)[index],
        where=str(i),
    )


def test_a_stack_is_written_a_layer_at_a_time(path, monkeypatch):
    monkeypatch.setattr(safetensors_file, "_BLOCK", 100_000)

    layers = [made(i, lambda i: np.full((500, 1000), i, np.float32)) for i in range(8)]
    tracemalloc.start()
    write_safetensors(path, {"x": Stored.stack(layers)}, {})
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * 2_000_000
    written = open_safetensors(path).tensors["x"]
    np.testing.assert_array_equal(written[:, 499:500, 3:4].ravel(), np.arange(8))


def test_writing_holds_one_array_at_a_time(path, monkeypatch):
    monkeypatch.setattr(safetensors_file, "_BLOCK", 100_000)

    tensors = {str(i): made(i, lambda i: np.full((1000, 500), i, np.float32).T) for i in range(10)}
    tracemalloc.start()
    write_safetensors(path, tensors, {})
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert path.stat().length > 20_000_000
    assert peak < 1.2 * 2_000_000


def test_a_write_that_fails_leaves_nothing(path):
    def fails(index):
        raise CheckpointError("cut short")

    bad = Stored(shape=(3,), dtype=np.dtype(np.float32), read=fails, where="bad")
    with pytest.raises(CheckpointError, match="cut short"):
        write_safetensors(path, stored(ARRAYS) | {"bad": bad}, {})
    assert list(path.parent.iterdir()) == []


def test_a_file_that_is_there_is_not_replaced(path):
    path.write_text("precious")
    with pytest.raises(CheckpointError, match="already exists"):
        write_safetensors(path, stored(ARRAYS), {})
    assert path.read_text() == "precious"


def test_a_dtype_without_a_place_in_the_format_is_refused(path):
    with pytest.raises(CheckpointError, match=r"'x' .* of dtype complex64 cannot be stored"):
        write_safetensors(path, stored({"x": np.zeros(3, np.complex64)}), {})


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


DATA = bytes(16)
# Header, and what is said about it.
DAMAGED = {
    "text": (b"not json", "damaged or of another format"),
    "no text": (b"\xff\xfe{}", "damaged or of another format"),
    "a list": (b"[]", "holds a JSON list, expected an object"),
    "a deep list": (b"[" * 100_000, "damaged or of another format"),
    "a number without end": (b'{"x": ' + b"9" * 10_000 + b"}", "damaged or of another format"),
    "a name twice": (
        b'{"x": {"dtype": "U8"}, "x": {"dtype": "U8"}}',
        "'x' stands in it twice",
    ),
    "a dtype twice": (b'{"x": {"dtype": "U8", "dtype": "I8"}}', "'dtype' stands in it twice"),
    "an array that is a number": ({"x": 3}, "without dtype, shape and data_offsets"),
    "no shape": ({"x": {"dtype": "F32", "data_offsets": [0, 8]}}, "without dtype, shape"),
    "another field": ({"x": entry() | {"more": 1}}, "without dtype, shape and data_offsets alone"),
    "an unknown dtype": ({"x": entry("F8_E4M3")}, "has dtype 'F8_E4M3', expected one of U64"),
    "a dtype that is a list": ({"x": entry([])}, "has dtype a list of 0"),
    "a negative size": ({"x": entry(shape=[-2])}, "a shape that is not one"),
    "a fraction": ({"x": entry(shape=[2.0])}, "a shape that is not one"),
    "a truth value": ({"x": entry(shape=[True, 2])}, "a shape that is not one"),
    "a shape that is a number": ({"x": entry(shape=2)}, "a shape that is not one"),
    "too many dimensions": ({"x": entry(shape=[1] * 40 + [2])}, "a shape that is not one"),
    "a size beyond all": ({"x": entry(shape=[2**62, 4])}, "a shape that is not one"),
    # Times 4 it is 0 in 64 bits.
    "a product beyond all": (
        {"x": entry(shape=[2**31, 2**31], offsets=[0, 0])},
        "bytes 0 to 0, which are 0",
    ),
    "one offset": ({"x": entry(offsets=[0])}, "data_offsets that are not two"),
    "backward offsets": ({"x": entry(offsets=[8, 0])}, "bytes 8 to 0, which are -8"),
    "another size": ({"x": entry(shape=[3])}, "shape (3,) is said to lie in bytes 0 to 8"),
    "past the end": ({"x": entry(shape=[8], offsets=[0, 32])}, "its header describes 32"),
    "bytes left over": ({"x": entry()}, "16 bytes of data, its header describes 8"),
    "a hole": (
        {"x": entry(shape=[1], offsets=[0, 4]), "y": entry(offsets=[8, 16])},
        "'y' begins at byte 8 of the data, but the arrays before it end at byte 4",
    ),
    "an overlap": ({"x": entry(shape=[3], offsets=[0, 12]), "y": entry(offsets=[8, 16])}, "'y'"),
    "metadata of numbers": ({"__metadata__": {"step": 3}, "x": entry()}, "metadata other than"),
    "metadata that is a list": ({"__metadata__": [], "x": entry()}, "metadata other than texts"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_wrong_header_is_refused(path, name):
    header, message = DAMAGED[name]
    write_header(path, header, DATA)
    with pytest.raises(CheckpointError, match=re.escape(message)) as error:
        open_safetensors(path)
    assert str(path) in str(error.value)
    assert len(str(error.value)) < 600


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 100_000_001, 17])
def test_a_header_longer_than_the_file_is_not_allocated(path, length):
    path.write_bytes(length.to_bytes(8, "little") + DATA)
    with pytest.raises(CheckpointError, match=rf"it has 24 bytes, and its header .* {length}\."):
        open_safetensors(path)


def test_a_file_cut_anywhere_is_refused(path):
    whole = safetensors.numpy.save({"a": SOME, "b": SOME.astype(ml_dtypes.bfloat16)})
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        with pytest.raises(CheckpointError):
            open_safetensors(path)


def test_a_file_that_is_cut_after_it_was_opened_is_refused(path):
    write_safetensors(path, stored({"x": SOME}), {})
    x = open_safetensors(path).tensors["x"]
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match="ended 4 bytes before an array did"):
        x.load()
    path.unlink()
    with pytest.raises(CheckpointError, match="is gone"):
        x.load()


@given(position=st.integers(0, 10**6), value=st.integers(0, 255))
def test_a_changed_byte_is_harmless(tmp_path_factory, position, value):
    whole = bytearray(safetensors.numpy.save({"a": SOME}, metadata={"b": "c"}))
    whole[position % len(whole)] = value
    path = epath.Path(tmp_path_factory.mktemp("changed") / "x.safetensors")
    path.write_bytes(whole)
    try:
        for one in open_safetensors(path).tensors.values():
            one.load()
    except CheckpointError:
        pass


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir()])
def test_what_is_no_file_is_refused(path, make):
    make(path)
    with pytest.raises(CheckpointError, match=r"There is no file at|is a folder"):
        open_safetensors(path)
