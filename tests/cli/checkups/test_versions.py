import sys

import pytest

import prompt_tuning
from prompt_tuning.cli.checkups import versions
from prompt_tuning.cli.checkups.distributions import Distributions
from tests.cli.checkups.installations import by_name, install

OURS = prompt_tuning.__version__
JAX = ["jaxlib<=0.10.2,>=0.10.1", 'libtpu==0.0.42.*; extra == "tpu"'] + [
    f'jax-cuda13-plugin[with-cuda]<=0.10.2,>=0.10.2; extra == "{extra}"'
    for extra in ("cuda13", "cuda13-local")
]


@pytest.fixture
def site(tmp_path):
    """An installation without a fault: of two dependencies, one of which has its own."""
    install(tmp_path, "prompt-tuning", OURS, requires=["jax>=0.10.2,<0.11", "Etils[epath]>=1,<2"])
    install(tmp_path, "jax", "0.10.2", requires=JAX, extras=["tpu", "cuda13", "cuda13-local"])
    install(tmp_path, "jaxlib", "0.10.2")
    install(tmp_path, "etils", "1.15.0")
    return tmp_path


def look(site):
    return by_name(versions.check(Distributions([str(site)])))


def faults(site):
    return {name: one for name, one in look(site).items() if one.state == "fault"}


def replace(site, name, version, **more):
    for old in site.glob(f"{name.replace('-', '_')}-*"):
        for file in old.iterdir():
            file.unlink()
        old.rmdir()
    install(site, name, version, **more)


def test_an_installation_within_its_bounds_has_no_fault(site):
    found = look(site)
    assert {one.state for one in found.values()} == {"ok"}
    assert {name: found[name].found for name in ("jax", "jaxlib", "Etils")} == {
        "jax": "0.10.2",
        "jaxlib": "0.10.2",
        "Etils": "1.15.0",
    }


def test_the_environment_of_these_tests_has_no_fault():
    found = list(versions.check(Distributions(sys.path)))
    assert [one for one in found if one.state == "fault"] == []
    assert {"jax", "jaxlib", "flax", "seqio", "tensorflow"} <= {one.name for one in found}


def test_a_dependency_out_of_bounds_is_a_fault_with_the_command_that_mends_it(site):
    replace(site, "etils", "2.1")
    (fault,) = faults(site).values()
    assert fault.found == "2.1, but <2,>=1 is needed"
    assert fault.advice == "pip install 'Etils<2,>=1'"
    assert fault.exit_code == 2


def test_a_missing_dependency_is_a_fault(site):
    replace(site, "etils", "2.1")
    next(site.glob("etils-*/METADATA")).unlink()
    next(site.glob("etils-*")).rename(site / "gone")
    assert faults(site)["Etils"].found == "not installed"


def test_jaxlib_that_its_jax_does_not_take_is_a_fault(site):
    replace(site, "jaxlib", "0.9.0")
    findings = list(versions.check(Distributions([str(site)])))
    (fault,) = [one for one in findings if one.state == "fault"]
    assert fault.name == "jaxlib"
    assert fault.found == "0.9.0, but jax needs <=0.10.2,>=0.10.1"


def test_jaxlib_of_another_version_that_jax_takes_is_a_warning(site):
    replace(site, "jaxlib", "0.10.1")
    warning = look(site)["jaxlib"]
    assert warning.state == "warning"
    assert warning.found == "0.10.1 beside jax 0.10.2"
    assert "'jaxlib==0.10.2'" in warning.advice


@pytest.mark.parametrize(
    ("plugin", "right", "wrong"),
    [("jax-cuda13-plugin", "0.10.2", "0.9.1"), ("libtpu", "0.0.42.1", "0.0.30")],
)
def test_a_plugin_must_match_jax(site, plugin, right, wrong):
    install(site, plugin, right)
    assert look(site)[plugin].state == "ok"
    replace(site, plugin, wrong)
    assert "but jax 0.10.2 needs" in faults(site)[plugin].found


def test_plugins_that_are_not_there_are_not_missed(site):
    assert not {"libtpu", "jax-cuda13-plugin"} & set(look(site))


def test_metadata_of_another_version_of_ours_is_a_fault(site):
    replace(site, "prompt-tuning", "0.0.1")
    assert "the metadata is of 0.0.1" in faults(site)["prompt-tuning"].found


def test_ourselves_without_metadata_is_a_fault(tmp_path):
    assert "is not installed" in faults(tmp_path)["prompt-tuning"].found


def test_a_python_that_is_not_supported_is_a_fault(site):
    replace(site, "prompt-tuning", OURS, python=">=3.99")
    fault = faults(site)["Python"]
    assert "but >=3.99 is needed" in fault.found
    assert sys.executable in fault.found


def test_installed_metadata_goes_before_that_of_a_checkout(site, tmp_path_factory):
    checkout = tmp_path_factory.mktemp("checkout")
    built = checkout / "prompt_tuning.egg-info"
    built.mkdir()
    (built / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: prompt-tuning\nVersion: 0.0.0\n")
    installed = Distributions([str(checkout), str(site)])
    assert installed.version("prompt-tuning") == OURS
    assert Distributions([str(checkout)]).version("prompt-tuning") == "0.0.0"
