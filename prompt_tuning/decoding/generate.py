"""Decoding: encode once, then one token at a time until every row has ended."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Int

from prompt_tuning.batch import PAD
from prompt_tuning.model import T5

Generate = Callable[[nnx.State, nnx.State, Int[Array | np.ndarray, "B T"]], Int[Array, "B U"]]


def greedy(
    model: T5, inputs: Int[Array | np.ndarray, "B T"], *, length: int, eos_id: int = 1
) -> Int[Array, "B U"]:
    """Returns the most likely token at every position, up to `length` of them.

    A row ends with its end token; `PAD` follows. The encoder's output, and the decoder's keys and
    values over it, are computed once; the loop ends when every row has.
    """
    batch = inputs.shape[0]
    encoded = model.encode(jnp.asarray(inputs))
    cross = model.cross_keys_values(encoded)

    def going_on(carry):
        position, _, ended, _ = carry
        return (position < length) & ~jnp.all(ended)

    def extend(carry):
        position, tokens, ended, past = carry
        previous = jax.lax.dynamic_slice_in_dim(tokens, position, 1, axis=1)[:, 0]
        logits, past = model.decode_next(previous, position, past, cross, encoded.real)
        chosen = jnp.argmax(logits, axis=-1).astype(tokens.dtype)
        token = jnp.where(ended, jnp.full_like(chosen, PAD), chosen)
        tokens = jax.lax.dynamic_update_slice_in_dim(tokens, token[:, None], position + 1, axis=1)
        return position + 1, tokens, ended | (token == eos_id), past

    # One column more than is returned: the start token, which is PAD as well.
    tokens = jnp.full((batch, length + 1), PAD, jnp.int32)
    ended = jnp.zeros(batch, bool)
    carry = (jnp.int32(0), tokens, ended, model.empty_past(batch, length))
    return jax.lax.while_loop(going_on, extend, carry)[1][:, 1:]


def make_generate(graph: nnx.GraphDef, *, length: int, eos_id: int = 1) -> Generate:
    """Returns `generate(prompt, frozen, inputs) -> tokens`, compiled once per input length."""

    def generate(prompt, frozen, inputs):
        return greedy(nnx.merge(graph, prompt, frozen), inputs, length=length, eos_id=eos_id)

    return jax.jit(generate)
