"""What a user installs: the wheel, its dependencies and the locks."""

import email
import pathlib
import re
import subprocess
import sys
import zipfile

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import prompt_tuning
from tests.packages import build_wheel, copy_tree, locked_versions, read_lock

ROOT = pathlib.Path(__file__).parent.parent
LOCKS = {"cpu": "dev", "cuda": "cuda", "tpu": "tpu"}  # the name of a lock: the extra it holds
# `t5` brings `seqio-nightly`, which overwrites the files of `seqio`; the others are git heads.
BANNED = {"flaxformer", "seqio-nightly", "t5", "t5x", "torch", "transformers"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel as a zip file."""
    source = copy_tree(tmp_path_factory.mktemp("source"))
    with zipfile.ZipFile(build_wheel(source, tmp_path_factory.mktemp("wheel"))) as file:
        yield file


@pytest.fixture(scope="module")
def metadata(wheel):
    name = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return email.message_from_bytes(wheel.read(name))


@pytest.fixture(scope="module")
def dependencies(metadata):
    return [Requirement(line) for line in metadata.get_all("Requires-Dist")]


def test_wheel_holds_every_gin_file_and_every_task(wheel):
    mounted = {
        f"prompt_tuning/{path.relative_to(ROOT).as_posix()}"
        for pattern in ("gin/**/*.gin", "tasks/**/*.py")
        for path in ROOT.glob(pattern)
    }
    assert mounted
    assert mounted - set(wheel.namelist()) == set()


def test_wheel_holds_every_module(wheel):
    modules = {str(path.relative_to(ROOT)) for path in ROOT.glob("prompt_tuning/**/*.py")}
    assert modules - set(wheel.namelist()) == set()


def test_wheel_holds_what_the_page_of_a_report_is_made_of(wheel):
    files = {str(path.relative_to(ROOT)) for path in ROOT.glob("prompt_tuning/reporting/page.*")}
    assert len(files) == 3
    assert files - set(wheel.namelist()) == set()


def test_wheel_holds_what_is_shipped_with_it_and_stays_small(wheel):
    files = {
        str(path.relative_to(ROOT))
        for path in ROOT.glob("prompt_tuning/shipped/**/*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert len(files) > 1
    assert files - set(wheel.namelist()) == set()
    shipped = [one for one in wheel.infolist() if one.filename in files]
    assert sum(one.compress_size for one in shipped) < 16_000_000


def test_wheel_adds_no_other_top_level_name(wheel):
    about = f"prompt_tuning-{prompt_tuning.__version__}.dist-info"
    assert {name.partition("/")[0] for name in wheel.namelist()} == {"prompt_tuning", about}


def test_wheel_carries_version_licence_and_command(wheel, metadata):
    assert metadata["Name"] == "prompt-tuning"
    assert metadata["Version"] == prompt_tuning.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    about = f"prompt_tuning-{prompt_tuning.__version__}.dist-info"
    assert wheel.read(f"{about}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
    commands = wheel.read(f"{about}/entry_points.txt").decode()
    assert "prompt-tuning = prompt_tuning.__main__:main" in commands


def test_import_gin_at_the_root_is_gin_config():
    code = "import gin; print(gin.parse_config_file.__module__, gin.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    module, file = done.stdout.split()
    assert module == "gin.config"
    assert pathlib.Path(file).parent != ROOT / "gin"


def test_tasks_are_mounted_in_the_package():
    # From another folder, so that nothing is found by its path; `make dev` mounts it.
    code = "import importlib.util as i; print(i.find_spec('prompt_tuning.tasks').origin)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "tests", capture_output=True, text=True, check=True
    )
    assert pathlib.Path(done.stdout.strip()) == ROOT / "tasks/__init__.py"


def test_every_dependency_has_two_bounds(dependencies):
    lower, upper = {">=", "==", "~="}, {"<", "<=", "==", "~="}
    loose = [
        str(dependency)
        for dependency in dependencies
        if not all(
            {clause.operator for clause in dependency.specifier} & bounds
            for bounds in (lower, upper)
        )
    ]
    assert loose == []


def test_every_dependency_comes_from_the_package_index(dependencies):
    assert [str(dependency) for dependency in dependencies if dependency.url] == []


@pytest.mark.parametrize("lock", LOCKS)
def test_lock_pins_everything_with_hashes(lock):
    pin = re.compile(r"[a-z0-9.-]+==\S+( ; .+?)?( +--hash=sha256:[0-9a-f]{64})+")
    assert [entry for entry in read_lock(lock) if not pin.fullmatch(entry.strip())] == []


@pytest.mark.parametrize("lock", LOCKS)
def test_lock_names_no_index_host_or_folder(lock):
    text = (ROOT / f"requirements/{lock}.txt").read_text("utf-8")
    assert re.findall(r".*(?:://|index|find-links|trusted-host|(?<![\w.])/).*", text) == []


@pytest.mark.parametrize("lock", LOCKS)
def test_lock_brings_nothing_that_would_break_the_install(lock):
    assert set(locked_versions(lock)) & BANNED == set()


@pytest.mark.parametrize(("lock", "extra"), LOCKS.items())
def test_lock_is_inside_the_bounds_of_setup(lock, extra, dependencies):
    locked = locked_versions(lock)
    outside = [
        f"{dependency}, but the lock has {version}"
        for dependency in dependencies
        if dependency.marker is None or dependency.marker.evaluate({"extra": extra})
        for version in [locked.get(canonicalize_name(dependency.name))]
        if version is None or version not in dependency.specifier
    ]
    assert outside == [], "Run `make lock`"


@pytest.mark.parametrize("lock", ["cuda", "tpu"])
def test_lock_of_an_accelerator_is_the_tested_lock_and_its_drivers(lock):
    tested, locked = locked_versions("cpu"), locked_versions(lock)
    assert {name: v for name, v in locked.items() if tested.get(name, v) != v} == {}


def test_python_versions_are_those_that_tensorflow_has_wheels_for(metadata):
    allowed = SpecifierSet(metadata["Requires-Python"])
    versions = ["3.10", "3.11", "3.12", "3.13", "3.14"]
    assert [v for v in versions if v in allowed] == ["3.11", "3.12", "3.13"]
