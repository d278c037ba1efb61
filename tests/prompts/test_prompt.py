import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from prompt_tuning.errors import ConfigError
from prompt_tuning.prompts import (
    Prompt,
    PromptParam,
    Suffix,
    after_bos,
    from_array,
    prefix,
    uniform,
)

COMBINATIONS = {"prefix": prefix, "after_bos": after_bos, "Suffix": Suffix()}
every_combination = pytest.mark.parametrize(
    "combine", COMBINATIONS.values(), ids=COMBINATIONS.keys()
)
every_dtype = pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])

TOKENS = jnp.asarray([[5, 6, 1, 0], [7, 1, 0, 0]])


def make(length=3, embed_dim=2, seed=0, **settings):
    return Prompt(
        length=length, embed_dim=embed_dim, init=uniform(), rngs=nnx.Rngs(seed), **settings
    )


def embedded(dtype=jnp.float32, batch=2):
    return jnp.ones((batch, 4, 2), dtype)


def test_the_only_variable_is_the_prompt_in_float32():
    _, found, rest = nnx.split(make(), PromptParam, ...)
    [(path, variable)] = nnx.to_flat_state(found)
    assert path == ("prompt",)
    assert (variable.shape, variable.dtype) == ((3, 2), jnp.float32)
    assert not jax.tree.leaves(rest)


def test_the_constructor_of_a_model_supplies_width_and_key():
    made = functools.partial(Prompt, length=3, init=uniform())(embed_dim=2, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(made.prompt[...], make().prompt[...])


def test_the_initializer_draws_from_the_stream_of_parameters():
    rngs = nnx.Rngs(params=7, dropout=8)
    made = Prompt(length=3, embed_dim=2, init=uniform(), rngs=rngs)
    expected = uniform()(nnx.Rngs(params=7).params(), (3, 2))
    np.testing.assert_array_equal(made.prompt[...], expected)


@every_combination
@every_dtype
def test_every_example_gets_the_prompt_in_the_dtype_of_the_text(combine, dtype):
    prompt = make(combine=combine)
    rows, mask = prompt(embedded(dtype), TOKENS)
    each = jnp.broadcast_to(prompt.prompt[...][None], (2, 3, 2)).astype(dtype)
    expected, expected_mask = combine(each, embedded(dtype), TOKENS)
    assert rows.dtype == dtype
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_array_equal(mask, expected_mask)


@every_combination
@every_dtype
def test_gradient_of_the_prompt_is_summed_in_float32(combine, dtype):
    # 257 needs 9 bits, bfloat16 has 8: a sum of 257 ones in bfloat16 is 256.
    graph, prompt = nnx.split(make(combine=combine))
    tokens = jnp.tile(TOKENS[:1], (257, 1))

    def total(prompt):
        rows, _ = nnx.merge(graph, prompt)(embedded(dtype, batch=257), tokens)
        return jnp.sum(rows.astype(jnp.float32))

    gradient = jax.jit(jax.grad(total))(prompt)["prompt"][...]
    assert gradient.dtype == jnp.float32
    np.testing.assert_array_equal(gradient, np.full((3, 2), 257.0))


def test_prompts_made_alike_compile_once():
    graphs = [nnx.graphdef(make(combine=Suffix(), seed=seed)) for seed in (0, 1)]
    assert graphs[0] == graphs[1]
    assert hash(graphs[0]) == hash(graphs[1])


@pytest.mark.parametrize(
    "trace", [lambda: nnx.eval_shape(make), lambda: nnx.jit(make)()], ids=["eval_shape", "jit"]
)
def test_a_prompt_can_be_made_in_a_trace(trace):
    prompt = trace()
    assert (prompt.prompt.shape, prompt.prompt.dtype) == ((3, 2), jnp.float32)


def test_a_prompt_of_one_vector_works():
    rows, mask = make(length=1)(embedded(), TOKENS)
    assert (rows.shape, mask.shape) == ((2, 5, 2), (2, 5))


def test_an_array_of_another_dtype_is_stored_in_float32():
    prompt = Prompt(
        length=3,
        embed_dim=2,
        init=lambda key, shape: jnp.zeros(shape, jnp.bfloat16),
        rngs=nnx.Rngs(0),
    )
    assert prompt.prompt.dtype == jnp.float32


def test_a_prompt_without_vectors_is_refused():
    with pytest.raises(ConfigError) as error:
        make(length=0)
    assert str(error.value) == (
        "Prompt.length is 0, expected 1 or more. For a model without a prompt leave the model's "
        "`prompt` out."
    )


def test_an_initializer_that_ignores_the_shape_is_named():
    with pytest.raises(ConfigError) as error:
        Prompt(
            length=3,
            embed_dim=2,
            init=lambda key, shape: jnp.zeros((2, 3)),
            rngs=nnx.Rngs(0),
        )
    assert str(error.value) == (
        "Prompt.init returned an array of shape (2, 3), but Prompt(length=3) on this model needs "
        "(3, 2). An initializer must return the shape that it is given."
    )


def test_a_given_array_becomes_the_prompt():
    array = np.arange(6, dtype=np.float32).reshape(3, 2)
    prompt = Prompt(length=3, embed_dim=2, init=from_array(array), rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(prompt.prompt[...], array)
