"""Which tokens of a text are hidden, and what stands in their place.

A mask is True where a token is hidden. The originals are in t5/data/preprocessors.py; with their
seeds the draws are theirs.
"""

import seqio
import tensorflow as tf

# Masks: of a length and two seeds.


def random_spans(
    length: tf.Tensor,
    seeds: tf.Tensor,
    *,
    noise_density: float = 0.15,
    mean_span_length: float = 3.0,
) -> tf.Tensor:
    """Hides spans of random lengths: how many tokens and how many spans follows from the length.

    Shown and hidden stretches alternate and have at least one token; a text begins with a shown one
    and ends with a hidden one. A text of one token is shown.
    """
    extended = tf.maximum(length, 2)
    hidden = tf.clip_by_value(_rounded(extended, noise_density), 1, extended - 1)
    shown = extended - hidden
    spans = tf.clip_by_value(_rounded(hidden, 1 / mean_span_length), 1, shown)
    stretches = tf.stack(
        [_segment_lengths(shown, spans, seeds[1]), _segment_lengths(hidden, spans, seeds[0])],
        axis=1,
    )
    is_hidden = tf.tile(tf.constant([False, True]), [spans])
    return tf.repeat(is_hidden, tf.reshape(stretches, [-1]))[:length]


def random_tokens(length: tf.Tensor, seeds: tf.Tensor, *, noise_density: float = 0.15) -> tf.Tensor:
    """Hides each token with the same chance."""
    return tf.random.stateless_uniform([length], seed=seeds[0]) < noise_density


def random_prefix(length: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
    """Hides the first tokens: at least one, and not all. A text of one token is shown."""
    fewest = tf.minimum(1, length - 1)
    hidden = tf.random.stateless_uniform(
        [], minval=fewest, maxval=length, dtype=tf.int32, seed=seeds[0]
    )
    return tf.range(length) < hidden


# What is written: of tokens, a mask and the vocabulary.


def noise_to_sentinels(
    tokens: tf.Tensor, noise: tf.Tensor, vocabulary: seqio.Vocabulary
) -> tf.Tensor:
    """Puts one sentinel in the place of each hidden span, from the last id downwards.

    Fails where there are more spans than the vocabulary has sentinels: words would stand there.
    """
    first = noise & ~tf.concat([[False], noise[:-1]], axis=0)
    count = tf.cumsum(tf.cast(first, tokens.dtype))
    written = tf.where(first, vocabulary.vocab_size - count, tokens)
    return tf.boolean_mask(_checked(written, first, vocabulary), first | ~noise)


def rest_to_sentinels(
    tokens: tf.Tensor, noise: tf.Tensor, vocabulary: seqio.Vocabulary
) -> tf.Tensor:
    """Puts one sentinel in the place of each shown span: the targets of `noise_to_sentinels`."""
    return noise_to_sentinels(tokens, ~noise, vocabulary)


def drop_noise(tokens: tf.Tensor, noise: tf.Tensor, vocabulary: seqio.Vocabulary) -> tf.Tensor:
    """Leaves out what is hidden."""
    del vocabulary
    return tf.boolean_mask(tokens, ~noise)


def drop_rest(tokens: tf.Tensor, noise: tf.Tensor, vocabulary: seqio.Vocabulary) -> tf.Tensor:
    """Leaves out what is shown."""
    del vocabulary
    return tf.boolean_mask(tokens, noise)


def everything(tokens: tf.Tensor, noise: tf.Tensor, vocabulary: seqio.Vocabulary) -> tf.Tensor:
    """Leaves the text as it is."""
    del noise, vocabulary
    return tokens


def _rounded(count: tf.Tensor, share: float) -> tf.Tensor:
    return tf.cast(tf.round(tf.cast(count, tf.float32) * share), tf.int32)


def _segment_lengths(items: tf.Tensor, segments: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Cuts `items` into non-empty segments; every way of doing so is equally likely."""
    cuts = seqio.stateless_shuffle(tf.cast(tf.range(items - 1) < segments - 1, tf.int32), seed)
    segment = tf.cumsum(tf.concat([[0], cuts], axis=0))
    return tf.math.bincount(segment, minlength=segments)


def _checked(written: tf.Tensor, sentinels: tf.Tensor, vocabulary: seqio.Vocabulary) -> tf.Tensor:
    # A vocabulary whose file holds its sentinels does not say how many they are.
    if not vocabulary.extra_ids:
        return written
    needed = tf.reduce_sum(tf.cast(sentinels, tf.int32))
    check = tf.debugging.assert_less_equal(
        needed,
        vocabulary.extra_ids,
        "A text has more hidden spans than the vocabulary has sentinels. Use shorter 'inputs' in "
        "TASK_FEATURE_LENGTHS, longer spans or a vocabulary with more `extra_ids`.",
    )
    with tf.control_dependencies([check] if check is not None else []):
        return tf.identity(written)
