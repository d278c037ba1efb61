"""Proof that two checkpoints are the same model: both are loaded and asked the same."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx
from jaxtyping import Array, Float

from prompt_tuning.batch import Batch
from prompt_tuning.checkpoints import base, formats
from prompt_tuning.checkpoints.conversion import Conversion
from prompt_tuning.checkpoints.methods import attach
from prompt_tuning.checkpoints.prompt_file import PromptFile
from prompt_tuning.model import T5

ROWS, INPUTS, TARGETS = 4, 24, 12


class Verification(NamedTuple):
    """Two sides' logits over random tokens, in float32.

    Attributes:
        largest: the largest absolute difference.
        scale: standard deviation of the source's logits, to judge the difference by.
    """

    largest: float
    scale: float


def verify(wanted: Conversion) -> Verification:
    """Compares what was converted with what came of it; one model is in memory at a time.

    A prompt is compared over `wanted.base`.
    """
    if wanted.target_format in formats.PROMPT_FORMATS:
        model = _model(str(wanted.base), None, with_prompt=False)
        return _compare(
            lambda: attach(model, _source_prompt(wanted)),
            lambda: attach(model, formats.open_prompt(wanted.target, wanted.target_format)),
        )
    with_prompt = not wanted.without_prompt

    def source() -> T5:
        if wanted.source_format in formats.PROMPT_FORMATS:
            return attach(_model(str(wanted.base), None, with_prompt=False), _source_prompt(wanted))
        return _model(wanted.source, wanted.source_format, with_prompt=with_prompt)

    return _compare(
        source, lambda: _model(wanted.target, wanted.target_format, with_prompt=with_prompt)
    )


def _source_prompt(wanted: Conversion) -> PromptFile:
    return formats.open_prompt(wanted.source, wanted.source_format, task=wanted.task)


def _model(path: epath.PathLike, name: str | None, *, with_prompt: bool) -> T5:
    contents = formats.open_model(path, name)
    shapes = base.shapes(contents, dtype="float32", param_dtype="float32")
    model = base.fill(shapes, contents)
    if with_prompt and contents.methods:
        model = attach(model, formats.prompt_of(contents))
    return model


def _compare(source: Callable[[], T5], target: Callable[[], T5]) -> Verification:
    here, there = (_logits(make()) for make in (source, target))
    return Verification(float(np.max(np.abs(here - there))), float(np.std(here)))


def _logits(model: T5) -> Float[np.ndarray, "B U V"]:
    graph, state = nnx.split(model)
    return np.asarray(_forward(graph, state, _random_batch(model.config.vocab_size)))


@functools.partial(jax.jit, static_argnums=0)
def _forward(graph: nnx.GraphDef, state: nnx.State, batch: Batch) -> Float[Array, "B U V"]:
    return nnx.merge(graph, state)(batch)


def _random_batch(vocab_size: int) -> Batch:
    """Draws rows without padding and rows with it."""
    rng = np.random.default_rng(0)
    inputs = rng.integers(2, vocab_size, (ROWS, INPUTS), dtype=np.int32)
    targets = rng.integers(2, vocab_size, (ROWS, TARGETS), dtype=np.int32)
    inputs[1::2, INPUTS // 2 :] = 0
    targets[1::2, TARGETS // 2 :] = 0
    return Batch(
        inputs=jnp.asarray(inputs),
        targets=jnp.asarray(targets),
        weights=jnp.asarray(targets > 0, jnp.float32),
    )
