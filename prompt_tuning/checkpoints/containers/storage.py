"""Where files lie, on a disk or in an object store, and how they come to be there whole or not."""

import contextlib
import os
import pathlib
import re
import uuid
from collections.abc import Iterator

from etils import epath

from prompt_tuning.errors import CheckpointError, nearest
from prompt_tuning.paths import is_local

# From the scheme of a path to the key-value store that tensorstore reads it with.
_BUCKETS = {"gs": "gcs", "s3": "s3"}
# What `_beside` calls a file or folder that is being written.
_PARTIAL = re.compile(r"\.tmp-[0-9a-f]{32}$")


def kvstore(path: epath.Path) -> dict[str, str]:
    """Returns what tensorstore calls the folder or file at a path.

    >>> kvstore(epath.Path("gs://bucket/model/checkpoint_1"))
    {'driver': 'gcs', 'bucket': 'bucket', 'path': 'model/checkpoint_1'}

    Raises:
        CheckpointError: the path has a scheme that tensorstore has no store for.
    """
    scheme, separator, rest = os.fspath(path).partition("://")
    if not separator:
        return {"driver": "file", "path": os.fspath(absolute(path))}
    if scheme not in _BUCKETS:
        raise CheckpointError(
            f"{path!s} has the scheme {scheme!r}, expected a local path or one of "
            f"{', '.join(f'{known}://' for known in _BUCKETS)}.{nearest(scheme, _BUCKETS)} "
            "Copy the checkpoint to one of these."
        )
    bucket, _, inside = rest.partition("/")
    return {"driver": _BUCKETS[scheme], "bucket": bucket, "path": inside}


def absolute(path: epath.Path) -> epath.Path:
    """Returns the same path from the root; epath's own method spoils those of object stores."""
    return path.absolute() if is_local(path) else path


def refuse_existing(path: epath.Path) -> None:
    """Raises CheckpointError if there is a file or folder at the path already."""
    if path.exists():
        raise CheckpointError(f"{path!s} already exists; choose another path or remove it.")


@contextlib.contextmanager
def new_folder(path: epath.Path) -> Iterator[epath.Path]:
    """Gives a folder to write into, which becomes `path` when the block ends without an exception.

    Until then it lies beside `path` as `<name>.tmp-<random>`; an exception removes it.

    Raises:
        CheckpointError: there is a file or folder at `path` already.
    """
    refuse_existing(path)
    partial = _beside(path)
    partial.mkdir(parents=True)
    try:
        yield partial
        refuse_existing(path)
        partial.rename(path)
    except BaseException:
        partial.rmtree(missing_ok=True)
        raise


@contextlib.contextmanager
def new_file(path: epath.Path) -> Iterator[epath.Path]:
    """Gives a path to write a file at, which becomes `path`, as `new_folder` does.

    Raises:
        CheckpointError: there is a file or folder at `path` already.
    """
    refuse_existing(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _beside(path)
    try:
        yield partial
        refuse_existing(path)
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def replaced_file(path: epath.Path) -> Iterator[epath.Path]:
    """Gives a path to write a file at, which becomes `path` in place of what was there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _beside(path)
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def remove(path: epath.Path) -> None:
    """Removes a file, or a folder with all that is in it."""
    if path.is_dir():
        path.rmtree()
    else:
        path.unlink()


def write_whole(path: epath.Path, content: bytes) -> None:
    """Writes a file so that it is either whole or absent; replaces what was there."""
    with replaced_file(path) as partial:
        partial.write_bytes(content)


def remove_partial(folder: epath.Path) -> None:
    """Removes what killed writers have left below a folder that nobody else writes into now.

    An object store has none of it: objects come to be whole.
    """
    if not is_local(folder):
        return
    for path in pathlib.Path(folder).rglob("*.tmp-*"):
        if _PARTIAL.search(path.name) and path.is_file():
            path.unlink()


def _beside(path: epath.Path) -> epath.Path:
    return path.with_name(f"{path.name}.tmp-{uuid.uuid4().hex}")
