"""T5: an encoder, a decoder, one embedding table, and a place for a prompt."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray

from prompt_tuning.batch import PAD, Batch, shift_right
from prompt_tuning.layout import Layout
from prompt_tuning.model import products
from prompt_tuning.model.attention import KeysValues, Past, in_front, plain
from prompt_tuning.model.blocks import (
    DecoderBlock,
    EncoderBlock,
    scale,
    scan_layers,
    split,
    stack,
    zero_padding,
)
from prompt_tuning.model.config import T5Config
from prompt_tuning.model.fused_attention import attention_over
from prompt_tuning.model.layers import (
    MASKED,
    BaseParam,
    Projection,
    RelativePositions,
    RMSNorm,
    dropout,
    mask_bias,
)


class Encoded(NamedTuple):
    """What the encoder hands to the decoder: hidden states, and which of them are real."""

    hidden: Float[Array, "B S D"]
    real: Bool[Array, "B S"]


class T5(nnx.Module):
    """A T5 of any family, and the places where a method may add what it learns.

    Parameter names are t5x's, with all layers of a stack in one array.

    >>> model = T5(t5_config("ours_tiny"), rngs=nnx.Rngs(0))
    >>> logits = model(batch)  # [B U V] float32

    Args:
        prompt: makes the module that extends the encoder's embedded input (`Prompt`); called with
            `embed_dim` and `rngs`.
        prefix: makes the module whose keys and values stand before the decoder's own in every
            layer (`KeyValuePrefix`); called with `layers`, `heads` and `rngs`.
        scales: makes each module that scales keys, values or hidden features (`Scale`, IA3);
            called with `shape` and `axes`.
    """

    def __init__(
        self,
        config: T5Config,
        *,
        prompt: Callable[..., nnx.Module] | None = None,
        prefix: Callable[..., nnx.Module] | None = None,
        scales: Callable[..., nnx.Module] | None = None,
        rngs: nnx.Rngs,
    ):
        self.config = config
        self.token_embedder = Embedding(config, rngs=rngs)
        self.encoder = Encoder(config, rngs=rngs)
        self.decoder = Decoder(config, rngs=rngs)
        # Made last, so that a base drawn from the same seed is the same with and without a method.
        if prompt is not None:
            self.encoder.prompt = prompt(embed_dim=config.embed_dim, rngs=rngs)
        if prefix is not None:
            heads = (config.num_heads, config.head_dim)
            self.decoder.prefix = prefix(layers=config.decoder_layers, heads=heads, rngs=rngs)
        if scales is not None:
            scale(self.encoder.layers, scales, config.encoder_layers)
            scale(self.decoder.layers, scales, config.decoder_layers)

    def __call__(self, batch: Batch, *, key: PRNGKeyArray | None = None) -> Float[Array, "B U V"]:
        """Returns float32 logits for every target token; with a key, dropout is active."""
        keys = split(key, 2)
        encoded = self.encode(jnp.asarray(batch.inputs), key=keys[0])
        return self.decode(encoded, jnp.asarray(batch.targets), key=keys[1])

    def encode(self, inputs: Int[Array, "B T"], *, key: PRNGKeyArray | None = None) -> Encoded:
        """Encodes the input, prompt included: S is P + T."""
        return self.encoder(self.token_embedder(inputs), inputs, key=key)

    def decode(
        self,
        encoded: Encoded,
        targets: Int[Array, "B U"],
        *,
        cross: KeysValues | None = None,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "B U V"]:
        """Scores `targets` given the encoded input (teacher forcing).

        `cross` are the decoder's keys and values over the encoded input, if already made.
        """
        inputs = shift_right(targets)
        hidden = self.decoder(self.token_embedder(inputs), inputs, targets, encoded, cross, key=key)
        return self._logits(hidden)

    def hold(self, layout: Layout) -> None:
        """Runs on the devices of a mesh from now on, see `Placement.layout`."""
        self.encoder.layout = self.decoder.layout = layout

    @property
    def layout(self) -> Layout:
        """What `hold` was given last."""
        return self.encoder.layout

    def cross_keys_values(self, encoded: Encoded) -> KeysValues:
        """Returns every decoder layer's keys and values over the input, `[L B S N H]` each."""
        return self.decoder.cross_keys_values(encoded.hidden)

    def empty_past(self, batch: int, length: int) -> Past:
        """Returns room for the decoder's own keys and values of `length` tokens.

        A learned prefix stands in front of it, M is P + `length` then.
        """
        config = self.config
        shape = (config.decoder_layers, batch, length, config.num_heads, config.head_dim)
        room = jnp.zeros(shape, config.dtype), jnp.zeros(shape, config.dtype)
        return room if self.decoder.prefix is None else in_front(self.decoder.prefix(), room)

    def decode_next(
        self,
        token: Int[Array, " R"],
        position: Int[Array, ""],
        past: Any,
        cross: Any,
        real: Bool[Array, "B S"],
        blocks: Sequence[DecoderBlock] | None = None,
    ) -> tuple[Float[Array, "R V"], Any]:
        """Continues each row by one position.

        There may be several rows R for each encoded input B, those of one input side by side.

        Args:
            token: the token before `position` (0 at the start).
            position: index of the token to predict; the same for every row.
            past: keys and values of the earlier positions, see `empty_past`.
            cross: see `cross_keys_values`.
            real: which encoded positions may be attended to.
            blocks: the decoder's, one by one (`blocks.unstacked`); `past` and `cross` are lists of
                layers then. None takes them out of the stack, which costs a copy at every step.

        Returns:
            Float32 logits of the token at `position`, and the past extended by one.
        """
        embedded = self.token_embedder(token[:, None])
        hidden, past = self.decoder.step(embedded, position, past, cross, real, blocks)
        return self._logits(hidden)[:, 0], past

    def _logits(self, hidden: Float[Array, "B U D"]) -> Float[Array, "B U V"]:
        if self.config.tied_logits:
            return self.token_embedder.logits(hidden)
        return products.logits(hidden, self.decoder.logits_dense.kernel[...])


