"""Metrics against scikit-learn and scipy called directly, and against numbers anyone can check."""

import math
import random

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from prompt_tuning.tasks import metrics, qa_metrics

LABELS = (-1, 0, 1, 2)


def drawn(classes, answers, seed, count=40):
    """Targets, each class among them, and answers drawn at random."""
    rng = random.Random(seed)
    targets = [*classes, *rng.choices(classes, k=count)]
    return targets, rng.choices(answers, k=len(targets))


seeds = pytest.mark.parametrize("seed", range(5))


@seeds
def test_accuracy_is_that_of_scikit_learn(seed):
    targets, answers = drawn((0, 1, 2), LABELS, seed)
    expected = 100 * sklearn.metrics.accuracy_score(targets, answers)
    assert metrics.accuracy(targets, answers) == {"accuracy": pytest.approx(expected)}


@seeds
def test_f1_is_that_of_scikit_learn_where_all_answers_are_classes(seed):
    targets, answers = drawn((0, 1), (0, 1), seed)
    expected = 100 * sklearn.metrics.f1_score(targets, answers)
    assert metrics.f1_score_with_invalid(targets, answers) == {"f1": expected}


@seeds
def test_f1_counts_an_answer_that_is_no_class_as_the_wrong_one(seed):
    targets, answers = drawn((0, 1), LABELS, seed)
    opposite = [a if a in (0, 1) else 1 - t for t, a in zip(targets, answers, strict=True)]
    expected = 100 * sklearn.metrics.f1_score(targets, opposite)
    given = list(answers)
    assert metrics.f1_score_with_invalid(targets, given) == {"f1": expected}
    assert given == answers  # they stay as they are


@seeds
def test_mean_f1_is_the_macro_average_over_three_classes(seed):
    targets, answers = drawn((0, 1, 2), LABELS, seed)
    of_each = []
    for one in range(3):
        hits = sum(t == a == one for t, a in zip(targets, answers, strict=True))
        of_each.append(2 * hits / (targets.count(one) + answers.count(one)))
    found = metrics.mean_3class_f1(targets, answers)
    assert found == {"mean_3class_f1": pytest.approx(100 * sum(of_each) / 3)}
    expected = sklearn.metrics.fbeta_score(
        targets, answers, beta=1, labels=range(3), average="macro"
    )
    assert found == {"mean_3class_f1": pytest.approx(100 * expected, rel=1e-14)}


@seeds
@pytest.mark.parametrize("answers", [(0, 1), (-1, 0, 1)])
def test_correlation_of_classes_is_that_of_scikit_learn(seed, answers):
    targets, said = drawn((0, 1), answers, seed)
    expected = 100 * sklearn.metrics.matthews_corrcoef(targets, said)
    assert metrics.matthews_corrcoef(targets, said) == {"matthews_corrcoef": expected}


@seeds
def test_correlations_are_those_of_scipy(seed):
    rng = np.random.default_rng(seed)
    targets, answers = (rng.uniform(-1, 5, 30).round(1).tolist() for _ in range(2))
    pearson = 100 * scipy.stats.pearsonr(targets, answers)[0]
    spearman = 100 * scipy.stats.spearmanr(targets, answers)[0]
    assert metrics.pearson_corrcoef(targets, answers) == {"pearson_corrcoef": pearson}
    assert metrics.spearman_corrcoef(targets, answers) == {"spearman_corrcoef": spearman}


@pytest.mark.parametrize(
    ("targets", "answers"),
    [([1.0, 2.0, 3.0], [-1.0] * 3), ([2.0, 2.0], [1.0, 2.0]), ([1.0], [1.0])],
)
@pytest.mark.parametrize("name", ["pearson_corrcoef", "spearman_corrcoef"])
def test_equal_numbers_correlate_with_nothing(name, targets, answers):
    assert math.isnan(getattr(metrics, name)(targets, answers)[name])


@pytest.mark.parametrize(
    ("metric", "worth"),
    [
        (metrics.accuracy, {"accuracy": 0.0}),
        (metrics.f1_score_with_invalid, {"f1": 0.0}),
        (metrics.mean_3class_f1, {"mean_3class_f1": 0.0}),
        (metrics.matthews_corrcoef, {"matthews_corrcoef": 0.0}),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_answers_without_a_class_are_worth_nothing(metric, worth):
    assert metric([0, 1, 1, 0], [-1] * 4) == worth


# Two questions with three and one answers: targets and predictions of each.
ASKED = [("a", 1), ("a", 0), ("b", 0), ("a", 1)]


@pytest.mark.parametrize(
    ("values", "f1", "exact_match"),
    [
        ([1, 0, 0, 1], 100.0, 100.0),
        ([1, 0, 1, 1], 80.0, 50.0),  # 2 hits, 1 false alarm
        ([1, 1, 0, 1], 80.0, 50.0),
        ([0, 1, 1, 0], 0.0, 0.0),
        ([-1, -1, -1, -1], 0.0, 0.0),
    ],
)
def test_a_question_of_multirc_is_right_if_all_its_answers_are(values, f1, exact_match):
    targets = [{"group": group, "value": value} for group, value in ASKED]
    said = [{"value": value} for value in values]
    assert metrics.multirc_f1(targets, said) == {"f1": pytest.approx(f1)}
    assert metrics.multirc_exact_match(targets, said) == {"exact_match": exact_match}


def test_only_the_first_example_of_a_group_is_judged():
    targets = [
        {"group": (1, 1), "value": ["Bo", "Al"]},
        {"group": (1, 2), "value": ["the dog"]},
        {"group": (1, 1), "value": ["Bo", "Al"]},
    ]
    said = [{"value": "al"}, {"value": "big dog"}, {"value": "nobody"}]
    found = metrics.first_of_each_group(targets, said, metric=qa_metrics.squad)
    assert found == {"em": 50.0, "f1": pytest.approx(100 * (1 + 2 / 3) / 2)}


@pytest.mark.parametrize(
    "metric",
    [metrics.accuracy, metrics.multirc_exact_match],
    ids=lambda metric: metric.__name__,
)
def test_there_must_be_an_answer_to_each_question(metric):
    targets = [{"group": 1, "value": 0}] * 2
    with pytest.raises(ValueError, match="shorter"):
        metric(targets, targets[:1])
