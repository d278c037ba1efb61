"""Which example comes when: a pure function of seed, rates and position, without state.

Positions count the examples of a run from 0 and never end; a step of B examples takes the positions
`step * B` to `step * B + B`. So a run can start at any step, on any number of hosts and with any
batch size, and meet the same examples in the same order; to find one costs the same everywhere.
"""

import dataclasses
import fractions
import functools
import heapq
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import grain
import numpy as np
from jaxtyping import Int

from prompt_tuning.errors import ConfigError, DataError

# One stream of random numbers for each use, so that equal counters never give related draws.
_ORDER, _EPOCH, _EXAMPLE = 0, 1, 2
# From this size on grain finds one index faster than a whole epoch is sorted. Below it grain
# searches 2**16 numbers for one of the few: two milliseconds for each of ten examples.
_LARGE = 1 << 16


class Place(NamedTuple):
    """An example: the number of its task, and its index in the task's split."""

    task: int
    index: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Order:
    """The examples of one or several tasks, without end.

    Every epoch of every task is another permutation of all its examples; a batch may end one and
    begin the next, so no example is ever left out. Tasks take turns as evenly as their rates allow:
    the number of examples drawn from each is its share of the position, to about one example at
    every moment of a run, while seqio draws the task of each example at random.

    Attributes:
        sizes: the number of examples of each task.
        seed: of the permutations; the turns of the tasks follow from the rates alone.
        rates: how often the tasks come, relative to each other; None for equally often.
    """

    sizes: tuple[int, ...]
    seed: int
    rates: tuple[float, ...] | None = None

    def __post_init__(self):
        if not self.sizes or min(self.sizes) < 1:
            raise DataError(
                f"An order of tasks with {self.sizes} examples: each needs one or more."
            )
        rates = self.rates
        if rates is None:
            return
        if len(rates) != len(self.sizes) or not all(0 < rate < math.inf for rate in rates):
            raise ConfigError(
                f"The rates of a mixture of {len(self.sizes)} tasks are {rates}: expected one "
                "positive number for each."
            )

    def places(self, start: int, count: int) -> list[Place]:
        """Returns the examples at `count` positions from `start` on."""
        turns = (_turn(self._turns, position) for position in range(start, start + count))
        return [Place(task, self._index(task, number)) for task, number in turns]

    def _index(self, task: int, number: int) -> int:
        """Returns the index of the example that a task gives when it had so many turns before."""
        size = self.sizes[task]
        if size >= _LARGE:
            return _shuffled(size, self.seed, task)[number]
        epoch, place = divmod(number, size)
        return int(_epoch_order(size, self.seed, task, epoch)[place])

    @functools.cached_property
    def _turns(self) -> "_Group":
        return _divide(self.rates or (1.0,) * len(self.sizes))


def example_order(*, size: int, seed: int, start: int, count: int) -> Int[np.ndarray, " count"]:
    """Returns the indices (0 to size - 1) of the examples of one task at `count` positions."""
    places = Order(sizes=(size,), seed=seed).places(start, count)
    return np.array([place.index for place in places], np.int64)


def examples_proportional(
    sizes: Sequence[int],
    *,
    maximum: int | None = None,
    temperature: float = 1.0,
    scale: float = 1.0,
) -> tuple[float, ...]:
    """Returns the rates of a mixture whose tasks are drawn in proportion to their examples.

    As `seqio.mixing_rate_num_examples`.

    Args:
        sizes: the number of examples of each task.
        maximum: no task counts as having more examples than this (the artificial limit of T5).
        temperature: 1 keeps the proportions; the higher, the more alike the rates.
        scale: multiplies the sizes before `maximum` applies.
    """
    if not (temperature > 0 and scale > 0 and (maximum is None or maximum > 0)):
        raise ConfigError(
            f"A mixture's temperature is {temperature}, its scale {scale} and its maximum "
            f"{maximum}, but each must be positive."
        )
    scaled = [min(size * scale, math.inf if maximum is None else maximum) for size in sizes]
    return tuple(float(size) ** (1.0 / temperature) for size in scaled)


