import gzip
import json
import re
import resource
import zlib

import ml_dtypes
import numpy as np
import pytest
import tensorstore as ts
from etils import epath

from prompt_tuning.checkpoints.containers import zarr
from prompt_tuning.checkpoints.containers.stored import Stored
from prompt_tuning.checkpoints.containers.zarr_layout import chunk_shape
from prompt_tuning.errors import CheckpointError

ARRAY = np.arange(7 * 10, dtype=np.float32).reshape(7, 10)
ALL = (slice(None), slice(None))


GZIP = {"id": "gzip", "level": 1}


def written(folder, array=ARRAY, chunks=(3, 4), driver="zarr", compressor=GZIP):
    """Writes an array with tensorstore."""
    if driver == "zarr":
        metadata = {"chunks": chunks, "compressor": compressor}
    else:
        metadata = {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunks}}}
    spec = {"driver": driver, "kvstore": f"file://{folder}/array/", "metadata": metadata}
    opened = ts.open(spec, create=True, dtype=array.dtype, shape=array.shape).result()
    opened.write(array).result()


def opened(folder, header=".zarray"):
    path = epath.Path(folder)
    return zarr.open_arrays(zarr.open_store(path), {"x": ("array",)}, path, header=header)["x"]


def header(folder, **fields):
    """Changes fields of an array's header."""
    file = folder / "array" / ".zarray"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


KINDS = {
    "float32": ARRAY,
    "bfloat16": ARRAY.astype(ml_dtypes.bfloat16),
    "float64": ARRAY.astype(np.float64),
    "int32": ARRAY.astype(np.int32),
    "bool": ARRAY > 20,
    "big-endian": ARRAY.astype(">f4"),
}


@pytest.mark.parametrize("driver", ["zarr", "zarr3"])
@pytest.mark.parametrize("array", KINDS.values(), ids=KINDS.keys())
def test_arrays_are_read_bit_for_bit(tmp_path, array, driver):
    written(tmp_path, array.astype(array.dtype.newbyteorder("=")), driver=driver)
    if array.dtype.byteorder == ">" and driver == "zarr":
        header(tmp_path, dtype=">f4", compressor=None)
        for file in (tmp_path / "array").glob("?.?"):
            file.unlink()
        padded = np.zeros((9, 12), ">f4")
        padded[:7, :10] = array
        for i in range(3):
            for j in range(3):
                part = padded[3 * i : 3 * i + 3, 4 * j : 4 * j + 4]
                (tmp_path / "array" / f"{i}.{j}").write_bytes(part.tobytes())
    stored = opened(tmp_path, ".zarray" if driver == "zarr" else "zarr.json")
    assert stored.dtype == array.dtype.newbyteorder("=")
    np.testing.assert_array_equal(stored.load(), array)


PARTS = [ALL, (slice(2, 4), slice(3, 9)), (slice(6, 7), slice(None)), (slice(5, 5), slice(0, 3))]


@pytest.mark.parametrize("part", PARTS, ids=str)
@pytest.mark.parametrize("chunks", [(3, 4), (7, 10), (1, 10), (2, 1)], ids=str)
def test_parts_are_those_of_the_whole(tmp_path, chunks, part):
    written(tmp_path, chunks=chunks)
    np.testing.assert_array_equal(opened(tmp_path)[part], ARRAY[part])


def test_columns_may_lie_together(tmp_path):
    written(tmp_path, chunks=(7, 10))
    header(tmp_path, order="F", compressor=None)
    (tmp_path / "array" / "0.0").write_bytes(ARRAY.tobytes(order="F"))
    np.testing.assert_array_equal(opened(tmp_path).load(), ARRAY)


def test_one_number_is_an_array(tmp_path):
    written(tmp_path, np.asarray(1_100_000, np.int32), chunks=())
    assert opened(tmp_path).load() == 1_100_000


def test_only_the_chunks_of_a_part_are_read(tmp_path):
    written(tmp_path)
    for name in ("0.0", "1.1", "2.2"):
        (tmp_path / "array" / name).unlink()
    np.testing.assert_array_equal(opened(tmp_path)[3:, :4], ARRAY[3:, :4])


