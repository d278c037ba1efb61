import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from prompt_tuning.model.attention import plain
from prompt_tuning.model.blocks import scan_layers, zero_padding
from prompt_tuning.model.parameters import axes, named, replaced
from prompt_tuning.prompts import PromptParam
from tests.jaxprs import equations
from tests.reference_models import QUICKLY
from tests.small_models import BATCH, T5_1_1, compiled, small_model

LAYERS = 3


def test_a_stack_applies_its_layers_in_turn_each_with_its_own_key(key):
    layers = small_model(encoder_layers=LAYERS, dropout_rate=0.5).encoder.layers
    graph, parameters = nnx.split(layers)
    x = jax.random.normal(key, (2, 4, T5_1_1.embed_dim))
    real = jnp.ones((2, 4), bool)
    keys = jax.random.split(key, LAYERS)

    def body(block, x, key):
        return block(x, real, plain(), key=key), x

    def scanned(parameters, x):
        layers = nnx.merge(graph, parameters)
        return scan_layers(body, layers, x, keys, remat="none", unroll=False)

    def alone(parameters, x, key):
        return body(nnx.merge(graph, parameters), x, key)[0]

    found, inputs = jax.jit(scanned, compiler_options=QUICKLY)(parameters, x)
    alone = jax.jit(alone, compiler_options=QUICKLY)
    for i in range(LAYERS):
        np.testing.assert_allclose(inputs[i], x, atol=1e-5)
        x = alone(jax.tree.map(lambda leaf, i=i: leaf[i], parameters), x, keys[i])
    np.testing.assert_allclose(found, x, atol=1e-5)


def test_unrolled_layers_are_the_same_function():
    looped = compiled(small_model(), "__call__", BATCH)
    unrolled = compiled(small_model(unroll=True), "__call__", BATCH)
    np.testing.assert_allclose(unrolled, looped, atol=1e-5)


@pytest.mark.parametrize(("unroll", "at_once"), [(False, [1, 1]), (True, [2, 3])])
def test_unrolling_concerns_all_layers_of_both_stacks(unroll, at_once):
    graph, state = nnx.split(small_model(unroll=unroll))
    found = equations(lambda state: nnx.merge(graph, state)(BATCH), state)
    scans = [equation.params for equation in found if equation.primitive.name == "scan"]
    assert [scan["length"] for scan in scans] == [2, 3]
    assert [scan["unroll"] for scan in scans] == at_once


@pytest.mark.parametrize(
    ("unroll", "layers", "platform", "remat", "expected"),
    [
        (None, 12, "cpu", "none", True),
        (None, 24, "cpu", "none", False),
        (None, 12, "tpu", "none", False),
        (None, 12, "cpu", "full", False),
        (True, 24, "tpu", "full", True),
        (False, 2, "cpu", "none", False),
    ],
)
def test_short_stacks_on_a_cpu_are_unrolled_unless_said_otherwise(
    unroll, layers, platform, remat, expected
):
    config = dataclasses.replace(T5_1_1, unroll=unroll, remat=remat)
    assert config.unrolled(layers, platform) == expected


def test_the_axis_of_layers_is_named_before_those_of_the_block():
    found = axes(nnx.state(small_model().encoder.layers))
    assert found == {
        "pre_attention_layer_norm/scale": ("layers", "embed"),
        "attention/query/kernel": ("layers", "embed", "joined_kv"),
        "attention/key/kernel": ("layers", "embed", "joined_kv"),
        "attention/value/kernel": ("layers", "embed", "joined_kv"),
        "attention/out/kernel": ("layers", "joined_kv", "embed"),
        "pre_mlp_layer_norm/scale": ("layers", "embed"),
        "mlp/wi_0/kernel": ("layers", "embed", "mlp"),
        "mlp/wi_1/kernel": ("layers", "embed", "mlp"),
        "mlp/wo/kernel": ("layers", "mlp", "embed"),
    }


