"""Products with kernels: the same numbers in every form, and each platform its own form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning.model.products import contract, logits, product

DTYPES = [jnp.bfloat16, jnp.float32]
# Two roundings to bfloat16, of a factor and of the sum.
TOLERANCE = {jnp.bfloat16: 2**-7, jnp.float32: 1e-5}


@pytest.fixture
def factors():
    one, other = jax.random.split(jax.random.key(0))
    return jax.random.normal(one, (2, 5, 64)), jax.random.normal(other, (64, 32)) / 8


def rounded(x, dtype):
    return np.asarray(x.astype(dtype), np.float64)


def close(ours, expected, dtype):
    scale = np.abs(expected).max()
    np.testing.assert_allclose(
        np.asarray(ours, np.float64), expected, atol=TOLERANCE[dtype] * scale
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_product_is_the_matrix_product_in_the_dtype_of_the_input(factors, dtype):
    x, kernel = factors

    ours = jax.jit(product)(x.astype(dtype), kernel)

    assert ours.dtype == dtype
    close(ours, rounded(x, dtype) @ rounded(kernel, dtype), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_logits_are_float32_whatever_the_hidden_states_are(factors, dtype):
    hidden, kernel = factors

    ours = logits(hidden.astype(dtype), kernel)

    assert ours.dtype == jnp.float32
    close(ours, rounded(hidden, dtype) @ np.asarray(kernel, np.float64), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("function", [product, logits])
def test_gradients_are_those_of_the_matrix_product(factors, function, dtype):
    x, kernel = factors
    x = x.astype(dtype)

    ours, pull = jax.vjp(function, x, kernel)
    upstream = jax.random.normal(jax.random.key(1), ours.shape).astype(ours.dtype)
    of_x, of_kernel = jax.jit(pull)(upstream)

    assert (of_x.dtype, of_kernel.dtype) == (dtype, jnp.float32)
    flat, above = rounded(x, dtype).reshape(-1, 64), rounded(upstream, dtype).reshape(-1, 32)
    close(of_x.reshape(-1, 64), above @ rounded(kernel, dtype).T, dtype)
    close(of_kernel, flat.T @ above, dtype)


def test_a_frozen_kernel_keeps_no_input_for_its_gradient(factors):
    x, kernel = factors
    narrow = x.astype(jnp.bfloat16)

    _, of_x = jax.vjp(lambda x: product(x, kernel), narrow)
    _, of_both = jax.vjp(product, narrow, kernel)

    assert x.shape not in {leaf.shape for leaf in jax.tree.leaves(of_x)}
    assert x.shape in {leaf.shape for leaf in jax.tree.leaves(of_both)}


@pytest.mark.parametrize("function", [product, logits])
def test_a_product_that_nothing_depends_on_has_a_gradient_of_zero(factors, function):
    x, kernel = factors

    def unused(x):
        return jnp.sum(x.astype(jnp.float32)), function(x, kernel)

    gradient = jax.grad(lambda x: unused(x)[0])(x.astype(jnp.bfloat16))

    np.testing.assert_array_equal(gradient.astype(jnp.float32), 1.0)


def lowered(function, platform, *args):
    return jax.jit(function).trace(*args).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("function", [product, lambda x, k: contract("BTI,IO->BTO", x, k)])
def test_only_a_cpu_is_asked_for_wide_sums_of_narrow_factors(factors, function):
    x, kernel = (one.astype(jnp.bfloat16) for one in factors)
    wide = "(tensor<2x5x64xbf16>, tensor<64x32xbf16>) -> tensor<2x5x32xf32>"
    narrow = wide.replace("f32", "bf16")

    assert wide in lowered(function, "cpu", x, kernel)
    assert wide not in lowered(function, "tpu", x, kernel)
    assert narrow in lowered(function, "tpu", x, kernel)
    assert narrow in lowered(function, "cuda", x, kernel)


def test_only_a_cpu_rounds_the_factors_of_logits(factors):
    hidden, kernel = factors[0].astype(jnp.bfloat16), factors[1]
    wide = "(tensor<2x5x64xf32>, tensor<64x32xf32>) -> tensor<2x5x32xf32>"

    assert wide not in lowered(logits, "cpu", hidden, kernel)
    assert wide in lowered(logits, "tpu", hidden, kernel)
    assert wide in lowered(logits, "cpu", hidden.astype(jnp.float32), kernel)
