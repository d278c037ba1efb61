"""A model as a checkpoint that t5x restores: `checkpoint_<step>/checkpoint` and its arrays."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath
from flax import serialization

from prompt_tuning.checkpoints import t5x_index
from prompt_tuning.checkpoints.containers import storage, zarr
from prompt_tuning.checkpoints.containers.stored import Stored
from prompt_tuning.checkpoints.saving import check_parameters, dtype_named
from prompt_tuning.errors import ConfigError
from prompt_tuning.model import T5Config

VERSION = 3
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
    check_parameters(tensors, config)
    with storage.new_folder(path) as folder:
        target = {
            name: zarr.write_array(folder, array_folder(f"target/{name}"), one, to or one.dtype)
            for name, one in {**tensors, **(methods or {})}.items()
        }
        # Without `param_states`: t5x's `load_t5x_checkpoint` fails where it is empty.
        state = {"step": np.asarray(written_step, np.int32)}
        write_index(folder, {"target": nested(target), "state": state})


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
