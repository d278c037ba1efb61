"""Several processes as one run: how they find each other, and which of them writes."""

import contextlib
import os
import sys
import threading
from collections.abc import Iterator

import jax

from prompt_tuning.errors import DeviceError

# As t5x: a cluster may start its processes minutes apart.
DEFAULT_TIMEOUT = 300


def connect(
    *,
    coordinator_address: str | None = None,
    process_count: int | None = None,
    process_index: int | None = None,
    initialization_timeout: int | None = None,
) -> None:
    """Joins the processes of a run, before anything else is asked of JAX.

    Every process calls it; it returns when all have come. What is not given is taken from the
    cluster, where JAX knows how (Cloud TPU, Slurm, Open MPI, Kubernetes).

    Args:
        coordinator_address: of process 0, as HOST:PORT (`--coordinator_address`).
        process_count: how many there are (`--process_count`).
        process_index: which of them this is, from 0 (`--process_index`).
        initialization_timeout: how long to wait for all, in seconds (`--initialization_timeout`).

    Raises:
        DeviceError: it is not known which processes there are, or JAX was used before. If some
            never come the process ends with that error's exit code, as JAX gives the control back
            no more.
    """
    seconds = DEFAULT_TIMEOUT if initialization_timeout is None else initialization_timeout
    who = f"process {'?' if process_index is None else process_index} of {process_count or '?'}"
    late = (
        f"After {seconds} seconds not all processes have come together at "
        f"{coordinator_address or 'the address that the cluster names'}; this is {who}. Start "
        "every process with the same --coordinator_address (a host and a free port of process 0 "
        "that all can reach) and --process_count, each with its own --process_index, or wait "
        "longer with --initialization_timeout."
    )
    try:
        with _ending_the_process(seconds, late):
            jax.distributed.initialize(
                coordinator_address=coordinator_address,
                num_processes=process_count,
                process_id=process_index,
                # Later than we: JAX aborts.
                initialization_timeout=seconds + 60,
            )
    except (RuntimeError, ValueError) as error:
        raise DeviceError(
            f"The processes could not be connected ({who}): {error} Outside of a cluster that JAX "
            "knows, give --coordinator_address=HOST:PORT, --process_count and --process_index to "
            "every process."
        ) from error


def is_main() -> bool:
    """Tells whether this is the process that writes what all of them have in common."""
    return jax.process_index() == 0


@contextlib.contextmanager
def _ending_the_process(seconds: int, message: str) -> Iterator[None]:
    """Ends the process with a message if the block takes longer than some seconds."""

    def end() -> None:
        print(message, file=sys.stderr, flush=True)
        os._exit(DeviceError.exit_code)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
