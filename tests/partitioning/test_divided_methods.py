"""What every method learns lies right on every mesh, and is what it learns on one device."""

import functools

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from prompt_tuning.model.parameters import named
from prompt_tuning.partitioning import Partitioning, on_host
from prompt_tuning.prompts import Choice, PromptBank, PromptParam, Suffix, chosen
from tests.partitioning.test_divided_models import (
    MESHES,
    SIZES,
    Run,
    batches,
    distance,
    placed_on,
)
from tests.small_models import MODELS, compiled, small_model

EVERY = "data 2 x fsdp 2 x model 2"
# Where it lies whatever the mesh. What scales a divided feature, or stands beside divided keys, is
# divided as that is; vectors among the embedded tokens are whole, as the tokens are.
FACTS = {
    "T5 1.1 with a prompt": {"encoder/prompt/prompt": P()},
    "T5 1.1 in int8 with a prompt": {"encoder/prompt/prompt": P()},
    "T5 1.0 with a suffix": {"encoder/prompt/prompt": P()},
    "T5 1.1 with a prefix": {
        "decoder/prefix/keys": P(None, None, "model"),
        "decoder/prefix/values": P(None, None, "model"),
    },
    "T5 1.1 with scales": {
        "encoder/layers/attention/k_conv/ia3_scaling": P(None, "model"),
        "encoder/layers/attention/v_conv/ia3_scaling": P(None, "model"),
        "encoder/layers/mlp/intermediate_conv/ia3_scaling": P(None, "model"),
        "decoder/layers/self_attention/k_conv/ia3_scaling": P(None, "model"),
        "decoder/layers/self_attention/v_conv/ia3_scaling": P(None, "model"),
        "decoder/layers/encoder_decoder_attention/k_conv/ia3_scaling": P(None, "model"),
        "decoder/layers/encoder_decoder_attention/v_conv/ia3_scaling": P(None, "model"),
        "decoder/layers/mlp/intermediate_conv/ia3_scaling": P(None, "model"),
    },
}


def test_every_method_is_here():
    assert set(FACTS) == {name for name, (_, methods) in MODELS.items() if methods}


def run_of(method, mesh):
    return Run(placed_on(mesh), model=small_model(method, **SIZES))


@pytest.mark.parametrize(
    "mesh",
    [mesh if mesh == EVERY else pytest.param(mesh, marks=pytest.mark.slow) for mesh in MESHES],
)
@pytest.mark.parametrize("method", FACTS)
def test_what_is_learned_lies_where_it_is_used(method, mesh):
    run = run_of(method, mesh)
    divided = run.placed.mesh.shape["model"] > 1
    learned = named(run.state.trainable)
    assert set(learned) == set(FACTS[method])
    for name, spec in FACTS[method].items():
        wanted = spec if divided else P()
        assert learned[name].sharding.spec == wanted, name
        for slot in jax.tree.leaves(run.state.opt_state[name]):
            alike = slot.shape == learned[name].shape
            assert slot.sharding.spec == (wanted if alike else P()), name


@functools.cache
def trained(method, mesh):
    run = run_of(method, mesh)
    for batch, _ in zip(batches(), range(5), strict=False):
        run.take(batch)
    return run


@pytest.mark.parametrize(
    ("method", "mesh"),
    [
        pytest.param(
            method,
            mesh,
            marks=()
            if mesh == EVERY and method in ("T5 1.1 with a prefix", "T5 1.1 with scales")
            else pytest.mark.slow,
        )
        for method in FACTS
        for mesh in MESHES
    ],
)
def test_a_method_learns_the_same_on_every_mesh(method, mesh):
    assert distance(trained(method, mesh), trained(method, None)) < 1e-5


def test_rows_of_every_mesh_have_their_prompts_of_a_bank():
    """A choice for each row is whole on every device, as it names no dimension."""
    vectors = [np.full((n, 16), n, np.float32) / 10 for n in (3, 2, 3)]
    model = small_model("T5 1.0 with a suffix", **SIZES)
    model.encoder.prompt = PromptBank(vectors, combine=Suffix())
    batch, rows = next(batches()), np.array([0, 2, 1, 1, 0, 2, 2, 1], np.int32)
    graph, choice, rest = nnx.split(model, Choice, ...)
    logits = compiled(nnx.merge(graph, chosen(choice, rows), rest), "__call__", batch)
    placed = Partitioning(num_partitions=2, fsdp=2).placement()
    model.hold(placed.layout)
    graph, prompts, others = nnx.split(model, PromptParam, ...)
    prompts, others = placed.parameters(prompts), placed.parameters(chosen(others, rows))
    assert named(prompts)["encoder/prompt/prompts"].sharding.is_fully_replicated
    assert named(others)["encoder/prompt/choice"].shape == rows.shape
    here = nnx.merge(graph, prompts, others)
    found = on_host(compiled(here, "__call__", placed.batch(batch)))
    np.testing.assert_allclose(found, logits, rtol=1e-5, atol=1e-5)
