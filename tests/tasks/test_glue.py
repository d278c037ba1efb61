"""GLUE: every name's text, answers and metrics, on records as TFDS has them."""

import functools

import pytest
import seqio
import tensorflow_datasets as tfds

from prompt_tuning.tasks import glue, preprocessors
from tests.tasks.written_tasks import (
    NOT_A_NUMBER,
    Written,
    all_forms,
    check_answers,
    examples,
    in_form,
    steps,
    texts,
)

MNLI_PARTS = ("mnli", "mnli_matched", "mnli_mismatched")


def two_classes(names, worth_of_right, worth_of_wrong, worth_of_none):
    """Answers to a first example of class 1 and a second one of class 0."""
    first, second = names
    return {
        "right": ([second, first], [1, 0], worth_of_right),
        "wrong": ([first, second], [0, 1], worth_of_wrong),
        "empty": (["", ""], [-1, -1], worth_of_none),
        "garbage": (["Paris", f"{second}."], [-1, -1], worth_of_none),
    }


def of_classes(names, *values):
    """The same for metrics that are 100 for right answers and 0 for others."""
    full, nothing = dict.fromkeys(values, 100.0), dict.fromkeys(values, 0.0)
    return {"targets": [1, 0], "answers": two_classes(names, full, nothing, nothing)}


# What MNLI and its validation sets share; the third record is of a test split.
MNLI = Written(
    records=[
        {"hypothesis": "It rained.", "premise": "The roof  leaks", "label": 1, "idx": 0},
        {"hypothesis": "He slept.", "premise": "He was awake.", "label": 2, "idx": 1},
    ],
    texts=[
        ("mnli hypothesis: It rained. premise: The roof  leaks", "neutral"),
        ("mnli hypothesis: He slept. premise: He was awake.", "contradiction"),
    ],
    targets=[1, 2],
    answers={
        "right": (["neutral", "contradiction"], [1, 2], {"accuracy": 100.0}),
        "wrong": (["entailment", "neutral"], [0, 1], {"accuracy": 0.0}),
        "empty": (["", ""], [-1, -1], {"accuracy": 0.0}),
        "garbage": (["neutral contradiction", "2"], [-1, -1], {"accuracy": 0.0}),
    },
)

