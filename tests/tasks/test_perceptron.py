"""Choosing among labels: an example with all of them, one example each, and the label written."""

import numpy as np
import pytest
import seqio

from prompt_tuning.data.seqio_tasks import with_vocabulary
from prompt_tuning.tasks import perceptron, rank_classification
from tests.tasks import test_glue, test_super_glue
from tests.tasks.written_tasks import Written, as_example, dataset, examples, steps, texts

HELD_OUT = {
    "glue_cola_v200": 500,
    "glue_sst2_v200": 2000,
    "glue_mrpc_v200": 200,
    "glue_qqp_v200": 5000,
    "glue_qnli_v200": 3000,
    "glue_rte_v200": 200,
    "super_glue_boolq_v102": 400,
    "super_glue_cb_v102": 50,
    "super_glue_copa_v102": 50,
    "super_glue_rte_v102": 200,
    "super_glue_wic_v102": 400,
}
LABELS = {
    "glue_cola_v200": ["unacceptable", "acceptable"],
    "glue_sst2_v200": ["negative", "positive"],
    "glue_mrpc_v200": ["not_equivalent", "equivalent"],
    "glue_qqp_v200": ["not_duplicate", "duplicate"],
    "glue_qnli_v200": ["entailment", "not_entailment"],
    "glue_rte_v200": ["entailment", "not_entailment"],
    "super_glue_boolq_v102": ["False", "True"],
    "super_glue_cb_v102": ["entailment", "contradiction", "neutral"],
    "super_glue_copa_v102": ["choice1", "choice2"],
    "super_glue_rte_v102": ["entailment", "not_entailment"],
    "super_glue_wic_v102": ["False", "True"],
}
KINDS = [
    f"{kind}_{part}"
    for kind, parts in {
        "perceptron": ("train", "test"),
        "generation": ("train", "test"),
        "rank_classification": ("validation", "test"),
    }.items()
    for part in parts
]

every_data_set = pytest.mark.parametrize("name", HELD_OUT)


def table(name):
    """The records and the texts of a data set, without the task's name."""
    config = name.split("glue_")[1].partition("_v")[0]
    tables = test_glue.TABLE if name.startswith("glue") else test_super_glue.TABLE
    written = tables[config if name.startswith("glue") else name]
    taskless = [(inputs.split(" ", 1)[1], target) for inputs, target in written.texts]
    return Written(
        records=written.records,
        texts=taskless,
        targets=written.targets,
        answers=written.answers,
    )


def test_the_table_has_every_registered_task():
    known = [f"{name}_{kind}" for name in HELD_OUT for kind in KINDS]
    assert sorted(known) == sorted(perceptron.NAMES) and len(known) == 66
    mixtures = [f"{name}_{kind}" for name in HELD_OUT for kind in ("perceptron", "generation")]
    assert sorted(mixtures) == sorted(perceptron.MIXTURES)


@every_data_set
def test_the_end_of_the_train_split_validates(name):
    count = HELD_OUT[name]
    carved = {"train": f"train[:-{count}]", "validation": f"train[-{count}:]"}
    wanted = {
        "perceptron_train": carved,
        "perceptron_test": {"validation": "validation"},
        "generation_train": carved,
        "generation_test": {"validation": "validation"},
        "rank_classification_validation": {"validation": carved["validation"]},
        "rank_classification_test": {"validation": "validation"},
    }
    for kind, splits in wanted.items():
        loader = seqio.TaskRegistry.get(f"{name}_{kind}").source.tfds_dataset
        found = {split: loader._map_split(split) for split in splits}
        assert found == splits
        assert list(seqio.TaskRegistry.get(f"{name}_{kind}").splits) == list(splits)
        assert loader.name.startswith(name.partition("_v")[0].replace("glue_", "glue/"))
        assert loader.name.endswith("2.0.0" if name.startswith("glue") else "1.0.2")


@every_data_set
def test_mixtures_train_on_one_task_and_are_judged_in_several_ways(name):
    members = {
        "perceptron": ["perceptron_train", "perceptron_test"],
        "generation": [kind for kind in KINDS if not kind.startswith("perceptron")],
    }
    for mixture, kinds in members.items():
        rates = seqio.MixtureRegistry.get(f"{name}_{mixture}").rate_per_task_name
        assert rates == {f"{name}_{kind}": 1.0 for kind in kinds}


@every_data_set
def test_the_label_is_written_as_in_the_task_without_its_name(name):
    for kind in ("generation_train", "generation_test"):
        assert texts(f"{name}_{kind}", table(name)) == table(name).texts


@every_data_set
def test_each_label_is_a_candidate(name):
    written, labels = table(name), LABELS[name]
    for kind in ("rank_classification_validation", "rank_classification_test"):
        made = examples(f"{name}_{kind}", written)
        assert [(tuple(one["idx"]), one["inputs"], one["targets"]) for one in made] == [
            ((number, candidate), inputs, label)
            for number, (inputs, _) in enumerate(written.texts)
            for candidate, label in enumerate(labels)
        ]
        right = [one["targets"] == target for one, target in _with_targets(made, written, labels)]
        assert [bool(one["is_correct"]) for one in made] == right
    for kind in ("perceptron_train", "perceptron_test"):
        rows = examples(f"{name}_{kind}", written)
        for row, (inputs, target) in zip(rows, written.texts, strict=True):
            assert row["inputs"] == [inputs] * len(labels)
            assert row["targets"] == labels
            assert row["is_correct"].tolist() == [label == target for label in labels]


