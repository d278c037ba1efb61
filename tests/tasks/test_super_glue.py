"""SuperGLUE and pronouns: every name's text, answers and metrics, on records as TFDS has them."""

import functools

import pytest
import seqio
import tensorflow as tf
import tensorflow_datasets as tfds

from prompt_tuning.tasks import preprocessors, super_glue
from tests.tasks.written_tasks import (
    Written,
    all_forms,
    check_answers,
    examples,
    in_form,
    steps,
    texts,
)


def of_classes(first, second, **worth):
    """Answers to a first example of class 1 and a second one of class 0, by their names."""
    nothing = dict.fromkeys(worth, 0.0)
    return {
        "targets": [1, 0],
        "answers": {
            "right": ([second, first], [1, 0], worth),
            "wrong": ([first, second], [0, 1], nothing),
            "empty": (["", ""], [-1, -1], nothing),
            "garbage": ([f"{first} ", second.upper()], [-1, -1], nothing),
        },
    }


def unjudged(first, second):
    """Answers in a test set whose labels nobody knows."""
    return {
        "targets": [-1, -1],
        "answers": {
            "labels": ([first, second], [0, 1], {}),
            "garbage": (["", "perhaps"], [-1, -1], {}),
        },
    }


ACCURACY = {"accuracy": 100.0}
RECORD = (
    "record query: @placeholder came home. entities: Bo, the dog, Al passage: "
    'Bo left. Al, a sailor, said "home!" The dog barked. He was tired. The end'
)
WSC = [
    {
        "text": "Bo asked Al if he could lend some money.",
        "span1_text": "Al",
        "span1_index": 2,
        "span2_text": "he",
        "span2_index": 4,
        "label": 1,
        "idx": 0,
    },
    {
        "text": "The trophy beat  the case because it was big",
        "span1_text": "The case",
        "span1_index": 4,
        "span2_text": "it",
        "span2_index": 7,
        "label": 0,
        "idx": 1,
    },
    # The two that the original has by heart.
    {
        "text": "The boy continued to whip the pony , and eventually the pony threw him over. John "
        'laughed out quite loud. "Good for him," he said. ',
        "span1_text": "The boy",
        "span1_index": 0,
        "span2_text": "him",
        "span2_index": 22,
        "label": 0,
        "idx": 2,
    },
    {
        "text": "When they had eventually calmed down a bit , and had gotten home, Mr. Farley put "
        "the magic pebble in an iron safe . Some day they might want to use it , but really for "
        "now, what more could they wish for?",
        "span1_text": "the safe",
        "span1_index": 20,
        "span2_text": "it",
        "span2_index": 29,
        "label": 1,
        "idx": 3,
    },
]
WSC_TEXTS = [
    ("wsc: Bo asked Al if *he* could lend some money.", "Al"),
    ("wsc: The trophy beat  the case because *it* was big", "The case"),
    (
        "wsc: The boy continued to whip the pony , and eventually the pony threw him over. John "
        'laughed out quite loud. "Good for *him* ," he said.',
        "The boy",
    ),
    (
        "wsc: When they had eventually calmed down a bit , and had gotten home, Mr. Farley put the "
        "magic pebble in an iron safe . Some day they might want to use *it* , but really for now, "
        "what more could they wish for?",
        "the safe",
    ),
]

