"""Processes that are connected, each started as a command of its own."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import pytest

from prompt_tuning.errors import DeviceError
from prompt_tuning.partitioning import connect, is_main

# Compiling is most of what the processes do.
QUICKLY = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
ROOT = pathlib.Path(__file__).parent.parent.parent
RUN = pathlib.Path(__file__).parent / "connected_run.py"


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


CONNECT = (
    "from prompt_tuning.partitioning import connect\n"
    "connect(coordinator_address='localhost:{port}', process_count=2, process_index={index},"
    " initialization_timeout=3)"
)


@pytest.mark.parametrize("index", [0, 1])
def test_a_process_that_waits_in_vain_says_so_and_ends(index):
    port = free_port()
    [code], _, [said] = finish([start("-c", CONNECT.format(port=port, index=index))])
    assert code == DeviceError.exit_code
    assert said.endswith(
        f"After 3 seconds not all processes have come together at localhost:{port}; this is "
        f"process {index} of 2. Start every process with the same --coordinator_address (a host "
        "and a free port of process 0 that all can reach) and --process_count, each with its own "
        "--process_index, or wait longer with --initialization_timeout.\n"
    )


def test_without_an_address_outside_of_a_cluster_the_flags_are_named():
    with pytest.raises(DeviceError, match=r"give --coordinator_address=HOST:PORT, --process_count"):
        connect()


def test_a_process_alone_is_the_one_that_writes():
    assert is_main()
