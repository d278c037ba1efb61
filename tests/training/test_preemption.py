import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading

import pytest

from prompt_tuning.errors import Preempted
from prompt_tuning.training.preemption import Preemption

ROOT = pathlib.Path(__file__).parent.parent.parent


def send(number):
    os.kill(os.getpid(), number)


def terminate():
    send(signal.SIGTERM)


def press_ctrl_c():
    send(signal.SIGINT)


@pytest.fixture(autouse=True)
def ctrl_c():
    """Ctrl-C interrupts, also where the tests themselves run in the background of a shell."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def preemption():
    with Preemption() as preemption:
        yield preemption


def test_a_run_goes_on_as_long_as_nobody_asks(preemption):
    preemption.defer()
    assert not preemption.stop()
    assert not preemption.requested
    assert preemption.unless_requested(lambda: "done") == "done"


def test_before_there_is_something_to_save_a_signal_stops_at_once(preemption):
    with pytest.raises(Preempted, match="before there was anything to save") as stopped:
        terminate()
    assert stopped.value.exit_code == 75
    terminate()  # what cleans up meanwhile is left alone


def test_before_there_is_something_to_save_ctrl_c_interrupts_at_once(preemption):
    with pytest.raises(KeyboardInterrupt):
        press_ctrl_c()


def test_no_exception_handler_of_a_library_holds_a_stop_up():
    assert not issubclass(Preempted, Exception)


def test_a_deferred_signal_only_sets_requested(preemption):
    preemption.defer()
    terminate()
    assert preemption.requested
    assert preemption.stop()
    terminate()
    assert preemption.stop()


def test_ctrl_c_asks_first_then_stops_then_interrupts(preemption, capfd):
    preemption.defer()
    press_ctrl_c()
    assert not preemption.stop()
    assert capfd.readouterr().err == "\nPress Ctrl-C again to save and stop.\n"
    press_ctrl_c()
    assert preemption.stop()
    assert capfd.readouterr().err == "\nSaving and stopping; once more to stop without saving.\n"
    with pytest.raises(KeyboardInterrupt):
        press_ctrl_c()


def press_ctrl_c_twice():
    press_ctrl_c()
    press_ctrl_c()


@pytest.mark.parametrize("ask", [terminate, press_ctrl_c_twice])
def test_long_work_is_broken_off(preemption, ask):
    preemption.defer()
    finished = []

    def work():
        ask()
        finished.append(True)

    assert preemption.unless_requested(work) is None
    assert finished == []
    assert preemption.stop()
    terminate()  # what is saved now is left alone


def test_a_second_signal_leaves_alone_how_long_work_cleans_up(preemption):
    preemption.defer()
    cleaned = []

    def work():
        try:
            terminate()
        finally:
            terminate()
            cleaned.append(True)

    assert preemption.unless_requested(work) is None
    assert cleaned == [True]


def test_long_work_is_not_begun_after_a_request(preemption):
    preemption.defer()
    terminate()
    begun = []
    assert preemption.unless_requested(lambda: begun.append(True)) is None
    assert begun == []


def test_a_first_ctrl_c_does_not_disturb_long_work(preemption):
    preemption.defer()
    assert preemption.unless_requested(lambda: press_ctrl_c() or "done") == "done"
    terminate()  # after the work: only noted
    assert preemption.stop()


def test_an_error_of_long_work_is_raised(preemption):
    preemption.defer()
    with pytest.raises(ZeroDivisionError):
        preemption.unless_requested(lambda: 1 / 0)
    terminate()
    assert preemption.stop()


def handlers():
    return signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)


def test_the_handlers_of_before_are_restored():
    before = handlers()
    with pytest.raises(ValueError, match="of the run"), Preemption():
        assert all(a is not b for a, b in zip(handlers(), before, strict=True))
        raise ValueError("an error of the run")
    assert handlers() == before


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Preemption() as preemption:
            press_ctrl_c()
            assert not preemption.stop()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_outside_the_main_thread_nothing_is_handled():
    before, found = handlers(), []

    def run():
        with Preemption() as preemption:
            found.append((handlers(), preemption.stop()))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [(before, False)]


@pytest.fixture
def free_port():
    with socket.socket() as listening:
        listening.bind(("localhost", 0))
        return listening.getsockname()[1]


# One of two processes gets the signal; both print before which step they stopped. The steps wait
# for each other and take longer in one process, as the input of one is slower.
TWO_PROCESSES = """
import os, signal, sys, time
import jax
import jax.numpy as jnp
from jax.experimental import multihost_utils

process, port, when = int(sys.argv[1]), sys.argv[2], sys.argv[3]
jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=process)

from prompt_tuning.training.preemption import Preemption

with Preemption() as preemption:
    multihost_utils.sync_global_devices("begin")
    if when == "before" and process == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    preemption.defer()
    step, worked = 0, 0
    while not preemption.stop():
        assert not preemption.requested
        if step == 3 and process == 1:
            if when == "sigterm":
                os.kill(os.getpid(), signal.SIGTERM)
            if when == "ctrl-c":
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)
        # Not broken off in one process alone.
        worked += preemption.unless_requested(lambda: 1)
        time.sleep(0.01 * (1 + process))
        if step % 50 == 0:
            multihost_utils.process_allgather(jnp.ones(()))
        step += 1
        assert step < 3000
    assert preemption.unless_requested(lambda: 1) is None
    assert worked == step
    assert preemption.stop()
    print("stopped before step", step, flush=True)
jax.distributed.shutdown()
"""


@pytest.mark.parametrize(
    "when",
    [
        "sigterm",
        pytest.param("before", marks=pytest.mark.slow),
        pytest.param("ctrl-c", marks=pytest.mark.slow),
    ],
)
def test_all_processes_stop_before_the_same_step(when, free_port):
    environment = {**os.environ, "XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TWO_PROCESSES, str(i), str(free_port), when],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    try:
        said = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], said
    # Its library for talking to the other process writes to the output, too.
    one, other = (output.splitlines()[-1] for output, _ in said)
    assert one == other
    assert one.startswith("stopped before step ")
