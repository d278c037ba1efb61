"""The parts of a block: base parameters, projections, norm, MLP, dropout, relative positions."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.nn import initializers
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from prompt_tuning.model.products import product
from prompt_tuning.model.quantization import Quantization, quantize, quantized_matmul
from prompt_tuning.model.remat import keep

NORM_EPSILON = 1e-6
# Added to the score of a position that must not be seen. In float32 it absorbs any score, so that
# a row with nothing to see attends uniformly, as in the original.
MASKED = -1e10

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "linear": lambda x: x,
}


class BaseParam(nnx.Variable):
    """A parameter of the pretrained model.

    Not an `nnx.Param`, so that NNX's own gradient transforms, which take every `nnx.Param` unless
    told otherwise, leave it alone as well. `axes` names the dimensions (t5x's logical axes).
    """


class Projection(nnx.Module):
    """A linear map without bias; quantized, its kernel is of integers and has a scale."""

    def __init__(
        self,
        shape: tuple[int, int],
        axes: tuple[str, str],
        init: initializers.Initializer,
        *,
        param_dtype: str,
        quantization: Quantization | None = None,
        rngs: nnx.Rngs,
    ):
        kernel = init(rngs.params(), shape, jnp.dtype(param_dtype))
        self.kernel_scale: BaseParam | None = nnx.data(None)
        if quantization is not None:
            kernel, scale = quantize(kernel, quantization)
            # A scale lies where its outputs lie, and those of groups where their inputs lie.
            self.kernel_scale = BaseParam(scale, axes=axes[-scale.ndim :])
        self.kernel = BaseParam(kernel, axes=axes)

    def __call__(self, x: Float[Array, "B T I"]) -> Float[Array, "B T O"]:
        if self.kernel_scale is None:
            return product(x, self.kernel[...])
        return quantized_matmul(x, self.kernel[...], self.kernel_scale[...])


class RMSNorm(nnx.Module):
    """Divides by the root mean square; no mean, no bias (T5's "layer norm")."""

    def __init__(self, dim: int, *, param_dtype: str):
        self.scale = BaseParam(jnp.ones(dim, jnp.dtype(param_dtype)), axes=("embed",))

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        wide = x.astype(jnp.float32)
        mean_square = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
        normed = (wide * jax.lax.rsqrt(mean_square + NORM_EPSILON)).astype(x.dtype)
        return normed * self.scale[...].astype(x.dtype)[None, None]


class MLP(nnx.Module):
    """The feed-forward sub-layer, gated when there are two activations (T5 1.1).

    `intermediate_conv` is None or changes the hidden features, see `blocks.scale`.
    """

    def __init__(
        self,
        embed_dim: int,
        mlp_dim: int,
        activations: tuple[str, ...],
        *,
        dropout_rate: float,
        param_dtype: str,
        quantization: Quantization | None = None,
        rngs: nnx.Rngs,
    ):
        init = initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
        make = functools.partial(
            Projection, init=init, param_dtype=param_dtype, quantization=quantization, rngs=rngs
        )
        gated = len(activations) > 1
        self.inputs = tuple(f"wi_{i}" if gated else "wi" for i in range(len(activations)))
        self.activations = activations
        self.intermediate_conv: nnx.Module | None = nnx.data(None)
        self.mlp_dim = mlp_dim
        self.dropout_rate = dropout_rate
        for name in self.inputs:
            setattr(self, name, make((embed_dim, mlp_dim), ("embed", "mlp")))
        self.wo = make((mlp_dim, embed_dim), ("mlp", "embed"))

    def __call__(
        self, x: Float[Array, "B T D"], *, key: PRNGKeyArray | None
    ) -> Float[Array, "B T D"]:
        branches = [
            ACTIVATIONS[activation](keep(getattr(self, name)(x), "wi"))
            for name, activation in zip(self.inputs, self.activations, strict=True)
        ]
        hidden = functools.reduce(jnp.multiply, branches)
        if self.intermediate_conv is not None:
            hidden = self.intermediate_conv(hidden)
        return self.wo(dropout(hidden, self.dropout_rate, key, shared_axis=1))


class RelativePositions(nnx.Module):
    """The table of biases by head and bucket of distance, one per stack."""

    def __init__(
        self,
        num_heads: int,
        buckets: int,
        max_distance: int,
        *,
        bidirectional: bool,
        param_dtype: str,
        rngs: nnx.Rngs,
    ):
        init = initializers.variance_scaling(1.0, "fan_avg", "uniform")
        table = init(rngs.params(), (num_heads, buckets), jnp.dtype(param_dtype))
        self.rel_embedding = BaseParam(table, axes=("heads", "relpos_buckets"))
        self.buckets = buckets
        self.max_distance = max_distance
        self.bidirectional = bidirectional

    def __call__(self, queries: int, keys: int, *, first: int = 0) -> Float[Array, "1 N T S"]:
        """Returns the float32 bias of each query position for each key position.

        The first query stands at position `first`, the first key at 0.
        """
        distance = np.arange(keys)[None, :] - np.arange(first, first + queries)[:, None]
        buckets = relative_position_buckets(
            distance, self.buckets, self.max_distance, bidirectional=self.bidirectional
        )
        bias = jnp.take(self.rel_embedding[...].astype(jnp.float32), buckets, axis=1)
        return bias[None]


def relative_position_buckets(
    distance: Int[np.ndarray, "T S"], buckets: int, max_distance: int, *, bidirectional: bool
) -> Int[np.ndarray, "T S"]:
    """Sorts distances (key position minus query position) into buckets.

    Half of the buckets hold one distance each, the other half grow logarithmically up to
    `max_distance`; a bidirectional stack spends half of all on keys after the query. Numbers as in
    flaxformer's `relative_position_biases.py`, whose epsilon decides the exact powers.
    """
    behind = -distance
    offset = np.zeros_like(distance)
    if bidirectional:
        buckets //= 2
        offset = np.where(behind < 0, buckets, 0)
        behind = np.abs(behind)
    else:
        behind = np.maximum(behind, 0)
    exact = buckets // 2
    epsilon = np.finfo(np.float32).eps
    growth = np.log(behind.astype(np.float32) / exact + epsilon) / np.log(max_distance / exact)
    logarithmic = exact + (growth * (buckets - exact)).astype(np.int32)
    far = np.minimum(logarithmic, buckets - 1)
    return (offset + np.where(behind < exact, behind, far)).astype(np.int32)


def dropout(
    x: Float[Array, "..."], rate: float, key: PRNGKeyArray | None, *, shared_axis: int
) -> Float[Array, "..."]:
    """Drops features at random, with one mask along `shared_axis`; without a key, nothing.

    T5 shares every mask over the length axis (Mesh TensorFlow heritage, kept by the original).
    """
    if key is None or rate == 0.0:
        return x
    shape = list(x.shape)
    shape[shared_axis] = 1
    kept = jax.random.bernoulli(key, 1.0 - rate, shape)
    return jnp.where(kept, x / (1.0 - rate), jnp.zeros_like(x))


def mask_bias(
    queries: Bool[Array, "B T"], keys: Bool[Array, "B S"], *, causal: bool = False, first: int = 0
) -> Float[Array, "B 1 T S"]:
    """Returns 0 where a query may see a key, `MASKED` elsewhere.

    `causal` hides the keys after a query; the first query stands at position `first`.
    """
    visible = queries[:, None, :, None] & keys[:, None, None, :]
    if causal:
        visible &= np.tri(queries.shape[1], keys.shape[1], first, dtype=bool)[None, None]
    return jnp.where(visible, 0.0, MASKED)
