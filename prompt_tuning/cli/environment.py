"""With what a run is made: versions and devices, as `MODEL_DIR/environment.json` for its report.

No name of a host, no time and no number of a process: the same machine writes the same again.
"""

import importlib.metadata
import json
import platform

import jax
from etils import epath

import prompt_tuning
from prompt_tuning.checkpoints.containers import storage
from prompt_tuning.cli import config
from prompt_tuning.partitioning import Placement

FILE = "environment.json"
# Those whose release can change a number.
_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "tensorflow", "seqio")


def write_description(folder: epath.Path, placed: Placement) -> None:
    """Writes the configuration that is in effect and with what a run or an evaluation is made."""
    storage.write_whole(folder / "config.gin", config.operative_config().encode())
    storage.write_whole(folder / FILE, environment(placed))


def environment(placed: Placement) -> bytes:
    """Returns the content of the file."""
    kinds = sorted({one.device_kind for one in jax.devices()})
    found = {
        "prompt-tuning": prompt_tuning.__version__,
        "Python": platform.python_version(),
        **{name: version for name in _LIBRARIES if (version := _version(name))},
        "system": f"{platform.system()} {platform.machine()}",
        "devices": f"{jax.device_count()} {jax.default_backend()} ({', '.join(kinds)})",
        "processes": jax.process_count(),
        "mesh": placed.describe(),
    }
    return (json.dumps(found, indent=1) + "\n").encode()


def _version(name: str) -> str | None:
    """Returns the version of a library; None if it is not installed, as where no task needs it."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
