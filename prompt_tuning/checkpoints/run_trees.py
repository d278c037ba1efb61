"""The state of a run as named arrays, which is how it lies in a checkpoint, and back."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prompt_tuning.errors import CheckpointError
from prompt_tuning.model import parameters
from prompt_tuning.partitioning import on_host
from prompt_tuning.training.state import RunState


def to_trees(state: RunState, data: Mapping[str, bytes]) -> dict[str, dict[str, np.ndarray]]:
    """Returns copies of the arrays of a state: `params`, `optimizer` and, if there is any, `data`.

    Copies, as the next step is given these very buffers, and those of a CPU are not moved.
    """
    held = (parameters.named(state.trainable), state.opt_state)
    for one in jax.tree.leaves(held):
        if isinstance(one, jax.Array) and one.is_fully_addressable:
            one.copy_to_host_async()
    params, slots = jax.tree.map(lambda one: np.array(on_host(one)), held)
    trees = {"params": params, "optimizer": _by_path(slots)}
    if data:
        # One byte more than the data, for orbax cannot write an empty array.
        trees["data"] = {name: np.frombuffer(one + b"\0", np.uint8) for name, one in data.items()}
    return trees


def to_data(arrays: Mapping[str, np.ndarray]) -> dict[str, bytes]:
    """Returns the data that `to_trees` was given."""
    return {name: array[:-1].tobytes() for name, array in _inside(arrays, "data").items()}


def to_state(
    arrays: Mapping[str, np.ndarray],
    like: RunState,
    where: str,
    *,
    step: int,
    pending: dict[str, float] | None,
) -> RunState:
    """Returns the state whose arrays are named `<tree>/<name>`, arranged and placed as `like` is.

    Raises:
        CheckpointError: these are the arrays of another state.
    """
    own = parameters.named(like.trainable)
    params = _inside(arrays, "params")
    placed = {name: _placed(one, own.get(name)) for name, one in params.items()}
    trainable = parameters.replaced(like.trainable, placed)
    slots = to_slots(_inside(arrays, "optimizer"), like.opt_state, where)
    return RunState(trainable, slots, step, pending)


def to_slots(saved: Mapping[str, np.ndarray], like: Any, where: str) -> Any:
    """Arranges and places saved slots like those of a fresh optimizer.

    Raises:
        CheckpointError: they were made by another optimizer.
    """
    wanted = _by_path(like)
    parameters.check_names(found=saved, wanted=wanted, where=f"the optimizer state of {where}")
    for name, slot in wanted.items():
        if saved[name].shape != slot.shape:
            raise CheckpointError(
                f"The optimizer slot {name!r} of {where} has shape {saved[name].shape}, this "
                f"optimizer needs {slot.shape}. Use the optimizer settings it was saved with."
            )
    treedef = jax.tree.structure(like)
    return treedef.unflatten(jnp.asarray(_placed(saved[name], one)) for name, one in wanted.items())


def _inside(arrays: Mapping[str, np.ndarray], tree: str) -> dict[str, np.ndarray]:
    prefix = f"{tree}/"
    return {
        name.removeprefix(prefix): one for name, one in arrays.items() if name.startswith(prefix)
    }


def _placed(array: np.ndarray, like: Any) -> jax.Array | np.ndarray:
    """Puts an array on the devices that `like` is on; with another shape it is an error later."""
    sharding = getattr(like, "sharding", None)
    if sharding is None or like.shape != array.shape or like.dtype != array.dtype:
        return array
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def _by_path(tree: Any) -> dict[str, Any]:
    return {_key(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _key(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="|")
