"""The portable file of a prompt: safetensors with where it belongs as metadata.

A prompt is one tensor named `prompt`; what other methods train lies under our parameter names.
"""

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float

from prompt_tuning.checkpoints.containers import storage
from prompt_tuning.checkpoints.containers.json_file import parse_json
from prompt_tuning.checkpoints.containers.safetensors_file import open_safetensors, write_into
from prompt_tuning.checkpoints.containers.stored import Stored
from prompt_tuning.checkpoints.mapping import PROMPT
from prompt_tuning.errors import CheckpointError, ConfigError, nearest

FILE = "prompt.safetensors"
_FORMAT = "prompt-tuning 1"
_TENSOR = "prompt"

# What each method trains, under our parameter names. L: layers, F: hidden features of an MLP.
METHODS = {
    "prompt": r"encoder/prompt/prompt",  # [P D]
    "prefix": r"decoder/prefix/(keys|values)",  # [L P N H]
    "ia3": r"(encoder|decoder)/layers/\w+/\w+/ia3_scaling",  # [L N H], and [L F] of an MLP
}
FLOATS = ("float16", "bfloat16", "float32", "float64")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptFile:
    """What one method learned, and where it belongs. Whatever is not known is None or empty.

    Attributes:
        arrays: float32, under our parameter names, see `METHODS`.
        base: hash of the frozen parameters that it was trained over, see `parameters.fingerprint`;
            None for files of other software.
        base_name: of the base model, for people.
        step: the global step.
        task: that it was trained on.
        config: the gin configuration of the run.
        metrics: values by name.
        details: anything else worth knowing, as JSON.

    Raises:
        CheckpointError: the arrays are not those of one method.
    """

    arrays: Mapping[str, Float[np.ndarray, "..."]]
    base: str | None = None
    base_name: str | None = None
    step: int | None = None
    task: str | None = None
    config: str | None = None
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        check_shapes(self.method, {name: array.shape for name, array in self.arrays.items()})

    @classmethod
    def of(cls, vectors: Float[np.ndarray, "P D"], **provenance: Any) -> "PromptFile":
        """Returns the file of a prompt.

        >>> PromptFile.of(vectors, step=1_100_050).save("prompt.safetensors")
        """
        return cls(arrays={PROMPT: vectors}, **provenance)

    @property
    def method(self) -> str:
        """The name of the method, as in `METHODS`."""
        return method_of(self.arrays)

    @property
    def vectors(self) -> Float[np.ndarray, "P D"]:
        """The vectors of a prompt.

        Raises:
            CheckpointError: another method was trained.
        """
        if PROMPT not in self.arrays:
            raise CheckpointError(
                f"This is not a prompt but {self.method}, which has no vectors [P, D]. Attach it "
                "to a model, or keep it in a format that holds it."
            )
        return self.arrays[PROMPT]

    @property
    def length(self) -> int | None:
        """P; None for a method without learned positions."""
        axis = {"prompt": 0, "prefix": 1}.get(self.method)
        return None if axis is None else next(iter(self.arrays.values())).shape[axis]

    def over(self, base: str, *, name: str | None = None) -> "PromptFile":
        """Returns the file as one of a prompt over the base with this hash.

        Raises:
            CheckpointError: it is known to have been trained over another.
        """
        self._check_base(base, "The prompt")
        return dataclasses.replace(self, base=base, base_name=name or self.base_name)

    def save(self, path: epath.PathLike) -> None:
        """Writes the file so that it is either whole or absent."""
        names = {PROMPT: _TENSOR}
        tensors = {
            names.get(name, name): Stored.of(np.asarray(array, np.float32), name)
            for name, array in self.arrays.items()
        }
        with storage.replaced_file(epath.Path(path)) as partial:
            write_into(partial, tensors, self._metadata())

    def _metadata(self) -> dict[str, str]:
        known = {
            "base": self.base,
            "base_name": self.base_name,
            "step": self.step,
            "length": self.length,
            "task": self.task,
            "config": self.config,
        }
        return {
            "format": _FORMAT,
            "method": self.method,
            **{key: str(value) for key, value in known.items() if value is not None},
            **({"metrics": _json(self.metrics)} if self.metrics else {}),
            "details": _json(self.details),
        }

    @classmethod
    def load(cls, path: epath.PathLike, *, base: str | None = None) -> "PromptFile":
        """Reads a file written by `save`.

        Args:
            base: hash of the model that the prompt is for; None does not check. A prompt whose own
                base is not known passes, and its `base` stays None.

        Raises:
            CheckpointError: no such file, not a prompt, or a prompt of another base.
        """
        path = epath.Path(path)
        if not path.exists():
            raise CheckpointError(f"No prompt file at {path!s} (PROMPT_FILE).")
        opened = open_safetensors(path)
        metadata = opened.metadata
        if metadata.get("format") != _FORMAT:
            raise CheckpointError(
                f"{path!s} is not a prompt file: its metadata says format "
                f"{metadata.get('format', '')[:40]!r}, expected {_FORMAT!r}."
            )
        tensors = {(PROMPT if name == _TENSOR else name): t for name, t in opened.tensors.items()}
        try:
            check_shapes(method_of(tensors), {name: one.shape for name, one in tensors.items()})
        except CheckpointError as error:
            raise CheckpointError(f"{path!s} is not a prompt file. {error}") from error
        file = cls(
            arrays={name: as_float32(one.load(), one.where) for name, one in tensors.items()},
            base=metadata.get("base") or None,
            base_name=metadata.get("base_name"),
            step=_step(metadata, path),
            task=metadata.get("task"),
            config=metadata.get("config"),
            metrics=_metrics(metadata, path),
            details=_object(metadata, "details", path),
        )
        if base is not None:
            file._check_base(base, f"The prompt {path!s}")
        return file

    def _check_base(self, base: str, what: str) -> None:
        if self.base is not None and self.base != base:
            raise CheckpointError(
                f"{what} was trained over another base model: its base has hash "
                f"{self.base[:12]}, this one {base[:12]}. Load the base it was trained over, or "
                "the prompt of this base."
            )


