import os
import re
import signal
import socket
import subprocess
import sys

import pytest

from prompt_tuning.checkpoints.run_lock import RunLock
from prompt_tuning.errors import CheckpointError
from tests.checkpoints.test_run_damage import ROOT

HOLD = """
import sys, time
from prompt_tuning.checkpoints.run_lock import RunLock
with RunLock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that has the lock of the folder."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def test_a_second_trainer_is_refused_and_changes_nothing(tmp_path, holder):
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.rglob("*")}
    with pytest.raises(CheckpointError) as error, RunLock(tmp_path):
        raise AssertionError("it was let in")
    assert error.value.exit_code == 4
    assert re.fullmatch(
        rf"Another trainer is at work in {tmp_path}: process {holder.pid} on "
        rf"{re.escape(socket.gethostname())} since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d\. Wait for it, "
        r"stop it, or choose another MODEL_DIR\.",
        str(error.value),
    )
    after = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.rglob("*")}
    assert after == before


def test_a_killed_trainer_holds_nothing(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with RunLock(tmp_path):
        pass


def test_a_lock_is_free_after_its_block_even_if_that_failed(tmp_path):
    with pytest.raises(KeyError), RunLock(tmp_path / "new" / "run"):
        raise KeyError
    with RunLock(tmp_path / "new" / "run"):
        text = (tmp_path / "new" / "run" / ".lock").read_text()
    assert text.startswith(f"process {os.getpid()} on ")


def test_a_program_that_a_trainer_starts_does_not_hold_its_lock(tmp_path):
    with RunLock(tmp_path):
        child = subprocess.Popen(["sleep", "60"], close_fds=False)
    try:
        with RunLock(tmp_path):
            pass
    finally:
        child.kill()
        child.wait()


def test_nobody_is_kept_out_of_an_object_store():
    with RunLock("gs://bucket/run"), RunLock("gs://bucket/run"):
        pass
