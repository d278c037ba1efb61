"""SPoT's source tasks: texts that begin with the name of the task, and what answers are worth."""

import pytest
import seqio

from prompt_tuning.tasks import rouge, spot
from tests.tasks.written_tasks import Written, close, judged, texts

NLI = ("entailment", "neutral", "contradiction")


def classes(first, second, *values):
    """Answers to a first example of label `first` and a second one of label `second`."""
    full, nothing = dict.fromkeys(values, 100.0), dict.fromkeys(values, 0.0)
    return {
        "right": ([first, second], full),
        "wrong": ([second, first], nothing),
        "empty": (["", ""], nothing),
        "garbage": (["Paris", f"{second}."], nothing),
    }


def pair(name, keys, label_names, *values, more=None, between=" "):
    """A task of pairs of texts with the labels 1 and 0."""
    a, b = keys
    records = [
        {a: "One  two.", b: "Three", "label": 1, **(more or {})},
        {a: "Ä", b: "b?", "label": 0, **(more or {})},
    ]
    first = f"One{between}two."
    made = [
        (f"{name} {a}: {first} {b}: Three", label_names[1]),
        (f"{name} {a}: Ä {b}: b?", label_names[0]),
    ]
    return Written(records=records, texts=made), classes(label_names[1], label_names[0], *values)


def glue_pair(name, keys, label_names, *values):
    return pair(name, keys, label_names, *values, more={"idx": 0}, between="  ")


def glue_sentence(name, label_names, worth):
    records = [
        {"sentence": "So  it is.", "label": 1, "idx": 0},
        {"sentence": "Is so it", "label": 0, "idx": 1},
    ]
    made = [
        (f"{name} sentence: So  it is.", label_names[1]),
        (f"{name} sentence: Is so it", label_names[0]),
    ]
    return Written(records=records, texts=made), worth


ENTAILMENT = ("entailment", "not_entailment")
MRPC = ("not_equivalent", "equivalent")
COLA = ("unacceptable", "acceptable")
SENTIMENT = ("negative", "positive")
MNLI = glue_pair("mnli", ("hypothesis", "premise"), NLI, "accuracy")
QUESTIONS = ("question1", "question2")
SENTENCES = ("sentence1", "sentence2")
CORRELATION = "matthews_corrcoef"

TABLE = {
    "spot_glue_cola_v200": glue_sentence(
        "cola",
        COLA,
        {
            "right": (["acceptable", "unacceptable"], {CORRELATION: 100.0}),
            "wrong": (["unacceptable", "acceptable"], {CORRELATION: -100.0}),
            "empty": (["", ""], {CORRELATION: 0.0}),
            "garbage": (["Paris", "acceptable."], {CORRELATION: 0.0}),
        },
    ),
    "spot_glue_sst2_v200": glue_sentence(
        "sst2", SENTIMENT, classes("positive", "negative", "accuracy")
    ),
    "spot_glue_mrpc_v200": glue_pair("mrpc", SENTENCES, MRPC, "f1", "accuracy"),
    "spot_glue_qqp_v200": glue_pair(
        "qqp", QUESTIONS, ("not_duplicate", "duplicate"), "f1", "accuracy"
    ),
    "spot_glue_stsb_v200": (
        Written(
            records=[
                {"sentence1": "A", "sentence2": "B", "label": 4.17, "idx": 0},
                {"sentence1": "C", "sentence2": "D", "label": 0.0, "idx": 1},
                {"sentence1": "E", "sentence2": "F", "label": 2.0, "idx": 2},
            ],
            texts=[
                ("stsb sentence1: A sentence2: B", "4.2"),
                ("stsb sentence1: C sentence2: D", "0.0"),
                ("stsb sentence1: E sentence2: F", "2.0"),
            ],
        ),
        {
            "right": (
                ["4.2", "0.0", "2.0"],
                {"pearson_corrcoef": 100.0, "spearman_corrcoef": 100.0},
            ),
            "wrong": (
                ["-4.2", "0.0", "-2.0"],
                {"pearson_corrcoef": -100.0, "spearman_corrcoef": -100.0},
            ),
            "empty": (
                ["", "", ""],
                {"pearson_corrcoef": float("nan"), "spearman_corrcoef": float("nan")},
            ),
            "garbage": (
                ["four", "?", "nan"],
                {"pearson_corrcoef": float("nan"), "spearman_corrcoef": float("nan")},
            ),
        },
    ),
    "spot_glue_qnli_v200": glue_pair("qnli", ("question", "sentence"), ENTAILMENT, "accuracy"),
    "spot_glue_rte_v200": glue_pair("rte", SENTENCES, ENTAILMENT, "accuracy"),
    "spot_glue_wnli_v200": glue_pair(
        "wnli", SENTENCES, ("not_entailment", "entailment"), "accuracy"
    ),
    "spot_glue_mnli_train_v200": MNLI,
    "spot_glue_mnli_validation_matched_v200": MNLI,
    "spot_glue_mnli_validation_mismatched_v200": MNLI,
    **{
        f"spot_anli_r{number}_v010": pair(
            f"anli_r{number}", ("hypothesis", "context"), NLI, "accuracy", more={"uid": "x"}
        )
        for number in (1, 2, 3)
    },
    "spot_doc_nli_v100": pair(
        "doc_nli", ("hypothesis", "premise"), ("not_entailment", "entailment"), "accuracy"
    ),
    "spot_snli_v110": pair("snli", ("hypothesis", "premise"), NLI, "accuracy"),
}


