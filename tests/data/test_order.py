import fractions
import functools
import itertools
from collections import Counter

import numpy as np
import pytest
import seqio
from hypothesis import given
from hypothesis import strategies as st

from prompt_tuning.data.order import (
    _LARGE,
    Order,
    _divide,
    _turn,
    epoch_rng,
    example_order,
    example_rng,
    examples_proportional,
)
from prompt_tuning.errors import ConfigError, DataError


def order(start, count, *, size=10, seed=0):
    return [place.index for place in order_of(size, seed).places(start, count)]


@functools.cache
def order_of(size, seed):
    return Order(sizes=(size,), seed=seed)


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


@pytest.mark.parametrize("epoch", [0, 10**6])
def test_every_epoch_of_a_large_task_has_every_example_once(epoch):
    assert sorted(order(epoch * _LARGE, _LARGE, size=_LARGE)) == list(range(_LARGE))


def test_epochs_and_seeds_are_shuffled_differently():
    orders = {tuple(order(epoch * 10, 10, seed=seed)) for epoch in range(5) for seed in range(5)}
    assert len(orders) == 25


def test_the_order_of_one_task_is_an_array_of_indices():
    indices = example_order(size=10, seed=3, start=7, count=6)
    assert indices.dtype == np.int64 and indices.tolist() == order(7, 6, seed=3)


def test_every_place_is_equally_likely():
    counts = Counter(order(epoch * 4, 4, size=4)[0] for epoch in range(4000))
    assert set(counts) == {0, 1, 2, 3}
    assert max(abs(count - 1000) for count in counts.values()) < 150


def test_the_order_is_the_same_for_ever():
    """A saved run depends on it: no release of this package or of grain may change it."""
    assert order(0, 10, seed=7) == [6, 0, 5, 2, 1, 3, 9, 8, 7, 4]
    assert order(10, 10, seed=7) == [9, 1, 8, 6, 5, 0, 7, 3, 2, 4]
    assert order(10**12, 4, size=67349, seed=2**40) == [24328, 16963, 56674, 36321]
    mixed = Order(sizes=(10, 67349), rates=(1.0, 2.5), seed=7).places(10**9, 5)
    assert [tuple(place) for place in mixed] == [
        (1, 61649),
        (1, 55308),
        (0, 8),
        (1, 54690),
        (1, 28889),
    ]


def test_an_example_costs_the_same_at_every_position():
    """Nothing as long as the split is made, nor anything for the steps before."""
    sizes = (10**12, 3)
    assert len(Order(sizes=sizes, rates=(1e9, 1.0), seed=0).places(10**15, 8)) == 8


RATES = [(1.0,), (1.0, 1.0), (67349.0, 2490.0), (1 / 3, 0.1), (4.0, 1.0, 2.0), (1.0,) * 8]


@pytest.mark.parametrize("rates", RATES, ids=str)
def test_tasks_take_turns_at_their_rates(rates):
    """To within one example of their share at every moment."""
    places = Order(sizes=(7,) * len(rates), rates=rates, seed=0).places(0, 1000)
    drawn = np.cumsum(np.eye(len(rates))[[place.task for place in places]], axis=0)
    shares = np.arange(1, 1001)[:, None] * np.array(rates) / sum(rates)
    assert np.abs(drawn - shares).max() < 1


@given(
    rates=st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=10),
    position=st.integers(0, 10**15),
)
def test_nothing_drifts_however_long_a_run(rates, position):
    task, before = _turn(_divide(rates), position)
    exact = [fractions.Fraction(rate) for rate in rates]
    assert abs(before - position * exact[task] / sum(exact)) < 1.5


def test_every_task_of_a_mixture_has_epochs_of_its_own():
    places = Order(sizes=(4, 6), rates=(1.0, 1.0), seed=3).places(0, 48)
    for task, size in enumerate((4, 6)):
        indices = [place.index for place in places if place.task == task]
        epochs = [indices[n : n + size] for n in range(0, 24, size)]
        assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) > 1


def test_tasks_of_equal_size_are_not_in_step():
    places = Order(sizes=(20, 20), seed=0).places(0, 40)
    first, second = ([place.index for place in places if place.task == n] for n in (0, 1))
    assert first != second


@pytest.mark.parametrize(
    ("rates", "sizes"), [((1.0,), (3, 3)), ((1.0, 0.0), (3, 3)), ((1.0, float("inf")), (3, 3))]
)
def test_rates_that_are_none_are_refused(rates, sizes):
    with pytest.raises(ConfigError, match=r"expected one positive number for each\.$"):
        Order(sizes=sizes, rates=rates, seed=0)


def test_a_task_without_examples_is_refused():
    with pytest.raises(DataError, match=r"^An order of tasks with \(3, 0\) examples"):
        Order(sizes=(3, 0), seed=0)


@given(
    sizes=st.lists(st.integers(1, 10**9), min_size=1, max_size=5),
    maximum=st.none() | st.integers(1, 10**7),
    temperature=st.floats(0.5, 10),
    scale=st.floats(0.01, 10),
)
def test_rates_in_proportion_to_the_examples_are_seqios(sizes, maximum, temperature, scale):
    class Task:
        cache_dir = None
        name = "counted"

        def __init__(self, size):
            self.num_input_examples = lambda split: size

    expected = [
        seqio.mixing_rate_num_examples(
            Task(size), maximum=maximum, temperature=temperature, scale=scale
        )
        for size in sizes
    ]
    found = examples_proportional(sizes, maximum=maximum, temperature=temperature, scale=scale)
    assert list(found) == expected


@pytest.mark.parametrize("setting", [{"maximum": 0}, {"temperature": 0.0}, {"scale": -1.0}])
def test_settings_of_rates_that_make_no_sense_are_refused(setting):
    with pytest.raises(ConfigError, match=r"but each must be positive\.$"):
        examples_proportional([3], **setting)


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
