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
    tried = {}

    def fits(rows: int) -> bool:
        tried[rows] = plan(rows)
        return tried[rows].fits

    # The most rows that fit, and the least that do not.
    if fits(start):
        most = start
        while fits(2 * most):
            most *= 2
        least = 2 * most
    else:
        least = start
        while least > 1 and not fits(least // 2):
            least //= 2
        most = least // 2
    while least - most > max(1, most // 8):
        rows = (most + least) // 2
        most, least = (rows, least) if fits(rows) else (most, rows)
    return sorted(tried.items())


def first(plans: Iterable[Tried]) -> list[Tried]:
    """Returns the plans up to the first that fits, the last one; all if none does."""
    tried = []
    for plan in plans:
        tried.append(plan)
        if plan.fits:
            break
    return tried
