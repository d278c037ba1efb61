"""Says when a step takes far longer than the others, and what every thread is doing meanwhile."""

import collections
import contextlib
import faulthandler
import logging
import os
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator

from etils import epath

from prompt_tuning.errors import ConfigError

_REMEMBERED = 100  # step times the median is taken over
_ENOUGH = 10  # and how many of them before it says anything

log = logging.getLogger("prompt_tuning")


class Watchdog:
    """Watches the steps of a loop from a thread; use as a context manager around them.

    A step that takes longer than both `at_least` seconds and `factor` times the median of the last
    100 steps is probably stuck: on a process that has died, on data that does not come, on a
    deadlock. Once for each such step the stacks of all threads go to standard error and, appended,
    to `<folder>/stacks-<host>-<process id>.txt`. Nothing is stopped, for it may be only slow. Of a
    run's first ten steps no median is known: they may take `factor * at_least` seconds.

    Args:
        folder: the run's.
        factor: how many medians are far too long.
        at_least: seconds that are never too long.
    """

    def __init__(
        self, folder: epath.PathLike, *, factor: float | int = 10, at_least: float | int = 60
    ):
        if not (factor >= 1 and at_least > 0):
            raise ConfigError(
                f"Watchdog(factor={factor}, at_least={at_least}) would find fault with every step. "
                "Expected a factor of 1 or more and a time above 0 seconds."
            )
        self.path = epath.Path(folder) / f"stacks-{socket.gethostname()}-{os.getpid()}.txt"
        self._factor = float(factor)
        self._at_least = float(at_least)
        self._times: collections.deque[float] = collections.deque(maxlen=_REMEMBERED)
        # The step under way and since when; none before the first and while it is paused. One
        # tuple, replaced as a whole, so that the thread needs no lock to read it.
        self._under_way: tuple[int, float] | None = None
        self._reported: int | None = None
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "Watchdog":
        self._closed.clear()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception) -> None:
        self._under_way = None
        self._closed.set()
        if self._thread is not None:
            self._thread.join()

    def begin(self, step: int) -> None:
        """Notes that the step before has ended and `step` begins."""
        now = time.monotonic()
        if self._under_way is not None:
            before, since = self._under_way
            self._times.append(now - since)
            if self._reported == before:
                log.warning("Step %d ended after %.3g s.", before, now - since)
        self._under_way = (step, now)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves out what takes its time within a step: compiling, saving, evaluating."""
        under_way, began = self._under_way, time.monotonic()
        self._under_way = None
        try:
            yield
        finally:
            if under_way is not None:
                step, since = under_way
                self._under_way = (step, since + time.monotonic() - began)

    def limit(self) -> float:
        """Returns after how many seconds a step is reported, as things stand."""
        times = tuple(self._times)
        if len(times) < _ENOUGH:
            return self._factor * self._at_least
        return max(self._at_least, self._factor * statistics.median(times))

    def _watch(self) -> None:
        wait = self._at_least
        while not self._closed.wait(wait):
            # While there is nothing to watch, look again soon; and a limit can only sink to this.
            wait = min(self._at_least, 1.0)
            under_way = self._under_way
            if under_way is None or under_way[0] == self._reported:
                continue
            step, since = under_way
            taken, limit = time.monotonic() - since, self.limit()
            if taken > limit:
                self._report(step, taken)
            else:
                wait = min(self._at_least, limit - taken)

    def _report(self, step: int, taken: float) -> None:
        self._reported = step
        usual = f"usually {statistics.median(self._times):.2g} s" if self._times else "the first"
        where = f"above and in {self.path}"
        try:
            stacks = _stacks()
            print(stacks, file=sys.stderr, flush=True)
            _append(self.path, f"{time.strftime('%Y-%m-%d %H:%M:%S')} step {step}\n\n{stacks}\n")
        except OSError as error:  # A full disk, say, which the run itself may not have noticed yet.
            where = f"not in {self.path}, which could not be written: {error}"
        log.warning(
            "Step %d has been running for %.3g s (%s) and may be stuck. What every thread is doing "
            "is %s. The run goes on.",
            step,
            taken,
            usual,
            where,
        )


def _stacks() -> str:
    # It writes to a file of the system's only, and a user's folder may be an object store.
    with tempfile.TemporaryFile() as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        stacks = file.read().decode("utf-8", errors="replace")
    names = [f"0x{thread.ident or 0:016x} is {thread.name}" for thread in threading.enumerate()]
    return "\n".join([*names, "", stacks])


def _append(path: epath.Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    earlier = path.read_text() if path.exists() else ""
    path.write_text(earlier + text)
