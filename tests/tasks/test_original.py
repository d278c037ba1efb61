"""The tasks beside the original's: names, texts, judged answers and metrics; see `golden/tasks`.

Tasks that share their steps are run once, over the T5 vocabulary of the tests; what comes out is
compared with the recordings of every one of their names.
"""

import functools
import importlib
import itertools
import math
import re
from typing import Any

import pytest
import seqio
import tensorflow as tf

from prompt_tuning.data.seqio_tasks import with_vocabulary
from tests.golden.tasks.records import RECORDS, correct, dataset, plain, short, tokens
from tests.tasks.originals import (
    NOT_OURS,
    expected_answers,
    expected_texts,
    golden,
    recorded_tasks,
    text_of,
)

MODULES = (
    "glue",
    "super_glue",
    "glue_transfer",
    "qa",
    "summarization",
    "c4",
    "spot",
    "recycling",
    "perceptron",
)
FAMILIES = (
    "glue",
    "super_glue",
    "transfer",
    "qa",
    "summarization",
    "spot",
    "recycling",
    "perceptron",
)
# What describes a recording and is no answer of a task's.
RECORDED_ONLY = ("counted", "predictions", "scores", "upstream_bug")


@pytest.fixture(scope="module", autouse=True)
def modules():
    for name in MODULES:
        importlib.import_module(f"prompt_tuning.tasks.{name}")


# Names.

ORIGINS = sorted({row["origin"] for row in recorded_tasks().values()})


@pytest.mark.parametrize("origin", ORIGINS)
def test_every_name_of_the_original_reads_the_same_splits_of_the_same_data(origin):
    expected = {
        name: {key: row[key] for key in ("source", "splits", "features")}
        for name, row in recorded_tasks().items()
        if row["origin"] == origin
    }
    assert expected
    found = {name: described(name) for name in expected}
    assert found == expected


def described(name):
    if name not in seqio.TaskRegistry.names():
        return None
    task = seqio.TaskRegistry.get(name)
    assert isinstance(task.source, seqio.TfdsDataSource)
    loader = task.source.tfds_dataset
    return {
        "source": loader.name,
        "splits": dict(loader._split_map or {split: split for split in task.splits}),
        "features": sorted(task.output_features),
    }


# The mixtures of T5's whose tasks are all ours.
T5_MIXTURES = ("glue_v002_proportional", "super_glue_v102_proportional", "glue_mnli_and_dev_v002")


def test_mixtures_hold_the_same_tasks_at_the_same_rates():
    expected = {
        name: members_of(name, row["tasks"])
        for name, row in golden("names")["mixtures"].items()
        if row["origin"].startswith("prompt_tuning.") or name in T5_MIXTURES
    }
    found = {name: found_rates(name) for name in expected}
    assert len(expected) > 100
    assert found == expected


def members_of(name, rates):
    # The original gives these two forms the members of the third, whose text names its task.
    form = re.match("(mt5_|byt5_)?(taskless_|task_index_)glue_mnli_and_dev", name)
    if form is None:
        return rates
    model = form[1] or ""
    return {f"{model}{form[2]}{task.removeprefix(model)}": rate for task, rate in rates.items()}


def found_rates(name):
    if name not in seqio.MixtureRegistry.names():
        return None
    mixture = seqio.MixtureRegistry.get(name)
    return {task.name: mixture.get_rate(task) for task in mixture.tasks}


# Texts.


QUICK = ("glue/sst2", "super_glue/copa", "super_glue/multirc")


def cases():
    """Returns (family, schema) for all that was recorded.

    Most are slow: the tables of the other files here hold the same strings, written by hand.
    """
    return [
        pytest.param(
            family,
            schema,
            id=f"{family}-{schema.replace('/', '_')}",
            marks=() if schema in QUICK else pytest.mark.slow,
        )
        for family in FAMILIES
        for schema in sorted({text["schema"] for text in golden(family)["texts"]})
    ]


def names_of(family, schema):
    names = [
        name
        for name in golden(family)["tasks"]
        if name in recorded_tasks() and text_of(family, name)["schema"] == schema
    ]
    # The recorded ids are T5's, so that ByT5's tasks must not be the ones that are run.
    return sorted(names, key=lambda name: (name.startswith("byt5_"), name))


def key_of(step):
    """Makes two steps equal that do the same."""
    if isinstance(step, functools.partial):
        bound = tuple((name, key_of(value)) for name, value in sorted(step.keywords.items()))
        return (key_of(step.func), *map(key_of, step.args), bound)
    if isinstance(step, seqio.CacheDatasetPlaceholder):
        return type(step)
    return step if callable(step) else repr(step)


