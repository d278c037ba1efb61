"""Models of every family that run in milliseconds, for the laws that all of them obey."""

import dataclasses
import functools
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from prompt_tuning.batch import PAD, Batch
from prompt_tuning.model import T5, T5Config
from prompt_tuning.model.parameters import named
from prompt_tuning.model.quantization import quantize
from prompt_tuning.prompts import KeyValuePrefix, Prompt, Scale, Suffix, uniform
from tests.reference_models import QUICKLY, filled

# Every dimension has a size of its own, so that none can be taken for another.
T5_1_1 = T5Config(
    vocab_size=50,
    embed_dim=16,
    mlp_dim=24,
    num_heads=2,
    head_dim=6,
    encoder_layers=2,
    decoder_layers=3,
    relative_buckets=8,
    relative_max_distance=16,
    dtype="float32",
    unroll=False,
)
T5_1_0 = dataclasses.replace(T5_1_1, mlp_activations=("relu",), tied_logits=True)

# Each with the methods that T5 is given.
MODELS = {
    "T5 1.1": (T5_1_1, {}),
    "T5 1.1 with a prompt": (
        T5_1_1,
        {"prompt": functools.partial(Prompt, length=3, init=uniform())},
    ),
    "T5 1.0 with a suffix": (
        T5_1_0,
        {"prompt": functools.partial(Prompt, length=3, init=uniform(), combine=Suffix())},
    ),
    "T5 1.1 with a prefix": (
        T5_1_1,
        {"prefix": functools.partial(KeyValuePrefix, length=3, init=uniform())},
    ),
    "T5 1.1 with scales": (T5_1_1, {"scales": Scale}),
    "T5 1.1 in int8 with a prompt": (
        dataclasses.replace(T5_1_1, quantization="int8"),
        {"prompt": functools.partial(Prompt, length=3, init=uniform())},
    ),
}


# For laws that are long to compile: the other models obey them in the slow tests.
_QUICK = ("T5 1.1", "T5 1.1 with a prompt")
SOME_MODELS = [
    pytest.param(name, marks=() if name in _QUICK else pytest.mark.slow) for name in MODELS
]


def small_model(name="T5 1.1 with a prompt", *, kind=T5, **changes):
    """Makes a model of the table with random weights, all large enough to be seen."""
    config, methods = MODELS[name]
    config = dataclasses.replace(config, **changes)
    plain = dataclasses.replace(config, quantization=None, quantization_group=None)
    shapes = named(nnx.state(nnx.eval_shape(lambda: T5(plain, **methods, rngs=nnx.Rngs(0)))))
    arrays = {name: _drawn(name, leaf) for name, leaf in shapes.items()}
    if config.quantized:
        arrays = quantized(arrays, config.quantized)
    return filled(config, arrays, kind=kind, **methods)


def quantized(arrays, how):
    """Returns the arrays of a model with the kernels of its layers as integers and scales."""
    found = dict(arrays)
    for name, array in arrays.items():
        if "/layers/" in name and name.endswith("kernel"):
            found[name], found[f"{name}_scale"] = quantize(array, how)
    return found


def _drawn(name, leaf):
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith("scale"):
        return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
    if name == "token_embedder/embedding":
        # Small, so that what is said depends on more than the last token. Padding never is.
        scale = np.where(np.arange(leaf.shape[0]) == PAD, 0.03, 0.3)[:, None]
    else:
        scale = 1 / np.sqrt(leaf.shape[-2]) if name.endswith("kernel") else 1.0
    return (rng.normal(size=leaf.shape) * scale).astype(np.float32)


# Full rows, short rows, and one of nothing but the end token on each side.
BATCH = Batch(
    inputs=jnp.asarray([[5, 6, 7, 8, 1], [9, 1, 0, 0, 0], [1, 0, 0, 0, 0], [7, 7, 9, 1, 0]]),
    targets=jnp.asarray([[4, 3, 2, 1], [8, 9, 1, 0], [6, 5, 7, 1], [1, 0, 0, 0]]),
    weights=jnp.asarray([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 1], [1, 0, 0, 0]]),
)


@functools.partial(jax.jit, static_argnums=(0, 1), compiler_options=QUICKLY)
def _call(graph, method, state, args, kwargs):
    return getattr(nnx.merge(graph, state), method)(*args, **kwargs)


def compiled(model, method, *args, **kwargs):
    """Calls a method, compiled once for every configuration and shape."""
    graph, state = nnx.split(model)
    return _call(graph, method, state, args, kwargs)
