import pathlib
import sys

import pytest

import prompt_tuning
from prompt_tuning.cli.checkups import conflicts
from prompt_tuning.cli.checkups.distributions import Distributions
from tests.cli.checkups.installations import by_name, install

SEQIO = ["seqio/__init__.py", "seqio/dataset_providers.py"]


@pytest.fixture
def site(tmp_path):
    folder = tmp_path / "site"
    install(folder, "seqio", "0.0.20", files=SEQIO)
    install(folder, "gin-config", "0.5.0", files=["gin/__init__.py"])
    return folder


def look(*folders, working_folder=None):
    installed = Distributions(list(map(str, folders)))
    elsewhere = working_folder or pathlib.Path(folders[0]) / "nothing"
    return by_name(conflicts.check(installed, working_folder=elsewhere))


def faults(*folders):
    return {name: one for name, one in look(*folders).items() if one.state == "fault"}


def test_an_installation_without_conflicts_says_so(site):
    assert list(look(site)) == ["conflicts"]
    assert look(site)["conflicts"].state == "ok"


def test_the_environment_of_these_tests_has_no_conflict():
    found = conflicts.check(Distributions(sys.path), working_folder=pathlib.Path("/"))
    assert [one for one in found if one.state == "fault"] == []


@pytest.mark.parametrize("name", conflicts.CONFLICTS)
def test_every_known_conflict_is_found_by_its_name(site, name):
    install(site, name, "1.2.3")
    finding = look(site)[name]
    assert finding.state == conflicts.CONFLICTS[name].state
    assert finding.found.startswith("1.2.3 ")
    assert finding.state == "ok" or f"pip uninstall -y {name}" in finding.advice


def test_seqio_nightly_over_seqio_is_a_fault_of_the_files_as_well(site):
    install(site, "seqio-nightly", "0.0.18", files=SEQIO)
    found = faults(site)
    assert set(found) == {"seqio-nightly", "seqio"}
    assert "installed by seqio-nightly as well as by seqio" in found["seqio"].found
    assert "pip uninstall -y seqio-nightly" in found["seqio"].advice
    assert found["seqio"].exit_code == 2


def test_files_that_another_version_left_behind_are_found_by_their_contents(site):
    # seqio-nightly was there, and was taken away by hand.
    (site / SEQIO[1]).write_text("# from last night\n")
    fault = faults(site)["seqio"]
    assert f"a file that seqio 0.0.20 did not install, or misses them: {SEQIO[1]}" in fault.found
    assert fault.advice == "pip install --force-reinstall --no-deps 'seqio==0.0.20'"


def test_files_that_were_taken_along_are_found(site):
    # `pip uninstall seqio-nightly` removes files of both.
    (site / SEQIO[1]).unlink()
    assert SEQIO[1] in faults(site)["seqio"].found


def test_a_package_whose_files_are_gone_is_found(site):
    for file in SEQIO:
        (site / file).unlink()
    (site / "seqio").rmdir()
    assert "cannot be imported, though seqio is installed" in faults(site)["seqio"].found


def test_another_gin_in_front_of_gin_config_is_found(site, tmp_path):
    mine = tmp_path / "mine/gin"
    mine.mkdir(parents=True)
    (mine / "__init__.py").write_text("")
    fault = faults(mine.parent, site)["gin"]
    assert f"is imported from {mine}, which is not gin-config" in fault.found
    assert faults(site, mine.parent) == {}


def test_a_folder_of_gin_files_is_not_another_gin(site, tmp_path):
    (tmp_path / "checkout/gin/runs").mkdir(parents=True)
    assert faults(tmp_path / "checkout", site) == {}


def test_a_package_of_our_name_elsewhere_is_a_warning(site, tmp_path):
    original = tmp_path / "original/prompt_tuning"
    original.mkdir(parents=True)
    (original / "__init__.py").write_text("")
    for found in (look(site, original.parent), look(site, working_folder=original.parent)):
        warning = found["prompt_tuning"]
        assert warning.state == "warning"
        assert f"lies in {original}" in warning.found


def test_our_own_folder_is_not_another_package(site):
    checkout = pathlib.Path(prompt_tuning.__file__).parent.parent
    assert list(look(site, checkout, working_folder=checkout)) == ["conflicts"]
