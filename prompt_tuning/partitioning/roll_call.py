"""Before JAX connects the processes: who has come, and do all of them run the same.

JAX waits for all and then aborts, without a word on who is missing. So process 0 first listens at
the address at which JAX's own service will listen afterwards; the others come there, say who they
are and what they run, and all of them get the same verdict. Nothing of JAX is needed for it. The
connections stay open: by them the processes hear of each other's end (`fellows`).
"""

import contextlib
import dataclasses
import json
import os
import selectors
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prompt_tuning.errors import ConfigError, DeviceError, PromptTuningError
from prompt_tuning.partitioning.clusters import Seat

_LINE = 1 << 22  # bytes that a process may need to say what it runs
_RETRY = 0.3  # seconds between two attempts to reach process 0
_MARGIN = 5.0  # seconds that one waits longer for the verdict than process 0 for the others
_SHOWN = 8  # differences that are told one by one


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
    """What must be the same in all processes, by name.

    Attributes:
        software: versions, platforms, devices.
        settings: of the configuration.
    """

    software: Mapping[str, str] = dataclasses.field(default_factory=dict)
    settings: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Company:
    """All processes of a run, when they have come together.

    Attributes:
        names: how each is called in messages, by index.
        index: of this one.
        lines: open connections, by the index of the process at the other end: process 0 has one to
            each of the others, each of them has one to process 0.
    """

    names: tuple[str, ...]
    index: int
    lines: Mapping[int, socket.socket]


def answer(seat: Seat, facts: Facts, seconds: float) -> Company:
    """Waits until all processes have come.

    Args:
        seat: of this process.
        facts: what it runs.
        seconds: how long to wait for the others.

    Raises:
        DeviceError: some have not come, an index is taken twice, process 0 cannot listen, or the
            processes run different software.
        ConfigError: their settings differ.
    """
    entry = {
        "index": seat.index,
        "count": seat.count,
        "name": f"process {seat.index} on {socket.gethostname()}, pid {os.getpid()}",
        "software": dict(facts.software),
        "settings": dict(facts.settings),
    }
    verdict, lines = (_call if seat.index == 0 else _answer)(seat, entry, seconds)
    if verdict["text"]:
        for line in lines.values():
            line.close()
        raise _ERRORS[verdict["code"]](verdict["text"])
    for line in lines.values():
        _keep_alive(line)
    return Company(names=tuple(verdict["names"]), index=seat.index, lines=lines)


_ENTRY = {"index", "count", "name", "software", "settings"}
_ERRORS: dict[int, type[PromptTuningError]] = {2: ConfigError, 5: DeviceError}


def _verdict(text: str = "", code: int = 5, names: Sequence[str] = ()) -> dict[str, Any]:
    return {"text": text, "code": code, "names": list(names)}


def _call(
    seat: Seat, own: dict[str, Any], seconds: float
) -> tuple[dict[str, Any], dict[int, socket.socket]]:
    """What process 0 does: hears all, judges, and tells all."""
    deadline = time.monotonic() + seconds
    present: dict[socket.socket, dict[str, Any]] = {}
    heard: dict[socket.socket, bytes] = {}
    verdict = None
    with _listening(seat) as server, selectors.DefaultSelector() as ears:
        ears.register(server, selectors.EVENT_READ)
        while verdict is None:
            entries = [own, *present.values()]
            verdict = _twice(entries) or _complete(seat, entries)
            left = deadline - time.monotonic()
            if verdict is None and left <= 0:
                verdict = _verdict(_incomplete(seat, entries, seconds))
            for key, _ in ears.select(left) if verdict is None else ():
                if key.fileobj is server:
                    guest = server.accept()[0]
                    guest.settimeout(5)
                    ears.register(guest, selectors.EVENT_READ)
                    heard[guest] = b""
                    continue
                guest = key.fileobj
                assert isinstance(guest, socket.socket)
                said = _more(guest)
                heard[guest] += said
                entry = _entry(heard[guest])
                if not said or len(heard[guest]) > _LINE:  # gone, or none of ours
                    present.pop(guest, None)
                    ears.unregister(guest)
                    heard.pop(guest)
                    guest.close()
                elif entry is not None:
                    # One that comes again has given up its other connection.
                    again = [one for one, old in present.items() if old["name"] == entry["name"]]
                    for one in again:
                        present.pop(one)
                    present[guest] = entry
                    _tell(present, {"missing": _missing(seat, [own, *present.values()])})
    _tell(present, {"verdict": verdict})
    for guest in heard if verdict["text"] else heard.keys() - present.keys():
        guest.close()
    return verdict, {entry["index"]: guest for guest, entry in present.items()}


def _answer(
    seat: Seat, own: dict[str, Any], seconds: float
) -> tuple[dict[str, Any], dict[int, socket.socket]]:
    """What the others do: come, say who they are, and wait for what process 0 says."""
    deadline = time.monotonic() + seconds
    missing: list[int] = [0]
    while time.monotonic() < deadline:
        # A process 0 that goes away without a verdict may be starting again.
        with contextlib.suppress(OSError, ValueError), contextlib.ExitStack() as stack:
            left = max(0.1, deadline - time.monotonic())
            line = socket.create_connection(_parts(seat.address), timeout=min(left, 10))
            stack.callback(line.close)
            line.sendall(json.dumps(own).encode() + b"\n")
            # Process 0 may be about to say who is missing.
            line.settimeout(left + _MARGIN)
            missing = [0]
            for message in _messages(line):
                if "verdict" in message:
                    stack.pop_all()
                    return message["verdict"], {0: line}
                missing = message["missing"]
        time.sleep(max(0.0, min(_RETRY, deadline - time.monotonic())))
    return _verdict(_not_come(seat, missing, seconds)), {}