def test_a_missing_chunk_is_named(tmp_path):
    written(tmp_path)
    (tmp_path / "array" / "1.2").unlink()
    message = f"{tmp_path}/array has no chunk '1.2'. The checkpoint is incomplete; copy it again."
    with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$"):
        opened(tmp_path).load()


def test_the_first_folder_that_has_the_array_counts(tmp_path):
    written(tmp_path)
    path = epath.Path(tmp_path)
    folders = {"x": ("models/array", "array")}
    stored = zarr.open_arrays(zarr.open_store(path), folders, path)["x"]
    np.testing.assert_array_equal(stored.load(), ARRAY)


def cut(length):
    def damage(folder):
        file = folder / "array" / "1.1"
        file.write_bytes(file.read_bytes()[:length])

    return damage


def content(make):
    """Replaces a chunk, whose bytes are handed in."""

    def damage(folder):
        file = folder / "array" / "1.1"
        file.write_bytes(make(gzip.decompress(file.read_bytes())))

    return damage


def bomb(chunk):
    """A quarter of a GiB in as many bytes as a small file has."""
    packer = zlib.compressobj(9, wbits=31)
    zeros = bytes(2**22)
    return b"".join([*(packer.compress(zeros) for _ in range(64)), packer.flush()])


DAMAGED_CHUNKS = {
    "cut to nothing": cut(0),
    "cut in its header": cut(5),
    "cut in the middle": cut(-9),
    "cut at the end": cut(-1),
    "one bit": content(lambda chunk: gzip.compress(chunk)[:-3] + b"\0\1\2"),
    "text": content(lambda chunk: b"not compressed"),
    "not compressed": content(lambda chunk: chunk),
    "too short": content(lambda chunk: gzip.compress(chunk[:-4])),
    "too long": content(lambda chunk: gzip.compress(chunk + bytes(4))),
    "twice": content(lambda chunk: gzip.compress(chunk) * 2),
    "far too long": content(bomb),
}


@pytest.mark.parametrize("damage", DAMAGED_CHUNKS.values(), ids=DAMAGED_CHUNKS.keys())
def test_a_damaged_chunk_is_refused(tmp_path, damage):
    written(tmp_path)
    damage(tmp_path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match=re.escape(f"{tmp_path}/array/1.1 ")):
        opened(tmp_path).load()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**16  # KiB


@pytest.mark.parametrize("compressor", [None, {"id": "zstd"}, {"id": "zlib"}], ids=str)
def test_chunks_of_other_compressors_are_whole_as_well(tmp_path, compressor):
    written(tmp_path, compressor=compressor)
    file = tmp_path / "array" / "1.1"
    whole = file.read_bytes()
    np.testing.assert_array_equal(opened(tmp_path).load(), ARRAY)
    for other in (whole[:-1], whole[:9], b"", whole + whole):
        file.write_bytes(other)
        with pytest.raises(CheckpointError, match=r"array/1\.1 "):
            opened(tmp_path).load()


# More than there is memory; what is read of it fails before it is there.
BOUNDLESS = {
    "one chunk": {"shape": [10**6, 10**6], "chunks": [10**6, 10**6]},
    "chunks beyond the shape": {"chunks": [10**6, 10**6]},
    "many chunks": {"shape": [10**9, 10**9]},
    "more than can be counted": {"shape": [2**62, 2**62]},
    "in zstd": {
        "chunks": [10**6, 10**6],
        "compressor": {"id": "zstd", "level": 1},
    },
}


@pytest.mark.parametrize("fields", BOUNDLESS.values(), ids=BOUNDLESS.keys())
def test_a_header_cannot_claim_the_memory(tmp_path, fields):
    written(tmp_path)
    header(tmp_path, **fields)
    stored = opened(tmp_path)
    for part in (ALL, (slice(0, 1), slice(0, 1)), (slice(None), slice(0, 1))):
        if part == ALL or fields.get("chunks"):
            with pytest.raises(CheckpointError, match=re.escape(f"{tmp_path}/array")):
                stored[part]


