"""Checkpoints of t5x, in each of the forms that it has written.

-   `checkpoint_<step>/checkpoint` with a folder for each larger array: all public checkpoints, and
    what we write (`t5x_index.py`). The file alone may hold a whole model.
-   the same with the arrays of early orbax beside it.
-   `checkpoint_<step>/state/`, today's orbax (`t5x_orbax.py`), or that folder by itself.
"""

from etils import epath

from prompt_tuning.checkpoints import t5x_index, t5x_orbax
from prompt_tuning.checkpoints.containers.stored import Stored
from prompt_tuning.checkpoints.contents import Contents, contents
from prompt_tuning.checkpoints.t5x_layers import one_per_layer
from prompt_tuning.checkpoints.t5x_orbax import save_orbax as save_orbax
from prompt_tuning.checkpoints.t5x_splice import splice as splice
from prompt_tuning.checkpoints.t5x_writer import save_t5x as save_t5x
from prompt_tuning.errors import CheckpointError

PARAMETERS = "target/"
SLOTS = "state/param_states/"

# TensorFlow's file of the same name is text and begins otherwise.
_MSGPACK_MAPS = (*range(0x80, 0x90), 0xDE, 0xDF)


def looks_like_orbax(path: epath.Path) -> bool:
    """Whether today's orbax has written a t5x checkpoint here."""
    return _orbax_folder(path) is not None


def looks_like_t5x(path: epath.Path) -> bool:
    """Whether there is an index of t5x or early orbax here, or this is one."""
    file = t5x_index.find_index(path)
    if file is None:
        return False
    with file.open("rb") as opened:
        start = opened.read(256)
    known = (b"version", b"optimizer", b"target", b"state")
    return bool(start) and start[0] in _MSGPACK_MAPS and any(key in start for key in known)


def open_t5x(where: epath.Path) -> Contents:
    """Opens a checkpoint of a T5; nothing but names and shapes is read.

    Args:
        where: `.../checkpoint_<step>`, its folder `state`, or the file `checkpoint`.

    Raises:
        CheckpointError: there is none, it is damaged or incomplete, or not of a T5.
    """
    found = variables(where)
    kind = "orbax" if looks_like_orbax(where) else "t5x"
    step = t5x_index.step_of(found)
    found.pop(t5x_index.STEP, None)
    tensors, slots = (
        {path.removeprefix(prefix): one for path, one in found.items() if path.startswith(prefix)}
        for prefix in (PARAMETERS, SLOTS)
    )
    for path, one in found.items():
        if not path.startswith((PARAMETERS, SLOTS)):
            raise CheckpointError(
                f"{one.where} ({path}) is neither a parameter, which begins with {PARAMETERS!r}, "
                f"nor in {SLOTS!r}. The checkpoint is that of another program or model."
            )
    tensors, slots = one_per_layer(tensors, slots)
    return contents(kind=kind, where=where, tensors=tensors, slots=slots, step=step)


def variables(where: epath.Path) -> dict[str, Stored]:
    """Returns every array by its full path, as in `target/encoder/encoder_norm/scale`.

    The checkpoint may be that of any model. Arrays are as they were stored: scanned layers are one
    array, and untrained parameters have nothing below `state/param_states/`.

    Raises:
        CheckpointError: there is no checkpoint, or it is damaged or incomplete.
    """
    folder = _orbax_folder(where)
    if folder is not None:
        return t5x_orbax.orbax_arrays(folder)
    file = t5x_index.find_index(where)
    if file is None:
        raise CheckpointError(
            f"{where!s} is not a checkpoint of t5x: it has neither {t5x_index.FILE!r} nor "
            f"{t5x_index.ITEM}/{t5x_orbax.METADATA}."
        )
    return t5x_index.read_index(file).arrays()


def _orbax_folder(path: epath.Path) -> epath.Path | None:
    for folder in (path, path / t5x_index.ITEM):
        if (folder / t5x_orbax.METADATA).exists():
            return folder
    return None
