"""Which process of a run this is: said by flags, or by the cluster that started it."""

import dataclasses
import importlib.util
import os
from collections.abc import Mapping

from jax._src import cloud_tpu_init, clusters

from prompt_tuning.errors import DeviceError

# By JAX's own names, which of them are asked without a flag.
CLUSTERS = {
    "ompi": "Open MPI",
    "slurm": "Slurm",
    "gketpu": "Cloud TPU on Kubernetes",
    "gcetpu": "Cloud TPU",
    "k8s": "Kubernetes",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seat:
    """One process among those of a run.

    Attributes:
        address: HOST:PORT of process 0.
        count: how many processes there are.
        index: which of them this is, from 0.
        local_devices: the numbers of those devices of this host that are this process's; None for
            all that it sees.
    """

    address: str
    count: int
    index: int
    local_devices: tuple[int, ...] | None = None

    def __str__(self) -> str:
        return f"process {self.index} of {self.count}"


def take_seat(
    *,
    address: str | None = None,
    count: int | None = None,
    index: int | None = None,
    timeout: int = 300,
    cluster: str | None = None,
) -> Seat:
    """Returns the seat that flags give, completed by the cluster where JAX knows it.

    Args:
        address: of process 0, as HOST:PORT.
        count: how many processes there are.
        index: which of them this is.
        timeout: how long to ask the cluster, in seconds.
        cluster: which of those in `CLUSTERS` to ask; None for the first that JAX finds.

    Raises:
        DeviceError: it is not known which processes there are.
    """
    who = f"process {'?' if index is None else index} of {count or '?'}"
    try:
        address = address or os.environ.get("JAX_COORDINATOR_ADDRESS")
        given = os.environ.get("JAX_LOCAL_DEVICE_IDS")
        devices = [int(one) for one in given.split(",")] if given else None
        if None in (address, count, index):
            address, count, index, devices = (
                clusters.ClusterEnv.auto_detect_unset_distributed_params(
                    address, count, index, devices, cluster, timeout
                )
            )
        unknown = {"coordinator_address": address, "process_count": count, "process_index": index}
        missing = [f"--{name}" for name, value in unknown.items() if value is None]
        if missing or address is None or count is None or index is None:
            raise ValueError(f"{', '.join(missing)} is not known.")
        if not 0 <= index < count:
            raise ValueError(f"the index is {index}, expected 0 to {count} - 1.")
    except (RuntimeError, ValueError, KeyError, OSError) as error:
        raise DeviceError(
            f"The processes could not be connected ({who}): {error} Outside of a cluster that JAX "
            "knows, give --coordinator_address=HOST:PORT, --process_count and --process_index to "
            "every process."
        ) from error
    local = None if devices is None else tuple(devices)
    return Seat(address=address, count=count, index=index, local_devices=local)


def detected(environ: Mapping[str, str] = os.environ) -> str | None:
    """Returns which of `CLUSTERS` has started this process as one of several, or None.

    Only what a launcher gives to each of several processes counts. What an allocation leaves in the
    environment of a shell does not: a command typed there is alone, and would wait for ever.
    """
    # First, as `mpirun` may have been started by Slurm. Without the name, as from Open MPI 5 on,
    # JAX knows no address.
    if "OMPI_MCA_orte_hnp_uri" in environ and _number(environ, "OMPI_COMM_WORLD_SIZE") > 1:
        return "ompi"
    if _of_slurm(environ):
        return "slurm"
    if _on_tpu(environ):
        hosts = environ.get("TPU_PROCESS_ADDRESSES") or environ.get("TPU_WORKER_HOSTNAMES")
        slices = _number(environ, "MEGASCALE_NUM_SLICES")
        if hosts is not None:
            return "gketpu" if len(hosts.split(",")) > 1 or slices > 1 else None
        return "gcetpu" if _several("gcetpu") else None
    if _of_kubernetes(environ):
        return "k8s"
    return None


def _of_slurm(environ: Mapping[str, str]) -> bool:
    # SLURM_NTASKS, which JAX reads, is of the allocation too, in `salloc` and in a batch script;
    # SLURM_STEP_NUM_TASKS is of `srun` only, and 1 in the step in which a shell is opened.
    tasks = _number(environ, "SLURM_STEP_NUM_TASKS")
    names = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID")
    return (
        tasks > 1
        and tasks == _number(environ, "SLURM_NTASKS")
        and all(name in environ for name in names)
        and "SLURM_PTY_PORT" not in environ  # `srun --pty bash`
    )


def _on_tpu(environ: Mapping[str, str]) -> bool:
    # Somebody who names the chips or their bounds has divided the slice by hand.
    by_hand = ("TPU_PROCESS_BOUNDS", "TPU_HOST_BOUNDS", "TPU_VISIBLE_CHIPS", "TPU_VISIBLE_DEVICES")
    wanted = "tpu" in environ.get("JAX_PLATFORMS", "tpu")
    # The last: whether there are chips here, and a library for them.
    return (
        wanted
        and not any(name in environ for name in by_hand)
        and cloud_tpu_init.running_in_cloud_tpu_vm
    )


def _of_kubernetes(environ: Mapping[str, str]) -> bool:
    # Only the pods of an indexed job are told apart, and only with its package can JAX ask.
    named = "KUBERNETES_SERVICE_HOST" in environ and "JOB_COMPLETION_INDEX" in environ
    has_package = importlib.util.find_spec("kubernetes") is not None
    return named and has_package and _several("k8s")


def _several(name: str) -> bool:
    """Asks the cluster itself; one that does not answer has not started us as one of several."""
    found = [one for one in clusters.ClusterEnv._cluster_types if one.name == name]
    try:
        return any(one.is_env_present() and one.get_process_count() > 1 for one in found)
    except Exception:  # noqa: BLE001  (of any network, and of the package of Kubernetes)
        return False


def _number(environ: Mapping[str, str], name: str) -> int:
    text = environ.get(name, "")
    return int(text) if text.isdecimal() else 0
