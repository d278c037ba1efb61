"""How long the examples of a run are, and what share of its batches is padding: a few lines to log.

Everything is computed from the counts of lengths that a split keeps; no example is read.
"""

import collections
import itertools
from collections.abc import Mapping, Sequence

from prompt_tuning.data.buckets import Buckets
from prompt_tuning.data.task_split import Lengths

# Lengths and how often they come, as shares of all examples.
Distribution = Mapping[int, float]


def distribution(parts: Sequence[tuple[Lengths, float]]) -> Distribution:
    """Returns how often each length comes when tasks are drawn from at these rates."""
    total = sum(rate for _, rate in parts)
    shares: collections.Counter[int] = collections.Counter()
    for lengths, rate in parts:
        examples = sum(lengths.counts.values())
        for length, count in lengths.counts.items():
            shares[length] += rate / total * count / examples
    return shares


def histogram(shares: Distribution, buckets: Buckets) -> list[float]:
    """Returns the share of examples that each bucket is the smallest for."""
    found = dict.fromkeys(buckets.lengths, 0.0)
    for length, share in shares.items():
        found[buckets.round_up(length)] += share
    return list(found.values())


def padding(shares: Distribution, buckets: Buckets, batch_size: int) -> float:
    """Returns which share of the positions of a batch is expected to be padding.

    A batch is as long as the bucket of its longest example, so a bucket suffices with the chance
    that all `batch_size` examples fit in it.
    """
    fit = [chance**batch_size for chance in itertools.accumulate(histogram(shares, buckets))]
    chances = [fit[0], *(larger - smaller for smaller, larger in itertools.pairwise(fit))]
    # The shares add up to 1 but for rounding, which the power would blow up.
    expected = sum(x * n for x, n in zip(chances, buckets.lengths, strict=True)) / fit[-1]
    return 1 - _mean(shares) / expected


def describe(
    feature: str,
    parts: Sequence[tuple[Lengths, float]],
    *,
    buckets: Buckets,
    batch_size: int,
) -> list[str]:
    """Returns the lines that say how long a feature is, aligned under each other.

    For example:

        inputs   up to      8     16     24     32     48     66
                 share  19.1%  49.2%  18.9%   8.1%   4.5%   0.2%
                 9.4 tokens on average; 0 examples of 67,349 truncated to 512
                 padding 31% of a batch, 98% at the fixed length 512
    """
    shares = distribution(parts)
    columns = zip(buckets.lengths, histogram(shares, buckets), strict=True)
    cells = [(f"{length:,}", f"{share:.1%}") for length, share in columns]
    widths = [max(map(len, cell)) for cell in cells]
    above, below = (
        "  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True))
        for row in zip(*cells, strict=True)
    )
    limits = [lengths.limit for lengths, _ in parts]
    fixed = max(limit or lengths.longest for limit, (lengths, _) in zip(limits, parts, strict=True))
    fixed = max(fixed, buckets.lengths[-1])
    cut = padding(shares, buckets, batch_size)
    whole = 1 - _mean(shares) / fixed
    return [
        f"{feature:<9}up to  {above}",
        f"{'':<9}share  {below}",
        f"{'':<9}{_mean(shares):.1f} tokens on average; {_truncated(parts)}",
        f"{'':<9}padding {cut:.0%} of a batch, {whole:.0%} at the fixed length {fixed:,}",
    ]


def _truncated(parts: Sequence[tuple[Lengths, float]]) -> str:
    if all(lengths.limit is None for lengths, _ in parts):
        return "nothing truncated"
    limit = ", ".join(sorted({f"{x.limit:,}" for x, _ in parts if x.limit is not None}))
    if any(lengths.truncated is None and lengths.limit is not None for lengths, _ in parts):
        return f"longer ones truncated to {limit}, not counted"
    cut = sum(lengths.truncated or 0 for lengths, _ in parts)
    examples = sum(sum(lengths.counts.values()) for lengths, _ in parts)
    return f"{cut:,} of {examples:,} examples truncated to {limit}"


def _mean(shares: Distribution) -> float:
    return sum(length * share for length, share in shares.items())
