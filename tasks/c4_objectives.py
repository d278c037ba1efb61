"""What a model learns from running text, as steps of a task: tokens in, inputs and targets out.

T5's objectives (t5/data/preprocessors.py), and BART's as prompt tuning had them
(prompt_tuning/data/preprocessors.py). With seqio's seed they draw what the originals draw: each
step that may draw asks seqio for one seed, and splits it in the originals' order.

`prompt_tuning.data.objectives` has the same for text files, without TensorFlow.
"""

import functools
from collections.abc import Callable, Mapping

import seqio
import tensorflow as tf

from prompt_tuning.data.objectives import SpanCorruption
from prompt_tuning.errors import ConfigError

from . import noise
from .preprocessors import Record

Features = Mapping[str, seqio.Feature]
Lengths = Mapping[str, int] | None  # which a task may lack; most of these need them
Seed = tuple[tf.Tensor, tf.Tensor]
Mask = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]  # of a length and two seeds
Write = Callable[[tf.Tensor, tf.Tensor, seqio.Vocabulary], tf.Tensor]  # of tokens and noise

LONGEST_DOCUMENT = 65536
MERGED_DOCUMENTS = 128


def span_corruption(
    dataset: tf.data.Dataset,
    sequence_length: Lengths,
    output_features: Features,
    *,
    noise_density: float = 0.15,
    mean_span_length: float = 3.0,
) -> tf.data.Dataset:
    """Hides spans of merged documents; the model says them after their sentinels.

    The share of hidden tokens and the number of spans are fixed, so 568 tokens come out as 512
    inputs and 114 targets.

    Raises:
        ConfigError: the targets of such inputs are longer than allowed.
    """
    shape = SpanCorruption(noise_density=noise_density, mean_span_length=mean_span_length)
    inputs = _length(sequence_length, "inputs")
    needed, allowed = shape.target_length(inputs), _length(sequence_length, "targets")
    if allowed < needed:
        raise ConfigError(
            f"Span corruption of {inputs} inputs has targets of {needed} tokens, but "
            f"TASK_FEATURE_LENGTHS allows {allowed}. Set 'targets' to {needed}, "
            "or 'inputs' shorter."
        )
    dataset = merge_documents(select_random_chunk(dataset))
    return denoise(
        split_tokens(dataset, length=shape.window(inputs)),
        output_features,
        mask=functools.partial(
            noise.random_spans, noise_density=noise_density, mean_span_length=mean_span_length
        ),
        inputs=noise.noise_to_sentinels,
        targets=noise.rest_to_sentinels,
    )


def iid_denoising(
    dataset: tf.data.Dataset,
    sequence_length: Lengths,
    output_features: Features,
    *,
    noise_density: float = 0.15,
) -> tf.data.Dataset:
    """Hides single tokens, each with the same chance; the model says them after their sentinels."""
    dataset = merge_documents(select_random_chunk(dataset))
    return denoise(
        split_tokens(dataset, length=_room(sequence_length, output_features, "inputs")),
        output_features,
        mask=functools.partial(noise.random_tokens, noise_density=noise_density),
        inputs=noise.noise_to_sentinels,
        targets=noise.rest_to_sentinels,
    )


def prefix_lm(
    dataset: tf.data.Dataset, sequence_length: Lengths, output_features: Features
) -> tf.data.Dataset:
    """Splits each piece of a document at a random place; the model continues the first part.

    The objective of LM adaptation (Lester et al. 2021, §3.1). At least one token stays on either
    side; of a piece of one token, it is the target.
    """
    return denoise(
        _pieces(dataset, sequence_length, output_features),
        output_features,
        mask=noise.random_prefix,
        inputs=noise.drop_rest,
        targets=noise.drop_noise,
    )


def full_lm(
    dataset: tf.data.Dataset, sequence_length: Lengths, output_features: Features
) -> tf.data.Dataset:
    """Cuts merged documents, each closed by an end token, into targets without inputs."""
    dataset = seqio.preprocessors.append_eos(select_random_chunk(dataset), output_features)
    return split_tokens(merge_documents(dataset), length=_length(sequence_length, "targets"))


