"""What the predictions of a split are worth, in percent where it is a share.

Each takes the postprocessed targets and predictions of a split and returns numbers by name, those
of the original (t5/evaluation/metrics.py). scikit-learn and scipy take a second to import, so that
only who computes a metric does.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from prompt_tuning.data.task_split import share_of_equal

Metric = Callable[[Sequence[Any], Sequence[Any]], Mapping[str, float]]


def accuracy(targets: Sequence[Any], predictions: Sequence[Any]) -> dict[str, float]:
    """Returns the percentage of predictions that equal their target."""
    return share_of_equal(targets, predictions)


def f1_score_with_invalid(targets: Sequence[int], predictions: Sequence[int]) -> dict[str, float]:
    """Returns the F1 of class 1 of two; a prediction that is neither counts as the wrong one."""
    from sklearn.metrics import f1_score

    right, said = np.asarray(targets), np.asarray(predictions)
    said = np.where((said == 0) | (said == 1), said, 1 - right)
    return {"f1": 100 * float(f1_score(right, said, zero_division=0.0))}


def mean_3class_f1(targets: Sequence[int], predictions: Sequence[int]) -> dict[str, float]:
    """Returns the mean F1 of classes 0, 1 and 2; other predictions are misses of their target."""
    from sklearn.metrics import f1_score

    value = f1_score(targets, predictions, labels=range(3), average="macro", zero_division=0.0)
    return {"mean_3class_f1": 100 * float(value)}


def matthews_corrcoef(targets: Sequence[int], predictions: Sequence[int]) -> dict[str, float]:
    """Returns the correlation of classes; -1, no class, counts as a third one."""
    from sklearn.metrics import matthews_corrcoef

    return {"matthews_corrcoef": 100 * float(matthews_corrcoef(targets, predictions))}


def pearson_corrcoef(targets: Sequence[float], predictions: Sequence[float]) -> dict[str, float]:
    """Returns the linear correlation, not a number where all of one side are equal."""
    from scipy.stats import pearsonr

    return {"pearson_corrcoef": _correlation(pearsonr, targets, predictions)}


def spearman_corrcoef(targets: Sequence[float], predictions: Sequence[float]) -> dict[str, float]:
    """Returns the correlation of ranks, not a number where all of one side are equal."""
    from scipy.stats import spearmanr

    return {"spearman_corrcoef": _correlation(spearmanr, targets, predictions)}


def multirc_f1(
    targets: Sequence[Mapping[str, Any]], predictions: Sequence[Mapping[str, Any]]
) -> dict[str, float]:
    """Returns `f1_score_with_invalid` over all answers, see `postprocessors.multirc`."""
    return f1_score_with_invalid(_values(targets), _values(predictions))


def multirc_exact_match(
    targets: Sequence[Mapping[str, Any]], predictions: Sequence[Mapping[str, Any]]
) -> dict[str, float]:
    """Returns the percentage of questions with all answers right.

    Of a part of a split it is another number: questions that lack answers are easier.
    """
    right: dict[int, bool] = {}
    for target, guess in zip(targets, predictions, strict=True):
        group = target["group"]
        right[group] = right.get(group, True) and bool(target["value"] == guess["value"])
    return {"exact_match": 100.0 * sum(right.values()) / len(right)}


def first_of_each_group(
    targets: Sequence[Mapping[str, Any]],
    predictions: Sequence[Mapping[str, Any]],
    *,
    metric: Metric,
) -> Mapping[str, float]:
    """Returns a metric over the first example of each group alone.

    ReCoRD has an example for each right answer to a query; the query counts once.
    """
    first: dict[Any, tuple[Any, Any]] = {}
    for target, guess in zip(targets, predictions, strict=True):
        first.setdefault(target["group"], (target["value"], guess["value"]))
    return metric(*map(list, zip(*first.values(), strict=True)))


def _values(answers: Sequence[Mapping[str, Any]]) -> list[int]:
    return [answer["value"] for answer in answers]


def _correlation(
    function: Callable[..., Any], targets: Sequence[float], predictions: Sequence[float]
) -> float:
    # scipy would warn of equal numbers and refuse fewer than two.
    if min(len(set(targets)), len(set(predictions))) < 2:
        return float("nan")
    return 100 * float(function(targets, predictions)[0])
