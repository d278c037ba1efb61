"""Which models `eval` and `infer` look at, for every kind of PROMPT_FILE and CHECKPOINTS."""

import re
import types

import jax
import numpy as np
import pytest
from etils import epath
from flax import nnx

from prompt_tuning.checkpoints import PromptFile, formats, open_model
from prompt_tuning.checkpoints.containers.stored import Stored
from prompt_tuning.checkpoints.numpy_file import save_numpy
from prompt_tuning.cli import subjects as subjects_module
from prompt_tuning.cli.subjects import subjects
from prompt_tuning.errors import CheckpointError, ConfigError
from prompt_tuning.model import BaseParam, parameters
from prompt_tuning.vocabulary import ByteVocabulary
from tests.asked_models import make_base
from tests.tiny_runs import BASE_STEP

VECTORS = np.random.default_rng(1).normal(size=(3, 32)).astype(np.float32)
STEPS = [30, 40, 50]


def vectors_at(step):
    return VECTORS + np.float32(step)


@pytest.fixture(scope="module")
def place(programs, tmp_path_factory):
    """A base, the same prompt in every format, and the folders of two runs."""
    folder = tmp_path_factory.mktemp("place")
    make_base(folder / "base")
    [bare] = subjects(str(folder / "base"))
    provenance = {"base": bare.made_of["base"], "task": "films"}
    PromptFile.of(VECTORS, step=40, **provenance).save(folder / "ours.safetensors")
    np.save(folder / "vectors.npy", VECTORS)
    save_numpy(folder / "original", 40, VECTORS)
    formats.PROMPT_FORMATS["peft"].save(PromptFile.of(VECTORS), epath.Path(folder / "peft"))
    contents = open_model(folder / "base")
    prompt = {"encoder/prompt/prompt/prompt": Stored.of(VECTORS, "the test's")}
    for name in ("t5x", "orbax"):
        path = epath.Path(folder / name / "checkpoint_40")
        save = formats.MODEL_FORMATS[name].save
        save(contents.tensors, contents.config, 40, path, methods=prompt)

    run = folder / "run"
    for step in STEPS:
        save_numpy(run, step, vectors_at(step))
    PromptFile.of(vectors_at(50), step=50, **provenance).save(run / "prompt.safetensors")
    PromptFile.of(vectors_at(40), step=40, **provenance).save(run / "best/prompt.safetensors")
    PromptFile.of(VECTORS, step=50, **provenance).save(folder / "no_best/prompt.safetensors")

    for seed, step in enumerate([20, 25], start=1):
        make_base(folder / "tuned", seed=seed, step=step)
    formats.MODEL_FORMATS["t5x"].save(
        contents.tensors, contents.config, 20, epath.Path(folder / "alone")
    )
    PromptFile.of(VECTORS, base="ab" * 32).save(folder / "other.safetensors")
    np.save(folder / "wide.npy", np.zeros((3, 64), np.float32))
    [ours] = subjects(str(folder / "base"), prompt=str(folder / "ours.safetensors"))
    return types.SimpleNamespace(
        folder=folder, base=str(folder / "base"), hash=provenance["base"], bare=bare, ours=ours
    )


def prompt_of(subject):
    return np.asarray(subject.model.encoder.prompt.prompt[...])


def weights_of(subject):
    found = parameters.named(nnx.state(subject.model, BaseParam))
    return {name: np.asarray(jax.device_get(array)).tobytes() for name, array in found.items()}


FORMATS = {
    "ours": ("ours.safetensors", 40),
    "numpy": ("vectors.npy", BASE_STEP),
    "the original's folder": ("original/numpy_checkpoints", 40),
    "one step of the original's": ("original/numpy_checkpoints/checkpoint_40", 40),
    "PEFT": ("peft", BASE_STEP),
    "t5x": ("t5x", 40),
    "orbax": ("orbax/checkpoint_40", 40),
}


@pytest.mark.parametrize("case", FORMATS)
def test_a_prompt_of_any_format_is_put_on_the_base(place, case):
    path, step = FORMATS[case]
    [subject] = subjects(place.base, prompt=str(place.folder / path))
    np.testing.assert_array_equal(prompt_of(subject), VECTORS)
    assert weights_of(subject) == weights_of(place.bare)
    assert (subject.step, subject.prompts) == (step, 1)
    # The same vectors are the same prompt, wherever they come from.
    assert subject.made_of == place.ours.made_of
    assert subject.made_of["base"] == place.hash


def test_without_a_prompt_the_base_is_bare(place):
    assert place.bare.model.encoder.prompt is None
    assert (place.bare.step, place.bare.made_of) == (BASE_STEP, {"base": place.hash})


@pytest.mark.parametrize("name", ["t5x", "orbax"])
def test_the_prompt_in_a_checkpoint_is_not_forgotten(place, name):
    [subject] = subjects(str(place.folder / name))
    np.testing.assert_array_equal(prompt_of(subject), VECTORS)
    assert (subject.step, subject.made_of) == (40, place.ours.made_of)
    # A named prompt takes its place.
    [replaced] = subjects(str(place.folder / name), prompt=str(place.folder / "run"))
    np.testing.assert_array_equal(prompt_of(replaced), vectors_at(50))


CHOICES = {
    "latest": ("latest", [50]),
    "best": ("best", [40]),
    "all": ("all", STEPS),
    "a list, in its order": ([50, 30], [50, 30]),
    "a tuple": ((40,), [40]),
    "one step": (30, [30]),
}