def questions(name):
    """A task of MRQA."""
    records = [
        {"qid": "1", "question": "Who?", "context": "Ada (b. 1815)", "answers": ["Ada", "Ada L."]},
        {"qid": "2", "question": "When", "context": "1815!", "answers": ["1815!"]},
    ]
    made = [
        (f"{name} question: Who ? context: Ada ( b . 1815 ) ", "Ada"),
        (f"{name} question: When context: 1815 ! ", "1815 ! "),
    ]
    full, nothing = {"em": 100.0, "f1": 100.0}, {"em": 0.0, "f1": 0.0}
    answers = {
        "right": (["The Ada L", "1815"], full),
        "wrong": (["Bo", "1816"], nothing),
        "empty": (["", ""], nothing),
        "garbage": (["<extra_id_0>", ", ."], nothing),
    }
    return Written(records=records, texts=made), answers


def summaries(name, text, summary):
    """A task of summaries."""
    records = [
        {text: "It rained.  All\nnight", summary: "Rain . All night ."},
        {text: "Ä", summary: "b c"},
    ]
    made = [
        (f"{name} summarize: It rained.  All\nnight", "Rain . All night ."),
        (f"{name} summarize: Ä", "b c"),
    ]
    answers = {
        "right": (["Rain . All night .", "b c"], dict.fromkeys(rouge.KEYS, 100.0)),
        "wrong": (["Snow", "d"], dict.fromkeys(rouge.KEYS, 0.0)),
        "empty": (["", ""], dict.fromkeys(rouge.KEYS, 0.0)),
        "garbage": (["<extra_id_0>", ". . ."], dict.fromkeys(rouge.KEYS, 0.0)),
    }
    return Written(records=records, texts=made), answers


MRQA = ("squad", "news_qa", "trivia_qa", "search_qa", "hotpot_qa", "natural_questions")
TABLE |= {f"spot_mrqa_{name}_v100": questions(name) for name in MRQA}
TABLE |= {
    f"spot_{name}_{version}": summaries(name, text, summary)
    for name, version, text, summary in (
        ("aeslc", "v100", "email_body", "subject_line"),
        ("billsum", "v300", "text", "summary"),
        ("gigaword", "v120", "document", "summary"),
        ("cnn_dailymail", "v320", "article", "highlights"),
        ("multi_news", "v100", "document", "summary"),
        ("samsum", "v100", "dialogue", "summary"),
        ("newsroom", "v100", "text", "summary"),
    )
}


def test_the_table_has_every_task():
    assert sorted(TABLE) == sorted(spot.NAMES)


@pytest.mark.parametrize("name", TABLE)
def test_records_become_text_and_answers_are_judged(name):
    written, answers = TABLE[name]
    assert texts(name, written) == list(written.texts)
    for kind, (said, worth) in answers.items():
        _, _, values = judged(name, written, said)
        assert values == close(worth), kind


def test_labels_may_be_digits_and_unknown():
    records = [
        {"premise": "a", "hypothesis": "b", "label": "1"},
        {"premise": "a", "hypothesis": "b", "label": "-1"},
    ]
    assert texts("spot_doc_nli_v100", Written(records=records, texts=[])) == [
        ("doc_nli hypothesis: b premise: a", "entailment"),
        ("doc_nli hypothesis: b premise: a", "<unk>"),
    ]


def test_mnli_is_trained_once_and_evaluated_twice():
    mixture = seqio.MixtureRegistry.get("spot_glue_mnli_and_dev_v200")
    splits = {
        task.name.removeprefix("spot_glue_mnli_"): {
            split: task.source.tfds_dataset._map_split(split) for split in task.splits
        }
        for task in mixture.tasks
    }
    assert splits == {
        "train_v200": {"train": "train"},
        "validation_matched_v200": {"validation": "validation_matched"},
        "validation_mismatched_v200": {"validation": "validation_mismatched"},
    }
    assert {mixture.get_rate(task) for task in mixture.tasks} == {1.0}


@pytest.mark.parametrize(
    ("name", "source", "splits"),
    [
        ("spot_billsum_v300", "billsum:3.0.0", ["train", "test", "ca_test"]),
        ("spot_samsum_v100", "samsum:1.0.0", ["train", "validation", "test"]),
        ("spot_anli_r2_v010", "anli/r2:0.1.0", ["train", "validation", "test"]),
        ("spot_mrqa_news_qa_v100", "mrqa/news_qa:1.0.0", ["train", "validation"]),
    ],
)
def test_the_data_sets_are_those_of_tfds(name, source, splits):
    task = seqio.TaskRegistry.get(name)
    assert (task.source.tfds_dataset.name, list(task.splits)) == (source, splits)
