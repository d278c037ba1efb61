"""Beam search with the rules of Hugging Face's transformers, for whoever compares with it."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from prompt_tuning.batch import PAD
from prompt_tuning.decoding.answers import Answers, Decoder, Past, Terms
from prompt_tuning.decoding.beam_search import column, continuations
from prompt_tuning.errors import ConfigError

# What is added to the score of a hypothesis that does not count.
NONE = -1e9
NEVER = "never"


class State(NamedTuple):
    """Hypotheses of each row in descending order, growing and ended, and who may still improve."""

    position: Int[Array, ""]
    live: Int[Array, "B K U"]
    live_log_p: Float[Array, "B K"]
    done: Int[Array, "B K U"]
    done_scores: Float[Array, "B K"]
    is_done: Bool[Array, "B K"]
    hopeful: Bool[Array, " B"]
    past: Past


@dataclasses.dataclass(frozen=True, kw_only=True)
class HuggingFaceBeamSearch:
    """Keeps the best `beams` beginnings of an answer, and as many whole answers (`generate`).

    An answer of n tokens, its end token counted, has the score log p / n^length_penalty; one that
    has no room left counts as whole. See `BeamSearch` for the rules of t5x.

    Attributes:
        beams: hypotheses of each kind (`num_beams`).
        length_penalty: above 0 long answers are favoured.
        early_stopping: True ends with the first `beams` whole answers; False when the best growing
            one is not better as it is; "never" when it cannot become better.
        decodes: how many of the best answers are returned; None: all `beams`
            (`num_return_sequences`).
    """

    beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    decodes: int | None = None

    def __post_init__(self):
        if self.beams < 1:
            raise ConfigError(f"HuggingFaceBeamSearch.beams is {self.beams}; it must be 1 or more.")
        if self.early_stopping not in (True, False, NEVER):
            raise ConfigError(
                f"HuggingFaceBeamSearch.early_stopping is {self.early_stopping!r}, expected True, "
                f"False or {NEVER!r}."
            )
        if self.decodes is not None and not 1 <= self.decodes <= self.beams:
            raise ConfigError(
                f"HuggingFaceBeamSearch.decodes is {self.decodes}, but {self.beams} beams give "
                f"from 1 to {self.beams} answers."
            )

    def __call__(self, decoder: Decoder, terms: Terms, keys: Key[Array, " B"] | None) -> Answers:
        state = jax.lax.while_loop(
            lambda state: jnp.any(self._unfinished(state, terms)),
            lambda state: self._step(decoder, terms, state),
            _start(decoder, terms, self.beams),
        )
        # Without room for a token nothing can end: such a row says its prefix, if it has one.
        any_done = jnp.any(state.is_done, axis=1)[:, None]
        tokens = jnp.where(any_done[:, :, None], state.done, state.live)
        scores = jnp.where(any_done, state.done_scores, state.live_log_p)
        decodes = self.beams if self.decodes is None else self.decodes
        best_last = jnp.arange(decodes)[::-1]
        return Answers(tokens[:, best_last], scores[:, best_last])

    def _unfinished(self, state: State, terms: Terms) -> Bool[Array, " B"]:
        """Tells which rows may still change."""
        full = jnp.all(state.is_done, axis=1)
        stopped = full if self.early_stopping is True else jnp.zeros_like(full)
        return (state.position < terms.ends) & state.hopeful & ~stopped

    def _step(self, decoder: Decoder, terms: Terms, state: State) -> State:
        """Continues every live hypothesis by one token and sorts out those that end with it."""
        batch, beams, _ = state.live.shape
        position = state.position
        previous = jnp.where(position > 0, column(state.live, position - 1), PAD)
        logits, past = decoder.extend(previous.reshape(-1), position, state.past)

        log_p, beam, token = continuations(logits, state.live_log_p)
        given = jax.lax.dynamic_index_in_dim(terms.forced, position, axis=1)  # [B 1]
        free = given == PAD
        only_first = jnp.full(2 * beams, NONE, jnp.float32).at[0].set(0.0)[None]
        log_p = jnp.where(free, log_p, only_first)
        token = jnp.where(free, token, given)
        said = jnp.take_along_axis(state.live, beam[:, :, None], axis=1)
        said = jax.lax.dynamic_update_index_in_dim(said, token, position, axis=2)

        # Sums as there: what does not count is moved far down, not left out.
        no_room = (position + 1 >= terms.ends)[:, None]
        ended = ((token == terms.eos_id) & free) | no_room
        live_log_p, kept = jax.lax.top_k(log_p + jnp.where(ended, NONE, 0.0), beams)
        live = jnp.take_along_axis(said, kept[:, :, None], axis=1)
        # A hypothesis that ends counts if it is among the best, be they ended or not.
        counts = ended & (jnp.arange(2 * beams) < beams)[None]
        length = position + 1 - jnp.sum(terms.forced != PAD, axis=1, keepdims=True)
        scores = log_p / self._penalty(length) + jnp.where(counts, 0.0, NONE)
        done_scores, best = jax.lax.top_k(
            jnp.concatenate([state.done_scores, scores], axis=1), beams
        )
        done = jnp.take_along_axis(
            jnp.concatenate([state.done, said], axis=1), best[:, :, None], axis=1
        )
        is_done = jnp.concatenate([state.is_done, counts], axis=1)
        is_done = jnp.take_along_axis(is_done, best, axis=1)

        # Rows that are finished stay as they are while others go on.
        same = ~self._unfinished(state, terms)
        rows, beams_of_rows = same[:, None], same[:, None, None]
        sources = jnp.take_along_axis(beam, kept, axis=1) + beams * jnp.arange(batch)[:, None]
        return State(
            position=position + 1,
            live=jnp.where(beams_of_rows, state.live, live),
            live_log_p=jnp.where(rows, state.live_log_p, live_log_p),
            done=jnp.where(beams_of_rows, state.done, done),
            done_scores=jnp.where(rows, state.done_scores, done_scores),
            is_done=jnp.where(rows, state.is_done, is_done),
            hopeful=state.hopeful
            & (same | self._hopeful(terms, length[:, 0], live_log_p, done_scores, is_done)),
            past=decoder.reorder(past, sources.reshape(-1)),
        )

    def _hopeful(
        self,
        terms: Terms,
        length: Int[Array, " B"],
        live_log_p: Float[Array, "B K"],
        done_scores: Float[Array, "B K"],
        is_done: Bool[Array, "B K"],
    ) -> Bool[Array, " B"]:
        """Tells in which rows the best growing hypothesis is, or may become, better than the worst
        whole answer.
        """
        if self.early_stopping == NEVER and self.length_penalty > 0:
            length = terms.ends - jnp.sum(terms.forced != PAD, axis=1)
        best_to_come = live_log_p[:, 0] / self._penalty(length)
        worst = jnp.where(jnp.all(is_done, axis=1), jnp.min(done_scores, axis=1), NONE)
        return best_to_come > worst

    def _penalty(self, length: Int[Array, "..."]) -> Float[Array, "..."]:
        # Of a forced prefix nothing is said yet; its score is 0 whatever this is.
        return jnp.maximum(length, 1).astype(jnp.float32) ** self.length_penalty


def _start(decoder: Decoder, terms: Terms, beams: int) -> State:
    batch, length = terms.forced.shape
    nothing = jnp.full((batch, beams), NONE, jnp.float32)
    tokens = jnp.full((batch, beams, length), PAD, jnp.int32)
    return State(
        position=jnp.int32(0),
        live=tokens,
        # All beams begin alike: only one of them counts.
        live_log_p=nothing.at[:, 0].set(0.0),
        done=tokens,
        done_scores=nothing,
        is_done=jnp.zeros((batch, beams), bool),
        hopeful=jnp.ones(batch, bool),
        past=decoder.start(beams),
    )
