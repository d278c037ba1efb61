"""The shape of the project: which module may import which, and what its files never contain."""

import ast
import graphlib
import pathlib
import re
import subprocess
import sys

import jax.numpy as jnp
import jaxtyping
import pytest

from prompt_tuning.batch import shift_right

ROOT = pathlib.Path(__file__).parent.parent

# Lowest first. A module imports from the lines above its own, and from its own sub-package.
LAYERS = [
    {"errors", "libtpu", "paths", "shipped"},
    {"batch", "layout", "vocabulary"},
    {"model", "prompts", "losses", "partitioning"},
    {"training", "decoding"},
    {"planning"},  # of their steps
    {"checkpoints"},  # of what training holds
    {"data", "serving"},
    {"evaluation"},  # of the examples of a split
    {"reporting"},  # of what a run has left
    {"cli"},
    {"__main__"},
    {"scripts"},  # what scripts for the original call
]
LEVELS = {part: level for level, parts in enumerate(LAYERS) for part in parts}
CORE = set().union(*LAYERS[: LEVELS["checkpoints"] + 1])

# Which modules, and everything below them, may import a library that is not for all of us.
SEQIO = [
    "prompt_tuning.data.seqio_tasks",
    "prompt_tuning.data.streams",
    "prompt_tuning.tasks",
]
FLAGS = ["prompt_tuning.cli", "prompt_tuning.__main__"]
HOMES = {
    "absl.app": FLAGS,
    "absl.flags": FLAGS,
    "gin": ["prompt_tuning.cli"],
    "jinja2": ["prompt_tuning.reporting"],
    "matplotlib": ["prompt_tuning.reporting"],
    "seqio": SEQIO,
    "tensorflow": SEQIO,
    "tensorflow_datasets": SEQIO,
    "tensorflow_text": SEQIO,
    "flaxformer": [],
    "t5": [],
    "t5x": [],
    "torch": [],
    "transformers": [],
}
NOT_IN_THE_CORE = ["gin", "seqio", "tensorflow", "torch", "transformers"]


def inside(name, home):
    return name == home or name.startswith(f"{home}.")


def module_name(path):
    """Returns the name under which a file is imported; `tasks/` is `prompt_tuning.tasks`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = ("prompt_tuning", *parts) if parts[0] == "tasks" else parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    module_name(path): path
    for folder in ("prompt_tuning", "tasks")
    for path in sorted((ROOT / folder).rglob("*.py"))
}
PACKAGE = [name for name in MODULES if not inside(name, "prompt_tuning.tasks")]


def part(name):
    """Returns what LAYERS calls a module: `prompt_tuning.model.t5` is in `model`."""
    return [*name.split("."), ""][1]


def imports(name):
    """Returns the full names of all that a module imports, at its top or inside a function."""
    found = set()
    package = name if MODULES[name].name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(MODULES[name].read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: package.count(".") + 2 - node.level]
            base = ".".join([*(above if node.level else []), *([node.module] * bool(node.module))])
            for alias in node.names:
                full = f"{base}.{alias.name}"
                is_attribute = inside(base, "prompt_tuning") and full not in MODULES
                found.add(base if is_attribute else full)
    return sorted(found)


def project_files():
    """Yields every file but those that .gitignore names and those of git."""
    lines = (ROOT / ".gitignore").read_text("utf-8").split()
    ignored = {".git"} | {line.strip("/") for line in lines if "*" not in line}
    folders = [ROOT]
    while folders:
        for path in folders.pop().iterdir():
            if path.name in ignored or path.name.endswith(".egg-info"):
                continue
            if path.is_dir():
                folders.append(path)
            else:
                yield path


def test_every_module_has_a_layer():
    strangers = {name for name in PACKAGE if part(name) and part(name) not in LEVELS}
    assert strangers == set(), f"Give {sorted(strangers)} a line in LAYERS, here and in STYLE"


def test_imports_point_downwards():
    upward = [
        f"{name} imports {imported}"
        for name in PACKAGE
        for imported in imports(name)
        if part(name) in LEVELS and inside(imported, "prompt_tuning")
        if part(imported) not in ("", part(name))
        if LEVELS.get(part(imported), len(LEVELS)) >= LEVELS[part(name)]
    ]
    assert not upward, "\n".join(upward)


def test_the_root_of_the_package_imports_nothing():
    assert imports("prompt_tuning") == []


def test_nobody_in_the_package_imports_tasks():
    guilty = [
        name
        for name in PACKAGE
        for imported in imports(name)
        if inside(imported, "prompt_tuning.tasks") or inside(imported, "tasks")
    ]
    assert guilty == []


def test_libraries_stay_in_their_homes():
    strays = [
        f"{name} imports {imported}"
        for name in MODULES
        for imported in imports(name)
        for library, homes in HOMES.items()
        if inside(imported, library) and not any(inside(name, home) for home in homes)
    ]
    assert not strays, "\n".join(strays)


def test_there_are_no_import_cycles():
    ours = {name: [i for i in imports(name) if i in MODULES] for name in MODULES}
    graphlib.TopologicalSorter(ours).prepare()  # CycleError lists the modules of the cycle


def test_the_core_runs_without_tensorflow_seqio_and_gin():
    code = (
        "import importlib, sys\n"
        f"optional = {set(NOT_IN_THE_CORE)}\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        "    if loaded := optional.intersection(sys.modules):\n"
        "        sys.exit(f'importing {name} loads {sorted(loaded)}')\n"
    )
    core = [name for name in PACKAGE if part(name) in CORE]
    command = [sys.executable, "-c", code, *core]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_gin_holds_values_and_never_shadows_gin_config():
    assert [path.name for path in (ROOT / "gin").rglob("*.py")] == []


def test_a_file_is_named_after_its_concept():
    nameless = {"common", "helpers", "helper", "misc", "utils", "util"}
    assert [path.name for path in project_files() if path.stem in nameless] == []


def test_no_file_names_a_folder_of_one_machine():
    folder = re.compile(rb"(?<![\w.~})\]-])/(?:work|root|home|Users)/[\w.]")
    guilty = [
        f"{path.relative_to(ROOT)}: {match[0].decode()}"
        for path in project_files()
        if (match := folder.search(path.read_bytes()))
    ]
    assert guilty == []


def test_tests_check_the_shapes_of_arguments():
    # Without it, an import that passes by the hook of conftest.py would go unseen.
    with pytest.raises(jaxtyping.TypeCheckError, match="targets"):
        shift_right(jnp.zeros(3, jnp.int32))