@pytest.mark.parametrize("case", CHOICES)
def test_the_prompts_of_a_run_are_chosen(place, monkeypatch, case):
    loads = []

    def counted(*arguments):
        loads.append(arguments)
        return load_base(*arguments)

    load_base = subjects_module.load_base
    monkeypatch.setattr(subjects_module, "load_base", counted)
    which, steps = CHOICES[case]
    chosen = list(subjects(place.base, prompt=str(place.folder / "run"), which=which))
    assert [one.step for one in chosen] == steps
    for one in chosen:
        np.testing.assert_array_equal(prompt_of(one), vectors_at(one.step))
    assert len({one.made_of["prompts"][0] for one in chosen}) == len(steps)
    assert len(loads) == 1, "the base is read once"


@pytest.mark.parametrize("case", ["latest", "all", "a list", "one step"])
def test_the_checkpoints_of_a_tuned_model_are_chosen(place, case):
    which = {"a list": [25, 20], "one step": 20}.get(case, case)
    steps = {"latest": [25], "all": [20, 25], "a list": [25, 20], "one step": [20]}[case]
    found = list(subjects(str(place.folder / "tuned"), which=which))
    assert [one.step for one in found] == steps
    hashes = {one.made_of["base"] for one in found}
    assert len(hashes) == len(steps)
    assert place.hash not in hashes


def test_the_model_may_be_configured(place):
    [subject] = subjects(place.base, settings={"dtype": "float32"})
    assert subject.model.config.dtype == "float32"


# what is wrong -> checkpoint, arguments, error, message; {} is the folder.
BAD = {
    "an unknown choice": (
        "base",
        {"prompt": "{}/run", "which": "lates"},
        ConfigError,
        "CHECKPOINTS is 'lates', expected one of latest, best, all, a step or a list of steps. "
        r"Did you mean 'latest'\?",
    ),
    "no steps": (
        "base",
        {"prompt": "{}/run", "which": []},
        ConfigError,
        r"CHECKPOINTS is \[\], expected one of latest, best, all, a step or a list of steps\.",
    ),
    "a step that was not saved": (
        "base",
        {"prompt": "{}/run", "which": [30, 31]},
        CheckpointError,
        r"PROMPT_FILE '{}/run' has no step 31 \(CHECKPOINTS\)\. It has: 30, 40, 50\.",
    ),
    "a step of a model that was not saved": (
        "tuned",
        {"which": 21},
        CheckpointError,
        r"CHECKPOINT_PATH '{}/tuned' has no step 21 \(CHECKPOINTS\)\. It has: 20, 25\.",
    ),
    "all of a file": (
        "base",
        {"prompt": "{}/ours.safetensors", "which": "all"},
        ConfigError,
        "CHECKPOINTS is 'all', but PROMPT_FILE '{}/ours.safetensors' is not the folder of a run. "
        "Name the MODEL_DIR that the prompts were trained in, or leave CHECKPOINTS out.",
    ),
    "a best that nobody knew": (
        "base",
        {"prompt": "{}/no_best", "which": "best"},
        CheckpointError,
        "PROMPT_FILE '{}/no_best' has no best/prompt.safetensors: the run had no MONITOR to say "
        "what is best. Evaluate CHECKPOINTS='all' to find it.",
    ),
    "the best model": (
        "tuned",
        {"which": "best"},
        ConfigError,
        "CHECKPOINTS is 'best', but only runs that trained a prompt keep their best state. "
        "Choose 'latest', 'all' or steps: 20, 25.",
    ),
    "all of a single model": (
        "alone",
        {"which": "all"},
        CheckpointError,
        "CHECKPOINT_PATH '{}/alone' has no saved steps to choose from.",
    ),
    "no such prompt": (
        "base",
        {"prompt": "{}/nowhere"},
        CheckpointError,
        "PROMPT_FILE: There is nothing at {}/nowhere. Expected one of\n(.|\n)*",
    ),
    "a model as a prompt": (
        "base",
        {"prompt": "{}/tuned"},
        CheckpointError,
        "PROMPT_FILE: {}/tuned/checkpoints/25 is a model without a prompt. Name a prompt, or a "
        "checkpoint that holds one.",
    ),
    "no such base": (
        "nowhere",
        {},
        CheckpointError,
        "CHECKPOINT_PATH: There is nothing at {}/nowhere. Expected one of\n(.|\n)*",
    ),
    "a prompt as a base": (
        "ours.safetensors",
        {},
        CheckpointError,
        r"CHECKPOINT_PATH: {}/ours.safetensors is a prompt \(prompt\), not a model. Name the base "
        "model that it was trained over.",
    ),
    "a prompt of another base": (
        "base",
        {"prompt": "{}/other.safetensors"},
        CheckpointError,
        "PROMPT_FILE '{}/other.safetensors': The prompt was trained over another base model: its "
        "base has hash abababababab, this one [0-9a-f]{{12}}. Load the base it was trained over, "
        "or the prompt of this base.",
    ),
    "a prompt of another size": (
        "base",
        {"prompt": "{}/wide.npy"},
        CheckpointError,
        r"PROMPT_FILE '{}/wide.npy': The prompt was trained on a model of another size: "
        r"'encoder/prompt/prompt' has shape \(3, 64\), this model needs \(3, 32\)\. Choose .*",
    ),
    "a vocabulary larger than the model's table": (
        "base",
        {"vocabulary": ByteVocabulary(extra_ids=9000)},
        ConfigError,
        "The vocabulary has 9259 ids, but the model's embedding table has only 8192 rows.*",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_go_together_is_refused(place, case):
    checkpoint, arguments, error, message = BAD[case]
    here = str(place.folder)
    given = {
        name: one.replace("{}", here) if isinstance(one, str) else one
        for name, one in arguments.items()
    }
    with pytest.raises(error) as raised:
        list(subjects(f"{here}/{checkpoint}", **given))
    pattern = message.replace("{}", re.escape(here)).replace("{{", "{").replace("}}", "}")
    assert re.fullmatch(pattern, str(raised.value)), str(raised.value)
