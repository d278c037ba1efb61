"""A run's own checkpoints: what changed and the slots of its optimizer, never the frozen base."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from orbax.checkpoint import v1 as ocp

from prompt_tuning.errors import CheckpointError
from prompt_tuning.model import parameters
from prompt_tuning.training.state import RunState

FOLDER = "checkpoints"
EMBEDDING = "token_embedder/embedding"
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaseCheckpoint:
    """A pretrained model, as a run that trained the whole model has saved it.

    Attributes:
        folder: the checkpoint.
        arrays: the parameters by name.
        step: how many updates made them.
    """

    folder: epath.Path
    arrays: dict[str, np.ndarray]
    step: int

    @classmethod
    def open(cls, path: epath.PathLike) -> "BaseCheckpoint":
        """Reads a run's folder (its newest checkpoint) or one of its `checkpoints/<step>`.

        Raises:
            CheckpointError: there is no checkpoint, or it holds a prompt instead of a model.
        """
        folder = _newest(epath.Path(path))
        if not (folder / "params").exists():
            raise CheckpointError(
                f"There is no model checkpoint at {path!s} (INITIAL_CHECKPOINT_PATH). Expected the "
                f"folder of a pretraining run, or one of its {FOLDER}/<step>."
            )
        loaded = ocp.load_checkpointables(folder, {"params": None, "meta": None})
        if EMBEDDING not in loaded["params"]:
            raise CheckpointError(
                f"The checkpoint at {folder!s} holds {sorted(loaded['params'])}, a prompt and not "
                "a model. Set INITIAL_CHECKPOINT_PATH to the base model it was trained over."
            )
        return cls(folder=folder, arrays=loaded["params"], step=int(loaded["meta"]["step"]))

    def with_slots(self, state: RunState) -> RunState:
        """Returns the state with the optimizer slots that belong to these parameters.

        A model that is trained further goes on with the second moments it had, as in t5x.

        Raises:
            CheckpointError: they were made by another optimizer.
        """
        loaded = ocp.load_checkpointables(self.folder, {"optimizer": None})["optimizer"]
        return state._replace(opt_state=_slots(loaded, state.opt_state, str(self.folder)))


def load_embeddings(path: epath.PathLike) -> np.ndarray:
    """Returns the token embeddings `[V, D]` of a base model, for prompt initializers."""
    return np.asarray(BaseCheckpoint.open(path).arrays[EMBEDDING])


def _newest(folder: epath.Path) -> epath.Path:
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
