"""Encoder and decoder blocks, and the scan over a stack of them."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from prompt_tuning.model.attention import Attend, Attention, HeadsFirst, KeysValues, Past
from prompt_tuning.model.config import T5Config
from prompt_tuning.model.layers import MLP, BaseParam, RMSNorm, dropout
from prompt_tuning.model.remat import rematerialised


class EncoderBlock(nnx.Module):
    """Self-attention and MLP, each behind a norm and added to the residual stream."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        self.pre_attention_layer_norm = _norm(config)
        self.attention = Attention(config, rngs=rngs)
        self.pre_mlp_layer_norm = _norm(config)
        self.mlp = _mlp(config, rngs)
        self.dropout_rate = config.dropout_rate

    def __call__(
        self,
        x: Float[Array, "B S D"],
        real: Bool[Array, "B S"],
        attend: Attend,
        *,
        key: PRNGKeyArray | None,
    ) -> Float[Array, "B S D"]:
        keys = split(key, 4)
        normed = zero_padding(self.pre_attention_layer_norm(x), real)
        attended = self.attention(normed, self.attention.keys_values(normed), attend, key=keys[0])
        x = x + dropout(attended, self.dropout_rate, keys[1], shared_axis=1)
        normed = zero_padding(self.pre_mlp_layer_norm(x), real)
        return x + dropout(self.mlp(normed, key=keys[2]), self.dropout_rate, keys[3], shared_axis=1)


class DecoderBlock(nnx.Module):
    """Causal self-attention, attention over the encoder's output, and MLP."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        self.pre_self_attention_layer_norm = _norm(config)
        self.self_attention = Attention(config, rngs=rngs)
        self.pre_cross_attention_layer_norm = _norm(config)
        self.encoder_decoder_attention = Attention(config, rngs=rngs)
        self.pre_mlp_layer_norm = _norm(config)
        self.mlp = _mlp(config, rngs)
        self.dropout_rate = config.dropout_rate

    def __call__(
        self,
        x: Float[Array, "R U D"],
        real: Bool[Array, "R U"],
        remember: Callable[[KeysValues], Past],
        cross: KeysValues | HeadsFirst,
        attend: Attend,
        attend_across: Attend,
        *,
        key: PRNGKeyArray | None,
    ) -> tuple[Float[Array, "R U D"], Past]:
        """Returns the block's output and the keys and values that its self-attention saw.

        `remember` makes those of the keys and values of `x`: it returns them as they are when `x`
        is a whole sequence, or adds them to those of the past. `cross` may be of fewer rows, each
        shared by as many rows of `x` that lie side by side.
        """
        keys = split(key, 6)
        normed = zero_padding(self.pre_self_attention_layer_norm(x), real)
        seen = remember(self.self_attention.keys_values(normed))
        attended = self.self_attention(normed, seen, attend, key=keys[0])
        x = x + dropout(attended, self.dropout_rate, keys[1], shared_axis=1)
        normed = zero_padding(self.pre_cross_attention_layer_norm(x), real)
        # Rows that share an input are queries of one row, so that its keys are there only once.
        queries = normed.reshape(cross[0].shape[0], -1, normed.shape[-1])
        attended = self.encoder_decoder_attention(queries, cross, attend_across, key=keys[2])
        attended = attended.reshape(normed.shape)
        x = x + dropout(attended, self.dropout_rate, keys[3], shared_axis=1)
        normed = zero_padding(self.pre_mlp_layer_norm(x), real)
        x = x + dropout(self.mlp(normed, key=keys[4]), self.dropout_rate, keys[5], shared_axis=1)
        return x, seen


def zero_padding(x: Float[Array, "B T D"], real: Bool[Array, "B T"]) -> Float[Array, "B T D"]:
    """Zeroes the rows of padding, as flaxformer's logit mask does before every sub-layer."""
    return x * real[..., None].astype(x.dtype)


def split(key: PRNGKeyArray | None, n: int):
    """Splits a key into `n`; no key gives no keys."""
    return [None] * n if key is None else jax.random.split(key, n)


def stack(block: Callable[..., nnx.Module], layers: int, rngs: nnx.Rngs) -> nnx.Module:
    """Makes `layers` blocks as one module whose every parameter has a leading axis of layers."""

    @nnx.split_rngs(splits=layers)
    @nnx.vmap(in_axes=(0,), out_axes=0)
    def make(rngs: nnx.Rngs) -> nnx.Module:
        return block(rngs=rngs)

    stacked = make(rngs)
    for _, variable in nnx.to_flat_state(nnx.state(stacked, BaseParam)):
        variable.set_metadata(axes=("layers", *variable.get_metadata("axes")))
    return stacked


def scale(layers: nnx.Module, make: Callable[..., nnx.Module], n: int) -> None:
    """Puts learned factors on the keys, values and hidden MLP features of a stack of `n` layers.

    `make` is called with `shape` and `axes` for each, see `prompts.ia3`; the attributes are named
    as in the original.
    """
    for _, module in nnx.iter_modules(layers):
        if isinstance(module, Attention):
            shape, axes = (n, *module.heads), ("layers", "heads", "kv")
            module.k_conv = make(shape=shape, axes=axes)
            module.v_conv = make(shape=shape, axes=axes)
        elif isinstance(module, MLP):
            module.intermediate_conv = make(shape=(n, module.mlp_dim), axes=("layers", "mlp"))


def unstacked(layers: nnx.Module) -> list[Any]:
    """Returns the blocks of a stack as modules of their own, whose parameters are copies."""
    graph, parameters = nnx.split(layers)
    return [nnx.merge(graph, one) for one in each_layer(parameters)]


def each_layer(stacked: Any) -> list[Any]:
    """Takes a tree of arrays with a leading axis of layers apart."""
    leaves, structure = jax.tree.flatten(stacked)
    return [jax.tree.unflatten(structure, one) for one in zip(*leaves, strict=True)]


def scan_layers(
    body: Callable[..., tuple[Any, Any]],
    layers: nnx.Module,
    carry: Any,
    xs: Any,
    *,
    remat: str,
    unroll: bool,
) -> tuple[Any, Any]:
    """Runs `body(block, carry, x) -> (carry, y)` over stacked blocks, compiled once for all.

    Parameters in the host's memory are fetched when the turn of their layer comes, in the backward
    pass once more.
    """
    graph, parameters = nnx.split(layers)

    if any(map(_on_host, jax.tree.leaves(parameters))) and remat == "none":
        # Or the backward pass would keep every layer that was fetched.
        remat = "minimal"

    def step(carry, scanned):
        parameters, x = scanned
        return body(nnx.merge(graph, jax.tree.map(_fetched, parameters)), carry, x)

    return jax.lax.scan(rematerialised(step, remat), carry, (parameters, xs), unroll=unroll)


def _on_host(array: Any) -> bool:
    return jax.typeof(array).memory_space == jax.memory.Space.Host


def _fetched(array: Any) -> Any:
    return jax.device_put(array, jax.memory.Space.Device) if _on_host(array) else array


def _norm(config: T5Config) -> RMSNorm:
    return RMSNorm(config.embed_dim, param_dtype=config.param_dtype)


def _mlp(config: T5Config, rngs: nnx.Rngs) -> MLP:
    return MLP(
        config.embed_dim,
        config.mlp_dim,
        config.mlp_activations,
        dropout_rate=config.dropout_rate,
        param_dtype=config.param_dtype,
        quantization=config.quantized,
        rngs=rngs,
    )
