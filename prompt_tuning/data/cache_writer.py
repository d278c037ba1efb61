"""Writing a cached split: whole or not at all, by one process at a time.

A local folder is filled beside its place, under a lock that the system takes back when its owner
dies, and moved there. In an object store, where nobody can lock or move, everyone may write, each
with records under a name of its own; the last document names the records that count.
"""

import contextlib
import dataclasses
import errno
import fcntl
import itertools
import logging
import os
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any

import google_crc32c
import pyarrow as pa
from etils import epath

from prompt_tuning.data.records import Feature, Records, features_of, in_batches, schema_of
from prompt_tuning.data.split_document import DOCUMENT, FORMAT, RECORDS, render
from prompt_tuning.data.tally import Tally
from prompt_tuning.errors import DataError
from prompt_tuning.paths import NO_ROOM, is_local

_TEMPORARY = ".tmp-"
_LOCK = ".lock"
_FORGOTTEN = 24 * 3600

log = logging.getLogger("prompt_tuning")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unwritten:
    """A split that is to be kept.

    Attributes:
        folder: where.
        description: what its examples follow from, see `cache.cached`.
        key: the hash of that.
    """

    folder: epath.Path
    description: Mapping[str, Any]
    key: str

    def __str__(self) -> str:
        return f"the tokenised split {self.description['split']!r} of {self.description['task']!r}"


def write(split: Unwritten, make: Callable[[], Records]) -> None:
    """Makes the records of a split and writes its folder, unless somebody else just did.

    Raises:
        DataError: no records, or the folder cannot be written.
    """
    parent = split.folder.parent
    with _explained(split):
        parent.mkdir(parents=True, exist_ok=True)
    if not is_local(parent):
        _write_objects(split, make)
        return
    with _lock(split) as locked:
        if split.folder.exists():
            return
        if locked:
            _sweep(parent)
        owner = f"{socket.gethostname()}-{os.getpid()}"
        partial = parent / f"{_TEMPORARY}{owner}-{uuid.uuid4().hex}"
        try:
            _write_folder(split, make, partial)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _write_folder(split: Unwritten, make: Callable[[], Records], partial: epath.Path) -> None:
    with _explained(split):
        partial.mkdir()
    document = _write_records(split, make, partial / RECORDS)
    with _explained(split):
        with (partial / DOCUMENT).open("w") as file:
            file.write(document)
            _to_disk(file)
        _folder_to_disk(partial)
        _move(partial, split.folder)
        _folder_to_disk(split.folder.parent)


def _write_objects(split: Unwritten, make: Callable[[], Records]) -> None:
    records = split.folder / f"{uuid.uuid4().hex}-{RECORDS}"
    with _explained(split):
        split.folder.mkdir(parents=True, exist_ok=True)
    try:
        document = _write_records(split, make, records)
    except BaseException:
        with contextlib.suppress(OSError):
            records.unlink()
        raise
    with _explained(split):
        if (split.folder / DOCUMENT).exists():
            records.unlink()
        else:
            (split.folder / DOCUMENT).write_text(document)


def _write_records(split: Unwritten, make: Callable[[], Records], path: epath.Path) -> str:
    """Writes the records into one file as they come, and returns the document about them."""
    started = time.monotonic()
    log.info("Tokenising %s into %s", str(split).removeprefix("the tokenised "), split.folder)
    records, tally = make(), Tally(split.description)
    rows = iter(records.rows)
    first = [*itertools.islice(rows, 1)]
    features = features_of(first[0]) if first else {}
    with _explained(split):
        file = path.open("wb")
    try:
        with _explained(split):
            sink = _Sink(file)
            writer = pa.ipc.new_file(sink, schema_of(features))
        for batch, chosen in in_batches(itertools.chain(first, rows), features):
            tally.add(chosen)
            with _explained(split, sink, tally, records):
                writer.write_batch(batch)
        tally.check()
        with _explained(split, sink, tally, records):
            writer.close()
            _to_disk(file)
            file.close()  # An object store takes the last bytes here, and so may complain here.
    finally:
        # After an error the rest of the bytes would make another one of the same kind.
        with contextlib.suppress(OSError):
            file.close()
    document = _document(split, features, tally, records, path.name, sink)
    seconds = time.monotonic() - started
    log.info("Tokenised %d examples in %.1f s: %s", tally.examples, seconds, _size(sink.bytes))
    return render(document)


