"""Which devices JAX finds, and whether those of the machine are among them."""

import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import prompt_tuning
from prompt_tuning.cli.checkups import environment as variables
from prompt_tuning.cli.checkups.distributions import Distributions
from prompt_tuning.cli.checkups.finding import Finding
from prompt_tuning.cli.checkups.machine import Machine
from prompt_tuning.errors import ConfigError, DeviceError

GROUP = "devices"
CUDA_13_DRIVER = 580  # the oldest that CUDA 13 runs on
_PROBE = pathlib.Path(__file__).with_name("probe.py")
_CUDA = ("jax-cuda13-plugin", "jax-cuda12-plugin")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mesh:
    """What a configuration says about the mesh: NUM_PARTITIONS, MODEL_PARALLEL_SUBMESH, FSDP."""

    partitions: int = 1
    submesh: Sequence[int] | None = None
    fsdp: int = 1


def mesh_of(settings: Any) -> Mesh:
    """Returns the mesh of a `configuration.Settings`."""
    partitions, fsdp = settings["NUM_PARTITIONS"], settings["FSDP"]
    submesh = settings["MODEL_PARALLEL_SUBMESH"]
    return Mesh(
        partitions=partitions if isinstance(partitions, int) else 1,
        submesh=submesh if isinstance(submesh, list | tuple) else None,
        fsdp=fsdp if isinstance(fsdp, int) else 1,
    )


def check(
    machine: Machine,
    installed: Distributions,
    environment: Mapping[str, str],
    *,
    mesh: Mesh,
    timeout: float,
) -> Iterator[Finding]:
    """Yields what is missing for the accelerators that are there, then what JAX finds."""
    yield from _gpus(machine, installed)
    yield from _tpus(machine, installed)
    yield from _probed(environment, mesh, timeout)


def _gpus(machine: Machine, installed: Distributions) -> Iterator[Finding]:
    gpus, driver = machine.gpu_devices(), machine.driver()
    plugins = [name for name in _CUDA if installed.version(name)]
    major = int(driver.partition(".")[0]) if driver else CUDA_13_DRIVER
    older = f"pip install 'jax[cuda12]=={installed.version('jax')}'"
    if gpus and not plugins:
        command = older if major < CUDA_13_DRIVER else "pip install '.[cuda]' in the checkout"
        yield _finding(
            "warning",
            "GPU",
            f"{len(gpus)} of NVIDIA, but jax cannot use them: it has no CUDA plugin",
            command,
        )
    elif plugins and not gpus:
        yield _finding("warning", "GPU", f"none is seen, though {plugins[0]} is installed", "")
    elif "jax-cuda13-plugin" in plugins and major < CUDA_13_DRIVER:
        yield _finding(
            "fault",
            "GPU",
            f"the driver is {driver}, but CUDA 13 needs {CUDA_13_DRIVER} or later",
            f"Install a newer driver, or pip uninstall -y jax-cuda13-plugin jax-cuda13-pjrt and "
            f"{older}",
        )
    for gpu in gpus:
        if not os.access(gpu, os.R_OK | os.W_OK):
            yield _finding("warning", "GPU", f"{gpu} may not be opened by this user", "")


def _tpus(machine: Machine, installed: Distributions) -> Iterator[Finding]:
    chips = machine.tpu_devices()
    if chips and not installed.version("libtpu"):
        yield _finding(
            "warning",
            "TPU",
            f"{len(chips)} chips, but jax cannot use them: libtpu is not installed",
            "pip install '.[tpu]' in the checkout",
        )