def text_infilling(
    dataset: tf.data.Dataset,
    sequence_length: Lengths,
    output_features: Features,
    *,
    noise_density: float = 0.15,
    mean_span_length: float = 3.0,
) -> tf.data.Dataset:
    """Hides spans; the model says the whole text.

    As in BART (Lewis et al. 2019), but for a sentinel of its own in the place of each span.
    """
    return denoise(
        _pieces(dataset, sequence_length, output_features),
        output_features,
        mask=functools.partial(
            noise.random_spans, noise_density=noise_density, mean_span_length=mean_span_length
        ),
        inputs=noise.noise_to_sentinels,
        targets=noise.everything,
    )


def token_deletion(
    dataset: tf.data.Dataset,
    sequence_length: Lengths,
    output_features: Features,
    *,
    noise_density: float = 0.15,
) -> tf.data.Dataset:
    """Deletes single tokens; the model says the whole text, as in BART (Lewis et al. 2019)."""
    return denoise(
        _pieces(dataset, sequence_length, output_features),
        output_features,
        mask=functools.partial(noise.random_tokens, noise_density=noise_density),
        inputs=noise.drop_noise,
        targets=noise.everything,
    )


def select_random_chunk(
    dataset: tf.data.Dataset, *, length: int = LONGEST_DOCUMENT
) -> tf.data.Dataset:
    """Takes one piece of `length` tokens of each document that is longer; drops empty ones."""

    @seqio.map_over_dataset(num_seeds=1)
    def select(record: Record, seed: Seed) -> dict[str, tf.Tensor]:
        tokens = record["targets"]
        pieces = -(-tf.size(tokens) // length)
        which = tf.random.stateless_uniform(
            [], maxval=pieces, dtype=tf.int32, seed=tf.random.split(seed)[1]
        )
        return {"targets": tokens[which * length : (which + 1) * length]}

    return select(_without_empty(dataset))


def merge_documents(dataset: tf.data.Dataset, *, count: int = MERGED_DOCUMENTS) -> tf.data.Dataset:
    """Joins every `count` documents, so that pieces of one length leave little over."""
    return dataset.ragged_batch(count).map(
        lambda record: {"targets": record["targets"].flat_values},
        num_parallel_calls=tf.data.AUTOTUNE,
    )


def split_tokens(dataset: tf.data.Dataset, *, length: int) -> tf.data.Dataset:
    """Cuts each document into pieces of `length` tokens; its last one may be shorter."""

    @seqio.map_over_dataset(num_seeds=1)
    def cut(record: Record, seed: Seed) -> tf.data.Dataset:
        del seed  # Asked for only because the original does: the next step gets the same seed then.
        tokens = record["targets"]
        starts = tf.data.Dataset.range(0, tf.size(tokens, tf.int64), length)
        return starts.map(lambda start: {"targets": tokens[start : start + length]})

    return cut(_without_empty(dataset)).flat_map(lambda pieces: pieces)


def denoise(
    dataset: tf.data.Dataset,
    output_features: Features,
    *,
    mask: Mask,
    inputs: Write,
    targets: Write,
) -> tf.data.Dataset:
    """Draws which tokens are hidden, and writes inputs and targets of them (see `noise`)."""
    vocabulary = output_features["targets"].vocabulary

    @seqio.map_over_dataset(num_seeds=1)
    def write(record: Record, seed: Seed) -> dict[str, tf.Tensor]:
        tokens = record["targets"]
        # The other seeds are of writers that draw; none of ours does.
        hidden = mask(tf.size(tokens), tf.random.split(seed, 6)[:2])
        return {
            "inputs": inputs(tokens, hidden, vocabulary),
            "targets": targets(tokens, hidden, vocabulary),
        }

    return write(dataset)


def _pieces(
    dataset: tf.data.Dataset, sequence_length: Lengths, output_features: Features
) -> tf.data.Dataset:
    room = _room(sequence_length, output_features, "inputs")
    return split_tokens(select_random_chunk(dataset), length=room)


def _room(sequence_length: Lengths, output_features: Features, feature: str) -> int:
    """How many tokens fit before the end token, if there is one."""
    return _length(sequence_length, feature) - int(output_features[feature].add_eos)


def _length(sequence_length: Lengths, feature: str) -> int:
    if not sequence_length or sequence_length.get(feature) is None:
        raise ConfigError(
            f"This task cuts text into pieces, so it needs the length of its {feature!r}: set "
            f"`TASK_FEATURE_LENGTHS`, for example {{'inputs': 512, 'targets': 114}}."
        )
    return sequence_length[feature]


def _without_empty(dataset: tf.data.Dataset) -> tf.data.Dataset:
    return dataset.filter(lambda record: tf.size(record["targets"]) > 0)
