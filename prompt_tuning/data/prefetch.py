"""Batches made ahead of time, so that no step waits for its data."""

import dataclasses
import queue
import threading
from collections.abc import Callable, Iterator
from typing import TypeAlias

from prompt_tuning.batch import Batch

Place: TypeAlias = Callable[[Batch], Batch]


def prefetch(
    batches: Iterator[Batch], *, place: Place | None = None, depth: int = 2
) -> Iterator[Batch]:
    """Yields the same batches, made in a background thread while the last ones are used.

    With `place`, which puts a batch on the devices, that happens in the thread as well.

    An error of `batches` is raised here, at its place in the order. The thread ends when the
    batches do or when this iterator is closed or dropped.
    """
    ready: queue.Queue[Batch | _Failure | None] = queue.Queue(depth)
    closed = threading.Event()

    def put(item: Batch | _Failure | None) -> None:
        # Without a timeout a full queue would hold the thread for ever after its consumer has gone.
        while not closed.is_set():
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def produce() -> None:
        try:
            for batch in batches:
                put(batch if place is None else place(batch))
                if closed.is_set():
                    return
            put(None)
        except BaseException as error:  # noqa: BLE001 - raised again in the consumer.
            put(_Failure(error))

    thread = threading.Thread(target=produce, name="prefetch", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, _Failure):
                raise item.error
            yield item
    finally:
        closed.set()
        thread.join()


@dataclasses.dataclass(frozen=True)
class _Failure:
    error: BaseException