@pytest.fixture(scope="module")
def run(vocabulary):
    """Returns what tasks make of the records of their schema; of equal steps, only the first's."""
    done = {}

    def run(family, name):
        text = text_of(family, name)
        task = seqio.TaskRegistry.get(name)
        left_out = tuple(text.get("left_out", ()))
        key = text["schema"], left_out, tuple(map(key_of, task.preprocessors))
        if key not in done:
            records = RECORDS[text["schema"]]["records"]
            read = [record for i, record in enumerate(records) if i not in left_out]
            done[key] = examples_of(task, dataset(text["schema"], read), vocabulary)
        return done[key]

    return run


def examples_of(task, records, vocabulary, **options):
    source = seqio.FunctionDataSource(
        lambda split, shuffle_files, seed=None: records, splits=["train"]
    )
    defaults = {"sequence_length": None, "split": "train", "shuffle": False}
    own = with_vocabulary(task, vocabulary).replace(source=source)
    return list(own.get_dataset(**defaults | options).as_numpy_iterator())


@pytest.mark.parametrize(("family", "schema"), cases())
def test_records_become_the_texts_and_ids_of_the_original(family, schema, run):
    names = names_of(family, schema)
    wanted = {name: expected_texts(family, name) for name in names}
    found = {name: [written(example) for example in run(family, name)] for name in names}
    assert not differences({name: like(found[name], wanted[name]) for name in names}, wanted)


def written(example):
    kept = {key: plain(value) for key, value in example.items() if key not in ("inputs", "targets")}
    return {**kept, "ids": {key: tokens(example, key) for key in ("inputs", "targets")}}


def like(found, wanted):
    """Leaves out what our examples have that the original's have not."""
    pairs = itertools.zip_longest(found, wanted, fillvalue={})
    return [{key: one[key] for key in other if key in one} or one for one, other in pairs]


# Answers.


@pytest.mark.parametrize(("family", "schema"), cases())
def test_answers_mean_and_score_what_they_did_in_the_original(family, schema, run):
    wanted, found, done = {}, {}, {}
    for name in names_of(family, schema):
        expected = expected_answers(family, name)
        if expected is None:
            continue
        task = seqio.TaskRegistry.get(name)
        judges = key_of(task.postprocessor), tuple(map(key_of, task.metric_fns))
        # Tasks that judge the same examples alike need it only once.
        key = (judges, golden(family)["tasks"][name][0], id(expected))
        if key not in done:
            done[key] = judged(task, run(family, name), expected)
        wanted[name], found[name] = expected, done[key]
    assert not differences(found, wanted)


def judged(task, examples, wanted):
    """Gives a task the answers of a recording; returns a record of the same form."""
    targets = [
        task.postprocess_fn(correct(example), example=example, is_target=True)
        for example in examples
    ]
    found: dict[str, Any] = {"targets": plain(targets)}
    labelled = wanted.get("counted", [])
    chosen = [targets[i] for i in labelled]
    if "scored" in wanted:
        found["scored"] = {
            kind: {"metrics": values(task, chosen, [row["scores"][i] for i in labelled], "scores")}
            for kind, row in wanted["scored"].items()
        }
    if "answered" in wanted:
        found["answered"] = {}
    for kind, row in wanted.get("answered", {}).items():
        texts = row["predictions"]
        answers = [
            task.postprocess_fn(text, example=example, is_target=False)
            for text, example in zip(texts, examples, strict=True)
        ]
        found["answered"][kind] = {
            "postprocessed": [
                short(answer, example, text)
                for answer, example, text in zip(answers, examples, texts, strict=True)
            ],
            "metrics": values(task, chosen, [answers[i] for i in labelled], "predictions"),
        }
    return found


def values(task, targets, answers, argument):
    functions = task.score_metric_fns if argument == "scores" else task.predict_metric_fns
    found = {}
    for function in functions:
        found |= function(**{"targets": targets, argument: answers})
    return plain(found)


