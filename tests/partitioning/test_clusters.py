"""When a process knows by itself that it is one of several."""

import pytest

from prompt_tuning.errors import DeviceError
from prompt_tuning.partitioning.clusters import Seat, detected, take_seat

STEP = {
    "SLURM_JOB_ID": "77",
    "SLURM_NTASKS": "4",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NODELIST": "node[07-08]",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
}
MPI = {
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1:34911",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
}


def without(*names):
    return {name: value for name, value in STEP.items() if name not in names}


@pytest.mark.parametrize(
    ("environ", "cluster"),
    [
        (STEP, "slurm"),
        (MPI, "ompi"),
        # `mpirun` in a batch script: the tasks of Slurm are its own.
        ({**STEP, **MPI}, "ompi"),
    ],
)
def test_one_of_several_that_a_launcher_started_is_connected(environ, cluster):
    assert detected(environ) == cluster


@pytest.mark.parametrize(
    "environ",
    [
        {},
        # `srun -n1`.
        {**STEP, "SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},
        # A shell of `salloc`, with and without a step of its own, and a batch script.
        {"SLURM_JOB_ID": "77", "SLURM_NTASKS": "4"},
        {**STEP, "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},
        without("SLURM_STEP_NUM_TASKS", "SLURM_STEP_NODELIST"),
        # A shell that `srun --pty` opened.
        {**STEP, "SLURM_PTY_PORT": "40000"},
        {**MPI, "OMPI_COMM_WORLD_SIZE": "1"},
        # Open MPI 5: JAX knows no address.
        {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"},
        # A host of a TPU slice without TPUs that JAX may use, and a pod of a plain deployment.
        {"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "0"},
        {"KUBERNETES_SERVICE_HOST": "10.0.0.1"},
    ],
)
def test_what_is_alone_or_may_be_starts_alone(environ):
    assert detected(environ) is None


def test_a_task_of_slurm_takes_its_own_seat_and_device(monkeypatch):
    for name, value in STEP.items():
        monkeypatch.setenv(name, value)
    seat = take_seat(cluster="slurm")
    assert (seat.count, seat.index, seat.local_devices) == (4, 2, (0,))
    assert seat.address.startswith("node07:")


def test_flags_make_a_seat_without_any_cluster():
    seat = take_seat(address="host:12", count=3, index=1)
    assert seat == Seat(address="host:12", count=3, index=1)
    assert str(seat) == "process 1 of 3"


def test_what_neither_flags_nor_a_cluster_say_is_named():
    with pytest.raises(DeviceError, match=r"process 1 of 2.*--coordinator_address is not known"):
        take_seat(count=2, index=1)
