"""What an import brings with it, each seen in a fresh interpreter."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
OPTIONAL = {"gin", "seqio", "tensorflow", "torch", "transformers"}
HEAVY = OPTIONAL | {"absl", "flax", "jax", "numpy", "optax", "orbax"}


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
