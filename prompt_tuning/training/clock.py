"""Where the time of a run goes, and how times are said."""

import contextlib
import time
from collections.abc import Callable, Iterator


class Clock:
    """Adds up seconds under names; each second belongs to what was begun last.

    >>> with clock.spent("train"):
    ...     with clock.spent("save"):
    ...         save()  # no time of training
    >>> clock.seconds()
    {'train': 0.0, 'save': 1.2}

    Args:
        now: tells the time in seconds.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic):
        self._now = now
        self._seconds: dict[str, float] = {}
        self._under_way: list[str] = []
        self._since = now()

    @contextlib.contextmanager
    def spent(self, name: str) -> Iterator[None]:
        """Counts the time of the block under a name, but for what is counted within it."""
        self._settle()
        self._seconds.setdefault(name, 0.0)
        self._under_way.append(name)
        try:
            yield
        finally:
            self._settle()
            self._under_way.pop()

    def seconds(self) -> dict[str, float]:
        """Returns what was counted until now, in the order in which the names came up."""
        self._settle()
        return dict(self._seconds)

    def _settle(self) -> None:
        now = self._now()
        if self._under_way:
            self._seconds[self._under_way[-1]] += now - self._since
        self._since = now


def duration(seconds: float | int) -> str:
    """Returns a time as a person says it, to about two figures.

    >>> duration(12_000.0)
    '3 h 20 min'
    """
    if seconds < 9.95:
        return f"{seconds:.2g} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    # Only the two largest units tell anything.
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(seconds / 60)
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24} h"
