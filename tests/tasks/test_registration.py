"""From a row of a table to tasks under the original's names."""

import functools
import importlib
import os
import subprocess
import sys

import pytest
import seqio
import tensorflow as tf

from prompt_tuning.data.seqio_tasks import ModelVocabulary, examples_of
from prompt_tuning.errors import ConfigError
from prompt_tuning.tasks import features, glue, metrics, postprocessors, preprocessors
from prompt_tuning.tasks.registration import TextTask, register, register_mixture
from prompt_tuning.tasks.samples import Samples

LENGTHS = {"inputs": 64, "targets": 8}
NAMES = ("no", "yes")
SOURCE = seqio.FunctionDataSource(
    lambda split, shuffle_files, seed=None: tf.data.Dataset.from_tensor_slices(
        {"question": ["is it", "was it"], "label": tf.constant([1, 0], tf.int64)}
    ),
    splits=["train"],
)
TEXT = functools.partial(
    preprocessors.classification, text_format="ask question: {question}", label_names=NAMES
)
ROW = TextTask(
    name="ask_v1",
    source=SOURCE,
    text=(seqio.map_over_dataset(TEXT),),
    postprocess=functools.partial(postprocessors.string_label_to_class_id, label_names=NAMES),
    metrics=(metrics.accuracy,),
    samples=Samples(title="ask"),
    index=3,
)


@pytest.fixture(autouse=True)
def registries():
    """Takes away what a test registers."""
    both = (seqio.TaskRegistry, seqio.MixtureRegistry)
    before = [set(registry.names()) for registry in both]
    yield
    for registry, kept in zip(both, before, strict=True):
        for name in set(registry.names()) - kept:
            registry.remove(name)


def row(**changes):
    fields = {name: getattr(ROW, name) for name in ROW.__dataclass_fields__}
    return TextTask(**(fields | changes))


def test_a_row_becomes_tasks_for_models_forms_and_variants():
    assert register(ROW) == [
        "ask_v1",
        "ask_v1_examples",
        "taskless_ask_v1",
        "taskless_ask_v1_examples",
        "task_index_ask_v1",
        "task_index_ask_v1_examples",
        "mt5_ask_v1",
        "mt5_ask_v1_examples",
        "mt5_taskless_ask_v1",
        "mt5_taskless_ask_v1_examples",
        "mt5_task_index_ask_v1",
        "mt5_task_index_ask_v1_examples",
        "byt5_ask_v1",
        "byt5_ask_v1_examples",
        "byt5_taskless_ask_v1",
        "byt5_taskless_ask_v1_examples",
        "byt5_task_index_ask_v1",
        "byt5_task_index_ask_v1_examples",
    ]
    assert ROW.names() == register(ROW)
    assert set(ROW.names()) <= set(seqio.TaskRegistry.names())


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"forms": ("",), "models": ("",)}, ["ask_v1", "ask_v1_examples"]),
        (
            {"forms": ("taskless_",), "examples": (False,), "models": ("", "mt5_")},
            ["taskless_ask_v1", "mt5_taskless_ask_v1"],
        ),
        ({"forms": ("",), "models": ("",), "examples": (True,)}, ["ask_v1_examples"]),
    ],
)
def test_a_row_may_have_fewer_forms(changes, names):
    assert register(row(**changes)) == names
    assert {name for name in seqio.TaskRegistry.names() if "ask_v1" in name} == set(names)


@pytest.mark.parametrize(
    ("form", "start"),
    [("", "ask question:"), ("taskless_", "question:"), ("task_index_", "question:")],
)
def test_the_sentinel_stands_before_the_text_and_is_never_trimmed(vocabulary, form, start):
    register(ROW)
    name = f"{form}ask_v1"
    sentinel = [vocabulary.size - 4] if form == "task_index_" else []
    ids = [[*sentinel, *vocabulary.encode(f"{start} {text}")] for text in ("is it", "was it")]
    whole = examples_of(name, "train", LENGTHS, vocabulary=vocabulary)
    assert [one.inputs.tolist() for one in whole.examples] == [[*row, 1] for row in ids]
    short = examples_of(name, "train", {"inputs": 4, "targets": 8}, vocabulary=vocabulary)
    assert [one.inputs.tolist() for one in short.examples] == [[*row[:3], 1] for row in ids]


def test_examples_are_kept_with_answers(vocabulary):
    register(row(kept=("question", "label")))
    loaded = examples_of("ask_v1_examples", "train", LENGTHS, vocabulary=vocabulary)
    first, _ = loaded.predictions(["yes", "?"])
    assert first == {
        "prediction": 1,
        "prediction_pretokenized": "yes",
        "question": b"is it",
        "label": 1,
    }
    assert loaded.targets() == [1, 0]


def test_a_task_without_a_postprocessor_has_nothing_to_keep():
    register(row(postprocess=None, metrics=(), samples=None))
    for name in ROW.names():
        task = seqio.TaskRegistry.get(name)
        assert task.postprocessor is None and task.metric_fns == []


