"""Differences between two checkpoints, array by array (the original's `diff_checkpoints`)."""

import dataclasses
import functools
import math
import random
from collections.abc import Mapping, Sequence

import numpy as np

from prompt_tuning.checkpoints.containers.stored import Stored
from prompt_tuning.errors import ConfigError, nearest


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArrayDifference:
    """One array that is not the same in both.

    Attributes:
        kind: `only in A`, `only in B`, `shape`, `dtype` (all values equal) or `value`.
        a: shape and dtype in A; empty if it is not there.
        b: the same of B.
        mismatches: how many values differ by more than the tolerance.
        size: how many values there are.
        largest: the largest absolute difference.
    """

    kind: str
    a: str = ""
    b: str = ""
    mismatches: int = 0
    size: int = 0
    largest: float = 0.0


def compare(
    a: Mapping[str, Stored],
    b: Mapping[str, Stored],
    *,
    relative: float = 0.0,
    absolute: float = 0.0,
    fraction: float = 1.0,
    always: Sequence[str] = (),
    seed: int | None = None,
) -> dict[str, ArrayDifference]:
    """Returns what differs, by name; nothing if the two are equal.

    Args:
        a: the arrays of one checkpoint.
        b: of the other.
        relative: values differ if |a - b| > absolute + relative * |b|; 0 and 0 ask for equal bits
            but for the dtype.
        absolute: see `relative`.
        fraction: how many of the common arrays to read, drawn at random.
        always: names to read in any case.
        seed: of the draw.

    Raises:
        ConfigError: a fraction outside (0, 1], or a name in `always` that is not in both.
    """
    common = sorted(a.keys() & b.keys())
    strangers = [name for name in always if name not in common]
    if strangers:
        raise ConfigError(
            f"There is no array {strangers[0]!r} in both checkpoints."
            f"{nearest(strangers[0], common)}"
        )
    if not 0.0 < fraction <= 1.0:
        raise ConfigError(f"The fraction of arrays to compare is {fraction}, expected (0, 1].")
    drawn = random.Random(seed).sample(common, math.ceil(len(common) * fraction))
    found = {name: ArrayDifference(kind="only in A", a=_about(a[name])) for name in a.keys() - b}
    found |= {name: ArrayDifference(kind="only in B", b=_about(b[name])) for name in b.keys() - a}
    for name in {*drawn, *always}:
        difference = _difference(a[name], b[name], relative, absolute)
        if difference is not None:
            found[name] = difference
    return dict(sorted(found.items()))


def _difference(a: Stored, b: Stored, relative: float, absolute: float) -> ArrayDifference | None:
    described = functools.partial(ArrayDifference, a=_about(a), b=_about(b))
    if a.shape != b.shape:
        return described(kind="shape")
    here, there = _wide(a.load()), _wide(b.load())
    with np.errstate(invalid="ignore"):
        apart = np.abs(here - there)
        # Not-a-number in the same place is the same.
        same = (apart <= absolute + relative * np.abs(there)) | (here == there)
        same |= np.isnan(here) & np.isnan(there)
    mismatches = int(np.sum(~same))
    if mismatches:
        largest = float(np.nanmax(np.where(same, 0.0, apart)))
        size = int(here.size)
        return described(kind="value", mismatches=mismatches, size=size, largest=largest)
    return None if a.dtype == b.dtype else described(kind="dtype")


def _wide(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64 if array.dtype.itemsize > 2 else np.float32)


def _about(one: Stored) -> str:
    return f"{one.dtype} {list(one.shape)}"
