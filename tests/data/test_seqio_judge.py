import functools
import itertools
import logging

import numpy as np
import pytest
import seqio
import tensorflow as tf

from prompt_tuning.data.seqio_tasks.judge import SeqioJudge
from prompt_tuning.data.task_split import Judge
from prompt_tuning.errors import DataError
from prompt_tuning.tasks import postprocessors

LABELS = ("no", "yes")


def accuracy(targets, predictions):
    return {
        "accuracy": 100.0 * np.mean([a == b for a, b in zip(targets, predictions, strict=True)])
    }


def likeliest(targets, scores):
    assert isinstance(scores, list)
    return {"likeliest": seqio.metrics.Scalar(targets[int(np.argmax(scores))])}


def surest(targets, predictions, aux_values):
    assert aux_values.keys() == {"scores"}
    return {"surest": float(np.argmax(aux_values["scores"])), "rows": len(targets)}


def read(split, shuffle_files, seed=None):
    return tf.data.Dataset.range(1)


def judge_of(*metrics, postprocess=None):
    byte = seqio.Feature(seqio.ByteVocabulary())
    task = seqio.Task(
        "judged",
        source=seqio.FunctionDataSource(read, splits=["train"]),
        output_features={"inputs": byte, "targets": byte},
        postprocess_fn=postprocess,
        metric_fns=metrics,
    )
    judge = SeqioJudge(task=task)
    assert isinstance(judge, Judge)
    return judge


KINDS = {"predict": accuracy, "score": likeliest, "predict_with_aux": surest}


@pytest.mark.parametrize(
    "modes",
    [modes for n in range(4) for modes in itertools.combinations(KINDS, n)],
    ids="+".join,
)
def test_the_arguments_of_the_metrics_say_what_a_model_is_asked_for(modes):
    judge = judge_of(*(KINDS[mode] for mode in modes))
    assert judge.modes == frozenset(modes)
    found = judge.metrics([0, 1, 2], [0, 1, 1], [-3.0, -2.0, -1.0])
    expected = {"accuracy": pytest.approx(200 / 3)} if "predict" in modes else {}
    if "predict_with_aux" in modes:
        expected |= {"surest": 2.0, "rows": 3.0}
    assert found == expected
    scored = judge.score_metrics([5, 6, 7], [-3.0, -1.0, -2.0])
    assert scored == ({"likeliest": 6.0} if "score" in modes else {})


def test_settings_of_a_metric_are_no_part_of_what_it_asks_for():
    def share(targets, predictions, of=100.0):
        return {"share": of * accuracy(targets, predictions)["accuracy"] / 100}

    judge = judge_of(functools.partial(share, of=1.0))
    assert judge.modes == frozenset({"predict"})
    assert judge.metrics([1, 2], [1, 1], [0.0, 0.0]) == {"share": 0.5}


def given(**values):
    def metric(targets, predictions):
        return values

    return metric


VALUES = {
    "number": (0.5, 0.5),
    "whole number": (3, 3.0),
    "numpy": (np.float32(0.25), 0.25),
    "array without axes": (np.array(2), 2.0),
    "not a number": (np.nan, pytest.approx(np.nan, nan_ok=True)),
    "Scalar": (seqio.metrics.Scalar(7), 7.0),
    "Scalar of numpy": (seqio.metrics.Scalar(np.float64(1.5)), 1.5),
    "Text": (seqio.metrics.Text("so – ü"), "so – ü"),
    "Text of bytes": (seqio.metrics.Text("ü".encode()), "ü"),
    "Text of several": (seqio.metrics.Text(np.array(["a", "b"])), "a\nb"),
    "Text of bytes that are none": (seqio.metrics.Text(b"a\xff"), "a\ufffd"),
}


@pytest.mark.parametrize("kind", VALUES)
def test_numbers_become_numbers_and_texts_become_texts(kind):
    value, expected = VALUES[kind]
    found = judge_of(given(value=value)).metrics([], [], [])
    assert found == {"value": expected}
    assert type(found["value"]) is (str if isinstance(expected, str) else float)


