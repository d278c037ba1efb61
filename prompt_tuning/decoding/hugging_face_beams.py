"""Beam search with the rules of Hugging Face's transformers, for whoever compares with it."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from prompt_tuning.batch import PAD
from prompt_tuning.decoding import beams
from prompt_tuning.decoding.answers import Answers, Decoder, Terms
from prompt_tuning.decoding.beams import Beams
from prompt_tuning.errors import ConfigError

# What is added to the score of a hypothesis that does not count.
NONE = -1e9
NEVER = "never"

# The hypotheses, in descending order, and the rows in which the growing ones may still become
# better than the ended ones. That is remembered: once it is false it stays so.
State = tuple[Beams, Bool[Array, " B"]]


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
        beams.check("HuggingFaceBeamSearch", self.beams, self.decodes)
        if self.early_stopping not in (True, False, NEVER):
            raise ConfigError(
                f"HuggingFaceBeamSearch.early_stopping is {self.early_stopping!r}, expected True, "
                f"False or {NEVER!r}."
            )

    def __call__(self, decoder: Decoder, terms: Terms, keys: Key[Array, " B"] | None) -> Answers:
        first = beams.start(decoder, terms, self.beams, first=0, none=NONE)
        state, _ = jax.lax.while_loop(
            lambda carry: jnp.any(self._unfinished(carry, terms)),
            lambda carry: self._step(decoder, terms, carry),
            (first, jnp.ones(len(terms.ends), bool)),
        )
        # Without room for a token nothing can end: such a row says its prefix, if it has one.
        tokens, scores = beams.ended_or_growing(state)
        decodes = self.beams if self.decodes is None else self.decodes
        best_last = jnp.arange(decodes)[::-1]
        return Answers(tokens[:, best_last], scores[:, best_last])

    def _unfinished(self, carry: State, terms: Terms) -> Bool[Array, " B"]:
        """Tells which rows may still change."""
        state, hopeful = carry
        full = jnp.all(state.is_done, axis=1)
        stopped = full if self.early_stopping is True else jnp.zeros_like(full)
        return (state.position < terms.ends) & hopeful & ~stopped

    def _step(self, decoder: Decoder, terms: Terms, carry: State) -> State:
        """Continues every growing hypothesis by one token and sorts out those that end with it."""
        state, hopeful = carry
        unfinished = self._unfinished(carry, terms)
        found = beams.continued(decoder, terms, state, none=NONE)
        ended = found.says_end | (state.position + 1 >= terms.ends)[:, None]
        # A hypothesis that ends counts if it is among the best, be they ended or not.
        counts = ended & (jnp.arange(2 * self.beams) < self.beams)[None]
        length = state.position + 1 - _given(terms)
        state = beams.advanced(
            decoder,
            state,
            found,
            ended=ended,
            counts=counts,
            scores=found.log_p / self._penalty(length)[:, None],
            best=jax.lax.top_k,
            none=NONE,
            unfinished=unfinished,
        )
        return state, hopeful & (~unfinished | self._hopeful(state, terms, length))

    def _hopeful(self, state: Beams, terms: Terms, length: Int[Array, " B"]) -> Bool[Array, " B"]:
        """Tells where the best growing hypothesis is better than the worst ended one, or may be."""
        if self.early_stopping == NEVER and self.length_penalty > 0:
            length = terms.ends - _given(terms)
        best_to_come = state.live_log_p[:, 0] / self._penalty(length)
        worst = jnp.where(jnp.all(state.is_done, axis=1), jnp.min(state.done_scores, axis=1), NONE)
        return best_to_come > worst

    def _penalty(self, length: Int[Array, "..."]) -> Float[Array, "..."]:
        # Of a forced prefix nothing is said yet; its score is 0 whatever this is.
        return jnp.maximum(length, 1).astype(jnp.float32) ** self.length_penalty


def _given(terms: Terms) -> Int[Array, " B"]:
    """How many tokens each row is given."""
    return jnp.sum(terms.forced != PAD, axis=1)