TABLE = {
    "super_glue_boolq_v102": Written(
        records=[
            {"passage": "Ice floats.", "question": "does ice float", "label": 1, "idx": 0},
            {"passage": "Ice floats.", "question": "does ice sink", "label": 0, "idx": 1},
        ],
        texts=[
            ("boolq passage: Ice floats. question: does ice float", "True"),
            ("boolq passage: Ice floats. question: does ice sink", "False"),
        ],
        **of_classes("False", "True", **ACCURACY),
    ),
    "super_glue_cb_v102": Written(
        records=[
            {"hypothesis": "Bo lies.", "premise": "Does Bo lie?", "label": 2, "idx": 0},
            {"hypothesis": "Bo lies.", "premise": "Bo never lies.", "label": 1, "idx": 1},
            {"hypothesis": "Bo lies.", "premise": "All lie.", "label": 0, "idx": 2},
        ],
        texts=[
            ("cb hypothesis: Bo lies. premise: Does Bo lie?", "neutral"),
            ("cb hypothesis: Bo lies. premise: Bo never lies.", "contradiction"),
            ("cb hypothesis: Bo lies. premise: All lie.", "entailment"),
        ],
        targets=[2, 1, 0],
        answers={
            "right": (
                ["neutral", "contradiction", "entailment"],
                [2, 1, 0],
                {"mean_3class_f1": 100.0, "accuracy": 100.0},
            ),
            # Class 0 is said twice and once right: F1 2/3; class 1 never; class 2 right.
            "half right": (
                ["neutral", "entailment", "entailment"],
                [2, 0, 0],
                {"mean_3class_f1": 500 / 9, "accuracy": 200 / 3},
            ),
            "wrong": (
                ["entailment", "neutral", "contradiction"],
                [0, 2, 1],
                {"mean_3class_f1": 0.0, "accuracy": 0.0},
            ),
            "empty": ([""] * 3, [-1] * 3, {"mean_3class_f1": 0.0, "accuracy": 0.0}),
            "garbage": (["1", "no", "?"], [-1] * 3, {"mean_3class_f1": 0.0, "accuracy": 0.0}),
        },
    ),
    "super_glue_copa_v102": Written(
        records=[
            {
                "choice1": "It rained.",
                "choice2": "I opened the tap.",
                "premise": "Water came.",
                "question": "cause",
                "label": 1,
                "idx": 0,
            },
            {
                "choice1": "It got wet.",
                "choice2": "It sang.",
                "premise": "Rain fell on the cat.",
                "question": "effect",
                "label": 0,
                "idx": 1,
            },
        ],
        texts=[
            (
                "copa choice1: It rained. choice2: I opened the tap. premise: Water came. "
                "question: cause",
                "choice2",
            ),
            (
                "copa choice1: It got wet. choice2: It sang. premise: Rain fell on the cat. "
                "question: effect",
                "choice1",
            ),
        ],
        **of_classes("choice1", "choice2", **ACCURACY),
    ),
    "super_glue_multirc_v102": Written(
        records=[
            {
                "paragraph": "<b>Sent 1: </b>Bo rang.<br><b>Sent 2: </b>Al slept.<br>",
                "question": "Who rang?",
                "answer": answer,
                "label": label,
                "idx": {"paragraph": 3, "question": question, "answer": number},
            }
            for number, (question, answer, label) in enumerate(
                [(5, "Bo", 1), (5, "<b>Al</b>", 0), (6, "Bo<br>did", 1)]
            )
        ],
        texts=[
            (
                f"multirc question: Who rang? answer: {answer} paragraph: Sent 1: Bo rang. Sent 2: "
                "Al slept. ",
                target,
            )
            for answer, target in [("Bo", "True"), ("Al", "False"), ("Bo did", "True")]
        ],
        targets=[
            {"value": 1, "group": 5},
            {"value": 0, "group": 5},
            {"value": 1, "group": 6},
        ],
        answers={
            "right": (
                ["True", "False", "True"],
                [{"value": 1}, {"value": 0}, {"value": 1}],
                {"f1": 100.0, "exact_match": 100.0},
            ),
            # One of question 5's two answers is wrong; F1 of 1 hit, 1 miss and 1 false alarm.
            "half right": (
                ["True", "True", "False"],
                [{"value": 1}, {"value": 1}, {"value": 0}],
                {"f1": 50.0, "exact_match": 0.0},
            ),
            "one question right": (
                ["True", "False", ""],
                [{"value": 1}, {"value": 0}, {"value": -1}],
                {"f1": 200 / 3, "exact_match": 50.0},
            ),
            "wrong": (
                ["False", "True", "False"],
                [{"value": 0}, {"value": 1}, {"value": 0}],
                {"f1": 0.0, "exact_match": 0.0},
            ),
            "empty": (["", "", ""], [{"value": -1}] * 3, {"f1": 0.0, "exact_match": 0.0}),
            "garbage": (["yes", "0", "true"], [{"value": -1}] * 3, {"f1": 0.0, "exact_match": 0.0}),
        },
    ),
    "super_glue_record_v102": Written(
        records=[
            {
                "passage": 'Bo left\n@highlight\nAl, a sailor, said "home!"\n@highlight\nThe dog '
                "barked.\n@highlight\nHe was tired\n@highlight\nThe end",
                "query": "@placeholder came home.",
                "entities": ["Bo", "the dog", "Al"],
                "answers": ["Al", "the dog"],
                "idx": {"passage": 1, "query": 2},
            },
            {
                "passage": "Nobody knows.",
                "query": "Ask @placeholder",
                "entities": ["Bo"],
                "answers": [],
                "idx": {"passage": 2, "query": 3},
            },
        ],
        texts=[
            (RECORD, "Al"),
            (RECORD, "the dog"),
            ("record query: Ask @placeholder entities: Bo passage: Nobody knows.", "<unk>"),
        ],
    ),
    "super_glue_rte_v102": Written(
        records=[
            {"hypothesis": "Bo slept.", "premise": "Bo rang.", "label": 1, "idx": 0},
            {"hypothesis": "A bell is.", "premise": "Bo rang.", "label": 0, "idx": 1},
        ],
        texts=[
            ("rte hypothesis: Bo slept. premise: Bo rang.", "not_entailment"),
            ("rte hypothesis: A bell is. premise: Bo rang.", "entailment"),
        ],
        **of_classes("entailment", "not_entailment", **ACCURACY),
    ),
    "super_glue_wic_v102": Written(
        records=[
            {
                "word": "ring",
                "sentence1": "Ring the bell",
                "sentence2": "a gold ring",
                "start1": 0,
                "start2": 7,
                "end1": 4,
                "end2": 11,
                "label": label,
                "idx": label,
            }
            for label in (1, 0)
        ],
        texts=[
            ("wic sentence1: Ring the bell sentence2: a gold ring word: ring", "True"),
            ("wic sentence1: Ring the bell sentence2: a gold ring word: ring", "False"),
        ],
        **of_classes("False", "True", **ACCURACY),
    ),
    # SuperGLUE's own diagnostic set has other names for its sentences.
    "super_glue_axb_v102": Written(
        records=[
            {"sentence1": "Bo rang.", "sentence2": "Bo slept.", "label": -1, "idx": 0},
            {"sentence1": "Bo rang.", "sentence2": "A bell is.", "label": -1, "idx": 1},
        ],
        texts=[
            ("rte hypothesis: Bo slept. premise: Bo rang.", "<unk>"),
            ("rte hypothesis: A bell is. premise: Bo rang.", "<unk>"),
        ],
        **unjudged("entailment", "not_entailment"),
    ),
    "super_glue_axg_v102": Written(
        records=[
            {"premise": "Bo rang.", "hypothesis": "Bo slept.", "label": -1, "idx": 0},
            {"premise": "Bo rang.", "hypothesis": "A bell is.", "label": -1, "idx": 1},
        ],
        texts=[
            ("rte hypothesis: Bo slept. premise: Bo rang.", "<unk>"),
            ("rte hypothesis: A bell is. premise: Bo rang.", "<unk>"),
        ],
        **unjudged("entailment", "not_entailment"),
    ),
    # The right nouns only; there is nothing to judge.
    "super_glue_wsc_v102_simple_train": Written(records=WSC, texts=[WSC_TEXTS[0], WSC_TEXTS[3]]),
    "super_glue_wsc_v102_simple_eval": Written(
        records=WSC,
        texts=WSC_TEXTS,
        # Whether the pronoun means the noun.
        targets=[1, 0, 0, 1],
        answers={
            "right": (["Al", "the trophy", "John", "The iron safe"], [1, 0, 0, 1], ACCURACY),
            "wrong": (["Bo", "Case", "a boy", "pebble"], [0, 1, 1, 0], {"accuracy": 0.0}),
            "empty": (["", " ", "the", "Their  the"], [-1] * 4, {"accuracy": 0.0}),
            "garbage": (
                ["Al's hat", "true", "it is big", "1"],
                [0, 0, 0, 0],
                {"accuracy": 50.0},  # as they are not the noun
            ),
        },
    ),
    "dpr_v001_simple": Written(
        records=[
            {
                "sentence": "Bo asked Al if he, or his dog, was late when he came.",
                "pronoun": "he",
                "candidates": ["Bo", "Al"],
                "label": 1,
            },
            {
                "sentence": "The cat saw the mouse and sheltered it.",
                "pronoun": "it",
                "candidates": ["The cat", "the mouse"],
                "label": 0,
            },
        ],
        texts=[
            ("wsc: Bo asked Al if *he*, or his dog, was late when he came.", "Al"),
            ("wsc: The cat saw the mouse and sheltered *it*.", "The cat"),
        ],
        targets=["Al", "The cat"],
        answers={
            "right": (["Al", "The cat"], ["Al", "The cat"], ACCURACY),
            "wrong": (["Bo", "the mouse"], ["Bo", "the mouse"], {"accuracy": 0.0}),
            "empty": (["", ""], ["", ""], {"accuracy": 0.0}),
            "garbage": (["al", "The cat."], ["al", "The cat."], {"accuracy": 0.0}),
        },
    ),
}
# A target of ReCoRD is all right answers; its two examples are one question.
_QUERY = {"value": ["Al", "the dog"], "group": (1, 2)}
_ASKED = [_QUERY, _QUERY, {"value": [], "group": (2, 3)}]
SENTINELS = {
    "boolq": 0,
    "cb": 1,
    "copa": 2,
    "multirc": 3,
    "record": 4,
    "rte": 5,
    "axb": 5,
    "axg": 5,
    "wic": 6,
    "wsc": 7,
    "dpr": 7,
}

