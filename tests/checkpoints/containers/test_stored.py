"""Arrays that are read when asked for."""

import dataclasses

import ml_dtypes
import numpy as np
import pytest

from prompt_tuning.checkpoints import containers
from prompt_tuning.checkpoints.containers.stored import Stored, total_bytes
from prompt_tuning.errors import CheckpointError

ARRAY = np.arange(24.0, dtype=np.float32).reshape(2, 3, 4)
VIEWS = {
    "as it is": (lambda stored: stored, lambda array: array),
    "transposed": (lambda stored: stored.transposed(), lambda array: array.T),
    "its first layer": (lambda stored: stored.layer(0), lambda array: array[0]),
    "a layer of axis 1": (lambda stored: stored.layer(2, axis=1), lambda array: array[:, 2]),
    "a transposed layer": (
        lambda stored: stored.layer(1, axis=1).transposed(),
        lambda array: array[:, 1].T,
    ),
    "its layers, stacked again": (
        lambda stored: Stored.stack([stored.layer(i) for i in range(2)]),
        lambda array: array,
    ),
}
PARTS = [slice(None), slice(0, 1), slice(1, None), slice(-2, None), slice(2, 2)]


def recorded():
    """An array that notes how much of it was read."""
    reads = []

    def read(index):
        reads.append(ARRAY[index].size)
        return ARRAY[index]

    return Stored(shape=ARRAY.shape, dtype=ARRAY.dtype, read=read, where="file x"), reads


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_has_the_shape_and_numbers_of_its_array(view):
    of_stored, of_array = VIEWS[view]
    stored, expected = of_stored(Stored.of(ARRAY, "x")), of_array(ARRAY)
    assert (stored.shape, stored.dtype) == (expected.shape, expected.dtype)
    np.testing.assert_array_equal(stored.load(), expected)
    assert (stored.size, stored.nbytes) == (expected.size, expected.nbytes)
    for part in PARTS:
        index = tuple(part for _ in stored.shape)
        np.testing.assert_array_equal(stored[index], expected[index])


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("rows", [1, 2, 3])
@pytest.mark.parametrize("block", [1, 20, 1000])
def test_a_part_read_in_blocks_is_the_part(monkeypatch, view, rows, block):
    monkeypatch.setattr(containers.stored, "BLOCK", block)
    of_stored, of_array = VIEWS[view]
    whole = dataclasses.replace(Stored.of(ARRAY, "x"), rows=rows)
    stored, expected = of_stored(whole), of_array(ARRAY)
    for one in PARTS:
        index = tuple(one for _ in stored.shape)
        found = stored.part(index, ml_dtypes.bfloat16)
        assert found.dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(found, expected[index])
        np.testing.assert_array_equal(stored.part(index), expected[index])


def test_blocks_are_whole_chunks_and_as_small_as_asked(monkeypatch):
    monkeypatch.setattr(containers.stored, "BLOCK", 200)
    reads = []

    def read(index):
        reads.append((index[0].start, index[0].stop))
        return np.zeros([one.stop - one.start for one in index], np.float32)

    shape, dtype = (10, 5), np.dtype(np.float32)  # 20 bytes a row
    stored = Stored(shape=shape, dtype=dtype, read=read, where="x", rows=4)
    stored.part((slice(1, None), slice(None)))
    assert reads == [(1, 8), (8, 10)]


def test_a_view_reads_its_part_and_nothing_else():
    stored, reads = recorded()
    stored.layer(1).transposed()[slice(0, 2), slice(1, 3)]
    assert reads == [4]


def test_making_views_reads_nothing():
    stored, reads = recorded()
    stored.transposed().layer(0)
    assert reads == []


@pytest.mark.parametrize("wrong", [ARRAY[:1], ARRAY.astype(np.float64)])
def test_a_reader_that_returns_something_else_is_found_out(wrong):
    stored = Stored(shape=ARRAY.shape, dtype=ARRAY.dtype, read=lambda index: wrong, where="file x")
    with pytest.raises(CheckpointError, match=r"file x is said to be float32 .* damaged"):
        stored.load()


def test_a_layer_says_which_it_is():
    assert Stored.of(ARRAY, "file x").layer(1).where == "file x[1]"


def test_bytes_add_up():
    assert total_bytes([Stored.of(ARRAY, "x"), Stored.of(ARRAY[0], "y")]) == 96 + 48
