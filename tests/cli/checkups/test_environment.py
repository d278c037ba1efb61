import pytest

from prompt_tuning.cli.checkups import environment
from prompt_tuning.cli.checkups.machine import Machine


@pytest.fixture
def machine(tmp_path):
    """A machine whose devices are what lies in its `dev`."""
    (tmp_path / "dev").mkdir()
    return Machine(dev=tmp_path / "dev", proc=tmp_path / "proc")


def look(machine, **variables):
    return list(environment.check(variables, machine))


def test_an_environment_without_variables_is_in_order(machine):
    (finding,) = look(machine, PATH="/bin", JAX_PLATFORMS="cpu", JAX_ENABLE_X64="0")
    assert finding.state == "ok"


@pytest.mark.parametrize("device", ["nvidia0", "accel0"])
@pytest.mark.parametrize("variable", ["JAX_PLATFORMS", "JAX_PLATFORM_NAME"])
def test_the_cpu_in_front_of_an_accelerator_is_a_warning(machine, device, variable):
    (machine.dev / device).touch()
    (warning,) = look(machine, **{variable: "cpu"})
    assert warning.state == "warning"
    assert "though there are 1" in warning.found
    assert warning.advice == f"unset {variable}"
    (fine,) = look(machine)
    assert fine.state == "ok"


@pytest.mark.parametrize(("platform", "device"), [("cuda", "nvidia0"), ("tpu", "accel0")])
def test_a_platform_that_is_not_there_is_a_warning(machine, platform, device):
    (warning,) = look(machine, JAX_PLATFORMS=platform)
    assert f"no device of {platform} is seen" in warning.found
    (machine.dev / device).touch()
    assert look(machine, JAX_PLATFORMS=platform)[0].state == "ok"


def test_the_files_of_the_drivers_are_no_devices(machine):
    for name in ("nvidiactl", "nvidia-uvm", "nvidia-modeset"):
        (machine.dev / name).touch()
    assert look(machine, JAX_PLATFORMS="cpu")[0].state == "ok"


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_hidden_gpus_are_a_warning(machine, hidden):
    assert look(machine, CUDA_VISIBLE_DEVICES=hidden)[0].state == "ok"
    (machine.dev / "nvidia0").touch()
    assert look(machine, CUDA_VISIBLE_DEVICES=hidden)[0].advice == "unset CUDA_VISIBLE_DEVICES"


@pytest.mark.parametrize(
    ("flags", "found"),
    [
        ("xla_dump_to=/tmp", "'xla_dump_to=/tmp' is no flag"),
        ("--xla_tpu_enable_x=true", "is a flag of libtpu"),
        ("--xla_force_host_platform_device_count=8", "pretends to be 8 devices"),
        ("--xla_a=1 --xla_b=2 --xla_a=3", "--xla_a is there 2 times"),
    ],
)
def test_odd_xla_flags_are_warnings(machine, flags, found):
    (warning,) = look(machine, XLA_FLAGS=flags)
    assert warning.state == "warning"
    assert found in warning.found


def test_usual_xla_flags_are_no_warning(machine):
    assert look(machine, XLA_FLAGS="--xla_dump_to=/tmp/x --xla_gpu_autotune_level=0")[0].name != (
        "XLA_FLAGS"
    )


@pytest.mark.parametrize("name", environment._FOR_TESTS)
def test_variables_for_finding_faults_are_warnings(machine, name):
    assert look(machine, **{name: "true"})[0].name == name
    assert look(machine, **{name: "False"})[0].name == "variables"


def test_a_slice_of_several_hosts_is_to_be_started_on_all(machine):
    pod = {
        "TPU_WORKER_HOSTNAMES": "10.0.0.1,10.0.0.2,10.0.0.3,10.0.0.4",
        "TPU_WORKER_ID": "2",
        "TPU_ACCELERATOR_TYPE": "v3-32",
    }
    (warning,) = look(machine, **pod)
    assert warning.state == "warning"
    assert "v3-32 of 4 hosts, this is host 2" in warning.found
    assert "--worker=all" in warning.advice


def test_a_slice_of_one_host_is_in_order(machine):
    (finding,) = look(machine, TPU_WORKER_HOSTNAMES="localhost", TPU_ACCELERATOR_TYPE="v2-8")
    assert (finding.state, finding.found) == ("ok", "v2-8, one host")