def test_steps_after_the_tokenisation_may_be_others(vocabulary):
    def reverse(dataset, sequence_length, output_features):
        assert sequence_length == LENGTHS and set(output_features) == {"inputs", "targets"}
        return dataset.map(lambda record: record | {"inputs": record["inputs"][::-1]})

    only = {"forms": ("",), "models": ("",), "examples": (False,)}
    register(row(after_tokenizing=(reverse,), **only))
    loaded = examples_of("ask_v1", "train", LENGTHS, vocabulary=vocabulary)
    expected = vocabulary.encode("ask question: is it")[::-1]
    assert loaded.examples[0].inputs.tolist() == expected
    assert seqio.TaskRegistry.get("ask_v1").supports_caching
    register(row(name="ask_v2", cacheable=False, **only))
    assert not seqio.TaskRegistry.get("ask_v2").supports_caching


def test_features_follow_from_the_family_of_the_model():
    register(ROW)
    for prefix, family in {"": "t5", "mt5_": "mt5", "byt5_": "byt5"}.items():
        task = seqio.TaskRegistry.get(f"{prefix}ask_v1")
        assert dict(task.output_features) == features.model_features(prefix)
        for feature in task.output_features.values():
            assert feature.vocabulary == ModelVocabulary(family) and feature.add_eos
            assert "released" not in vars(feature.vocabulary)  # No file was read.


def test_registering_the_same_again_changes_nothing():
    register(ROW)
    there = {name: seqio.TaskRegistry.get(name) for name in ROW.names()}
    register(ROW)
    assert all(seqio.TaskRegistry.get(name) is task for name, task in there.items())
    before = {name: seqio.TaskRegistry.get(name) for name in glue.NAMES}
    importlib.reload(glue)
    assert all(seqio.TaskRegistry.get(name) is task for name, task in before.items())


@pytest.mark.parametrize(
    ("name", "source"), [("ask_v1", "glue/sst2:2.0.0"), ("glue_sst2_v200", "glue/cola:2.0.0")]
)
def test_a_name_of_other_data_is_refused(name, source):
    register(ROW)
    other = row(name=name, source=source)
    with pytest.raises(ConfigError, match=f"^The name '{name}' belongs to a task over .*{source}"):
        register(other)


def test_a_task_without_an_index_has_no_such_form():
    with pytest.raises(ConfigError, match=r"'task_index_ask_v1' has no `TextTask\.index`"):
        register(row(index=None))


def test_a_mixture_has_equal_rates_or_those_given():
    names = register(ROW)[:2]
    assert register_mixture("both", names) == "both"
    assert register_mixture("some", {names[0]: 259.0, names[1]: 0.0}) == "some"
    rates = {name: seqio.MixtureRegistry.get(name).rate_per_task_name for name in ("both", "some")}
    assert rates == {
        "both": dict.fromkeys(names, 1.0),
        "some": dict(zip(names, (259.0, 0.0), strict=True)),
    }
    there = seqio.MixtureRegistry.get("both")
    register_mixture("both", names)
    assert seqio.MixtureRegistry.get("both") is there
    with pytest.raises(ConfigError, match=r"^The name 'both' belongs to a mixture of .*another"):
        register_mixture("both", names[:1])


IMPORT = """
import sys, tensorflow_datasets
from prompt_tuning.data import seqio_tasks
from prompt_tuning.data.seqio_tasks.sources import describe_stream
from prompt_tuning.vocabulary import ByteVocabulary
import seqio
before, asked = set(sys.modules), []
sys.addaudithook(lambda event, args: asked.append(args) if event.startswith("socket.") else None)

from prompt_tuning.tasks import glue, glue_transfer, perceptron, super_glue

names = glue.NAMES + glue_transfer.NAMES + perceptron.NAMES + super_glue.NAMES
print(len(names), asked, sorted(n for n in set(sys.modules) - before if "prompt_tuning" not in n))

vocabulary = ByteVocabulary()
steps = {}
for form in ("", "taskless_", "task_index_"):
    for name in (f"byt5_{form}glue_mnli_v200", f"byt5_{form}glue_mnli_matched_v002_examples"):
        task = seqio_tasks.with_vocabulary(seqio.TaskRegistry.get(name), vocabulary)
        steps.setdefault(form, set()).add(tuple(describe_stream(task)["preprocessors"]))
print([len(found) for found in steps.values()], len(set.union(*steps.values())))
one_model = [name for name in names if "t5_" not in name and "_examples" not in name]
kept = [describe_stream(seqio.TaskRegistry.get(name))["preprocessors"] for name in one_model]
print({type(one).__name__ for one in kept})
"""


def test_a_new_process_imports_quickly_and_describes_every_step():
    """No type checks of the tests, which cannot be described, are in its way.

    What is described by its steps, and not by their number, is kept in the cache of splits.
    """
    done = subprocess.run(
        [sys.executable, "-c", IMPORT],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    # As many tasks, nobody asked, no library imported; MNLI's steps are those of its other splits,
    # and others in each form; every task has a list of steps.
    assert done.stdout == "786 [] []\n[1, 1, 1] 3\n{'list'}\n", done.stdout
