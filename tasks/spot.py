"""The source tasks of SPoT, whose prompts other tasks start from (Vu et al., 2021).

    spot_glue_X_v200      GLUE; MNLI in three tasks and the mixture of them
    spot_mrqa_X_v100      questions about a text
    spot_X_vV             inference: ANLI, DocNLI, SNLI; summaries: AESLC, BillSum, Gigaword ...

Their inputs begin with the name of the task (prompt_tuning/spot/data).
"""

import functools
from collections.abc import Sequence

import seqio
import tensorflow as tf

from . import metrics, qa_metrics, qa_text, rouge
from .glue import GLUE, NLI
from .preprocessors import UNKNOWN_LABEL, Record
from .registration import TRAIN_VALIDATION_TEST, TextTask, register, register_mixture
from .summarization import to_text


def classification(
    record: Record, *, task_name: str, keys: Sequence[str], label_names: Sequence[str]
) -> dict[str, tf.Tensor]:
    """Writes `TASK KEY: TEXT KEY: TEXT`, with one space for each run of white space.

    The label is a number, or its decimal digits; -1 is unknown.
    """
    label = record["label"]
    if label.dtype == tf.string:
        label = tf.strings.to_number(label, tf.int64)
    pieces = [piece for key in keys for piece in (f"{key}:", record[key])]
    return {
        "inputs": qa_text.join_words([task_name, *pieces]),
        # The unknown label stands first, where -1 + 1 finds it.
        "targets": tf.constant([UNKNOWN_LABEL, *label_names])[label + 1],
    }


PLAIN = {"models": ("",), "forms": ("",), "examples": (False,)}
_task = functools.partial(TextTask, **PLAIN)

GLUE_NAMES = ("cola", "sst2", "mrpc", "qqp", "stsb", "qnli", "rte", "wnli")
MNLI_SPLITS = {
    "train": ("train",),
    "validation_matched": {"validation": "validation_matched"},
    "validation_mismatched": {"validation": "validation_mismatched"},
}
MRQA_NAMES = (
    "squad",
    "news_qa",
    "trivia_qa",
    "search_qa",
    "hotpot_qa",
    "natural_questions",
)
# The name, TFDS's own, the texts, and the labels 0, 1 ...
NLI_SETS = (
    ("anli_r1_v010", "anli/r1:0.1.0", ("hypothesis", "context"), NLI),
    ("anli_r2_v010", "anli/r2:0.1.0", ("hypothesis", "context"), NLI),
    ("anli_r3_v010", "anli/r3:0.1.0", ("hypothesis", "context"), NLI),
    (
        "doc_nli_v100",
        "doc_nli:1.0.0",
        ("hypothesis", "premise"),
        ("not_entailment", "entailment"),
    ),
    ("snli_v110", "snli:1.1.0", ("hypothesis", "premise"), NLI),
)
# The name, the text, and its summary.
SUMMARIES = (
    ("aeslc:1.0.0", "email_body", "subject_line"),
    ("billsum:3.0.0", "text", "summary"),
    ("gigaword:1.2.0", "document", "summary"),
    ("cnn_dailymail:3.2.0", "article", "highlights"),
    ("multi_news:1.0.0", "document", "summary"),
    ("samsum:1.0.0", "dialogue", "summary"),
    ("newsroom:1.0.0", "text", "summary"),
)


def _named(source: str) -> tuple[str, str]:
    """Returns the name of a data set, and with its version: ("samsum", "samsum_v100")."""
    name, _, version = source.partition(":")
    return name, f"{name}_v{version.replace('.', '')}"


TASKS = (
    *(
        GLUE[name].task(f"spot_glue_{name}_v200", source=f"glue/{name}:2.0.0", **PLAIN)
        for name in GLUE_NAMES
    ),
    *(
        GLUE["mnli"].task(
            f"spot_glue_mnli_{part}_v200", source="glue/mnli:2.0.0", splits=splits, **PLAIN
        )
        for part, splits in MNLI_SPLITS.items()
    ),
    *(
        _task(
            name=f"spot_mrqa_{name}_v100",
            source=f"mrqa/{name}:1.0.0",
            splits=("train", "validation"),
            text=(seqio.map_over_dataset(functools.partial(qa_text.mrqa, task_name=name)),),
            postprocess=qa_metrics.all_answers,
            metrics=(qa_metrics.squad,),
        )
        for name in MRQA_NAMES
    ),
    *(
        _task(
            name=f"spot_{name}",
            source=source,
            text=(
                seqio.map_over_dataset(
                    functools.partial(
                        classification,
                        task_name=name.rpartition("_v")[0],
                        keys=keys,
                        label_names=label_names,
                    )
                ),
            ),
            metrics=(metrics.accuracy,),
        )
        for name, source, keys, label_names in NLI_SETS
    ),
    *(
        _task(
            name=f"spot_{_named(source)[1]}",
            source=source,
            splits=("train", "test", "ca_test")
            if source.startswith("billsum")
            else TRAIN_VALIDATION_TEST,
            text=(to_text(text, summary, prefix=f"{_named(source)[0]} summarize:"),),
            metrics=(rouge.rouge,),
        )
        for source, text, summary in SUMMARIES
    ),
)

NAMES = register(*TASKS)
MIXTURES = [
    register_mixture(
        "spot_glue_mnli_and_dev_v200", [f"spot_glue_mnli_{part}_v200" for part in MNLI_SPLITS]
    )
]
