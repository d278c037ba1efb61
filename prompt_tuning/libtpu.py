"""The compiler for TPUs on a machine that has none."""

import glob
import os

# Without these libtpu looks for the TPU that it is on, waits for an answer from the network, and
# says on stderr that there is none.
_NOWHERE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
}
_CHIPS = ("/dev/accel*", "/dev/vfio/[0-9]*")


def look_for_no_tpu() -> None:
    """Tells libtpu, through the environment, that this machine has no TPU, unless it may have one.

    JAX loads libtpu wherever it is installed, as the extra `tpu-plan` does. To be called before JAX
    is asked for devices. What the environment says already is left as it is.
    """
    if not any(glob.glob(pattern) for pattern in _CHIPS):
        for variable, value in _NOWHERE.items():
            os.environ.setdefault(variable, value)
