"""Multi-head attention as in T5: unscaled scores, additive biases, no bias vectors."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers
from jaxtyping import Array, Float, PRNGKeyArray

from prompt_tuning.model.config import T5Config
from prompt_tuning.model.layers import Projection, dropout
from prompt_tuning.model.remat import keep

KeysValues = tuple[Float[Array, "*L B S N H"], Float[Array, "*L B S N H"]]
# Learned keys and values, the same for every example.
Prefix = tuple[Float[Array, "*L P N H"], Float[Array, "*L P N H"]]
# What a decoder said before in R rows, with room for M tokens: neither as many rows (an input may
# have several answers) nor as long as what it attends to across.
Past = tuple[Float[Array, "*L R M N H"], Float[Array, "*L R M N H"]]


class HeadsFirst(NamedTuple):
    """Keys and values that are read again and again, laid out as the products read them."""

    keys: Float[Array, "*L B N H S"]
    values: Float[Array, "*L B N H S"]


# From queries `[B T N H]`, and keys and values.
Attend = Callable[[Float[Array, "B T N H"], KeysValues | HeadsFirst], Float[Array, "B T N H"]]


class Attention(nnx.Module):
    """Attention of queries `[B T D]` over keys and values made from any `[B S D]`.

    Keys and values are made apart (`keys_values`), so that a decoder can make those of the
    encoder's output once and those of its own past incrementally. `k_conv` and `v_conv` are None
    or change them, see `blocks.scale`.
    """

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        # 1/sqrt(H) is folded into the query's initialiser instead of scaling the scores.
        narrow = initializers.variance_scaling(1.0 / config.head_dim, "fan_in", "normal")
        normal = initializers.variance_scaling(1.0, "fan_in", "normal")
        inner = config.num_heads * config.head_dim
        shape, axes = (config.embed_dim, inner), ("embed", "joined_kv")
        make = functools.partial(
            Projection, param_dtype=config.param_dtype, quantization=config.quantized, rngs=rngs
        )
        self.query = make(shape, axes, narrow)
        self.key = make(shape, axes, normal)
        self.value = make(shape, axes, normal)
        back, back_axes = (inner, config.embed_dim), ("joined_kv", "embed")
        self.out = make(back, back_axes, normal)
        self.k_conv: nnx.Module | None = nnx.data(None)
        self.v_conv: nnx.Module | None = nnx.data(None)
        self.heads = (config.num_heads, config.head_dim)
        self.dropout_rate = config.dropout_rate

    def keys_values(self, x: Float[Array, "B S D"]) -> KeysValues:
        """Returns the keys and values of `x`, `[B S N H]` each."""
        keys = self._split(keep(self.key(x), "key"))
        values = self._split(keep(self.value(x), "value"))
        if self.k_conv is not None:
            keys = self.k_conv(keys)
        if self.v_conv is not None:
            values = self.v_conv(values)
        return keys, values

    def __call__(
        self,
        x: Float[Array, "B T D"],
        keys_values: KeysValues | HeadsFirst,
        attend: Attend,
        *,
        key: PRNGKeyArray | None,
    ) -> Float[Array, "B T D"]:
        """Attends in the given way, see `plain` and `fused_attention`."""
        keys, values = keys_values
        queries = self._split(keep(self.query(x), "query"))
        if key is not None and self.dropout_rate > 0.0:
            # Weights are dropped alike for every query, so it is their values that are dropped.
            moved = jnp.moveaxis(values, 1, -1)
            moved = dropout(moved, self.dropout_rate, key, shared_axis=2)
            keys_values = keys, jnp.moveaxis(moved, -1, 1)
        attended = attend(queries, keys_values)
        return keep(self.out(attended.reshape(*x.shape[:2], -1)), "attention_out")

    def _split(self, x: Float[Array, "B T I"]) -> Float[Array, "B T N H"]:
        return x.reshape(*x.shape[:2], *self.heads)


def plain(*biases: Float[Array, "..."]) -> Attend:
    """Returns the attention with these biases, which broadcast to `[B N T S]`."""

    def attend(
        queries: Float[Array, "B T N H"], keys_values: KeysValues | HeadsFirst
    ) -> Float[Array, "B T N H"]:
        return attend_plainly(queries, keys_values, *biases)

    return attend


def attend_plainly(
    queries: Float[Array, "B T N H"],
    keys_values: KeysValues | HeadsFirst,
    *biases: Float[Array, "..."],
) -> Float[Array, "B T N H"]:
    """Attends by a softmax of the float32 scores, to which the biases are added."""
    keys, values = keys_values
    layout = "BNHS" if isinstance(keys_values, HeadsFirst) else "BSNH"
    scores = jnp.einsum(f"BTNH,{layout}->BNTS", queries, keys, preferred_element_type=jnp.float32)
    for bias in biases:
        scores = scores + bias
    weights = jax.nn.softmax(scores, axis=-1).astype(queries.dtype)
    return jnp.einsum(f"BNTS,{layout}->BTNH", weights, values)


def heads_first(keys_values: KeysValues) -> HeadsFirst:
    """Lays keys and values out for being read often."""
    return HeadsFirst(*(jnp.moveaxis(one, -3, -1) for one in keys_values))


def in_front(prefix: Prefix, own: KeysValues) -> Past:
    """Puts learned keys and values before those of every example."""

    def join(learned: Float[Array, "*L P N H"], own: Float[Array, "*L B S N H"]) -> jax.Array:
        # Broadcast first, cast second, so that gradients are summed in float32 (see `Prompt`).
        shape = (*own.shape[:-3], *learned.shape[-3:])
        each = jnp.broadcast_to(jnp.expand_dims(learned, -4), shape).astype(own.dtype)
        return jnp.concatenate([each, own], axis=-3)

    return join(prefix[0], own[0]), join(prefix[1], own[1])
