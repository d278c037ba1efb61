"""Arguments of a program as shapes that lie on a mesh: nothing is allocated."""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Sharding

from prompt_tuning.batch import Batch
from prompt_tuning.partitioning import Placement

Tree = TypeVar("Tree")


def parameters(state: nnx.State, placement: Placement) -> nnx.State:
    """Returns the shapes of a state where `Placement.parameters` would put it."""
    shardings = placement.shardings(state)
    return nnx.from_flat_state(
        [
            (path, leaf.replace(_on(leaf.get_value(), shardings["/".join(map(str, path))])))
            for path, leaf in nnx.to_flat_state(state)
        ]
    )


def slots(slots: Tree, state: nnx.State, placement: Placement) -> Tree:
    """Returns the shapes of an optimizer's state where `Placement.slots` would put it."""
    own = {"/".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(state)}

    def on(path: tuple, leaf: Any) -> Any:
        parameter = own.get(getattr(path[0], "key", "")) if path else None
        if parameter is None or parameter.shape != leaf.shape:
            return _on(leaf, placement.everywhere)
        return _on(leaf, placement.sharding(parameter))

    return jax.tree_util.tree_map_with_path(on, slots)


def batch(
    rows: int, inputs: int, targets: int, placement: Placement, *, microbatches: int = 1
) -> Batch:
    """Returns the shapes of a batch, filled up to divide among microbatches and devices."""
    even = microbatches * placement.rows
    rows = -(-rows // even) * even

    def divided(length: int, dtype: Any) -> Any:
        return jax.ShapeDtypeStruct((rows, length), dtype, sharding=placement.by_rows)

    return Batch(
        inputs=divided(inputs, jnp.int32),
        targets=divided(targets, jnp.int32),
        weights=divided(targets, jnp.float32),
    )


def bytes_each(tree: Any) -> int:
    """Returns the bytes that these shapes take on each device."""
    return sum(
        -(-_elements(leaf) * jnp.dtype(leaf.dtype).itemsize * 8 // _packing(leaf.dtype))
        for leaf in jax.tree.leaves(tree)
        if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    )


def _elements(leaf: jax.ShapeDtypeStruct) -> int:
    shape = leaf.shape if leaf.sharding is None else leaf.sharding.shard_shape(leaf.shape)
    count = 1
    for size in shape:
        count *= size
    return count


def _packing(dtype: Any) -> int:
    """Two numbers of four bits share a byte."""
    return 16 if jnp.dtype(dtype).name in ("int4", "uint4") else 8


def _on(leaf: Any, sharding: Sharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
