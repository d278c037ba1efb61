"""The fewest FLOPs with which a program can be computed, from the model's shapes.

A product of `[m, k]` and `[k, n]` takes `2 m k n`. A frozen layer has no weight gradient: its
projections cost their forward pass twice, once more for the gradient that passes through. In
attention both sides of both products carry one: three times. Norms, softmax and the like are not
counted, nor is the optimizer.
"""

import dataclasses

from prompt_tuning.model import T5Config


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """The shapes of a batch.

    Attributes:
        rows: examples.
        inputs: tokens of an input, without the prompt.
        targets: tokens of a target, or of an answer.
        prompt: vectors in front of the encoder's input.
        prefix: learned keys and values in front of the decoder's own.
        beams: answers of an input that are written side by side.
    """

    rows: int
    inputs: int
    targets: int
    prompt: int = 0
    prefix: int = 0
    beams: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Forward:
    """FLOPs of one forward pass, by what a backward pass and a policy make of them.

    Attributes:
        projections: of query, key, value, and the MLP's inputs.
        attention_out: of the projection behind attention.
        mlp_out: of the projection that ends a block.
        scores: of queries with keys, the first of attention's two products; the second is as large.
        logits: of the last product, which is in no block.
    """

    projections: float
    attention_out: float
    mlp_out: float
    scores: float
    logits: float

    @property
    def linear(self) -> float:
        return self.projections + self.attention_out + self.mlp_out + self.logits

    @property
    def attention(self) -> float:
        return 2 * self.scores

    @property
    def total(self) -> float:
        return self.linear + self.attention


def forward(config: T5Config, sizes: Sizes) -> Forward:
    """Returns the FLOPs of encoder and decoder over a whole batch, targets given."""
    width, inner = config.embed_dim, config.num_heads * config.head_dim
    read, said = sizes.prompt + sizes.inputs, sizes.targets
    encoder, decoder = config.encoder_layers, config.decoder_layers
    mlp_in = len(config.mlp_activations) * width * config.mlp_dim
    # Of the decoder: its own query, key and value, the query across; and the input's keys, values.
    projections = encoder * read * (3 * width * inner + mlp_in)
    projections += decoder * (said * (4 * width * inner + mlp_in) + read * 2 * width * inner)
    scores = encoder * read * read + decoder * said * (sizes.prefix + said + read)
    each = 2.0 * sizes.rows
    return Forward(
        projections=each * projections,
        attention_out=each * (encoder * read + 2 * decoder * said) * inner * width,
        mlp_out=each * (encoder * read + decoder * said) * config.mlp_dim * width,
        scores=each * scores * inner,
        logits=each * said * width * config.vocab_size,
    )


def of_training(config: T5Config, sizes: Sizes, *, trainable: str = "prompt") -> float:
    """Returns the minimum of a training step, with everything kept for the backward pass."""
    one = forward(config, sizes)
    return (2 if trainable == "prompt" else 3) * one.linear + 3 * one.attention


def recomputed(config: T5Config, sizes: Sizes) -> float:
    """Returns what the configuration's rematerialisation policy adds to the minimum.

    `minimal` and `projections` compute the scores again, `full` all of a block but its last
    projection, whose output no gradient needs.
    """
    one = forward(config, sizes)
    match config.remat:
        case "none":
            return 0.0
        case "full":
            return one.projections + one.attention_out + one.attention
        case _:
            return one.scores


def of_evaluation(config: T5Config, sizes: Sizes) -> float:
    """Returns the minimum of a forward pass over a batch with its targets."""
    return forward(config, sizes).total


def of_decoding(config: T5Config, sizes: Sizes) -> float:
    """Returns the minimum of answering a batch in as many tokens as there is room for."""
    read = dataclasses.replace(sizes, targets=0)
    # What the input costs is shared by its beams; token t attends to t + 1 others and the input.
    once = forward(config, read).total
    whole = forward(config, sizes).total - once
    unseen = sizes.targets * (sizes.targets - 1) / 2
    inner = config.num_heads * config.head_dim
    whole -= 4.0 * sizes.rows * config.decoder_layers * unseen * inner
    return once + whole * sizes.beams
