import dataclasses
import json

import numpy as np
import pytest

from prompt_tuning.data.batches import assemble, fixed
from prompt_tuning.data.file_task import ClassAccuracy
from prompt_tuning.data.task_split import Lengths
from prompt_tuning.decoding.scoring import make_score
from prompt_tuning.errors import ConfigError
from prompt_tuning.evaluation import Answer, ChooseLabel, Decode, Evaluation, TaskMetrics
from prompt_tuning.partitioning import placement
from tests.evaluation.questions import EXAMPLES, SaysTerms, Told, columns, found_by, questions

pytestmark = pytest.mark.usefixtures("programs")

LABELS = ("is", "one", "for", "us")


def evaluate(split_states, split, answering, *, batch_size=3, where=None):
    """Returns what is found, with batches and states on the devices of a placement."""
    evaluation = TaskMetrics(name="tiny", split=split, answering=answering, batch_size=batch_size)
    return found_by(evaluation, split_states, where)


def modes(*names):
    return questions(judge=Told(modes=frozenset(names)))


ALL = "predict", "predict_with_aux", "score"


@pytest.fixture(scope="module")
def everything(split_states, vocabulary):
    """What a task with metrics of every kind has found in batches of three on one device."""
    return evaluate(split_states, modes(*ALL), Decode(vocabulary=vocabulary))


def texts(result):
    return [row["prediction"] for row in result.rows]


