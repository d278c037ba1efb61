"""Recycled prompts' tasks: answers written and answers ranked, with other words for the labels."""

import functools
import re

import numpy as np
import pytest
import seqio
import tensorflow as tf

from prompt_tuning.data.seqio_tasks import with_vocabulary
from prompt_tuning.errors import ConfigError
from prompt_tuning.tasks import recycling, recycling_text
from tests.tasks.written_tasks import Written, close, judged, texts

SST2 = [
    {"sentence": "a warm , wise film ", "label": 1, "idx": 0},
    {"sentence": "dull", "label": 0, "idx": 1},
]
IMDB = [{"text": "Warm.<br />Wise film", "label": 1}, {"text": "Dull", "label": 0}]
QQP = [
    {"question1": "Why?", "question2": "What for?", "label": 1, "idx": 0},
    {"question1": "Why?", "question2": "How  so?", "label": 0, "idx": 1},
]
RECORD = [
    {
        "passage": "Ada met Bo.\n@highlight\nAda wrote it\n@highlight\nBo rang",
        "query": "@placeholder wrote it",
        "entities": ["Ada", "Bo", "Ada Bo"],
        "answers": ["Ada", "Ada Bo"],
        "idx": {"passage": 3, "query": 7},
    },
    {
        "passage": "It rained.",
        "query": "On @placeholder",
        "entities": ["Bo"],
        "answers": ["Bo"],
        "idx": {"passage": 4, "query": 8},
    },
]

SST2_INPUTS = ["sentence: a warm , wise film ", "sentence: dull"]
IMDB_INPUTS = [one["text"] for one in IMDB]
QQP_INPUTS = [
    "question1: Why? question2: What for?",
    "question1: Why? question2: How  so?",
]
RECORD_INPUTS = [
    "query: @placeholder wrote it entities: Ada, Bo, Ada Bo passage: Ada met Bo. Ada wrote it. "
    "Bo rang",
    "query: On @placeholder entities: Bo passage: It rained.",
]

# A name without its ending, the records, their inputs, the labels, the metrics of answers, and the
# endings of the tasks that train, test and rank.
FAMILIES = [
    (
        "pr:glue_sst2_v200",
        SST2,
        SST2_INPUTS,
        ("negative", "positive"),
        ("accuracy",),
        ("_train", "_test", ["_test_rc"]),
    ),
    *(
        (
            f"pr:imdb_v100_{'_'.join(labels)}_verbalizers",
            IMDB,
            IMDB_INPUTS,
            labels,
            ("accuracy",),
            ("_train", "_test", ["_test_rc"]),
        )
        for labels in (("0", "1"), ("negative", "positive"))
    ),
    *(
        (
            f"pr:glue_qqp_v200_{name}_verbalizers",
            QQP,
            QQP_INPUTS,
            labels,
            ("f1", "accuracy"),
            ("_training", "_test", ["_rc", "_rc_normed"]),
        )
        for name, labels in {
            "not_duplicate_duplicate": ("not_duplicate", "duplicate"),
            "0_1": ("0", "1"),
            "unique_duplicate": ("unique", "duplicate"),
            "not_spc_duplicate_duplicate": ("not duplicate", "duplicate"),
        }.items()
    ),
]
IDS = [name for name, *_ in FAMILIES]
each_family = pytest.mark.parametrize(
    ("name", "records", "inputs", "labels", "metrics", "endings"), FAMILIES, ids=IDS
)


def test_the_table_has_every_task():
    names = [
        f"{name}{ending}"
        for name, *_, (train, test, ranked) in FAMILIES
        for ending in (train, test, *ranked)
    ]
    record = [f"pr:super_glue_record_v102_{ending}" for ending in ("training", "test", "rc")]
    assert sorted(recycling.NAMES) == sorted(
        [*names, *record, "c4_v220_random_positive_negative_targets"]
    )
    # Names that a seqio of our dependencies takes.
    assert all(re.fullmatch(r"[\w.:]+", name) for name in names)


@each_family
def test_answers_are_the_words_for_the_labels(name, records, inputs, labels, metrics, endings):
    written = Written(records=records, texts=list(zip(inputs, [labels[1], labels[0]], strict=True)))
    full, nothing = dict.fromkeys(metrics, 100.0), dict.fromkeys(metrics, 0.0)
    for task in (f"{name}{ending}" for ending in endings[:2]):
        assert texts(task, written) == list(written.texts)
        for answers, meanings, worth in (
            ([labels[1], labels[0]], [1, 0], full),
            ([labels[0], labels[1]], [0, 1], nothing),
            (["", ""], [-1, -1], nothing),
            ([f"{labels[1]}.", "Paris"], [-1, -1], nothing),
        ):
            assert judged(task, written, answers) == ([1, 0], meanings, close(worth))


