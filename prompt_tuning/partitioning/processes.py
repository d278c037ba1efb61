"""Several processes as one run: how they find each other, and which of them writes."""

import contextlib
import importlib.metadata
import os
import pathlib
import platform
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256

import jax

import prompt_tuning
from prompt_tuning.errors import DeviceError
from prompt_tuning.partitioning import roll_call
from prompt_tuning.partitioning.clusters import take_seat
from prompt_tuning.partitioning.fellows import HEARTBEAT, Fellows

# As t5x: a cluster may start its processes minutes apart.
DEFAULT_TIMEOUT = 300
# The coordination service notices a death while others wait for the end, so they may wait long.
_SHUTDOWN = 24 * 60 * 60
_PLUGINS = ("libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin", "orbax-checkpoint", "flax")
_SWITCHES = (
    "JAX_PLATFORMS",
    "JAX_ENABLE_X64",
    "JAX_DEFAULT_MATMUL_PRECISION",
    "JAX_NUM_CPU_DEVICES",
)


def connect(
    *,
    coordinator_address: str | None = None,
    process_count: int | None = None,
    process_index: int | None = None,
    initialization_timeout: int | None = None,
    cluster: str | None = None,
    settings: Mapping[str, str] | None = None,
) -> Fellows:
    """Joins the processes of a run, before anything else is asked of JAX.

    Every process calls it; it returns when all have come and have found that they run the same.
    What is not given is taken from the cluster, where JAX knows how (Cloud TPU, Slurm, Open MPI,
    Kubernetes).

    Args:
        coordinator_address: of process 0, as HOST:PORT (`--coordinator_address`).
        process_count: how many there are (`--process_count`).
        process_index: which of them this is, from 0 (`--process_index`).
        initialization_timeout: how long to wait for all, in seconds (`--initialization_timeout`).
        cluster: which cluster to ask, see `clusters.detected`; None for the first that JAX finds.
        settings: by name, what must be the same in all processes.

    Returns:
        the processes, which `Fellows` can watch from here on.

    Raises:
        DeviceError: it is not known which processes there are, some have not come, they run
            different software, or JAX was used before.
        ConfigError: their settings differ.
    """
    seconds = DEFAULT_TIMEOUT if initialization_timeout is None else initialization_timeout
    seat = take_seat(
        address=coordinator_address,
        count=process_count,
        index=process_index,
        timeout=seconds,
        cluster=cluster,
    )
    facts = roll_call.Facts(software=software(), settings=settings or {})
    company = roll_call.answer(seat, facts, seconds)
    lost = (
        f"All {seat.count} processes had come to {seat.address}, but JAX has not connected this "
        f"one, {seat}, within {seconds} seconds: another has ended meanwhile, or its port is not "
        "open to all. Look at the log of each."
    )
    try:
        with _ending_the_process(seconds, lost):
            jax.distributed.initialize(
                coordinator_address=seat.address,
                num_processes=seat.count,
                process_id=seat.index,
                local_device_ids=seat.local_devices,
                cluster_detection_method="deactivate",
                # Later than we: JAX aborts.
                initialization_timeout=seconds + 60,
                heartbeat_timeout_seconds=HEARTBEAT,
                shutdown_timeout_seconds=_SHUTDOWN,
            )
    except (RuntimeError, ValueError) as error:
        raise DeviceError(f"The processes could not be connected ({seat}): {error}") from error
    return Fellows(company)


@contextlib.contextmanager
def connected(fellows: Fellows) -> Iterator[None]:
    """Watches over the other processes around all that they do together.

    Raises:
        DeviceError: the processes have different numbers of devices, or devices of different kinds.
    """
    with fellows.watched():
        _check_devices(fellows.names)
        yield


def is_main() -> bool:
    """Tells whether this is the process that writes what all of them have in common."""
    return jax.process_index() == 0


def software() -> dict[str, str]:
    """Returns what must be installed alike for processes to run one program, by name."""
    found = {
        "python": platform.python_version(),
        "jax": jax.__version__,
        "prompt_tuning": f"{prompt_tuning.__version__} ({_digest()})",
        "accelerators": _accelerators(),
    }
    for name in ("jaxlib", *_PLUGINS):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found | {name: os.environ[name] for name in _SWITCHES if name in os.environ}


def _digest() -> str:
    """The content of this package: a version alone does not tell one working copy from another."""
    root = pathlib.Path(prompt_tuning.__file__).parent
    digest = sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:8]


def _accelerators() -> str:
    """The device files of TPUs and GPUs: asking JAX would start it, and hang where they differ."""
    patterns = {"TPU": ("accel[0-9]*", "vfio/[0-9]*"), "GPU": ("nvidia[0-9]*",)}
    counts = {
        kind: sum(len(list(pathlib.Path("/dev").glob(pattern))) for pattern in some)
        for kind, some in patterns.items()
    }
    return ", ".join(f"{count} {kind}" for kind, count in counts.items() if count) or "none"


def _check_devices(names: Sequence[str]) -> None:
    """Checks that no process has fewer devices than the others, or others."""
    held: list[list[str]] = [[] for _ in names]
    for device in jax.devices():
        held[device.process_index].append(device.device_kind)
    odd = [index for index, kinds in enumerate(held) if kinds != held[0]]
    if odd:
        lines = [f"{names[index]}: {_kinds(held[index])}" for index in [0, *odd[:8]]]
        raise DeviceError(
            "\n  ".join(["The processes have different devices:", *lines])
            + "\nStart all of them on the same kind of host, with the same devices visible."
        )


def _kinds(kinds: Sequence[str]) -> str:
    return f"{len(kinds)} devices ({', '.join(sorted(set(kinds))) or 'none'})"


@contextlib.contextmanager
def _ending_the_process(seconds: int, message: str) -> Iterator[None]:
    """Ends the process with a message if the block takes longer than some seconds."""

    def end() -> None:
        print(f"error: {message}", file=sys.stderr, flush=True)
        os._exit(DeviceError.exit_code)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
