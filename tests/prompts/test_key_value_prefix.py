import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from prompt_tuning.errors import ConfigError
from prompt_tuning.model import parameters
from prompt_tuning.prompts import KeyValuePrefix, PromptParam, from_array, uniform
from tests.reference_models import QUICKLY, filled
from tests.small_models import BATCH, T5_1_1, compiled, small_model


def make(length=3, init=None):
    init = init or uniform()
    return KeyValuePrefix(length=length, init=init, layers=2, heads=(4, 5), rngs=nnx.Rngs(0))


def test_its_only_variables_are_keys_and_values_of_every_layer_in_float32():
    _, found, rest = nnx.split(make(), PromptParam, ...)
    shapes = {name: (leaf.shape, leaf.dtype) for name, leaf in parameters.named(found).items()}
    shape = (2, 3, 4, 5)  # L P N H
    assert shapes == {"keys": (shape, jnp.float32), "values": (shape, jnp.float32)}
    axes = ("layers", "prompt", "heads", "kv")
    assert parameters.axes(found) == {"keys": axes, "values": axes}
    assert not jax.tree.leaves(rest)


def test_keys_and_values_are_drawn_apart():
    keys, values = make()()
    assert np.all(np.asarray(keys) != np.asarray(values))


def test_an_initializer_gives_a_row_for_every_position_of_every_layer():
    rows = np.arange(6 * 20, dtype=np.float32).reshape(6, 20)
    keys, values = make(init=from_array(rows))()
    for array in (keys, values):
        np.testing.assert_array_equal(array[1, 2], rows[5].reshape(4, 5))


def test_a_prefix_of_nothing_is_refused():
    with pytest.raises(ConfigError) as error:
        make(length=0)
    assert str(error.value) == "KeyValuePrefix.length is 0, expected 1 or more."


SAID = [7, 9, 4, 0, 8, 6]  # The 0 stands where a model begins to speak.


def steps(model, encoded, tokens):
    """Returns the logits of each token after the one before, and the past of all."""
    graph, state = nnx.split(model)

    @functools.partial(jax.jit, compiler_options=QUICKLY)
    def step(state, token, position, past, cross, real):
        return nnx.merge(graph, state).decode_next(token, position, past, cross, real)

    cross, logits = compiled(model, "cross_keys_values", encoded), []
    past = model.empty_past(1, len(tokens))
    for position, token in enumerate(tokens):
        token, position = jnp.asarray([token]), jnp.int32(position)
        found, past = step(state, token, position, past, cross, encoded.real)
        logits.append(found)
    return np.concatenate(logits), past


def test_the_keys_and_values_of_what_was_said_are_a_prefix_of_what_follows():
    model = small_model("T5 1.1")
    encoded = compiled(model, "encode", BATCH.inputs[:1])
    expected, past = steps(model, encoded, SAID)
    base = parameters.named(nnx.state(model))
    said = {
        "decoder/prefix/keys": past[0][:, 0, :3],
        "decoder/prefix/values": past[1][:, 0, :3],
    }
    prefix = functools.partial(KeyValuePrefix, length=3, init=uniform())
    continued = filled(T5_1_1, base | said, prefix=prefix)
    found, _ = steps(continued, encoded, SAID[3:])
    np.testing.assert_allclose(found, expected[3:], atol=1e-5)
    # Without it, or with another one, something else follows.
    without, _ = steps(model, encoded, SAID[3:])
    assert np.max(np.abs(without - expected[3:])) > 0.1