def _messages(line: socket.socket) -> Iterator[dict[str, Any]]:
    said = b""
    while more := line.recv(1 << 16):
        *whole, said = (said + more).split(b"\n")
        yield from map(json.loads, whole)


def _keep_alive(line: socket.socket) -> None:
    """Lets the system find out, in 30 seconds, if the host at the other end is gone."""
    line.settimeout(None)
    line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}.items():
        if hasattr(socket, name):  # of Linux
            line.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


@contextlib.contextmanager
def _listening(seat: Seat) -> Iterator[socket.socket]:
    """Listens where JAX's service will."""
    given = os.environ.get("JAX_COORDINATOR_BIND_ADDRESS")
    host, port = _parts(given or seat.address)
    # As JAX: at all addresses of this host, if none is named for it.
    both = socket.has_dualstack_ipv6() and (not given or ":" in host)
    at = (host if given else "", port)
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        server = socket.create_server(at, family=family, backlog=1024, dualstack_ipv6=both)
    except OSError as error:
        raise DeviceError(
            f"Process 0 cannot listen on port {port} ({error.strerror}). Choose a free port of its "
            "host in --coordinator_address, the same for all processes; a run that was stopped "
            "may still hold it."
        ) from error
    with server:
        yield server


def _complete(seat: Seat, entries: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The verdict when all have come."""
    if _missing(seat, entries):
        return None
    first, *others = sorted(entries, key=lambda entry: entry["index"])
    for kind, code in (("software", 5), ("settings", 2)):
        found = [line for other in others for line in _differences(kind, first, other)]
        if found:
            more = len(found) - _SHOWN
            lines = [*found[:_SHOWN], *([f"and {more} more"] if more > 0 else [])]
            mend = {
                "software": "Install the same on all of them, on the same kind of host.",
                "settings": "Give every process the same files and flags; only --process_index "
                "differs. Runs that are to be separate take --nomultiprocess_gpu.",
            }[kind]
            what = {"software": "run different software", "settings": "have different settings"}
            text = "\n  ".join([f"The processes {what[kind]}:", *lines])
            return _verdict(f"{text}\n{mend}", code)
    return _verdict(names=[entry["name"] for entry in (first, *others)])


def _differences(kind: str, ours: dict[str, Any], theirs: dict[str, Any]) -> Iterator[str]:
    a, b = ours[kind], theirs[kind]
    for name in sorted(a.keys() | b.keys()):
        if a.get(name) != b.get(name):
            yield f"{theirs['name']}: {_of(b, name)}; process 0: {_of(a, name)}"


def _of(facts: Mapping[str, str], name: str) -> str:
    return f"{name} {facts[name]}" if name in facts else f"no {name}"


def _twice(entries: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The verdict on two processes that cannot be of the same run."""
    seen: dict[int, dict[str, Any]] = {}
    for entry in entries:
        other = seen.setdefault(entry["index"], entry)
        if other is not entry:
            return _verdict(
                f"Two processes have the index {entry['index']}: {other['name']} and "
                f"{entry['name']}. Give each its own --process_index."
            )
        if entry["count"] != entries[0]["count"]:
            return _verdict(
                f"{entry['name']} was told of {entry['count']} processes, {entries[0]['name']} of "
                f"{entries[0]['count']}. Give all the same --process_count."
            )
    return None


def _missing(seat: Seat, entries: Sequence[dict[str, Any]]) -> list[int]:
    return sorted(set(range(seat.count)) - {entry["index"] for entry in entries})


def _incomplete(seat: Seat, entries: Sequence[dict[str, Any]], seconds: float) -> str:
    names = "; ".join(sorted(entry["name"] for entry in entries))
    return f"{_not_come(seat, _missing(seat, entries), seconds)} There were: {names}."


def _not_come(seat: Seat, missing: Sequence[int], seconds: float) -> str:
    indices = ", ".join(map(str, missing[:20])) + (", ..." if len(missing) > 20 else "")
    return (
        f"After {seconds:g} seconds not all of {seat.count} processes have come together at "
        f"{seat.address}: {'process' if len(missing) == 1 else 'processes'} {indices} did not. "
        "Look at the log of each; start every process with the same --coordinator_address (a host "
        "and a free port of process 0 that all can reach) and --process_count, each with its own "
        "--process_index, or wait longer with --initialization_timeout."
    )


def _tell(present: Mapping[socket.socket, Any], message: dict[str, Any]) -> None:
    line = json.dumps(message).encode() + b"\n"
    for guest in present:
        with contextlib.suppress(OSError):  # Its end is heard of by who listens to it.
            guest.sendall(line)


def _more(guest: socket.socket) -> bytes:
    try:
        return guest.recv(1 << 16)
    except OSError:
        return b""


def _entry(said: bytes) -> dict[str, Any] | None:
    """What a process says of itself, once it is whole."""
    with contextlib.suppress(ValueError):
        found = json.loads(said) if said.endswith(b"\n") else None
        if isinstance(found, dict) and found.keys() >= _ENTRY:
            return found
    return None


def _parts(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)
