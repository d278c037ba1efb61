"""A base model out of a checkpoint, whatever its format, dtype and place."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from etils import epath
from flax import nnx

from prompt_tuning.checkpoints import base, load_embeddings, load_model
from prompt_tuning.checkpoints.mapping import from_t5x
from prompt_tuning.errors import CheckpointError
from prompt_tuning.model import BaseParam, parameters
from prompt_tuning.prompts import Prompt, PromptParam, uniform
from prompt_tuning.training.optimizer import adafactor
from prompt_tuning.training.state import split_model, start
from tests import assets
from tests.reference_models import forward, reference_batches, reference_model

FORMATS = ("t5x", "orbax", "huggingface", "safetensors")


def named(model):
    return parameters.named(nnx.state(model, BaseParam))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("base")


@pytest.fixture(scope="module")
def paths(folder):
    return {name: assets.write_model(folder / name, name) for name in FORMATS}


@pytest.mark.parametrize("name", FORMATS)
def test_a_model_has_the_numbers_of_its_checkpoint(paths, name):
    expected = from_t5x(assets.arrays())
    found = named(load_model(paths[name]))
    assert found.keys() == expected.keys()
    for key, array in expected.items():
        assert found[key].dtype == np.float32
        np.testing.assert_array_equal(found[key], array, err_msg=key)


def test_a_loaded_model_computes_what_the_original_did(paths, golden):
    batch = reference_batches("C")["batch0"]
    _, logits = forward(load_model(paths["t5x"], dtype="float32"), batch)
    expected = golden("C/forward_no_prompt.npz")["batch0/logits"]
    np.testing.assert_allclose(logits, expected, atol=2e-5)


def test_a_model_is_cast_to_the_dtype_that_was_asked_for(paths):
    found = named(load_model(paths["huggingface"], param_dtype="bfloat16"))
    for key, array in from_t5x(assets.arrays()).items():
        assert found[key].dtype == jnp.bfloat16
        np.testing.assert_array_equal(found[key], array.astype(ml_dtypes.bfloat16), err_msg=key)


def test_a_model_gets_the_prompt_that_was_asked_for(paths):
    make = lambda **given: Prompt(length=3, init=uniform(), **given)  # noqa: E731
    model = load_model(paths["t5x"], prompt=make, rngs=nnx.Rngs(1))
    assert parameters.named(nnx.state(model, PromptParam))["encoder/prompt/prompt"].shape == (3, 40)


# Arrays on several devices.

MESH = jax.make_mesh((2, 4), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)


def spread(*spec):
    return jax.sharding.NamedSharding(MESH, jax.sharding.PartitionSpec(*spec))


SHARDINGS = {
    "token_embedder/embedding": spread("model", None),
    "encoder/layers/attention/query/kernel": spread(None, "data", "model"),
    "encoder/layers/mlp/wo/kernel": spread(None, "model", None),
    "decoder/logits_dense/kernel": spread(("data", "model"), None),
}


@pytest.mark.parametrize("digest", [None, parameters.Fingerprint()], ids=["without", "with digest"])
def test_every_array_is_spread_as_asked_and_is_the_same(digest):
    contents = assets.opened()
    plain = named(base.fill(base.shapes(contents), contents))
    every = {name: SHARDINGS.get(name, spread()) for name in plain}
    found = named(base.fill(base.shapes(contents), contents, shardings=every, digest=digest))
    for name, array in plain.items():
        assert found[name].sharding.is_equivalent_to(every[name], array.ndim), name
        np.testing.assert_array_equal(found[name], array, err_msg=name)
    if digest is not None:
        assert digest.hexdigest() == parameters.fingerprint(plain)


def test_a_device_reads_its_own_part_and_no_part_is_read_twice():
    contents = assets.opened()
    reads = []

    def counted(name, one):
        def read(index):
            reads.append((name, index))
            return one.read(index)

        return dataclasses.replace(one, read=read)

    tensors = {name: counted(name, one) for name, one in contents.tensors.items()}
    watched = dataclasses.replace(contents, tensors=tensors)
    base.fill(base.shapes(contents), watched, shardings=SHARDINGS)
    query = [index for name, index in reads if name == "encoder/layers_0/attention/query/kernel"]
    # 2 x 4 parts of [40, 48].
    assert sorted(query) == sorted(
        (slice(row, row + 20, 1), slice(column, column + 12, 1))
        for row in (0, 20)
        for column in (0, 12, 24, 36)
    )
    assert len(reads) == len(set(map(str, reads)))


def test_the_hash_is_that_of_the_values_in_every_format(paths):
    stored = parameters.fingerprint(from_t5x(assets.arrays()))
    for path in paths.values():
        assert base.fingerprint(base.formats.open_model(path)) == stored
    narrow = {key: array.astype(ml_dtypes.bfloat16) for key, array in assets.arrays().items()}
    wide = {key: array.astype(np.float32) for key, array in narrow.items()}
    assert base.fingerprint(assets.opened(narrow)) == base.fingerprint(assets.opened(wide))
    assert base.fingerprint(assets.opened(narrow)) != stored


# What does not fit.

CHANGES = {
    "vocab_size": 300,
    "embed_dim": 48,
    "mlp_dim": 64,
    "num_heads": 6,
    "head_dim": 8,
    "encoder_layers": 3,
    "decoder_layers": 2,
    "relative_buckets": 16,
    "tied_logits": True,
}


@pytest.mark.parametrize("field", CHANGES)
def test_a_model_of_another_architecture_is_refused_by_name(field):
    contents = assets.opened()
    config = dataclasses.replace(contents.config, **{field: CHANGES[field]})
    mine = getattr(contents.config, field)
    message = f"{field} is {CHANGES[field]} in the configuration and {mine} in the checkpoint"
    with pytest.raises(CheckpointError, match=re.escape(message)):
        base.check_architecture(config, contents)


def test_an_ungated_model_is_not_a_gated_one():
    contents = assets.opened()
    config = dataclasses.replace(contents.config, mlp_activations=("relu",))
    with pytest.raises(CheckpointError, match="number of mlp_activations is 1 in the config"):
        base.check_architecture(config, contents)


@pytest.mark.parametrize(
    ("field", "value"),
    [("relative_max_distance", 64), ("mlp_activations", ("silu", "linear"))],
)
def test_what_shapes_do_not_show_is_checked_where_the_format_states_it(paths, field, value):
    silent = base.formats.open_model(paths["t5x"])
    config = dataclasses.replace(silent.config, **{field: value})
    base.check_architecture(config, silent)
    for name in ("huggingface", "safetensors"):
        with pytest.raises(CheckpointError, match=re.escape(f"{field} is {value}")):
            base.check_architecture(config, base.formats.open_model(paths[name]))


# Optimizer slots of t5x.

SLOTS = {"v": 1.0, "v_row": 2.0, "v_col": 3.0, "m": 4.0}


def slots_of(optimizer, arrays=None):
    """Slots as t5x would have saved them with this optimizer, each layer filled with its index."""
    _, weights, _ = split_model(reference_model("C", with_prompt=False), BaseParam)
    state = start(weights, optimizer, step=assets.STEP)
    slots = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.opt_state):
        slot = base.SLOTS.get(getattr(path[-1], "name", ""))
        if slot is None:
            continue
        stack, stacked, rest = path[0].key.partition("/layers/")
        for i in range(leaf.shape[0]) if stacked else [None]:
            shape = leaf.shape if i is None else leaf.shape[1:]
            name = path[0].key if i is None else f"{stack}/layers_{i}/{rest}"
            slots[f"{name}/{slot}"] = np.full(shape, SLOTS[slot] + 10 * (i or 0), np.float32)
    return state, slots


OPTIMIZERS = {
    "unfactored": adafactor(),
    "factored": adafactor(min_dim_size_to_factor=8),
    "with momentum": adafactor(momentum=0.9),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_model_tuning_goes_on_with_the_slots_of_a_t5x_checkpoint(name):
    state, slots = slots_of(OPTIMIZERS[name])
    contents = dataclasses.replace(assets.opened(), slots=assets.stored(slots))
    filled = base.with_slots(contents, state)
    for path, leaf in jax.tree_util.tree_leaves_with_path(filled.opt_state):
        slot = base.SLOTS.get(getattr(path[-1], "name", ""))
        if slot is None:
            np.testing.assert_array_equal(leaf, assets.STEP)
            continue
        stacked = "/layers/" in path[0].key
        for i, layer in enumerate(leaf if stacked else [leaf]):
            np.testing.assert_array_equal(layer, SLOTS[slot] + 10 * i)


def test_a_checkpoint_without_slots_starts_with_fresh_ones():
    state, _ = slots_of(OPTIMIZERS["unfactored"])
    assert base.with_slots(assets.opened(), state) is state


def test_missing_and_misshapen_slots_are_refused():
    state, slots = slots_of(OPTIMIZERS["unfactored"])
    missing = {name: one for name, one in slots.items() if "layers_1/mlp/wo" not in name}
    contents = dataclasses.replace(assets.opened(), slots=assets.stored(missing))
    with pytest.raises(CheckpointError, match="no optimizer slot 'encoder/layers_1/mlp/wo/kernel/"):
        base.with_slots(contents, state)
    factored, _ = slots_of(OPTIMIZERS["factored"])
    contents = dataclasses.replace(assets.opened(), slots=assets.stored(slots))
    with pytest.raises(CheckpointError, match=r"has shape .*, this optimizer needs"):
        base.with_slots(contents, factored)


def test_the_embeddings_are_read_without_the_rest(paths):
    np.testing.assert_array_equal(
        load_embeddings(epath.Path(paths["huggingface"])),
        assets.arrays()["token_embedder/embedding"],
    )
