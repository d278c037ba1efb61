import numpy as np
import pytest

from prompt_tuning.evaluation.alarms import constant_answers


def test_the_same_answer_to_different_questions_is_an_alarm():
    text = constant_answers(["good"] * 4, ["good", "bad", "good", "good"])
    assert text is not None
    assert text.startswith("All 4 answers are 'good', but the right ones differ.")
    assert "learning rate" in text


def test_no_text_at_all_is_another_alarm():
    text = constant_answers(["", ""], [0, 1])
    assert text is not None and "overflow" in text


@pytest.mark.parametrize(
    ("texts", "targets"),
    [
        ([], []),
        (["good"], ["bad"]),
        (["good", "bad"], ["bad", "good"]),
        (["good", "good"], ["bad", "bad"]),
    ],
    ids=["no examples", "one example", "different answers", "one right answer for all"],
)
def test_there_is_no_alarm_where_nothing_is_wrong(texts, targets):
    assert constant_answers(texts, targets) is None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, 2),
        (np.array([1, 2]), np.array([1, 2, 3])),
        ([np.array([1]), "a"], [np.array([2]), "a"]),
        (["a"], ["a", "b"]),
        ({"answers": ["a"]}, {"answers": ["b"]}),
        (np.str_("a"), np.str_("b")),
    ],
)
def test_right_answers_may_be_of_any_type(one, other):
    assert constant_answers(["x", "x"], [one, other])
    assert constant_answers(["x", "x"], [one, one]) is None


def test_a_long_answer_is_cut():
    text = constant_answers(["word " * 100] * 2, [0, 1])
    assert text is not None and len(text) < 400
