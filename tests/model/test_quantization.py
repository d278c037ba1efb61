"""Frozen kernels as integers and scales."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from prompt_tuning.errors import ConfigError
from prompt_tuning.losses import Loss
from prompt_tuning.model import T5, BaseParam, parameters, t5_config
from prompt_tuning.model.blocks import each_layer
from prompt_tuning.model.quantization import (
    LARGEST,
    Quantization,
    dequantize,
    quantize,
    quantized_matmul,
)
from prompt_tuning.model.remat import POLICIES
from prompt_tuning.prompts import PromptParam
from prompt_tuning.training.state import split_model
from tests.jaxprs import equations
from tests.small_models import BATCH, T5_1_1, small_model

WAYS = [
    Quantization(dtype="int8"),
    Quantization(dtype="int8", group=4),
    Quantization(dtype="int4"),
    Quantization(dtype="int4", group=4),
]
every_way = pytest.mark.parametrize("how", WAYS, ids=str)


def settings(how):
    return {"quantization": how.dtype, "quantization_group": how.group}


def kernel(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


# Numbers.


def test_integers_and_scales_are_those_that_the_eye_can_check():
    #                      two groups of two inputs, three outputs
    weights = jnp.asarray([[7.0, 0.0, 1.0], [-3.4, 0.0, -0.6], [0.7, 1.4, 0.0], [0.2, 0.2, 0.0]])
    integers, scale = quantize(weights, Quantization(dtype="int4", group=2))
    np.testing.assert_array_equal(
        integers.astype(np.int32), [[7, 0, 7], [-3, 0, -4], [7, 7, 0], [2, 1, 0]]
    )
    np.testing.assert_allclose(scale, [[1.0, 1.0, 1 / 7], [0.1, 0.2, 1.0]], rtol=1e-6)
    integers, scale = quantize(weights, Quantization(dtype="int8"))
    np.testing.assert_array_equal(
        integers, [[127, 0, 127], [-62, 0, -76], [13, 127, 0], [4, 18, 0]]
    )
    np.testing.assert_allclose(scale, np.asarray([7.0, 1.4, 1.0]) / 127, rtol=1e-6)


@every_way
def test_no_weight_is_further_off_than_half_a_step(how):
    weights = kernel(3, 16, 5)
    integers, scale = quantize(weights, how)
    assert integers.dtype == how.dtype and scale.dtype == np.float32
    groups = how.group or 16
    for i in range(3):
        found = dequantize(integers[i], scale[i], jnp.float32)
        off = np.abs(found - weights[i]).reshape(-1, groups, 5)
        largest = np.abs(weights[i]).reshape(-1, groups, 5).max(axis=1, keepdims=True)
        assert (off <= largest / LARGEST[how.dtype] / 2 * (1 + 1e-5)).all()
        # The largest of a group are kept exactly, up to rounding.
        np.testing.assert_allclose(off.min(axis=1), 0, atol=1e-6)


@every_way
def test_what_was_quantized_stays_as_it_is_when_it_is_quantized_again(how):
    integers, scale = quantize(kernel(16, 5), how)
    again, scale_again = quantize(dequantize(integers, scale, jnp.float32), how)
    np.testing.assert_array_equal(again, integers)
    np.testing.assert_allclose(scale_again, scale, rtol=1e-6)


@every_way
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_product_and_gradient_are_those_of_the_kernel_that_is_meant(how, dtype):
    x, cotangent = kernel(2, 3, 16, seed=1).astype(dtype), kernel(2, 3, 5, seed=2).astype(dtype)
    integers, scale = quantize(kernel(16, 5), how)
    meant = dequantize(integers, scale, jnp.float32)
    product, back = jax.vjp(lambda x: quantized_matmul(x, integers, scale), x)
    [gradient] = back(cotangent)
    assert product.dtype == gradient.dtype == dtype
    tolerance = {"float32": 1e-5, "bfloat16": 3e-2}[dtype]
    wide, wide_cotangent = x.astype(jnp.float32), cotangent.astype(jnp.float32)
    np.testing.assert_allclose(product.astype(np.float32), wide @ meant, atol=tolerance * 8)
    expected = wide_cotangent @ meant.T
    np.testing.assert_allclose(gradient.astype(np.float32), expected, atol=tolerance * 4)


@pytest.mark.slow
def test_a_quantized_model_says_about_what_it_said_before():
    expected = small_model()(BATCH)
    off = {
        str(how): float(jnp.std(small_model(**settings(how))(BATCH) - expected) / jnp.std(expected))
        for how in WAYS
    }
    # Unscaled scores of attention make much of little, in heads as small as these above all.
    assert 1e-3 < off["int8 in groups of 4"] < off["int8"] < 0.05
    assert 0.1 < off["int4 in groups of 4"] < off["int4"] < 1


# What the backward pass keeps, and what the compiler makes of it.


def training(how, remat="none", **changes):
    graph, prompt, frozen = split_model(
        small_model(remat=remat, **settings(how), **changes), PromptParam
    )

    def loss(prompt, frozen):
        return Loss()(nnx.merge(graph, prompt, frozen)(BATCH), BATCH)[0]

    return jax.grad(loss), prompt, frozen


def kernel_shapes(frozen):
    """Returns the shapes of the layers' kernels, without their layers."""
    arrays = parameters.named(frozen)
    return {one.shape[1:] for name, one in arrays.items() if f"{name}_scale" in arrays}


def kept(function, *args):
    """Returns the shapes of the float arrays that loops hand over."""
    scans = [one for one in equations(function, *args) if one.primitive.name == "scan"]
    made = [out.aval for one in scans for out in one.outvars[one.params["num_carry"] :]]
    return {one.shape for one in made if jnp.issubdtype(one.dtype, jnp.floating)}