def test_scales_are_named_and_shaped_as_in_the_original_for_all_layers_at_once():
    _, found, _ = nnx.split(small_model("T5 1.1 with scales").decoder.layers, PromptParam, ...)
    heads, hidden = ("layers", "heads", "kv"), ("layers", "mlp")
    assert axes(found) == {
        "self_attention/k_conv/ia3_scaling": heads,
        "self_attention/v_conv/ia3_scaling": heads,
        "encoder_decoder_attention/k_conv/ia3_scaling": heads,
        "encoder_decoder_attention/v_conv/ia3_scaling": heads,
        "mlp/intermediate_conv/ia3_scaling": hidden,
    }
    shapes = {heads: (3, 2, 6), hidden: (3, 24)}
    for name, array in named(found).items():
        assert array.shape == shapes[axes(found)[name]]


def test_padding_is_zeroed_by_row():
    x = jnp.arange(1.0, 7.0).reshape(1, 3, 2)
    zeroed = zero_padding(x, jnp.asarray([[True, False, True]]))
    np.testing.assert_array_equal(zeroed, [[[1, 2], [0, 0], [5, 6]]])
    assert zero_padding(x.astype(jnp.bfloat16), jnp.ones((1, 3), bool)).dtype == jnp.bfloat16


def encoder_block(model, x, key):
    block = first_layer(model.encoder.layers)
    return block(x, jnp.ones(x.shape[:2], bool), plain(), key=key)


def decoder_block(model, x, key):
    block = first_layer(model.decoder.layers)
    cross = block.encoder_decoder_attention.keys_values(x[:, ::-1])
    real = jnp.ones(x.shape[:2], bool)
    return block(x, real, lambda own: own, cross, plain(), plain(), key=key)[0]


def first_layer(layers):
    graph, parameters = nnx.split(layers)
    return nnx.merge(graph, jax.tree.map(lambda leaf: leaf[0], parameters))


@functools.partial(jax.jit, static_argnums=(0, 1), compiler_options=QUICKLY)
def apply(block, graph, state, x, key):
    return block(nnx.merge(graph, state), x, key)


SUBLAYERS = {
    encoder_block: ["encoder/layers/attention/out", "encoder/layers/mlp/wo"],
    decoder_block: [
        "decoder/layers/self_attention/out",
        "decoder/layers/encoder_decoder_attention/out",
        "decoder/layers/mlp/wo",
    ],
}


X = jnp.asarray(np.random.default_rng(0).normal(size=(64, 3, T5_1_1.embed_dim)), jnp.float32)
FOUR_DEVIATIONS = 4 * 0.5 / np.sqrt(64 * T5_1_1.embed_dim)  # Of a mean of that many features.


@pytest.mark.parametrize(
    ("block", "sublayer"), [(block, name) for block, names in SUBLAYERS.items() for name in names]
)
def test_what_a_sublayer_adds_is_dropped_alike_at_every_position(key, block, sublayer):
    graph, state = nnx.split(small_model(dropout_rate=0.5))
    silent = [f"{name}/kernel" for name in SUBLAYERS[block] if name != sublayer]
    arrays = named(state)
    state = replaced(state, arrays | {name: np.zeros_like(arrays[name]) for name in silent})
    untouched = apply(block, graph, state, X, key) == X
    np.testing.assert_array_equal(untouched, np.broadcast_to(untouched[:, :1], X.shape))
    np.testing.assert_allclose(np.mean(untouched), 0.5, atol=FOUR_DEVIATIONS)


@pytest.mark.parametrize("block", SUBLAYERS)
def test_sublayers_are_dropped_independently(key, block):
    graph, state = nnx.split(small_model(dropout_rate=0.5))
    untouched = apply(block, graph, state, X, key) == X
    everywhere = 0.5 ** len(SUBLAYERS[block])
    np.testing.assert_allclose(np.mean(untouched), everywhere, atol=FOUR_DEVIATIONS)
