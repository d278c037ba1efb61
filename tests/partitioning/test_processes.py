"""Processes that are connected, each started as a command of its own."""

import functools
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest

from prompt_tuning.errors import DeviceError
from prompt_tuning.partitioning import connect, is_main, placement
from tests.partitioning.test_divided_models import SIZES, Run, batches
from tests.small_models import small_model

# Compiling is most of what the processes do.
QUICKLY = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
ROOT = pathlib.Path(__file__).parent.parent.parent
RUN = pathlib.Path(__file__).parent / "connected_run.py"
TRAINED_RUN = pathlib.Path(__file__).parent / "trained_run.py"


def free_port():
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return one.getsockname()[1]


def start(*arguments, devices=1):
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} {QUICKLY}",
        "PYTHONPATH": str(ROOT),
    }
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        env=environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(processes):
    """Returns the exit codes, what was printed and what was said."""
    said = [process.communicate(timeout=300) for process in processes]
    return [process.returncode for process in processes], *map(list, zip(*said, strict=True))


def run(*, processes, devices, partitions=1):
    """Returns what each process of a small run has found."""
    port = free_port()
    started = [
        start(RUN, port, processes, index, partitions, devices=devices)
        for index in range(processes)
    ]
    codes, printed, said = finish(started)
    assert codes == [0] * processes, said
    # The library of the exchange says something first.
    return [json.loads(lines.splitlines()[-1]) for lines in printed]


@pytest.fixture(scope="module")
def alone():
    """What one process with one device finds."""
    return run(processes=1, devices=1)[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("devices", "partitions", "mesh"),
    [
        (2, 1, "mesh data 4 x model 1 over 4 cpu devices in 2 processes"),
        (2, 2, "mesh data 2 x model 2 over 4 cpu devices in 2 processes"),
        # One copy of the model, of which each process has a half.
        (1, 2, "mesh data 1 x model 2 over 2 cpu devices in 2 processes"),
    ],
)
def test_two_processes_train_and_answer_as_one_does(alone, devices, partitions, mesh):
    alone = dict(alone)
    found = run(processes=2, devices=devices, partitions=partitions)
    assert [one.pop("main") for one in found] == [True, False]
    assert alone.pop("main")
    assert found[0] == found[1]
    assert found[0]["mesh"] == mesh
    assert found[0]["answers"] == alone["answers"]
    for name in ("sums", "metrics", "tuned"):
        assert found[0][name] == pytest.approx(alone[name], rel=1e-5)
    assert found[0]["moment"] == pytest.approx(alone["moment"], rel=2e-4, abs=1e-5)
    assert found[0]["prompt"] == pytest.approx(alone["prompt"], rel=1e-5, abs=1e-5)


@functools.cache
def trained_alone(model):
    """Returns what 20 steps on one device make of a prompt."""
    run = Run(placement(1), model=small_model(model, **SIZES))
    for batch in batches():
        run.take(batch)
    (prompt,) = run.learned().values()
    return prompt


@pytest.mark.slow
@pytest.mark.parametrize("model", ["T5 1.1 with a prompt", "T5 1.1 in int8 with a prompt"])
@pytest.mark.parametrize(
    ("processes", "devices", "fsdp", "partitions", "mesh"),
    [
        (2, 1, 1, 1, "mesh data 2 x model 1 over 2 cpu devices in 2 processes"),
        (2, 2, 2, 2, "mesh data 1 x fsdp 2 x model 2 over 4 cpu devices in 2 processes"),
        (4, 1, 1, 1, "mesh data 4 x model 1 over 4 cpu devices in 4 processes"),
        # Kernels are shared, and a copy of the model reaches, from process to process.
        (4, 1, 2, 2, "mesh data 1 x fsdp 2 x model 2 over 4 cpu devices in 4 processes"),
    ],
)
def test_a_prompt_is_the_same_after_20_steps_in_several_processes(
    processes, devices, fsdp, partitions, mesh, model
):
    port = free_port()
    started = [
        start(TRAINED_RUN, port, processes, index, fsdp, partitions, model, devices=devices)
        for index in range(processes)
    ]
    codes, printed, said = finish(started)
    assert codes == [0] * processes, said
    found = [json.loads(lines.splitlines()[-1]) for lines in printed]
    assert all(one == found[0] for one in found)
    assert found[0]["mesh"] == mesh
    wanted = trained_alone(model)
    distance = np.linalg.norm(np.array(found[0]["prompt"]) - wanted) / np.linalg.norm(wanted)
    assert distance < 1e-5


CONNECT = (
    "from prompt_tuning.partitioning import connect\n"
    "connect(coordinator_address='localhost:{port}', process_count=2, process_index={index},"
    " initialization_timeout=3)"
)


def test_a_process_that_waits_in_vain_names_the_missing_and_ends():
    port = free_port()
    [code], _, [said] = finish([start("-c", CONNECT.format(port=port, index=1))])
    assert code == 1, "of the traceback: no command line turns the error into its code here"
    assert (
        "DeviceError: After 3 seconds not all of 2 processes have come together at "
        f"localhost:{port}: process 0 did not."
    ) in said


def watched(works):
    """Runs processes that are watched while each does its work; returns codes and what was said."""
    port = free_port()
    code = CONNECT.replace("connect(c", "fellows = connect(c", 1).replace("=3)", "=60)")
    code += (
        "\nimport os, signal, time\nfrom prompt_tuning.partitioning import connected\n"
        "from prompt_tuning.errors import DataError\nwith connected(fellows):\n    "
    )
    code = code.replace("process_count=2", f"process_count={len(works)}")
    started = [
        start("-c", code.format(port=port, index=index) + work) for index, work in enumerate(works)
    ]
    codes, _, said = finish(started)
    return codes, said


DIES = "time.sleep(0.5); os.kill(os.getpid(), signal.SIGKILL)"
WAITS = "time.sleep(120)"


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1, 2])
def test_when_one_dies_the_others_name_it_and_end(victim):
    works = [DIES if index == victim else WAITS for index in range(3)]
    codes, said = watched(works)
    expected = [DeviceError.exit_code] * 3
    expected[victim] = -signal.SIGKILL
    assert codes == expected
    for index in {0, 1, 2} - {victim}:
        assert f"error: Lost process {victim} on " in said[index]


@pytest.mark.slow
@pytest.mark.parametrize("faulty", [0, 1])
def test_the_fault_of_one_is_repeated_by_the_others(faulty):
    works = [WAITS, WAITS]
    works[faulty] = "raise DataError('the file is gone')"
    codes, said = watched(works)
    assert codes[1 - faulty] == DeviceError.exit_code
    assert f"process {faulty} on " in said[1 - faulty]
    assert "has ended with exit code 3: the file is gone." in said[1 - faulty]


@pytest.mark.slow
@pytest.mark.parametrize("works", [["time.sleep(6)", "pass"], ["pass", "time.sleep(6)"]])
def test_one_that_is_done_early_is_not_taken_for_dead(works):
    assert watched(works)[0] == [0, 0]


def test_without_an_address_outside_of_a_cluster_the_flags_are_named():
    with pytest.raises(DeviceError, match=r"give --coordinator_address=HOST:PORT, --process_count"):
        connect()


def test_a_process_alone_is_the_one_that_writes():
    assert is_main()
