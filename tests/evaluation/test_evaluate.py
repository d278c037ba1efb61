import dataclasses
import json

import jax
import numpy as np
import pytest

from prompt_tuning.data.batches import OnePassBatches, assemble, fixed
from prompt_tuning.data.examples import Example
from prompt_tuning.evaluation import Decoded, TeacherForced
from prompt_tuning.losses import Loss
from prompt_tuning.partitioning import placement
from prompt_tuning.prompts import PromptParam
from prompt_tuning.training.metrics import finish
from prompt_tuning.training.state import split_model
from prompt_tuning.training.step import make_eval_step
from prompt_tuning.vocabulary import SentencePieceVocabulary
from tests.small_models import compiled, small_model
from tests.small_vocabulary import train

VOCABULARY_SIZE = 260


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    small = train(tmp_path_factory.mktemp("vocabulary") / "small.model")
    assert small.size == VOCABULARY_SIZE
    return small


@pytest.fixture(scope="module")
def model():
    """A model with dropout, which no evaluation may use."""
    return small_model(vocab_size=VOCABULARY_SIZE, dropout_rate=0.5)


def example(inputs, targets):
    return Example(np.array([*inputs, 1], np.int32), np.array([*targets, 1], np.int32))


# Seven examples: batches of 8, 10 and 8 input tokens, the last one with two empty rows. They have
# few lengths, as each is compiled.
EXAMPLES = [
    example([5, 9], [7]),
    example([6, 6, 6, 40, 41, 42, 43], [9]),
    example([90, 17], [8]),
    example([11, 12], [8]),
    example(range(100, 109), [12, 13, 14]),
    example([30, 31, 32, 33, 34, 35, 36], [7]),
    example([250, 3], [8]),
]


@dataclasses.dataclass(frozen=True)
class Split:
    """A split whose metric is which texts it was given."""

    examples: list

    @property
    def longest(self):
        return tuple(max(map(len, feature)) for feature in zip(*self.examples, strict=True))

    def targets(self):
        return [np.int64(index) for index in range(len(self.examples))]

    def metrics(self, texts):
        return {
            "count": len(texts),
            **{f"letters/{index}": len(text) for index, text in enumerate(texts)},
        }

    def record(self, index):
        return {
            "text": f"number {index} – ü".encode(),
            "idx": np.int32(index),
            "scores": np.array([0.5, 1.0]),
            "languages": np.array([b"de", b"en"]),
            **self.examples[index]._asdict(),
        }


def replicated(place):
    """Returns how the two states are put where `place` puts a batch."""
    return place.__self__.replicated if place else lambda state: state


def decode(model, vocabulary, examples, batch_size, place=None):
    evaluation = Decoded(
        name="tiny", split=Split(examples), vocabulary=vocabulary, batch_size=batch_size
    )
    graph, prompt, frozen = split_model(model, PromptParam)
    return evaluation.prepare(graph, place)(*map(replicated(place), (prompt, frozen)))


@pytest.fixture(scope="module")
def decoded(model, vocabulary):
    return decode(model, vocabulary, EXAMPLES, 3)


def texts(result):
    return [row["prediction"] for row in result.rows]


def test_every_example_is_answered_once_and_in_its_order(model, vocabulary, decoded):
    assert len(decoded.rows) == len(EXAMPLES)
    assert len(set(texts(decoded))) > 3  # so that an answer in another's place would be seen
    alone = decode(model, vocabulary, EXAMPLES, 1)
    assert texts(alone) == texts(decoded)


def test_the_answers_are_judged_without_the_empty_rows(decoded):
    assert decoded.metrics == {
        "count": 7.0,
        **{f"letters/{index}": len(text) for index, text in enumerate(texts(decoded))},
    }


def test_a_row_holds_the_record_in_words_that_json_has(decoded):
    for index, row in enumerate(json.loads(json.dumps(decoded.rows))):
        assert row == {
            "input": {
                "text": f"number {index} – ü",
                "idx": index,
                "scores": [0.5, 1.0],
                "languages": ["de", "en"],
                "inputs": EXAMPLES[index].inputs.tolist(),
                "targets": EXAMPLES[index].targets.tolist(),
            },
            "target": index,
            "prediction": texts(decoded)[index],
        }


