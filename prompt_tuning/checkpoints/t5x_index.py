"""The file `checkpoint` of t5x: a tree of small arrays, and of the places of the others.

It is msgpack. A leaf is an array, what tensorstore calls a zarr array (t5x until 2022, all public
checkpoints), a text `PLACEHOLDER://name` (early orbax), or empty (the state of a parameter that is
not trained). The recorded bucket, path, chunks and compressor are those of the machine that wrote
it and are not followed: an array is looked for beside the file, and its own header counts
(t5x/checkpoints.py, `_read_ts`).
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np
from etils import epath
from flax import serialization

from prompt_tuning.checkpoints.containers import zarr
from prompt_tuning.checkpoints.containers.stored import Stored
from prompt_tuning.errors import CheckpointError

FILE = "checkpoint"
STEP = "state/step"
ITEM = "state"  # the folder of orbax inside of a checkpoint
_VERSIONS = (2, 3)
_PLACEHOLDER = "PLACEHOLDER://"
_DRIVERS = ("file", "gfile", "gcs", "s3")
# What tensorstore's name of an array always has (t5x/checkpoints.py, `_is_leaf`).
_SPEC = {"driver", "kvstore", "metadata"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """Where an array lies: the folders to look in, best first, and its shape if that is said."""

    folders: tuple[str, ...]
    shape: tuple[int, ...] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Index:
    """The content of the file.

    Attributes:
        file: it.
        version: of t5x's format; None if orbax has written it.
        leaves: by path, as in `state/param_states/encoder/prompt/prompt/prompt/v`.
    """

    file: epath.Path
    version: int | None
    leaves: dict[str, np.ndarray | Place | dict | None]

    def arrays(self) -> dict[str, Stored]:
        """Returns all arrays by path.

        Raises:
            CheckpointError: one is missing, damaged, or of another shape than is said.
        """
        root = self.file.parent
        places = {path: one for path, one in self.leaves.items() if isinstance(one, Place)}
        found = {
            path: Stored.of(leaf, f"{self.file!s} {path}")
            for path, leaf in self.leaves.items()
            if isinstance(leaf, np.ndarray)
        }
        if places:
            folders = {path: place.folders for path, place in places.items()}
            found |= zarr.open_arrays(zarr.open_store(root), folders, root)
        for path, place in places.items():
            if place.shape not in (None, found[path].shape):
                raise CheckpointError(
                    f"{found[path].where} has shape {found[path].shape}, but {self.file!s} says "
                    f"{place.shape}. They do not belong together."
                )
        return {path: self._typed(path, found[path]) for path in self.leaves if path in found}

    def _typed(self, path: str, stored: Stored) -> Stored:
        if stored.dtype != np.uint16 or self.version is None:
            return stored
        if self.version > 2:
            raise CheckpointError(
                f"{stored.where} ({path}) is uint16, which t5x wrote for bfloat16 until version 2 "
                f"of its format; {self.file!s} has version {self.version}. The file is damaged."
            )
        bfloat16 = np.dtype(ml_dtypes.bfloat16)
        return dataclasses.replace(
            stored, dtype=bfloat16, read=lambda index: stored.read(index).view(bfloat16)
        )


def find_index(path: epath.Path) -> epath.Path | None:
    """Returns the file in a checkpoint's folder, a `path` that is a file itself, or None."""
    for file in (path / FILE, path / ITEM / FILE, path):
        if file.is_file():
            return file
    return None


def read_index(file: epath.Path) -> Index:
    """Reads the file. It is small, unless it holds a whole model.

    Raises:
        CheckpointError: it is not msgpack, of another version, or holds what is not an array.
    """
    try:
        content = serialization.msgpack_restore(file.read_bytes())
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{file!s} is not an index of t5x ({error!r}). It is cut short or damaged, or the file "
            "of another program."
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{file!s} holds {type(content).__name__}, expected a tree of arrays."
        )
    version, tree = _version(content, file)
    if not isinstance(tree, dict):
        raise CheckpointError(f"{file!s} has no tree of parameters.")
    leaves = {"/".join(path): _leaf(leaf, path, file) for path, leaf in _flat(tree, (), file)}
    return Index(file=file, version=version, leaves=leaves)


