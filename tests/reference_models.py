"""The models whose numbers lie in `tests/golden`, with their weights."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from prompt_tuning.batch import Batch
from prompt_tuning.checkpoints.mapping import from_t5x
from prompt_tuning.model import T5, T5Config
from prompt_tuning.model.parameters import replaced
from prompt_tuning.prompts import Prompt, uniform

GOLDEN = pathlib.Path(__file__).parent / "golden"

CONFIGS = {
    "A": T5Config(
        vocab_size=512,
        embed_dim=32,
        mlp_dim=64,
        num_heads=4,
        head_dim=8,
        encoder_layers=2,
        decoder_layers=2,
        dtype="float32",
    ),
    "C": T5Config(
        vocab_size=272,
        embed_dim=40,
        mlp_dim=56,
        num_heads=3,
        head_dim=16,
        encoder_layers=2,
        decoder_layers=1,
        dtype="float32",
    ),
}
PROMPT_LENGTHS = {"A": 5, "C": 7}
# Tests compile for longer than they compute. This takes a quarter of the time, and moves logits by
# 1e-6 at most.
QUICKLY = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
BATCHES = (*(f"batch{i}" for i in range(5)), "long", "decode")


def read(name):
    """Returns the arrays of one file by name."""
    with np.load(GOLDEN / name) as arrays:
        return dict(arrays)


def filled(config, arrays, *, kind=T5, **methods):
    """Makes a model of the given arrays, which are named as ours, without drawing any."""
    model = nnx.eval_shape(lambda: kind(config, **methods, rngs=nnx.Rngs(0)))
    graph, state = nnx.split(model)
    return nnx.merge(graph, replaced(state, arrays))


def reference_model(name, *, with_prompt=True, config=None, changes=None):
    """Makes model A or C; `changes` replace some of its t5x arrays."""
    arrays = read(f"{name}/params.npz") | (changes or {})
    prompt = functools.partial(Prompt, length=PROMPT_LENGTHS[name], init=uniform())
    if not with_prompt:
        del arrays["encoder/prompt/prompt/prompt"]
        prompt = None
    return filled(config or CONFIGS[name], from_t5x(arrays), prompt=prompt)


def reference_batches(name):
    """Returns what the original fed model A or C, by name of the batch."""
    arrays = read(f"{name}/batches.npz")
    return {
        batch: Batch(
            inputs=jnp.asarray(arrays[f"{batch}/encoder_input_tokens"]),
            targets=jnp.asarray(arrays[f"{batch}/decoder_target_tokens"]),
            weights=jnp.asarray(arrays[f"{batch}/decoder_loss_weights"]),
        )
        for batch in BATCHES
    }


@functools.partial(jax.jit, static_argnums=0, compiler_options=QUICKLY)
def _forward(graph, state, batch):
    model = nnx.merge(graph, state)
    encoded = model.encode(batch.inputs)
    return encoded.hidden, model.decode(encoded, batch.targets)


def forward(model, batch):
    """Returns the encoder's outputs and the logits, compiled once for every model and shape."""
    return _forward(*nnx.split(model), batch)
