"""A prompt put into a full checkpoint of t5x: the original's `scripts/recreate_checkpoint.py`."""

from collections.abc import Mapping

import numpy as np
from etils import epath

from prompt_tuning.checkpoints import t5x_index
from prompt_tuning.checkpoints.containers import storage, zarr
from prompt_tuning.checkpoints.containers.stored import Stored
from prompt_tuning.checkpoints.contents import contents
from prompt_tuning.checkpoints.t5x_layers import one_per_layer
from prompt_tuning.checkpoints.t5x_writer import array_folder, nested, step_for, write_index
from prompt_tuning.errors import CheckpointError


def splice(
    source: epath.Path,
    prompt: Mapping[str, Stored],
    target: epath.Path,
    *,
    step: int | None = None,
) -> None:
    """Copies a checkpoint with some of its method's variables replaced, or added.

    Unlike the original's, the optimizer's state of what is replaced starts anew, at zero, and the
    step stays an integer. What is added has no state in the copy; t5x restores it with
    `fallback_to_scratch`. The state of t5x's data pipeline is not copied.

    Args:
        source: `checkpoint_<step>` as t5x writes it without orbax.
        prompt: under t5x's names, as in `encoder/prompt/prompt/prompt`.
        target: the folder to write.
        step: of the copy; None keeps the source's.

    Raises:
        CheckpointError: `target` exists, `source` has another form or is damaged, or the prompt is
            not one of this model.
    """
    storage.refuse_existing(target)
    file = t5x_index.find_index(source)
    index = None if file is None else t5x_index.read_index(file)
    if index is None or index.version is None:
        raise CheckpointError(
            f"{source!s} is not a checkpoint that t5x has written without orbax, and only those "
            "are spliced. Convert it to the format t5x first."
        )
    arrays = index.arrays()
    new = _replaced(arrays, prompt, source)
    step = t5x_index.step_of(arrays) if step is None else step
    if step is not None:
        new[t5x_index.STEP] = Stored.of(np.asarray(step_for(step, target), np.int32), "the step")
    with storage.new_folder(target) as folder:
        leaves = {}
        for path in dict.fromkeys([*index.leaves, *new]):
            old, one = index.leaves.get(path), new.get(path, arrays.get(path))
            if one is None:
                leaves[path] = old
            elif isinstance(old, np.ndarray):
                leaves[path] = one.load()
            else:
                leaves[path] = zarr.write_array(folder, array_folder(path), one, one.dtype)
        write_index(folder, nested(leaves))


def _replaced(
    arrays: Mapping[str, Stored], prompt: Mapping[str, Stored], source: epath.Path
) -> dict[str, Stored]:
    """Returns the arrays that differ from the source's, by path."""
    new = {}
    for name, one in prompt.items():
        old = arrays.get(f"target/{name}")
        if old is not None and old.shape != one.shape:
            raise CheckpointError(
                f"{one.where} has shape {one.shape}, but {name!r} of {source!s} has {old.shape}. "
                "It was trained with another length or on another model."
            )
        new[f"target/{name}"] = one if old is None else one.cast(old.dtype)
        state = f"state/param_states/{name}/"
        new |= {path: _zeros(slot) for path, slot in arrays.items() if path.startswith(state)}
    # Whether all names are those of a T5 with a method.
    parameters = {
        path.removeprefix("target/"): one
        for path, one in {**arrays, **new}.items()
        if path.startswith("target/")
    }
    contents(kind="t5x", where=source, tensors=one_per_layer(parameters, {})[0])
    return new


def _zeros(stored: Stored) -> Stored:
    return Stored.of(np.zeros(stored.shape, stored.dtype), stored.where)
