"""What t5x saves through orbax: `checkpoint_<step>/state/`, a tree of arrays.

Beside the arrays lies `_METADATA`, JSON that lists them. Each is a zarr array whose folder is its
path with dots; all are in one database (OCDBT), or each in its own folder.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from prompt_tuning.checkpoints.containers import storage, zarr
from prompt_tuning.checkpoints.containers.stored import Stored
from prompt_tuning.checkpoints.saving import check_parameters, dtype_named
from prompt_tuning.checkpoints.t5x_writer import nested, step_for
from prompt_tuning.errors import CheckpointError
from prompt_tuning.model import T5Config

METADATA = "_METADATA"
# Bytes of a chunk: whoever reads an array decodes a chunk at once, and needs memory for it twice.
_CHUNK = 2**22

# Text, and the empty state of parameters that are not trained.
_NOT_ARRAYS = ("string", "None", "Dict", "List", "Tuple", "NamedTuple")


def orbax_arrays(folder: epath.Path) -> dict[str, Stored]:
    """Returns the arrays of a tree by their paths, as in `target/encoder/encoder_norm/scale`.

    Args:
        folder: the one that holds `_METADATA`.

    Raises:
        CheckpointError: there is no such file, it is damaged, or an array is missing.
    """
    file = folder / METADATA
    if not file.exists():
        raise CheckpointError(f"{folder!s} has no {METADATA}; it was not written by orbax.")
    try:
        metadata = json.loads(file.read_bytes())
        paths = list(_paths(metadata["tree_metadata"]))
        header = "zarr.json" if metadata.get("use_zarr3") else ".zarray"
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{file!s} is not what orbax writes ({error!r}). The file is damaged."
        ) from error
    folders = {"/".join(path): (".".join(path),) for path in paths}
    return zarr.open_arrays(zarr.open_store(folder), folders, folder, header=header)


def save_orbax(
    tensors: Mapping[str, Stored],
    config: T5Config,
    step: int | None,
    path: epath.Path,
    *,
    methods: Mapping[str, Stored] | None = None,
    dtype: str | None = None,
) -> None:
    """Writes a checkpoint without an optimizer's state, in the form of today's t5x.

    Unlike `save_t5x` it holds all arrays in memory at once. Arguments and errors are the same.
    """
    storage.refuse_existing(path)
    to = dtype_named(dtype)
    written_step = step_for(step, path)
    check_parameters(tensors, config)
    arrays = {name: one.load(to) for name, one in {**tensors, **(methods or {})}.items()}
    tree = {"target": nested(arrays), "state": {"step": np.asarray(written_step, np.int32)}}
    handler = ocp.CompositeCheckpointHandler(state=ocp.PyTreeCheckpointHandler(use_ocdbt=True))
    with storage.new_folder(path) as folder:
        # Orbax writes beside the folder it is given, and leaves that behind when it fails.
        inside = storage.absolute(folder / "orbax")
        with ocp.Checkpointer(handler) as checkpointer:
            settings = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=_CHUNK), tree)
            state = ocp.args.PyTreeSave(tree, save_args=settings)
            checkpointer.save(inside, ocp.args.Composite(state=state))
        for one in inside.iterdir():
            one.rename(folder / one.name)
        inside.rmtree(missing_ok=True)


def _paths(tree: dict[str, Any]) -> Iterator[list[str]]:
    for leaf in tree.values():
        kind = leaf["value_metadata"]
        if not (kind.get("skip_deserialize") or kind["value_type"] in _NOT_ARRAYS):
            yield [str(part["key"]) for part in leaf["key_metadata"]]
