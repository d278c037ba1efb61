"""One trainer for one MODEL_DIR."""

import contextlib
import fcntl
import os
import socket
import time

from etils import epath

from prompt_tuning.errors import CheckpointError
from prompt_tuning.paths import is_local

FILE = ".lock"


class RunLock:
    """Holds a run's folder as long as the block runs, so that no second trainer writes into it.

    The kernel lets go of it however the process ends. An object store has no locks: there nobody is
    kept out.

    Raises:
        CheckpointError: another process holds it; nothing was written.
    """

    def __init__(self, model_dir: epath.PathLike):
        self._folder = epath.Path(model_dir)
        self._descriptor: int | None = None

    def __enter__(self) -> "RunLock":
        if not is_local(self._folder):
            return self
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / FILE
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(descriptor, 1000).decode("utf-8", errors="replace").strip()
            os.close(descriptor)
            raise CheckpointError(
                f"Another trainer is at work in {self._folder!s}: {holder or 'it just started'}. "
                "Wait for it, stop it, or choose another MODEL_DIR."
            ) from error
        except OSError:
            # A file system without locks keeps nobody out, as an object store.
            os.close(descriptor)
            return self
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        holder = f"process {os.getpid()} on {socket.gethostname()} since {now}\n"
        with contextlib.suppress(OSError):  # Of a full disk: it is held without a name on it.
            os.ftruncate(descriptor, 0)
            os.write(descriptor, holder.encode())
        self._descriptor = descriptor
        return self

    def __exit__(self, *exception) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
