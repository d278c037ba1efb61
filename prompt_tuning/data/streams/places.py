"""Where a tf.data pipeline stands, as bytes: saved now and then, and restored."""

import collections
import contextlib
import logging
import pathlib
import tempfile
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import tensorflow as tf

from prompt_tuning.errors import DataError

log = logging.getLogger("prompt_tuning")

# The place in the stream after so many steps, and the files of tf.data's iterator there.
Snapshot = tuple[int, Mapping[str, bytes]]

# Batches are made before they are trained on, so the place that is asked for lies behind.
_AHEAD = 32


class Places:
    """The last places of a pipeline; written by the thread that reads it, read by the trainer's."""

    def __init__(self):
        self._lock = threading.Lock()
        self._kept: collections.deque[Snapshot] = collections.deque()
        self._saves = True

    def add(self, step: int, files: Mapping[str, bytes]) -> None:
        with self._lock:
            self._kept.append((step, files))
            # The newest of those that lie far enough behind is the last that may be asked for.
            while len(self._kept) > 1 and self._kept[1][0] <= step - _AHEAD:
                self._kept.popleft()

    def save(self, step: int, iterator: Any, task: str) -> None:
        if not self._saves:
            return
        try:
            self.add(step, save(iterator))
        except tf.errors.FailedPreconditionError as error:
            self._saves = False
            log.warning(
                "The place in the stream %r cannot be saved (%s): a run that goes on reads it "
                "again from its start.",
                task,
                error.message.partition("[Op:")[0].rpartition("}}")[2].strip(),
            )

    def before(self, step: int) -> Snapshot | None:
        with self._lock:
            return next((one for one in reversed(self._kept) if one[0] <= step), None)

    def forget(self) -> None:
        with self._lock:
            self._kept.clear()


def save(iterator: Any) -> dict[str, bytes]:
    """Returns the files that tell where an iterator of tf.data stands."""
    with tempfile.TemporaryDirectory(prefix="prompt-tuning-") as folder:
        tf.train.Checkpoint(iterator=iterator).write(f"{folder}/iterator")
        return {path.name: path.read_bytes() for path in sorted(pathlib.Path(folder).iterdir())}


def restore(iterator: Any, files: Mapping[str, bytes]) -> None:
    """Puts an iterator where another one of the same pipeline stood.

    Raises:
        DataError: the files are damaged or of another pipeline.
    """
    with tempfile.TemporaryDirectory(prefix="prompt-tuning-") as folder:
        for name, content in files.items():
            pathlib.Path(folder, name).write_bytes(content)
        with _unreadable():
            checkpoint = tf.train.Checkpoint(iterator=iterator)
            checkpoint.read(f"{folder}/iterator").assert_consumed()


@contextlib.contextmanager
def _unreadable() -> Iterator[None]:
    try:
        yield
    except (tf.errors.OpError, AssertionError) as error:
        raise DataError(
            f"The saved place in the stream cannot be restored: {error}. It was saved by another "
            "pipeline or another TensorFlow; resume with the one that it was saved with."
        ) from error
