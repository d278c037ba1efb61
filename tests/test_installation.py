"""An installed package, away from its source: from text to answers with packaged gin files only."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig
import venv

import numpy as np
import pytest

import prompt_tuning
from tests.packages import build_wheel, copy_tree, locked_versions
from tests.small_vocabulary import SENTENCES

STEPS = 2
ROWS = [
    (f"the {thing} was {word}", label)
    for thing in ("film", "plot", "actor", "music")
    for label, words in enumerate((("dull", "noisy", "boring"), ("lovely", "honest", "clever")))
    for word in words
]
# What the fast test borrows from the environment that the tests run in.
QUICK = {"XLA_FLAGS": "--xla_backend_optimization_level=0"}
# Nothing that leads to the tree, or makes one CPU eight.
INHERITED = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "XLA_FLAGS")}


class Installation:
    """A virtual environment, and a folder that commands run in."""

    def __init__(self, folder):
        self.folder = folder
        self.python = folder / "venv/bin/python"
        self.elsewhere = folder / "elsewhere"
        self.elsewhere.mkdir()

    def run(self, *command, **environment):
        """Runs a program of the environment, which knows nothing of the tree."""
        done = subprocess.run(
            [self.python.parent / command[0], *map(str, command[1:])],
            cwd=self.elsewhere,
            env={**INHERITED, "JAX_PLATFORMS": "cpu", **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def where(self):
        """Returns the folder that the package is imported from."""
        return pathlib.Path(self.run("prompt-tuning", "find-module", "prompt_tuning").strip())


def go_the_whole_way(installation, folder, **environment):
    """Pretrains, tunes, evaluates and infers; the gin files are named as in the documentation."""
    folder.mkdir()
    (folder / "corpus.txt").write_text("\n".join(SENTENCES * 10) + "\n")
    for name, rows in (("train", ROWS), ("validation", ROWS[::3])):
        lines = ["sentence\tlabel", *(f"{text}\t{label}" for text, label in rows)]
        (folder / f"{name}.tsv").write_text("\n".join(lines) + "\n")

    shared = {
        "VOCABULARY_FILE": f"'{folder}/small.model'",
        "CACHE_DIR": f"'{folder}/cache'",
        "ACTIVATION_DTYPE": "'float32'",
        "BATCH_SIZE": 8,
    }
    task = {
        "MIXTURE_OR_TASK_NAME": f"'{folder}/train.tsv'",
        "TASK_FEATURE_LENGTHS": {"inputs": 32, "targets": 4},
        "FILE_TASK": "@file_task.FileTask()",
        "file_task.FileTask.name": "'remarks'",
        "file_task.FileTask.inputs": "'{sentence}'",
        "file_task.FileTask.targets": "'{label}'",
        "file_task.FileTask.names": {"label": ["bad", "good"]},
    }
    learned = {"CHECKPOINT_PATH": f"'{folder}/base'", "PROMPT_FILE": f"'{folder}/run'"}

    def command(name, gin_files, *settings):
        files = [f"--gin_file={file}.gin" for file in ("models/ours_tiny", *gin_files)]
        values = {key: value for some in (shared, *settings) for key, value in some.items()}
        bindings = [f"--gin.{key}={value}" for key, value in values.items()]
        installation.run("prompt-tuning", name, *files, *bindings, **environment)

    command(
        "pretrain",
        ["runs/pretrain"],
        {"MODEL_DIR": f"'{folder}/base'", "CORPUS": f"'{folder}/corpus.txt'"},
        {"VOCABULARY_SIZE": 160, "TRAIN_STEPS": STEPS, "INPUT_LENGTH": 16},
    )
    command(
        "train",
        ["prompts/from_class_labels", "runs/prompt_finetune"],
        task,
        {"MODEL_DIR": f"'{folder}/run'", "INITIAL_CHECKPOINT_PATH": f"'{folder}/base'"},
        {"CLASS_LABELS": ["good", "bad"], "PROMPT_LENGTH": 4},
        {"TRAIN_STEPS_RELATIVE": STEPS, "EVAL_SPLIT": None},
    )
    command(
        "eval", ["runs/prompt_eval"], task, learned, {"EVAL_OUTPUT_DIR": f"'{folder}/evaluation'"}
    )
    command(
        "infer",
        ["runs/prompt_infer"],
        task,
        learned,
        {"INFER_OUTPUT_DIR": f"'{folder}/answers'", "INFER_SPLIT": "'validation'"},
    )
    return folder


def check_files(folder):
    """Checks what the whole way has left behind."""
    last = 2 * STEPS  # the optimizer counts on from the base
    assert (folder / f"base/checkpoints/{STEPS}").is_dir()
    assert (folder / "run/prompt.safetensors").is_file()
    kept = folder / f"run/numpy_checkpoints/checkpoint_{last}/encoder.prompt.prompt.prompt"
    assert np.load(kept).shape[0] == 4
    assert "train.trainable = 'prompt'" in (folder / "run/config.gin").read_text()
    (metrics,) = (
        (folder / "evaluation/inference_eval/remarks-metrics.jsonl").read_text().splitlines()
    )
    assert json.loads(metrics)["step"] == last
    (answers,) = folder.glob("answers/remarks-*.jsonl-00000-of-00001")
    lines = [json.loads(line) for line in answers.read_text().splitlines()]
    assert len(lines) == len(ROWS[::3])


@pytest.mark.slow
def test_the_wheel_alone_goes_the_whole_way_beside_the_dependencies_of_these_tests(tmp_path):
    installation = Installation(tmp_path)
    venv.create(tmp_path / "venv", symlinks=True)
    wheel = build_wheel(copy_tree(tmp_path / "source"), tmp_path / "wheels")
    install = ["install", "--no-deps", "--no-index", "--disable-pip-version-check", str(wheel)]
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", installation.python, *install],
        check=True,
        env=INHERITED,
        capture_output=True,
    )
    # Only now, or pip would find the package that these tests run on.
    own = next((tmp_path / "venv").glob("lib/python*/site-packages"))
    (own / "borrowed.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    assert installation.where() == own / "prompt_tuning"
    assert installation.run("prompt-tuning", "--version").strip() == (
        f"prompt-tuning {prompt_tuning.__version__}"
    )
    check_files(go_the_whole_way(installation, tmp_path / "outputs", **QUICK))


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    """An empty virtual environment with pip, and what pins the dependencies to the lock."""
    folder = tmp_path_factory.mktemp("installed")
    installation = Installation(folder)
    venv.create(folder / "venv", symlinks=True, with_pip=True)
    constraints = folder / "constraints.txt"
    # Without the hashes, which pip would ask of our own wheel as well.
    pins = [f"{name}=={version}\n" for name, version in locked_versions("cpu").items()]
    constraints.write_text("".join(pins))
    pip = [installation.python, "-m", "pip", "download", "--no-deps", "--quiet"]
    done = subprocess.run(
        [*pip, "-c", constraints, "-d", folder / "downloaded", "gin-config"],
        env=INHERITED,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["pip says nothing"])[-1]
        pytest.skip(f"needs a package index, and none can be reached from here: {reason}")
    yield installation
    shutil.rmtree(folder / "venv")  # gigabytes, of which pytest would keep three


@pytest.mark.slow
def test_the_wheel_in_an_empty_environment_goes_the_whole_way(empty, tmp_path):
    wheel = build_wheel(copy_tree(tmp_path / "source"), tmp_path / "wheels")
    empty.run("python", "-m", "pip", "install", "-c", empty.folder / "constraints.txt", wheel)
    assert empty.where().is_relative_to(empty.folder / "venv")
    # Nothing but the folders of Python and of the wheel, and so nothing to complain of.
    empty.run("prompt-tuning", "doctor")
    check_files(go_the_whole_way(empty, tmp_path / "outputs"))


@pytest.mark.slow
def test_an_editable_installation_goes_the_whole_way(empty, tmp_path):
    source = copy_tree(tmp_path / "source")
    constraints = empty.folder / "constraints.txt"
    empty.run("python", "-m", "pip", "install", "-c", constraints, "-e", source)
    assert empty.where() == source / "prompt_tuning"
    empty.run("prompt-tuning", "doctor")
    check_files(go_the_whole_way(empty, tmp_path / "outputs"))
