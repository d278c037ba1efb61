import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from prompt_tuning.cli.checkups import locks
from prompt_tuning.cli.checkups.machine import Machine

HOLD = "import sys, time; files = [open(path) for path in sys.argv[1:]]; print(1, flush=True); "
# Only Linux says in files who holds what.
NEEDS_PROC = pytest.mark.skipif(not pathlib.Path("/proc/self/fd").exists(), reason="no /proc here")


@pytest.fixture
def machine(tmp_path):
    """A machine with the real processes, and TPU chips and a lock of its own."""
    (tmp_path / "dev/vfio").mkdir(parents=True)
    return Machine(lock=tmp_path / "libtpu_lockfile", dev=tmp_path / "dev")


@pytest.fixture
def holding():
    """Starts processes that hold files open, and ends them."""
    started = []

    def start(*paths, then="time.sleep(60)"):
        command = [sys.executable, "-c", HOLD + then, *map(str, paths)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert process.stdout.read(1) == b"1"
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def look(machine, *, kill=False):
    return {one.name: one for one in locks.check(machine, kill=kill)}


def test_without_lock_and_holder_all_is_well(machine):
    assert [one.state for one in look(machine).values()] == ["ok"]


def test_a_lock_that_nobody_holds_is_reported_with_its_age_and_left_alone(machine):
    machine.lock.touch()
    os.utime(machine.lock, (0, time.time() - 3 * 3600))
    warning = look(machine, kill=True)[str(machine.lock)]
    assert warning.state == "warning"
    assert warning.found.startswith("3 hours old, and no process is seen to hold it")
    assert f"rm {machine.lock}" in warning.advice
    assert machine.lock.exists()


@NEEDS_PROC
@pytest.mark.parametrize("held", ["libtpu_lockfile", "dev/accel0", "dev/vfio/3"])
def test_a_process_with_the_lock_or_a_chip_open_is_named(machine, holding, held, tmp_path):
    (tmp_path / held).touch()
    process = holding(tmp_path / held)
    fault = look(machine)["TPU"]
    assert fault.state == "fault"
    assert fault.exit_code == 5
    assert f"{process.pid} ({sys.executable}" in fault.found
    assert f"holds {tmp_path / held}" in fault.found
    assert "prompt-tuning doctor --kill" in fault.advice
    assert process.poll() is None


@NEEDS_PROC
def test_what_is_no_chip_may_be_open(machine, holding, tmp_path):
    (tmp_path / "dev/vfio/vfio").touch()  # the driver's own
    holding(tmp_path / "dev/vfio/vfio")
    assert [one.state for one in look(machine).values()] == ["ok"]


@NEEDS_PROC
def test_kill_asks_the_holders_to_end_and_leaves_the_lock(machine, holding):
    machine.lock.touch()
    holders = [holding(machine.lock) for _ in range(2)]
    bystander = holding()
    found = look(machine, kill=True)
    assert found["--kill"].state == "ok"
    assert all(str(holder.pid) in found["--kill"].found for holder in holders)
    assert [holder.wait() for holder in holders] == [-signal.SIGTERM] * 2
    assert bystander.poll() is None
    assert "TPU" not in found
    assert found[str(machine.lock)].state == "warning"
    assert machine.lock.exists()


@NEEDS_PROC
def test_a_holder_that_does_not_end_is_still_a_fault(machine, holding, monkeypatch):
    monkeypatch.setattr(locks, "PATIENCE", 0.2)
    machine.lock.touch()
    stubborn = "import signal; signal.signal(15, signal.SIG_IGN); print(2, flush=True); "
    process = holding(machine.lock, then=f"{stubborn}time.sleep(60)")
    assert process.stdout.readline() and process.stdout.readline() == b"2\n"
    found = look(machine, kill=True)
    assert found["--kill"].state == "warning"
    assert "kill -9" in found["--kill"].advice
    assert found["TPU"].state == "fault"


def test_a_machine_without_proc_has_no_holders(machine, tmp_path):
    machine.lock.touch()
    found = look(Machine(lock=machine.lock, dev=machine.dev, proc=tmp_path / "none"))
    assert list(found) == [str(machine.lock)]
