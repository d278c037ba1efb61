"""What a path and an error about it say by themselves."""

import errno
import os

# An error of writing with one of these is a disk, a quota or a limit that is full.
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def is_local(path: str | os.PathLike[str]) -> bool:
    """Tells whether a path lies in this machine's file system, and not in an object store.

    >>> is_local("/tmp/run"), is_local("gs://bucket/run")
    (True, False)
    """
    return "://" not in os.fspath(path)
