import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.jaxprs import equations
from tests.small_models import BATCH, compiled, small_model


def drawn(model, key):
    """Returns the shapes of all random draws, those inside a stack once."""
    graph, state = nnx.split(model)

    def call(state, key):
        return nnx.merge(graph, state)(BATCH, key=key)

    return [
        equation.params["shape"]
        for equation in equations(call, state, key)
        if equation.primitive.name == "random_bits"
    ]


def test_every_site_draws_one_mask_for_all_positions(key):
    b, s, u, n, d, f = 4, 3 + 5, 4, 2, 16, 24
    everywhere, hidden = (b, 1, d), (b, 1, f)
    assert drawn(small_model(dropout_rate=0.1), key) == [
        everywhere,  # the embedded input, prompt included
        (b, n, 1, s),  # encoder: attention weights, over queries
        everywhere,  # what attention adds
        hidden,  # between the MLP's matrices
        everywhere,  # what the MLP adds
        everywhere,  # the encoder's output
        everywhere,  # the embedded target
        (b, n, 1, u),  # decoder: self-attention weights
        everywhere,
        (b, n, 1, s),  # weights over the encoder's output
        everywhere,
        hidden,
        everywhere,
        everywhere,  # the decoder's output
    ]


@pytest.mark.parametrize(("rate", "with_key"), [(0.1, False), (0.0, True), (0.0, False)])
def test_without_a_key_or_a_rate_nothing_is_random(key, rate, with_key):
    assert drawn(small_model(dropout_rate=rate), key if with_key else None) == []


def test_a_key_always_drops_the_same_and_another_something_else(key):
    model = small_model(dropout_rate=0.3)
    once = compiled(model, "__call__", BATCH, key=key)
    again = compiled(model, "__call__", BATCH, key=key)
    np.testing.assert_array_equal(again, once)
    other = compiled(model, "__call__", BATCH, key=jax.random.key(1))
    # At every real position; padding is 0 whatever is dropped.
    np.testing.assert_array_equal(jnp.any(other != once, axis=-1), jnp.any(once != 0, axis=-1))


def test_embedded_prompt_and_text_and_the_output_are_dropped_independently(key):
    model = small_model(dropout_rate=0.5)
    for projection in (model.encoder.layers.attention.out, model.encoder.layers.mlp.wo):
        projection.kernel[...] = jnp.zeros_like(projection.kernel[...])
    inputs = jnp.full((200, 4), 7)
    # Blocks add nothing now: only the first site and the last are seen, through the norm.
    dropped = np.asarray(compiled(model, "encode", inputs, key=key).hidden == 0)
    assert dropped.shape == (200, 3 + 4, 16)
    np.testing.assert_array_equal(dropped, np.broadcast_to(dropped[:, :1], dropped.shape))
    # A feature stays if both keep it. 3,200 draws: 4 standard deviations are 0.03.
    np.testing.assert_allclose(np.mean(dropped), 0.75, atol=0.03)