def step_of(arrays: Mapping[str, Stored]) -> int | None:
    """Returns the number of updates behind a checkpoint; None if it does not say.

    Raises:
        CheckpointError: what lies in its place is not one.
    """
    if STEP not in arrays:
        return None
    stored = arrays[STEP]
    if stored.shape != ():
        raise CheckpointError(f"{stored.where} has shape {stored.shape}, expected one number.")
    # The original's `recreate_checkpoint` has cast it to the dtype of the parameters.
    step = float(stored.load())
    if not (step >= 0 and step.is_integer()):
        raise CheckpointError(f"{stored.where} is {step}, expected a number of steps.")
    return int(step)


def _version(content: dict[Any, Any], file: epath.Path) -> tuple[int | None, Any]:
    if "version" not in content or "optimizer" not in content:
        # The class of the optimizer's state had its tree in an attribute of this name.
        return None, content.get("_optimizer", content)
    version = content["version"]
    if not isinstance(version, int | np.integer) or version not in _VERSIONS:
        raise CheckpointError(
            f"{file!s} has version {version!r} of t5x's format, expected one of {_VERSIONS}."
        )
    return int(version), content["optimizer"]


def _flat(
    tree: dict[Any, Any], above: tuple[str, ...], file: epath.Path
) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in tree.items():
        if not isinstance(key, str) or "/" in key:
            raise CheckpointError(f"{file!s} has the name {key!r} below {'/'.join(above)!r}.")
        if isinstance(value, dict) and value and not value.keys() >= _SPEC:
            yield from _flat(value, (*above, key), file)
        else:
            yield (*above, key), value


def _leaf(leaf: Any, path: tuple[str, ...], file: epath.Path) -> np.ndarray | Place | dict | None:
    where = f"{file!s} ({'/'.join(path)})"
    if leaf is None or (isinstance(leaf, dict) and not leaf):
        return leaf
    if isinstance(leaf, str) and leaf.startswith(_PLACEHOLDER):
        return Place(folders=_folders(leaf.removeprefix(_PLACEHOLDER).split("/"), where))
    if isinstance(leaf, dict):
        return _spec(leaf, where)
    if isinstance(leaf, np.ndarray | np.generic | int | float):
        array = np.asarray(leaf)
        if array.dtype.kind in "fiub" or array.dtype == ml_dtypes.bfloat16:
            return array
    raise CheckpointError(f"{where} holds {type(leaf).__name__}, expected an array of numbers.")


def _spec(spec: dict[Any, Any], where: str) -> Place:
    try:
        driver, store = spec["driver"], spec["kvstore"]
        # Until tensorstore 0.1.14 the path stood beside the store.
        parts = (store.get("path") or spec["path"]).split("/")
        shape = spec["metadata"].get("shape")
        shape = None if shape is None else tuple(int(size) for size in shape)
        if driver != "zarr" or store["driver"] not in _DRIVERS:
            raise ValueError(f"drivers {driver} and {store['driver']}")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f"{where} is not the place of a zarr array ({error!r}). The file is damaged."
        ) from error
    return Place(folders=_folders(parts, where), shape=shape)


def _folders(path: list[str], where: str) -> tuple[str, ...]:
    parts = [part for part in path if part not in ("", ".")]
    if not parts or ".." in parts:
        raise CheckpointError(
            f"{where} lies at {'/'.join(path)!r}, outside of the checkpoint. It is not read."
        )
    # The arrays of a checkpoint that was copied came with it, under the last part of their path.
    last, absolute = parts[-1], path[0] == ""
    return (last,) if absolute else tuple(dict.fromkeys(("/".join(parts), last)))
