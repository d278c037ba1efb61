"""From a record of a dataset to the text a T5 reads and the text it should write."""

import string
from collections.abc import Iterable, Mapping, Sequence

import tensorflow as tf

Record = Mapping[str, tf.Tensor]

# What the target says when a record has no label, as in the test splits of GLUE.
UNKNOWN_LABEL = "<unk>"


def glue_format(name: str, keys: Iterable[str]) -> str:
    """Returns the text format of a GLUE-like task, with its keys in alphabetical order.

    The form T5 was trained with (t5/data/preprocessors.py `glue`):

    >>> glue_format("mnli", ["premise", "hypothesis"])
    'mnli hypothesis: {hypothesis} premise: {premise}'
    """
    return " ".join([name, *(f"{key}: {{{key}}}" for key in sorted(keys))])


def format_keys(text_format: str) -> list[str]:
    """Returns the keys that a text format asks for.

    >>> format_keys("rte sentence1: {sentence1} sentence2: {sentence2}")
    ['sentence1', 'sentence2']
    """
    return [key for _, key, _, _ in string.Formatter().parse(text_format) if key is not None]


def classification(
    record: Record, *, text_format: str, label_names: Sequence[str], label_key: str = "label"
) -> dict[str, tf.Tensor]:
    """Writes a record as inputs, and its label, counted from 0 or -1 for unknown, as targets.

    The record's other features stay, for postprocessors and predictions.
    """
    pieces = []
    for literal, key, _, _ in string.Formatter().parse(text_format):
        pieces += [literal] if key is None else [literal, record[key]]
    # The unknown label stands first, where -1 + 1 finds it.
    names = tf.constant([UNKNOWN_LABEL, *label_names])
    return {
        **record,
        "inputs": tf.strings.join(pieces),
        "targets": names[record[label_key] + 1],
    }


def remove_first_text_token(record: Record) -> dict[str, tf.Tensor]:
    """Takes the first word and its space, the task's name, off the inputs.

    The paper's prompts stand in the place of the task's name, so its tasks are `taskless`
    (prompt_tuning/data/preprocessors.py).
    """
    inputs = tf.strings.regex_replace(record["inputs"], r"^[^ ]* ", "", replace_global=False)
    return {**record, "inputs": inputs}