def looks_like_prompt_file(path: epath.Path) -> bool:
    """Whether a file is, or is named like, one that `PromptFile.save` wrote."""
    if path.suffix != ".safetensors" or not path.exists() or path.is_dir():
        return False
    return path.name == FILE or open_safetensors(path).metadata.get("format") == _FORMAT


def open_prompt_file(path: epath.Path, *, task: int | None = None) -> PromptFile:
    """Reads a prompt file; `task` must be None, there is one prompt in it."""
    refuse_task(task, path)
    return PromptFile.load(path)


def save_prompt_file(file: PromptFile, path: epath.Path, *, config: object = None) -> None:
    """Writes a prompt file where there is none yet; `config` is not needed."""
    storage.refuse_existing(path)
    file.save(path)


def refuse_task(task: int | None, where: object) -> None:
    """Raises ConfigError if a task was chosen where there is nothing to choose from."""
    if task is not None:
        raise ConfigError(
            f"Task {task} was asked for, but {where!s} holds a single prompt. Leave the task out."
        )


def method_of(names: Mapping[str, Any]) -> str:
    """Returns the name of the method that trains parameters of these names.

    Raises:
        CheckpointError: there are none, or no one method trains all of them.
    """
    for method, pattern in METHODS.items():
        if names and all(re.fullmatch(pattern, name) for name in names):
            return method
    shown = ", ".join(repr(name[:80]) for name in sorted(names)[:5]) or "nothing"
    hints = "".join(nearest(name, [PROMPT]) for name in sorted(names)[:5])
    raise CheckpointError(
        f"It holds {shown}{', ...' if len(names) > 5 else ''}, which no method of ours trains: "
        f"expected the parameters of one of {', '.join(METHODS)}.{hints}"
    )


def check_shapes(method: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises CheckpointError if arrays are not shaped as those of a method, on any model."""
    wanted = {"prompt": "[P, D]", "prefix": "[L, P, N, H]", "ia3": "[L, F] or [L, N, H]"}[method]
    dimensions = {"prompt": (2,), "prefix": (4,), "ia3": (2, 3)}[method]
    for name, shape in shapes.items():
        if len(shape) not in dimensions or 0 in shape:
            raise CheckpointError(f"{name!r} has shape {shape}, expected {wanted}.")
    if method == "prefix" and (len(shapes) < 2 or len(set(shapes.values())) > 1):
        raise CheckpointError(f"A prefix has keys and values of one shape, here are {shapes}.")


def as_float32(array: np.ndarray, where: object) -> Float[np.ndarray, "..."]:
    """Returns the values of any float in float32: exactly, but for float64, which is rounded.

    Raises:
        CheckpointError: not floats, or a float64 beyond the range of float32.
    """
    if array.dtype.name not in FLOATS:
        raise CheckpointError(
            f"{where!s} holds {array.dtype}, expected one of {', '.join(FLOATS)}."
        )
    with np.errstate(over="ignore"):
        narrow = array.astype(np.float32)
    if np.any(np.isinf(narrow) & np.isfinite(array)):
        raise CheckpointError(f"{where!s} holds numbers that are too large for float32.")
    return narrow


def _json(values: Mapping[str, Any]) -> str:
    return json.dumps(dict(values), sort_keys=True)


def _object(metadata: Mapping[str, str], key: str, path: epath.Path) -> dict[str, Any]:
    return parse_json(metadata.get(key, "{}").encode(), f"The metadata {key!r} of {path!s}")


def _metrics(metadata: Mapping[str, str], path: epath.Path) -> dict[str, float]:
    found = _object(metadata, "metrics", path)
    for name, value in found.items():
        if type(value) not in (int, float):
            raise CheckpointError(
                f"The metadata 'metrics' of {path!s} gives {name[:80]!r} the value "
                f"{str(value)[:80]!r}, expected a number."
            )
    return found


def _step(metadata: Mapping[str, str], path: epath.Path) -> int | None:
    text = metadata.get("step")
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise CheckpointError(
            f"The metadata 'step' of {path!s} is {text[:80]!r}, expected a whole number."
        )
    return int(text)