@pytest.mark.parametrize(
    ("how", "remat"),
    [*((how, "none") for how in WAYS), *((WAYS[3], one) for one in POLICIES if one != "none")],
    ids=str,
)
def test_no_loop_keeps_a_float_kernel(how, remat):
    gradient, prompt, frozen = training(how, remat)
    shapes = kernel_shapes(frozen)
    assert shapes == {(16, 12), (12, 16), (16, 24), (24, 16)}
    found = kept(gradient, prompt, frozen)
    assert found and not {shape[1:] for shape in found} & shapes


def test_plain_differentiation_would_keep_them():
    integers, scale = quantize(kernel(3, 16, 16), WAYS[1])

    def loss(x, multiply):
        def body(x, layer):
            return multiply(x, *layer), None

        return jnp.sum(jax.lax.scan(body, x, (integers, scale))[0])

    def plain(x, integers, scale):
        return jnp.einsum("BTI,IO->BTO", x, dequantize(integers, scale, x.dtype))

    x = kernel(2, 5, 16)
    assert (3, 16, 16) in kept(jax.grad(lambda x: loss(x, plain)), x)
    assert (3, 16, 16) not in kept(jax.grad(lambda x: loss(x, quantized_matmul)), x)


@pytest.mark.parametrize("how", [WAYS[0], WAYS[3]], ids=str)
def test_compiled_there_is_no_float_kernel_of_all_layers(how):
    gradient, prompt, frozen = training(how, remat="projections")
    text = jax.jit(gradient).lower(prompt, frozen).compile().as_text()
    for inputs, outputs in kernel_shapes(frozen):
        assert re.search(rf"s[48]\[[23],{inputs},{outputs}\]", text)
        assert not re.search(rf"(f32|bf16)\[[23],{inputs},{outputs}\]", text)


# Parameters.


def test_a_scale_has_the_axes_of_its_kernel():
    for how in WAYS:
        state = nnx.state(small_model(**settings(how)), BaseParam)
        axes = parameters.axes(state)
        assert axes["encoder/layers/mlp/wo/kernel"] == ("layers", "mlp", "embed")
        expected = ("layers", "embed") if how.group is None else ("layers", "mlp", "embed")
        assert axes["encoder/layers/mlp/wo/kernel_scale"] == expected


def test_scales_are_no_parameters_but_have_bytes():
    plain, int4 = (
        nnx.state(small_model(**changes), BaseParam)
        for changes in ({}, settings(Quantization(dtype="int4", group=4)))
    )
    assert parameters.count(plain) == parameters.count(int4)
    assert parameters.nbytes(plain) == 4 * parameters.count(plain)
    kernels = sum(one.size for name, one in parameters.named(int4).items() if one.dtype == jnp.int4)
    saved = 4 * kernels - kernels // 2 - 4 * kernels // 4
    assert parameters.nbytes(int4) == parameters.nbytes(plain) - saved


def test_only_what_layers_multiply_by_is_quantized():
    arrays = parameters.named(nnx.state(small_model(quantization="int8"), BaseParam))
    integers = {name for name, one in arrays.items() if one.dtype == np.int8}
    assert integers == {name for name in arrays if "/layers/" in name and name.endswith("/kernel")}


def test_xxl_in_integers_takes_half_and_quarter_of_bfloat16():
    sizes = {}
    for dtype in (None, "int8", "int4"):
        config = t5_config("t5_1_1_xxl", param_dtype="bfloat16", quantization=dtype)
        model = nnx.eval_shape(lambda config=config: T5(config, rngs=nnx.Rngs(0)))
        sizes[dtype] = parameters.nbytes(nnx.state(model)) / 2**30
    assert {dtype: round(size, 1) for dtype, size in sizes.items()} == {
        None: 20.7,
        "int8": 10.6,
        "int4": 5.6,
    }


# Mistakes.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"quantization": "int9"},
            "T5Config(quantization='int9'): expected one of ('int8', 'int4') or None. Did you mean "
            "'int8' or 'int4'?",
        ),
        (
            {"quantization": "int4", "quantization_group": 0},
            "T5Config(quantization_group=0): expected the number of inputs that share a scale, "
            "such as 64, or None for one scale for each output.",
        ),
        (
            {"quantization_group": 4},
            "T5Config(quantization_group=4) without quantization: set QUANTIZATION to 'int8' or "
            "'int4', or leave QUANTIZATION_GROUP None.",
        ),
        (
            {"quantization": "int4", "quantization_group": 8},
            "T5Config(quantization_group=8) does not divide num_heads * head_dim = 12. Set "
            "QUANTIZATION_GROUP to one of 2, 4, which divide all inputs of this model's "
            "projections, or to None for one scale for each output.",
        ),
    ],
)
def test_what_cannot_be_quantized_so_is_named(changes, message):
    with pytest.raises(ConfigError) as error:
        dataclasses.replace(T5_1_1, **changes)
    assert str(error.value) == message


def test_a_quantized_model_is_not_trained_as_a_whole():
    with pytest.raises(ConfigError) as error:
        split_model(small_model(quantization="int8"), BaseParam)
    assert str(error.value) == (
        "The whole model is to be trained, but its kernels are quantized: integers have no "
        "gradient. Set QUANTIZATION = None, or train a prompt (runs/prompt_finetune.gin)."
    )


def test_layers_can_be_taken_apart():
    arrays = nnx.state(small_model(**settings(WAYS[3])).decoder.layers, BaseParam)
    layers = each_layer(arrays)
    whole = parameters.named(arrays)["mlp/wo/kernel"]
    for i, layer in enumerate(layers):
        one = parameters.named(layer)["mlp/wo/kernel"]
        assert one.dtype == jnp.int4
        np.testing.assert_array_equal(one, whole[i])
