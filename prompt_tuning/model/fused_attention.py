"""Attention whose scores are never written to memory, where the devices have a kernel for it.

On a TPU it is our own kernel, see `fused_attention_tpu`; on a CPU `attention="fused"` runs that
kernel in Pallas' interpreter, to compare numbers and not for speed. On a GPU it is cuDNN's, which
has to be asked for: nobody has measured it for T5.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float

from prompt_tuning.errors import DeviceError
from prompt_tuning.layout import Layout
from prompt_tuning.model import fused_attention_tpu as tpu
from prompt_tuning.model.attention import Attend, HeadsFirst, KeysValues, attend_plainly, plain
from prompt_tuning.model.config import T5Config
from prompt_tuning.model.fused_attention_tpu import Keys, Queries, Relative
from prompt_tuning.model.layers import mask_bias

MODEL = "model"
# What a kernel may take of the vector memory: of the 16 MiB of TPUs before v5, and of 64 or 128.
_OLD, _OLD_VMEM, _VMEM = ("TPU v2", "TPU v3", "TPU v4"), 14 * 2**20, 48 * 2**20


def attention_over(
    config: T5Config,
    layout: Layout,
    *,
    queries: int,
    real: Bool[Array, "B S"],
    relative: Relative | None = None,
    spoken: Bool[Array, "B T"] | None = None,
) -> Attend:
    """Returns the attention of every layer of a stack, as `T5Config.attention` says.

    Args:
        config: of the model.
        layout: where it runs.
        queries: T.
        real: which keys may be seen.
        relative: the biases by position, if there are any.
        spoken: which queries are not padding: padding sees nothing, and so everything alike. None
            if nobody looks at what it sees.

    Raises:
        DeviceError: a fused attention is asked for where there is none.
    """
    reason = _unfit(config, layout, len(real), real.shape[1], queries)
    if config.attention == "fused" and reason is not None:
        raise DeviceError(
            f"ATTENTION is 'fused', but {reason}. Set it to 'auto', which takes the plain "
            "attention where there is no other, or to 'plain'."
        )
    chosen = config.attention == "fused" or (
        config.attention == "auto" and layout.platform == "tpu"
    )
    if chosen and reason is None and layout.platform == "gpu":
        # Across, queries are few and scores small.
        chosen = relative is not None
    if not chosen or reason is not None:
        mask = _mask(real, spoken)
        return plain(mask) if relative is None else plain(relative, mask)
    if layout.platform == "gpu":
        assert relative is not None
        return _cudnn(relative, _mask(real, spoken), jnp.dtype(config.dtype))
    divided = layout.mesh is not None and layout.mesh.size > 1
    where = Where(interpret=layout.platform == "cpu", mesh=layout.mesh if divided else None)

    def attend(queries: Queries, keys_values: KeysValues | HeadsFirst) -> Queries:
        return fused(where, queries, *keys_values, relative, spoken, real)

    return attend


def _unfit(config: T5Config, layout: Layout, rows: int, keys: int, queries: int) -> str | None:
    """Returns why there is no fused attention of these shapes on these devices."""
    mesh = {} if layout.mesh is None else dict(layout.mesh.shape)
    models = mesh.pop(MODEL, 1)
    groups = math.prod(mesh.values())
    if rows % groups:
        return f"a batch of {rows} rows does not divide among {groups} groups of devices"
    if config.num_heads % models:
        return f"{config.num_heads} heads do not divide among {models} devices"
    if layout.platform == "gpu":
        if config.dtype != "bfloat16":
            return f"cuDNN's attention is for bfloat16, and DTYPE is {config.dtype!r}"
        if config.head_dim % 8 or config.head_dim > 128:
            return f"cuDNN's attention has no heads of {config.head_dim} features"
        if keys % 2:
            return f"cuDNN's attention wants an even number of keys, and here are {keys}"
    if layout.platform == "tpu":
        itemsize = jnp.dtype(config.dtype).itemsize
        needed = tpu.vmem(queries, keys, config.num_heads // models, config.head_dim, itemsize)
        room = _OLD_VMEM if layout.device_kind.startswith(_OLD) else _VMEM
        if needed > room:
            return (
                f"{queries} queries of {keys} keys take {needed / 2**20:.0f} MiB of the vector "
                f"memory of a {layout.device_kind}, where {room / 2**20:.0f} MiB are to spare"
            )
    return None


def _mask(real: Bool[Array, "B S"], spoken: Bool[Array, "B T"] | None) -> Float[Array, "B 1 _ S"]:
    return mask_bias(jnp.ones((len(real), 1), bool) if spoken is None else spoken, real)


def _cudnn(relative: Relative, mask: Float[Array, "B 1 _ S"], dtype: jnp.dtype) -> Attend:
    """Returns cuDNN's attention, for which all biases are one array, made once for all layers.

    It computes that array's gradient whether anybody wants it or not.
    """
    bias = (relative + mask).astype(dtype)

    def attend(queries: Queries, keys_values: KeysValues | HeadsFirst) -> Queries:
        keys, values = keys_values
        return jax.nn.dot_product_attention(
            queries, keys, values, bias=bias, scale=1.0, implementation="cudnn"
        )

    return attend


@dataclasses.dataclass(frozen=True, kw_only=True)
class Where:
    """Where the TPU's kernel runs: on which mesh, and if by the interpreter."""

    interpret: bool = False
    mesh: Mesh | None = None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def fused(
    where: Where,
    queries: Queries,
    keys: Keys,
    values: Keys,
    relative: Relative | None,
    spoken: Bool[Array, "B T"] | None,
    real: Bool[Array, "B S"],
) -> Queries:
    """Attends by the TPU's kernel; the arguments are all that is kept for the way back.

    The kernel of the way back leaves the biases without a gradient. If they need one, because the
    whole model is tuned, the plain attention goes back.
    """
    kernel = functools.partial(tpu.forward, interpret=where.interpret)
    return _divided(where, kernel, queries, keys, values, relative, spoken, real)


