import json

import numpy as np
import pytest

from prompt_tuning.evaluation import confusion
from prompt_tuning.evaluation.confusion import OTHER

LABELS = ("yes", "no", "perhaps")


def test_rows_are_the_right_answers_and_columns_the_given_ones():
    found = confusion(
        LABELS,
        ["yes", "yes", "yes", "no", "no", "perhaps"],
        ["yes", "no", "yes", "no", "perhaps", "yes"],
    )
    assert found.labels == LABELS
    assert found.counts.tolist() == [
        [2, 1, 0, 0],
        [0, 1, 1, 0],
        [1, 0, 0, 0],
    ]


@pytest.mark.parametrize("garbage", ["", "Yes", "yes ", "yesno", "ü"])
def test_an_answer_that_is_no_label_is_counted_as_another(garbage):
    found = confusion(LABELS, ["no"], [garbage])
    assert found.counts.tolist() == [[0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]]


@pytest.mark.parametrize("target", ["<unk>", "", "-1"])
def test_an_example_without_a_label_is_not_counted(target):
    assert not confusion(LABELS, [target], ["yes"]).counts.any()


def test_the_diagonal_holds_what_accuracy_counts():
    rng = np.random.default_rng(0)
    targets = rng.choice(LABELS, 50).tolist()
    predictions = rng.choice([*LABELS, "garbage"], 50).tolist()
    counts = confusion(LABELS, targets, predictions).counts
    right = sum(one == other for one, other in zip(targets, predictions, strict=True))
    assert counts.trace() == right
    assert counts.sum() == 50
    assert counts[:, -1].sum() == predictions.count("garbage")


def test_a_prediction_for_each_target_is_needed():
    with pytest.raises(ValueError, match="zip"):
        confusion(LABELS, ["yes", "no"], ["yes"])


def test_it_is_written_as_json():
    found = confusion(("bad", "good"), ["good", "bad"], ["good", "x"])
    assert json.loads(json.dumps(found.as_json())) == {
        "targets": ["bad", "good"],
        "predictions": ["bad", "good", OTHER],
        "counts": [[0, 0, 1], [0, 1, 0]],
    }


def test_people_see_a_table():
    found = confusion(LABELS, ["yes"] * 12 + ["perhaps"], ["no"] * 12 + ["perhaps"])
    assert str(found).splitlines() == [
        "         yes  no  perhaps",
        "yes        0  12        0",
        "no         0   0        0",
        "perhaps    0   0        1",
    ]


def test_the_table_has_a_column_for_other_answers_if_there_are_any():
    assert str(confusion(("no",), ["no", "no"], ["no", "na"])).splitlines() == [
        "    no  (other)",
        "no   1        1",
    ]
