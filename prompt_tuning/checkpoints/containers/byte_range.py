"""Parts of files of strangers, of which no more is read than asked for, and never past the end."""

import contextlib
import math
from collections.abc import Iterator

import numpy as np
from etils import epath

from prompt_tuning.checkpoints.containers.stored import Index, Stored
from prompt_tuning.errors import CheckpointError

# More dimensions than any parameter has, fewer than numpy's limit.
MAX_DIMENSIONS = 16


def file_size(path: epath.Path) -> int:
    """Returns the bytes of a file.

    Raises:
        CheckpointError: there is no file at the path.
    """
    try:
        stat = path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointError(f"There is no file at {path!s}.") from error
    if stat.is_directory:
        raise CheckpointError(f"{path!s} is a folder, expected a file.")
    return stat.length


def read_range(path: epath.Path, start: int, size: int) -> bytes:
    """Returns `size` bytes of a file from byte `start` on.

    Raises:
        CheckpointError: the file is not there, or ends before.
    """
    available = file_size(path)
    if not 0 <= start <= start + size <= available:
        raise CheckpointError(
            f"{path!s} has {available} bytes, but bytes {start} to {start + size} are needed. "
            "The file is cut short or damaged."
        )
    return _read(path, start, size)


def _read(path: epath.Path, start: int, size: int) -> bytes:
    """Reads on until `size` bytes are there: a store may hand out fewer at once."""
    try:
        with path.open("rb") as file:
            file.seek(start)
            content = file.read(size)
            if len(content) == size:
                return content
            pieces = [content]
            while content := file.read(size - sum(map(len, pieces))):
                pieces.append(content)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path!s} is gone.") from error
    whole = b"".join(pieces)
    if len(whole) < size:
        raise CheckpointError(
            f"{path!s} ended {size - len(whole)} bytes before an array did. The file is cut short."
        )
    return whole


def read_whole(path: epath.Path, *, limit: int) -> bytes:
    """Returns a small file.

    Raises:
        CheckpointError: it is not there, or larger than `limit`.
    """
    size = file_size(path)
    if size > limit:
        raise CheckpointError(f"{path!s} has {size} bytes, expected no more than {limit}.")
    return read_range(path, 0, size)


def array_at(
    path: epath.Path, start: int, shape: tuple[int, ...], dtype: np.dtype, where: str
) -> Stored:
    """Returns an array whose rows lie one after the other from byte `start` on.

    The caller has checked that it lies inside the file, which bounds what is allocated. Of the
    first dimension only the rows that are asked for are read.
    """

    def read(index: Index) -> np.ndarray:
        rows, rest = (index[0], index[1:]) if shape else (slice(0, 1), ())
        row_bytes = math.prod(shape[1:]) * dtype.itemsize
        count = max(rows.stop - rows.start, 0)
        content = _read(path, start + rows.start * row_bytes, count * row_bytes)
        array = np.frombuffer(content, dtype).reshape((count, *shape[1:]) if shape else ())
        return array[(slice(None), *rest)] if shape else array

    return Stored(shape=shape, dtype=dtype, read=read, where=where)


@contextlib.contextmanager
def damaged(where: object, *faults: type[Exception]) -> Iterator[None]:
    """Turns what a parser raises over a damaged file into CheckpointError.

    A number that is too large for the machine and text that is nested too deeply always count.
    """
    try:
        yield
    except CheckpointError:
        raise
    except (*faults, OverflowError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"[:200]
        raise CheckpointError(f"{where!s} is damaged or of another format ({reason}).") from error
