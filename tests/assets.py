"""One model and its prompts in every format, for the tests of the commands."""

import functools
import pathlib

import numpy as np
from etils import epath

from prompt_tuning.checkpoints import formats
from prompt_tuning.checkpoints.containers.stored import Stored
from prompt_tuning.checkpoints.contents import contents
from prompt_tuning.checkpoints.prompt_file import PromptFile
from tests.reference_models import read

T5X_PROMPT = "encoder/prompt/prompt/prompt"
STEP = 1_100_000


def stored(arrays):
    return {name: Stored.of(array, f"the test's {name}") for name, array in arrays.items()}


@functools.cache
def arrays(name="C"):
    """The parameters of a golden model under t5x's names, without its prompt."""
    return {key: array for key, array in read(f"{name}/params.npz").items() if key != T5X_PROMPT}


def prompt(name="C"):
    return read(f"{name}/params.npz")[T5X_PROMPT]


def tied(found):
    """The same as a T5 1.0: no matrix for the logits, one branch in every MLP."""
    return {
        key.replace("/wi_0/", "/wi/"): array
        for key, array in found.items()
        if "logits_dense" not in key and "/wi_1/" not in key
    }


def opened(found=None, step=STEP, methods=None):
    """The contents of a checkpoint that lies in memory."""
    found = arrays() if found is None else found
    return contents(
        kind="t5x",
        where=epath.Path("memory"),
        tensors=stored({**found, **(methods or {})}),
        step=step,
    )


def write_model(folder, name, found=None, **options):
    """Writes the model into `folder` in a format; returns the path of the checkpoint."""
    names = {"t5x": f"checkpoint_{STEP}", "safetensors": "base.safetensors"}
    names["orbax"] = names["t5x"]
    path = epath.Path(folder) / names.get(name, name)
    held = opened(found)
    formats.MODEL_FORMATS[name].save(held.tensors, held.config, held.step, path, **options)
    return pathlib.Path(path)


def write_prompt(folder, name, vectors=None, **provenance):
    """Writes the prompt into `folder` in a format; returns its path."""
    names = {"npy": "prompt.npy", "prompt": "prompt.safetensors", "peft": "adapter"}
    path = epath.Path(folder) / names[name]
    vectors = prompt() if vectors is None else vectors
    file = PromptFile.of(np.asarray(vectors), **provenance)
    formats.PROMPT_FORMATS[name].save(file, path, config=opened().config)
    return pathlib.Path(path)


def tree(folder):
    """Every file below a folder with its bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(pathlib.Path(folder).rglob("*"))
        if path.is_file()
    }
