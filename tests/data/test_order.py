import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prompt_tuning.data.order import epoch_rng, example_order, example_rng
from prompt_tuning.errors import ConfigError


def order(start, count, *, size=10, seed=0):
    return example_order(size=size, seed=seed, start=start, count=count).tolist()


@given(
    size=st.integers(1, 30),
    seed=st.integers(0, 2**40),
    cuts=st.lists(st.integers(1, 20), min_size=1, max_size=8),
)
def test_the_order_does_not_depend_on_how_it_is_cut(size, seed, cuts):
    """Neither on the batch size, nor on where a run is resumed."""
    whole = order(0, sum(cuts), size=size, seed=seed)
    starts = np.cumsum([0, *cuts[:-1]]).tolist()
    pieces = [order(a, n, size=size, seed=seed) for a, n in zip(starts, cuts, strict=True)]
    assert list(itertools.chain.from_iterable(pieces)) == whole


@given(size=st.integers(1, 50), seed=st.integers(0, 2**40), epoch=st.integers(0, 10**6))
def test_every_epoch_has_every_example_once(size, seed, epoch):
    assert sorted(order(epoch * size, size, size=size, seed=seed)) == list(range(size))


def test_epochs_and_seeds_are_shuffled_differently():
    orders = {tuple(order(epoch * 10, 10, seed=seed)) for epoch in range(5) for seed in range(5)}
    assert len(orders) == 25


def test_every_place_is_equally_likely():
    counts = Counter(order(epoch * 4, 4, size=4)[0] for epoch in range(4000))
    assert set(counts) == {0, 1, 2, 3}
    assert max(abs(count - 1000) for count in counts.values()) < 150


def test_the_order_is_the_same_for_ever():
    """A saved run depends on it: no release of this package or of numpy may change it."""
    assert order(0, 10, seed=7) == [6, 0, 5, 2, 1, 3, 9, 8, 7, 4]
    assert order(10, 10, seed=7) == [9, 1, 8, 6, 5, 0, 7, 3, 2, 4]


def test_examples_and_epochs_have_randomness_of_their_own():
    draws = [
        rng(seed, n).integers(2**60)
        for rng in (epoch_rng, example_rng)
        for seed in range(9)
        for n in range(9)
    ]
    assert len(set(draws)) == 2 * 81


def test_a_negative_seed_is_refused():
    with pytest.raises(ConfigError, match=r"^The seed is -1, but it must not be negative\."):
        order(0, 1, seed=-1)
