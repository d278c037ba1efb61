"""Summaries of news: XSum and CNN/DailyMail.

    {"", "mt5_", "byt5_"} {xsum_v110 | cnn_dailymail_v310} _examples

(prompt_tuning/data/summarization.py), and T5's `cnn_dailymail_v002` (t5/data/tasks.py).
"""

import functools

import seqio
import tensorflow as tf

from . import postprocessors, rouge, samples
from .preprocessors import Record
from .registration import TextTask, register


def text_to_text(
    record: Record, *, source_key: str, target_key: str, prefix: str
) -> dict[str, tf.Tensor]:
    """Writes `PREFIX SOURCE` as inputs and another field as targets, both as they are.

    >>> text_to_text({"document": D, "summary": S}, source_key="document", target_key="summary",
    ...              prefix="summarize:")
    """
    return {
        "inputs": tf.strings.join([prefix, record[source_key]], separator=" "),
        "targets": record[target_key],
    }


def to_text(source_key: str, target_key: str, prefix: str = "summarize:"):
    """Returns `text_to_text` as a step of a task."""
    return seqio.map_over_dataset(
        functools.partial(text_to_text, source_key=source_key, target_key=target_key, prefix=prefix)
    )


_with_examples = functools.partial(
    TextTask,
    forms=("",),
    examples=(True,),
    postprocess=postprocessors.identity,
    metrics=(rouge.rouge,),
)
_news = to_text("article", "highlights")

TASKS = (
    _with_examples(
        name="xsum_v110",
        source="xsum:1.1.0",
        text=(to_text("document", "summary"),),
        # Every summary differs from the one that is given: a sample of them is enough.
        samples=samples.Samples(title="xsum", wrong=False),
    ),
    _with_examples(
        name="cnn_dailymail_v310",
        source="cnn_dailymail:3.1.0",
        text=(_news,),
        samples=samples.Samples(title="cnn_dailymail", wrong=False),
    ),
    TextTask(
        name="cnn_dailymail_v002",
        source="cnn_dailymail:3.4.0",
        text=(_news,),
        metrics=(rouge.rouge,),
        models=("",),
        forms=("",),
        examples=(False,),
    ),
)

NAMES = register(*TASKS)
