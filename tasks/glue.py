"""GLUE: nine tasks about sentences and pairs of them, and the diagnostic set of MNLI, `ax`.

`glue_sst2_v200` and its like in all forms of `registration`: `_v002` reads version 1.0.0 of TFDS,
`_v200` version 2.0.0. Formats are T5's (t5/data/glue_utils.py), names the original's
(prompt_tuning/data/glue.py).
"""

import itertools
from collections.abc import Sequence
from typing import Any

import seqio

from . import metrics, preprocessors
from .benchmarks import DataSet, classes, sentinels
from .postprocessors import string_to_float
from .registration import FORMS, MODELS, register, register_mixture

# The versions of the task names, and of TFDS.
VERSIONS = {"v002": "1.0.0", "v200": "2.0.0"}
PAIR = ("sentence1", "sentence2")
NLI = ("entailment", "neutral", "contradiction")
ENTAILMENT = ("entailment", "not_entailment")
F1_AND_ACCURACY = (metrics.f1_score_with_invalid, metrics.accuracy)
MNLI_SPLITS = (
    "train",
    "validation_matched",
    "validation_mismatched",
    "test_matched",
    "test_mismatched",
)


def _mnli(config: str, splits: Sequence[str], **options: Any) -> DataSet:
    return classes(config, ("premise", "hypothesis"), NLI, head="mnli", splits=splits, **options)


_ROWS = (
    classes(
        "cola",
        ("sentence",),
        ("unacceptable", "acceptable"),
        metrics=(metrics.matthews_corrcoef,),
    ),
    classes("sst2", ("sentence",), ("negative", "positive")),
    classes("mrpc", PAIR, ("not_equivalent", "equivalent"), metrics=F1_AND_ACCURACY),
    classes(
        "qqp",
        ("question1", "question2"),
        ("not_duplicate", "duplicate"),
        metrics=F1_AND_ACCURACY,
    ),
    DataSet(
        config="stsb",
        head="stsb",
        text=(seqio.map_over_dataset(preprocessors.stsb),),
        postprocess=string_to_float,
        metrics=(metrics.pearson_corrcoef, metrics.spearman_corrcoef),
    ),
    _mnli("mnli", MNLI_SPLITS),
    _mnli("mnli_matched", ("validation", "test")),
    _mnli("mnli_mismatched", ("validation", "test")),
    _mnli("ax", ("test",), metrics=()),
    classes("qnli", ("question", "sentence"), ENTAILMENT),
    classes("rte", PAIR, ENTAILMENT),
    classes("wnli", PAIR, ("not_entailment", "entailment")),
)
GLUE = {row.config: row for row in _ROWS}
SENTINELS = sentinels([row.head for row in _ROWS])

# The examples of the train splits; the tasks of one benchmark may be mixed at these rates. WNLI is
# left out, as in T5's own mixture.
SIZES = {
    "cola": 8_551.0,
    "sst2": 67_349.0,
    "mrpc": 3_668.0,
    "qqp": 363_849.0,
    "stsb": 5_749.0,
    "mnli": 392_702.0,
    "qnli": 104_743.0,
    "rte": 2_490.0,
    "mnli_mismatched": 0.0,
    "mnli_matched": 0.0,
    "ax": 0.0,
}

TASKS = tuple(
    row.task(
        f"glue_{row.config}_{version}",
        source=f"glue/{row.config}:{tfds_version}",
        index=SENTINELS[row.head],
    )
    for version, tfds_version in VERSIONS.items()
    for row in _ROWS
)


def _register_mixtures() -> list[str]:
    """Registers MNLI with both of its validation splits, and all of GLUE at its sizes.

    TFDS has them as `validation_matched` and `validation_mismatched`, which no other task has; two
    tasks of their own call each `validation`, so that both are evaluated on.
    """
    names = []
    for model, form, version, examples in itertools.product(
        MODELS, FORMS, VERSIONS, ("", "_examples")
    ):
        start, end = f"{model}{form}glue", f"{version}{examples}"
        parts = ("mnli", "mnli_matched", "mnli_mismatched")
        members = [f"{start}_{part}_{end}" for part in parts]
        names.append(register_mixture(f"{start}_mnli_and_dev_{end}", members))
    rates = {f"glue_{config}_v002": size for config, size in SIZES.items()}
    return [*names, register_mixture("glue_v002_proportional", rates)]


NAMES = register(*TASKS)
MIXTURES = _register_mixtures()