class Embedding(nnx.Module):
    """The token table, shared by encoder and decoder; not scaled."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        shape = (config.vocab_size, config.embed_dim)
        table = initializers.normal(1.0)(rngs.params(), shape, jnp.dtype(config.param_dtype))
        self.embedding = BaseParam(table, axes=("vocab", "embed"))
        self.dtype = config.dtype

    def __call__(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        return jnp.take(self.embedding[...], tokens, axis=0).astype(self.dtype)

    def logits(self, hidden: Float[Array, "B U D"]) -> Float[Array, "B U V"]:
        """Compares with every embedding, scaled as in T5 1.0."""
        table = self.embedding[...].astype(jnp.float32)
        scaled = hidden.astype(jnp.float32) / jnp.sqrt(jnp.float32(table.shape[1]))
        return jnp.einsum("BUD,VD->BUV", scaled, table)


class Encoder(nnx.Module):
    """The stack that reads prompt and input, every position seeing every other."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        self.config = config
        self.relpos_bias = _relative_positions(config, bidirectional=True, rngs=rngs)
        self.layers = stack(
            lambda rngs: EncoderBlock(config, rngs=rngs), config.encoder_layers, rngs
        )
        self.encoder_norm = RMSNorm(config.embed_dim, param_dtype=config.param_dtype)
        self.prompt: nnx.Module | None = nnx.data(None)
        self.layout = Layout()

    def __call__(
        self,
        embedded: Float[Array, "B T D"],
        tokens: Int[Array, "B T"],
        *,
        key: PRNGKeyArray | None,
    ) -> Encoded:
        config = self.config
        real = tokens != PAD
        if self.prompt is not None:
            embedded, real = self.prompt(embedded, tokens)
        keys = split(key, 3)
        # The original drops out after the prompt is in place, so prompts see dropout as well.
        x = _held(self.layout, dropout(embedded, config.dropout_rate, keys[0], shared_axis=1))
        length = x.shape[1]
        # What padding attends to is zeroed before anybody sees it.
        relative = self.relpos_bias(length, length)
        attend = attention_over(config, self.layout, queries=length, real=real, relative=relative)

        def body(block: EncoderBlock, x, key):
            return _held(self.layout, block(x, real, attend, key=key)), None

        layer_keys = _layer_keys(keys[1], config.encoder_layers)
        unroll = config.unrolled(config.encoder_layers, self.layout.platform)
        x, _ = scan_layers(body, self.layers, x, layer_keys, remat=config.remat, unroll=unroll)
        x = dropout(self.encoder_norm(x), config.dropout_rate, keys[2], shared_axis=1)
        return Encoded(zero_padding(x, real), real)


