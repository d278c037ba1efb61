"""QQP and MRPC judged by a model of the other one."""

import functools
import re

import pytest
import seqio

from prompt_tuning.tasks import glue_transfer, preprocessors
from tests.tasks.written_tasks import Written, all_forms, check_answers, in_form, steps, texts

FULL, NOTHING = {"f1": 100.0, "accuracy": 100.0}, {"f1": 0.0, "accuracy": 0.0}
TABLE = {
    ("qqp", "mrpc"): Written(
        records=[
            {"sentence1": "A fell .", "sentence2": "It was A that fell .", "label": 1, "idx": 3},
            {"sentence1": "A duplicate .", "sentence2": "B rose .", "label": 0, "idx": 4},
        ],
        texts=[
            ("mrpc sentence1: A fell . sentence2: It was A that fell .", "equivalent"),
            ("mrpc sentence1: A duplicate . sentence2: B rose .", "not_equivalent"),
        ],
        targets=[1, 0],
        answers={
            "right": (["duplicate", "not_duplicate"], [1, 0], FULL),
            "wrong": (["not_duplicate", "duplicate"], [0, 1], NOTHING),
            "in the target's words": (["equivalent", "not_equivalent"], [1, 0], FULL),
            "empty": (["", ""], [-1, -1], NOTHING),
            "garbage": (["duplicates", "duplicate duplicate"], [-1, -1], NOTHING),
        },
    ),
    ("mrpc", "qqp"): Written(
        records=[
            {"question1": "Why?", "question2": "What for?", "label": 1, "idx": 3},
            {"question1": "Why?", "question2": "How?", "label": 0, "idx": 4},
        ],
        texts=[
            ("qqp question1: Why? question2: What for?", "duplicate"),
            ("qqp question1: Why? question2: How?", "not_duplicate"),
        ],
        targets=[1, 0],
        answers={
            "right": (["equivalent", "not_equivalent"], [1, 0], FULL),
            "wrong": (["not_equivalent", "equivalent"], [0, 1], NOTHING),
            "in the target's words": (["duplicate", "not_duplicate"], [1, 0], FULL),
            "empty": (["", ""], [-1, -1], NOTHING),
            "garbage": (["equivalence", "same"], [-1, -1], NOTHING),
        },
    ),
}
SENTINELS = {"mrpc": 2, "qqp": 4}

both_ways = pytest.mark.parametrize(
    ("source", "target"), TABLE, ids=lambda name: name if isinstance(name, str) else None
)


VERSIONS = {"v002": "1.0.0", "v200": "2.0.0"}


def names(source, target):
    return [
        form for version in VERSIONS for form in all_forms(f"glue_{target}_from_{source}_{version}")
    ]


def test_the_table_has_every_registered_task():
    known = [name for pair in TABLE for name, *_ in names(*pair)]
    assert sorted(known) == sorted(glue_transfer.NAMES) and len(known) == 72


@both_ways
def test_the_text_is_the_target_task_s(source, target):
    written = TABLE[source, target]
    for name, form, _ in names(source, target):
        assert texts(name, written) == in_form(form, written.texts), name
        found = seqio.TaskRegistry.get(name).source
        version = VERSIONS[re.search("v[0-9]+", name)[0]]
        assert found.tfds_dataset.name == f"glue/{target}:{version}"
        assert list(found.splits) == ["validation"]
        more = steps(name)[1][1:-2]
        assert len(more) == (form == "task_index_")
        for sentinel in more:
            assert isinstance(sentinel, functools.partial)
            assert sentinel.func is preprocessors.prepend_sentinel
            assert sentinel.keywords == {"index": SENTINELS[target]}


@both_ways
def test_the_words_of_the_source_task_are_understood(source, target):
    words = {"qqp": "duplicate", "mrpc": "equivalent"}
    for name, _, keeps_examples in names(source, target):
        check_answers(
            name,
            TABLE[source, target],
            keeps_examples,
            title=target,
            shown=lambda text: text.replace(words[source], words[target]),
        )


@both_ways
def test_a_mixture_trains_on_the_source_and_is_judged_on_the_target(source, target):
    zeroshot = [
        form
        for version in VERSIONS
        for form in all_forms(f"glue_{target}_from_{source}_zeroshot_{version}")
    ]
    assert {name for name, *_ in zeroshot} <= set(glue_transfer.MIXTURES)
    assert len(glue_transfer.MIXTURES) == 72
    for (name, *_), (judged, *_) in zip(zeroshot, names(source, target), strict=True):
        learned = judged.replace(f"{target}_from_{source}", source).removesuffix("_examples")
        rates = seqio.MixtureRegistry.get(name).rate_per_task_name
        assert rates == {learned: 1.0, judged: 1.0}
        splits = {task.name: list(task.splits) for task in seqio.MixtureRegistry.get(name).tasks}
        assert splits == {learned: ["train", "validation", "test"], judged: ["validation"]}
