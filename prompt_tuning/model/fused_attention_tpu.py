"""Attention as one kernel on a TPU, which never writes scores to memory.

A program sees all queries and all keys of one example for as many heads as fill the 128 lanes of a
register, so that it needs neither a running softmax nor a transposition: queries, keys and values
lie as the projections leave them, `[B T N*H]`. Examples follow each other innermost, so that the
relative positions of these heads, the largest thing it reads, are fetched once for all of them.

The backward kernel makes the scores again. It has no gradient of the biases.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Float

from prompt_tuning.model.layers import MASKED

LANES = 128
# Queries whose scores are there at a time: a small part of the memory beside the biases.
QUERIES = 256
UNROLLED = 3
# Of the scores' size, by the number of results: backwards the scores are made once more.
_PRODUCTS = {1: 2, 3: 5}

Queries = Float[Array, "B T N H"]
Keys = Float[Array, "B S N H"]
Relative = Float[Array, "1 N T S"]


def forward(
    queries: Queries,
    keys: Keys,
    values: Keys,
    relative: Relative | None,
    spoken: Bool[Array, "B T"] | None,
    real: Bool[Array, "B S"],
    *,
    interpret: bool = False,
) -> Queries:
    """Attends, see `fused_attention.fused`."""
    arrays = queries, keys, values
    return _call(_forward, arrays, relative, spoken, real, arrays[:1], interpret)[0]


def backward(
    queries: Queries,
    keys: Keys,
    values: Keys,
    relative: Relative | None,
    spoken: Bool[Array, "B T"] | None,
    real: Bool[Array, "B S"],
    gradient: Queries,
    *,
    interpret: bool = False,
) -> tuple[Queries, Keys, Keys]:
    """Returns the gradients for queries, keys and values, given that for what `forward` returns."""
    arrays = (queries, keys, values, gradient)
    found = _call(_backward, arrays, relative, spoken, real, arrays[:3], interpret)
    to_queries, to_keys, to_values = found
    return to_queries, to_keys, to_values


def vmem(queries: int, keys: int, heads: int, width: int, itemsize: int) -> int:
    """Returns about how many bytes of a chip's vector memory the backward kernel takes."""
    group = group_of(heads, width)
    lanes = -(-group * width // LANES) * LANES
    keys, padded = -(-keys // LANES) * LANES, -(-queries // 8) * 8
    relative = 4 * group * padded * keys
    scores = 6 * 4 * min(padded, QUERIES) * keys
    blocks = 2 * itemsize * lanes * (3 * padded + 4 * keys) + 2 * 4 * lanes * keys
    return relative + scores + blocks


def group_of(heads: int, width: int) -> int:
    """Returns how many heads a program takes: as many as fill whole registers, or all there are."""
    return min(heads, LANES // math.gcd(width, LANES))


def _call(
    kernel: Callable[..., None],
    arrays: Sequence[Float[Array, "B _ N H"]],
    relative: Relative | None,
    spoken: Bool[Array, "B T"] | None,
    real: Bool[Array, "B S"],
    like: Sequence[Float[Array, "B _ N H"]],
    interpret: bool,
) -> tuple[Float[Array, "B _ N H"], ...]:
    """Runs a kernel over groups of heads and examples; its results are `like` these."""
    batch, length, heads, width = arrays[0].shape
    group = group_of(heads, width)
    # Heads of zeros fill the last group; what they attend to is thrown away.
    extra = -heads % group
    groups = (heads + extra) // group

    def flat(x: Float[Array, "B _ N H"]) -> Float[Array, "B _ I"]:
        x = jnp.pad(x, ((0, 0), (0, 0), (0, extra), (0, 0))) if extra else x
        return x.reshape(*x.shape[:2], -1)

    def by_heads(rows: int) -> pl.BlockSpec:
        return pl.BlockSpec((1, rows, group * width), lambda head, row: (row, 0, head))

    operands: list[Any] = [flat(x) for x in arrays]
    specs = [by_heads(x.shape[1]) for x in arrays]
    operands.append(jnp.where(real, 0.0, MASKED)[:, None])
    specs.append(pl.BlockSpec((1, 1, real.shape[1]), lambda head, row: (row, 0, 0)))
    if spoken is not None:
        operands.append(jnp.where(spoken, 0.0, MASKED)[..., None])
        specs.append(pl.BlockSpec((1, length, 1), lambda head, row: (row, 0, 0)))
    if relative is not None:
        table = relative[0]
        operands.append(jnp.pad(table, ((0, extra), (0, 0), (0, 0))) if extra else table)
        # Changes with the group of heads alone: room for the next one would be twice the room.
        once = pl.Buffered(buffer_count=1)
        block = (group, length, real.shape[1])
        specs.append(pl.BlockSpec(block, lambda head, row: (head, 0, 0), pipeline_mode=once))
    scores = batch * (heads + extra) * length * real.shape[1]
    moved = sum(x.size * x.dtype.itemsize for x in [*operands, *like])
    # Gradients of keys and values are summed in float32.
    sums = [(x.shape[1], group * width) for x in like[1:]]
    results = pl.pallas_call(
        functools.partial(
            kernel, group=group, has_spoken=spoken is not None, has_relative=relative is not None
        ),
        grid=(groups, batch),
        in_specs=specs,
        out_specs=[by_heads(x.shape[1]) for x in like],
        out_shape=[jax.ShapeDtypeStruct(flat(x).shape, x.dtype) for x in like],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"),
            vmem_limit_bytes=_limit(arrays[0], arrays[1]),
        ),
        # Of what a compiler cannot see into: it orders by this what runs at the same time.
        cost_estimate=pl.CostEstimate(
            flops=2 * _PRODUCTS[len(like)] * scores * width,
            transcendentals=scores,
            bytes_accessed=moved,
        ),
        scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in sums],
        interpret=interpret,
        name=f"attention{kernel.__name__}",
    )(*operands)
    whole = (x.reshape(*x.shape[:2], heads + extra, width) for x in results)
    return tuple(x[:, :, :heads] if extra else x for x in whole)


def _limit(queries: Queries, keys: Keys) -> int:
    """The compiler's own limit is 16 MiB, on chips that have 64 and 128."""
    _, length, heads, width = queries.shape
    needed = vmem(length, keys.shape[1], heads, width, queries.dtype.itemsize)
    return max(16 * 2**20, needed * 5 // 4)


def _forward(queries: Any, keys: Any, values: Any, *rest: Any, group: int, **given: bool) -> None:
    *masks, result = rest

    def attend(head: int, lanes: slice, rows: Any) -> None:
        weights = _weights(queries, keys, masks, rows, head, lanes, **given)
        attended = _product(weights.astype(values.dtype), values[0, :, lanes], (1, 0))
        result[0, rows, lanes] = attended.astype(result.dtype)

    _for_each_part(queries, group, attend)


def _backward(
    queries: Any, keys: Any, values: Any, gradient: Any, *rest: Any, group: int, **given: bool
) -> None:
    *masks, to_queries, to_keys, to_values, of_keys, of_values = rest
    of_keys[...] = jnp.zeros_like(of_keys)
    of_values[...] = jnp.zeros_like(of_values)

    def go_back(head: int, lanes: slice, rows: Any) -> None:
        weights = _weights(queries, keys, masks, rows, head, lanes, **given)
        coming = gradient[0, rows, lanes]
        to_weights = _product(coming, values[0, :, lanes], (1, 1))
        mean = jnp.sum(to_weights * weights, axis=-1, keepdims=True)
        to_scores = (weights * (to_weights - mean)).astype(keys.dtype)
        to_rows = _product(to_scores, keys[0, :, lanes], (1, 0))
        to_queries[0, rows, lanes] = to_rows.astype(to_queries.dtype)
        of_keys[:, lanes] += _product(to_scores, queries[0, rows, lanes], (0, 0))
        of_values[:, lanes] += _product(weights.astype(values.dtype), coming, (0, 0))

    _for_each_part(queries, group, go_back)
    to_keys[0] = of_keys[...].astype(to_keys.dtype)
    to_values[0] = of_values[...].astype(to_values.dtype)


def _for_each_part(queries: Any, group: int, do: Callable[[int, slice, Any], None]) -> None:
    """Calls `do(head, lanes, rows)` for some queries of one head at a time."""
    _, length, lanes = queries.shape
    width = lanes // group
    whole, left = divmod(length, QUERIES)
    for head in range(group):
        part = functools.partial(do, head, slice(head * width, (head + 1) * width))

        def one(i: Any, _: None, part: Callable[[Any], None] = part) -> None:
            part(pl.ds(pl.multiple_of(i * QUERIES, QUERIES), QUERIES))

        if whole:
            # Many of them written out take a minute to compile.
            jax.lax.fori_loop(0, whole, one, None, unroll=whole <= UNROLLED)
        if left:
            part(pl.ds(whole * QUERIES, left))


def _weights(
    queries: Any,
    keys: Any,
    masks: Sequence[Any],
    rows: Any,
    head: int,
    lanes: slice,
    *,
    has_spoken: bool,
    has_relative: bool,
) -> Float[Array, "T S"]:
    """Returns the softmax of scores and biases, added in the order of the plain attention."""
    scores = _product(queries[0, rows, lanes], keys[0, :, lanes], (1, 1))
    if has_relative:
        scores = scores + masks[-1][head, rows]
    hidden = masks[0][0]
    if has_spoken:
        hidden = jnp.minimum(hidden, masks[1][0, rows])
    scores = scores + hidden
    powers = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
    return powers / jnp.sum(powers, axis=-1, keepdims=True)


def _product(one: jax.Array, other: jax.Array, axes: tuple[int, int]) -> jax.Array:
    """Multiplies two matrices over an axis of each, into float32."""
    dimensions = (((axes[0],), (axes[1],)), ((), ()))
    return jax.lax.dot_general(one, other, dimensions, preferred_element_type=jnp.float32)
