"""Which example comes when: a pure function of the seed and the position, without state.

Positions count the examples of a run from 0 and never end; a step of B examples takes the positions
`step * B` to `step * B + B`. So a run can start at any step, on any number of hosts and with any
batch size, and meet the same examples in the same order.
"""

import functools

import numpy as np
from jaxtyping import Int

from prompt_tuning.errors import ConfigError

# One stream of random numbers for each use, so that equal counters never give related draws.
_ORDER, _EPOCH, _EXAMPLE = 0, 1, 2


def example_order(*, size: int, seed: int, start: int, count: int) -> Int[np.ndarray, " count"]:
    """Returns the indices (0 to size - 1) of the examples at `count` positions from `start` on.

    Every epoch is another permutation of all examples; a batch may end one and begin the next, so
    no example is ever left out.
    """
    epochs, places = np.divmod(np.arange(start, start + count), size)
    orders = (epoch_order(size, seed, int(epoch)) for epoch in epochs)
    return np.array([order[place] for order, place in zip(orders, places, strict=True)], np.int64)


@functools.lru_cache(maxsize=4)
def epoch_order(size: int, seed: int, epoch: int) -> Int[np.ndarray, " size"]:
    """Returns the permutation of one epoch.

    It sorts the generator's raw bits, because numpy promises to keep those the same in every
    release and does not for `Generator.permutation`: the order survives an upgrade.
    """
    order = np.argsort(_bits(_ORDER, seed, epoch).random_raw(size), kind="stable")
    order.flags.writeable = False
    return order


def epoch_rng(seed: int, epoch: int) -> np.random.Generator:
    """Returns the randomness of one epoch, independent of its order."""
    return np.random.Generator(_bits(_EPOCH, seed, epoch))


def example_rng(seed: int, position: int) -> np.random.Generator:
    """Returns the randomness of the example at one position of a run, and of no other."""
    return np.random.Generator(_bits(_EXAMPLE, seed, position))


def _bits(stream: int, seed: int, counter: int) -> np.random.Philox:
    if seed < 0:
        raise ConfigError(f"The seed is {seed}, but it must not be negative. Set `RANDOM_SEED`.")
    return np.random.Philox(np.random.SeedSequence([stream, seed, counter]))
