"""From a record of SQuAD or MRQA to the text a T5 reads and the answer it should write.

Questions, contexts and answers have spaces around their punctuation, as T5 was trained
(t5/data/preprocessors.py `squad`); the metric takes the punctuation away again.
"""

from collections.abc import Sequence

import tensorflow as tf

from .preprocessors import Record

TSV_COLUMNS = ("id", "context", "question", "answer", "answers")


def pad_punctuation(text: tf.Tensor) -> tf.Tensor:
    """Puts a space on either side of ASCII punctuation, then makes one of several spaces."""
    return one_space(tf.strings.regex_replace(text, r"([[:punct:]])", r" \1 "))


def one_space(text: tf.Tensor) -> tf.Tensor:
    """Makes one space of each run of white space."""
    return tf.strings.regex_replace(text, r"\s+", " ")


def join_words(pieces: Sequence[str | tf.Tensor]) -> tf.Tensor:
    """Joins texts with a space, and makes one space of each run of white space."""
    return one_space(tf.strings.join(pieces, separator=" "))


def squad(record: Record, *, with_context: bool = True) -> dict[str, tf.Tensor]:
    """Writes a record of SQuAD: `question: Q context: C`, or `squad trivia question: Q`.

    The target is the first answer; all of them stay as `answers`, for the metric.
    """
    made = {"id": record["id"]} | _question(record, record["answers"]["text"])
    if not with_context:
        made["inputs"] = join_words(["squad trivia question:", made["question"]])
    return made


def squad_span(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Writes records of SQuAD as in `squad`, with `start: 3 end: 6` as target.

    Numbers count what lies between single spaces of the context, from 0, once its punctuation is
    padded and then all but ASCII letters, digits and `_` is a space; both are part of the answer.
    Records whose answer does not stand among these words are left out.
    """
    return dataset.map(_span, num_parallel_calls=tf.data.AUTOTUNE).filter(
        lambda record: record["targets"] != ""
    )


def mrqa(record: Record, *, task_name: str | None = None) -> dict[str, tf.Tensor]:
    """Writes a record of MRQA as one of SQuAD, with the task's name before it if there is one.

    The target is the first answer; all of them stay as `answers`, for the metric.
    """
    made = {"idx": record["qid"]} | _question(record, record["answers"])
    if task_name is not None:
        made["inputs"] = join_words([task_name, made["inputs"]])
    return made


def tsv_to_qa(
    line: tf.Tensor,
    *,
    field_delim: str = "\t",
    answer_delim: str = "|||",
    field_names: Sequence[str] = TSV_COLUMNS,
) -> dict[str, tf.Tensor]:
    """Writes a line of a table as a record of SQuAD; all right answers stand in one field.

    Fields are never quoted. For the user's own tasks (the original's `preprocess_tsv_to_qa`).
    """
    fields = tf.io.decode_csv(
        line, [""] * len(field_names), field_delim=field_delim, use_quote_delim=False
    )
    record: dict[str, tf.Tensor] = dict(zip(field_names, fields, strict=True))
    answer = pad_punctuation(record["answer"])
    made = _question(record, tf.strings.split(record["answers"], answer_delim))
    return record | made | {"answer": answer, "targets": answer}


def _question(record: Record, answers: tf.Tensor) -> dict[str, tf.Tensor]:
    question, context = (pad_punctuation(record[key]) for key in ("question", "context"))
    padded = pad_punctuation(answers)
    return {
        "inputs": join_words(["question:", question, "context:", context]),
        "targets": padded[0],
        "question": question,
        "context": context,
        "answers": padded,
    }


def _span(record: Record) -> dict[str, tf.Tensor]:
    made = squad(record)
    # An answer that begins or ends with punctuation has a space there that may be no word's.
    words, wanted = _words(made["context"]), _words(tf.strings.strip(made["targets"]))
    places = tf.size(words) - tf.size(wanted) + 1
    windows = tf.range(tf.maximum(places, 0))[:, None] + tf.range(tf.size(wanted))[None, :]
    found = tf.where(tf.reduce_all(tf.gather(words, windows) == wanted, axis=1))[:, 0]
    first = tf.concat([found, [-1]], axis=0)[0]
    last = first + tf.size(wanted, tf.int64) - 1
    span = tf.strings.join(["start: ", tf.as_string(first), " end: ", tf.as_string(last)])
    return made | {"targets": span if first >= 0 else ""}


def _words(text: tf.Tensor) -> tf.Tensor:
    return tf.strings.split(tf.strings.regex_replace(text, r"\W", " "), " ")
