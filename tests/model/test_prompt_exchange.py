"""What a step over bfloat16 activations exchanges among devices that hold the whole base."""

import re

import jax
from flax import nnx

from prompt_tuning.losses import Loss
from prompt_tuning.partitioning import Partitioning
from prompt_tuning.prompts import PromptParam
from tests.reference_models import QUICKLY
from tests.small_models import BATCH, small_model


def test_the_gradient_of_a_prompt_is_summed_over_devices_in_float32():
    placed = Partitioning().placement()
    model = small_model(dtype="bfloat16")
    model.hold(placed.layout)
    graph, prompt, frozen = nnx.split(model, PromptParam, ...)

    def loss(prompt, frozen, batch):
        return Loss()(nnx.merge(graph, prompt, frozen)(batch), batch)[0]

    arguments = placed.replicated(prompt), placed.parameters(frozen), placed.batch(BATCH)
    gradient = jax.jit(jax.grad(loss), out_shardings=placed.everywhere)
    text = gradient.lower(*arguments).compile(compiler_options=QUICKLY).as_text()
    [sums] = [line for line in text.splitlines() if re.search(r" all-reduce(-start)?\(", line)]
    assert "f32[3,16]" in sums.partition(" all-reduce")[0]
    # A CPU sums bfloat16 as float32, and says so.
    assert "promoted" not in sums
