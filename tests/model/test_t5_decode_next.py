import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from prompt_tuning.batch import shift_right
from tests.reference_models import QUICKLY
from tests.small_models import BATCH, MODELS, T5_1_1, compiled, small_model

every_model = pytest.mark.parametrize("name", MODELS)

# Longer than the tables of relative positions reach, and without an end before the end.
LENGTH = 20
TARGETS = jnp.asarray(np.random.default_rng(0).integers(2, T5_1_1.vocab_size, (4, LENGTH)))


def one_by_one(model, encoded):
    """Returns the logits of `TARGETS`, made one position at a time."""
    graph, state = nnx.split(model)

    @functools.partial(jax.jit, compiler_options=QUICKLY)
    def step(state, token, position, past, cross, real):
        return nnx.merge(graph, state).decode_next(token, position, past, cross, real)

    inputs = shift_right(TARGETS)
    past = model.empty_past(*TARGETS.shape)
    cross = compiled(model, "cross_keys_values", encoded)
    logits = []
    for position in range(LENGTH):
        here = jnp.int32(position)
        of_one, past = step(state, inputs[:, position], here, past, cross, encoded.real)
        logits.append(of_one)
    return jnp.stack(logits, axis=1)


@every_model
def test_one_token_at_a_time_equals_all_at_once(name):
    model = small_model(name)
    encoded = compiled(model, "encode", BATCH.inputs)
    expected = compiled(model, "decode", encoded, TARGETS)
    np.testing.assert_allclose(one_by_one(model, encoded), expected, atol=2e-5)


def test_in_bfloat16_both_ways_round_alike():
    model = small_model(dtype="bfloat16")
    encoded = compiled(model, "encode", BATCH.inputs)
    expected = compiled(model, "decode", encoded, TARGETS)
    found = one_by_one(model, encoded)
    assert model.empty_past(1, 2)[0].dtype == jnp.bfloat16
    assert found.dtype == expected.dtype == jnp.float32
    # 0.4 % of logits that go up to 5, through 3 layers.
    np.testing.assert_allclose(found, expected, atol=0.1)


@every_model
def test_keys_and_values_made_once_are_those_made_in_every_layer(name):
    graph, state = nnx.split(small_model(name))

    @functools.partial(jax.jit, compiler_options=QUICKLY)
    def both(state):
        model = nnx.merge(graph, state)
        encoded = model.encode(BATCH.inputs)
        once = model.decode(encoded, BATCH.targets, cross=model.cross_keys_values(encoded))
        return once, model.decode(encoded, BATCH.targets)

    np.testing.assert_array_equal(*both(state))
