import dataclasses
import functools
import re
import weakref

import ml_dtypes
import numpy as np
import pytest
from etils import epath

from prompt_tuning.checkpoints import t5x
from prompt_tuning.checkpoints.containers.stored import Stored
from prompt_tuning.checkpoints.contents import expected_shapes
from prompt_tuning.checkpoints.t5x_writer import step_for
from prompt_tuning.errors import CheckpointError, ConfigError
from tests.reference_models import CONFIGS
from tests.small_models import T5_1_0 as _T5_1_0
from tests.small_models import T5_1_1 as _T5_1_1
from tests.t5x_checkpoints import (
    PROMPT,
    STEP,
    as_saved,
    below,
    of_todays_orbax,
    read_leaves,
    variables,
    write_index,
)

T5_1_1 = dataclasses.replace(_T5_1_1, encoder_layers=1, decoder_layers=2)
T5_1_0 = dataclasses.replace(_T5_1_0, encoder_layers=1, decoder_layers=1)
SAVE = {"t5x": t5x.save_t5x, "orbax": t5x.save_orbax}


@pytest.fixture(params=SAVE)
def kind(request):
    return request.param


def stored(arrays):
    return {name: Stored.of(array, f"the test's {name}") for name, array in arrays.items()}


@functools.cache
def drawn(config, dtype=np.float32):
    rng = np.random.default_rng(0)
    return {
        name: rng.normal(size=shape).astype(dtype)
        for name, shape in expected_shapes(config).items()
    }


def prompt_of(config, dtype=np.float32):
    return {PROMPT: np.arange(3 * config.embed_dim).reshape(3, -1).astype(dtype)}


def assert_same(found, wanted):
    assert set(found) == set(wanted)
    for name, array in wanted.items():
        got = found[name].load()
        assert (got.dtype, got.shape) == (array.dtype, array.shape), name
        assert got.tobytes() == array.tobytes(), name


MODELS = {
    "T5 1.1 with a prompt": (T5_1_1, np.float32, prompt_of),
    "T5 1.1 in bfloat16": (T5_1_1, ml_dtypes.bfloat16, prompt_of),
    "T5 1.0": (T5_1_0, np.float32, lambda *_: {}),
}


@pytest.mark.parametrize(("config", "dtype", "method"), MODELS.values(), ids=MODELS.keys())
def test_what_is_saved_is_opened(tmp_path, kind, config, dtype, method):
    base, methods = drawn(config, dtype), method(config, dtype)
    path = epath.Path(tmp_path / "deep" / "checkpoint_7")
    SAVE[kind](stored(base), config, 7, path, methods=stored(methods))
    contents = t5x.open_t5x(path)
    assert (contents.kind, contents.step) == (kind, 7)
    assert_same(contents.tensors, base)
    assert_same(contents.methods, methods)
    assert contents.config.tied_logits == config.tied_logits
    assert [one.name for one in path.parent.iterdir()] == ["checkpoint_7"]


def test_a_relative_path_is_written(tmp_path, kind, monkeypatch):
    monkeypatch.chdir(tmp_path)
    SAVE[kind](stored(drawn(T5_1_0)), T5_1_0, 7, epath.Path("deep/checkpoint_7"))
    assert_same(t5x.open_t5x(epath.Path("deep/checkpoint_7")).tensors, drawn(T5_1_0))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_arrays_are_cast_as_they_are_saved(tmp_path, kind, dtype):
    base = drawn(T5_1_1, np.float64)
    path = epath.Path(tmp_path / "checkpoint_7")
    SAVE[kind](stored(base), T5_1_1, 7, path, dtype=dtype)
    wanted = {name: array.astype(dtype) for name, array in base.items()}
    assert_same(t5x.open_t5x(path).tensors, wanted)


def test_files_are_those_of_the_original(tmp_path):
    theirs = t5x.open_t5x(as_saved(tmp_path / "theirs"))
    ours = epath.Path(tmp_path / "checkpoint_50")
    t5x.save_t5x(theirs.tensors, theirs.config, STEP, ours, methods=theirs.methods)
    found, wanted = read_leaves(ours), read_leaves(theirs.where)
    assert {path: leaf for path, leaf in found.items() if path != "state/step"} == {
        path: leaf for path, leaf in wanted.items() if path.startswith("target/")
    }
    assert (found["state/step"].dtype, found["state/step"].shape) == (np.int32, ())
    headers = [one.relative_to(ours) for one in ours.glob("*/.zarray")]
    assert len(headers) == 53
    for header in headers:
        assert (ours / header).read_text() == (theirs.where / header).read_text()


STEPS = {
    ("checkpoint_1100000", None): 1_100_000,
    ("checkpoint_1100000", 7): 7,
    ("my_model", None): 0,
    ("checkpoint_best", None): 0,
}


@pytest.mark.parametrize(("name", "given"), STEPS, ids=str)
def test_the_path_may_say_the_step(name, given):
    assert step_for(given, epath.Path("models") / name) == STEPS[name, given]


@pytest.mark.parametrize("step", [-1, 2**31])
def test_a_step_that_t5x_cannot_count_is_refused(tmp_path, kind, step):
    message = f"The step is {step}, expected one from 0 to 2147483647."
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        SAVE[kind](stored(drawn(T5_1_0)), T5_1_0, step, epath.Path(tmp_path / "x"))


def test_an_unknown_dtype_is_refused(tmp_path, kind):
    with pytest.raises(ConfigError, match=r"Cannot save as 'bfloat', expected float32 or bfloat16"):
        SAVE[kind](stored(drawn(T5_1_0)), T5_1_0, 0, epath.Path(tmp_path / "x"), dtype="bfloat")