every_task = pytest.mark.parametrize("task", TABLE)


def title(task):
    return task.removeprefix("super_glue_").partition("_v")[0]


def test_the_table_has_every_registered_task():
    known = [name for task in TABLE for name, *_ in all_forms(task)]
    assert sorted(known) == sorted(super_glue.NAMES) and len(known) == 216


@every_task
def test_records_become_the_text_of_t5(task):
    for name, form, _ in all_forms(task):
        assert texts(name, TABLE[task]) == in_form(form, TABLE[task].texts), name


@every_task
def test_answers_mean_and_are_worth_what_they_say(task):
    assert TABLE[task].answers or task.endswith(("_train", "_record_v102"))
    for name, _, keeps_examples in all_forms(task):
        check_answers(name, TABLE[task], keeps_examples, title=title(task))


@every_task
def test_only_the_form_with_an_index_has_a_sentinel(task):
    for name, form, _ in all_forms(task):
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
        assert sentinel.keywords == {"index": SENTINELS[title(task)]}, name


@pytest.mark.parametrize(
    ("answers", "worth"),
    [
        (["al", "the dog", "x"], {"em": 100.0, "f1": 100.0}),
        (["The dog!", "Bo", ""], {"em": 100.0, "f1": 100.0}),
        # The second example of a query counts no more than the first.
        (["Bo", "Al", "x"], {"em": 0.0, "f1": 0.0}),
        (["big dog", "Al", "x"], {"em": 0.0, "f1": 200 / 3}),
        (["", "", ""], {"em": 0.0, "f1": 0.0}),
    ],
)
def test_a_query_of_record_is_judged_once_against_all_its_answers(answers, worth):
    asked = TABLE["super_glue_record_v102"]
    answered = Written(records=asked.records[:1], texts=asked.texts[:2])
    said = answers[:2]
    full = Written(
        records=answered.records,
        texts=answered.texts,
        targets=_ASKED[:2],
        answers={"said": (said, [{"value": text} for text in said], worth)},
    )
    for name, _, keeps_examples in all_forms("super_glue_record_v102"):
        check_answers(name, full, keeps_examples, title="record")


