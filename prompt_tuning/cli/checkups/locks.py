"""Who holds the TPU: the lock file that libtpu leaves, and processes with its devices open.

After a crash either may stay behind, and the next run is told that the TPU is in use. Nothing is
removed here: a lock may be somebody's.
"""

import contextlib
import dataclasses
import os
import pathlib
import signal
import time
from collections.abc import Iterator

from prompt_tuning.cli.checkups.finding import Finding
from prompt_tuning.cli.checkups.machine import Machine
from prompt_tuning.errors import DeviceError

GROUP = "locks"
PATIENCE = 5.0  # for a process that is asked to end


@dataclasses.dataclass(frozen=True, kw_only=True)
class Holder:
    """A process that has the lock or a chip open."""

    pid: int
    command: str
    what: str

    def __str__(self) -> str:
        return f"{self.pid} ({self.command}) holds {self.what}"


def check(machine: Machine, *, kill: bool) -> Iterator[Finding]:
    """Yields who holds the TPU and what to do.

    Args:
        machine: where to look.
        kill: ask those processes to end.
    """
    holders, unseen = _holders(machine)
    if kill and holders:
        asked, holders = holders, _end(machine, holders)
        yield _ended(asked, holders)
    if holders:
        yield Finding(
            group=GROUP,
            name="TPU",
            state="fault",
            found="in use: " + "; ".join(map(str, holders)),
            advice="Wait for it, or have it asked to end: prompt-tuning doctor --kill",
            kind=DeviceError,
        )
    if machine.lock.exists():
        yield _lock(machine.lock, held=bool(holders), unseen=unseen)
    elif not holders:
        chips = f" of {len(machine.tpu_devices())} chips" if machine.tpu_devices() else ""
        yield Finding(group=GROUP, name="TPU", state="ok", found=f"no lock, no holder{chips}")


def _lock(lock: pathlib.Path, *, held: bool, unseen: int) -> Finding:
    age = _duration(time.time() - lock.stat().st_mtime)
    if held:
        return Finding(
            group=GROUP, name=str(lock), state="ok", found=f"{age} old, of the process above"
        )
    strangers = (
        f" Those of other users ({unseen}) could not be looked at: with sudo they can."
        if unseen
        else ""
    )
    return Finding(
        group=GROUP,
        name=str(lock),
        state="warning",
        found=f"{age} old, and no process is seen to hold it",
        advice=f"If no run uses this TPU, remove it: rm {lock}.{strangers}",
    )


def _ended(asked: list[Holder], left: list[Holder]) -> Finding:
    pids = ", ".join(str(pid) for pid in sorted({one.pid for one in asked}))
    return Finding(
        group=GROUP,
        name="--kill",
        state="warning" if left else "ok",
        found=f"asked to end: {pids}" + ("; not all have, yet" if left else "; done"),
        advice="A run saves before it ends. If one never does: kill -9 PID" if left else "",
    )


def _end(machine: Machine, holders: list[Holder]) -> list[Holder]:
    """Asks processes to end and returns who still holds something a little later."""
    for pid in {one.pid for one in holders}:
        # Who is left is looked at below.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and (holders := _holders(machine)[0]):
        time.sleep(0.1)
    return holders


def _holders(machine: Machine) -> tuple[list[Holder], int]:
    """Returns who holds something, and how many processes may not be looked at."""
    wanted = {str(path) for path in (machine.lock, *machine.tpu_devices())}
    found, unseen = [], 0
    for folder in machine.proc.glob("[0-9]*"):
        try:
            targets = {os.readlink(link) for link in (folder / "fd").iterdir()}
        except PermissionError:
            unseen += 1
        except OSError:  # it has ended
            pass
        else:
            if (held := sorted(targets & wanted)) and int(folder.name) != os.getpid():
                what = ", ".join(held)
                found.append(Holder(pid=int(folder.name), command=_command(folder), what=what))
    return sorted(found, key=lambda one: one.pid), unseen


def _command(folder: pathlib.Path) -> str:
    try:
        words = (folder / "cmdline").read_bytes().split(b"\0")
    except OSError:
        words = []
    text = " ".join(word.decode(errors="replace") for word in words if word)
    return f"{text[:57]}..." if len(text) > 60 else text or "unknown"


def _duration(seconds: float) -> str:
    for size, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {name}"
    return f"{max(seconds, 0):.0f} seconds"
