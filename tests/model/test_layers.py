import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from prompt_tuning.batch import PAD
from prompt_tuning.model.layers import (
    ACTIVATIONS,
    MASKED,
    MLP,
    RelativePositions,
    RMSNorm,
    dropout,
    mask_bias,
    relative_position_buckets,
)
from prompt_tuning.model.parameters import named, replaced
from tests.reference_models import QUICKLY

TABLES = [(32, 128), (4, 8), (16, 64), (64, 256)]
DIRECTIONS = {"bidirectional": True, "causal": False}
every_direction = pytest.mark.parametrize("direction", DIRECTIONS)


@every_direction
@pytest.mark.parametrize("table", TABLES)
def test_buckets_of_all_distances_are_exactly_the_original(golden, table, direction):
    recorded = golden("misc/relpos.npz")
    distances = recorded["relative_position"][None]
    buckets, farthest = table
    found = relative_position_buckets(
        distances, buckets, farthest, bidirectional=DIRECTIONS[direction]
    )
    np.testing.assert_array_equal(found[0], recorded[f"{direction}_{buckets}_{farthest}"])


@every_direction
def test_position_biases_are_exactly_the_original(golden, direction):
    recorded = golden("misc/relpos.npz")
    positions = relative_positions(recorded["bias_rel_embedding"], DIRECTIONS[direction])
    np.testing.assert_array_equal(positions(12, 200), recorded[f"bias_{direction}_q12_k200"])


@every_direction
def test_queries_may_begin_after_the_first_keys(direction):
    positions = relative_positions(np.arange(64.0).reshape(2, 32), DIRECTIONS[direction])
    found = positions(5, 12, first=7)
    np.testing.assert_array_equal(found, positions(12, 12)[:, :, 7:])


def relative_positions(table, bidirectional, dtype="float32"):
    made = RelativePositions(
        *table.shape, 128, bidirectional=bidirectional, param_dtype=dtype, rngs=nnx.Rngs(0)
    )
    made.rel_embedding[...] = jnp.asarray(table, dtype)
    return made


def test_a_bidirectional_stack_tells_before_from_after_and_a_causal_one_sees_no_after():
    distances = np.arange(-4, 5)[None]
    [both] = relative_position_buckets(distances, 8, 16, bidirectional=True)
    [behind] = relative_position_buckets(distances, 8, 16, bidirectional=False)
    #        distance           -4 -3 -2 -1  0  1  2  3  4
    np.testing.assert_array_equal(both, [2, 2, 2, 1, 0, 5, 6, 6, 6])
    np.testing.assert_array_equal(behind, [4, 3, 2, 1, 0, 0, 0, 0, 0])


@every_direction
@pytest.mark.parametrize("table", TABLES)
def test_buckets_grow_with_the_distance_until_the_last(table, direction):
    buckets, farthest = table
    behind = -np.arange(2 * farthest)[None]
    [found] = relative_position_buckets(
        behind, buckets, farthest, bidirectional=DIRECTIONS[direction]
    )
    last = buckets // 2 - 1 if DIRECTIONS[direction] else buckets - 1
    assert np.all(np.diff(found) >= 0)
    assert set(found) == set(range(last + 1))
    assert np.all(found[farthest:] == last) and found[0] == 0


def test_biases_are_float32_even_if_the_table_is_not():
    table = np.arange(8, dtype=np.float32).reshape(1, 8)
    positions = relative_positions(table, False, "bfloat16")
    assert positions(3, 3).dtype == jnp.float32
    np.testing.assert_array_equal(positions(3, 3)[0, 0], [[0, 0, 0], [1, 0, 0], [2, 1, 0]])


@pytest.mark.parametrize("length", [1, 2, 5])
def test_masks_equal_the_original(golden, length):
    recorded = golden("misc/masks.npz")

    def prompted(tokens):
        return jnp.pad(tokens != PAD, ((0, 0), (length, 0)), constant_values=True)

    seen = prompted(jnp.asarray(recorded["encoder_input_tokens"]))
    encoder = mask_bias(seen, seen) == 0
    np.testing.assert_array_equal(encoder, recorded[f"encoder_mask/P{length}"] == 1)
    spoken = prompted(jnp.asarray(recorded["decoder_target_tokens"]))
    causal = mask_bias(spoken, spoken, causal=True) == 0
    np.testing.assert_array_equal(causal, recorded[f"decoder_only_mask_causal/P{length}"] == 1)


def test_a_mask_is_a_bias_for_every_query_and_key():
    queries, keys = jnp.asarray([[1, 1, 0]], bool), jnp.asarray([[1, 0, 1]], bool)
    x = MASKED
    bias = mask_bias(queries, keys)
    assert (bias.shape, bias.dtype) == ((1, 1, 3, 3), jnp.float32)
    np.testing.assert_array_equal(bias[0, 0], np.float32([[0, x, 0], [0, x, 0], [x, x, x]]))
    bias = mask_bias(queries, keys, causal=True)
    np.testing.assert_array_equal(bias[0, 0], np.float32([[0, x, x], [0, x, x], [x, x, x]]))
    across = mask_bias(queries, jnp.asarray([[1, 0]], bool))
    np.testing.assert_array_equal(across[0, 0], np.float32([[0, x], [0, x], [x, x]]))
    behind = mask_bias(jnp.ones((1, 2), bool), jnp.ones((1, 4), bool), causal=True, first=2)
    np.testing.assert_array_equal(behind[0, 0], np.float32([[0, 0, 0, x], [0, 0, 0, 0]]))


def test_a_query_that_may_see_nothing_attends_to_every_key_alike():
    scores = jnp.asarray([[3.0, -400.0, 25.0, 0.0]])
    np.testing.assert_array_equal(jax.nn.softmax(scores + MASKED), [[0.25] * 4])


