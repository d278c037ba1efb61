"""Several processes of one run: one of them is killed, stopped, late or of another mind."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.run_processes import ROOT, connected, make_world, outcome, when

LOST = 5
PREEMPTED = 75


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def together(world):
    """How a run of two processes ends that nobody disturbs."""
    folder = world.folder / "together"
    codes, said = world.finish_together(folder / "run", folder / "cache", processes=2)
    assert codes == [0, 0], said
    return outcome(folder / "run")


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_when_one_is_killed_the_others_end_and_both_go_on(world, together, tmp_path, victim):
    run, cache = tmp_path / "run", tmp_path / "cache"
    started = [world.start(run, cache, *flags) for flags in connected(2)]
    when(run / "numpy_checkpoints", "checkpoint_*", times=8)(started[0])
    started[victim].kill()
    killed = time.monotonic()
    _, said = started[1 - victim].communicate(timeout=60)
    seconds = time.monotonic() - killed
    started[victim].communicate()
    print(f"victim {victim}: the other has ended after {seconds:.1f} s")
    assert started[1 - victim].returncode == LOST, said
    assert f"error: Lost process {victim} on " in said
    codes, said = world.finish_together(run, cache, processes=2)
    assert codes == [0, 0], said
    assert outcome(run) == together


@pytest.mark.slow
@pytest.mark.parametrize("told", [0, 1])
def test_when_one_is_told_to_stop_all_save_and_go_on(world, together, tmp_path, told):
    run, cache = tmp_path / "run", tmp_path / "cache"
    started = [world.start(run, cache, *flags) for flags in connected(2)]
    when(run / "numpy_checkpoints", "checkpoint_*", times=4)(started[0])
    started[told].send_signal(signal.SIGTERM)
    said = [process.communicate(timeout=120)[1] for process in started]
    assert [process.returncode for process in started] == [PREEMPTED] * 2, said
    codes, said = world.finish_together(run, cache, processes=2)
    assert codes == [0, 0], said
    assert outcome(run) == together


@pytest.mark.slow
def test_processes_of_different_settings_do_not_start(world, tmp_path):
    run, cache = tmp_path / "run", tmp_path / "cache"
    first, second = connected(2)
    started = [
        world.start(run, cache, *first),
        world.start(run, cache, *second, "--gin.BATCH_SIZE=16"),
    ]
    for process in started:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 2, said
        assert "BATCH_SIZE 16; process 0: BATCH_SIZE 8" in said
    assert not run.exists()


FAKE_SSH = """#!/bin/bash
# As ssh -tt HOST COMMAND, to this host.
exec bash -c "${!#}"
"""


@pytest.mark.slow
def test_a_run_launched_over_ssh_ends_like_one_started_by_hand(world, together, tmp_path):
    fakes = tmp_path / "bin"
    fakes.mkdir()
    for name, text in {
        "ssh": FAKE_SSH,
        "prompt-tuning": f'#!/bin/bash\nexec {sys.executable} -m prompt_tuning "$@"\n',
    }.items():
        (fakes / name).write_text(text)
        (fakes / name).chmod(0o755)
    run, cache = tmp_path / "run", tmp_path / "cache"
    port = connected(2)[0][1].rpartition(":")[2]
    finished = subprocess.run(
        [
            *[sys.executable, "-m", "prompt_tuning", "launch", "--on=ssh", "--run"],
            # Two names of this host.
            *["--hosts=localhost,127.0.0.1", f"--port={port}", f"--directory={ROOT}", "--"],
            *["train", *world.flags(run, cache)],
        ],
        env={
            **os.environ,
            "PATH": f"{fakes}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
        },
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "[localhost] step " in finished.stdout
    assert outcome(run) == together
