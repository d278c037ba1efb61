"""A run's own checkpoints: what changed and the slots of its optimizer, never the frozen base."""

import logging
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from etils import epath

from prompt_tuning.checkpoints import mapping, run_folder, run_trees
from prompt_tuning.checkpoints.containers import storage
from prompt_tuning.checkpoints.containers.stored import Stored
from prompt_tuning.checkpoints.contents import Contents, contents
from prompt_tuning.checkpoints.run_record import RunRecord, checksum, differences
from prompt_tuning.checkpoints.t5x_orbax import orbax_arrays
from prompt_tuning.errors import CheckpointError
from prompt_tuning.training.state import RunState

FOLDER = "checkpoints"

log = logging.getLogger("prompt_tuning")


class RunCheckpoints:
    """Saves and restores the state of one run in `MODEL_DIR/checkpoints/<step>/`.

    A checkpoint appears under its number only when it is whole, so that a killed run finds either
    the new one or the one before. Use as a context manager: leaving it waits for the last write.
    With several processes each calls everything, the first one writes, and `save` waits for it.

    Args:
        model_dir: the run's folder, the same one for all processes. Whoever saves holds its
            `RunLock`: what an earlier run left unfinished is removed by the first save.
        base: hash of the frozen parameters.
        keep: how many checkpoints to keep, the newest; None keeps all.
        identity: what decides the numbers of a run, name by name. A run is resumed only with the
            base and the identity it began with. None neither notes nor compares it.
        accept_changes: resume all the same, and log what has changed.
    """

    def __init__(
        self,
        model_dir: epath.PathLike,
        *,
        base: str,
        keep: int | None = 1,
        identity: Mapping[str, str] | None = None,
        accept_changes: bool = False,
    ):
        # orbax takes no other path.
        self._folder = storage.absolute(epath.Path(model_dir)) / FOLDER
        self._base = base
        self._keep = keep
        self._identity = None if identity is None else dict(identity)
        self._accept_changes = accept_changes
        self._protected: int | None = None
        self._restored: tuple[RunRecord, dict[str, np.ndarray]] | None = None
        self._thread = ThreadPoolExecutor(1, "save")
        self._writing: Future[None] | None = None
        self._last_saved: int | None = None

    def __enter__(self) -> "RunCheckpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception) -> None:
        try:
            self.wait()
            # What was the best one until the end may be none of those to keep.
            self._remove_old()
        except CheckpointError as error:
            if kind is None:
                raise
            # What ends the run is said first.
            log.warning("%s", error)
        finally:
            self._thread.shutdown()

    def save(
        self,
        state: RunState,
        *,
        details: Mapping[str, Any] | None = None,
        data: Mapping[str, bytes] | None = None,
        wait: bool = False,
    ) -> None:
        """Copies the state off the device and writes it in the background (of a single process).

        A step that is saved already is not saved again.

        Args:
            state: what to save, `pending` sums included.
            details: what `restored_details` is to return; anything that JSON can hold.
            data: what `restored_data` is to return, such as the state of an iterator.
            wait: return when it is written.

        Raises:
            CheckpointError: this one (with `wait`), or the one before, could not be written.
        """
        self.wait()
        if self._last_saved is None:
            run_folder.remove_unfinished(self._folder)
            self._last_saved = max(run_folder.saved_steps(self._folder), default=-1)
        if self._last_saved != state.step:
            self._last_saved = state.step
            tree = self._tree(state, details or {}, data or {})
            if jax.process_count() > 1:
                # Orbax lets the devices of all processes meet, in the middle of which no other
                # thread may give them a step.
                self._write(state.step, tree)
            else:
                self._writing = self._thread.submit(self._write, state.step, tree)
        if wait:
            self.wait()

    def wait(self) -> None:
        """Waits until what `save` was given is written.

        Raises:
            CheckpointError: it could not be written.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def protect(self, step: int) -> None:
        """Keeps the checkpoint of this step, the best one, however old; forgets an earlier one."""
        self._protected = step

    def restore(self, like: RunState) -> RunState | None:
        """Returns the newest state saved here, placed as `like` is, or None if there is none.

        Raises:
            CheckpointError: it is damaged, was saved by a run that trained other things, or by one
                with another base or identity.
        """
        steps = run_folder.saved_steps(self._folder)
        run_folder.check_all_processes_find(steps[-1] if steps else -1, self._folder)
        if not steps:
            return None
        folder = self._folder / str(steps[-1])
        record, arrays = self._restored = run_folder.read(folder)
        self._check_identity(record, folder)
        return run_trees.to_state(
            arrays, like, str(folder), step=record.step, pending=record.pending
        )

    def restored_details(self) -> dict[str, Any]:
        """Returns the `details` that were saved with the state that was restored, or nothing."""
        return {} if self._restored is None else self._restored[0].details

    def restored_data(self) -> dict[str, bytes]:
        """Returns the `data` that was saved with the state that was restored, or nothing."""
        return {} if self._restored is None else run_trees.to_data(self._restored[1])

    def _tree(
        self, state: RunState, details: Mapping[str, Any], data: Mapping[str, bytes]
    ) -> dict[str, Any]:
        tree = run_trees.to_trees(state, data)
        checksums = {
            f"{kind}/{name}": checksum(one) for kind in tree for name, one in tree[kind].items()
        }
        record = RunRecord(
            step=state.step,
            base=self._base,
            identity=self._identity,
            pending=state.pending,
            details=dict(details),
            checksums=checksums,
        )
        return {**tree, "meta": record.encode()}

    def _write(self, step: int, tree: dict[str, Any]) -> None:
        run_folder.write(self._folder / str(step), tree)
        self._remove_old()

    def _remove_old(self) -> None:
        # Only after a save: whoever reads a run leaves it as it is.
        if jax.process_index() == 0 and self._keep is not None and self._last_saved is not None:
            steps = run_folder.saved_steps(self._folder)
            for old in steps[: max(0, len(steps) - self._keep)]:
                if old != self._protected:
                    run_folder.remove(self._folder / str(old))

    def _check_identity(self, record: RunRecord, folder: epath.Path) -> None:
        was, now = {"base model": record.base[:12]}, {"base model": self._base[:12]}
        if self._identity is not None and record.identity is not None:
            was, now = was | record.identity, now | self._identity
        changes = differences(was, now)
        if changes and not self._accept_changes:
            lines = "\n  ".join(changes)
            raise CheckpointError(
                f"The run in {folder!s} is another one than is configured now:\n  {lines}\n"
                "Choose another MODEL_DIR, or go back to what it began with; to go on with these "
                "changes set --gin.train.accept_changes=True."
            )
        for change in changes:
            log.info("Changed since step %d: %s.", record.step, change)


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
    tensors: dict[str, Stored] = {}
    for name, array in stacked.items():
        stack, layers, rest = name.partition("/layers/")
        if layers:
            for i in range(array.shape[0]):
                tensors[f"{stack}/layers_{i}/{rest}"] = array.layer(i)
        else:
            tensors[name] = array
    return contents(
        kind="run", where=folder, tensors=tensors, step=run_folder.read_record(folder).step
    )


def with_slots(folder: epath.Path, state: RunState) -> RunState:
    """Returns the state with the optimizer slots saved in one of a run's checkpoints.

    Raises:
        CheckpointError: they were made by another optimizer.
    """
    loaded = {name: one.load() for name, one in orbax_arrays(folder / "optimizer").items()}
    return state._replace(opt_state=run_trees.to_slots(loaded, state.opt_state, str(folder)))


def newest(folder: epath.Path) -> epath.Path:
    """Returns the newest checkpoint of a run's folder; any other folder as it is."""
    steps = run_folder.saved_steps(folder / FOLDER)
    return folder / FOLDER / str(steps[-1]) if steps else folder
