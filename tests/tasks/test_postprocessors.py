"""What an answer means, beside the tables of the tasks."""

import functools

import numpy as np
import pytest

from prompt_tuning.errors import DataError
from prompt_tuning.tasks import postprocessors
from prompt_tuning.tasks.samples import Samples, of_predictions, sample

LABEL = functools.partial(postprocessors.string_label_to_class_id, label_names=("no", "yes"))
EXAMPLE = {"inputs_pretokenized": b"is it?", "targets_pretokenized": b"yes", "idx": 3}


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("3.4", 3.4),
        (" 5 ", 5.0),
        ("-1", -1.0),
        ("1e1", 10.0),
        ("", -1.0),
        ("three", -1.0),
        ("nan", -1.0),
        ("-inf", -1.0),
    ],
)
def test_a_written_number_is_read(text, number):
    assert postprocessors.string_to_float(text, example=EXAMPLE, is_target=False) == number


@pytest.mark.parametrize(
    ("text", "noun", "means"),
    [
        ("Bo", "Bo", 1),
        ("bo", "BO", 1),
        ("the fuzzy bunny", "bunny", 1),
        ("bunny", "Her fuzzy bunny", 1),
        ("fuzzy cat", "fuzzy bunny", 0),
        ("Bo", "Bo's hat", 0),
        ("Bo's hat", "Bo", 0),
        ("Bo's hat", "Bo's old hat", 1),
        ("Bo's", "Bo's hat", 1),
        (" the  dog ", "dog", 1),
        (" the  dog ", "big dog", 0),  # two spaces make an empty word
        ("", "Bo", -1),
        ("   ", "Bo", -1),
        ("The", "Bo", -1),
    ],
)
def test_an_answer_means_a_noun_if_one_has_all_words_of_the_other(text, noun, means):
    example = {"targets_pretokenized": noun.encode(), "label": np.int64(1)}
    assert postprocessors.wsc_simple(text, example=example, is_target=False) == means
    assert postprocessors.wsc_simple(text, example=example, is_target=True) == 1


def test_an_answer_is_kept_with_its_example():
    kept = ("inputs_pretokenized", "idx", "context")
    said = postprocessors.with_examples(LABEL, "yes", example=EXAMPLE, kept=kept)
    assert said == {
        "prediction": 1,
        "prediction_pretokenized": "yes",
        "inputs_pretokenized": b"is it?",
        "idx": 3,
        "context": None,
    }
    assert postprocessors.with_examples(LABEL, "yes", example=EXAMPLE, is_target=True) == 1
    assert of_predictions(lambda right, said: {"n": (right, said)}, [0], [said]) == {
        "n": ([0], [1])
    }


CANDIDATES = {
    "inputs_pretokenized": [b"is it?", b"is it?"],
    "targets_pretokenized": [b"no", b"yes"],
    "is_correct": np.array([False, True]),
}


@pytest.mark.parametrize(("text", "number"), [("no", 0), ("yes", 1), ("", -1)])
def test_of_several_candidates_the_right_one_is_the_target(text, number):
    inner = functools.partial(postprocessors.with_examples, LABEL)
    judge = functools.partial(postprocessors.of_candidates, inner)
    assert judge(text, example=CANDIDATES, is_target=True) == 1
    assert judge(text, example=CANDIDATES, is_target=False) == {
        "prediction": number,
        "prediction_pretokenized": text,
        "inputs_pretokenized": b"is it?",
        "targets_pretokenized": "yes",
    }


@pytest.mark.parametrize(
    "judge",
    [
        functools.partial(postprocessors.multirc, label_names=("False", "True"), is_target=True),
        functools.partial(postprocessors.record, is_target=True),
        postprocessors.wsc_simple,
        functools.partial(postprocessors.of_candidates, LABEL),
    ],
    ids=["multirc", "record", "wsc_simple", "of_candidates"],
)
def test_who_needs_the_record_says_so(judge):
    with pytest.raises(DataError, match="needs the record of the example, but got none"):
        judge("Bo")


def answers(values):
    return [
        {
            "prediction": value,
            "prediction_pretokenized": f"answer {value}",
            "inputs_pretokenized": f"question {number}".encode(),
            "targets_pretokenized": "ä",
        }
        for number, value in enumerate(values)
    ]


def test_samples_are_texts_drawn_from_all_answers_and_from_wrong_ones():
    shown = Samples(title="sst2")([0, 1, 1], answers([0, 1, 0]))
    assert list(shown) == ["sst2 samples", "sst2 negative samples"]
    assert shown["sst2 negative samples"].textdata == (
        "example: question 2\n\ntarget: ä\n\nprediction: answer 0"
    )
    assert shown["sst2 samples"].textdata.count("example: ") == 3
    assert list(Samples(title="squad", wrong=False)([0], answers([1]))) == ["squad samples"]


def test_as_many_are_shown_as_asked_for():
    shown = Samples(title="t", count=2, show=lambda answer: str(answer["prediction"]))
    texts = shown([-1] * 9, answers(range(9)))
    for name in ("t samples", "t negative samples"):
        drawn = texts[name].textdata.split("\n\n")
        assert len(set(drawn)) == 2 and set(map(int, drawn)) <= set(range(9))


def test_a_draw_follows_from_its_seed_alone():
    draws = {seed: sample(8, 1000, seed=seed) for seed in range(4)}
    assert all(draws[seed] == sample(8, 1000, seed=seed) for seed in draws)
    # Seed 0 is a seed as any other.
    assert len({tuple(draw) for draw in draws.values()}) == 4
    assert all(len(set(draw)) == 8 for draw in draws.values())
    assert sample(8, 8, seed=0) == sample(9, 8, seed=1) == list(range(8))
    assert sample(8, 0, seed=0) == []
