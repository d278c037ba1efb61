"""Several prompts over one frozen model that answer together (Lester et al. 2021, section 6).

Every prompt of a model's `PromptBank` answers every row of a batch, all in one: row b of N prompts
becomes the rows b·N to b·N + N - 1. Then one of the N answers is chosen.

>>> model = attach_bank(base, [PromptFile.load(path) for path in paths])
>>> graph, prompts, frozen = nnx.split(model, PromptParam, ...)
>>> ensemble = make_ensemble(graph, combination=Vote(), length=16)
>>> opinions = ensemble(prompts, frozen, inputs)  # [B N U] and [B N]
>>> Vote().choose(["yes", "no", "yes"], opinions.scores[0])  # the texts of the first row
0
"""

import dataclasses
import math
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from prompt_tuning.batch import PAD
from prompt_tuning.decoding.answers import Strategy
from prompt_tuning.decoding.generate import GREEDY, check_length, generate
from prompt_tuning.decoding.scoring import Candidates, Inputs, rank
from prompt_tuning.errors import ConfigError
from prompt_tuning.model import T5
from prompt_tuning.prompts import Choice, PromptBank, chosen

# Of the answers to one row.
Scores = Sequence[float] | Float[Array | np.ndarray, " N"]


class Opinions(NamedTuple):
    """What every prompt of an ensemble answers to every row, in the order of the prompts.

    Attributes:
        tokens: the best answer of each prompt.
        scores: float32, what a combination chooses by.
    """

    tokens: Int[Array, "B N U"]
    scores: Float[Array, "B N"]


@runtime_checkable
class Combination(Protocol):
    """A way to make one answer of many: a frozen dataclass, see `Vote` and `MeanLogProbability`.

    `scores` runs on the device, for a batch of answers; `choose` and `choose_label` on the host,
    for one row.
    """

    def scores(self, model: T5, inputs: Inputs, opinions: Opinions) -> Float[Array, "B N"]: ...

    def choose(self, answers: Sequence[Hashable], scores: Scores) -> int: ...

    def choose_label(self, log_probs: Float[np.ndarray, "N C"]) -> int: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vote:
    """The answer that most prompts give, as in the paper; see `vote` for ties."""

    def scores(self, model: T5, inputs: Inputs, opinions: Opinions) -> Float[Array, "B N"]:
        """Returns the score that each prompt gives its own answer, which decides ties."""
        return opinions.scores

    def choose(self, answers: Sequence[Hashable], scores: Scores) -> int:
        """Returns the first prompt that gave the chosen answer.

        Args:
            answers: what is voted on, such as texts after the task's postprocessor.
            scores: of the answers, see `Opinions`.
        """
        return vote(answers, scores)

    def choose_label(self, log_probs: Float[np.ndarray, "N C"]) -> int:
        """Returns the label that is the likeliest to most prompts, see `rank_each`."""
        labels = np.argmax(log_probs, axis=1)
        return int(labels[vote(labels.tolist(), np.max(log_probs, axis=1))])


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeanLogProbability:
    """The answer whose log-probability under every prompt, not only its own, is highest on average.

    The candidates are the distinct answers that the prompts gave, or a label set. Of equally likely
    ones the first is chosen.

    Attributes:
        normalize: by the number of tokens, see `rank`.
        at_once: candidates scored at a time, see `rank`.
    """

    normalize: bool = False
    at_once: int | None = None

    def scores(self, model: T5, inputs: Inputs, opinions: Opinions) -> Float[Array, "B N"]:
        """Returns the mean log-probability of every answer, -inf for one that came before."""
        # Encodes the same rows as `answer_each` did; XLA finds that out and encodes them once.
        log_probs = rank_each(
            model,
            inputs,
            _distinct(opinions.tokens),
            normalize=self.normalize,
            at_once=self.at_once,
        )
        return jnp.mean(log_probs, axis=1)

    def choose(self, answers: Sequence[Hashable], scores: Scores) -> int:
        """Returns the first prompt that gave the chosen answer; the texts do not matter."""
        return int(np.argmax(np.asarray(scores)))

    def choose_label(self, log_probs: Float[np.ndarray, "N C"]) -> int:
        """Returns the likeliest label on average, see `rank_each`."""
        return int(np.argmax(np.mean(log_probs, axis=0)))


def vote(answers: Sequence[Hashable], scores: Scores) -> int:
    """Returns the index of the first answer that equals most of the others.

    Of answers with as many votes the one with the highest sum of scores wins, then the one that
    came first. Sums are exact, so that the order of the votes decides nothing else.

    >>> vote(["yes", "no", "yes"], [-0.3, -0.1, -0.4])
    0
    >>> vote(["yes", "no"], [-0.3, -0.1])
    1
    """
    given: dict[Hashable, list[float]] = {}
    for answer, score in zip(answers, np.asarray(scores, np.float64).tolist(), strict=True):
        given.setdefault(answer, []).append(score)
    winner = max(given, key=lambda answer: (len(given[answer]), math.fsum(given[answer])))
    return list(answers).index(winner)


