"""What every beam search does alike: hypotheses that grow, and those that have ended.

A search decides what a hypothesis is worth, which ones count as ended, and when to stop.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from prompt_tuning.batch import PAD
from prompt_tuning.decoding.answers import Answers, Decoder, Past, Terms
from prompt_tuning.errors import ConfigError

# `(scores, n) -> (the best n, where they were)`, in the order that a search keeps hypotheses in.
Best = Callable[[Float[Array, "B C"], int], tuple[Float[Array, "B N"], Int[Array, "B N"]]]


class Beams(NamedTuple):
    """Hypotheses of each row, in the order of their search: still growing, and ended."""

    position: Int[Array, ""]
    live: Int[Array, "B K U"]
    live_log_p: Float[Array, "B K"]
    done: Int[Array, "B K U"]
    done_scores: Float[Array, "B K"]
    is_done: Bool[Array, "B K"]
    past: Past


class Continued(NamedTuple):
    """The 2K likeliest continuations of the hypotheses of each row, the best first.

    So many, because K of them may end, and K more must be left to go on.

    Attributes:
        log_p: of the whole hypothesis.
        beam: which one was continued.
        said: its tokens, the new one included.
        says_end: whether that is an end token that was not given.
        past: of the hypotheses that were continued.
    """

    log_p: Float[Array, "B C"]
    beam: Int[Array, "B C"]
    said: Int[Array, "B C U"]
    says_end: Bool[Array, "B C"]
    past: Past


def check(search: str, beams: int, decodes: int | None) -> None:
    """Raises ConfigError unless a search has hypotheses, and as many as answers are wanted."""
    if beams < 1:
        raise ConfigError(f"{search}.beams is {beams}; it must be 1 or more.")
    if decodes is not None and not 1 <= decodes <= beams:
        raise ConfigError(
            f"{search}.decodes is {decodes}, but {beams} beams give from 1 to {beams} answers. "
            f"Set `beams` to {decodes} or more, or ask for fewer."
        )


def start(decoder: Decoder, terms: Terms, beams: int, *, first: int, none: float) -> Beams:
    """Returns the hypotheses before the first token.

    Args:
        decoder: continues them.
        terms: of the answers.
        beams: K.
        first: the one that counts: all begin alike.
        none: the score of no hypothesis at all.
    """
    batch, length = terms.forced.shape
    nothing = jnp.full((batch, beams), none, jnp.float32)
    tokens = jnp.full((batch, beams, length), PAD, jnp.int32)
    return Beams(
        position=jnp.int32(0),
        live=tokens,
        live_log_p=nothing.at[:, first].set(0.0),
        done=tokens,
        done_scores=nothing,
        is_done=jnp.zeros((batch, beams), bool),
        past=decoder.start(beams),
    )


def continued(decoder: Decoder, terms: Terms, state: Beams, *, none: float) -> Continued:
    """Continues every growing hypothesis by one token."""
    batch, beams, _ = state.live.shape
    position = state.position
    previous = jax.lax.dynamic_index_in_dim(state.live, position - 1, axis=2, keepdims=False)
    previous = jnp.where(position > 0, previous, PAD)
    logits, past = decoder.extend(previous.reshape(-1), position, state.past)

    vocabulary = logits.shape[-1]
    every = jax.nn.log_softmax(logits).reshape(batch, beams, vocabulary)
    every = every + state.live_log_p[:, :, None]
    log_p, index = jax.lax.top_k(every.reshape(batch, -1), 2 * beams)
    beam, token = index // vocabulary, index % vocabulary

    given = jax.lax.dynamic_index_in_dim(terms.forced, position, axis=1)  # [B 1]
    free = given == PAD
    # A given token costs nothing and is said by one beam alone: all others would say the same.
    only_first = jnp.full(2 * beams, none, jnp.float32).at[0].set(0.0)[None]
    log_p = jnp.where(free, log_p, only_first)
    token = jnp.where(free, token, given)
    said = jnp.take_along_axis(state.live, beam[:, :, None], axis=1)
    said = jax.lax.dynamic_update_index_in_dim(said, token, position, axis=2)
    return Continued(log_p, beam, said, (token == terms.eos_id) & free, past)


def advanced(
    decoder: Decoder,
    state: Beams,
    found: Continued,
    *,
    ended: Bool[Array, "B C"],
    counts: Bool[Array, "B C"],
    scores: Float[Array, "B C"],
    best: Best,
    none: float,
    unfinished: Bool[Array, " B"],
) -> Beams:
    """Keeps the best continuations, of those that go on and of those that have ended.

    Args:
        decoder: continues hypotheses.
        state: before the continuations.
        found: the continuations.
        ended: which of them do not go on.
        counts: which are answers.
        scores: what they are worth as answers.
        best: chooses and orders.
        none: what is added to what does not count. Sums and comparisons are as in the originals:
            it is moved far down, not left out.
        unfinished: the rows that may change; the others stay as they are.
    """
    beams = state.live.shape[1]
    live_log_p, kept = best(found.log_p + jnp.where(ended, none, 0.0), beams)
    scores = scores + jnp.where(counts, 0.0, none)
    done_scores, chosen = best(jnp.concatenate([state.done_scores, scores], axis=1), beams)
    done = jnp.concatenate([state.done, found.said], axis=1)
    is_done = jnp.concatenate([state.is_done, counts], axis=1)
    sources = jnp.take_along_axis(found.beam, kept, axis=1)

    same = ~unfinished[:, None]
    same_tokens = same[:, :, None]
    live = jnp.take_along_axis(found.said, kept[:, :, None], axis=1)
    done = jnp.take_along_axis(done, chosen[:, :, None], axis=1)
    is_done = jnp.take_along_axis(is_done, chosen, axis=1)
    return Beams(
        position=state.position + 1,
        live=jnp.where(same_tokens, state.live, live),
        live_log_p=jnp.where(same, state.live_log_p, live_log_p),
        done=jnp.where(same_tokens, state.done, done),
        done_scores=jnp.where(same, state.done_scores, done_scores),
        is_done=jnp.where(same, state.is_done, is_done),
        past=decoder.reorder(found.past, sources),
    )


def ended_or_growing(state: Beams) -> Answers:
    """Returns the ended hypotheses, and the growing ones of rows that have none, in their order."""
    any_done = jnp.any(state.is_done, axis=1)[:, None]
    return Answers(
        jnp.where(any_done[:, :, None], state.done, state.live),
        jnp.where(any_done, state.done_scores, state.live_log_p),
    )