class Decoder(nnx.Module):
    """The stack that predicts the target from what was said before and the encoded input."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        self.config = config
        self.relpos_bias = _relative_positions(config, bidirectional=False, rngs=rngs)
        self.layers = stack(
            lambda rngs: DecoderBlock(config, rngs=rngs), config.decoder_layers, rngs
        )
        self.decoder_norm = RMSNorm(config.embed_dim, param_dtype=config.param_dtype)
        if not config.tied_logits:
            init = initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
            shape, axes = (config.embed_dim, config.vocab_size), ("embed", "vocab")
            self.logits_dense = Projection(
                shape, axes, init, param_dtype=config.param_dtype, rngs=rngs
            )
        self.prefix: nnx.Module | None = nnx.data(None)
        self.layout = Layout()

    def __call__(
        self,
        embedded: Float[Array, "B U D"],
        inputs: Int[Array, "B U"],
        targets: Int[Array, "B U"],
        encoded: Encoded,
        cross: KeysValues | None,
        *,
        key: PRNGKeyArray | None,
    ) -> Float[Array, "B U D"]:
        config = self.config
        keys = split(key, 3)
        x = _held(self.layout, dropout(embedded, config.dropout_rate, keys[0], shared_axis=1))
        spoken = visible = targets != PAD
        prefix, first, length = None, 0, x.shape[1]
        if self.prefix is not None:
            prefix = self.prefix()
            first = prefix[0].shape[1]
            visible = jnp.pad(spoken, ((0, 0), (first, 0)), constant_values=True)
        # Short, as answers are, and causal: not worth a kernel.
        attend = plain(
            self.relpos_bias(length, first + length, first=first),
            mask_bias(spoken, visible, causal=True, first=first),
        )
        across = attention_over(
            config, self.layout, queries=length, real=encoded.real, spoken=spoken
        )
        if cross is None and self.layout.cross_first:
            cross = self.cross_keys_values(encoded.hidden)
        real = _decoder_positions(inputs)

        def body(block: DecoderBlock, x, scanned):
            key, cross, prefix = scanned
            if cross is None:
                cross = block.encoder_decoder_attention.keys_values(encoded.hidden)

            def remember(own: KeysValues) -> Past:
                return own if prefix is None else in_front(prefix, own)

            x, _ = block(x, real, remember, cross, attend, across, key=key)
            return _held(self.layout, x), None

        scanned = (_layer_keys(keys[1], config.decoder_layers), cross, prefix)
        x, _ = scan_layers(body, self.layers, x, scanned, remat=config.remat, unroll=self._unrolled)
        x = dropout(self.decoder_norm(x), config.dropout_rate, keys[2], shared_axis=1)
        return zero_padding(x, real)

    def cross_keys_values(self, hidden: Float[Array, "B S D"]) -> KeysValues:
        """Returns the keys and values of all layers over the encoder's output."""
        if self.layout.cross_first and not self.layout.fetch:
            # As one product over all layers, whose gradient for `hidden` is one sum as well.
            graph, parameters = nnx.split(self.layers)

            def of_layer(parameters: nnx.State) -> KeysValues:
                block: Any = nnx.merge(graph, parameters)
                return block.encoder_decoder_attention.keys_values(hidden)

            return jax.vmap(of_layer)(parameters)

        def body(block: DecoderBlock, carry, _):
            return carry, block.encoder_decoder_attention.keys_values(hidden)

        return scan_layers(body, self.layers, (), None, remat="none", unroll=self._unrolled)[1]

    @property
    def _unrolled(self) -> bool:
        return self.config.unrolled(self.config.decoder_layers, self.layout.platform)

    def step(
        self,
        embedded: Float[Array, "R 1 D"],
        position: Int[Array, ""],
        past: Any,
        cross: Any,
        encoded_real: Bool[Array, "B S"],
        blocks: Sequence[DecoderBlock] | None,
    ) -> tuple[Float[Array, "R 1 D"], Any]:
        """Runs one position against the past; see `T5.decode_next`."""
        if self.prefix is not None:
            position = position + self.prefix()[0].shape[1]
        batch, length = jax.tree.leaves(past)[0].shape[-4:-2]
        # The biases of one query in the middle of twice as many keys; `position` moves the window.
        biases = self.relpos_bias(1, 2 * length - 1, first=length - 1)
        seen = jnp.arange(length) <= position
        here = jnp.ones((batch, 1), bool)
        self_bias = jax.lax.dynamic_slice_in_dim(biases, length - 1 - position, length, axis=3)
        self_bias = self_bias + jnp.where(seen, 0.0, MASKED)[None, None, None]
        attend = plain(self_bias)
        across = plain(mask_bias(jnp.ones((len(encoded_real), 1), bool), encoded_real))

        def body(block: DecoderBlock, x, scanned):
            past, cross = scanned

            def remember(own: KeysValues) -> Past:
                return _write(past[0], own[0], position), _write(past[1], own[1], position)

            x, seen = block(x, here, remember, cross, attend, across, key=None)
            return _held(self.layout, x), seen

        if blocks is None:
            x, past = scan_layers(
                body,
                self.layers,
                embedded,
                (past, cross),
                remat="none",
                unroll=self._unrolled,
            )
            return self.decoder_norm(x), past
        x, extended = embedded, []
        for block, *scanned in zip(blocks, past, cross, strict=True):
            x, own = body(block, x, scanned)
            extended.append(own)
        return self.decoder_norm(x), extended


