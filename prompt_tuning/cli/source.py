"""Where a run's batches come from, seen from its global steps."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from prompt_tuning.batch import Batch

_SNAPSHOT = "stream_step"


@runtime_checkable
class Source(Protocol):
    """Batches of a run's steps, counted from its own start: any object that can begin anywhere.

    Attributes:
        fingerprint: hash of all that decides which examples come when.
    """

    @property
    def fingerprint(self) -> str: ...

    def batches(self, start_step: int) -> Iterator[Batch]: ...

    def example_ids(self, step: int) -> Sequence[str]:
        """Returns a name for each row of a step."""
        ...

    def summary(self) -> str:
        """Returns what to know of the data before it is trained on."""
        ...


class Place:
    """A run's place in its data.

    Args:
        source: of the batches.
        first_step: the global step at which the run began.
        details: what `details` returned when the state was saved; empty for a new run.
        data: what `state` returned then.
    """

    def __init__(
        self,
        source: Source,
        first_step: int,
        details: Mapping[str, Any],
        data: Mapping[str, bytes],
    ):
        self._source = source
        self._first = first_step
        # Of a stream, which cannot be indexed: where it stood, and its iterator there.
        self._snapshot = (details[_SNAPSHOT], data) if _SNAPSHOT in details else None

    def batches(self, step: int) -> Iterator[Batch]:
        """Yields the batches of the steps after a global step."""
        start = step - self._first
        if self._snapshot is None:
            return self._source.batches(start)
        return self._source.batches(start, self._snapshot)

    def names(self, step: int) -> str:
        """Returns the names of the examples behind the update that led to a global step."""
        return ", ".join(self._source.example_ids(step - self._first - 1))

    def steps_at(self, step: int) -> int:
        """Returns how many steps of the run lie before a global step."""
        return step - self._first

    def saved_at(self, step: int) -> tuple[dict[str, Any], dict[str, bytes]]:
        """Returns what to save of the data with the state of a global step: details and bytes."""
        done = step - self._first
        details = {"steps": done, "data": self._source.fingerprint}
        snapshot = getattr(self._source, "snapshot", None)
        found = snapshot(done) if snapshot is not None else None
        if found is None:
            return details, {}
        at, files = found
        return details | {_SNAPSHOT: at}, dict(files)
