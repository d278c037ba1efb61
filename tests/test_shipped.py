"""The files that the package brings along, and runs that name them by a function."""

import inspect
import os
import pathlib
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from prompt_tuning import shipped
from prompt_tuning.__main__ import main
from prompt_tuning.batch import Batch
from prompt_tuning.checkpoints import formats, load_model
from prompt_tuning.checkpoints.model_file import save_model_file
from prompt_tuning.cli import config
from prompt_tuning.cli.arguments import RunArguments
from prompt_tuning.cli.checkups import configuration
from prompt_tuning.cli.configuration.explanation import explain, explain_macros
from prompt_tuning.cli.identity import identity
from prompt_tuning.cli.reports.next_command import next_commands
from prompt_tuning.data.tables import read_tsv
from prompt_tuning.losses import token_losses
from prompt_tuning.vocabulary import SentencePieceVocabulary
from tests.tiny_runs import BASE_STEP, forget_tasks, make_base, write_task
from tests.tiny_runs import train as train_vocabulary

PATHS = dict(inspect.getmembers(shipped, inspect.isfunction))
GIN = """
from __gin__ import dynamic_registration
from prompt_tuning import shipped

INITIAL_CHECKPOINT_PATH = @shipped.mini_base()
VOCABULARY_FILE = @shipped.mini_vocabulary()
TSV_DIR = @shipped.everyday()
"""
FILES = (
    "models/ours_tiny.gin",
    "runs/prompt_finetune.gin",
    "examples/sst2_files.gin",
    "shipped.gin",
)
SETTINGS = (
    "PROMPT_LENGTH = 3",
    "BATCH_SIZE = 4",
    "ACTIVATION_DTYPE = 'float32'",
    "EVAL_SPLIT = None",
    "MODEL_DIR = 'run'",
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with a gin file that names what is shipped."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PROMPT_TUNING_CACHE", str(tmp_path / "cache"))
    (tmp_path / "shipped.gin").write_text(GIN)
    yield tmp_path
    forget_tasks()
    config.clear()


@pytest.mark.parametrize("name", PATHS)
def test_paths_are_texts_inside_the_package(name):
    path = PATHS[name]()
    assert type(path) is str
    assert pathlib.Path(path).parent == pathlib.Path(inspect.getfile(shipped)).parent


# The base.


def test_what_comes_next_is_no_harder_to_say_after_a_long_text():
    vocabulary = SentencePieceVocabulary(shipped.mini_vocabulary())
    rows = read_tsv(os.path.join(shipped.everyday(), "train.tsv"))
    tokens = vocabulary.encode(" ".join(row.fields["sentence"] for row in rows))
    count = 32
    windows = np.array(tokens[: count * 160], np.int32).reshape(count, 160)
    model = load_model(shipped.mini_base(), dtype="float32")
    targets = jnp.asarray(windows[:, 152:])

    def loss(length):
        ends = np.full((count, 1), vocabulary.eos_id, np.int32)
        inputs = np.concatenate([windows[:, 152 - length : 152], ends], axis=1)
        batch = Batch(inputs=inputs, targets=targets, weights=jnp.ones_like(targets))
        return float(np.mean(token_losses(model(batch), targets)[0]))

    # A base that had read windows of 33 tokens lost 5 nats a token after 24, and 33 after 60.
    short = loss(24)
    assert short < 6
    assert max(loss(60), loss(150)) < short + 0.2


# In gin.


def arguments(*bindings):
    return RunArguments(gin_file=FILES, gin_bindings=(*SETTINGS, *bindings))


def flags(*bindings):
    files = [f"--gin_file={file}" for file in FILES]
    return [*files, *(f"--gin.{one.replace(' = ', '=')}" for one in (*SETTINGS, *bindings))]


def install(folder):
    """Makes a base in int8, a vocabulary and a task where the package would have them."""
    folder.mkdir()
    make_base(folder.parent / "trained")
    held = formats.open_model(folder.parent / "trained")
    path = epath.Path(folder / "mini.safetensors")
    save_model_file(held.tensors, held.config, held.step, path, dtype="int8")
    train_vocabulary(folder / "mini.model")
    (folder / "everyday").mkdir()
    write_task(folder / "everyday")


