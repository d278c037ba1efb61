"""Variables of the environment that change what JAX sees and does."""

import collections
from collections.abc import Iterator, Mapping

from prompt_tuning.cli.checkups.finding import Finding
from prompt_tuning.cli.checkups.machine import Machine

GROUP = "environment"
_OFF = ("", "0", "false", "off", "no")

# Those that are for finding faults and not for runs.
_FOR_TESTS = {
    "JAX_ENABLE_X64": "makes arrays of 64 bits where none are expected",
    "JAX_DISABLE_JIT": "runs every operation on its own: slow by orders",
    "JAX_DEBUG_NANS": "waits for every step and looks at all of it",
}


def check(environment: Mapping[str, str], machine: Machine) -> Iterator[Finding]:
    """Yields a finding for each variable that is worth a word, or one that says there is none."""
    found = [
        *_hidden(environment, machine),
        *_xla_flags(environment.get("XLA_FLAGS", "")),
        *_for_tests(environment),
        *_slice(environment),
    ]
    if not found:
        found = [Finding(group=GROUP, name="variables", state="ok", found="nothing unusual")]
    yield from found


def hosts(environment: Mapping[str, str]) -> list[str]:
    """Returns the hosts of the TPU slice that this machine is part of, in their order."""
    return [name for name in environment.get("TPU_WORKER_HOSTNAMES", "").split(",") if name]


def _hidden(environment: Mapping[str, str], machine: Machine) -> Iterator[Finding]:
    there = [
        f"{len(chips)} {name}"
        for name, chips in (("GPUs", machine.gpu_devices()), ("TPU chips", machine.tpu_devices()))
        if chips
    ]
    for name in ("JAX_PLATFORMS", "JAX_PLATFORM_NAME"):
        value = environment.get(name, "")
        if value.split(",")[0].strip().lower() == "cpu" and there:
            yield _warning(
                name,
                f"{value}: the CPU will be used, though there are {' and '.join(there)}",
                f"unset {name}",
            )
        for asked in (word.strip().lower() for word in value.split(",")):
            missing = {"cuda": machine.gpu_devices, "gpu": machine.gpu_devices}.get(asked)
            missing = machine.tpu_devices if asked == "tpu" else missing
            if missing is not None and not missing():
                found = f"{value}: no device of {asked} is seen on this machine"
                yield _warning(name, found, f"unset {name}")
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible in ("", "-1") and machine.gpu_devices():
        yield _warning(
            "CUDA_VISIBLE_DEVICES", f"{visible!r} hides all GPUs", "unset CUDA_VISIBLE_DEVICES"
        )


def _xla_flags(flags: str) -> Iterator[Finding]:
    words = flags.split()
    names = collections.Counter(word.partition("=")[0] for word in words)
    for word in words:
        if not word.startswith("--"):
            yield _warning(
                "XLA_FLAGS", f"{word!r} is no flag: each is --name=value", "Mend it, or unset it"
            )
        elif word.startswith("--xla_tpu"):
            yield _warning(
                "XLA_FLAGS",
                f"{word} is a flag of libtpu, at which XLA stops the process",
                "Put it into LIBTPU_INIT_ARGS",
            )
        elif word.startswith("--xla_force_host_platform_device_count="):
            yield _warning(
                "XLA_FLAGS",
                f"the CPU pretends to be {word.partition('=')[2]} devices, for tests; they share "
                "its cores",
                "unset XLA_FLAGS, unless that is what you want",
            )
    for name, count in names.items():
        if count > 1:
            yield _warning("XLA_FLAGS", f"{name} is there {count} times, the last one counts", "")


def _for_tests(environment: Mapping[str, str]) -> Iterator[Finding]:
    for name, what in _FOR_TESTS.items():
        if (value := environment.get(name, "")).lower() not in _OFF:
            yield _warning(name, f"{value}: {what}", f"unset {name}")


def _slice(environment: Mapping[str, str]) -> Iterator[Finding]:
    names = hosts(environment)
    if not names:
        return
    index = environment.get("TPU_WORKER_ID", "?")
    kind = environment.get("TPU_ACCELERATOR_TYPE", "TPU")
    if len(names) == 1:
        yield Finding(group=GROUP, name="TPU slice", state="ok", found=f"{kind}, one host")
        return
    yield _warning(
        "TPU slice",
        f"{kind} of {len(names)} hosts, this is host {index}: no host sees its chips before all "
        "have started",
        "Start the same command on all hosts at once: gcloud compute tpus tpu-vm ssh NAME "
        "--worker=all --command='prompt-tuning ...'",
    )


def _warning(name: str, found: str, advice: str) -> Finding:
    return Finding(group=GROUP, name=name, state="warning", found=found, advice=advice)