def epoch_rng(seed: int, epoch: int) -> np.random.Generator:
    """Returns the randomness of one epoch, independent of its order."""
    return np.random.Generator(np.random.Philox(_sequence(_EPOCH, seed, epoch)))


def example_rng(seed: int, position: int) -> np.random.Generator:
    """Returns the randomness of the example at one position of a run, and of no other."""
    return np.random.Generator(np.random.Philox(_sequence(_EXAMPLE, seed, position)))


def _sequence(stream: int, seed: int, *counters: int) -> np.random.SeedSequence:
    if seed < 0:
        raise ConfigError(f"The seed is {seed}, but it must not be negative. Set `RANDOM_SEED`.")
    return np.random.SeedSequence([stream, seed, *counters])


@functools.lru_cache(maxsize=64)
def _shuffled(size: int, seed: int, task: int) -> grain.MapDataset[int]:
    """Returns the endless row of a task's indices, every epoch in another order, none of it made.

    grain adds the epoch to the seed. A drawn one lies so far from the others that the epochs of one
    task are not those of the next, nor those of a run with the next seed.
    """
    drawn = int(_sequence(_ORDER, seed, task).generate_state(1, np.uint32)[0])
    return grain.MapDataset.range(size).seed(drawn).shuffle().repeat()


@functools.lru_cache(maxsize=64)
def _epoch_order(size: int, seed: int, task: int, epoch: int) -> Int[np.ndarray, " size"]:
    """Returns the permutation of one epoch.

    It sorts the generator's raw bits, because numpy promises to keep those the same in every
    release and does not for `Generator.permutation`: the order survives an upgrade.
    """
    bits = np.random.Philox(_sequence(_ORDER, seed, epoch, task))
    return np.argsort(bits.random_raw(size), kind="stable")


class _Group(NamedTuple):
    """One task, or two smaller groups, and the sum of their rates in whole numbers."""

    rate: int
    task: int | None
    halves: tuple["_Group", "_Group"] | None


def _divide(rates: Sequence[float]) -> _Group:
    """Returns the tasks as a tree in which the rarest lie deepest (Huffman's).

    Of the positions of a group its first half takes a share, rounded, and the second what is left;
    so a rounding counts for less on every level below, and nothing drifts: in whole numbers, the
    shares are exact however long the run.

        rates 4 1 2    position  0 1 2 3 4 5 6
        (0 (2 1))      task      0 2 0 1 0 2 0
    """
    exact = [fractions.Fraction(rate) for rate in rates]
    scale = math.lcm(*(rate.denominator for rate in exact))
    number = itertools.count()  # So that of equal rates the older group is the lighter one.
    tasks = [_Group(int(rate * scale), task, None) for task, rate in enumerate(exact)]
    heap = [(task.rate, next(number), task) for task in tasks]
    heapq.heapify(heap)
    while len(heap) > 1:
        (_, _, rare), (_, _, common) = heapq.heappop(heap), heapq.heappop(heap)
        both = _Group(rare.rate + common.rate, None, (common, rare))
        heapq.heappush(heap, (both.rate, next(number), both))
    return heap[0][2]


def _turn(group: _Group, position: int) -> tuple[int, int]:
    """Returns whose turn a position is, and how many turns that task had before."""
    before, after = position, position + 1
    while group.halves is not None:
        first, second = group.halves
        taken = (2 * before * first.rate + group.rate) // (2 * group.rate)
        taken_after = (2 * after * first.rate + group.rate) // (2 * group.rate)
        if taken < taken_after:
            group, before, after = first, taken, taken_after
        else:
            group, before, after = second, before - taken, after - taken_after
    assert group.task is not None
    return group.task, before