def test_another_architecture_is_refused(tmp_path, kind):
    config = dataclasses.replace(T5_1_1, mlp_dim=25)
    with pytest.raises(CheckpointError, match=r"'.+/mlp/w.+/kernel' of this model has \("):
        SAVE[kind](stored(drawn(T5_1_1)), config, 0, epath.Path(tmp_path / "x"))
    config = dataclasses.replace(T5_1_1, tied_logits=True)
    with pytest.raises(CheckpointError, match="left over 'decoder/logits_dense/kernel'"):
        SAVE[kind](stored(drawn(T5_1_1)), config, 0, epath.Path(tmp_path / "x"))
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_read_leaves_nothing(tmp_path, kind):
    def damaged(_):
        raise CheckpointError("The file is damaged.")

    base = stored(drawn(T5_1_1))
    last = list(base)[-1]
    base[last] = dataclasses.replace(base[last], read=damaged)
    with pytest.raises(CheckpointError, match="The file is damaged"):
        SAVE[kind](base, T5_1_1, 0, epath.Path(tmp_path / "x"))
    assert not list(tmp_path.iterdir())


def test_an_existing_checkpoint_is_kept(tmp_path, kind):
    path = epath.Path(tmp_path / "x")
    path.mkdir()
    with pytest.raises(CheckpointError, match="already exists"):
        SAVE[kind](stored(drawn(T5_1_1)), T5_1_1, 0, path)
    assert not list(path.iterdir())


def test_tensors_are_read_one_by_one(tmp_path):
    alive = []

    def counted(array):
        def read(index):
            copied = array[index].copy()
            alive.append(weakref.ref(copied))
            assert sum(one() is not None for one in alive) <= 1
            return copied

        return read

    base = {
        name: dataclasses.replace(one, read=counted(one.load()))
        for name, one in stored(drawn(T5_1_1)).items()
    }
    t5x.save_t5x(base, T5_1_1, 0, epath.Path(tmp_path / "x"))
    assert len(alive) == len(base)


NEW = np.linspace(-1, 1, 5 * 32).reshape(5, 32)


def spliced(tmp_path, source, **options):
    target = epath.Path(tmp_path / "deep" / "copy")
    t5x.splice(source, stored({PROMPT: NEW}), target, **options)
    return target


def test_a_prompt_is_replaced_and_its_state_starts_anew(tmp_path):
    source = as_saved(tmp_path)
    target = spliced(tmp_path, source, step=60)
    state = f"state/param_states/{PROMPT}"
    wanted = variables() | {
        f"target/{PROMPT}": NEW.astype(np.float32),
        f"{state}/v": np.zeros((5, 32), np.float32),
        "state/step": np.asarray(60, np.int32),
    }
    assert_same(t5x.variables(target), wanted)
    assert t5x.open_t5x(target).step == 60


def test_what_t5x_restores_stays_in_the_index(tmp_path):
    source = as_saved(tmp_path)
    before, after = read_leaves(source), read_leaves(spliced(tmp_path, source))
    assert set(before) == set(after)
    for path, leaf in before.items():
        if isinstance(leaf, np.ndarray):
            assert leaf.dtype == after[path].dtype and leaf.shape == after[path].shape
        else:
            assert leaf == after[path], path
    assert after["state/param_states/token_embedder/embedding"] is None


def test_a_prompt_is_added(tmp_path):
    arrays = {path: one for path, one in variables().items() if "prompt" not in path}
    source = write_index(epath.Path(tmp_path / "base"), arrays)
    target = spliced(tmp_path, source)
    assert_same(t5x.variables(target), arrays | {f"target/{PROMPT}": NEW})


def test_a_float_step_becomes_a_number_of_steps(tmp_path):
    source = write_index(epath.Path(tmp_path / "x"), variables() | {"state/step": np.float32(50)})
    step = t5x.variables(spliced(tmp_path, source))["state/step"].load()
    assert (step, step.dtype) == (50, np.int32)


def test_half_a_step_is_refused(tmp_path):
    source = write_index(epath.Path(tmp_path / "x"), variables() | {"state/step": np.float32(0.5)})
    with pytest.raises(CheckpointError, match=r"is 0\.5, expected a number of steps"):
        spliced(tmp_path, source)


SPLICES = {
    "another length": ({PROMPT: NEW[:4]}, "has shape (4, 32), but"),
    "another width": ({PROMPT: NEW[:, :31]}, "has shape (5, 31), but"),
    "another name": ({"encoder/promt/prompt/prompt": NEW}, "left over 'encoder/promt/prompt"),
}


@pytest.mark.parametrize(("prompt", "message"), SPLICES.values(), ids=SPLICES.keys())
def test_a_prompt_of_another_model_is_refused(tmp_path, prompt, message):
    target = epath.Path(tmp_path / "copy")
    with pytest.raises(CheckpointError, match=re.escape(message)):
        t5x.splice(as_saved(tmp_path / "source"), stored(prompt), target)
    assert [one.name for one in tmp_path.iterdir()] == ["source"]


def test_only_checkpoints_of_t5x_without_orbax_are_spliced(tmp_path):
    with pytest.raises(CheckpointError, match="is not a checkpoint that t5x has written without"):
        spliced(tmp_path, of_todays_orbax(tmp_path))


def test_an_existing_copy_is_kept(tmp_path):
    (tmp_path / "deep" / "copy").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="already exists"):
        spliced(tmp_path, as_saved(tmp_path / "source"))


def test_the_reference_model_has_the_shapes_of_its_configuration():
    assert {name: one.shape for name, one in below("target/").items() if name != PROMPT} == (
        expected_shapes(CONFIGS["A"])
    )