def _held(layout: Layout, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    return x if layout.stream is None else layout.stream(x)


def _decoder_positions(inputs: Int[Array, "B U"]) -> Bool[Array, "B U"]:
    """Which decoder positions are real, judged by the inputs.

    The first input is 0, the same id as padding, and so may be a token in the middle; a position
    counts when it or its successor holds a token, and the first always does.
    """
    token = inputs != PAD
    followed = jnp.pad(token[:, 1:], ((0, 0), (0, 1)))
    first = jnp.arange(inputs.shape[1])[None] == 0
    return token | followed | first


def _write(
    past: Float[Array, "R M N H"], new: Float[Array, "R 1 N H"], position: Int[Array, ""]
) -> Float[Array, "R M N H"]:
    return jax.lax.dynamic_update_slice_in_dim(past, new, position, axis=1)


def _layer_keys(key: PRNGKeyArray | None, layers: int) -> Key[Array, " L"] | None:
    return None if key is None else jax.random.split(key, layers)


def _relative_positions(
    config: T5Config, *, bidirectional: bool, rngs: nnx.Rngs
) -> RelativePositions:
    return RelativePositions(
        config.num_heads,
        config.relative_buckets,
        config.relative_max_distance,
        bidirectional=bidirectional,
        param_dtype=config.param_dtype,
        rngs=rngs,
    )