def _probed(environment: Mapping[str, str], mesh: Mesh, timeout: float) -> Iterator[Finding]:
    found, code, errors = ask(environment, mesh, timeout)
    if "imported" not in found and code is not None:
        advice = "The versions of jax and flax do not go together, see above; reinstall them"
        yield _finding("fault", "jax and flax", errors, advice, kind=ConfigError)
        return
    if "platform" in found:
        yield _devices(found)
    if "mesh" in found:
        sizes = " x ".join(f"{name} {size}" for name, size in found["mesh"].items())
        yield _finding("ok", "mesh", f"{sizes} (rows of a batch x parts of the model)", "")
    elif "mesh_error" in found:
        kinds = {kind.exit_code: kind for kind in (ConfigError, DeviceError)}
        kind = kinds[found["exit_code"]]
        yield _finding("fault", "mesh", found["mesh_error"], "", kind=kind)
    elif code is None:
        yield _late(environment, found, timeout)
    else:
        advice = (
            "If the TPU or GPU is in use by another process, see `locks`; if a variable asks for a "
            "device that is not there, see `environment`"
        )
        yield _finding("fault", "jax.devices()", errors, advice)


def _devices(found: Mapping[str, Any]) -> Finding:
    memory = found["memory"]
    where = "of each"
    if memory is None and found["platform"] == "cpu":
        memory, where = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), "of all"
    size = f", {memory / 2**30:.1f} GiB {where}" if memory else ""
    text = f"{found['count']} x {found['platform']} ({found['kind']}){size}"
    return _finding("ok", "jax.devices()", text, "")


def _late(environment: Mapping[str, str], found: Mapping[str, Any], timeout: float) -> Finding:
    names = variables.hosts(environment)
    where = "counted devices" if "imported" in found else "imported jax"
    advice = "Look for who holds them (`locks`), or wait longer: --timeout=300"
    if len(names) > 1:
        advice = (
            f"A slice of {len(names)} hosts answers when the command runs on all of them at once: "
            "--worker=all"
        )
    return _finding(
        "fault", "jax.devices()", f"JAX has not {where} after {timeout:g} seconds", advice
    )


def ask(
    environment: Mapping[str, str], mesh: Mesh, timeout: float
) -> tuple[dict[str, Any], int | None, str]:
    """Runs the probe.

    Returns:
        what it has found, its exit code (None if it was ended as too slow), and its last words.
    """
    here = str(pathlib.Path(prompt_tuning.__file__).parent.parent)
    path = os.pathsep.join(filter(None, [here, environment.get("PYTHONPATH")]))
    probe = subprocess.Popen(
        # -P: the files beside the probe are no modules to import.
        [sys.executable, "-P", _PROBE, json.dumps(dataclasses.asdict(mesh))],
        # A GPU that somebody else is using has room for a question, not for three quarters of it.
        env={"XLA_PYTHON_CLIENT_PREALLOCATE": "false", **environment, "PYTHONPATH": path},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,  # so that it is ended with all that it has started
    )
    try:
        printed, errors = probe.communicate(timeout=timeout)
        code = probe.returncode
    except subprocess.TimeoutExpired:
        printed, errors = _ended(probe)
        code = None
    found: dict[str, Any] = {}
    for line in printed.splitlines():
        if line.startswith("{"):
            found |= json.loads(line)
    return found, code, _last_words(errors, code)


def _ended(probe: subprocess.Popen[str]) -> tuple[str, str]:
    """Ends a process and all that it has started; returns what it has said."""
    # Killed at once, libtpu would leave its lock behind.
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(probe.pid, number)
            return probe.communicate(timeout=5)
    return "", ""


def _last_words(errors: str, code: int | None) -> str:
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    ended = f"the process was ended by {signal.Signals(-code).name}" if code and code < 0 else ""
    # XLA's own last words stand before the trace of its stack.
    fatal = [line for line in lines if line[:1] == "F" and "]" in line]
    words = (fatal or lines[-1:] or [""])[0]
    return "; ".join(filter(None, [words[:400], ended])) or f"it ended with {code}"


def _finding(
    state: Any, name: str, found: str, advice: str, kind: type[Any] = DeviceError
) -> Finding:
    return Finding(group=GROUP, name=name, state=state, found=found, advice=advice, kind=kind)
