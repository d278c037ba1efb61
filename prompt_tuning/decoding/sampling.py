"""One token after the other: the likeliest, or one drawn (t5x `temperature_sample`)."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from prompt_tuning.batch import PAD
from prompt_tuning.decoding.answers import Answers, Decoder, Terms
from prompt_tuning.errors import ConfigError
from prompt_tuning.model.layers import MASKED

# A lower temperature is none at all, as in t5x.
COLDEST = 1e-4

# `(logits, position) -> (tokens, log-probabilities)` of every row.
Choose = Callable[
    [Float[Array, "R V"], Int[Array, ""]], tuple[Int[Array, " R"], Float[Array, " R"]]
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Greedy:
    """Takes the likeliest token at every position; scores are the answers' log-probabilities."""

    def __call__(self, decoder: Decoder, terms: Terms, keys: Key[Array, " B"] | None) -> Answers:
        return one_by_one(decoder, terms, _likeliest, decodes=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """Draws every token, from all or from the likeliest ones.

    Attributes:
        temperature: divides the logits; up to 1e-4 it is greedy.
        top_k: draws among so many tokens (and those as likely as the last of them); 0: all.
        top_p: draws among the fewest tokens that together are as likely as this; 0: all.
        decodes: how many answers are drawn for each row.
        rescale_log_probs: score what was drawn under the changed distribution, as t5x does (greedy
            answers have score 0 then), and not under the model's own.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 0.0
    decodes: int = 1
    rescale_log_probs: bool = True

    def __post_init__(self):
        if self.temperature < 0:
            raise ConfigError(f"Sample.temperature is {self.temperature}; it must be 0 or more.")
        if self.top_k < 0:
            raise ConfigError(f"Sample.top_k is {self.top_k}; it must be 1 or more, or 0 for all.")
        if not 0 <= self.top_p <= 1:
            raise ConfigError(f"Sample.top_p is {self.top_p}; it must lie between 0 (all) and 1.")
        if self.top_k and self.top_p:
            raise ConfigError(
                f"Sample has both top_k={self.top_k} and top_p={self.top_p}. Choose one and leave "
                "the other at 0."
            )
        if self.decodes < 1:
            raise ConfigError(f"Sample.decodes is {self.decodes}; it must be 1 or more.")

    def __call__(self, decoder: Decoder, terms: Terms, keys: Key[Array, " B"] | None) -> Answers:
        if self.temperature <= COLDEST:
            choose = _certainly if self.rescale_log_probs else _likeliest
            return one_by_one(decoder, terms, choose, decodes=self.decodes)
        if keys is None:
            raise ConfigError(
                f"Sample(temperature={self.temperature}) draws at random: give `keys`, one for "
                "each row, as in jax.random.split(jax.random.key(0), rows)."
            )
        # A key of its own for each answer, so that no draw depends on the batch or on `decodes`.
        numbers = jnp.arange(self.decodes, dtype=jnp.uint32)
        own = jax.vmap(lambda key: jax.vmap(jax.random.fold_in, (None, 0))(key, numbers))(keys)
        return one_by_one(decoder, terms, self._draw(own.reshape(-1)), decodes=self.decodes)

    def _draw(self, keys: Key[Array, " R"]) -> Choose:
        def choose(logits, position):
            changed = self.reshaped(logits)
            here = jax.vmap(jax.random.fold_in, (0, None))(keys, position)
            token = jax.vmap(jax.random.categorical)(here, changed).astype(jnp.int32)
            return token, log_probability(changed if self.rescale_log_probs else logits, token)

        return choose

    def reshaped(self, logits: Float[Array, "R V"]) -> Float[Array, "R V"]:
        """Returns the logits that tokens are drawn with."""
        logits = logits / self.temperature
        if self.top_k:
            kept = logits >= _kth(logits, min(self.top_k, logits.shape[-1]))
        elif self.top_p:
            kept = logits >= _nucleus(logits, self.top_p)
        else:
            return logits
        return jnp.where(kept, logits, MASKED)


def one_by_one(decoder: Decoder, terms: Terms, choose: Choose, *, decodes: int) -> Answers:
    """Continues every row by the token that `choose` gives until all have ended."""
    batch, length = terms.forced.shape
    forced = jnp.repeat(terms.forced, decodes, axis=0)
    ends = jnp.repeat(terms.ends, decodes)

    def going_on(state):
        position, _, _, ended, _, _ = state
        return (position < length) & ~jnp.all(ended)

    def extend(state):
        position, previous, tokens, ended, scores, past = state
        logits, past = decoder.extend(previous, position, past)
        chosen, log_p = choose(logits, position)
        given = jax.lax.dynamic_index_in_dim(forced, position, axis=1, keepdims=False)
        free = given == PAD
        token = jnp.where(ended, PAD, jnp.where(free, chosen, given))
        tokens = jax.lax.dynamic_update_index_in_dim(tokens, token, position, axis=1)
        scores = scores + jnp.where(free & ~ended, log_p, 0.0)
        ended = ended | (free & (token == terms.eos_id)) | (position + 1 >= ends)
        return position + 1, token, tokens, ended, scores, past

    rows = batch * decodes
    start = jnp.full(rows, PAD, jnp.int32)
    tokens = jnp.full((rows, length), PAD, jnp.int32)
    scores = jnp.zeros(rows, jnp.float32)
    state = (jnp.int32(0), start, tokens, ends <= 0, scores, decoder.start(decodes))
    _, _, tokens, _, scores, _ = jax.lax.while_loop(going_on, extend, state)
    return ascending(tokens.reshape(batch, decodes, length), scores.reshape(batch, decodes))


def ascending(tokens: Int[Array, "B K U"], scores: Float[Array, "B K"]) -> Answers:
    """Puts the answers of each row in order, the best one last."""
    order = jnp.argsort(scores, axis=1)
    return Answers(
        jnp.take_along_axis(tokens, order[:, :, None], axis=1),
        jnp.take_along_axis(scores, order, axis=1),
    )


def log_probability(logits: Float[Array, "R V"], token: Int[Array, " R"]) -> Float[Array, " R"]:
    """Returns the log-probability of one token of each row."""
    chosen = jnp.take_along_axis(logits, token[:, None], axis=1)[:, 0]
    return chosen - jax.nn.logsumexp(logits, axis=1)


def _likeliest(logits, position):
    token = likeliest(logits)
    return token, log_probability(logits, token)


def _certainly(logits, position):
    token = likeliest(logits)
    return token, jnp.zeros(token.shape, jnp.float32)


def likeliest(logits: Float[Array, "R V"]) -> Int[Array, " R"]:
    """Returns the first token of the highest logit.

    As `argmax`, which takes ten times as long on a CPU because it compares in pairs.
    """
    tokens = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1)
    highest = logits >= jnp.max(logits, axis=1, keepdims=True)
    # Where logits are not numbers nothing is highest: the last token then, to stay in the table.
    return jnp.min(jnp.where(highest, tokens, logits.shape[1] - 1), axis=1)


def _kth(logits: Float[Array, "R V"], k: int) -> Float[Array, "R 1"]:
    """The logit of the k-th likeliest token."""
    return jax.lax.top_k(logits, k)[0][:, -1:]


def _nucleus(logits: Float[Array, "R V"], p: float) -> Float[Array, "R 1"]:
    """The lowest logit of the fewest tokens that together have probability `p`.

    logits  3   2   1   0
    p(x)   .64 .24 .09 .03
    before  0  .64 .88 .97    kept while what is likelier has less than p
    """
    descending = -jnp.sort(-logits, axis=1)
    probability = jax.nn.softmax(descending, axis=1)
    before = jnp.cumsum(probability, axis=1) - probability
    return jnp.min(jnp.where(before < p, descending, jnp.inf), axis=1, keepdims=True)
