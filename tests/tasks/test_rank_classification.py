"""Candidates of examples, and how often the likeliest is right."""

import functools

import numpy as np
import pytest
import sklearn.metrics
import tensorflow as tf

from prompt_tuning.errors import DataError
from prompt_tuning.tasks import rank_classification as rank

LABELS = ("no", "yes")
of_labels = {
    "candidates": functools.partial(rank.labels, label_names=LABELS),
    "is_correct": functools.partial(rank.is_target, label_names=LABELS),
}


def dataset():
    records = {"inputs": ["first", "second", "third"], "targets": ["yes", "no", "<unk>"]}
    return tf.data.Dataset.from_tensor_slices(records)


def test_every_candidate_is_an_example():
    made = [
        (row["idx"].tolist(), row["inputs"], row["targets"], bool(row["is_correct"]))
        for row in rank.one_a_candidate(dataset(), **of_labels).as_numpy_iterator()
    ]
    assert made == [
        ([0, 0], b"first", b"no", False),
        ([0, 1], b"first", b"yes", True),
        ([1, 0], b"second", b"no", True),
        ([1, 1], b"second", b"yes", False),
        ([2, 0], b"third", b"no", False),
        ([2, 1], b"third", b"yes", False),
    ]


def test_candidates_of_an_example_may_stay_together():
    first, second, _ = rank.with_candidates(dataset(), **of_labels).as_numpy_iterator()
    assert first["targets"].tolist() == second["targets"].tolist() == [b"no", b"yes"]
    assert (first["inputs"].tolist(), first["is_correct"].tolist()) == (
        [b"first", b"first"],
        [False, True],
    )
    assert second["idx"].tolist() == [[1, 0], [1, 1]]


def test_the_metric_learns_of_a_candidate_what_it_needs():
    example = {"idx": np.array([3, 1]), "is_correct": np.True_, "targets": [9, 8, 1]}
    found = rank.candidate("whatever", example=example, is_target=True)
    assert found == rank.Candidate(idx=(3, 1), is_correct=True, weight=1.0, length=3)
    assert rank.candidate("yes", example=example | {"weight": 0.5}, is_target=True).weight == 0.5
    assert rank.candidate(-2.5, example=example) == -2.5


def candidates(correct, lengths=None, weights=None):
    """Returns the candidates of examples, given which are right: a row for each example."""
    return [
        rank.Candidate(
            idx=(i, j),
            is_correct=bool(right),
            weight=1.0 if weights is None else weights[i],
            length=1 if lengths is None else lengths[i][j],
        )
        for i, row in enumerate(correct)
        for j, right in enumerate(row)
    ]


TWO = [(0, 1), (1, 0), (0, 1), (1, 0), (0, 1)]
SCORES = [(-2.0, -1.0), (-0.5, -1.5), (-1.0, -3.0), (-2.0, -1.0), (-4.0, -0.1)]


def flat(rows):
    return [value for row in rows for value in row]


@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 0.5, 1.0, 3.0]])
def test_two_classes_are_judged_as_scikit_learn_does(weights):
    values = rank.likeliest(candidates(TWO, weights=weights), flat(SCORES), num_classes=2)
    true, said = np.argmax(TWO, axis=1), np.argmax(SCORES, axis=1)
    share = np.exp(SCORES)[:, 1] / np.exp(SCORES).sum(axis=1)
    given = {"sample_weight": weights}
    assert values == pytest.approx(
        {
            "accuracy": 100 * sklearn.metrics.accuracy_score(true, said, **given),
            "f1": 100 * sklearn.metrics.f1_score(true, said, **given),
            "auc-roc": 100 * sklearn.metrics.roc_auc_score(true, share, **given),
            "auc-pr": 100 * sklearn.metrics.average_precision_score(true, share, **given),
        }
    )


def test_more_classes_have_a_mean_f1():
    correct = np.eye(3)[[0, 1, 2, 1]]
    scores = [(-1, -2, -3), (-2, -1, -3), (-1, -5, -3), (-9, -2, -3)]
    values = rank.likeliest(candidates(correct), flat(scores), num_classes=3)
    f1 = sklearn.metrics.f1_score([0, 1, 2, 1], [0, 1, 0, 1], average="macro")
    assert values == pytest.approx({"accuracy": 75.0, "mean_3class_f1": 100 * f1})


def test_any_of_several_right_candidates_is_right():
    correct = [(1, 1, 0), (0, 1, 1), (1, 0, 0)]
    scores = flat([(-1, -2, -3), (-1, -2, -3), (-1, -2, -3)])
    expected = {"accuracy": pytest.approx(200 / 3)}
    assert rank.likeliest(candidates(correct), scores, num_classes=3) == expected
    assert rank.likeliest(candidates(correct), scores) == expected


def test_examples_may_have_different_numbers_of_candidates():
    correct = [(1, 0), (0, 0, 0, 1), (1,)]
    scores = flat([(-1, -2), (-4, -3, -2, -1), (-7,)])
    assert rank.likeliest(candidates(correct), scores) == {"accuracy": 100.0}
    assert rank.likeliest(candidates(correct), [-1 * one for one in scores]) == {
        "accuracy": pytest.approx(100 / 3)
    }


def test_the_order_of_candidates_does_not_matter():
    pairs = list(zip(candidates(TWO), flat(SCORES), strict=True))[::-1]
    turned = rank.likeliest(*map(list, zip(*pairs, strict=True)), num_classes=2)
    assert turned == rank.likeliest(candidates(TWO), flat(SCORES), num_classes=2)


def test_long_targets_are_judged_by_their_tokens():
    one = candidates([(0, 1)], lengths=[(1, 4)])
    assert rank.likeliest(one, [-2.0, -4.0])["accuracy"] == 0.0
    assert rank.likeliest(one, [-2.0, -4.0], normalize_by_target_length=True)["accuracy"] == 100.0
    beside = functools.partial(rank.likeliest, normalize_by_target_length=True)
    assert rank.prefixed(one, [-2.0, -4.0], metric=beside, prefix="normed") == {
        "normed_accuracy": 100.0
    }


def test_curves_need_examples_of_both_classes():
    values = rank.likeliest(candidates([(0, 1)] * 2), [-1.0, -2.0] * 2, num_classes=2)
    assert values == {"accuracy": 0.0, "f1": 0.0}


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (slice(0, 9), r"Example 4 has scores for its candidates \[0\], but exactly \[0, 1\]"),
        (slice(1, None), r"Example 0 has scores for its candidates \[1\], but exactly \[0, 1\]"),
        ([0, 0, 1], r"Example 0 has scores for its candidates \[0, 0, 1\], but exactly \[0, 1\]"),
    ],
)
def test_candidates_that_are_missing_or_there_twice_are_refused(keep, message):
    pairs = list(zip(candidates(TWO), flat(SCORES), strict=True))
    kept = pairs[keep] if isinstance(keep, slice) else [pairs[i] for i in keep]
    with pytest.raises(DataError, match=message):
        rank.likeliest(*map(list, zip(*kept, strict=True)), num_classes=2)


def test_every_candidate_needs_a_score():
    with pytest.raises(DataError, match="There are 3 scores for 10 candidates"):
        rank.likeliest(candidates(TWO), [-1.0] * 3)
