"""Multi-head attention as in T5: unscaled scores, additive biases, no bias vectors."""

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
        dtype = config.param_dtype
        self.query = Projection(shape, axes, narrow, param_dtype=dtype, rngs=rngs)
        self.key = Projection(shape, axes, normal, param_dtype=dtype, rngs=rngs)
        self.value = Projection(shape, axes, normal, param_dtype=dtype, rngs=rngs)
        back, back_axes = (inner, config.embed_dim), ("joined_kv", "embed")
        self.out = Projection(back, back_axes, normal, param_dtype=dtype, rngs=rngs)
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
        *biases: Float[Array, "..."],
        key: PRNGKeyArray | None,
    ) -> Float[Array, "B T D"]:
        """Attends; `biases` broadcast to `[B N T S]` and are added to the float32 scores."""
        keys, values = keys_values
        layout = "BNHS" if isinstance(keys_values, HeadsFirst) else "BSNH"
        queries = self._split(keep(self.query(x), "query"))
        scores = jnp.einsum(
            f"BTNH,{layout}->BNTS", queries, keys, preferred_element_type=jnp.float32
        )
        for bias in biases:
            scores = scores + bias
        weights = jax.nn.softmax(scores, axis=-1).astype(x.dtype)
        weights = dropout(weights, self.dropout_rate, key, shared_axis=2)
        attended = jnp.einsum(f"BNTS,{layout}->BTNH", weights, values)
        return keep(self.out(attended.reshape(*x.shape[:2], -1)), "attention_out")

    def _split(self, x: Float[Array, "B T I"]) -> Float[Array, "B T N H"]:
        return x.reshape(*x.shape[:2], *self.heads)


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
