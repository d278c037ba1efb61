"""The analytic minimum, against what XLA compiles of models that need nothing else."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from prompt_tuning.batch import Batch
from prompt_tuning.model import T5, t5_config
from prompt_tuning.planning import count, minimum
from prompt_tuning.planning.minimum import Sizes

SIZES = Sizes(rows=2, inputs=11, targets=4)
CONFIG = t5_config("ours_tiny", dtype="float32", attention="plain")


def test_a_forward_pass_is_what_the_unrolled_model_compiles_to():
    config = dataclasses.replace(CONFIG, unroll=True)
    model = nnx.eval_shape(lambda: T5(config, rngs=nnx.Rngs(0)))
    graph, state = nnx.split(model)

    def forward(state, batch):
        return nnx.merge(graph, state)(batch)

    def tokens(length, dtype=jnp.int32):
        return jax.ShapeDtypeStruct((SIZES.rows, length), dtype)

    batch = Batch(inputs=tokens(11), targets=tokens(4), weights=tokens(4, jnp.float32))
    compiled = jax.jit(forward).lower(state, batch).compile()
    assert count(compiled.as_text()).flops == minimum.of_evaluation(config, SIZES)


def test_training_everything_costs_three_forward_passes():
    whole = minimum.of_training(CONFIG, SIZES, trainable="model")
    assert whole == 3 * minimum.of_evaluation(CONFIG, SIZES)


def test_a_frozen_model_saves_its_weight_gradients():
    one = minimum.forward(CONFIG, SIZES)
    assert minimum.of_training(CONFIG, SIZES) == 2 * one.linear + 3 * one.attention


def test_the_paper_size_is_that_of_the_measured_table():
    # 0.487 PFLOP a step for XXL at batch 32, inputs 512 + 100, targets 64.
    sizes = Sizes(rows=32, inputs=512, targets=64, prompt=100)
    found = minimum.of_training(t5_config("t5_1_1_xxl"), sizes)
    assert found == pytest.approx(0.487e15, rel=2e-3)


def test_answers_cost_more_by_beams_but_their_input_does_not():
    one = minimum.of_decoding(CONFIG, SIZES)
    two = minimum.of_decoding(CONFIG, dataclasses.replace(SIZES, beams=2))
    read = minimum.of_decoding(CONFIG, dataclasses.replace(SIZES, targets=0))
    assert two - one == one - read > 0


def test_policies_recompute_more_the_less_they_keep():
    costs = [
        minimum.recomputed(dataclasses.replace(CONFIG, remat=policy), SIZES)
        for policy in ("none", "projections", "full")
    ]
    assert costs[0] == 0 < costs[1] < costs[2] < minimum.of_evaluation(CONFIG, SIZES)