TABLE = {
    "cola": Written(
        records=[
            {"sentence": "They rang the bell.", "label": 1, "idx": 7},
            {"sentence": "The bell rang them", "label": 0, "idx": 8},
        ],
        texts=[
            ("cola sentence: They rang the bell.", "acceptable"),
            ("cola sentence: The bell rang them", "unacceptable"),
        ],
        targets=[1, 0],
        answers=two_classes(
            ("unacceptable", "acceptable"),
            {"matthews_corrcoef": 100.0},
            {"matthews_corrcoef": -100.0},
            {"matthews_corrcoef": 0.0},
        ),
    ),
    "sst2": Written(
        records=[
            {"sentence": "a warm , wise film ", "label": 1, "idx": 0},
            {"sentence": "naïvely dull", "label": 0, "idx": 1},
        ],
        texts=[
            ("sst2 sentence: a warm , wise film ", "positive"),
            ("sst2 sentence: naïvely dull", "negative"),
        ],
        **of_classes(("negative", "positive"), "accuracy"),
    ),
    "mrpc": Written(
        records=[
            {"sentence1": "A fell .", "sentence2": "It was A that fell .", "label": 1, "idx": 3},
            {"sentence1": "A fell .", "sentence2": "B rose .", "label": 0, "idx": 4},
        ],
        texts=[
            ("mrpc sentence1: A fell . sentence2: It was A that fell .", "equivalent"),
            ("mrpc sentence1: A fell . sentence2: B rose .", "not_equivalent"),
        ],
        **of_classes(("not_equivalent", "equivalent"), "f1", "accuracy"),
    ),
    "qqp": Written(
        records=[
            {"question1": "Why?", "question2": "What for?", "label": 1, "idx": 3},
            {"question1": "Why?", "question2": "How?", "label": 0, "idx": 4},
        ],
        texts=[
            ("qqp question1: Why? question2: What for?", "duplicate"),
            ("qqp question1: Why? question2: How?", "not_duplicate"),
        ],
        **of_classes(("not_duplicate", "duplicate"), "f1", "accuracy"),
    ),
    "stsb": Written(
        records=[
            {"sentence1": "A dog.", "sentence2": "A hound.", "label": 4.17, "idx": 0},
            {"sentence1": "A dog.", "sentence2": "A tax.", "label": 0.0, "idx": 1},
            {"sentence1": "A cat.", "sentence2": "A lion.", "label": 2.5, "idx": 2},
            {"sentence1": "A.", "sentence2": "A.", "label": 5.0, "idx": 3},
        ],
        texts=[
            ("stsb sentence1: A dog. sentence2: A hound.", "4.2"),
            ("stsb sentence1: A dog. sentence2: A tax.", "0.0"),
            # Half a fifth goes to the even side: 12.5 to 12 fifths.
            ("stsb sentence1: A cat. sentence2: A lion.", "2.4"),
            ("stsb sentence1: A. sentence2: A.", "5.0"),
        ],
        targets=[4.2, 0.0, 2.4, 5.0],
        answers={
            "right": (
                ["4.2", "0.0", "2.4", "5"],
                [4.2, 0.0, 2.4, 5.0],
                {"pearson_corrcoef": 100.0, "spearman_corrcoef": 100.0},
            ),
            "wrong": (
                ["0.8", "5.0", "2.6", "0.0"],
                [0.8, 5.0, 2.6, 0.0],
                {"pearson_corrcoef": -100.0, "spearman_corrcoef": -100.0},
            ),
            "empty": (
                ["", "", "", ""],
                [-1.0] * 4,
                {"pearson_corrcoef": NOT_A_NUMBER, "spearman_corrcoef": NOT_A_NUMBER},
            ),
            "garbage": (
                ["four", "4,2", "nan", "inf"],
                [-1.0] * 4,
                {"pearson_corrcoef": NOT_A_NUMBER, "spearman_corrcoef": NOT_A_NUMBER},
            ),
        },
    ),
    "mnli": MNLI,
    "mnli_matched": MNLI,
    "mnli_mismatched": MNLI,
    # The labels of AX are known to nobody but its server.
    "ax": Written(
        records=[
            {"hypothesis": "It rained.", "premise": "It poured.", "label": -1, "idx": 0},
            {"hypothesis": "", "premise": "He was awake.", "label": -1, "idx": 1},
        ],
        texts=[
            ("mnli hypothesis: It rained. premise: It poured.", "<unk>"),
            ("mnli hypothesis:  premise: He was awake.", "<unk>"),
        ],
        targets=[-1, -1],
        answers={
            "a label": (["entailment", "contradiction"], [0, 2], {}),
            "empty": (["", ""], [-1, -1], {}),
            "garbage": (["yes", "no"], [-1, -1], {}),
        },
    ),
    "qnli": Written(
        records=[
            {"question": "Who rang?", "sentence": "It was late.", "label": 1, "idx": 0},
            {"question": "Who rang?", "sentence": "Bo did.", "label": 0, "idx": 1},
        ],
        texts=[
            ("qnli question: Who rang? sentence: It was late.", "not_entailment"),
            ("qnli question: Who rang? sentence: Bo did.", "entailment"),
        ],
        **of_classes(("entailment", "not_entailment"), "accuracy"),
    ),
    "rte": Written(
        records=[
            {"sentence1": "Bo rang.", "sentence2": "Bo slept.", "label": 1, "idx": 0},
            {"sentence1": "Bo rang.", "sentence2": "There is a bell.", "label": 0, "idx": 1},
        ],
        texts=[
            ("rte sentence1: Bo rang. sentence2: Bo slept.", "not_entailment"),
            ("rte sentence1: Bo rang. sentence2: There is a bell.", "entailment"),
        ],
        **of_classes(("entailment", "not_entailment"), "accuracy"),
    ),
    "wnli": Written(
        records=[
            {"sentence1": "Bo rang as he left.", "sentence2": "Bo left.", "label": 1, "idx": 0},
            {"sentence1": "Bo rang Al as he left.", "sentence2": "Al left.", "label": 0, "idx": 1},
        ],
        texts=[
            ("wnli sentence1: Bo rang as he left. sentence2: Bo left.", "entailment"),
            ("wnli sentence1: Bo rang Al as he left. sentence2: Al left.", "not_entailment"),
        ],
        **of_classes(("not_entailment", "entailment"), "accuracy"),
    ),
}
SENTINELS = {
    "cola": 0,
    "mnli": 1,
    "mnli_matched": 1,
    "mnli_mismatched": 1,
    "ax": 1,
    "mrpc": 2,
    "qnli": 3,
    "qqp": 4,
    "rte": 5,
    "sst2": 6,
    "stsb": 7,
    "wnli": 8,
}
VERSIONS = {"v002": "1.0.0", "v200": "2.0.0"}

