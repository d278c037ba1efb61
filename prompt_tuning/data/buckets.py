"""The lengths to which batches are padded: few and known beforehand, as each one is compiled."""

import dataclasses
import itertools

from prompt_tuning.errors import ConfigError, DataError


@dataclasses.dataclass(frozen=True)
class Buckets:
    """The lengths to which inputs or targets may be padded, in ascending order."""

    lengths: tuple[int, ...]

    def __post_init__(self):
        # gin writes tuples and lists alike.
        object.__setattr__(self, "lengths", tuple(self.lengths))
        if not self.lengths or list(self.lengths) != sorted({*self.lengths} - {0}):
            raise ConfigError(
                f"Bucket lengths are {self.lengths}, but they must ascend from at least 1, "
                "for example (32, 64, 128)."
            )

    def round_up(self, length: int) -> int:
        """Returns the smallest bucket that holds `length` tokens."""
        for bucket in self.lengths:
            if length <= bucket:
                return bucket
        raise DataError(
            f"An example has {length} tokens, but the longest bucket holds {self.lengths[-1]}. "
            "Trim the examples with TASK_FEATURE_LENGTHS or add a longer bucket."
        )


def fixed(length: int) -> Buckets:
    """Returns the one bucket of the original software: every batch has the full length."""
    return Buckets((length,))


def buckets_up_to(longest: int) -> Buckets:
    """Returns the buckets 8, 16, 24, 32, 48, 64, 96, 128 ... and at last `longest` itself.

    They are few, and above 16 tokens no example is padded by more than half its length.
    """
    doublings = ((2**n, 2**n * 3 // 2) for n in itertools.count(4))
    steps = itertools.chain([8], itertools.chain.from_iterable(doublings))
    shorter = itertools.takewhile(lambda length: length < longest, steps)
    return Buckets((*shorter, longest))
