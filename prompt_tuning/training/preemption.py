"""Stopping on request: a scheduler's SIGTERM, or Ctrl-C pressed twice."""

import os
import signal
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax.experimental import multihost_utils

from prompt_tuning.errors import Preempted

T = TypeVar("T")


class Preemption:
    """Turns signals into an orderly stop; use as a context manager around a whole run.

    - At first, while there is nothing to save, SIGTERM raises `Preempted` and Ctrl-C interrupts.
    - After `defer()`, SIGTERM and the second Ctrl-C set `requested`: the loop asks `stop` before
      every step, returns, and its state can be saved. A third Ctrl-C interrupts after all.

    The handlers of before are restored on the way out. Outside the main thread, where Python has no
    signals, and for signals that are ignored (`nohup`), nothing changes.

    In several processes any one may get the signal, and all must stop before the same step, or
    those left would wait for the others for ever. JAX's coordination service agrees on the step,
    which takes it about a second. It has a handler of its own for SIGTERM, which is left in place:
    so make a `Preemption` after `jax.distributed` is started, and what is requested before `defer`
    is heeded by the first calls of `stop`.

    Attributes:
        requested: whether to stop. In several processes it becomes true in the same call of `stop`
            in all of them.
    """

    def __init__(self) -> None:
        self.requested = False
        self._several = False
        self._deferred = False
        self._breakable = False
        self._pressed = 0
        self._asked = 0
        self._restore: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Preemption":
        self._several = jax.process_count() > 1
        if threading.current_thread() is threading.main_thread():
            self._handle(signal.SIGINT, self._pressed_ctrl_c)
            if not self._several:
                self._handle(signal.SIGTERM, self._terminated)
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self._restore.items():
            signal.signal(number, handler)
        self._restore = {}

    def defer(self) -> None:
        """Keeps requests for `stop` from here on, instead of raising."""
        self._deferred = True

    def stop(self) -> bool:
        """Whether to stop before the next step; every process asks before each of its steps."""
        if self._several and not self.requested:
            self._asked += 1
            self.requested = multihost_utils.reached_preemption_sync_point(self._asked)
        return self.requested

    def unless_requested(self, work: Callable[[], T]) -> T | None:
        """Returns `work()`, or None as soon as a stop is requested.

        For work after `defer()` that takes longer than a scheduler waits and leaves nothing half
        done where it is broken off: computing an evaluation, not writing it. In several processes
        it is never broken off, as they do it together and only `stop` agrees with the others.
        """
        if self.requested:
            return None
        try:
            self._breakable = True
            try:
                return work()
            finally:
                self._breakable = False
        except Preempted:
            return None

    def _handle(self, number: signal.Signals, handler: Callable[[int, Any], None]) -> None:
        before = signal.getsignal(number)
        if before is not signal.SIG_IGN:
            # None is a handler that is not Python's and that Python cannot put back.
            self._restore[number] = signal.SIG_DFL if before is None else before
            signal.signal(number, handler)

    def _terminated(self, number: int, frame: Any) -> None:
        first, self.requested = not self.requested, True
        # Once: cleaning up on the way out is not to be broken off by a second signal.
        if self._breakable or (first and not self._deferred):
            self._breakable = False
            raise Preempted("Stopped on request, before there was anything to save.")

    def _pressed_ctrl_c(self, number: int, frame: Any) -> None:
        self._pressed += 1
        if not self._deferred or self._pressed > 2:
            raise KeyboardInterrupt
        if self._pressed == 1:
            _say("Press Ctrl-C again to save and stop.")
            return
        _say("Saving and stopping; once more to stop without saving.")
        if self._several:
            os.kill(os.getpid(), signal.SIGTERM)  # as if to this process, for JAX to hear of it
        else:
            self._terminated(number, frame)


def _say(text: str) -> None:
    # Not by `print`: Python's buffer cannot be entered twice, and this may have interrupted a line.
    os.write(2, f"\n{text}\n".encode())
