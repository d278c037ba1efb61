import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from prompt_tuning.model import T5Config
from prompt_tuning.model.attention import Attention, in_front, plain
from tests.reference_models import QUICKLY

HEADS, SEEN = 2, 6


def attention(rate=0.0):
    """Attends over `SEEN` keys; what comes out is the attention weights of every head."""
    config = T5Config(
        vocab_size=1,
        embed_dim=HEADS * SEEN,
        mlp_dim=1,
        num_heads=HEADS,
        head_dim=SEEN,
        encoder_layers=1,
        decoder_layers=1,
        dropout_rate=rate,
    )
    made = Attention(config, rngs=nnx.Rngs(0))
    made.out.kernel[...] = jnp.eye(HEADS * SEEN)
    return made


def weights(made, x, keys, *biases, key=None):
    """Returns the weights `[B T N S]`: the value of key s is the s-th unit vector."""
    one = jnp.eye(SEEN, dtype=x.dtype)[None, :, None, :]
    values = jnp.broadcast_to(one, keys.shape)
    graph, state = nnx.split(made)
    found = attend(graph, state, x, (keys, values), biases, key)
    return np.asarray(found).reshape(*x.shape[:2], HEADS, SEEN)


@functools.partial(jax.jit, static_argnums=0, compiler_options=QUICKLY)
def attend(graph, state, x, keys_values, biases, key):
    return nnx.merge(graph, state)(x, keys_values, plain(*biases), key=key)


@pytest.fixture
def x():
    return drawn((3, 5, HEADS * SEEN))


@pytest.fixture
def keys():
    return drawn((3, SEEN, HEADS, SEEN)) / 2


def drawn(shape):
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def test_weights_are_a_softmax_of_unscaled_scores_and_all_biases(x, keys):
    made = attention()
    first = np.arange(SEEN, dtype=np.float32)[None, None, None] / 3
    second = np.asarray([0.0, -1e10], np.float32)[None, :, None, None]
    found = weights(made, x, keys, jnp.asarray(first), jnp.asarray(second))

    queries = np.asarray(x, np.float64) @ np.asarray(made.query.kernel[...], np.float64)
    queries = queries.reshape(3, 5, HEADS, SEEN)
    scores = np.einsum("btnh,bsnh->btns", queries, np.asarray(keys, np.float64))
    scores = scores + first + np.moveaxis(second, 1, 2)
    scores[:, :, 1] = 0.0  # A bias that large leaves nothing of the scores in float32.
    expected = np.exp(scores) / np.exp(scores).sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_in_bfloat16_the_softmax_is_computed_in_float32(x, keys):
    # Scores of 256 to 262 in steps of 1: in bfloat16 only every other number exists there.
    far = 256.0 + jnp.arange(SEEN, dtype=jnp.float32)[None, None, None]
    narrow = jnp.zeros_like(x, jnp.bfloat16)
    found = weights(attention(), narrow, keys.astype(jnp.bfloat16), far)
    expected = jax.nn.softmax(jnp.arange(SEEN, dtype=jnp.float32)).astype(jnp.bfloat16)
    np.testing.assert_array_equal(found, np.broadcast_to(expected, found.shape))


def test_weights_are_dropped_alike_for_every_query_but_not_for_every_head(x, keys, key):
    kept = weights(attention(), x, keys)
    found = weights(attention(0.5), x, keys, key=key)
    dropped = found == 0
    np.testing.assert_allclose(found, np.where(dropped, 0, 2 * kept), rtol=1e-6)
    np.testing.assert_array_equal(dropped, np.broadcast_to(dropped[:, :1], dropped.shape))
    assert 0 < np.mean(dropped) < 1
    for axis in (0, 2, 3):
        assert np.any(dropped != np.take(dropped, [0], axis))


def test_keys_and_values_are_split_into_heads_with_heads_first(x):
    made = attention()
    keys, values = made.keys_values(x)
    for found, projection in ((keys, made.key), (values, made.value)):
        flat = np.asarray(x) @ np.asarray(projection.kernel[...])
        assert found.shape == (3, 5, HEADS, SEEN)
        np.testing.assert_allclose(found[:, :, 1, 0], flat[:, :, SEEN], atol=1e-5)


def test_learned_keys_and_values_come_before_those_of_every_example():
    keys, values = drawn((4, 2, HEADS, SEEN)), drawn((4, 2, HEADS, SEEN)) + 1  # Of 4 layers.
    own = (drawn((4, 3, 5, HEADS, SEEN)), drawn((4, 3, 5, HEADS, SEEN)) - 1)
    found = in_front((keys, values), own)
    for joined, learned, before in zip(found, (keys, values), own, strict=True):
        np.testing.assert_array_equal(joined[:, :, 2:], before)
        for row in range(3):
            np.testing.assert_array_equal(joined[:, row, :2], learned)
    # One layer at a time is the same.
    alone = in_front((keys[1], values[1]), (own[0][1], own[1][1]))
    np.testing.assert_array_equal(alone[0], found[0][1])


def test_the_gradient_of_learned_keys_is_summed_in_float32():
    # 257 needs 9 bits, bfloat16 has 8.
    own = jnp.zeros((257, 1, 1, 2), jnp.bfloat16)

    def total(learned):
        keys, _ = in_front((learned, learned), (own, own))
        assert keys.dtype == jnp.bfloat16
        return jnp.sum(keys.astype(jnp.float32))

    gradient = jax.jit(jax.grad(total))(jnp.ones((1, 1, 2)))
    np.testing.assert_array_equal(gradient, np.full((1, 1, 2), 257.0))
