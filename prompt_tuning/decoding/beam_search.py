"""Beam search with the rules of the original (t5x `decoding.beam_search`), to the letter."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from prompt_tuning.decoding import beams
from prompt_tuning.decoding.answers import Answers, Decoder, Terms
from prompt_tuning.decoding.beams import Beams
from prompt_tuning.errors import ConfigError

# What stands in the place of no hypothesis at all; the score of answers that fill up a row.
NONE = -1e7


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
        beams.check("BeamSearch", self.beams, self.decodes)
        if self.alpha < 0:
            raise ConfigError(
                f"BeamSearch.alpha is {self.alpha}; it must be 0 or more, or the search could not "
                "tell when no better answer can follow."
            )

    def __call__(self, decoder: Decoder, terms: Terms, keys: Key[Array, " B"] | None) -> Answers:
        # In ascending order, so that before the first step the last one counts.
        state = jax.lax.while_loop(
            lambda state: jnp.any(self._unfinished(state, terms)),
            lambda state: self._step(decoder, terms, state),
            beams.start(decoder, terms, self.beams, first=-1, none=NONE),
        )
        tokens, scores = beams.ended_or_growing(state)
        decodes = self.beams if self.decodes is None else self.decodes
        return Answers(tokens[:, -decodes:], scores[:, -decodes:])

    def _unfinished(self, state: Beams, terms: Terms) -> Bool[Array, " B"]:
        """Tells which rows may still change.

        None does at its end, nor once every ended hypothesis is better than the best growing one
        can become: it has log p as it is and the longest length, which in t5x counts the start
        token.
        """
        within = state.position < terms.ends
        best_to_come = state.live_log_p[:, -1] / self._penalty(terms.ends + 1)
        settled = jnp.all(state.is_done, axis=1) & (state.done_scores[:, 0] > best_to_come)
        return within & ~settled

    def _step(self, decoder: Decoder, terms: Terms, state: Beams) -> Beams:
        """Continues every growing hypothesis by one token and sorts out those that end with it."""
        found = beams.continued(decoder, terms, state, none=NONE)
        return beams.advanced(
            decoder,
            state,
            found,
            ended=found.says_end,
            counts=found.says_end,
            scores=found.log_p / self._penalty(state.position + 1),
            best=_best,
            none=NONE,
            unfinished=self._unfinished(state, terms),
        )

    def _penalty(self, length: Int[Array, "..."]) -> Float[Array, "..."]:
        return jnp.power((5.0 + length.astype(jnp.float32)) / 6.0, self.alpha)


def _best(scores: Float[Array, "B C"], n: int) -> tuple[Float[Array, "B N"], Int[Array, "B N"]]:
    """Returns the best `n` in ascending order, and where they were; of equals the earlier."""
    best, index = jax.lax.top_k(scores, n)
    return jnp.flip(best, axis=1), jnp.flip(index, axis=1)
