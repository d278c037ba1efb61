"""How a model answers examples: by decoding, or by choosing the likeliest of a set of labels.

With several prompts in its bank, a model gives one answer that they agree on (an ensemble).
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from prompt_tuning.batch import PAD, Batch
from prompt_tuning.decoding import BeamSearch, Strategy, make_generate
from prompt_tuning.decoding.ensemble import Combination, make_ensemble, make_rank_each
from prompt_tuning.decoding.scoring import make_rank, make_score
from prompt_tuning.errors import ConfigError, nearest
from prompt_tuning.partitioning import on_host
from prompt_tuning.training.compilations import Compilations
from prompt_tuning.vocabulary import Vocabulary


class Answer(NamedTuple):
    """What a model says to one example.

    `score` is what the strategy ranks answers by, usually a log-probability; `others` are the other
    answers that it found, the worst first.
    """

    text: str
    tokens: Int[np.ndarray, " U"]
    score: float
    others: tuple["Answer", ...] = ()


# Answers the examples of a batch, whose numbers in their split are given: the other rows are empty.
Answerer = Callable[[nnx.State, nnx.State, Batch, Sequence[int]], list[Answer]]


@runtime_checkable
class Answering(Protocol):
    """A way to answer; `prepare` is called once for a graph and returns what is compiled."""

    def prepare(
        self,
        graph: nnx.GraphDef,
        *,
        length: int,
        label_names: Sequence[str] | None,
        combination: Combination | None,
    ) -> Answerer:
        """Prepares to answer.

        Args:
            graph: of the split model.
            length: the most tokens of an answer, its end token included.
            label_names: of the task, if its answers are classes.
            combination: how the prompts of the model's bank agree; None for a model without.
        """
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decode:
    """Writes an answer token by token.

    Of an ensemble every prompt writes one, and one of these is taken.

    Attributes:
        vocabulary: turns tokens into text.
        strategy: how the next token is chosen (DECODING). As in t5x this is a beam search with one
            beam, which may give another answer than always taking the likeliest token.
        seed: for strategies that draw; each example draws the same whatever batch it is in.
    """

    vocabulary: Vocabulary
    strategy: Strategy = dataclasses.field(default_factory=BeamSearch)
    seed: int = 0

    def prepare(
        self,
        graph: nnx.GraphDef,
        *,
        length: int,
        label_names: Sequence[str] | None = None,
        combination: Combination | None = None,
    ) -> Answerer:
        del label_names
        options = {
            "strategy": self.strategy,
            "length": length,
            "eos_id": self.vocabulary.eos_id,
        }
        if combination is None:
            generate = make_generate(graph, **options)
        else:
            generate = make_ensemble(graph, combination=combination, **options)
        compilations = Compilations("Decoding")

        def answer(
            trainable: nnx.State, frozen: nnx.State, batch: Batch, ids: Sequence[int]
        ) -> list[Answer]:
            rows = batch.inputs.shape[0]
            keys = row_keys(self.seed, padded_ids(ids, rows))
            limits = row_limits(len(ids), rows, length)
            with compilations.counted(batch):
                found = generate(trainable, frozen, batch.inputs, keys=keys, limits=limits)
            tokens, scores = (on_host(one)[: len(ids)] for one in found)
            return [self._read(*row, combination) for row in zip(tokens, scores, strict=True)]

        return answer

    def _read(
        self,
        tokens: Int[np.ndarray, "K U"],
        scores: Float[np.ndarray, " K"],
        combination: Combination | None,
    ) -> Answer:
        """Returns the answers to one example as text, the chosen one with the others in it."""
        texts = [self.vocabulary.decode(row) for row in tokens]
        every = [Answer(*one) for one in zip(texts, tokens, scores.tolist(), strict=True)]
        chosen = every.pop(-1 if combination is None else combination.choose(texts, scores))
        return chosen._replace(others=tuple(sorted(every, key=lambda one: one.score)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChooseLabel:
    """Answers with the likeliest of a set of labels (rank classification).

    Attributes:
        vocabulary: turns labels into tokens.
        labels: what may be said; None for the labels of the task.
        normalize: divides the log-probability of a label by its number of tokens.
    """

    vocabulary: Vocabulary
    labels: Sequence[str] | None = None
    normalize: bool = False

    def prepare(
        self,
        graph: nnx.GraphDef,
        *,
        length: int,
        label_names: Sequence[str] | None = None,
        combination: Combination | None = None,
    ) -> Answerer:
        """Prepares to choose.

        Raises:
            ConfigError: no labels, one of them is longer than `length` tokens or the same as
                another, or the task has one that could never be chosen.
        """
        labels = self._labels(label_names)
        candidates = label_tokens(labels, self.vocabulary, length)
        make = make_rank if combination is None else make_rank_each
        rank = make(graph, normalize=self.normalize)
        compilations = Compilations("Choosing a label")

        def answer(
            trainable: nnx.State, frozen: nnx.State, batch: Batch, ids: Sequence[int]
        ) -> list[Answer]:
            with compilations.counted(batch):
                found = rank(trainable, frozen, batch.inputs, candidates)
            scores = on_host(found)[: len(ids)]
            if combination is None:
                return [_ranked(labels, candidates, row, int(np.argmax(row))) for row in scores]
            return [
                _ranked(labels, candidates, row.mean(axis=0), combination.choose_label(row))
                for row in scores
            ]

        return answer

    def _labels(self, label_names: Sequence[str] | None) -> Sequence[str]:
        labels = label_names if self.labels is None else self.labels
        if not labels:
            raise ConfigError(
                "ChooseLabel has no labels to choose from, and the task does not say its own. Set "
                "ChooseLabel.labels = ['negative', 'positive'], or whatever the answers are."
            )
        for name in label_names or ():
            if name not in labels:
                raise ConfigError(
                    f"ChooseLabel.labels is {list(labels)}, but the task has the label {name!r}, "
                    f"which could never be chosen.{nearest(name, labels)}"
                )
        return labels


def score_targets(
    graph: nnx.GraphDef, *, together: bool = False
) -> Callable[[nnx.State, nnx.State, Batch, Sequence[int]], list[float]]:
    """Returns what scores the right answers of a batch: sums of log-probabilities (t5x `score`).

    Args:
        graph: of the split model.
        together: the mean over all prompts of the model's bank.
    """
    alone, each = make_score(graph), make_rank_each(graph)
    compilations = Compilations("Scoring")

    def score(
        trainable: nnx.State, frozen: nnx.State, batch: Batch, ids: Sequence[int]
    ) -> list[float]:
        if together:
            targets = jnp.asarray(batch.targets)[:, None]
            with compilations.counted(batch):
                found = each(trainable, frozen, batch.inputs, targets)
            scores = on_host(found).mean(axis=(1, 2))
        else:
            with compilations.counted(batch):
                found = alone(trainable, frozen, batch)
            scores = on_host(found)
        return scores[: len(ids)].tolist()

    return score


def _ranked(
    labels: Sequence[str],
    candidates: Int[np.ndarray, "C U"],
    scores: Float[np.ndarray, " C"],
    chosen: int,
) -> Answer:
    """Returns a label with the others in it, in ascending order of their scores."""
    order = [*(i for i in np.argsort(scores, kind="stable") if i != chosen), chosen]
    every = [Answer(labels[i], candidates[i], float(scores[i])) for i in order]
    return every[-1]._replace(others=tuple(every[:-1]))


def label_tokens(
    labels: Sequence[str], vocabulary: Vocabulary, length: int
) -> Int[np.ndarray, "C U"]:
    """Returns the labels as tokens with their end tokens.

    Raises:
        ConfigError: a label has more than `length` tokens, or the same as another.
    """
    rows = [[*vocabulary.encode(label), vocabulary.eos_id] for label in labels]
    for number, (label, row) in enumerate(zip(labels, rows, strict=True)):
        if (first := rows.index(row)) != number:
            raise ConfigError(
                f"The labels {labels[first]!r} and {label!r} are the same tokens, so that no "
                "answer could tell them apart. Choose other words, or the VOCABULARY of the model."
            )
        if len(row) > length:
            raise ConfigError(
                f"The label {label!r} has {len(row)} tokens with its end token, but answers may "
                f"have {length}. Set TASK_FEATURE_LENGTHS['targets'] to at least {len(row)}, or "
                "choose a shorter label."
            )
    tokens = np.full((len(rows), max(map(len, rows))), PAD, np.int32)
    for padded, row in zip(tokens, rows, strict=True):
        padded[: len(row)] = row
    return tokens


@functools.partial(jax.jit, static_argnums=0)
def row_keys(seed: int, ids: Int[Array, " B"]) -> Array:
    """Returns a key for every row that depends on its example only."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(seed), ids)


def row_limits(examples: int, rows: int, length: int) -> Int[np.ndarray, " B"]:
    """Returns how many tokens each row may say: those that only fill up the batch, none."""
    return np.where(np.arange(rows) < examples, length, 0).astype(np.int32)


def padded_ids(ids: Sequence[int], rows: int) -> Int[np.ndarray, " B"]:
    """Returns the numbers of the examples of a batch, one for each of its rows."""
    padded = np.zeros(rows, np.int32)
    padded[: len(ids)] = ids
    return padded