def _there(where: Where, *given):
    arguments = tuple(None if one is None else one.value for one in given)
    tuned = given[3] is not None and given[3].perturbed
    # A static fact, in the structure of what is kept.
    return fused(where, *arguments), (arguments, () if tuned else None)


def _back(where: Where, kept, gradient):
    (queries, keys, values, relative, spoken, real), tuned = kept
    if isinstance(gradient, SymbolicZero):
        gradient = jnp.zeros_like(queries)
    if tuned is None:
        kernel = functools.partial(tpu.backward, interpret=where.interpret)
        found = _divided(where, kernel, queries, keys, values, relative, spoken, real, gradient)
        return *found, None, None, None
    mask = _mask(real, spoken)

    def plainly(queries: Queries, keys: Keys, values: Keys, relative: Relative) -> Queries:
        return attend_plainly(queries, (keys, values), relative, mask)

    return *jax.vjp(plainly, queries, keys, values, relative)[1](gradient), None, None


fused.defvjp(_there, _back, symbolic_zeros=True)


def _divided(where: Where, kernel: Callable, *arrays):
    """Runs a kernel on every device over its own rows and heads: the compiler cannot divide it."""
    if where.mesh is None:
        return kernel(*arrays)
    rows = tuple(axis for axis in where.mesh.axis_names if axis != MODEL)
    by_heads = PartitionSpec(rows, None, MODEL, None)
    by_rows = PartitionSpec(rows, None)
    specs = (by_heads, by_heads, by_heads, PartitionSpec(None, MODEL), by_rows, by_rows, by_heads)
    results = by_heads if len(arrays) == 6 else (by_heads,) * 3
    return jax.shard_map(
        kernel,
        mesh=where.mesh,
        in_specs=specs[: len(arrays)],
        out_specs=results,
        check_vma=False,
    )(*arrays)