def answer_each(
    model: T5,
    inputs: Inputs,
    *,
    length: int,
    strategy: Strategy = GREEDY,
    eos_id: int = 1,
    keys: Key[Array, " B"] | None = None,
    prefix: Int[Array | np.ndarray, "B F"] | None = None,
    limits: Int[Array | np.ndarray, " B"] | None = None,
) -> Opinions:
    """Returns the best answer of every prompt of the model's bank to every row.

    Each is the answer that `generate` gives with the same arguments and that prompt alone; prompts
    that sample share a row's key.

    Raises:
        ConfigError: the model has no bank, and as `generate` does.
    """
    n = prompts_of(model)
    keys, prefix, limits = (
        None if rows is None else expand(rows, n) for rows in (keys, prefix, limits)
    )
    tokens, scores = generate(
        with_every_prompt(model, inputs.shape[0]),
        expand(inputs, n),
        length=length,
        strategy=strategy,
        eos_id=eos_id,
        keys=keys,
        prefix=prefix,
        limits=limits,
    )
    shape = (inputs.shape[0], n)
    return Opinions(tokens[:, -1].reshape(*shape, length), scores[:, -1].reshape(shape))


def rank_each(
    model: T5,
    inputs: Inputs,
    candidates: Candidates,
    *,
    normalize: bool = False,
    at_once: int | None = None,
) -> Float[Array, "B N C"]:
    """Returns the log-probability of every candidate under every prompt of the model's bank.

    Arguments and errors are those of `rank`; a model without a bank is a ConfigError as well.
    """
    n = prompts_of(model)
    if candidates.ndim == 3:
        candidates = expand(candidates, n)
    every = with_every_prompt(model, inputs.shape[0])
    found = rank(every, expand(inputs, n), candidates, normalize=normalize, at_once=at_once)
    return found.reshape(inputs.shape[0], n, -1)


def make_ensemble(
    graph: nnx.GraphDef,
    *,
    combination: Combination,
    length: int,
    strategy: Strategy = GREEDY,
    eos_id: int = 1,
) -> Callable[..., Opinions]:
    """Returns `ensemble` over a split model with a bank, compiled once for every shape of input.

    It takes `(trainable, frozen, inputs, keys=None, prefix=None, limits=None)` as `make_generate`
    does, and returns the answers with the scores that `combination.choose` goes by.
    """
    check_length(length)

    def ensemble(trainable, frozen, inputs, keys=None, prefix=None, limits=None):
        model = nnx.merge(graph, trainable, frozen)
        opinions = answer_each(
            model,
            inputs,
            length=length,
            strategy=strategy,
            eos_id=eos_id,
            keys=keys,
            prefix=prefix,
            limits=limits,
        )
        return opinions._replace(scores=combination.scores(model, inputs, opinions))

    return jax.jit(ensemble)


def make_rank_each(
    graph: nnx.GraphDef, *, normalize: bool = False, at_once: int | None = None
) -> Callable[[nnx.State, nnx.State, Inputs, Candidates], Float[Array, "B N C"]]:
    """Returns `rank_each(trainable, frozen, inputs, candidates)`, compiled once for every shape."""

    def compiled(trainable, frozen, inputs, candidates):
        model = nnx.merge(graph, trainable, frozen)
        return rank_each(model, inputs, candidates, normalize=normalize, at_once=at_once)

    return jax.jit(compiled)


def prompts_of(model: T5) -> int:
    """Returns the number of prompts in a model's bank.

    Raises:
        ConfigError: it has none.
    """
    bank = model.encoder.prompt
    if not isinstance(bank, PromptBank):
        raise ConfigError(
            f"An ensemble needs a model with a `PromptBank`, this one has {type(bank).__name__}. "
            "Make it with `attach_bank(model, files)`."
        )
    return bank.size


def with_every_prompt(model: T5, batch: int) -> T5:
    """Returns the model for B·N rows, the N prompts side by side for each row of a batch."""
    n = prompts_of(model)
    graph, choice, rest = nnx.split(model, Choice, ...)
    rows = jnp.tile(jnp.arange(n, dtype=jnp.int32), batch)
    return nnx.merge(graph, chosen(choice, rows), rest)


def expand(rows: Array | np.ndarray, n: int) -> Array:
    """Repeats every row, whatever it holds, `n` times: 1 2 becomes 1 1 1 2 2 2."""
    return jnp.repeat(jnp.asarray(rows), n, axis=0)


def _distinct(tokens: Int[Array, "B N U"]) -> Int[Array, "B N U"]:
    """Leaves nothing but `PAD` of an answer that an earlier prompt gave."""
    same = jnp.all(tokens[:, :, None] == tokens[:, None, :], axis=-1)
    n = tokens.shape[1]
    repeated = jnp.any(same & np.tri(n, n, -1, dtype=bool)[None], axis=2)
    return jnp.where(repeated[:, :, None], PAD, tokens)
