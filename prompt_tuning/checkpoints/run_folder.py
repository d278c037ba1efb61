"""`MODEL_DIR/checkpoints/`: which checkpoints are whole, and how one is written and read.

Orbax writes them. They are read by our own reader, which finds damage where tensorstore would fill
in zeros, and against the checksums that were saved with them.
"""

import contextlib
import json
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from prompt_tuning.checkpoints.run_record import RunRecord, check_arrays, decode
from prompt_tuning.checkpoints.t5x_orbax import orbax_arrays
from prompt_tuning.errors import CheckpointError
from prompt_tuning.paths import is_local

# Orbax writes into a folder of the final name and this, or, where an object store cannot rename, in
# place, with a file that is written last.
_UNFINISHED, _LAST_FILE = ".orbax-checkpoint-tmp", "commit_success.txt"
# Orbax's policies do not satisfy its own protocols, as far as pyright can see.
_ALWAYS = ocp.training.save_decision_policies.FixedIntervalPolicy(1)
_TREES = ("params", "optimizer", "data")


def saved_steps(folder: epath.Path) -> list[int]:
    """Returns the steps of the whole checkpoints in a run's folder of them, in order."""
    children = folder.iterdir() if folder.exists() else ()
    return sorted(int(one.name) for one in children if one.name.isdigit() and _is_whole(one))


def write(folder: epath.Path, trees: dict[str, Any]) -> None:
    """Writes one checkpoint, so that it is there whole or not at all; every process calls it.

    Args:
        folder: the checkpoint's.
        trees: arrays by name in `params`, `optimizer` and perhaps `data`, an encoded `RunRecord` in
            `meta`.

    Raises:
        CheckpointError: it could not be written; nothing of it is left.
    """
    context = ocp.Context()
    # The thread that makes them otherwise is waited for in vain if it cannot.
    context.asynchronous.create_directories_asynchronously = False
    try:
        # Not `ocp.save_checkpointables`, which writes all trees at once: one of them then looks
        # for its folder in a listing of the object store that is older than the folder.
        with ocp.training.Checkpointer(
            folder.parent,
            context=context,
            save_decision_policy=_ALWAYS,  # pyright: ignore[reportArgumentType]
            cleanup_tmp_directories=False,
        ) as checkpointer:
            checkpointer.save_checkpointables(int(folder.name), trees)
    except Exception as error:
        with contextlib.suppress(OSError):
            remove_unfinished(folder.parent)
        raise CheckpointError(
            f"The state of step {folder.name} could not be written to {folder!s} "
            f"({_reason(error)}). What was saved before is whole. Make room or choose another "
            "MODEL_DIR, and start the same command again."
        ) from error


def remove_unfinished(folder: epath.Path) -> None:
    """Removes what killed or failed saves have left in a run's folder of checkpoints."""
    if jax.process_index() == 0 and folder.exists():
        for child in folder.iterdir():
            if _UNFINISHED in child.name or (child.name.isdigit() and not _is_whole(child)):
                child.rmtree(missing_ok=True)


def remove(folder: epath.Path) -> None:
    """Removes one checkpoint, which from the first moment on does not count as whole."""
    if is_local(folder):
        folder = folder.rename(folder.with_name(f"{folder.name}{_UNFINISHED}-removed"))
    else:
        (folder / _LAST_FILE).unlink(missing_ok=True)
    folder.rmtree()


def read(folder: epath.Path) -> tuple[RunRecord, dict[str, np.ndarray]]:
    """Returns the record and all arrays of a checkpoint, by `<tree>/<name>`.

    Raises:
        CheckpointError: it is damaged.
    """
    try:
        record = read_record(folder)
        arrays = {
            f"{tree}/{name}": stored.load()
            for tree in _TREES
            if (folder / tree).exists()
            for name, stored in orbax_arrays(folder / tree).items()
        }
        check_arrays(arrays, record, str(folder))
    except CheckpointError as error:
        older = [step for step in saved_steps(folder.parent) if step < int(folder.name)]
        way_on = (
            f"Older checkpoints are here, of step {', '.join(map(str, older))}: to go on from the "
            f"newest of them, remove {folder!s}."
            if older
            else "There is no older one: remove it, or choose another MODEL_DIR, to start again."
        )
        raise CheckpointError(f"The checkpoint {folder!s} is damaged. {error} {way_on}") from error
    return record, arrays


def read_record(folder: epath.Path) -> RunRecord:
    """Returns what a checkpoint says about itself.

    Raises:
        CheckpointError: it is damaged.
    """
    where = folder / "meta"
    try:
        # Orbax keeps text in a file of its own.
        saved = json.loads((where / "_strings.json").read_bytes())
        if "record" not in saved:
            saved = ocp.load_checkpointables(folder, {"meta": None})["meta"]
    except Exception as error:
        raise CheckpointError(f"{where!s} cannot be read ({_reason(error)}).") from error
    return decode(saved, str(where))


def check_all_processes_find(step: int, folder: epath.Path) -> None:
    """Raises CheckpointError if the newest checkpoint is another one for another process."""
    if jax.process_count() == 1:
        return
    found = multihost_utils.process_allgather(np.asarray(step)).tolist()
    if len(set(found)) > 1:
        raise CheckpointError(
            f"The newest checkpoint in {folder!s} is of step {found[0]} for process 0 and of step "
            f"{next(one for one in found if one != found[0])} for another (-1: none). MODEL_DIR "
            "must be a folder that all processes share."
        )


def _is_whole(folder: epath.Path) -> bool:
    return is_local(folder) or (folder / _LAST_FILE).exists()


def _reason(error: BaseException) -> str:
    """Returns the first line of what an exception, or the one that led to it, says."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error) or repr(error)).splitlines()[0]
