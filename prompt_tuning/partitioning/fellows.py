"""The other processes of a run: when one of them dies, this one ends too, and says why.

What processes compute together waits for all of them. When one is lost the others meet an error
(gloo on CPUs), wait for ever (TPU and GPU collectives), or are aborted by JAX without an exit code
of ours. Nothing needs to be rescued: whatever is saved is whole at every moment, as a run may be
killed at every moment.
"""

import contextlib
import ctypes
import json
import os
import re
import selectors
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from typing import Any

import jax
from jax._src import distributed

from prompt_tuning.errors import DeviceError, Preempted, PromptTuningError
from prompt_tuning.partitioning.roll_call import Company

# Seconds without a sign of life after which JAX's coordination service takes a process for dead,
# if the system has not told before. A thread of its own gives the sign, which neither compiling nor
# a long evaluation holds up.
HEARTBEAT = 50
_GRACE = 2.0  # seconds in which this process may meet the fault of another itself
_LINGER = 4.0  # seconds that a process with a fault stays, for the others to hear of it
_TOLD = 40.0  # seconds until the system has told of any end, that of a whole host too
_DAY = 24 * 60 * 60 * 1000  # milliseconds
_NOTICE = "RECEIVED_PREEMPTION_NOTICE"  # where JAX notes that one of them is preempted
# What gloo, NCCL, gRPC and JAX's coordination service say of a connection or a barrier.
_OF_CONNECTIONS = re.compile(
    r"gloo|nccl|UNAVAILABLE|ABORTED|DEADLINE_EXCEEDED|coordination service|barrier"
    r"|connection (reset|closed|refused)|socket closed",
    re.IGNORECASE,
)


class Fellows:
    """The processes of a connected run, to be watched around all that they do.

    Process 0 has a connection to each of the others. Where one breaks, a process has ended: the
    system closes it however the process has died, at once, and after 30 seconds if the whole host
    is gone. Process 0 tells the others. Each then ends with the exit code of `DeviceError`, or with
    that of `Preempted` if one of them had been told to stop. A process that ends by a fault of its
    own says so first, and the others repeat it. One that is done waits for the others.

    Args:
        company: from the roll call.
    """

    def __init__(self, company: Company):
        self.names = company.names
        self._index = company.index
        self._lines = dict(company.lines)
        self._done: set[int] = set()
        self._sending = threading.Lock()
        self._leaving = threading.Event()
        self._closed = threading.Event()
        self._preempted = False
        self._service: Any = distributed.global_state.client

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Watches the others meanwhile; afterwards the processes are no longer connected."""
        _outlive_abort()
        for work in (self._listen, self._heed_notice):
            threading.Thread(target=work, name=work.__name__, daemon=True).start()
        try:
            yield
            self._finish()
        except Preempted:
            self._finish()  # which all of them do before the same step
            raise
        except BaseException as error:
            if _from_outside(error):
                # Who is missing says more, and ends this process.
                self._closed.wait(_TOLD)
            self._leave(error)
            raise

    def _finish(self) -> None:
        # Whoever comes here has written all that is its own. The others may still be at work.
        self._service.wait_at_barrier("prompt_tuning/finished", _DAY)
        self._closed.set()
        self._tell({"done": self._index})
        jax.distributed.shutdown()

    def _leave(self, error: BaseException) -> None:
        """Lets the others know of a fault, and ends this process though they still wait for it."""
        self._leaving.set()
        code = _exit_code(error)
        name = self.names[self._index]
        self._tell({"end": f"{name} has ended with exit code {code}: {str(error)[:2000]}"})
        # On its way out JAX would wait for the others, and threads of ours may hang on them.
        leave = threading.Timer(_LINGER, _end, [code])
        leave.daemon = True
        leave.start()

    def _listen(self) -> None:
        heard = dict.fromkeys(self._lines, b"")
        with selectors.DefaultSelector() as ears:
            for index, line in self._lines.items():
                ears.register(line, selectors.EVENT_READ, index)
            while ears.get_map():
                for key, _ in ears.select():
                    index = key.data
                    said = _more(self._lines[index])
                    *whole, heard[index] = (heard[index] + said).split(b"\n")
                    for message in map(json.loads, whole):
                        self._heard(index, message)
                    if not said:
                        ears.unregister(key.fileobj)
                        if index not in self._done:
                            lost = f"Lost {self.names[index]}: it has died, or the network to it."
                            self._heard(index, {"end": lost})

    def _heard(self, index: int, message: dict[str, Any]) -> None:
        if "done" in message:
            self._done.add(index)
            return
        if self._index == 0:
            self._tell(message, but=index)
        # Most faults are met by all, each of which says it best itself.
        if self._leaving.wait(_GRACE) or self._closed.is_set():
            return
        code = Preempted.exit_code if self._preempted else DeviceError.exit_code
        what = "preempted" if self._preempted else "error"
        print(
            f"{what}: {message['end'].rstrip('.')}. {self.names[self._index]} cannot go "
            "on without it. What was saved is whole: start the same command again in every "
            "process.",
            file=sys.stderr,
        )
        _end(code)

    def _tell(self, message: dict[str, Any], but: int | None = None) -> None:
        said = json.dumps(message).encode() + b"\n"
        with self._sending:
            for index, line in self._lines.items():
                if index != but:
                    with contextlib.suppress(OSError):  # Its end is heard of by who listens to it.
                        line.sendall(said)

    def _heed_notice(self) -> None:
        while not (self._preempted or self._closed.wait(1)):
            with contextlib.suppress(RuntimeError):  # there is none
                self._service.key_value_try_get(_NOTICE)
                self._preempted = True


def _more(line: socket.socket) -> bytes:
    try:
        return line.recv(1 << 16)
    except OSError:
        return b""


def _outlive_abort() -> None:
    """Puts some seconds between JAX's decision to abort and the end, for us to end instead.

    Its coordination service aborts the process (exit code 134) as soon as it has lost another, from
    a thread and in C++. A handler of Python's would run too late, one of `ctypes` might wait for
    ever. `sleep`, which gets the number of the signal, 6, as its argument, may be called in a
    handler; afterwards the process is aborted after all.
    """
    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    libc.signal(signal.SIGABRT, ctypes.cast(libc.sleep, ctypes.c_void_p))


def _from_outside(error: BaseException | None) -> bool:
    """Whether an error may come of the loss of another process, whatever it was turned into."""
    while error is not None:
        if _OF_CONNECTIONS.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def _exit_code(error: BaseException) -> int:
    if isinstance(error, PromptTuningError):
        return error.exit_code
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        return 6
    return 130 if isinstance(error, KeyboardInterrupt) else 1


def _end(code: int) -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(code)