@pytest.mark.parametrize("form", ["", "taskless_", "task_index_"])
def test_record_and_multirc_keep_what_their_metrics_need(form):
    made = examples(f"{form}super_glue_record_v102", TABLE["super_glue_record_v102"])
    assert [(one["idx/passage"], one["idx/query"]) for one in made] == [(1, 2), (1, 2), (2, 3)]
    assert [one["answers"] for one in made] == [["Al", "the dog"], ["Al", "the dog"], []]
    made = examples(f"{form}super_glue_multirc_v102", TABLE["super_glue_multirc_v102"])
    indices = [
        tuple(one[f"idx/{of}"] for of in ("paragraph", "question", "answer")) for one in made
    ]
    assert indices == [(3, 5, 0), (3, 5, 1), (3, 6, 2)]


def test_a_pronoun_that_is_not_where_it_should_be_is_an_error():
    name = "taskless_super_glue_wsc_v102_simple_eval"
    moved = Written(records=[WSC[0] | {"span2_index": 3}], texts=[])
    with pytest.raises(tf.errors.InvalidArgumentError, match="is not `span2_text`"):
        texts(name, moved)


@pytest.mark.parametrize("config", super_glue.SUPER_GLUE)
def test_data_sets_are_those_of_tfds(config):
    """TFDS's own description, which needs no data."""
    known = tfds.text.super_glue.SuperGlue.builder_configs[config]
    row, task = super_glue.SUPER_GLUE[config], f"super_glue_{config}_v102"
    written = TABLE[task].records[0]
    assert set(written) == {*known.features, "idx"} | ({"label"} - {"label" * (config == "record")})
    if row.label_names is not None:
        assert tuple(known.label_classes) == tuple(row.label_names)
    splits = ["test"] if config in ("axb", "axg") else ["train", "validation", "test"]
    for name, *_ in all_forms(task):
        source = seqio.TaskRegistry.get(name).source
        assert source.tfds_dataset.name == f"super_glue/{config}:1.0.2"
        assert list(source.splits) == splits


