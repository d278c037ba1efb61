import os
import time

import pytest

import prompt_tuning
from prompt_tuning.cli.checkups import devices
from prompt_tuning.cli.checkups.configuration import Settings
from prompt_tuning.cli.checkups.devices import Mesh
from prompt_tuning.cli.checkups.distributions import Distributions
from prompt_tuning.cli.checkups.machine import Machine
from tests.cli.checkups.installations import install

DRIVER = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  {}  Fri Jan  1 00:00:00 UTC 2026\n"
OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {}  Release Build\n"


@pytest.fixture
def machine(tmp_path):
    for folder in ("dev", "proc/driver/nvidia"):
        (tmp_path / folder).mkdir(parents=True)
    return Machine(dev=tmp_path / "dev", proc=tmp_path / "proc")


@pytest.fixture
def site(tmp_path):
    return install(tmp_path / "site", "jax", "0.10.2")


def missing(machine, site):
    """What is said of the machine's accelerators before JAX is asked."""
    installed = Distributions([str(site)])
    return [*devices._gpus(machine, installed), *devices._tpus(machine, installed)]


def probe(environment=(), mesh=None, timeout=120.0):
    found = devices._probed({**os.environ, **dict(environment)}, mesh or Mesh(), timeout)
    return {one.name: one for one in found}


# what is missing for the devices that are there


def test_a_machine_without_accelerators_misses_nothing(machine, site):
    assert missing(machine, site) == []


def test_gpus_without_a_plugin_are_a_warning_with_the_extra(machine, site):
    for i in range(2):
        (machine.dev / f"nvidia{i}").touch()
    (warning,) = missing(machine, site)
    assert warning.state == "warning"
    assert warning.found.startswith("2 of NVIDIA")
    assert "pip install '.[cuda]'" in warning.advice
    install(site, "jax-cuda13-plugin", "0.10.2")
    assert missing(machine, site) == []


@pytest.mark.parametrize("line", [DRIVER, OPEN])
def test_a_driver_that_is_too_old_for_cuda_13_is_a_fault(machine, site, line):
    (machine.dev / "nvidia0").touch()
    version = machine.proc / "driver/nvidia/version"
    version.write_text(line.format("535.104.05"))
    (warning,) = missing(machine, site)
    assert warning.advice == "pip install 'jax[cuda12]==0.10.2'"
    install(site, "jax-cuda13-plugin", "0.10.2")
    (fault,) = missing(machine, site)
    assert fault.exit_code == 5
    assert "the driver is 535.104.05" in fault.found
    version.write_text(line.format("580.65.06"))
    assert missing(machine, site) == []


def test_a_plugin_without_gpus_is_a_warning(machine, site):
    install(site, "jax-cuda12-plugin", "0.10.2")
    assert "none is seen" in missing(machine, site)[0].found


@pytest.mark.parametrize("chip", ["accel0", "vfio/0"])
def test_tpu_chips_without_libtpu_are_a_warning_with_the_extra(machine, site, chip):
    (machine.dev / "vfio").mkdir()
    (machine.dev / "vfio/vfio").touch()
    assert missing(machine, site) == []
    (machine.dev / chip).touch()
    (warning,) = missing(machine, site)
    assert "pip install '.[tpu]'" in warning.advice
    install(site, "libtpu", "0.0.42")
    assert missing(machine, site) == []


# what JAX finds


def test_jax_is_asked_for_devices_and_the_mesh_of_a_run():
    found = probe(mesh=Mesh(partitions=2, fsdp=2))
    assert found["jax.devices()"].found.startswith("8 x cpu (cpu), ")
    assert found["mesh"].found.startswith("data 2 x fsdp 2 x model 2 ")
    assert {one.state for one in found.values()} == {"ok"}


def test_a_mesh_that_the_devices_do_not_make_is_a_fault():
    found = probe(mesh=Mesh(partitions=3))
    assert found["jax.devices()"].state == "ok"
    assert found["mesh"].exit_code == 5
    assert "NUM_PARTITIONS" in found["mesh"].found


def test_a_submesh_that_is_none_is_a_fault_of_the_configuration():
    assert probe(mesh=Mesh(submesh=(2, 2)))["mesh"].exit_code == 2


def test_xla_ending_the_process_is_a_fault_with_its_own_words():
    fault = probe({"XLA_FLAGS": "--xla_no_such_flag=1"})["jax.devices()"]
    assert fault.exit_code == 5
    assert "xla_no_such_flag" in fault.found


def test_a_platform_without_devices_is_a_fault():
    fault = probe({"JAX_PLATFORMS": "tpu"})["jax.devices()"]
    assert fault.exit_code == 5


def test_devices_that_do_not_come_are_given_up_in_time(tmp_path):
    # An accelerator's plugin that waits for other hosts.
    plugin = tmp_path / "jax_plugins/waiting"
    plugin.mkdir(parents=True)
    (plugin / "__init__.py").write_text("import time\ndef initialize():\n    time.sleep(1000)\n")
    waiting = {
        "PYTHONPATH": str(tmp_path),
        "TPU_WORKER_HOSTNAMES": "a,b,c,d",
        "JAX_PLATFORMS": "",
    }
    start = time.monotonic()
    fault = probe(waiting, timeout=8.0)["jax.devices()"]
    assert time.monotonic() - start < 60
    assert fault.exit_code == 5
    assert "JAX has not counted devices after 8 seconds" in fault.found
    assert "A slice of 4 hosts answers when the command runs on all of them" in fault.advice


def test_a_jax_that_cannot_be_imported_is_a_fault_of_the_installation(tmp_path):
    broken = tmp_path / "flax"
    broken.mkdir()
    (broken / "__init__.py").write_text("from jax.core import was_removed_long_ago\n")
    # In front of the real one, as the probe puts only our own folder in front of PYTHONPATH.
    found = probe({"PYTHONPATH": str(tmp_path)})
    assert found["jax and flax"].exit_code == 2
    assert "was_removed_long_ago" in found["jax and flax"].found


def test_the_mesh_is_that_of_the_configuration():
    assert devices.mesh_of(Settings()) == Mesh()
    settings = Settings({"NUM_PARTITIONS": 4, "MODEL_PARALLEL_SUBMESH": [2, 1, 1, 1], "FSDP": 2})
    assert devices.mesh_of(settings) == Mesh(partitions=4, submesh=[2, 1, 1, 1], fsdp=2)


def test_the_probe_imports_the_package_that_asks(tmp_path):
    other = tmp_path / "prompt_tuning"
    other.mkdir()
    (other / "__init__.py").write_text("raise SystemExit('the wrong one')\n")
    assert str(tmp_path) not in prompt_tuning.__file__
    assert probe({"PYTHONPATH": str(tmp_path)})["mesh"].state == "ok"
