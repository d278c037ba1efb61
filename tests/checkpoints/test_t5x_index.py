import re

import numpy as np
import pytest
from etils import epath
from flax import serialization

from prompt_tuning.checkpoints import t5x
from prompt_tuning.checkpoints.containers import zarr
from prompt_tuning.checkpoints.containers.stored import Stored
from prompt_tuning.checkpoints.t5x_index import find_index, read_index
from prompt_tuning.errors import CheckpointError
from tests.t5x_checkpoints import as_saved, write_index

BIAS = np.arange(5, dtype=np.float32)


def place(path="target.bias", **fields):
    metadata = {"chunks": [5], "compressor": {"id": "gzip", "level": 1}, "shape": [5]}
    spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": path}, "metadata": metadata}
    return spec | fields


def checkpoint(folder, leaf, **options):
    """Writes a checkpoint of one array."""
    root = epath.Path(folder) / "checkpoint_1"
    zarr.write_array(root, "target.bias", Stored.of(BIAS, "bias"), BIAS.dtype)
    return write_index(root, {"target/bias": leaf}, **options)


def test_the_array_of_the_tests_is_found(tmp_path):
    stored = t5x.variables(checkpoint(tmp_path, place()))["target/bias"]
    np.testing.assert_array_equal(stored.load(), BIAS)


def test_what_is_empty_is_no_array(tmp_path):
    root = epath.Path(tmp_path)
    leaves = {"target/bias": BIAS, "state/param_states/bias": None, "flax_mutables": {}}
    assert list(t5x.variables(write_index(root, leaves))) == ["target/bias"]


def deep(levels):
    tree = {"array": BIAS}
    for _ in range(levels):
        tree = {"below": tree}
    return tree


CONTENTS = {
    "nothing": b"",
    "text": b'model_checkpoint_path: "model.ckpt-0"',
    "zeros": bytes(1000),
    "a list": serialization.msgpack_serialize([1, 2]),
    "a number": b"\x07",
    "bytes for names": b"\x81\xc4\x01a\x01",
    "numbers for names": b"\x81\x01\x01",
    "a map without end": b"\xdf\xff\xff\xff\xff",
    "lists without end": b"\x81\xa1a" + b"\xdd\x00\x0f\xff\xff" * 500,
    "an array of objects": b"\x81\xa1a\xc7\x07\x01\x93\x91\x01\xa1O\xa1x",
    "an array of unknown kind": b"\x81\xa1a\xc7\x09\x01\x93\x91\x01\xa3wxy\xa1x",
    "an array without bytes": b"\x81\xa1a\xc7\x0a\x01\x93\x91\x09\xa7float32\xa0"[:-2],
    "very deep": b"\x81\xa1a" * 100_000 + b"\x01",
    "deep": serialization.msgpack_serialize(deep(300)),
    "version 1": serialization.msgpack_serialize({"version": 1, "optimizer": {}}),
    "version 4": serialization.msgpack_serialize({"version": 4, "optimizer": {}}),
    "many versions": serialization.msgpack_serialize({"version": BIAS, "optimizer": {}}),
    "no tree": serialization.msgpack_serialize({"version": 3, "optimizer": BIAS}),
    "pieces that are none": serialization.msgpack_serialize(
        {"a": {"__msgpack_chunked_array__": True, "shape": {"0": 5}, "chunks": {}}}
    ),
    "pieces of another shape": serialization.msgpack_serialize(
        {"a": {"__msgpack_chunked_array__": True, "shape": {"0": 9}, "chunks": {"0": BIAS}}}
    ),
    "pieces without a shape": serialization.msgpack_serialize(
        {"a": {"__msgpack_chunked_array__": True, "chunks": {"0": BIAS}}}
    ),
}


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS.keys())
def test_a_file_that_is_no_index_is_refused(tmp_path, content):
    (tmp_path / "checkpoint").write_bytes(content)
    with pytest.raises(CheckpointError, match=re.escape(str(tmp_path / "checkpoint"))):
        t5x.open_t5x(epath.Path(tmp_path))


def test_an_index_that_is_cut_off_is_refused(tmp_path):
    file = find_index(as_saved(tmp_path))
    content = file.read_bytes()
    for length in range(0, len(content), len(content) // 40):
        file.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match="is not an index of t5x"):
            read_index(file)


@pytest.mark.parametrize("seed", range(3))
def test_noise_in_an_index_is_refused_or_read(tmp_path, seed):
    path = as_saved(tmp_path)
    file, rng = path / "checkpoint", np.random.default_rng(seed)
    content = file.read_bytes()
    for _ in range(30):
        noisy = bytearray(content)
        for position in rng.integers(0, len(noisy), size=3):
            noisy[position] = rng.integers(0, 256)
        file.write_bytes(bytes(noisy))
        try:
            arrays = t5x.variables(path)
        except CheckpointError:
            continue
        assert all(one.nbytes < 2**20 for one in arrays.values())


LEAVES = {
    "text": ("scratch", "(target/bias) holds str, expected an array of numbers."),
    "another kind of array": (np.zeros(5, "M8[s]"), "holds ndarray, expected an array of numbers."),
    "a complex number": (1j, "holds complex, expected an array of numbers."),
    "another driver": (place(driver="n5"), "is not the place of a zarr array"),
    "another store": (
        place(kvstore={"driver": "http", "path": "target.bias"}),
        "is not the place of a zarr array",
    ),
    "no store": (place(kvstore="file:///target.bias"), "is not the place of a zarr array"),
    "no path": (place(kvstore={"driver": "file"}), "is not the place of a zarr array"),
    "a path of numbers": (place(7), "is not the place of a zarr array"),
    "metadata of text": (place(metadata="none"), "is not the place of a zarr array"),
    "a shape of text": (place(metadata={"shape": "wide"}), "is not the place of a zarr array"),
    "another shape": (place(metadata={"shape": [6]}), "says (6,). They do not belong together."),
    "a path above": (place("../checkpoint_1/target.bias"), "outside of the checkpoint"),
    "a path up and down": (place("a/../target.bias"), "outside of the checkpoint"),
    "an absolute path above": (place("/tmp/../target.bias"), "outside of the checkpoint"),
    "an empty path": (place("./"), "outside of the checkpoint"),
    "another name": (place("target.bios"), "has no array 'target.bios' (target/bias)."),
    "an absolute path": (place("/etc/passwd"), "has no array 'passwd' (target/bias)."),
    "a placeholder of nothing": ("PLACEHOLDER://", "outside of the checkpoint"),
    "a placeholder above": ("PLACEHOLDER://../x", "outside of the checkpoint"),
    "a placeholder of another": ("PLACEHOLDER://x", "has no array 'x' (target/bias)."),
}


@pytest.mark.parametrize(("leaf", "message"), LEAVES.values(), ids=LEAVES.keys())
def test_a_leaf_that_is_no_array_is_refused(tmp_path, leaf, message):
    with pytest.raises(CheckpointError, match=re.escape(message)):
        t5x.variables(checkpoint(tmp_path, leaf))


def test_names_do_not_hold_slashes(tmp_path):
    content = serialization.msgpack_serialize({"target": {"a/b": BIAS}})
    (tmp_path / "checkpoint").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"has the name 'a/b' below 'target'\."):
        t5x.variables(epath.Path(tmp_path))
