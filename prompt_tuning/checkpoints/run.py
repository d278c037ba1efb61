"""A run's own checkpoints: what changed and the slots of its optimizer, never the frozen base."""

from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from orbax.checkpoint import v1 as ocp

from prompt_tuning.checkpoints import mapping
from prompt_tuning.checkpoints.containers.stored import Stored
from prompt_tuning.checkpoints.contents import Contents, contents
from prompt_tuning.checkpoints.t5x_orbax import orbax_arrays
from prompt_tuning.errors import CheckpointError
from prompt_tuning.model import parameters
from prompt_tuning.training.state import RunState

FOLDER = "checkpoints"
_POLICIES = ocp.training.preservation_policies
_DECISIONS = ocp.training.save_decision_policies


class RunCheckpoints:
    """Saves and restores the state of one run in `MODEL_DIR/checkpoints/<step>/`.

    A checkpoint appears under its number only when it is whole, so that a killed run finds either
    the new one or the one before. Use as a context manager: leaving it waits for the last write.

    Args:
        model_dir: the run's folder.
        base: hash of the frozen parameters; a run is resumed only over the base it began with.
        keep: how many checkpoints to keep, the newest; None keeps all.
    """

    def __init__(self, model_dir: epath.PathLike, *, base: str, keep: int | None = 1):
        self._base = base
        # orbax's policies do not satisfy its own protocols, as far as pyright can see.
        self._checkpointer = ocp.training.Checkpointer(
            epath.Path(model_dir) / FOLDER,
            # When to save is the loop's decision.
            save_decision_policy=_DECISIONS.FixedIntervalPolicy(1),  # pyright: ignore[reportArgumentType]
            preservation_policy=_POLICIES.LatestN(keep),  # pyright: ignore[reportArgumentType]
        )

    def __enter__(self) -> "RunCheckpoints":
        return self

    def __exit__(self, *exception) -> None:
        self._checkpointer.close()

    def save(self, state: RunState) -> None:
        """Copies the state off the device and writes it in the background."""
        if self._checkpointer.latest is not None and self._checkpointer.latest.step == state.step:
            return
        # Copied first: the next step is given these very buffers.
        params, slots = jax.device_get((parameters.named(state.trainable), state.opt_state))
        self._checkpointer.save_checkpointables_async(
            state.step,
            {
                "params": params,
                "optimizer": _by_path(slots),
                "meta": {"step": state.step, "base": self._base},
            },
        )

    def restore(self, like: RunState) -> RunState | None:
        """Returns the newest state saved here, or None if there is none.

        Raises:
            CheckpointError: it was saved over another base, or by a run that trained other things.
        """
        if self._checkpointer.latest is None:
            return None
        step = self._checkpointer.latest.step
        where = f"{self._checkpointer.directory}/{step}"
        meta = self._checkpointer.load_checkpointables(step, {"meta": None})["meta"]
        if meta["base"] != self._base:
            raise CheckpointError(
                f"The run in {where} was trained over another base model (hash "
                f"{meta['base'][:12]}, this one is {self._base[:12]}). Choose another MODEL_DIR, "
                "or the INITIAL_CHECKPOINT_PATH it began with."
            )
        saved = self._checkpointer.load_checkpointables(step, {"params": None, "optimizer": None})
        return RunState(
            parameters.replaced(like.trainable, saved["params"]),
            _slots(saved["optimizer"], like.opt_state, where),
            step,
        )


def looks_like_run(path: epath.Path) -> bool:
    """Whether this is a run's folder or one of its checkpoints."""
    return (path / FOLDER).exists() or (path / "params" / "_METADATA").exists()


def open_run(path: epath.Path) -> Contents:
    """Opens the model in a run's folder (its newest checkpoint) or one of `checkpoints/<step>`.

    Raises:
        CheckpointError: there is no checkpoint, or it holds a prompt instead of a model.
    """
    folder = newest(path)
    if not (folder / "params").exists():
        raise CheckpointError(
            f"There is no checkpoint in {path!s} yet. Expected the folder of a run, or one of its "
            f"{FOLDER}/<step>."
        )
    stacked = orbax_arrays(folder / "params")
    if mapping.EMBEDDING not in stacked:
        raise CheckpointError(
            f"The checkpoint at {folder!s} holds {sorted(stacked)}, a prompt and not a model. Name "
            "the base model it was trained over instead."
        )
    meta = ocp.load_checkpointables(folder, {"meta": None})["meta"]
    tensors: dict[str, Stored] = {}
    for name, array in stacked.items():
        stack, layers, rest = name.partition("/layers/")
        if layers:
            for i in range(array.shape[0]):
                tensors[f"{stack}/layers_{i}/{rest}"] = array.layer(i)
        else:
            tensors[name] = array
    return contents(kind="run", where=folder, tensors=tensors, step=int(meta["step"]))


def with_slots(folder: epath.Path, state: RunState) -> RunState:
    """Returns the state with the optimizer slots saved in one of a run's checkpoints.

    Raises:
        CheckpointError: they were made by another optimizer.
    """
    loaded = ocp.load_checkpointables(folder, {"optimizer": None})["optimizer"]
    return state._replace(opt_state=_slots(loaded, state.opt_state, str(folder)))


def newest(folder: epath.Path) -> epath.Path:
    """Returns the newest checkpoint of a run's folder; any other folder as it is."""
    if not (folder / FOLDER).exists():
        return folder
    steps = [int(child.name) for child in (folder / FOLDER).iterdir() if child.name.isdigit()]
    return folder / FOLDER / str(max(steps)) if steps else folder


def _slots(saved: dict[str, Any], like: Any, where: str) -> Any:
    """Arranges saved slots like those of a fresh optimizer."""
    wanted = _by_path(like)
    parameters.check_names(found=saved, wanted=wanted, where=f"the optimizer state of {where}")
    for name, slot in wanted.items():
        if saved[name].shape != slot.shape:
            raise CheckpointError(
                f"The optimizer slot {name!r} of {where} has shape {saved[name].shape}, this "
                f"optimizer needs {slot.shape}. Use the optimizer settings it was saved with."
            )
    paths, treedef = jax.tree_util.tree_flatten_with_path(like)
    return treedef.unflatten([jnp.asarray(saved[_key(path)]) for path, _ in paths])


def _by_path(tree: Any) -> dict[str, Any]:
    return {_key(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _key(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="|")
