"""Decoding with an encoder-decoder: encode once, then one token at a time."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Int, Key

from prompt_tuning.batch import PAD
from prompt_tuning.decoding.answers import Answers, Decoder, Strategy, Terms
from prompt_tuning.decoding.sampling import Greedy
from prompt_tuning.errors import ConfigError
from prompt_tuning.model import T5
from prompt_tuning.model.attention import heads_first
from prompt_tuning.model.blocks import each_layer, unstacked

GREEDY = Greedy()
# Taking the blocks out of their stack is a sixth of every step (T5 1.1 small on a CPU). Doing so
# once takes as long as that of eight steps; answers often end before the last.
MANY_STEPS = 16
SMALL_DECODER = 1 << 30  # Bytes.
# `(trainable, frozen, inputs, keys=None, prefix=None, limits=None) -> answers`
Generate = Callable[..., Answers]


def generate(
    model: T5,
    inputs: Int[Array | np.ndarray, "B T"],
    *,
    length: int,
    strategy: Strategy = GREEDY,
    eos_id: int = 1,
    keys: Key[Array, "..."] | None = None,
    prefix: Int[Array | np.ndarray, "_ F"] | None = None,
    limits: Int[Array | np.ndarray, "..."] | None = None,
) -> Answers:
    """Answers every row of `inputs`, in up to `length` tokens.

    The encoder's output, and the decoder's keys and values over it, are made once a row, however
    many answers it gets; the loop ends when no answer can change.

    Args:
        model: the model.
        inputs: token ids, padded on the right.
        length: positions of an answer, `prefix` and end token included.
        strategy: how tokens are chosen: `Greedy`, `Sample`, `BeamSearch`.
        eos_id: the end token.
        keys: one random key for each row, so that what is drawn for a row does not depend on the
            batch it is in.
        prefix: the first tokens of each answer, `PAD` where they are to be found. They are part
            of the answer, but not of its score, and an end token among them ends nothing.
        limits: the most tokens of each answer after its prefix.

    Raises:
        ConfigError: an impossible length, a prefix that is longer, keys that are needed and
            missing, or keys, prefix or limits of other rows than `inputs` has.
    """
    batch = inputs.shape[0]
    check_length(length)
    for name, given in {"keys": keys, "prefix": prefix, "limits": limits}.items():
        if given is not None and given.shape[:1] != (batch,):
            raise ConfigError(
                f"`{name}` has shape {given.shape}, but there are {batch} rows of inputs. Give one "
                f"of `{name}` for each row."
            )
    if prefix is None:
        forced = jnp.full((batch, length), PAD, jnp.int32)
    else:
        forced = _forced(jnp.asarray(prefix, jnp.int32), length)
    ends = jnp.full(batch, length, jnp.int32)
    if limits is not None:
        given = jnp.sum(forced != PAD, axis=1, dtype=jnp.int32)
        ends = jnp.minimum(ends, given + jnp.asarray(limits, jnp.int32))
    terms = Terms(forced, ends, eos_id)
    return strategy(t5_decoder(model, jnp.asarray(inputs), length), terms, keys)


def greedy(
    model: T5, inputs: Int[Array | np.ndarray, "B T"], *, length: int, eos_id: int = 1
) -> Int[Array, "B U"]:
    """Returns the most likely token at every position, up to `length` of them.

    A row ends with its end token; `PAD` follows.
    """
    return generate(model, inputs, length=length, eos_id=eos_id).tokens[:, -1]


def make_generate(
    graph: nnx.GraphDef, *, length: int, strategy: Strategy = GREEDY, eos_id: int = 1
) -> Generate:
    """Returns `generate` over a split model, compiled once for every shape of input.

    It takes `(trainable, frozen, inputs, keys=None, prefix=None, limits=None)`, see `generate`.
    """
    check_length(length)

    def generate_split(trainable, frozen, inputs, keys=None, prefix=None, limits=None):
        return generate(
            nnx.merge(graph, trainable, frozen),
            inputs,
            length=length,
            strategy=strategy,
            eos_id=eos_id,
            keys=keys,
            prefix=prefix,
            limits=limits,
        )

    return jax.jit(generate_split)


def t5_decoder(
    model: T5, inputs: Int[Array, "B T"], length: int, *, apart: bool | None = None
) -> Decoder:
    """Encodes the inputs and returns what a loop needs to answer them in `length` tokens.

    `apart` takes the stack of blocks apart at the start instead of at every step, which is faster
    for many steps and takes memory for another decoder; None decides by the lengths of both.
    """
    encoded = model.encode(inputs)
    cross = heads_first(model.cross_keys_values(encoded))
    rows = inputs.shape[0]
    if apart is None:
        stack = jax.tree.leaves(nnx.state(model.decoder.layers))
        apart = length >= MANY_STEPS and sum(one.nbytes for one in stack) <= SMALL_DECODER
    blocks = unstacked(model.decoder.layers) if apart else None
    across = each_layer(cross) if apart else cross

    def start(answers):
        past = model.empty_past(rows * answers, length)
        return each_layer(past) if apart else past

    def extend(tokens, position, past):
        return model.decode_next(tokens, position, past, across, encoded.real, blocks)

    def reorder(past, sources):
        if sources.shape[1] == 1:  # nothing to choose from
            return past
        axis = 0 if apart else 1

        def chosen(one: jax.Array) -> jax.Array:
            # Input by input, so that no device needs the rows of another.
            by_input = one.reshape(*one.shape[:axis], *sources.shape, *one.shape[axis + 1 :])
            take = jax.vmap(functools.partial(jnp.take, axis=axis), (axis, 0), axis)
            return take(by_input, sources).reshape(one.shape)

        return jax.tree.map(chosen, past)

    return Decoder(start, extend, reorder)


def check_length(length: int) -> None:
    """Raises `ConfigError` unless an answer has room for a token."""
    if length < 1:
        raise ConfigError(f"The length of answers is {length}; it must be 1 or more.")


def _forced(prefix: Int[Array, "B F"], length: int) -> Int[Array, "B U"]:
    given = prefix.shape[1]
    if given > length:
        raise ConfigError(
            f"The prefix has {given} tokens, but answers have only {length}. Raise `length` above "
            "the prefix, which is part of the answer."
        )
    return jnp.pad(prefix, ((0, 0), (0, length - given)), constant_values=PAD)
