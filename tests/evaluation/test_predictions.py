import dataclasses
import json
import math
from typing import NamedTuple

import numpy as np
import pytest

from prompt_tuning.errors import ConfigError
from prompt_tuning.evaluation import Answer
from prompt_tuning.evaluation.predictions import (
    InputFields,
    as_lines,
    example_id,
    plain,
    prediction,
)


class Span(NamedTuple):
    start: int
    score: float


@dataclasses.dataclass
class Judgement:
    right: bool
    score: float


PLAIN = {
    "text": ("ü – \u2028", "ü – \u2028"),
    "bytes": ("ü".encode(), "ü"),
    "bytes that are no text": (b"a\xffb", "a\ufffdb"),
    "truth": (True, True),
    "nothing": (None, None),
    "not a number": (math.nan, None),
    "infinity": (-math.inf, None),
    "numpy's infinity": (np.float32(np.inf), None),
    "numpy's integer": (np.int64(2**40), 2**40),
    "numpy's truth": (np.bool_(False), False),
    "numpy's text": (np.str_("a"), "a"),
    "numpy's bytes": (np.bytes_(b"a"), "a"),
    "array": (np.array([[1.5, np.nan], [2, 3]]), [[1.5, None], [2.0, 3.0]]),
    "array without axes": (np.array(3), 3),
    "array of bytes": (np.array([b"de", b"en"]), ["de", "en"]),
    "array of objects": (np.array([b"de", None], object), ["de", None]),
    "empty array": (np.zeros((0, 2)), []),
    "tuple": ((1, (b"x", [math.inf])), [1, ["x", [None]]]),
    "named tuple": (Span(1, math.nan), [1, None]),
    "dictionary": ({1: np.int32(2), "b": {"c": math.nan}}, {"1": 2, "b": {"c": None}}),
    "dataclass": (Judgement(True, math.nan), {"right": True, "score": None}),
    "complex": (1 + 2j, "(1+2j)"),
    "type": (Judgement, str(Judgement)),
}


@pytest.mark.parametrize("kind", PLAIN)
def test_any_feature_becomes_what_json_can_hold(kind):
    value, expected = PLAIN[kind]
    found = plain(value)
    assert found == expected
    assert type(found) is type(expected)
    # Strict JSON: no NaN, no Infinity.
    assert json.loads(json.dumps(found, allow_nan=False)) == expected


def test_sets_have_the_same_order_in_every_process():
    words = ["alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel"]
    assert plain({*words}) == words
    assert plain({"said": frozenset([(1, 2), "a", 7])}) == {"said": ["a", 7, [1, 2]]}


def test_rows_are_one_line_each_whatever_they_hold():
    rows = [{"a": "line\nend\r \u2028 \x85"}, {"b": np.float32(np.nan)}, {}]
    lines = as_lines(rows)
    assert lines.count(b"\n") == 3 and lines.endswith(b"\n")
    assert [json.loads(line) for line in lines.split(b"\n")[:-1]] == [
        {"a": "line\nend\r \u2028 \x85"},
        {"b": None},
        {},
    ]
    assert "ü".encode() in as_lines([{"c": "ü"}])
    assert as_lines([]) == b""


def test_an_example_is_named_by_its_split_and_its_place():
    assert example_id("validation", 12) == "validation/12"
    assert len({example_id(split, i) for split in ("a", "b") for i in range(20)}) == 40


TARGETS = ["targets_pretokenized", "targets"]
RECORD = {
    "inputs_pretokenized": b"is it?",
    "inputs": np.array([5, 1]),
    "targets_pretokenized": b"yes",
    "targets": np.array([7, 1]),
    "idx": np.int32(4),
    "context": b"a story",
}


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({}, ["inputs_pretokenized", "targets_pretokenized"]),
        ({"include_all_inputs": True}, list(RECORD)),
        ({"input_fields_to_include": ["idx"]}, ["idx"]),
        (
            {"input_fields_to_include": ["targets", "idx"]},
            ["targets_pretokenized", "targets", "idx"],
        ),
        ({"input_fields_to_include": ("inputs_pretokenized",)}, ["inputs_pretokenized"]),
        ({"input_fields_to_include": []}, []),
    ],
    ids=["texts", "all", "one", "with its text", "text alone", "none"],
)
def test_fields_are_chosen_as_in_t5x(settings, names):
    found = InputFields(**settings).of(RECORD)
    assert list(found) == names
    assert all(found[name] is RECORD[name] for name in names)


def test_all_fields_and_some_exclude_each_other():
    with pytest.raises(ConfigError) as caught:
        InputFields(include_all_inputs=True, input_fields_to_include=["idx"])
    assert str(caught.value) == (
        "InputFields.include_all_inputs and input_fields_to_include exclude each other: leave one "
        "out."
    )


def test_a_field_that_is_not_there_is_named_with_its_neighbour():
    with pytest.raises(ConfigError) as caught:
        InputFields(input_fields_to_include=["idx", "contxt"]).of(RECORD)
    assert str(caught.value) == (
        "InputFields.input_fields_to_include has 'contxt', but the examples have: "
        "inputs_pretokenized, inputs, targets_pretokenized, targets, idx, context. Did you mean "
        "'context'?"
    )


def answer(text, tokens, score, *others):
    return Answer(text, np.array(tokens, np.int32), score, others)


ANSWER = answer(
    "yes", [7, 1, 0, 0], -0.5, answer("", [0, 0, 0, 0], -4), answer("no", [9, 8, 2, 1], -2)
)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"mode": "predict"}, {"prediction": "yes"}),
        ({"mode": "predict_with_aux"}, {"prediction": "yes", "aux": {"scores": -0.5}}),
        (
            {"mode": "predict", "output_ids": True},
            {"prediction": "yes", "prediction_tokens": [7, 1]},
        ),
        (
            {"mode": "predict_with_aux", "output_ids": True, "all_decodes": True},
            {
                "prediction": ["", "no", "yes"],
                "prediction_tokens": [[], [9, 8, 2, 1], [7, 1]],
                "aux": {"scores": [-4, -2, -0.5]},
            },
        ),
    ],
    ids=["text", "score", "tokens", "everything"],
)
def test_an_answer_is_written_as_t5x_writes_it(settings, expected):
    assert prediction(ANSWER, **settings) == expected
    assert list(prediction(ANSWER, **settings)) == list(expected)
    assert json.loads(as_lines([prediction(ANSWER, **settings)])) == expected


def test_one_answer_alone_is_a_list_of_one_if_all_are_asked_for():
    alone = answer("yes", [7, 1], -0.5)
    assert prediction(alone, mode="predict") == {"prediction": "yes"}
    assert prediction(alone, mode="predict", all_decodes=True) == {"prediction": ["yes"]}