def _with_targets(made, written, labels):
    targets = [target for _, target in written.texts for _ in labels]
    return zip(made, targets, strict=True)


@every_data_set
def test_the_likeliest_candidate_is_the_answer(name):
    written, labels = table(name), LABELS[name]
    task = seqio.TaskRegistry.get(f"{name}_rank_classification_test")
    assert task.predict_metric_fns == [] and len(task.score_metric_fns) == 1
    made = [
        as_example(one) | {"targets": np.zeros(3)}
        for one in examples(f"{name}_rank_classification_test", written)
    ]
    targets = [task.postprocess_fn("", example=one, is_target=True) for one in made]
    assert [target.is_correct for target in targets] == [one["is_correct"] for one in made]
    (metric,) = task.score_metric_fns
    right = [0.0 if target.is_correct else -9.0 for target in targets]
    share = f"mean_{len(labels)}class_f1" if len(labels) > 2 else "f1"
    values = metric(targets, right)
    assert values["accuracy"] == values[share] == 100.0
    values = metric(targets, [-score for score in right])
    assert values["accuracy"] == 0.0
    assert task.postprocess_fn(-2.5, example=made[0], is_target=False) == -2.5
    assert isinstance(targets[0], rank_classification.Candidate)


@every_data_set
def test_a_written_answer_is_judged_by_the_data_set_s_metrics(name):
    written, config = table(name), name.split("glue_")[1].partition("_v")[0]
    titles = {
        "perceptron_train": f"{config} Perceptron Validation",
        "perceptron_test": f"{config} Perceptron Test",
        "generation_train": f"{config} Generation Valid",
        "generation_test": f"{config} Generation Test",
    }
    for kind, title in titles.items():
        task = seqio.TaskRegistry.get(f"{name}_{kind}")
        made = [as_example(one) for one in examples(f"{name}_{kind}", written)]
        right = [task.postprocess_fn("", example=one, is_target=True) for one in made]
        if kind.startswith("generation"):
            right = [
                task.postprocess_fn(target, example=one, is_target=True)
                for one, (_, target) in zip(made, written.texts, strict=True)
            ]
        assert right == written.targets
        for answers, meanings, worth in written.answers.values():
            said = [
                task.postprocess_fn(text, example=one, is_target=False)
                for text, one in zip(answers, made, strict=True)
            ]
            assert [one["prediction"] for one in said] == meanings
            values = {}
            for metric in task.metric_fns:
                values |= metric(right, said)
            shown = values.pop(f"{title} samples").textdata
            values.pop(f"{title} negative samples")
            assert values == {key: pytest.approx(value) for key, value in worth.items()}
            assert f"target: {written.texts[0][1]}\n" in shown


@pytest.mark.parametrize("kind", ["train", "test"])
def test_rows_become_columns_of_tokens(vocabulary, kind):
    name = f"super_glue_cb_v102_perceptron_{kind}"
    written, labels = table("super_glue_cb_v102"), LABELS["super_glue_cb_v102"]
    task = with_vocabulary(seqio.TaskRegistry.get(name), vocabulary)
    (split, *_) = task.splits
    text, _ = steps(name)
    assert text == tuple(task.preprocessors)[: len(text)]
    made = list(_tokenised(task, written, split, {"inputs": 64, "targets": 64, "is_correct": 3}))
    assert len(made) == 3
    for example, (inputs, target) in zip(made, written.texts, strict=True):
        for feature, rows in {"inputs": [inputs] * 3, "targets": labels}.items():
            ids = [[*vocabulary.encode(row), 1] for row in rows]
            longest = max(map(len, ids))
            padded = np.array([row + [0] * (longest - len(row)) for row in ids])
            np.testing.assert_array_equal(example[feature], padded.T)
        assert example["is_correct"].tolist() == [label == target for label in labels]


def test_long_rows_are_trimmed_and_still_end(vocabulary):
    task = seqio.TaskRegistry.get("super_glue_cb_v102_perceptron_train")
    task = with_vocabulary(task, vocabulary)
    lengths = {"inputs": 4, "targets": 3, "is_correct": 3}
    for example in _tokenised(task, table("super_glue_cb_v102"), "train", lengths):
        assert example["inputs"].shape == (4, 3) and example["targets"].shape == (3, 3)
        assert example["inputs"][-1].tolist() == example["targets"][-1].tolist() == [1, 1, 1]


def _tokenised(task, written, split, lengths):
    source = seqio.FunctionDataSource(
        lambda split, shuffle_files, seed=None: dataset(written.records), splits=[split]
    )
    return (
        task.replace(source=source).get_dataset(lengths, split, shuffle=False).as_numpy_iterator()
    )
