"""Commands run at the same time, one for each host: all end well, or all end."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence

# Seconds in which the others notice by themselves that one is lost, and end in order.
_NOTICE = 60.0
_KILL = 10.0  # seconds between asking to end and ending


def run_on_hosts(commands: Mapping[str, Sequence[str]]) -> int:
    """Runs one command for each host and returns the exit code of the first that failed, or 0.

    What they print is passed on, each line after the name of its host. When one fails the others,
    which end on their own, get a minute for it. Ctrl-C ends all.

    Args:
        commands: the words of each, by host.
    """
    started = {
        host: subprocess.Popen(
            list(words),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            # Ctrl-C in the terminal comes to us alone, and we decide.
            start_new_session=True,
        )
        for host, words in commands.items()
    }
    passing_on = [
        threading.Thread(target=_pass_on, args=(host, process), daemon=True)
        for host, process in started.items()
    ]
    for thread in passing_on:
        thread.start()
    try:
        code = _wait(started)
    finally:
        _stop([process for process in started.values() if process.poll() is None])
    for thread in passing_on:
        thread.join(_KILL)
    return code


def _wait(started: Mapping[str, subprocess.Popen]) -> int:
    """Waits for all, or for the first fault and a little longer."""
    running, first, deadline = dict(started), 0, float("inf")
    while running and time.monotonic() < deadline:
        for host, process in list(running.items()):
            code = process.poll()
            if code is None:
                continue
            del running[host]
            if code:
                print(f"[{host}] ended with exit code {code}", file=sys.stderr, flush=True)
            if code and not first:
                first, deadline = code, time.monotonic() + _NOTICE
        time.sleep(0.1)
    # By a signal: as a shell says it.
    return 128 - first if first < 0 else first


def _stop(processes: Sequence[subprocess.Popen]) -> None:
    for process in processes:
        process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + _KILL
    for process in processes:
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _pass_on(host: str, process: subprocess.Popen) -> None:
    assert process.stdout is not None
    with process.stdout as lines:
        for line in lines:
            print(f"[{host}] {line.rstrip()}", flush=True)
