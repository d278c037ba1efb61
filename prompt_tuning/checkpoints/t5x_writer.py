"""A model as a checkpoint that t5x restores: `checkpoint_<step>/checkpoint` and its arrays."""

import re
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
from etils import epath
from flax import serialization

from prompt_tuning.checkpoints import t5x_index
from prompt_tuning.checkpoints.containers import storage, zarr
from prompt_tuning.checkpoints.containers.stored import Stored
from prompt_tuning.checkpoints.contents import expected_shapes
from prompt_tuning.errors import CheckpointError, ConfigError, nearest
from prompt_tuning.model import T5Config
from prompt_tuning.model.parameters import check_names

VERSION = 3
DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
_LAST_STEP = 2**31 - 1  # t5x counts in int32


def save_t5x(
    tensors: Mapping[str, Stored],
    config: T5Config,
    step: int | None,
    path: epath.Path,
    *,
    methods: Mapping[str, Stored] | None = None,
    dtype: str | None = None,
) -> None:
    """Writes a checkpoint without an optimizer's state, as t5x writes one (t5x/checkpoints.py).

    t5x restores it for inference as it is, and for training with `fallback_to_scratch`, as the
    original's configurations have it: the state of what is trained starts anew.

    Args:
        tensors: the base parameters under t5x's names, one array a layer; read one by one.
        config: their architecture.
        step: None takes it from a path that ends in `checkpoint_<step>`, otherwise 0.
        path: the folder to write; t5x finds it by itself if it ends in `checkpoint_<step>`.
        methods: what is trained beside them, under t5x's names.
        dtype: `float32` or `bfloat16` to cast all of them to; None keeps each as it is stored.

    Raises:
        CheckpointError: the path exists, or the arrays are not those of `config`.
        ConfigError: a wrong dtype or step.
    """
    to = dtype_named(dtype)
    written_step = step_for(step, path)
    with storage.new_folder(path) as folder:
        target = {
            name: zarr.write_array(folder, array_folder(f"target/{name}"), one, to or one.dtype)
            for name, one in parameters_of(tensors, config, methods).items()
        }
        # Without `param_states`: t5x's `load_t5x_checkpoint` fails where it is empty.
        state = {"step": np.asarray(written_step, np.int32)}
        write_index(folder, {"target": nested(target), "state": state})


def parameters_of(
    tensors: Mapping[str, Stored], config: T5Config, methods: Mapping[str, Stored] | None
) -> dict[str, Stored]:
    """Returns base and method parameters together.

    Raises:
        CheckpointError: the base is not that of `config`.
    """
    wanted = expected_shapes(config)
    check_names(found=tensors, wanted=wanted, where="the arrays to save")
    for name, one in tensors.items():
        if one.shape != wanted[name]:
            raise CheckpointError(
                f"{one.where} has shape {one.shape}, but {name!r} of this model has {wanted[name]}."
            )
    return {**tensors, **(methods or {})}


def dtype_named(name: str | None) -> np.dtype | None:
    """Returns the dtype to cast to; None casts nothing."""
    if name is not None and name not in DTYPES:
        raise ConfigError(
            f"Cannot save as {name!r}, expected {' or '.join(DTYPES)}.{nearest(name, DTYPES)}"
        )
    return None if name is None else DTYPES[name]


def step_for(step: int | None, path: epath.Path) -> int:
    """Returns the step to write, which `path` may say, as in `checkpoint_1100000`."""
    if step is None:
        named = re.fullmatch(r"checkpoint_(\d{1,10})", path.name)
        step = int(named[1]) if named else 0
    if not 0 <= step <= _LAST_STEP:
        raise ConfigError(f"The step is {step}, expected one from 0 to {_LAST_STEP}.")
    return step


def write_index(folder: epath.Path, tree: dict[str, Any]) -> None:
    """Writes the file that says where every array lies."""
    content = serialization.msgpack_serialize({"version": VERSION, "optimizer": tree})
    (folder / t5x_index.FILE).write_bytes(content)


def array_folder(path: str) -> str:
    """Returns the folder of an array, as in `target.encoder.encoder_norm.scale`."""
    return path.replace("/", ".")


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a tree of dictionaries with the leaves at their paths."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *above, last = path.split("/")
        branch = tree
        for key in above:
            branch = branch.setdefault(key, {})
        branch[last] = leaf
    return tree
