"""What is the most, or the least, that fits: found by compiling one plan after the other."""

from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar, runtime_checkable


@runtime_checkable
class Trial(Protocol):
    """What is searched among: plans, which fit or do not."""

    @property
    def fits(self) -> bool: ...


Tried = TypeVar("Tried", bound=Trial)


def largest(plan: Callable[[int], Tried], start: int) -> list[tuple[int, Tried]]:
    """Returns the plans on the way to the most rows that fit, by doubling or halving, then between.

    Args:
        plan: makes the plan of so many rows.
        start: where to begin.

    Returns:
        All that was tried, in ascending order of rows; none of them fits if one row does not. The
        last that fits is the most, or no further from it than an eighth of itself.
    """
    tried = {start: plan(start)}
    rows = start
    if tried[start].fits:
        while tried[rows].fits:
            rows *= 2
            tried[rows] = plan(rows)
        most, least = rows // 2, rows  # that fit, that do not
    else:
        while rows > 1 and not tried[rows].fits:
            rows = rows // 2
            tried[rows] = plan(rows)
        most, least = rows, min(other for other, one in tried.items() if not one.fits)
    while tried[most].fits and least - most > max(1, most // 8):
        rows = (most + least) // 2
        tried[rows] = plan(rows)
        most, least = (rows, least) if tried[rows].fits else (most, rows)
    return sorted(tried.items())


def first(plans: Iterable[Tried]) -> list[Tried]:
    """Returns the plans up to the first that fits, the last one; all if none does."""
    tried = []
    for plan in plans:
        tried.append(plan)
        if plan.fits:
            break
    return tried
