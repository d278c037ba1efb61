"""What registered tasks make of records written by hand, without files.

A table of a family says for each of its data sets:

    records   as TFDS yields them
    texts     the inputs and targets of every example, in the form with the task's name
    answers   for each kind of answer: the texts, what they mean, and what they are worth
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import seqio
import tensorflow as tf

MODELS = ("", "mt5_", "byt5_")
FORMS = ("", "taskless_", "task_index_")
VARIANTS = ("", "_examples")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Written:
    """One data set of a table; see the module."""

    records: Sequence[Mapping[str, Any]]
    texts: Sequence[tuple[str, str]]
    targets: Sequence[Any] = ()
    answers: Mapping[str, tuple[Sequence[str], Sequence[Any], Mapping[str, float]]] = (
        dataclasses.field(default_factory=dict)
    )


def all_forms(name):
    """Returns the 18 names of a task, each with its form and whether it keeps examples."""
    return [
        (f"{model}{form}{name}{variant}", form, variant == "_examples")
        for model in MODELS
        for form in FORMS
        for variant in VARIANTS
    ]


def dataset(records):
    """Returns records in the types that TFDS gives them."""
    return tf.data.Dataset.from_generator(
        lambda: iter(records),
        output_signature={key: _spec(key, value) for key, value in records[0].items()},
    )


def steps(name):
    """Returns a task's steps on text, and those from its tokenisation on."""
    found = list(seqio.TaskRegistry.get(name).preprocessors)
    place = found.index(seqio.preprocessors.tokenize)
    return tuple(found[:place]), found[place:]


def examples(name, written):
    """Returns the examples of a task as dictionaries, before they are tokenised.

    Equal steps are run once: tasks of several models and variants share them.
    """
    return _examples(steps(name)[0], _Same(written))


def texts(name, written):
    """Returns the inputs and targets of every example of a task."""
    return [(made["inputs"], made["targets"]) for made in examples(name, written)]


def in_form(form, pairs):
    """Returns the texts of a form: only the first word of the inputs may go."""
    return [(i if form == "" else i[i.index(" ") + 1 :], t) for i, t in pairs]


def as_example(made):
    """Returns an example as a split has it: the texts under their later names, and as bytes."""
    kept = {key: _bytes(value) for key, value in made.items()}
    return kept | {f"{key}_pretokenized": kept.pop(key) for key in ("inputs", "targets")}


def judged(name, written, answers):
    """Returns the targets, the predictions and the metrics of a task for answers."""
    task = seqio.TaskRegistry.get(name)
    made = [as_example(one) for one in examples(name, written)]
    right = [
        task.postprocess_fn(one["targets_pretokenized"].decode(), example=one, is_target=True)
        for one in made
    ]
    said = [
        task.postprocess_fn(text, example=one, is_target=False)
        for text, one in zip(answers, made, strict=True)
    ]
    values = {}
    for metric in task.metric_fns:
        values |= metric(right, said)
    return right, said, values


def close(expected):
    """Metrics to the last digits; not a number equals itself."""
    return {name: pytest.approx(value, nan_ok=True, rel=1e-12) for name, value in expected.items()}


def check_answers(name, written, keeps_examples, title, shown=str):
    """Checks the targets, and every kind of answer to them, of one task.

    `shown` is what an answer's text is kept as.
    """
    for kind, (answers, meanings, worth) in written.answers.items():
        right, said, values = judged(name, written, answers)
        assert right == list(written.targets), name
        if not keeps_examples:
            assert (said, values) == (list(meanings), close(worth)), (name, kind)
            continue
        made = [as_example(one) for one in examples(name, written)]
        assert said == [
            {
                "prediction": meaning,
                "prediction_pretokenized": shown(text),
                "inputs_pretokenized": one["inputs_pretokenized"],
                "targets_pretokenized": one["targets_pretokenized"],
            }
            for meaning, text, one in zip(meanings, answers, made, strict=True)
        ], (name, kind)
        drawn = values.pop(f"{title} samples").textdata
        wrong = values.pop(f"{title} negative samples").textdata
        assert values == close(worth), (name, kind)
        for one in made:
            assert f"example: {one['inputs_pretokenized'].decode()}\n" in drawn, name
        assert wrong.count("example: ") == sum(
            target != meaning for target, meaning in zip(right, meanings, strict=True)
        ), (name, kind)


NOT_A_NUMBER = math.nan


class _Same:
    """A table's row as a key: by its identity."""

    def __init__(self, written):
        self.written = written

    def __eq__(self, other):
        return self.written is other.written

    def __hash__(self):
        return id(self.written)


@functools.cache
def _examples(functions, same):
    made = dataset(same.written.records)
    for function in functions:
        made = function(made)
    return [{key: _text(value) for key, value in one.items()} for one in made.as_numpy_iterator()]


def _spec(key, value):
    if isinstance(value, dict):
        return {inner: _spec(inner, one) for inner, one in value.items()}
    if isinstance(value, list):
        return tf.TensorSpec([None], tf.string)
    if isinstance(value, str):
        return tf.TensorSpec([], tf.string)
    if isinstance(value, float):
        return tf.TensorSpec([], tf.float32)
    return tf.TensorSpec([], tf.int64 if key == "label" else tf.int32)


def _text(value):
    if isinstance(value, bytes):
        return value.decode()
    if getattr(value, "dtype", np.dtype(int)).hasobject:
        return [one.decode() for one in value.tolist()]
    return value


def _bytes(value):
    if isinstance(value, str):
        return value.encode()
    return [one.encode() for one in value] if isinstance(value, list) else value
