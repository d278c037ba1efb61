"""Preprocessors, postprocessors and metrics: the text of a task, without its files."""

import pytest
import tensorflow as tf

from prompt_tuning.tasks import metrics, postprocessors, preprocessors


def record(**features):
    return {name: tf.constant(value) for name, value in features.items()}


def text(tensor):
    return tensor.numpy().decode()


def test_keys_of_glue_stand_in_alphabetical_order():
    written = preprocessors.glue_format("mnli", ["premise", "hypothesis"])
    assert written == "mnli hypothesis: {hypothesis} premise: {premise}"
    assert preprocessors.format_keys(written) == ["hypothesis", "premise"]


def test_a_record_becomes_text_and_keeps_its_features():
    made = preprocessors.classification(
        record(question="Who?", sentence="A ☃ {did}.", label=1),
        text_format="qnli question: {question} sentence: {sentence}!",
        label_names=["entailment", "not_entailment"],
    )
    assert text(made["inputs"]) == "qnli question: Who? sentence: A ☃ {did}.!"
    assert text(made["targets"]) == "not_entailment"
    assert text(made["question"]) == "Who?" and made["label"] == 1


@pytest.mark.parametrize(("label", "name"), [(0, "bad"), (1, "good"), (-1, "<unk>")])
def test_a_label_becomes_its_name(label, name):
    made = preprocessors.classification(
        record(s="x", level=label),
        text_format="{s}",
        label_names=["bad", "good"],
        label_key="level",
    )
    assert text(made["targets"]) == name


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("sst2 sentence: so good", "sentence: so good"),
        ("sst2  two spaces", " two spaces"),
        ("word", "word"),
        (" sst2 sentence", "sst2 sentence"),
        ("", ""),
    ],
)
def test_the_first_word_and_its_space_go(before, after):
    made = preprocessors.remove_first_text_token(record(inputs=before, targets="stays"))
    assert (text(made["inputs"]), text(made["targets"])) == (after, "stays")


@pytest.mark.parametrize(
    ("written", "number"),
    [
        ("negative", 0),
        ("positive", 1),
        ("Positive", -1),
        ("positive ", -1),
        ("", -1),
        ("<unk>", -1),
    ],
)
def test_a_written_label_becomes_its_number(written, number):
    names = ("negative", "positive")
    assert postprocessors.string_label_to_class_id(written, label_names=names) == number
    assert (
        postprocessors.string_label_to_class_id(
            written, label_names=list(names), example={}, is_target=True
        )
        == number
    )


@pytest.mark.parametrize(
    ("predictions", "percent"),
    [([0, 1, 1, 0], 100.0), ([0, 1, -1, 1], 50.0), ([1, 0, -1, -1], 0.0)],
)
def test_accuracy_is_in_percent(predictions, percent):
    assert metrics.accuracy([0, 1, 1, 0], predictions) == {"accuracy": percent}


def test_accuracy_needs_a_prediction_for_each_target():
    with pytest.raises(ValueError, match="shorter"):
        metrics.accuracy([0, 1], [0])