def same(found, expected):
    """Compares two results: what is said to the letter, scores but for the order of sums."""
    assert texts(found) == texts(expected)
    assert found.texts == expected.texts
    assert found.alarms == expected.alarms
    assert found.metrics == pytest.approx(expected.metrics, rel=1e-5)
    for one, other in zip(found.rows, expected.rows, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            if name in ("score", "aux_scores"):
                assert one[name] == pytest.approx(other[name], rel=1e-5)
            else:
                assert one[name] == other[name]


@pytest.mark.parametrize("batch_size", [1, 8])
def test_metrics_and_rows_are_the_same_for_any_size_of_batch(
    split_states, vocabulary, everything, batch_size
):
    assert len(set(texts(everything))) > 3  # so that an answer in another's place would be seen
    found = evaluate(
        split_states, modes(*ALL), Decode(vocabulary=vocabulary), batch_size=batch_size
    )
    same(found, everything)


@pytest.mark.parametrize("devices", [1, 8])
def test_metrics_and_rows_are_the_same_on_any_number_of_devices(
    split_states, vocabulary, everything, devices
):
    answering = Decode(vocabulary=vocabulary)
    found = evaluate(split_states, modes(*ALL), answering, where=placement(devices))
    same(found, everything)


def test_the_metrics_are_of_the_answers_and_scores_that_the_rows_show(everything):
    predictions = [f"{i}: {text}" for i, text in enumerate(texts(everything))]
    scores = [row["score"] for row in everything.rows]
    assert everything.metrics == {
        "count": len(EXAMPLES),
        "letters": sum(map(len, predictions)),
        "scores": pytest.approx(sum(row["aux_scores"] for row in everything.rows)),
        "weighted score": pytest.approx(sum(i * score for i, score in enumerate(scores))),
    }
    assert everything.texts == {
        "said": "\n".join(predictions),
        "best": str(int(np.argmax(scores))),
    }


def test_a_row_holds_the_record_in_words_that_json_has(everything):
    for index, row in enumerate(json.loads(json.dumps(everything.rows, allow_nan=False))):
        assert row == {
            "id": f"validation/{index}",
            "input": {
                "inputs_pretokenized": f"number {index} – ü",
                "idx": index,
                "parts": [0.5, index],
                "languages": ["de", "en"],
                "inputs": EXAMPLES[index].inputs.tolist(),
                "targets": EXAMPLES[index].targets.tolist(),
            },
            "target": index,
            "prediction": texts(everything)[index],
            "aux_scores": everything.rows[index]["aux_scores"],
            "score": everything.rows[index]["score"],
        }


@pytest.mark.parametrize("write_rows", [0, 2, 99])
def test_fewer_rows_are_the_first_and_change_no_metric(
    split_states, vocabulary, everything, write_rows
):
    evaluation = TaskMetrics(
        name="tiny",
        split=modes(*ALL),
        answering=Decode(vocabulary=vocabulary),
        batch_size=3,
        write_rows=write_rows,
    )
    found = found_by(evaluation, split_states, None)
    same(found, everything._replace(rows=everything.rows[:write_rows]))


def test_a_negative_number_of_rows_is_refused(vocabulary):
    with pytest.raises(ConfigError, match=r"^JSON_WRITE_N_RESULTS is -1, expected 0 or more rows"):
        TaskMetrics(
            name="tiny",
            split=modes(*ALL),
            answering=Decode(vocabulary=vocabulary),
            batch_size=3,
            write_rows=-1,
        )


def test_scores_are_the_log_probabilities_of_the_right_answers(split_states, everything):
    graph, prompt, frozen = split_states
    score = make_score(graph)
    for example, row in zip(EXAMPLES, everything.rows, strict=True):
        batch = assemble([example], inputs=fixed(10), targets=fixed(4))
        assert row["score"] == pytest.approx(float(score(prompt, frozen, batch)[0]), rel=1e-5)


@pytest.mark.parametrize(
    ("asked", "row", "metrics"),
    [
        (["predict"], {"prediction"}, {"count", "letters", "scores"}),
        (["predict_with_aux"], {"prediction", "aux_scores"}, {"count", "letters", "scores"}),
        (["score"], {"score"}, {"weighted score"}),
    ],
    ids=["predict", "predict_with_aux", "score"],
)
def test_a_model_is_asked_only_for_what_the_metrics_want(
    split_states, vocabulary, asked, row, metrics
):
    answering = Decode(vocabulary=vocabulary, strategy=SaysTerms())
    found = evaluate(split_states, modes(*asked), answering)
    assert found.metrics.keys() == metrics
    assert all(one.keys() == {"id", "input", "target"} | row for one in found.rows)


@pytest.mark.parametrize(
    ("limit", "length"), [(None, 4), (9, 9), (2, 2)], ids=["longest target", "more", "fewer"]
)
def test_task_feature_lengths_decide_how_long_answers_may_be(
    split_states, vocabulary, limit, length
):
    split = modes("predict_with_aux")
    counted = split.lengths["targets"].counts
    lengths = dict(split.lengths) | {"targets": Lengths(counts=counted, limit=limit)}
    split = dataclasses.replace(split, lengths=lengths)
    # The strategy's score is where an answer has to end.
    answering = Decode(vocabulary=vocabulary, strategy=SaysTerms())
    found = evaluate(split_states, split, answering)
    assert [row["aux_scores"] for row in found.rows] == [length] * len(EXAMPLES)


def classes(targets):
    """The questions as a classification, with these right answers."""
    texts = {"targets_pretokenized": [target.encode() for target in targets]}
    return dataclasses.replace(
        questions(),
        columns=columns(len(EXAMPLES)) | texts,
        judge=ClassAccuracy(names=LABELS),
        lengths=dict(questions().lengths) | {"targets": Lengths(counts={4: 7}, limit=6)},
    )


class OfBytes(ClassAccuracy):
    """A task of seqio keeps its texts as bytes."""

    def target(self, record):
        return self._class(record["targets_pretokenized"].decode())


def test_answers_that_are_classes_are_counted_class_by_class(split_states, vocabulary):
    targets = ["one", "us", "us", "for", "<unk>", "is", "for"]
    split = dataclasses.replace(classes(targets), judge=OfBytes(names=LABELS))
    found = evaluate(split_states, split, ChooseLabel(vocabulary=vocabulary))
    assert {*texts(found)} == {"is", "one", "for"}
    pairs = list(zip(targets, texts(found), strict=True))
    assert found.confusion is not None and found.confusion.labels == LABELS
    assert found.confusion.counts.tolist() == [
        [*(pairs.count((right, given)) for given in LABELS), 0] for right in LABELS
    ]
    assert found.confusion.counts.sum() == 6
    right = sum(target == text for target, text in pairs)
    assert 0 < right < 6 and found.metrics == {"accuracy": pytest.approx(100 * right / 7)}
    decoded = evaluate(split_states, split, Decode(vocabulary=vocabulary, strategy=SaysTerms()))
    assert decoded.confusion is not None
    assert decoded.confusion.counts[:, -1].tolist() == [1, 1, 2, 2]


class ByAnotherName(OfBytes):
    """A task that judges the words of another one, and tells of the example as well."""

    def prediction(self, text, record):
        return {"prediction": self._class(text.removeprefix("not ")), "of": record["idx"]}

    def metrics(self, targets, predictions, scores):
        return {}


@dataclasses.dataclass(frozen=True)
class Says:
    """Answers with given texts, whatever the model."""

    texts: tuple[str, ...]

    def prepare(self, graph, *, length, label_names, combination):
        def answer(trainable, frozen, batch, ids):
            return [Answer(self.texts[i], np.zeros(1, np.int32), 0.0) for i in ids]

        return answer


def test_answers_count_as_the_classes_that_the_task_takes_them_for(split_states):
    split = dataclasses.replace(classes(["one"] * 7), judge=ByAnotherName(names=LABELS))
    said = Says(("one", "not one", "us", "not us", "no", "", "is"))
    found = evaluate(split_states, split, said).confusion
    assert found is not None
    #                                       is one for us other
    assert found.counts[1].tolist() == [1, 2, 0, 2, 2]


class OfTexts(Told):
    """Right answers that are no classes, though the task has names for some."""

    def target(self, record):
        return "text"


@pytest.mark.parametrize("judge", [Told(), OfTexts(label_names=("a", "b"))], ids=["names", "texts"])
def test_without_labels_or_classes_nothing_is_counted(judge):
    evaluation = TaskMetrics(
        name="tiny", split=questions(judge=judge), answering=Says(()), batch_size=3
    )
    assert evaluation._confusion(evaluation.split.targets(), ["a"] * len(EXAMPLES)) is None


def test_answers_that_are_all_the_same_raise_an_alarm(split_states, vocabulary, everything):
    answering = Decode(vocabulary=vocabulary, strategy=SaysTerms())
    [alarm] = evaluate(split_states, questions(), answering).alarms
    assert alarm.startswith("All 7 answers are ")
    assert everything.alarms == []


def test_it_knows_its_data_and_where_its_metrics_go(vocabulary):
    split = questions()
    answering = Decode(vocabulary=vocabulary)
    evaluation = TaskMetrics(name="tiny", split=split, answering=answering, batch_size=3)
    assert isinstance(evaluation, Evaluation)
    assert evaluation.fingerprint == split.fingerprint
    assert (evaluation.folder, evaluation.tag_prefix) == ("inference_eval", "eval/")
