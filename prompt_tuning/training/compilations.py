"""Counts what JAX compiles, and says so when a step is compiled for a bucket that it knows.

A step is compiled at the first batch of every bucket and never again. What would change that (a
batch of fewer rows, an array of another dtype or on another device) costs minutes on a large model
without any other sign than a slow run.
"""

import contextlib
import functools
import logging
import threading
from collections.abc import Iterator

import jax

from prompt_tuning.batch import Batch

log = logging.getLogger("prompt_tuning")

# JAX's event of a program compiled, or read from its cache on disk; it comes in the same thread.
_COMPILED = "/jax/core/compile/backend_compile_duration"
_counts = threading.local()


class Compilations:
    """Counts the programs of one step, by the lengths of its batches.

    Args:
        step: what is compiled, for the warning: "The training step".

    Attributes:
        programs: how many were compiled so far.
    """

    def __init__(self, step: str):
        self.programs = 0
        self._step = step
        self._known: dict[tuple[int, int], str] = {}

    def known(self, batch: Batch) -> bool:
        """Tells whether the step is compiled for batches of these lengths."""
        return _lengths(batch) in self._known

    @contextlib.contextmanager
    def counted(self, batch: Batch) -> Iterator[None]:
        """Counts what the call of the step in this context compiles, and warns of a surplus."""
        before = _programs()
        yield
        made = _programs() - before
        self.programs += made
        lengths, shapes = _lengths(batch), _shapes(batch)
        if lengths not in self._known:
            self._known[lengths] = shapes
            return
        if not made:
            return
        first = self._known[lengths]
        log.warning(
            "%s was compiled again for a bucket that it knew, which costs time at every such "
            "batch: %s",
            self._step,
            f"the batch has {shapes}, the first one had {first}."
            if shapes != first
            else f"shapes and dtypes are those of the first batch ({shapes}), so something else "
            "that it reads has changed its dtype or its device.",
        )


def _lengths(batch: Batch) -> tuple[int, int]:
    return batch.inputs.shape[1], batch.targets.shape[1]


def _shapes(batch: Batch) -> str:
    arrays = {"inputs": batch.inputs, "targets": batch.targets, "weights": batch.weights}
    return ", ".join(f"{name} {one.dtype}{list(one.shape)}" for name, one in arrays.items())


def _programs() -> int:
    """Returns how many programs this thread has compiled since it was first asked."""
    _listen()
    return getattr(_counts, "programs", 0)


@functools.cache
def _listen() -> None:
    jax.monitoring.register_event_duration_secs_listener(_count)


def _count(event: str, duration_secs: float, **kwargs: str | int) -> None:
    del duration_secs, kwargs
    if event == _COMPILED:
        _counts.programs = getattr(_counts, "programs", 0) + 1