def test_no_answer_is_longer_than_the_longest_right_one(model, tmp_path):
    # A vocabulary whose every piece is one letter counts the tokens of an answer.
    letters = SentencePieceVocabulary(train(tmp_path / "small.model").path, extra_ids=0)
    result = decode(model, letters, [example([5, 9, 30], [])] * 3, 3)
    assert all(len(text.split()) <= 1 for text in texts(result))


@pytest.fixture(scope="module")
def direct(model):
    """The loss over every example alone, without a position of padding."""
    total = None
    for one in EXAMPLES:
        batch = assemble([one], inputs=fixed(len(one.inputs)), targets=fixed(len(one.targets)))
        _, sums = Loss()(compiled(model, "__call__", batch), batch)
        sums = jax.device_get(sums)
        total = sums if total is None else jax.tree.map(np.add, total, sums)
    return total


def evaluate(model, *, examples=EXAMPLES, place=None, **settings):
    evaluation = TeacherForced(name="tiny", split=Split(examples), batch_size=3, **settings)
    graph, prompt, frozen = split_model(model, PromptParam)
    return evaluation.prepare(graph, place)(*map(replicated(place), (prompt, frozen)))


SAME_WHATEVER_THE_PADDING = ("loss", "z_loss", "correct", "predicted", "weights")


def test_the_teacher_forced_loss_is_the_one_over_the_unpadded_split(model, direct):
    metrics, rows, alarms = evaluate(model)
    assert rows == alarms == []
    expected = finish(direct | {"steps": 3})
    assert metrics.keys() == expected.keys()
    for name in ("loss", "z_loss", "loss_per_nonpadding_target_token", "accuracy"):
        assert metrics[name] == pytest.approx(expected[name], rel=1e-6), name
    assert metrics["effective_batch_size/encoder_input_tokens"] == pytest.approx(7 / 3)


def test_the_loss_is_the_same_with_fixed_lengths_as_with_buckets(model, direct):
    source = OnePassBatches(examples=EXAMPLES, batch_size=3, inputs=fixed(16), targets=fixed(8))
    graph, prompt, frozen = split_model(model, PromptParam)
    step = make_eval_step(graph)
    sums = [jax.device_get(step(prompt, frozen, batch)) for batch in source.batches()]
    for name in SAME_WHATEVER_THE_PADDING:
        total = sum(float(one[name]) for one in sums)
        assert total == pytest.approx(float(direct[name]), rel=1e-6), name


def test_an_evaluation_stops_after_as_many_batches_as_asked_for(model):
    metrics, _, _ = evaluate(model, steps=1)
    assert metrics["effective_batch_size/encoder_input_tokens"] == 3
    first = [len(example.targets) for example in EXAMPLES[:3]]
    assert metrics["non_padding_fraction/decoder_target_tokens"] == sum(first) / (3 * 4)


SLOW = [pytest.param(devices, marks=pytest.mark.slow) for devices in (1, 8)]
DEVICES = pytest.mark.parametrize("devices", [3, *SLOW])


@DEVICES
def test_the_answers_are_the_same_on_any_number_of_devices(model, vocabulary, decoded, devices):
    found = decode(model, vocabulary, EXAMPLES, 3, placement(devices).batch)
    assert found == decoded


@DEVICES
def test_the_teacher_forced_metrics_are_the_same_on_any_number_of_devices(model, devices):
    expected = evaluate(model).metrics
    found = evaluate(model, place=placement(devices).batch).metrics
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == (value if devices == 1 else pytest.approx(value, rel=1e-6)), name


def test_answers_that_are_all_the_same_raise_an_alarm(model, vocabulary):
    same = decode(model, vocabulary, [EXAMPLES[0]] * 3, 3)
    [alarm] = same.alarms
    assert alarm.startswith("All 3 answers are ")


def test_answers_that_differ_raise_none(decoded):
    assert decoded.alarms == []
