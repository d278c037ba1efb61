import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from prompt_tuning.errors import ConfigError
from prompt_tuning.losses import Loss
from prompt_tuning.model.parameters import named
from prompt_tuning.model.remat import PROJECTIONS, remat_policy
from prompt_tuning.prompts import PromptParam
from tests.jaxprs import equations
from tests.reference_models import QUICKLY
from tests.small_models import BATCH, small_model

POLICIES = ["none", "minimal", "projections", "full"]


@functools.cache
def encoded_and_gradient(policy):
    graph, prompt, frozen = nnx.split(small_model(remat=policy, dropout_rate=0.3), PromptParam, ...)

    def size(prompt, frozen, key):
        hidden = nnx.merge(graph, prompt, frozen).encode(BATCH.inputs, key=key).hidden
        return jnp.sum(hidden**3), hidden

    differentiated = jax.value_and_grad(size, has_aux=True)
    (_, hidden), gradient = jax.jit(differentiated, compiler_options=QUICKLY)(
        prompt, frozen, jax.random.key(0)
    )
    [gradient] = named(gradient).values()
    return hidden, gradient


@pytest.mark.parametrize("policy", POLICIES[1:])
def test_what_is_computed_again_is_the_same_with_dropout_as_well(policy):
    hidden, gradient = encoded_and_gradient(policy)
    expected_hidden, expected = encoded_and_gradient("none")
    np.testing.assert_allclose(hidden, expected_hidden, atol=1e-6)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-4)


def products(policy):
    """Counts the matrix products of a training step, those of a layer once for its stack."""
    graph, prompt, frozen = nnx.split(small_model(remat=policy), PromptParam, ...)

    def loss(prompt, frozen):
        return Loss()(nnx.merge(graph, prompt, frozen)(BATCH), BATCH)[0]

    found = equations(jax.grad(loss), prompt, frozen)
    return sum(equation.primitive.name == "dot_general" for equation in found)


def test_policies_compute_as_much_again_as_they_say():
    none = products("none")
    # Forward and backward, without a single gradient of a weight: 7 projections and 2 products of
    # attention in a layer of the encoder, 11 and 4 in one of the decoder, and the logits.
    #             encoder      decoder       logits
    assert none == 2 * 7 + 3 * 2 + 2 * 11 + 3 * 4 + 2
    again = {policy: products(policy) - none for policy in POLICIES}
    assert again == {
        "none": 0,
        # The scores of each attention; every projection was kept.
        "minimal": 1 + 2,
        "projections": 1 + 2,
        # Everything but the MLP's last projection, which no gradient needs.
        "full": (7 + 2 - 1) + (11 + 4 - 1),
    }


def test_the_names_to_keep_are_those_that_blocks_mark():
    graph, state = nnx.split(small_model())
    found = equations(lambda state: nnx.merge(graph, state)(BATCH), state)
    marked = collections.Counter(
        equation.params["name"] for equation in found if equation.primitive.name == "name"
    )
    # One attention in a layer of the encoder, two in one of the decoder; two branches per MLP.
    assert marked == {"query": 3, "key": 3, "value": 3, "attention_out": 3, "wi": 4}
    assert marked.keys() == set(PROJECTIONS)


@pytest.mark.parametrize(
    ("name", "hint"),
    [("ful", " Did you mean 'full'?"), ("everything", "")],
)
def test_an_unknown_policy_is_named(name, hint):
    with pytest.raises(ConfigError) as error:
        remat_policy(name)
    assert str(error.value) == (
        f"T5Config(remat={name!r}): unknown rematerialisation policy, known are none, minimal, "
        f"projections, full.{hint}"
    )
