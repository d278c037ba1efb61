"""What an import brings with it, each seen in a fresh interpreter."""

import json
import pathlib
import subprocess
import sys

import pytest

from prompt_tuning.__main__ import COMMANDS

ROOT = pathlib.Path(__file__).parent.parent
OPTIONAL = {"gin", "seqio", "tensorflow", "torch", "transformers"}
HEAVY = OPTIONAL | {"absl", "etils", "flax", "jax", "matplotlib", "numpy", "optax", "orbax"}


def run(code):
    """Returns what a new interpreter prints."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def modules_after(statement):
    """Returns the top-level modules that are loaded once the statement ran."""
    return set(run(f"{statement}\nimport sys\nprint(*{{n.split('.')[0] for n in sys.modules}})"))


@pytest.mark.parametrize("package", ["model", "prompts", "training"])
def test_the_library_loads_no_tensorflow_seqio_or_gin(package):
    loaded = modules_after(f"import prompt_tuning.{package}")
    assert "jax" in loaded
    assert loaded & OPTIONAL == set()


def test_the_package_itself_loads_nothing():
    loaded = modules_after("import prompt_tuning")
    assert "prompt_tuning" in loaded
    assert loaded & HEAVY == set()


@pytest.mark.parametrize("package", ["model", "prompts", "training"])
def test_an_import_starts_no_device(package):
    # `jax.distributed.initialize` must come first, so no module may make an array when imported.
    # JAX has no public question for it.
    started = run(
        f"import prompt_tuning.{package}\n"
        "from jax._src import xla_bridge\n"
        "print(xla_bridge.backends_are_initialized())"
    )
    assert started == ["False"]


# The command line answers at once: measured, `--help` takes 0.1 s. What keeps it there is what it
# does not import, and that is the same on every machine.

ANSWERS = """
import contextlib, io, json, sys
from prompt_tuning.__main__ import main
for arguments in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        assert main(arguments) in (0, 2), arguments
    print(*arguments, ":", *{name.split(".")[0] for name in sys.modules})
"""


def loaded_by_main(command_lines):
    """Returns by command line the libraries that are loaded once all until it are answered."""
    command = [sys.executable, "-c", ANSWERS, json.dumps(command_lines)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = [line.partition(" : ") for line in done.stdout.splitlines()]
    assert len(rows) == len(command_lines)
    watched = HEAVY | {"argcomplete", "argparse"}
    return {line: watched.intersection(names.split()) for line, _, names in rows}


def every_command(flag):
    """Returns each command, and each with each of its actions, with a flag behind it."""
    return [
        [name, *words, flag]
        for name, command in COMMANDS.items()
        for words in ([], *([action] for action in command.actions))
    ]


@pytest.mark.parametrize("flag", ["--help", "--no_such_flag"])
def test_help_and_a_misspelt_flag_are_answered_without_a_library(flag):
    lines = [["--help"], ["--version"], ["no_such_command"], *every_command(flag)]
    assert {
        line: names for line, names in loaded_by_main(lines).items() if names - {"argparse"}
    } == {}


def test_the_script_for_completion_loads_nothing_but_its_library():
    (loaded,) = loaded_by_main([["completion", "bash"]]).values()
    assert loaded == {"argcomplete", "argparse"}