@each_family
def test_every_label_is_ranked(name, records, inputs, labels, metrics, endings, vocabulary):
    for task in (f"{name}{ending}" for ending in endings[2]):
        examples = ranked(task, records, vocabulary)
        assert [one["inputs_pretokenized"].decode() for one in examples] == [
            inputs[0], inputs[0], inputs[1], inputs[1],
        ]  # fmt: skip
        assert [one["targets_pretokenized"].decode() for one in examples] == [*labels, *labels]
        assert [one["idx"].tolist() for one in examples] == [[0, 0], [0, 1], [1, 0], [1, 1]]
        assert [bool(one["is_correct"]) for one in examples] == [False, True, True, False]
        right = worth(task, examples, [-2.0, -1.0, -1.0, -2.0])
        wrong = worth(task, examples, [-1.0, -20.0, -20.0, -1.0])
        plain = dict.fromkeys(("accuracy", "f1", "auc-roc", "auc-pr"), 100.0)
        beside = {f"normed_{key}": value for key, value in plain.items()} if "0_1" in name else {}
        beside = beside if "imdb" in name else {}
        assert right == close(plain | beside)
        assert wrong["accuracy"] == wrong["auc-roc"] == 0.0


def test_length_decides_where_scores_are_normed(vocabulary):
    family = "pr:glue_qqp_v200_not_spc_duplicate_duplicate_verbalizers"
    examples = ranked(f"{family}_rc", QQP, vocabulary)
    lengths = [len(one["targets"]) for one in examples]
    assert lengths[0] > lengths[1]
    # The longer label says more in all, and less a token.
    scores = [-1.5 * lengths[0] / lengths[1], -2.0] * 2
    assert lengths == lengths[:2] * 2
    assert worth(f"{family}_rc", examples, [-3.0, -2.0] * 2)["accuracy"] == 50.0
    assert worth(f"{family}_rc", examples, scores) != worth(f"{family}_rc_normed", examples, scores)


def ranked(name, records, vocabulary):
    """Returns the tokenised examples of a task over records."""

    def spec(key, value):
        if isinstance(value, dict):
            return {inner: spec(inner, one) for inner, one in value.items()}
        kind = tf.int64 if isinstance(value, int) else tf.string
        return tf.TensorSpec([None] if isinstance(value, list) else [], kind)

    source = seqio.FunctionDataSource(
        lambda split, shuffle_files, seed=None: tf.data.Dataset.from_generator(
            lambda: iter(records),
            output_signature={key: spec(key, value) for key, value in records[0].items()},
        ),
        splits=["validation"],
    )
    task = with_vocabulary(seqio.TaskRegistry.get(name), vocabulary).replace(source=source)
    examples = task.get_dataset(None, "validation", shuffle=False)
    return list(examples.as_numpy_iterator())


def worth(name, examples, scores):
    """Returns the metrics of scores of all candidates, as an evaluator in mode `score` does."""
    task = seqio.TaskRegistry.get(name)
    assert not task.predict_metric_fns
    targets = [
        task.postprocess_fn(one["targets_pretokenized"].decode(), example=one, is_target=True)
        for one in examples
    ]
    values = {}
    for metric in task.score_metric_fns:
        values |= metric(targets, scores)
    return values


def test_answers_to_record_are_written_once_for_each_right_one():
    written = Written(
        records=RECORD,
        texts=[
            (RECORD_INPUTS[0], "Ada"),
            (RECORD_INPUTS[0], "Ada Bo"),
            (RECORD_INPUTS[1], "Bo"),
        ],
    )
    right = [
        {"value": ["Ada", "Ada Bo"], "group": (3, 7)},
        {"value": ["Ada", "Ada Bo"], "group": (3, 7)},
        {"value": ["Bo"], "group": (4, 8)},
    ]
    for task in ("pr:super_glue_record_v102_training", "pr:super_glue_record_v102_test"):
        assert texts(task, written) == list(written.texts)
        # The second answer to the same query is not looked at.
        for answers, exact, f1 in (
            (["ada", "x", "Bo."], 100, 100),
            (["Bo Ada", "Ada", "Ada"], 0, 50),
            (["", "", ""], 0, 0),
            (["<unk>", "Ada", "?"], 0, 0),
        ):
            targets, said, values = judged(task, written, answers)
            assert targets == right
            assert said == [{"value": answer} for answer in answers]
            assert values == close({"em": exact, "f1": f1})


