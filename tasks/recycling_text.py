"""What recycled prompts were measured on beyond GLUE's own text (prompt_tuning/recycling/data)."""

import math
from collections.abc import Mapping, Sequence

import seqio
import tensorflow as tf

from prompt_tuning.errors import ConfigError

from . import preprocessors, qa_text
from .preprocessors import Record

UNKNOWN = "UNK"


def name_label(
    record: Record, *, label_names: Sequence[str], key: str = "label", unknown: str = UNKNOWN
) -> dict[str, tf.Tensor]:
    """Puts the name of a label in the place of its number; -1 is unknown."""
    # The unknown label stands first, where -1 + 1 finds it.
    return {**record, key: tf.constant([unknown, *label_names])[record[key] + 1]}


def join_fields(
    record: Record, *, fields: Sequence[str] = ("title", "description"), output_field: str = "text"
) -> dict[str, tf.Tensor]:
    """Joins those of the fields that a record has, with one space for each run of white space."""
    there = [record[field] for field in fields if field in record]
    return {**record, output_field: qa_text.join_words(there)}


def review(record: Record, *, label_names: Sequence[str]) -> dict[str, tf.Tensor]:
    """Writes a review of IMDB as it is, and the name of its label."""
    return {
        "inputs": record["text"],
        "targets": name_label(record, label_names=label_names)["label"],
    }


def record_with_entities(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Makes one example of each record of ReCoRD, with its entities, which are the candidates."""

    def first(one: Record) -> tf.data.Dataset:
        examples = preprocessors.record(tf.data.Dataset.from_tensors(one)).take(1)
        return examples.map(lambda example: {**example, "entities": one["entities"]})

    return dataset.flat_map(first)


def entities(record: Record) -> tf.Tensor:
    """Returns the candidates of a record of ReCoRD."""
    return record["entities"]


def is_answer(record: Record) -> tf.Tensor:
    """Tells which of the candidates of a record of ReCoRD are right answers."""
    equal = record["entities"][:, None] == record["answers"][None, :]
    return tf.reduce_any(equal, axis=1)


def random_targets(
    dataset: tf.data.Dataset,
    output_features: Mapping[str, seqio.Feature],
    *,
    targets: Sequence[str],
    probs: Sequence[float] | None = None,
) -> tf.data.Dataset:
    """Draws each example's target from a few texts.

    Args:
        dataset: of tokenised examples.
        output_features: of the task.
        targets: the texts.
        probs: how likely each is; the last may be left out, and None is equally likely.

    Raises:
        ConfigError: `probs` are no probabilities of the targets.
    """
    logits = tf.math.log(tf.constant([_probabilities(targets, probs)], tf.float32))
    vocabulary = output_features["targets"].vocabulary
    tokens = tf.ragged.constant([vocabulary.encode(text) for text in targets], dtype=tf.int32)

    @seqio.map_over_dataset(num_seeds=1)
    def draw(example: Record, seed: tuple[tf.Tensor, tf.Tensor]) -> dict[str, tf.Tensor]:
        index = tf.random.stateless_categorical(logits, 1, seed)[0, 0]
        return {**example, "targets": tokens[index]}

    return draw(dataset)


def _probabilities(targets: Sequence[str], probs: Sequence[float] | None) -> list[float]:
    shares = [1 / len(targets)] * len(targets) if probs is None else list(probs)
    if len(shares) == len(targets) - 1:
        shares.append(1 - math.fsum(shares))
    positive = all(0 < share <= 1 for share in shares)
    if len(shares) != len(targets) or not positive or not math.isclose(math.fsum(shares), 1):
        raise ConfigError(
            f"random_targets(targets={list(targets)}, probs={probs}): expected {len(targets)} "
            "probabilities above 0 that add up to 1, of which the last may be left out."
        )
    return shares
