"""Prompts as numpy files, as the original writes and releases them.

It names the file after the variable, with dots and without a suffix:
`numpy_checkpoints/checkpoint_<step>/encoder.prompt.prompt.prompt`.
"""

import io
import math
import re
import tokenize

import ml_dtypes
import numpy as np
from etils import epath
from jaxtyping import Float

from prompt_tuning.checkpoints.containers import byte_range, storage
from prompt_tuning.checkpoints.containers.byte_range import damaged
from prompt_tuning.checkpoints.mapping import T5X_PROMPT
from prompt_tuning.checkpoints.prompt_file import FLOATS, PromptFile, as_float32, refuse_task
from prompt_tuning.errors import CheckpointError, nearest

FOLDER = "numpy_checkpoints"
FILE = T5X_PROMPT.replace("/", ".")
_MAGIC = b"\x93NUMPY"
_STEP = re.compile(r"checkpoint_([0-9]+)")
# Magic, version, length and the 10,000 bytes of header that numpy takes from strangers.
_LONGEST_HEADER = 12 + 10_000


def looks_like_numpy(path: epath.Path) -> bool:
    """Whether there is a numpy file at a path, or a folder in which the original put a prompt."""
    if path.is_dir():
        return (path / FILE).exists() or (path.name == FOLDER and bool(_by_step(path)))
    if path.suffix == ".npy" or path.name == FILE:
        return path.exists()
    return path.exists() and _head(path, len(_MAGIC)) == _MAGIC


def open_numpy(path: epath.PathLike, *, task: int | None = None) -> PromptFile:
    """Reads a prompt from a numpy file, or the newest one of a folder `numpy_checkpoints`.

    The step is that of the folder, if it says one; the base is not known.

    Args:
        path: the file, with or without the suffix `.npy`, its folder, or the folder of those.
        task: must be None, there is one prompt in such a file.

    Raises:
        CheckpointError: no such file, damaged, not floats, or not of two dimensions.
    """
    refuse_task(task, path)
    path = _file(epath.Path(path))
    match = _STEP.fullmatch(path.parent.name)
    return PromptFile.of(load_numpy(path), step=int(match[1]) if match else None)


def load_numpy(path: epath.PathLike) -> Float[np.ndarray, "P D"]:
    """Returns a numpy prompt in float32: exactly, but for float64, which is rounded.

    Files of bfloat16 are those of the original, which numpy calls raw bytes (`|V2`).

    Raises:
        CheckpointError: see `open_numpy`.
    """
    path = _file(epath.Path(path))
    if not path.exists():
        raise CheckpointError(f"No prompt file at {path!s} (PROMPT_FILE).")
    return _load(path, "a prompt has two dimensions [P, D]")


def load_embeddings(path: epath.PathLike) -> Float[np.ndarray, "V D"]:
    """Returns a table of token embeddings in float32, for prompt initializers.

    `prompt-tuning extract --variable_path=token_embedder/embedding` writes one.

    Raises:
        CheckpointError: no such file, damaged, not floats, or not of two dimensions.
    """
    path = epath.Path(path)
    if not path.exists() or path.is_dir():
        raise CheckpointError(
            f"There is no numpy file at {path!s} (EMBEDDING_FILE). Write it with `prompt-tuning "
            "extract --checkpoint_dir=BASE --variable_path=token_embedder/embedding "
            "--output_path=FILE`."
        )
    return _load(path, "a table of embeddings has two dimensions [V, D]")


def _load(path: epath.Path, expected: str) -> Float[np.ndarray, "rows D"]:
    shape, in_columns, dtype, start = _header(path)
    available, needed = byte_range.file_size(path) - start, math.prod(shape) * dtype.itemsize
    if len(shape) != 2 or min(shape) < 1:
        raise CheckpointError(f"{path!s} holds an array of shape {shape}, {expected}.")
    if available != needed:
        raise CheckpointError(
            f"{path!s} is damaged: an array of shape {shape} in {dtype} takes {needed} bytes, the "
            f"file has {available}."
        )
    numbers = np.frombuffer(byte_range.read_range(path, start, needed), dtype)
    array = numbers.reshape(shape, order="F" if in_columns else "C")
    return np.ascontiguousarray(as_float32(array, path))


def save_numpy(model_dir: epath.PathLike, step: int, vectors: Float[np.ndarray, "P D"]) -> None:
    """Writes a run's prompt where the original's users look for it."""
    path = epath.Path(model_dir) / FOLDER / f"checkpoint_{step}" / FILE
    storage.write_whole(path, _content(vectors))


def save_numpy_file(file: PromptFile, path: epath.Path, *, config: object = None) -> None:
    """Writes a prompt as the numpy file `path`, where there is none yet.

    Raises:
        CheckpointError: another method than a prompt, which a single array cannot hold.
    """
    write(path, file.vectors)


def write(path: epath.Path, array: Float[np.ndarray, "..."]) -> None:
    """Writes any array in float32 where there is no file yet, under exactly this name."""
    storage.refuse_existing(path)
    storage.write_whole(path, _content(array))


def oldest(folder: epath.Path) -> Float[np.ndarray, "P D"] | None:
    """Returns the first prompt that a run saved in its `numpy_checkpoints`, if there is one."""
    steps = _by_step(folder)
    return load_numpy(steps[min(steps)]) if steps else None


def saved_prompts(model_dir: epath.Path) -> dict[int, epath.Path]:
    """Returns the files of all prompts that a run saved, by step in ascending order."""
    folder = model_dir / FOLDER
    return dict(sorted(_by_step(folder).items())) if folder.is_dir() else {}


def _file(path: epath.Path) -> epath.Path:
    """Returns the file that a path stands for."""
    if not path.is_dir():
        return path
    if (steps := _by_step(path)) and not (path / FILE).exists():
        return steps[max(steps)]
    if not (path / FILE).exists():
        names = sorted(child.name for child in path.iterdir())
        raise CheckpointError(
            f"There is no {FILE!r} in {path!s} (PROMPT_FILE), and no checkpoint_<step> with one."
            f"{nearest(FILE, names)}"
        )
    return path / FILE


def _by_step(folder: epath.Path) -> dict[int, epath.Path]:
    """Returns a run's prompts by step; folders that are still being written have other names."""
    return {
        int(match[1]): child / FILE
        for child in folder.iterdir()
        if (match := _STEP.fullmatch(child.name)) and (child / FILE).exists()
    }


def _header(path: epath.Path) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """Returns shape, whether columns come first, dtype, and where the numbers begin."""
    file = io.BytesIO(_head(path, _LONGEST_HEADER))
    # The header is a Python literal, whose parser fails in many ways.
    faults = (ValueError, TypeError, SyntaxError, MemoryError, tokenize.TokenError)
    with damaged(f"The numpy file {path!s}", *faults):
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            shape, in_columns, dtype = np.lib.format.read_array_header_1_0(file)
        elif version == (2, 0):
            shape, in_columns, dtype = np.lib.format.read_array_header_2_0(file)
        else:
            raise ValueError(f"version {version} is for records, a prompt is an array")
    if dtype == np.dtype("V2"):
        dtype = np.dtype(ml_dtypes.bfloat16)
    if dtype.subdtype is not None or dtype.name not in FLOATS:
        raise CheckpointError(f"{path!s} holds {dtype}, expected one of {', '.join(FLOATS)}.")
    return shape, in_columns, dtype, file.tell()


def _head(path: epath.Path, size: int) -> bytes:
    return byte_range.read_range(path, 0, min(size, byte_range.file_size(path)))


def _content(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, np.asarray(array, np.float32))
    return file.getvalue()