every_data_set = pytest.mark.parametrize("config", TABLE)


def names_of(config):
    for version in VERSIONS:
        yield from all_forms(f"glue_{config}_{version}")


def test_the_table_has_every_registered_task():
    known = [name for config in TABLE for name, *_ in names_of(config)]
    assert sorted(known) == sorted(glue.NAMES) and len(known) == 432


@every_data_set
def test_records_become_the_text_of_t5(config):
    written = TABLE[config]
    for name, form, _ in names_of(config):
        assert texts(name, written) == in_form(form, written.texts), name
        indices = [int(made["idx"]) for made in examples(name, written)]
        assert indices == [record["idx"] for record in written.records]


@every_data_set
def test_a_record_without_a_label_says_so(config):
    written = TABLE[config]
    label = -1.0 if config == "stsb" else -1
    hidden = Written(records=[{**record, "label": label} for record in written.records], texts=[])
    said = {target for _, target in texts(f"taskless_glue_{config}_v200", hidden)}
    assert said == ({"-1.0"} if config == "stsb" else {"<unk>"})


@every_data_set
def test_answers_mean_and_are_worth_what_they_say(config):
    for name, _, keeps_examples in names_of(config):
        check_answers(name, TABLE[config], keeps_examples, title=config)


@every_data_set
def test_only_the_form_with_an_index_has_a_sentinel(config):
    for name, form, _ in names_of(config):
        tokenize, *more, cache, end = steps(name)[1]
        assert tokenize is seqio.preprocessors.tokenize
        assert isinstance(cache, seqio.CacheDatasetPlaceholder)
        assert end is seqio.preprocessors.append_eos_after_trim
        if form != "task_index_":
            assert more == [], name
            continue
        (sentinel,) = more
        assert isinstance(sentinel, functools.partial)
        assert sentinel.func is preprocessors.prepend_sentinel
        assert sentinel.keywords == {"index": SENTINELS[config]}, name


@every_data_set
def test_data_sets_are_those_of_tfds(config):
    """TFDS's own description, which needs no data."""
    known = tfds.text.glue.Glue.builder_configs[config]
    features = {*known.text_features, "label", "idx"}
    assert all(set(record) == features for record in TABLE[config].records)
    assert tuple(known.label_classes or ()) == tuple(glue.GLUE[config].label_names or ())
    for version, tfds_version in VERSIONS.items():
        for name, *_ in all_forms(f"glue_{config}_{version}"):
            source = seqio.TaskRegistry.get(name).source
            assert source.tfds_dataset.name == f"glue/{config}:{tfds_version}"


@pytest.mark.parametrize(
    ("config", "splits"),
    [
        ("sst2", ["train", "validation", "test"]),
        (
            "mnli",
            [
                "train",
                "validation_matched",
                "validation_mismatched",
                "test_matched",
                "test_mismatched",
            ],
        ),
        ("mnli_matched", ["validation", "test"]),
        ("mnli_mismatched", ["validation", "test"]),
        ("ax", ["test"]),
    ],
)
def test_splits_are_known_without_asking_tfds(config, splits):
    for name, *_ in names_of(config):
        assert list(seqio.TaskRegistry.get(name).splits) == splits


def test_mixtures_of_mnli_are_of_one_form():
    mixtures = [name for name, *_ in names_of("mnli_and_dev")]
    assert sorted([*mixtures, "glue_v002_proportional"]) == sorted(glue.MIXTURES)
    for name in mixtures:
        rates = seqio.MixtureRegistry.get(name).rate_per_task_name
        members = [name.replace("mnli_and_dev", part) for part in MNLI_PARTS]
        assert rates == dict.fromkeys(members, 1.0)


def test_all_of_glue_is_mixed_by_size():
    rates = seqio.MixtureRegistry.get("glue_v002_proportional").rate_per_task_name
    assert rates == {
        "glue_cola_v002": 8551,
        "glue_sst2_v002": 67349,
        "glue_mrpc_v002": 3668,
        "glue_qqp_v002": 363849,
        "glue_stsb_v002": 5749,
        "glue_mnli_v002": 392702,
        "glue_qnli_v002": 104743,
        "glue_rte_v002": 2490,
        "glue_mnli_mismatched_v002": 0,
        "glue_mnli_matched_v002": 0,
        "glue_ax_v002": 0,
    }
