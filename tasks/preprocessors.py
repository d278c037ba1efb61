"""From a record of a dataset to the text a T5 reads and the text it should write."""

import string
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import seqio
import tensorflow as tf

from prompt_tuning.data.task_split import UNKNOWN_LABEL

# Features by name: tensors, or features by name again.
Record = Mapping[str, Any]


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


def glue(record: Record, *, text_format: str, label_names: Sequence[str]) -> dict[str, tf.Tensor]:
    """Writes a record of GLUE or SuperGLUE as text, and keeps no more of it than its `idx`."""
    written = classification(record, text_format=text_format, label_names=label_names)
    return {name: written[name] for name in ("idx", "inputs", "targets")}


def stsb(record: Record) -> dict[str, tf.Tensor]:
    """Writes two sentences, and how alike they are as a number from 0.0 to 5.0 in fifths."""
    inputs = ["stsb sentence1:", record["sentence1"], "sentence2:", record["sentence2"]]
    fifths = tf.round(record["label"] * 5) / 5
    return {
        "idx": record["idx"],
        "inputs": tf.strings.join(inputs, separator=" "),
        "targets": tf.as_string(fifths, precision=1),
    }


def rename(record: Record, *, names: Mapping[str, str]) -> dict[str, tf.Tensor]:
    """Returns a record with other names for its features: `names` maps the new ones to the old."""
    return {new: record[old] for new, old in names.items()}


def multirc(
    record: Record, *, text_format: str, label_names: Sequence[str]
) -> dict[str, tf.Tensor]:
    """Writes a record of MultiRC as text without HTML, and keeps its three indices apart."""
    written = classification(record, text_format=text_format, label_names=label_names)
    spaced = tf.strings.regex_replace(written["inputs"], "<br>", " ")
    return {
        **{f"idx/{part}": record["idx"][part] for part in ("paragraph", "question", "answer")},
        "inputs": tf.strings.regex_replace(spaced, "</?b>", ""),
        "targets": written["targets"],
    }


def record(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Makes of each record of ReCoRD one example for each right answer, one if nobody knows any."""

    def examples(one: Record) -> tf.data.Dataset:
        # Highlights are lines of their own; a full stop parts them where nothing else does.
        ended = tf.strings.regex_replace(one["passage"], r"([.?!\"'])\n@highlight\n", r"\1 ")
        passage = tf.strings.regex_replace(ended, r"\n@highlight\n", ". ")
        entities = tf.strings.reduce_join(one["entities"], separator=", ")
        pieces = ["record query:", one["query"], "entities:", entities, "passage:", passage]
        answers = one["answers"]
        targets = tf.cond(
            tf.size(answers) > 0, lambda: answers, lambda: tf.constant([UNKNOWN_LABEL])
        )
        example = {
            "idx/passage": one["idx"]["passage"],
            "idx/query": one["idx"]["query"],
            "inputs": tf.strings.join(pieces, separator=" "),
            "answers": answers,
        }
        return tf.data.Dataset.from_tensor_slices(targets).map(
            lambda target: {**example, "targets": target}
        )

    return dataset.flat_map(examples)


# Two records of WSC in which the word at `span2_index` is not the pronoun alone, and what should
# stand before and after it.
_PONY = (
    "The boy continued to whip the pony , and eventually the pony threw him over. "
    'John laughed out quite loud. "Good for '
)
_PEBBLE = (
    "When they had eventually calmed down a bit , and had gotten home, Mr. Farley put the magic "
    "pebble in an iron safe . Some day they might want to use "
)
_WISH = " , but really for now, what more could they wish for?"
_WSC_MENDED = {
    f'{_PONY}him," he said. ': (_PONY, ' ," he said.'),
    f"{_PEBBLE}it{_WISH}": (_PEBBLE, _WISH),
}


def wsc_simple(record: Record) -> dict[str, tf.Tensor]:
    """Writes a record of WSC with stars around its pronoun, and what that may mean as targets.

    Whether it does mean that stays in `label`. The words are those between single spaces.
    """
    pronoun, text = record["span2_text"], record["text"]
    words = tf.strings.split(text, sep=" ")
    number = tf.cast(record["span2_index"], tf.int32)
    starred = tf.strings.join(["*", pronoun, "*"])
    marked = tf.strings.reduce_join(
        tf.concat([words[:number], [starred], words[number + 1 :]], axis=0), separator=" "
    )
    mended = tf.constant(False)
    for known, (before, after) in _WSC_MENDED.items():
        marked = tf.where(text == known, tf.strings.join([before, starred, after]), marked)
        mended |= text == known
    is_there = tf.debugging.Assert(
        mended | (tf.gather(words, number) == pronoun),
        ["The word at `span2_index` is not `span2_text`:", text, number, pronoun],
    )
    with tf.control_dependencies([is_there] if is_there is not None else []):
        inputs = tf.strings.join(["wsc:", marked], separator=" ")
    return {
        "idx": record["idx"],
        "label": record["label"],
        "inputs": inputs,
        "targets": record["span1_text"],
    }


def with_label(dataset: tf.data.Dataset, *, label: int) -> tf.data.Dataset:
    """Keeps the records with this `label` and leaves out the others."""
    return dataset.filter(lambda record: tf.equal(tf.cast(record["label"], tf.int32), label))


def definite_pronoun_resolution(record: Record) -> dict[str, tf.Tensor]:
    """Writes a sentence with stars around its pronoun, the first one if there are several."""
    pattern = tf.strings.join([" (", record["pronoun"], r")( |\.|,)"])
    starred = tf.strings.regex_replace(
        record["sentence"], pattern, r" *\1*\2", replace_global=False
    )
    return {
        "inputs": tf.strings.join(["wsc:", starred], separator=" "),
        "targets": record["candidates"][record["label"]],
    }


def remove_first_text_token(record: Record) -> dict[str, tf.Tensor]:
    """Takes the first word and its space, the task's name, off the inputs.

    The paper's prompts stand in the place of the task's name, so its tasks are `taskless`
    (prompt_tuning/data/preprocessors.py).
    """
    inputs = tf.strings.regex_replace(record["inputs"], r"^[^ ]* ", "", replace_global=False)
    return {**record, "inputs": inputs}


# The same for a whole data set, as a step of a task.
taskless = seqio.map_over_dataset(remove_first_text_token)


def prepend_sentinel(
    dataset: tf.data.Dataset,
    output_features: Mapping[str, seqio.Feature],
    *,
    index: int,
    feature: str = "inputs",
) -> tf.data.Dataset:
    """Puts the sentinel `<extra_id_index>`, by its id, before the tokens of a feature.

    So the tasks of a mixture tell the model which one they are
    (prompt_tuning/data/preprocessors.py `add_sentinel_to_beginning`).
    """
    sentinel = output_features[feature].vocabulary.vocab_size - 1 - index

    def prepend(record: Record) -> dict[str, tf.Tensor]:
        tokens = record[feature]
        return {**record, feature: tf.concat([[tf.cast(sentinel, tokens.dtype)], tokens], axis=0)}

    return dataset.map(prepend, num_parallel_calls=tf.data.AUTOTUNE)
