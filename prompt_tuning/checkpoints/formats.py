"""Every format of model checkpoints, and how to tell which one lies at a path."""

import dataclasses
import re
from collections.abc import Callable, Mapping

import numpy as np
from etils import epath
from jaxtyping import Float

from prompt_tuning.checkpoints import (
    hugging_face,
    mesh_tensorflow,
    methods,
    model_file,
    numpy_file,
    peft,
    prompt_file,
    run,
    run_folder,
    t5x,
)
from prompt_tuning.checkpoints.containers.stored import Stored
from prompt_tuning.checkpoints.contents import Contents
from prompt_tuning.checkpoints.prompt_file import PromptFile
from prompt_tuning.errors import CheckpointError, nearest


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelFormat:
    """One row of the table of formats.

    Attributes:
        about: what a user looks for in the folder.
        recognises: a cheap look at a path.
        open: reads names and shapes.
        save: writes tensors, configuration and step; None if we only read the format.
        holds_prompts: whether `save` takes `methods`, the trained parameters beside the base's.
    """

    about: str
    recognises: Callable[[epath.Path], bool]
    open: Callable[[epath.Path], Contents]
    save: Callable[..., None] | None = None
    holds_prompts: bool = False


# The order is that of asking.
MODEL_FORMATS = {
    "run": ModelFormat(
        about="a run of this program: MODEL_DIR or MODEL_DIR/checkpoints/<step>",
        recognises=run.looks_like_run,
        open=run.open_run,
    ),
    "huggingface": ModelFormat(
        about="Hugging Face: config.json with model.safetensors or pytorch_model.bin, or shards",
        recognises=hugging_face.looks_like_hugging_face,
        open=hugging_face.open_hugging_face,
        save=hugging_face.save_hugging_face,
    ),
    "mesh-tensorflow": ModelFormat(
        about="Mesh TensorFlow: model.ckpt-<step>.index with its .data files",
        recognises=mesh_tensorflow.looks_like_mesh_tensorflow,
        open=mesh_tensorflow.open_mesh_tensorflow,
    ),
    "orbax": ModelFormat(
        about="t5x with orbax: checkpoint_<step>/state/",
        recognises=t5x.looks_like_orbax,
        open=t5x.open_t5x,
        save=t5x.save_orbax,
        holds_prompts=True,
    ),
    "t5x": ModelFormat(
        about="t5x: checkpoint_<step>/checkpoint with one folder for each array",
        recognises=t5x.looks_like_t5x,
        open=t5x.open_t5x,
        save=t5x.save_t5x,
        holds_prompts=True,
    ),
    "safetensors": ModelFormat(
        about="this program's model file: *.safetensors with the architecture in it",
        recognises=model_file.looks_like_model_file,
        open=model_file.open_model_file,
        save=model_file.save_model_file,
    ),
}

# Those that models can be written in.
WRITABLE = tuple(name for name, one in MODEL_FORMATS.items() if one.save is not None)

