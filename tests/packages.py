"""What a user installs: the wheel of this tree, and what the locks pin."""

import pathlib
import shutil
import subprocess
import sys

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = pathlib.Path(__file__).parent.parent


def copy_tree(target):
    """Copies what a package is built from, so that the tree stays clean; returns the folder."""
    for folder in ("prompt_tuning", "tasks", "gin", "tests"):
        unwanted = shutil.ignore_patterns("golden", "__pycache__")
        shutil.copytree(ROOT / folder, target / folder, ignore=unwanted)
    for file in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, target)
    return target


def build_wheel(source, out):
    """Builds the wheel of a `copy_tree` into a folder, offline, and returns its path."""
    pip = [sys.executable, "-m", "pip", "wheel", "--no-index", "--no-deps", "--no-build-isolation"]
    done = subprocess.run(
        [*pip, "--wheel-dir", out, source], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return next(out.glob("*.whl"))


def read_lock(name):
    """Returns the entries of a lock, each without its comments and line breaks."""
    text = (ROOT / f"requirements/{name}.txt").read_text("utf-8")
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    return "\n".join(lines).replace("\\\n", " ").splitlines()


def locked_versions(name):
    """Returns the versions of every project in a lock, as Linux on x86-64 would install them."""
    here = {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64"}
    entries = [Requirement(entry.partition(" --hash")[0]) for entry in read_lock(name)]
    return {
        canonicalize_name(entry.name): str(entry.specifier).removeprefix("==")
        for entry in entries
        if entry.marker is None or entry.marker.evaluate(here)
    }
