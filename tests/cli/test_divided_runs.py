"""The commands over a base that is divided among devices: what they write does not show it."""

import dataclasses

import numpy as np
import pytest
from flax import nnx

from prompt_tuning.__main__ import main
from prompt_tuning.checkpoints import PromptFile, base, open_model
from prompt_tuning.cli import config
from prompt_tuning.cli.base import load_base
from prompt_tuning.cli.identity import identity
from prompt_tuning.model import BaseParam, parameters
from prompt_tuning.partitioning import Partitioning
from tests.asked_models import (
    CHOOSING,
    LAST,
    LENGTHS,
    MODEL_TUNING,
    PROMPT_TUNING,
    error_in,
    lines,
    make_world,
)

TWO = ["--gin.NUM_PARTITIONS=2"]
BOX = ["--gin.MODEL_PARALLEL_SUBMESH=(2, 2, 1, 1)"]
SHORT = [
    "--gin.EVAL_SPLIT=None",
    "--gin.SAVE_PERIOD=100",
    "--gin.train.devices=4",
    "--gin.DROPOUT_RATE=0.0",
    # With 0.3 this base makes a thousand times as much of every rounding in three steps.
    "--gin.LEARNING_RATE=0.01",
]


@pytest.fixture(scope="module")
def world(programs, tmp_path_factory):
    """A base, a task of films and a prompt."""
    world = make_world(tmp_path_factory.mktemp("world"))
    vectors = np.random.default_rng(0).normal(size=(3, 32)).astype(np.float32)
    PromptFile.of(vectors, step=30).save(world.folder / "prompt.safetensors")
    return world


@pytest.fixture
def train(world, tmp_path, capsys):
    """Trains in a folder of this name; returns its prompt's vectors, or what went wrong."""

    def run(name, *more, kind=PROMPT_TUNING, code=0):
        capsys.readouterr()
        flags = [*kind, *world.train(tmp_path / name), *SHORT, *more]
        assert main(["train", *flags]) == code
        config.clear()
        said = capsys.readouterr().err
        if code:
            return error_in(said)
        return None if kind is MODEL_TUNING else vectors_in(tmp_path / name)

    yield run
    config.clear()


def vectors_in(run):
    return PromptFile.load(run / "prompt.safetensors").vectors


def close(found, wanted):
    assert np.linalg.norm(found - wanted) < 1e-5 * np.linalg.norm(wanted)


@pytest.mark.slow
def test_a_run_goes_on_over_another_mesh(train):
    train("run", *TWO, f"--gin.TRAIN_STEPS={LAST - 1}")
    close(train("run", *BOX), train("alone", "--gin.train.devices=1"))


def test_no_setting_of_the_partitioning_makes_another_run():
    settings = [field.name for field in dataclasses.fields(Partitioning)]
    values = {f"partitioning.Partitioning.{name}": "2" for name in settings}
    commands = ["train_script.train", "eval_script.evaluate", "infer_script.infer"]
    values |= {f"{name}.partitioning": "@partitioning.Partitioning()" for name in commands}
    assert identity(values, vocabulary=None) == {}


def test_a_model_that_does_not_divide_is_refused_before_it_is_read(train, tmp_path, monkeypatch):
    monkeypatch.setattr(base, "fill", None)
    said = train("run", "--gin.NUM_PARTITIONS=8", "--gin.train.devices=8", code=5)
    assert said.startswith(
        "Parameter 'decoder/relpos_bias/rel_embedding' has 4 'heads', which do not divide among "
        "the 8 devices"
    )
    assert not (tmp_path / "run").exists()


def test_partitions_of_too_many_devices_are_refused(train):
    said = train("run", "--gin.MODEL_PARALLEL_SUBMESH=(4, 4, 1, 2)", code=5)
    assert said.startswith("MODEL_PARALLEL_SUBMESH is (4, 4, 1, 2), which makes 32 devices")


@pytest.mark.slow
def test_a_whole_model_is_tuned_and_saved_in_parts(train, tmp_path):
    runs = {"divided": TWO, "2D": [*TWO, "--gin_file=partitioning/two_d.gin"], "alone": []}
    for name, more in runs.items():
        train(name, *more, f"--gin.TRAIN_STEPS={LAST - 1}", kind=MODEL_TUNING)
        train(name, *more, kind=MODEL_TUNING)
    saved = {name: open_model(tmp_path / name).tensors for name in runs}
    for tensor, one in saved["alone"].items():
        for name in runs:
            close(saved[name][tensor].load(), one.load())


@pytest.mark.parametrize("dims", [1, 2])
def test_every_array_is_read_onto_the_devices_that_share_it(world, dims):
    contents = open_model(world.folder / "base")
    _, digest = load_base(contents, None, {"dtype": "float32"})
    placed = Partitioning(num_partitions=2, parameter_partitioning_dims=dims).placement()
    found, hashed = load_base(contents, None, {"dtype": "float32"}, placed)
    assert found.encoder.layout == found.decoder.layout == placed.layout
    state = nnx.state(found, BaseParam)
    arrays = parameters.named(state)
    assert hashed == digest == parameters.fingerprint(arrays)
    assert {name: one.sharding for name, one in arrays.items()} == placed.shardings(state)
    kernel = arrays["encoder/layers/attention/query/kernel"]
    assert kernel.shape == (2, 32, 32)
    wanted = {1: (2, 32, 16), 2: (2, 8, 16)}[dims]
    assert {part.data.shape for part in kernel.addressable_shards} == {wanted}


ASKED = {
    "eval": ["--gin.EVAL_SPLIT='validation'", *CHOOSING],
    "infer": ["--gin.INFER_SPLIT='validation'", LENGTHS],
}


@pytest.fixture
def ask(world, tmp_path, capsys):
    """Asks the prompt in a folder of this name; returns the lines that were written."""

    def run(command, name, *more):
        out = tmp_path / name
        flags = world.ask(command, out, prompt=world.folder / "prompt.safetensors")
        assert main([command, *flags, *world.films, *ASKED[command], *more]) == 0
        config.clear()
        capsys.readouterr()
        found = {str(path.relative_to(out)): lines(path) for path in out.rglob("*.jsonl*")}
        assert found
        return found

    yield run
    config.clear()


def numbers(found):
    """Returns the numbers among rows, and the rows without them."""
    numbers = [
        value
        for rows in found.values()
        for row in rows
        for value in row.values()
        if isinstance(value, float)
    ]
    texts = {
        name: [{key: x for key, x in row.items() if not isinstance(x, float)} for row in rows]
        for name, rows in found.items()
    }
    return numbers, texts


@pytest.mark.slow
@pytest.mark.parametrize("command", ["eval", "infer"])
def test_what_a_divided_model_says_is_what_it_says_whole(ask, command):
    alone = ask(command, "alone", f"--gin.{'evaluate' if command == 'eval' else command}.devices=1")
    (wanted, texts), (found, texts_2) = numbers(alone), numbers(ask(command, "divided", *TWO))
    assert texts == texts_2
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
