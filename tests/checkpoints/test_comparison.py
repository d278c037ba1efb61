"""Differences between two checkpoints."""

import ml_dtypes
import numpy as np
import pytest

from prompt_tuning.checkpoints.comparison import ArrayDifference, compare
from prompt_tuning.checkpoints.containers.stored import Stored
from prompt_tuning.errors import ConfigError


def stored(**arrays):
    return {name: Stored.of(np.asarray(array), name) for name, array in arrays.items()}


ROW = np.asarray([1.0, 2.0, 3.0, 4.0], np.float32)
CHANGED = ROW + np.asarray([0.0, 0.5, 0.0, -0.25], np.float32)
LIKE = {"a": "float32 [4]", "b": "float32 [4]"}
DIFFERENCES = {
    "values": (ROW, CHANGED, {"kind": "value", "mismatches": 2, "size": 4, "largest": 0.5, **LIKE}),
    "shape": (ROW, ROW[:2], {"kind": "shape", "a": "float32 [4]", "b": "float32 [2]"}),
    "dtype": (
        ROW,
        ROW.astype(ml_dtypes.bfloat16),
        {"kind": "dtype", "a": "float32 [4]", "b": "bfloat16 [4]"},
    ),
    "a number that is none": (
        ROW,
        np.where(ROW == 1.0, np.nan, ROW),
        {"kind": "value", "mismatches": 1, "size": 4, "largest": 0.0, **LIKE},
    ),
}


@pytest.mark.parametrize("case", DIFFERENCES)
def test_every_kind_of_difference_is_described(case):
    a, b, expected = DIFFERENCES[case]
    assert compare(stored(x=a), stored(x=b)) == {"x": ArrayDifference(**expected)}


def test_what_is_equal_is_not_reported_not_even_nan_and_infinity():
    strange = np.asarray([np.nan, np.inf, -np.inf, -0.0], np.float32)
    assert compare(stored(x=strange, y=ROW), stored(x=strange, y=ROW)) == {}


def test_names_on_one_side_only_are_reported():
    found = compare(stored(x=ROW, y=ROW), stored(x=ROW, z=ROW))
    assert {name: one.kind for name, one in found.items()} == {"y": "only in A", "z": "only in B"}


def test_differences_within_the_tolerance_pass():
    assert compare(stored(x=ROW), stored(x=CHANGED), absolute=0.5) == {}
    assert compare(stored(x=ROW), stored(x=CHANGED), relative=0.2) == {}
    assert compare(stored(x=ROW), stored(x=CHANGED), absolute=0.3)["x"].mismatches == 1


def test_a_part_of_the_arrays_is_drawn_from_the_seed_and_some_are_always_read():
    a = stored(**{f"x{i}": ROW for i in range(20)})
    b = stored(**{f"x{i}": CHANGED for i in range(20)})
    drawn = compare(a, b, fraction=0.25, seed=3)
    assert len(drawn) == 5 and drawn == compare(a, b, fraction=0.25, seed=3)
    assert drawn.keys() != compare(a, b, fraction=0.25, seed=4).keys()
    missing = next(name for name in a if name not in drawn)
    assert missing in compare(a, b, fraction=0.25, seed=3, always=[missing])


@pytest.mark.parametrize("fraction", [0.0, -1.0, 1.5])
def test_a_fraction_outside_0_and_1_is_refused(fraction):
    with pytest.raises(ConfigError, match=r"expected \(0, 1\]"):
        compare(stored(x=ROW), stored(x=ROW), fraction=fraction)


def test_an_unknown_array_to_read_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match=r"no array 'weigth' in both .* Did you mean 'weight'"):
        compare(stored(weight=ROW), stored(weight=ROW), always=["weigth"])