_STEP = re.compile(r"checkpoint_(\d+)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptFormat:
    """One row of the table of prompt formats; `open` takes `task`, `save` the base's `config`."""

    about: str
    recognises: Callable[[epath.Path], bool]
    open: Callable[..., PromptFile]
    save: Callable[..., None]


PROMPT_FORMATS = {
    "peft": PromptFormat(
        about="PEFT: adapter_config.json with adapter_model.safetensors or .bin",
        recognises=peft.looks_like_peft,
        open=peft.open_peft,
        save=peft.save_peft,
    ),
    "prompt": PromptFormat(
        about="this program's prompt.safetensors",
        recognises=prompt_file.looks_like_prompt_file,
        open=prompt_file.open_prompt_file,
        save=prompt_file.save_prompt_file,
    ),
    "npy": PromptFormat(
        about="numpy: *.npy, or numpy_checkpoints/checkpoint_<step>/encoder.prompt.prompt.prompt",
        recognises=numpy_file.looks_like_numpy,
        open=numpy_file.open_numpy,
        save=numpy_file.save_numpy_file,
    ),
}


def format_of(path: epath.Path) -> str:
    """Returns the name of the format at a path, that of a prompt or of a model.

    Raises:
        CheckpointError: there is nothing that we know.
    """
    if is_prompt_run(path):
        return "prompt"
    for name, one in {**PROMPT_FORMATS, **MODEL_FORMATS}.items():
        if one.recognises(newest(path)):
            return name
    raise _nothing(path, {**PROMPT_FORMATS, **MODEL_FORMATS})


def open_model(path: epath.PathLike, name: str | None = None) -> Contents:
    """Opens the model checkpoint at a path, or the newest of the `checkpoint_<step>` in it.

    Nothing but names and shapes is read.

    Args:
        path: see `MODEL_FORMATS`.
        name: of the format, if it is known.

    Raises:
        CheckpointError: there is none, it is incomplete, or of another architecture.
    """
    path = newest(epath.Path(path))
    for known, one in MODEL_FORMATS.items():
        if known == name or (name is None and one.recognises(path)):
            return one.open(path)
    for known, one in PROMPT_FORMATS.items():
        if one.recognises(path):
            raise CheckpointError(
                f"{path!s} is a prompt ({known}), not a model. Name the base model that it was "
                "trained over."
            )
    raise _nothing(path, MODEL_FORMATS)


def open_prompt(
    path: epath.PathLike, name: str | None = None, *, task: int | None = None
) -> PromptFile:
    """Reads the prompt at a path: a file, an adapter, a run's newest, or a t5x checkpoint's.

    Args:
        path: see `PROMPT_FORMATS`.
        name: of the format, if it is known.
        task: which prompt of a multi-task adapter.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    path = newest(epath.Path(path))
    if is_prompt_run(path):
        path = path / prompt_file.FILE
    for known, one in PROMPT_FORMATS.items():
        if known == name or (name is None and one.recognises(path)):
            return one.open(path, task=task)
    if any(one.recognises(path) for one in MODEL_FORMATS.values()):
        return prompt_of(open_model(path, name))
    raise _nothing(path, PROMPT_FORMATS)


def load_vectors(path: epath.PathLike) -> Float[np.ndarray, "P D"]:
    """Returns the vectors of the prompt at a path, see `open_prompt`, for prompt initializers."""
    if not epath.Path(path).exists():
        raise CheckpointError(f"No prompt file at {path!s} (PROMPT_FILE).")
    return open_prompt(path).vectors


def prompt_of(contents: Contents) -> PromptFile:
    """Returns what was trained beside the base parameters of a model checkpoint.

    Raises:
        CheckpointError: nothing was.
    """
    if not contents.methods:
        raise CheckpointError(
            f"{contents.where!s} is a model without a prompt. Name a prompt, or a checkpoint that "
            "holds one."
        )
    return methods.of_t5x({name: one.load() for name, one in contents.methods.items()}, contents)


def is_prompt_run(path: epath.Path) -> bool:
    """Whether this is the folder of a run that trained a prompt."""
    return (path / prompt_file.FILE).exists()


def variables(path: epath.Path, *, parameters_only: bool = False) -> dict[str, Stored]:
    """Returns every array of a checkpoint or prompt by t5x's full path.

    Parameters lie below `target/`, the optimizer's state and the step below `state/`. A t5x
    checkpoint does not have to be one of a T5.

    Args:
        path: of any format.
        parameters_only: leave `state/` out.

    Raises:
        CheckpointError: there is nothing that we know.
    """
    path = newest(path)
    name = format_of(path)
    if name in ("t5x", "orbax"):
        found = t5x.variables(path)
    elif name in PROMPT_FORMATS or is_prompt_run(path):
        arrays = methods.to_t5x_names(open_prompt(path))
        found = {f"target/{key}": one for key, one in arrays.items()}
    else:
        contents = open_model(path)
        slots = {f"param_states/{key}": one for key, one in contents.slots.items()}
        if contents.step is not None:
            slots["step"] = Stored.of(np.asarray(contents.step, np.int32), f"{path!s} step")
        found = {f"target/{key}": one for key, one in contents.tensors.items()}
        found |= {f"target/{key}": one for key, one in contents.methods.items()}
        found |= {f"state/{key}": one for key, one in slots.items()}
    kept = {key: one for key, one in found.items() if key.startswith("target/")}
    return kept if parameters_only else found


def variable(path: epath.Path, name: str) -> Stored:
    """Returns one array of a checkpoint; the `target/` before its t5x path may be left out.

    Raises:
        CheckpointError: there is no checkpoint, or no such array in it.
    """
    found = variables(path)
    name = name.strip("/")
    for candidate in (name, f"target/{name}"):
        if candidate in found:
            return found[candidate]
    raise CheckpointError(
        f"{path!s} has no variable {name!r}; it has {len(found)}.{nearest(name, found)} "
        "`prompt-tuning inspect` lists them."
    )


def newest(path: epath.Path) -> epath.Path:
    """Returns the newest `checkpoint_<step>` of a folder of them; any other path as it is."""
    steps = _by_step(path)
    return steps[max(steps)] if steps else path


def model_checkpoints(path: epath.Path) -> dict[int, epath.Path]:
    """Returns the models in a folder by step, in ascending order.

    Those of a run that trained a model, `checkpoints/<step>`, or t5x's `checkpoint_<step>`.
    """
    folder = path / run.FOLDER
    steps = {step: folder / str(step) for step in run_folder.saved_steps(folder)}
    return steps or dict(sorted(_by_step(path).items()))


def _by_step(folder: epath.Path) -> dict[int, epath.Path]:
    """Returns the `checkpoint_<step>` of a folder."""
    if not folder.is_dir():
        return {}
    return {
        int(match[1]): child
        for child in folder.iterdir()
        if (match := _STEP.fullmatch(child.name)) and child.is_dir()
    }


def _nothing(path: epath.Path, table: Mapping[str, ModelFormat | PromptFormat]) -> CheckpointError:
    known = "\n  ".join(one.about for one in table.values())
    found = "No checkpoint of a known format is at" if path.exists() else "There is nothing at"
    beside = [one.name for one in path.parent.iterdir()] if path.parent.is_dir() else []
    close = "" if path.exists() else nearest(path.name, beside)
    return CheckpointError(f"{found} {path!s}.{close} Expected one of\n  {known}")
