"""What a path and an error about it say by themselves, and whether a remote path can be reached."""

import errno
import os
import socket
import threading
import urllib.request

# An error of writing with one of these is a disk, a quota or a limit that is full.
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

_GOOGLE = ("storage.googleapis.com", 443)
# Where these are set, somebody else than Google answers for `gs://`.
_EMULATORS = ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL")


def is_local(path: str | os.PathLike[str]) -> bool:
    """Tells whether a path lies in this machine's file system, and not in an object store.

    >>> is_local("/tmp/run"), is_local("gs://bucket/run")
    (True, False)
    """
    return "://" not in os.fspath(path)


def unreachable(path: str | os.PathLike[str], *, seconds: float = 5.0) -> str | None:
    """Returns why the object store of a `gs://` path does not answer; None for any other path.

    The libraries that read from it go on trying for a minute (gcsfs) or ask for credentials first
    (TensorFlow, for minutes in some networks), so ask this before they do. Where there is a proxy
    or an emulator it is not known who will answer, and they have to find out.
    """
    proxied = "https" in urllib.request.getproxies()
    if not os.fspath(path).startswith("gs://") or proxied or any(map(os.getenv, _EMULATORS)):
        return None
    answers: list[str | None] = []

    def connect() -> None:
        try:
            socket.create_connection(_GOOGLE, timeout=seconds).close()
        except OSError as error:
            answers.append(f"{_GOOGLE[0]} cannot be reached: {error}")
        else:
            answers.append(None)

    # In a thread, as looking up the name of a host has no time limit of its own.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(seconds)
    return answers[0] if answers else f"{_GOOGLE[0]} did not answer within {seconds:g} seconds"