@pytest.mark.parametrize(
    "value",
    [
        seqio.metrics.Histogram(np.arange(4)),
        seqio.metrics.Image(np.zeros((1, 2, 2, 3))),
        seqio.metrics.Audio(np.zeros((1, 8, 1))),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_neither_is_left_out_and_named(caplog, value):
    judge = judge_of(given(accuracy=1.0, shown=value))
    with caplog.at_level(logging.INFO, "prompt_tuning"):
        assert judge.metrics([], [], []) == {"accuracy": 1.0}
    assert caplog.messages == [
        f"The metric 'shown' is a {type(value).__name__}, which is not written"
    ]


def test_two_metrics_of_one_name_are_refused():
    def again(targets, predictions, aux_values):
        return {"accuracy": 0.0}

    for judge in (judge_of(accuracy, given(accuracy=1.0)), judge_of(accuracy, again)):
        with pytest.raises(DataError) as caught:
            judge.metrics([1], [1], [0.0])
        assert str(caught.value) == (
            "Two metric functions of the task give the metric 'accuracy'. Rename one of them, or "
            "leave one out of `metric_fns`."
        )


classes = functools.partial(postprocessors.string_label_to_class_id, label_names=list(LABELS))


def keeping(text, *, inner, cut=str, **given):
    return {"text": text, "value": inner(cut(text), **given)}


def first(inner, text, **given):
    return inner(text, **given)


WRAPPED = {
    "itself": classes,
    "by keyword": functools.partial(keeping, inner=classes),
    "by place": functools.partial(first, classes),
    "beside another function": functools.partial(keeping, cut=str.strip, inner=classes),
    "twice": functools.partial(first, functools.partial(keeping, inner=classes)),
    "with examples": functools.partial(postprocessors.with_examples, classes),
}


@pytest.mark.parametrize("how", WRAPPED)
def test_the_labels_of_a_postprocessor_are_found_in_what_it_is_wrapped_in(how):
    judge = judge_of(accuracy, postprocess=WRAPPED[how])
    assert judge.label_names == LABELS
    said = judge.prediction("yes", {"inputs_pretokenized": b"x", "targets_pretokenized": b"no"})
    assert "yes" in str(said) or said == 1


@pytest.mark.parametrize(
    "postprocess",
    [
        None,
        postprocessors.identity,
        functools.partial(keeping, inner=postprocessors.identity),
        functools.partial(keeping, inner="no function"),
        lambda text, **_: text,
    ],
    ids=["none", "a function", "wrapped", "nothing in it", "lambda"],
)
def test_other_postprocessors_have_no_labels(postprocess):
    assert judge_of(accuracy, postprocess=postprocess).label_names is None


def told(text, example, is_target):
    return text, example["idx"], is_target


@pytest.mark.parametrize("text", [b"\xc3\xbc yes", "ü yes", np.bytes_(b"\xc3\xbc yes")])
def test_a_postprocessor_is_told_the_record_and_whose_text_it_is(text):
    judge = judge_of(accuracy, postprocess=told)
    record = {"idx": 3, "targets_pretokenized": text, "targets": np.array([4, 1])}
    assert judge.target(record) == ("ü yes", 3, True)
    assert judge.prediction("no", record) == ("no", 3, False)


def test_a_target_without_text_is_decoded():
    judge = judge_of(accuracy, postprocess=told)
    tokens = np.array([*seqio.ByteVocabulary().encode("yes"), 1], np.int32)
    assert judge.target({"idx": 0, "targets": tokens}) == ("yes", 0, True)


def test_without_a_postprocessor_texts_are_compared():
    judge = judge_of(accuracy)
    record = {"targets_pretokenized": b"yes"}
    found = judge.metrics([judge.target(record)], [judge.prediction("yes", record)], [0.0])
    assert found == {"accuracy": 100.0}
