"""Beam search with the rules of the original (t5x `decoding.beam_search`), to the letter."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from prompt_tuning.batch import PAD
from prompt_tuning.decoding.answers import Answers, Decoder, Past, Terms
from prompt_tuning.errors import ConfigError

# What stands in the place of no hypothesis at all; the score of answers that fill up a row.
NONE = -1e7


class State(NamedTuple):
    """Hypotheses of each row, in ascending order: still growing, and ended by their end token."""

    position: Int[Array, ""]
    live: Int[Array, "B K U"]
    live_log_p: Float[Array, "B K"]
    done: Int[Array, "B K U"]
    done_scores: Float[Array, "B K"]
    is_done: Bool[Array, "B K"]
    past: Past


@dataclasses.dataclass(frozen=True, kw_only=True)
class BeamSearch:
    """Keeps the best `beams` beginnings of an answer, and as many whole answers.

    An answer of n tokens, its end token counted, has the score log p / ((5 + n) / 6)^alpha. Where
    no hypothesis has ended, the answers are those still growing, under their bare log p; where
    fewer have than are asked for, empty answers of score -1e7 come first. With one beam this is
    what the original evaluates with; unlike `Greedy` it keeps an answer that ends where going on
    is likelier, and returns it unless the longer one becomes better.

    Attributes:
        beams: hypotheses of each kind.
        alpha: how much long answers are favoured; 0 compares bare log-probabilities.
        decodes: how many of the best answers are returned; None: all `beams`.
    """

    beams: int = 1
    alpha: float = 0.6
    decodes: int | None = None

    def __post_init__(self):
        if self.beams < 1:
            raise ConfigError(f"BeamSearch.beams is {self.beams}; it must be 1 or more.")
        if self.alpha < 0:
            raise ConfigError(
                f"BeamSearch.alpha is {self.alpha}; it must be 0 or more, or the search could not "
                "tell when no better answer can follow."
            )
        if self.decodes is not None and not 1 <= self.decodes <= self.beams:
            raise ConfigError(
                f"BeamSearch.decodes is {self.decodes}, but {self.beams} beams give from 1 to "
                f"{self.beams} answers. Set `beams` to {self.decodes} or more, or ask for fewer."
            )

    def __call__(self, decoder: Decoder, terms: Terms, keys: Key[Array, " B"] | None) -> Answers:
        batch, length = terms.forced.shape
        state = _start(decoder, batch, length, self.beams)
        state = jax.lax.while_loop(
            lambda state: jnp.any(_unfinished(state, terms, self.alpha)),
            lambda state: _step(decoder, terms, state, self.alpha),
            state,
        )
        any_done = jnp.any(state.is_done, axis=1)
        tokens = jnp.where(any_done[:, None, None], state.done, state.live)
        scores = jnp.where(any_done[:, None], state.done_scores, state.live_log_p)
        decodes = self.beams if self.decodes is None else self.decodes
        return Answers(tokens[:, -decodes:], scores[:, -decodes:])


def continuations(
    logits: Float[Array, "R V"], live_log_p: Float[Array, "B K"]
) -> tuple[Float[Array, "B C"], Int[Array, "B C"], Int[Array, "B C"]]:
    """Returns log p, beam and last token of the 2K likeliest continuations, the best first.

    So many, because K of them may end, and K more must be left to go on.
    """
    batch, beams = live_log_p.shape
    vocabulary = logits.shape[-1]
    log_p = jax.nn.log_softmax(logits).reshape(batch, beams, vocabulary) + live_log_p[:, :, None]
    best, index = jax.lax.top_k(log_p.reshape(batch, -1), 2 * beams)
    return best, index // vocabulary, index % vocabulary


def column(tokens: Int[Array, "B K U"], position: Int[Array, ""]) -> Int[Array, "B K"]:
    """Returns the tokens at one position."""
    return jax.lax.dynamic_index_in_dim(tokens, position, axis=2, keepdims=False)


def _start(decoder: Decoder, batch: int, length: int, beams: int) -> State:
    nothing = jnp.full((batch, beams), NONE, jnp.float32)
    tokens = jnp.full((batch, beams, length), PAD, jnp.int32)
    return State(
        position=jnp.int32(0),
        live=tokens,
        # All beams begin alike: only one of them counts.
        live_log_p=nothing.at[:, -1].set(0.0),
        done=tokens,
        done_scores=nothing,
        is_done=jnp.zeros((batch, beams), bool),
        past=decoder.start(beams),
    )


def _unfinished(state: State, terms: Terms, alpha: float) -> Bool[Array, " B"]:
    """Tells which rows may still change.

    None does at its end, nor once every ended hypothesis is better than the best growing one can
    become: it has log p as it is and the longest length, which in t5x counts the start token.
    """
    within = state.position < terms.ends
    best_to_come = state.live_log_p[:, -1] / _penalty(alpha, terms.ends + 1)
    settled = jnp.all(state.is_done, axis=1) & (state.done_scores[:, 0] > best_to_come)
    return within & ~settled


def _step(decoder: Decoder, terms: Terms, state: State, alpha: float) -> State:
    """Continues every live hypothesis by one token and sorts out those that end with it."""
    batch, beams, _ = state.live.shape
    position = state.position
    previous = jnp.where(position > 0, column(state.live, position - 1), PAD)
    logits, past = decoder.extend(previous.reshape(-1), position, state.past)

    log_p, beam, token = continuations(logits, state.live_log_p)
    given = jax.lax.dynamic_index_in_dim(terms.forced, position, axis=1)  # [B 1]
    free = given == PAD
    # A given token costs nothing and is said by one beam alone: all others would say the same.
    only_first = jnp.full(2 * beams, NONE, jnp.float32).at[0].set(0.0)[None]
    log_p = jnp.where(free, log_p, only_first)
    token = jnp.where(free, token, given)
    said = jnp.take_along_axis(state.live, beam[:, :, None], axis=1)
    said = jax.lax.dynamic_update_index_in_dim(said, token, position, axis=2)

    # Sums and comparisons as in t5x: what does not count is moved far down, not left out.
    ended = (token == terms.eos_id) & free
    live_log_p, kept = _best(log_p + jnp.where(ended, NONE, 0.0), beams)
    live = jnp.take_along_axis(said, kept[:, :, None], axis=1)
    scores = log_p / _penalty(alpha, position + 1) + jnp.where(ended, 0.0, NONE)
    done_scores, chosen = _best(jnp.concatenate([state.done_scores, scores], axis=1), beams)
    done = jnp.concatenate([state.done, said], axis=1)
    is_done = jnp.concatenate([state.is_done, ended], axis=1)

    # Rows that are finished stay as they are while others go on.
    same = ~_unfinished(state, terms, alpha)[:, None]
    sources = jnp.take_along_axis(beam, kept, axis=1) + beams * jnp.arange(batch)[:, None]
    return State(
        position=position + 1,
        live=jnp.where(same[:, :, None], state.live, live),
        live_log_p=jnp.where(same, state.live_log_p, live_log_p),
        done=jnp.where(
            same[:, :, None], state.done, jnp.take_along_axis(done, chosen[:, :, None], axis=1)
        ),
        done_scores=jnp.where(same, state.done_scores, done_scores),
        is_done=jnp.where(same, state.is_done, jnp.take_along_axis(is_done, chosen, axis=1)),
        past=decoder.reorder(past, sources.reshape(-1)),
    )


def _best(scores: Float[Array, "B C"], n: int) -> tuple[Float[Array, "B N"], Int[Array, "B N"]]:
    """Returns the best `n` in ascending order, and where they were; of equals the earlier."""
    best, index = jax.lax.top_k(scores, n)
    return jnp.flip(best, axis=1), jnp.flip(index, axis=1)


def _penalty(alpha: float, length: Int[Array, "..."]) -> Float[Array, "..."]:
    return jnp.power((5.0 + length.astype(jnp.float32)) / 6.0, alpha)