def test_the_norm_divides_by_the_root_mean_square_and_nothing_else():
    norm = RMSNorm(8, param_dtype="float32")
    norm.scale[...] = jnp.arange(8.0)
    x = drawn((2, 3, 8)) + 5.0
    exact = np.asarray(x, np.float64)
    expected = exact / np.sqrt(np.mean(exact**2, axis=-1, keepdims=True) + 1e-6) * np.arange(8)
    np.testing.assert_allclose(quickly(norm, x), expected, rtol=1e-6)
    zeros = jnp.zeros((1, 1, 8))
    np.testing.assert_array_equal(quickly(norm, zeros), zeros)


def test_the_norm_of_small_numbers_shows_its_epsilon():
    norm = RMSNorm(4, param_dtype="float32")
    found = quickly(norm, jnp.full((1, 1, 4), 1e-3))
    np.testing.assert_allclose(found, np.full((1, 1, 4), 0.5**0.5), rtol=1e-6)


def test_the_norm_of_bfloat16_is_computed_in_float32():
    norm = RMSNorm(64, param_dtype="bfloat16")
    x = drawn((2, 3, 64)).astype(jnp.bfloat16)
    found, wide = quickly(norm, x), quickly(norm, x.astype(jnp.float32))
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found, wide.astype(jnp.bfloat16))


FORMULAS = {
    "gelu": lambda x: x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "linear": lambda x: x,
}


def test_every_activation_has_a_formula():
    assert FORMULAS.keys() == ACTIVATIONS.keys()


@pytest.mark.parametrize("activations", [*((name,) for name in FORMULAS), ("gelu", "linear")])
def test_the_mlp_multiplies_its_branches(activations):
    mlp = make_mlp(4, 6, activations)
    x = drawn((2, 3, 4))
    names = ["wi"] if len(activations) == 1 else ["wi_0", "wi_1"]
    hidden = 1.0
    for name, activation in zip(names, activations, strict=True):
        kernel = np.asarray(getattr(mlp, name).kernel[...], np.float64)
        hidden = hidden * FORMULAS[activation](np.asarray(x, np.float64) @ kernel)
    expected = hidden @ np.asarray(mlp.wo.kernel[...], np.float64)
    np.testing.assert_allclose(quickly(mlp, x, key=None), expected, atol=2e-5)


def make_mlp(embed_dim, mlp_dim, activations=("linear",), rate=0.0):
    def make():
        settings = {"dropout_rate": rate, "param_dtype": "float32", "rngs": nnx.Rngs(0)}
        return MLP(embed_dim, mlp_dim, activations, **settings)

    graph, state = nnx.split(nnx.eval_shape(make))
    arrays = {name: drawn(leaf.shape) for name, leaf in named(state).items()}
    return nnx.merge(graph, replaced(state, arrays))


def drawn(shape):
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def quickly(module, *args, **kwargs):
    return jax.jit(lambda: module(*args, **kwargs), compiler_options=QUICKLY)()


def test_the_mlp_drops_the_same_hidden_features_at_every_position(key):
    mlp = make_mlp(8, 32, rate=0.5)
    mlp.wi.kernel[...] = jnp.asarray(np.ones((8, 32), np.float32))
    mlp.wo.kernel[...] = jnp.asarray(np.eye(32, 8) + np.eye(32, 8, k=-8), jnp.float32)
    # What comes out counts how many of hidden features i and i + 8 are left: each is 8, doubled.
    found = np.asarray(quickly(mlp, jnp.ones((50, 3, 8)), key=key))
    np.testing.assert_array_equal(found, np.broadcast_to(found[:, :1], found.shape))
    assert set(np.unique(found)) == {0.0, 16.0, 32.0}


def test_without_a_key_or_a_rate_nothing_is_dropped(key):
    x = jnp.ones((2, 3, 4))
    assert dropout(x, 0.5, None, shared_axis=1) is x
    assert dropout(x, 0.0, key, shared_axis=1) is x


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("rate", [0.1, 0.5, 0.75])
@pytest.mark.parametrize("shared_axis", [1, 2])
def test_dropout_zeroes_a_share_and_scales_the_rest(key, dtype, rate, shared_axis):
    x = jnp.ones((40, 40, 40), dtype)
    dropped = dropout(x, rate, key, shared_axis=shared_axis)
    assert dropped.dtype == dtype
    assert set(np.unique(np.asarray(dropped))) == {
        0,
        np.asarray(jnp.ones((), dtype) / (1 - rate))[()],
    }
    # 1,600 independent draws: the mean of all is within 4 standard deviations of 1.
    deviation = np.sqrt(rate / (1 - rate) / 1600)
    assert abs(np.mean(np.asarray(dropped, np.float32)) - 1) < 4 * deviation


@pytest.mark.parametrize("shared_axis", [1, 2])
def test_a_dropout_mask_is_shared_along_one_axis_only(key, shared_axis):
    dropped = np.asarray(dropout(jnp.ones((8, 8, 8)), 0.5, key, shared_axis=shared_axis))
    for axis in range(3):
        first = np.take(dropped, [0], axis)
        assert np.all(dropped == first) == (axis == shared_axis)


def test_a_dropout_mask_depends_on_the_key_alone(key):
    x = jnp.ones((4, 5, 6))
    once = dropout(x, 0.5, key, shared_axis=1)
    np.testing.assert_array_equal(dropout(x, 0.5, key, shared_axis=1), once)
    np.testing.assert_array_equal(dropout(x * 3, 0.5, key, shared_axis=1), once * 3)
    other = dropout(x, 0.5, jax.random.key(1), shared_axis=1)
    assert np.any(other != once)