@pytest.mark.parametrize(
    ("task", "source", "splits"),
    [
        ("super_glue_wsc_v102_simple_train", "super_glue/wsc.fixed:1.0.2", ["train"]),
        ("super_glue_wsc_v102_simple_eval", "super_glue/wsc.fixed:1.0.2", ["validation", "test"]),
        ("dpr_v001_simple", "definite_pronoun_resolution:1.1.0", ["train", "test"]),
    ],
)
def test_pronouns_come_from_two_data_sets(task, source, splits):
    for name, *_ in all_forms(task):
        found = seqio.TaskRegistry.get(name).source
        assert (found.tfds_dataset.name, list(found.splits)) == (source, splits)


def test_wsc_is_trained_on_its_right_nouns_and_judged_on_all():
    mixtures = [name for name, *_ in all_forms("super_glue_wsc_and_dev_v102_simple")]
    assert set(mixtures) <= set(super_glue.MIXTURES)
    for name in mixtures:
        first, variant = name.removesuffix("_examples"), "_examples" * name.endswith("_examples")
        task = first.replace("_and_dev", "")
        plain_form = not first.removeprefix("mt5_").removeprefix("byt5_").startswith("task")
        members = [f"{task}_train{'' if plain_form else variant}", f"{task}_eval{variant}"]
        rates = seqio.MixtureRegistry.get(name).rate_per_task_name
        assert rates == dict.fromkeys(members, 1.0)


SIZES = {
    "task_index_super_glue_wsc_v102_simple_train": 259,
    "task_index_super_glue_wsc_v102_simple_eval_examples": 0,
    "task_index_super_glue_boolq_v102_examples": 9427,
    "task_index_super_glue_cb_v102_examples": 250,
    "task_index_super_glue_copa_v102_examples": 400,
    "task_index_super_glue_multirc_v102_examples": 27243,
    "task_index_super_glue_record_v102_examples": 138854,
    "task_index_super_glue_rte_v102_examples": 2490,
    "task_index_super_glue_wic_v102_examples": 5428,
}


@pytest.mark.parametrize(
    ("name", "rates"),
    [
        ("task_index_super_glue_v102_examples_proportional", SIZES),
        (
            "task_index_super_glue_with_dpr_v102_examples_proportional",
            SIZES | {"task_index_dpr_v001_simple_examples": 1322},
        ),
        (
            "super_glue_v102_proportional",
            {
                key.removeprefix("task_index_").removesuffix("_examples"): size
                for key, size in SIZES.items()
            }
            | {"dpr_v001_simple": 1322, "super_glue_axb_v102": 0, "super_glue_axg_v102": 0},
        ),
    ],
)
def test_all_of_super_glue_is_mixed_by_size(name, rates):
    assert seqio.MixtureRegistry.get(name).rate_per_task_name == rates
    assert name in super_glue.MIXTURES