def test_an_empty_chunk_is_believed_up_to_a_size(tmp_path):
    written(
        tmp_path, np.zeros((2**13, 2**10), np.float32), (2**13, 2**10), compressor={"id": "zstd"}
    )
    assert not opened(tmp_path).load().any()
    file = tmp_path / "array" / "0.0"
    assert file.stat().st_size * 1032 < 2**25
    header(tmp_path, chunks=[2**13, 2**16], shape=[2**13, 2**16])
    file.write_bytes(bytes(2**17))
    with pytest.raises(CheckpointError, match="131072 bytes, which cannot be a chunk of float32"):
        opened(tmp_path)[:1, :1]


BAD_HEADERS = {
    "nothing": b"",
    "text": b"not JSON",
    "a number": b"7",
    "another object": b"{}",
    "deep": b"[" * 100_000,
    "not UTF-8": b"\xff\xfe",
    "zeros": bytes(100),
}
BAD_FIELDS = {
    "zarr_format": 3,
    "filters": [{"id": "delta"}],
    "dtype": "|O",
    "shape": [7, -10],
    "chunks": [0, 4],
    "compressor": {"id": "blosc"},
    "order": ["C"],
    "dimension_separator": "..",
}
MORE_BAD_FIELDS = {
    "structured": {"dtype": [["a", "<f4"]]},
    "a shape of text": {"shape": "77"},
    "a shape of halves": {"shape": [7.5, 10]},
    "a shape of booleans": {"shape": [True, 10]},
    "fewer chunks": {"chunks": [3]},
    "a compressor of text": {"compressor": "gzip"},
    "no name": {"compressor": {"level": 1}},
}


@pytest.mark.parametrize("name", [".zarray", "zarr.json"])
@pytest.mark.parametrize("content", BAD_HEADERS.values(), ids=BAD_HEADERS.keys())
def test_a_bad_header_is_refused(tmp_path, content, name):
    (tmp_path / "array").mkdir()
    (tmp_path / "array" / name).write_bytes(content)
    message = f"{tmp_path}/array/{name} is not the header of an array as t5x or orbax writes it ("
    with pytest.raises(CheckpointError, match=f"^{re.escape(message)}"):
        opened(tmp_path, name)


@pytest.mark.parametrize(
    "fields",
    [*({name: value} for name, value in BAD_FIELDS.items()), *MORE_BAD_FIELDS.values()],
    ids=[*BAD_FIELDS, *MORE_BAD_FIELDS],
)
def test_a_header_with_what_t5x_does_not_write_is_refused(tmp_path, fields):
    written(tmp_path)
    header(tmp_path, **fields)
    with pytest.raises(CheckpointError, match="is not the header of an array"):
        opened(tmp_path)


@pytest.mark.parametrize("name", ["../array", "..", "a/../../array", "\ud800", "a\0b"], ids=repr)
def test_a_name_does_not_lead_out_of_the_folder(tmp_path, name):
    written(tmp_path)
    path = epath.Path(tmp_path / "inside")
    path.mkdir()
    with pytest.raises(CheckpointError):
        zarr.open_arrays(zarr.open_store(path), {"x": (name,)}, path)


CHUNKS = {  # computed by t5x's `_choose_chunk_shape`
    ((), 4): (),
    ((768,), 4): (768,),
    ((32128, 768), 4): (16064, 768),
    ((250112, 4096), 4): (3908, 4096),
    ((250112, 4096), 2): (7816, 4096),
    ((4096, 10240), 4): (4096, 2560),
    ((8192, 16, 65536), 4): (1024, 16, 1024),
}


@pytest.mark.parametrize(("array", "chunks"), CHUNKS.items(), ids=str)
def test_chunks_are_those_of_t5x(array, chunks):
    assert chunk_shape(*array) == chunks


def test_what_is_written_is_read_by_tensorstore(tmp_path):
    spec = zarr.write_array(
        epath.Path(tmp_path), "array", Stored.of(ARRAY, "x"), np.dtype(np.float32)
    )
    spec = spec | {"kvstore": {"driver": "file", "path": f"{tmp_path}/array/"}}
    np.testing.assert_array_equal(ts.open(spec).result().read().result(), ARRAY)