def differences(found, wanted, path=""):
    """Returns the places where two values are not the same, with both of them."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        # Ours may say more, except of metrics.
        keys = wanted.keys() | (found.keys() if "metrics" in path else set())
        places = [
            (f"{path}/{key}", found.get(key), wanted.get(key))
            for key in sorted(keys)
            if key not in RECORDED_ONLY
        ]
    elif isinstance(wanted, list) and isinstance(found, list) and len(wanted) == len(found):
        places = [
            (f"{path}[{i}]", one, other)
            for i, (one, other) in enumerate(zip(found, wanted, strict=True))
        ]
    else:
        close = (
            isinstance(wanted, float)
            and isinstance(found, (int, float))
            and math.isclose(found, wanted, rel_tol=1e-8, abs_tol=1e-9)
        )
        return [] if close or found == wanted else [(path, found, wanted)]
    return [one for place, mine, other in places for one in differences(mine, other, place)]


# Pretraining. The draws are ours, as our steps draw in another order; what is drawn from is not.

LOWEST_SENTINEL = 160


def ids(example, key):
    row = example.get(key, "1")
    return [int(token) for token in (row.split() if isinstance(row, str) else row)]


def filled(example):
    """Puts what the targets say of each sentinel into its place."""
    spans, span = {}, []
    for token in ids(example, "targets")[:-1]:
        if token >= LOWEST_SENTINEL:
            span = spans.setdefault(token, [])
        else:
            span.append(token)
    parts = [spans.pop(token, [token]) for token in ids(example, "inputs")[:-1]]
    # A last sentinel without a span ends the targets of spans drawn token by token.
    assert not any(spans.values())
    return [token for part in parts for token in part]


def joined(example):
    return ids(example, "inputs")[:-1] + ids(example, "targets")[:-1]


def corrupted(example):
    """Checks that what is left of the inputs stands in the targets in the same order."""
    targets = ids(example, "targets")
    rest = iter(targets)
    assert all(token in rest for token in ids(example, "inputs") if token < LOWEST_SENTINEL)
    return targets


def sizes(example):
    return {key: len(ids(example, key)) for key in ("inputs", "targets")}


def everything(example):
    return {key: ids(example, key) for key in ("inputs", "targets")}


# What must come out of any draw.
SAME = {
    "c4_v220_span_corruption": (filled, sizes),
    "c4_v220_iid_denoising": (filled,),
    "c4_v220_prefix_lm": (joined,),
    "c4_v220_full_lm": (everything,),
    "c4_v220_bart_text_infilling": (corrupted, sizes),
    "c4_v220_bart_token_deletion": (corrupted,),
    # The inputs are cut anywhere, the targets one of two words.
    "c4_v220_random_positive_negative_targets": (),
}
OBJECTIVES = [name for name in golden("c4") if not NOT_OURS.match(name)]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives_draw_from_what_the_original_draws_from(name, vocabulary):
    row = golden("c4")[name]
    task = seqio.TaskRegistry.get(name)
    options = {"sequence_length": row["lengths"], "seed": 1}
    found = examples_of(task, dataset(row["schema"]), vocabulary, **options)
    for wanted in row["seeds"].values():
        assert len(found) == len(wanted)
        for law in SAME[name]:
            assert [law(one) for one in found] == [law(one) for one in wanted]
    if name.endswith("random_positive_negative_targets"):
        answers = {tuple(ids(one, "targets")) for one in itertools.chain(*row["seeds"].values())}
        assert {tuple(ids(one, "targets")) for one in found} <= answers
        whole = golden("c4")["c4_v220_prefix_lm"]["seeds"]["0"]
        for one, other in zip(found, whole, strict=True):
            inputs = ids(one, "inputs")[:-1]
            assert inputs == joined(other)[: len(inputs)]


# Records that cannot be read.

# WSC asks about a pronoun that begins the text: the original foresees none.
READABLE = {"He asked Tom for money.": "wsc: *He* asked Tom for money."}


@pytest.mark.parametrize(
    ("family", "schema"),
    [(family, schema) for family in FAMILIES for schema in golden(family).get("refused", {})],
    ids=lambda part: part.replace("/", "_"),
)
def test_what_the_original_cannot_read_is_refused_too(family, schema, vocabulary):
    row = golden(family)["refused"][schema]
    task = seqio.TaskRegistry.get(row["task"])
    for record, answer in zip(RECORDS[schema]["refused"], row["answers"], strict=True):
        assert list(answer) == ["error"]
        records = dataset(schema, [record])
        if text := READABLE.get(record.get("text")):
            (example,) = examples_of(task, records, vocabulary)
            assert plain(example["inputs_pretokenized"]) == text
        else:
            with pytest.raises(tf.errors.InvalidArgumentError):
                examples_of(task, records, vocabulary)
