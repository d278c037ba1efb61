"""What the compiler makes of the fused attention for TPUs, without one."""

import re

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from prompt_tuning.batch import Batch
from prompt_tuning.losses import Loss
from prompt_tuning.model import T5, BaseParam, t5_config
from prompt_tuning.model.fused_attention_tpu import backward, forward
from prompt_tuning.partitioning import Partitioning
from prompt_tuning.prompts import Prompt, PromptParam, uniform

SETTINGS = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
}
P_LENGTH, INPUTS, TARGETS, ROWS = 100, 540, 16, 4


@pytest.fixture
def chips(monkeypatch, tpu_compiler):
    """Returns the chips of a topology, from the compiler alone."""
    from jax.experimental import topologies  # Loads the compiler.

    for name, value in SETTINGS.items():
        monkeypatch.setenv(name, value)

    def named(name):
        found = topologies.get_topology_desc(
            platform="tpu", topology_name=name, chips_per_host_bounds=[2, 2, 1]
        )
        return found.devices

    return named


GENERATIONS = ["v5e:2x2", "v6e:2x2", "v5p:2x2x1", "v4:2x2x1"]


@pytest.mark.parametrize(
    "generation",
    [pytest.param(one, marks=[pytest.mark.slow] if i else []) for i, one in enumerate(GENERATIONS)],
)
def test_kernels_compile_and_leave_no_scores_in_memory(chips, generation):
    device = Mesh(chips(generation)[:1], "data")
    rows = NamedSharding(device, P("data"))

    def shape(*dims, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(dims, dtype, sharding=rows)

    x = shape(1, 640, 4 * 64)
    relative, real = shape(1, 4, 640, 640, dtype=jnp.float32), shape(1, 640, dtype=jnp.bool_)

    def both(queries, keys, values, gradient, relative, real):
        heads = [y.reshape(1, 640, 4, 64) for y in (queries, keys, values, gradient)]
        there = forward(*heads[:3], relative, None, real)
        return there, backward(*heads[:3], relative, None, real, heads[3])

    program = jax.jit(both).lower(x, x, x, x, relative, real).compile()
    assert program.memory_analysis().temp_size_in_bytes < 4 * 640 * 640


def scores(program):
    """Returns the shapes of the size of all scores of a device, batch and heads included."""
    found = set(re.findall(r"(?:f32|bf16)\[\d+,\d+,640,640\]", program.as_text()))
    return {one for one in found if not one.startswith("f32[1,")}


def xxl_step(placed, attention):
    """Compiles the gradient of a prompt of XXL, of two layers of each stack."""
    config = t5_config(
        "t5_1_1_xxl",
        encoder_layers=2,
        decoder_layers=2,
        param_dtype="bfloat16",
        remat="projections",
        attention=attention,
    )

    def make():
        def prompt(**kwargs):
            return Prompt(length=P_LENGTH, init=uniform(), **kwargs)

        return T5(config, prompt=prompt, rngs=nnx.Rngs(0))

    model = nnx.eval_shape(make)
    model.hold(placed.layout)
    graph, prompt, frozen = nnx.split(model, PromptParam, ...)

    def lying(state, shardings):
        return nnx.from_flat_state(
            [
                (path, leaf.replace(leaf.get_value().update(sharding=shardings(path))))
                for path, leaf in nnx.to_flat_state(state)
            ]
        )

    base = placed.shardings(nnx.filter_state(frozen, BaseParam))
    prompt = lying(prompt, lambda path: placed.everywhere)
    frozen = lying(frozen, lambda path: base["/".join(path)])

    def tokens(length, dtype=jnp.int32):
        return jax.ShapeDtypeStruct((ROWS, length), dtype, sharding=placed.by_rows)

    batch = Batch(
        inputs=tokens(INPUTS), targets=tokens(TARGETS), weights=tokens(TARGETS, jnp.float32)
    )

    def loss(prompt, frozen, batch):
        return Loss()(nnx.merge(graph, prompt, frozen)(batch), batch)[0]

    return jax.jit(jax.grad(loss)).lower(prompt, frozen, batch).compile()


@pytest.mark.slow
@pytest.mark.parametrize("generation", GENERATIONS[:3])
def test_xxl_has_no_scores_in_memory_with_rows_and_heads_divided(chips, generation):
    placed = Partitioning(num_partitions=2).placement(chips(generation)[:4])
    assert scores(xxl_step(placed, "auto")) == set()


@pytest.mark.slow
def test_the_plain_attention_of_xxl_has(chips):
    placed = Partitioning(num_partitions=2).placement(chips("v5e:2x2"))
    assert scores(xxl_step(placed, "plain"))
