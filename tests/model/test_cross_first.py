"""Keys and values over the input, made for all layers before the decoder's loop."""

import dataclasses
import functools
import re

import jax
import numpy as np
import pytest
from flax import nnx

from prompt_tuning.layout import Layout
from prompt_tuning.losses import Loss
from prompt_tuning.model.parameters import named
from prompt_tuning.partitioning import Partitioning
from prompt_tuning.prompts import PromptParam
from tests.reference_models import QUICKLY
from tests.small_models import BATCH, SOME_MODELS, small_model


def differentiated(model):
    """Returns the gradient of what is learned, as a function of it, the rest and a batch."""
    graph, learned, frozen = nnx.split(model, PromptParam, ...)

    def loss(learned, frozen, batch, key):
        return Loss()(nnx.merge(graph, learned, frozen)(batch, key=key), batch)[0]

    return jax.jit(jax.grad(loss), compiler_options=QUICKLY), learned, frozen


@pytest.mark.parametrize("name", [one for one in SOME_MODELS if one.values[0] != "T5 1.1"])
def test_gradients_are_those_of_keys_and_values_made_in_their_turn(name, key):
    def gradients(cross_first):
        model = small_model(name, dropout_rate=0.3)
        model.hold(Layout(cross_first=cross_first))
        function, learned, frozen = differentiated(model)
        return named(function(learned, frozen, BATCH, key))

    found, wanted = gradients(True), gradients(False)
    # The layers' parts are summed in another order.
    for one, array in wanted.items():
        scale = np.max(np.abs(array))
        np.testing.assert_allclose(found[one], array, atol=5e-6 * scale, err_msg=one)


@functools.cache
def exchanges(cross_first):
    """Counts what devices exchange of the encoder's width, with 4 layers in the decoder.

    All layers are written out, so that none stands for several.
    """
    placed = Partitioning(num_partitions=2).placement()
    model = small_model(vocab_size=64, decoder_layers=4, unroll=True)
    model.hold(dataclasses.replace(placed.layout, cross_first=cross_first))
    function, learned, frozen = differentiated(model)
    arguments = placed.replicated(learned), placed.parameters(frozen), placed.batch(BATCH), None
    text = function.lower(*arguments).compile().as_text()
    shapes = " ".join(re.findall(r"= (.*?) all-reduce(?:-start)?\(", text))
    # Rows of a device, positions with the prompt's, width.
    return shapes.count("f32[1,8,16]")


@pytest.mark.slow
def test_the_encoders_output_has_one_gradient_to_exchange_instead_of_one_for_each_layer():
    assert Partitioning(num_partitions=2).placement().layout.cross_first
    assert exchanges(True) <= exchanges(False) - 3, (exchanges(True), exchanges(False))