@pytest.mark.slow
def test_a_run_goes_on_where_the_package_lies_elsewhere(folder, monkeypatch, capsys):
    install(folder / "here")
    monkeypatch.setattr(shipped, "_FOLDER", folder / "here")
    assert main(["train", *flags(f"TRAIN_STEPS = {BASE_STEP + 1}")]) == 0
    recorded = (folder / "run/config.gin").read_text()
    assert "INITIAL_CHECKPOINT_PATH = @shipped.mini_base()" in recorded
    assert str(folder) not in recorded

    shutil.move(folder / "here", folder / "there")
    monkeypatch.setattr(shipped, "_FOLDER", folder / "there")
    forget_tasks()
    assert main(["train", *flags(f"TRAIN_STEPS = {BASE_STEP + 2}")]) == 0
    assert f"goes on from {BASE_STEP + 1} to {BASE_STEP + 2}" in capsys.readouterr().err


def test_no_setting_about_where_it_lies_decides_what_a_run_is(folder):
    found = explain_macros(arguments("TRAIN_STEPS = 1"))
    values = {one.name: one.values[0] for one in found if one.state == "set"}
    readers = {
        reader.name: reader.value
        for one in found
        if one.name in ("INITIAL_CHECKPOINT_PATH", "VOCABULARY_FILE", "TSV_DIR")
        for reader in one.readers
    }
    assert len(readers) >= 3
    assert identity({**values, **readers}, vocabulary=None) == {}


def test_explain_says_which_file_is_meant(folder):
    path = repr(shipped.mini_base())
    [found] = explain(arguments("TRAIN_STEPS = 1"), ["INITIAL_CHECKPOINT_PATH"])
    assert found.values == ("@shipped.mini_base()", path)
    assert found.value == path
    [reader] = explain(arguments("TRAIN_STEPS = 1"), ["train.initial_checkpoint"])
    assert reader.values == ("%INITIAL_CHECKPOINT_PATH", "@shipped.mini_base()", path)
    assert reader.change == f'--gin.INITIAL_CHECKPOINT_PATH="{path}"'


def test_the_table_of_macros_shows_the_function_where_a_path_is_long(folder, capsys, monkeypatch):
    monkeypatch.setattr(shipped, "_FOLDER", pathlib.Path("/package" * 10))
    assert main(["config", "explain", *flags("TRAIN_STEPS = 1")]) == 0
    [row] = [
        line for line in capsys.readouterr().out.splitlines() if line.startswith("INITIAL_CHECK")
    ]
    assert row.split()[:2] == ["INITIAL_CHECKPOINT_PATH", "@shipped.mini_base()"]


def test_doctor_looks_at_the_file_that_is_meant(folder):
    settings, _ = configuration.read(arguments("TRAIN_STEPS = 1"))
    assert settings.texts("INITIAL_CHECKPOINT_PATH") == [shipped.mini_base()]
    assert settings.texts("TSV_DIR") == [shipped.everyday()]


def test_the_next_commands_can_be_typed_without_the_file_that_imports_the_module():
    values = {
        "MODEL_DIR": "'/tmp/run'",
        "INITIAL_CHECKPOINT_PATH": "@shipped.mini_base()",
        "MIXTURE_OR_TASK_NAME": "'sst2'",
        "VOCABULARY_FILE": "@shipped.mini_vocabulary()",
    }
    for command in next_commands(values, trained="prompt", best=False):
        assert f"--gin.CHECKPOINT_PATH=\"'{shipped.mini_base()}'\"" in command
        assert f"--gin.VOCABULARY_FILE=\"'{shipped.mini_vocabulary()}'\"" in command
        assert "@" not in command
    assert len(next_commands(values, trained="prompt", best=False)) == 2


@pytest.mark.parametrize(
    "name", ["shipped.mini_bose()", "other.shipped_base()", "shipped.everyday"]
)
def test_what_is_no_path_of_ours_stays_what_it_is(folder, name):
    (folder / "shipped.gin").write_text(GIN.replace("shipped.mini_base()", name))
    settings, _ = configuration.read(arguments("TRAIN_STEPS = 1"))
    assert settings["INITIAL_CHECKPOINT_PATH"] is None