def _document(
    split: Unwritten,
    features: Mapping[str, Feature],
    tally: Tally,
    records: Records,
    name: str,
    sink: "_Sink",
) -> dict[str, Any]:
    lengths = tally.lengths(records)
    return {
        "format": FORMAT,
        "key": split.key,
        "fingerprint": tally.fingerprint,
        "description": split.description,
        "examples": tally.examples,
        "features": [[name, one.dtype, one.rank] for name, one in features.items()],
        "lengths": {
            name: {
                "counts": {str(length): count for length, count in one.counts.items()},
                "limit": one.limit,
                "truncated": one.truncated,
            }
            for name, one in lengths.items()
        },
        "file": {"name": name, "bytes": sink.bytes, "crc32c": sink.crc},
    }


class _Sink:
    """A file that knows the size and the checksum of what was written to it."""

    closed = False

    def __init__(self, file: IO[bytes]):
        self.file = file
        self.bytes = 0
        self.crc = 0

    def write(self, content: Any) -> int:
        piece = bytes(content)
        self.file.write(piece)
        self.crc = google_crc32c.extend(self.crc, piece)
        self.bytes += len(piece)
        return len(piece)

    def tell(self) -> int:
        return self.bytes

    def flush(self) -> None:
        self.file.flush()

    def close(self) -> None:
        """Leaves the file open: whoever opened it closes it."""


@contextlib.contextmanager
def _explained(
    split: Unwritten,
    sink: _Sink | None = None,
    tally: Tally | None = None,
    records: Records | None = None,
) -> Iterator[None]:
    """Says of an error of writing which setting chose the place, and how much room is needed."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        if error.errno not in NO_ROOM:
            raise DataError(
                f"Cannot keep {split} in {str(split.folder.parent)!r}: {reason}. Set `CACHE_DIR` "
                "to a folder that can be written."
            ) from error
        raise DataError(
            f"There is no room for {split} in {str(split.folder.parent)!r}: {reason}"
            f"{_progress(sink, tally, records)}. Make room, or set `CACHE_DIR` to another disk."
        ) from error


def _progress(sink: _Sink | None, tally: Tally | None, records: Records | None) -> str:
    if sink is None or tally is None or not tally.examples:
        return ""
    done = f" after {_size(sink.bytes)} and {tally.examples:,} examples"
    if records is None or records.expected is None:
        return done
    needed = max(sink.bytes, 1) * records.expected // tally.examples
    return f"{done} of {records.expected:,}; about {_size(needed)} are needed"


def _size(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count >= 1e6 else f"{count / 1e3:,.1f} kB"


@contextlib.contextmanager
def _lock(split: Unwritten) -> Iterator[bool]:
    """Holds the lock of a task's folder, and tells whether this file system has locks."""
    with _explained(split):
        # A file of our own: epath has no descriptors.
        descriptor = os.open(split.folder.parent / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        yield _acquire(descriptor, split)
    finally:
        os.close(descriptor)


def _acquire(descriptor: int, split: Unwritten) -> bool:
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("Waiting for the process that is tokenising into %s", split.folder.parent)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError:
        return False
    return True


def _sweep(parent: epath.Path) -> None:
    """Removes what killed writers left; who holds the lock knows that they are gone."""
    for path in parent.glob(f"{_TEMPORARY}*"):
        ours = path.name.startswith(f"{_TEMPORARY}{socket.gethostname()}-")
        # Some network disks lock for each host alone, and its writer may be alive elsewhere.
        if ours or time.time() - path.stat().mtime > _FORGOTTEN:
            log.info("Removing %s, which a killed run left", path)
            shutil.rmtree(path, ignore_errors=True)


def _move(partial: epath.Path, folder: epath.Path) -> None:
    try:
        os.rename(partial, folder)
    except OSError as error:
        # Without locks another one may have been faster; what it wrote is as good.
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise


def _to_disk(file: IO[Any]) -> None:
    file.flush()
    try:
        os.fsync(file.fileno())
    except (AttributeError, OSError) as error:
        # Objects have no descriptor; they are safe once they are closed.
        if getattr(error, "errno", None) in (*NO_ROOM, errno.EIO):
            raise


def _folder_to_disk(folder: epath.Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