def test_entities_of_record_are_ranked(vocabulary):
    name = "pr:super_glue_record_v102_rc"
    examples = ranked(name, RECORD, vocabulary)
    assert [one["targets_pretokenized"].decode() for one in examples] == [
        "Ada", "Bo", "Ada Bo", "Bo",
    ]  # fmt: skip
    assert [one["inputs_pretokenized"].decode() for one in examples] == [
        *[RECORD_INPUTS[0]] * 3,
        RECORD_INPUTS[1],
    ]
    assert [one["idx"].tolist() for one in examples] == [[0, 0], [0, 1], [0, 2], [1, 0]]
    assert [bool(one["is_correct"]) for one in examples] == [True, False, True, True]
    assert worth(name, examples, [-9.0, -2.0, -1.0, -5.0])["accuracy"] == 100.0
    lengths = [len(one["targets"]) for one in examples]
    scores = [-9.0 * lengths[0], -1.0 * lengths[1], -1.1 * lengths[2], -5.0]
    assert worth(name, examples, scores)["normed_accuracy"] == 50.0


@pytest.mark.parametrize("name", [*IDS, "pr:super_glue_record_v102"])
def test_mixtures_train_test_and_rank_at_once(name):
    family = {one for one in recycling.NAMES if one.startswith(f"{name}_")}
    train = {one for one in family if one.endswith(("_train", "_training"))}
    assert len(train) == 1
    for mixture, tasks in ((name, family), (f"{name}_eval", family - train)):
        found = seqio.MixtureRegistry.get(mixture)
        assert {task.name: found.get_rate(task) for task in found.tasks} == dict.fromkeys(tasks, 1)


@pytest.mark.parametrize(
    ("name", "splits"),
    [
        ("pr:glue_sst2_v200_train", {"train": "train[:-1000]", "validation": "train[-1000:]"}),
        ("pr:glue_sst2_v200_test", {"validation": "validation"}),
        ("pr:glue_sst2_v200_test_rc", {"validation": "validation"}),
        ("pr:imdb_v100_0_1_verbalizers_train", recycling.without_last(1000)),
        ("pr:imdb_v100_0_1_verbalizers_test", {"validation": "test"}),
        ("pr:imdb_v100_0_1_verbalizers_test_rc", {"validation": "test"}),
        ("pr:glue_qqp_v200_0_1_verbalizers_training", recycling.without_last(10_000)),
        ("pr:super_glue_record_v102_training", recycling.without_last(10_000)),
    ],
)
def test_what_is_evaluated_on_is_carved_out(name, splits):
    source = seqio.TaskRegistry.get(name).source
    assert {split: source.tfds_dataset._map_split(split) for split in source.splits} == splits


def test_unknown_labels_have_a_name_of_their_own():
    named = recycling_text.name_label({"label": tf.constant(-1)}, label_names=["a", "b"])
    assert named["label"] == b"UNK"
    assert texts(
        "pr:imdb_v100_0_1_verbalizers_test", Written(records=[{"text": "x", "label": -1}], texts=[])
    ) == [("x", "UNK")]


def test_fields_that_are_there_are_joined():
    record = {"title": tf.constant("A  b"), "other": tf.constant("c")}
    assert recycling_text.join_fields(record)["text"] == b"A b"
    both = recycling_text.join_fields(record, fields=["other", "title"], output_field="all")
    assert both["all"] == b"c A b"


def drawn(probs, count=400):
    features = {"targets": seqio.Feature(seqio.ByteVocabulary())}
    dataset = tf.data.Dataset.from_tensor_slices({"targets": [[7, 8]] * count})
    with seqio.map_seed_manager(initial_seed=0):
        made = recycling_text.random_targets(
            dataset, features, targets=["a", "bc", "d"], probs=probs
        )
    decode = features["targets"].vocabulary.decode
    return [decode(one["targets"].tolist()) for one in made.as_numpy_iterator()]


@pytest.mark.parametrize("probs", [None, [0.1, 0.6], [0.1, 0.6, 0.3]])
def test_targets_are_drawn_as_often_as_they_are_likely(probs):
    expected = {None: [1 / 3] * 3}.get(probs if probs is None else 0, [0.1, 0.6, 0.3])
    made = drawn(probs)
    shares = [made.count(text) / len(made) for text in ("a", "bc", "d")]
    np.testing.assert_allclose(shares, expected, atol=0.08)


@pytest.mark.parametrize(
    "probs", [[0.5], [0.5, 0.5, 0.5], [1.2, -0.2], [0.0, 0.5, 0.5], [0.5, 0.5], [0.2, 0.3, 0.4]]
)
def test_what_is_no_distribution_is_refused(probs):
    refused = functools.partial(pytest.raises, ConfigError)
    with refused(match=re.escape(f"probs={probs}): expected 3 probabilities above 0 that add")):
        drawn(probs, count=1)
