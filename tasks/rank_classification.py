"""Which of several texts a model finds likeliest: one example a candidate, judged by its score.

    one_a_candidate → the model scores every target → `likeliest`, the metric

As in t5 (t5/data/preprocessors.py, postprocessors.py and evaluation/metrics.py
`rank_classification`).
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, SupportsFloat

import numpy as np
import tensorflow as tf
from jaxtyping import Bool, Float

from prompt_tuning.errors import DataError

from .preprocessors import Record


class Candidate(NamedTuple):
    """What the metric must know of one candidate: a target, postprocessed.

    `idx` is the number of the example and that of the candidate; `length` counts the target's
    tokens with their end token.
    """

    idx: tuple[int, int]
    is_correct: bool
    weight: float
    length: int


def labels(record: Record, *, label_names: Sequence[str]) -> tf.Tensor:
    """Returns the same candidates for every record."""
    del record
    return tf.constant(list(label_names))


def is_target(record: Record, *, label_names: Sequence[str]) -> tf.Tensor:
    """Tells which of the labels is the record's target."""
    return tf.constant(list(label_names)) == record["targets"]


def with_candidates(
    dataset: tf.data.Dataset,
    *,
    candidates: Callable[[Record], tf.Tensor],
    is_correct: Callable[[Record], tf.Tensor],
) -> tf.data.Dataset:
    """Gives each record all its candidates, as rows of `inputs`, `targets`, `is_correct` and `idx`.

    t5's mode `fewshot_eval`.

    Args:
        dataset: of records with `inputs` and `targets`.
        candidates: the texts of a record to choose from.
        is_correct: which of them are right; several may be.
    """

    def rows(number: tf.Tensor, record: Record) -> dict[str, tf.Tensor]:
        targets = candidates(record)
        count = tf.size(targets)
        example = tf.fill([count], tf.cast(number, tf.int32))
        return {
            "idx": tf.stack([example, tf.range(count)], axis=1),
            "inputs": tf.fill([count], record["inputs"]),
            "targets": targets,
            "is_correct": is_correct(record),
        }

    return dataset.enumerate().map(rows, num_parallel_calls=tf.data.AUTOTUNE)


def one_a_candidate(
    dataset: tf.data.Dataset,
    *,
    candidates: Callable[[Record], tf.Tensor],
    is_correct: Callable[[Record], tf.Tensor],
) -> tf.data.Dataset:
    """Makes one example of every candidate of every record; see `with_candidates`."""
    return with_candidates(dataset, candidates=candidates, is_correct=is_correct).unbatch()


def candidate(
    score: Any, *, example: Mapping[str, Any] | None = None, is_target: bool = False
) -> Any:
    """Returns what the metric must know of a target, and a prediction's score as it is."""
    if not is_target:
        return score
    assert example is not None
    number, candidate_number = map(int, example["idx"])
    return Candidate(
        idx=(number, candidate_number),
        is_correct=bool(example["is_correct"]),
        weight=float(example.get("weight", 1.0)),
        length=len(example["targets"]),
    )


def likeliest(
    targets: Sequence[Candidate],
    scores: Sequence[SupportsFloat],
    *,
    num_classes: int | None = None,
    normalize_by_target_length: bool = False,
) -> dict[str, float]:
    """Returns how often the likeliest candidate is right, in percent.

    Args:
        targets: of `candidate`, in any order.
        scores: the log probability of each target.
        num_classes: how many candidates every example has; None if that varies, and then
            `accuracy` is all there is, as where an example has several right candidates. Two
            classes have `f1`, `auc-roc` and `auc-pr` of the second one too (the last two if there
            are examples of both), more have the macro average `mean_<n>class_f1`.
        normalize_by_target_length: divides a score by the number of its tokens.

    Raises:
        DataError: candidates are missing, surplus or there twice.
    """
    if len(targets) != len(scores):
        raise DataError(f"There are {len(scores)} scores for {len(targets)} candidates.")
    if normalize_by_target_length:
        scores = [float(one) / target.length for target, one in zip(targets, scores, strict=True)]
    ordered = sorted(zip(targets, map(float, scores), strict=True), key=lambda pair: pair[0].idx)
    examples = [
        list(group) for _, group in itertools.groupby(ordered, key=lambda pair: pair[0].idx[0])
    ]
    for example in examples:
        _check([one.idx for one, _ in example], num_classes)

    chosen = [max(example, key=lambda pair: pair[1])[0] for example in examples]
    weights = np.array([one.weight for one in chosen])
    right = np.array([one.is_correct for one in chosen])
    values = {"accuracy": 100 * float(np.average(right, weights=weights))}
    if num_classes is None:
        return values
    correct = np.array([[one.is_correct for one, _ in example] for example in examples])
    if (correct.sum(axis=1) > 1).any():
        return values
    scored = np.array([[score for _, score in example] for example in examples], np.float32)
    return values | (_of_two if num_classes == 2 else _of_many)(correct, scored, weights)


def prefixed(
    targets: Sequence[Candidate],
    scores: Sequence[SupportsFloat],
    *,
    metric: Callable[..., Mapping[str, float]],
    prefix: str,
) -> dict[str, float]:
    """Returns a metric with `PREFIX_` before its names.

    So one scoring of the candidates can be judged in two ways.
    """
    return {f"{prefix}_{name}": value for name, value in metric(targets, scores).items()}


def _of_two(
    correct: Bool[np.ndarray, "B 2"], scores: Float[np.ndarray, "B 2"], weights: np.ndarray
) -> dict[str, float]:
    import sklearn.metrics

    second, guesses = correct[:, 1], scores.argmax(axis=1)
    f1 = sklearn.metrics.f1_score(second, guesses, sample_weight=weights, zero_division=0.0)
    values = {"f1": 100 * float(f1)}
    if second.any() and not second.all():
        odds = np.exp(scores - scores.max(axis=1, keepdims=True))
        share = odds[:, 1] / odds.sum(axis=1)
        area = sklearn.metrics.roc_auc_score(second, share, sample_weight=weights)
        precision = sklearn.metrics.average_precision_score(second, share, sample_weight=weights)
        values |= {"auc-roc": 100 * float(area), "auc-pr": 100 * float(precision)}
    return values


def _of_many(
    correct: Bool[np.ndarray, "B C"], scores: Float[np.ndarray, "B C"], weights: np.ndarray
) -> dict[str, float]:
    import sklearn.metrics

    count = scores.shape[1]
    guessed = np.eye(count, dtype=bool)[scores.argmax(axis=1)]
    f1 = sklearn.metrics.f1_score(
        correct, guessed, average="macro", sample_weight=weights, zero_division=0.0
    )
    return {f"mean_{count}class_f1": 100 * float(f1)}


def _check(idx: Sequence[tuple[int, int]], num_classes: int | None) -> None:
    numbers = [number for _, number in idx]
    expected = list(range(len(numbers) if num_classes is None else num_classes))
    if numbers != expected:
        raise DataError(
            f"Example {idx[0][0]} has scores for its candidates {numbers}, but exactly {expected} "
            "are needed. Score the whole split, and each example once."
        )
