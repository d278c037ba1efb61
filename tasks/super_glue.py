"""SuperGLUE: eight harder tasks, its diagnostic sets AX-b and AX-g, and pronouns to train for WSC.

`super_glue_boolq_v102` and its like in all forms of `registration`, over version 1.0.2 of TFDS.
Formats are T5's (t5/data/glue_utils.py), names the original's (prompt_tuning/data/super_glue.py).
"""

import functools
import itertools

import seqio

from . import metrics, postprocessors, preprocessors, qa_metrics
from .benchmarks import DataSet, classes, sentinels
from .registration import FORMS, MODELS, TextTask, register, register_mixture
from .samples import Samples

VERSION = "1.0.2"
TRUTH = ("False", "True")
ENTAILMENT = ("entailment", "not_entailment")
NLI_KEYS = ("premise", "hypothesis")

_MULTIRC_FORMAT = (
    "multirc question: {question} answer: {answer} paragraph: {paragraph}"  # in this order
)
_ROWS = (
    classes("boolq", ("passage", "question"), TRUTH),
    classes(
        "cb",
        NLI_KEYS,
        ("entailment", "contradiction", "neutral"),
        metrics=(metrics.mean_3class_f1, metrics.accuracy),
    ),
    classes("copa", ("choice1", "choice2", "premise", "question"), ("choice1", "choice2")),
    DataSet(
        config="multirc",
        head="multirc",
        text=(
            seqio.map_over_dataset(
                functools.partial(
                    preprocessors.multirc, text_format=_MULTIRC_FORMAT, label_names=TRUTH
                )
            ),
        ),
        postprocess=functools.partial(postprocessors.multirc, label_names=TRUTH),
        metrics=(metrics.multirc_f1, metrics.multirc_exact_match),
        label_names=TRUTH,
    ),
    DataSet(
        config="record",
        head="record",
        text=(preprocessors.record,),
        postprocess=postprocessors.record,
        metrics=(functools.partial(metrics.first_of_each_group, metric=qa_metrics.squad),),
    ),
    classes("rte", NLI_KEYS, ENTAILMENT),
    # Where in the sentences the word stands is left out.
    classes("wic", ("sentence1", "sentence2", "word"), TRUTH),
    classes(
        "axb",
        NLI_KEYS,
        ENTAILMENT,
        head="rte",
        metrics=(),
        splits=("test",),
        names={
            "premise": "sentence1",
            "hypothesis": "sentence2",
            "label": "label",
            "idx": "idx",
        },
    ),
    classes("axg", NLI_KEYS, ENTAILMENT, head="rte", metrics=(), splits=("test",)),
)
SUPER_GLUE = {row.config: row for row in _ROWS}
SENTINELS = sentinels([*(row.head for row in _ROWS), "wsc"])

# The examples of the train splits; for WSC those whose noun is the right one.
SIZES = {
    "dpr_v001_simple": 1_322.0,
    "super_glue_wsc_v102_simple_train": 259.0,
    "super_glue_wsc_v102_simple_eval": 0.0,
    "super_glue_boolq_v102": 9_427.0,
    "super_glue_cb_v102": 250.0,
    "super_glue_copa_v102": 400.0,
    "super_glue_multirc_v102": 27_243.0,
    "super_glue_record_v102": 138_854.0,
    "super_glue_rte_v102": 2_490.0,
    "super_glue_wic_v102": 5_428.0,
}

_WSC_TEXT = seqio.map_over_dataset(preprocessors.wsc_simple)

TASKS = (
    *(
        row.task(
            f"super_glue_{row.config}_v102",
            source=f"super_glue/{row.config}:{VERSION}",
            index=SENTINELS[row.head],
        )
        for row in _ROWS
    ),
    # WSC asks whether a pronoun means a noun. T5 writes the noun instead, so it learns from the
    # right nouns only, and what it writes is compared with the noun asked about.
    TextTask(
        name="super_glue_wsc_v102_simple_train",
        source=f"super_glue/wsc.fixed:{VERSION}",
        splits=("train",),
        text=(functools.partial(preprocessors.with_label, label=1), _WSC_TEXT),
        index=SENTINELS["wsc"],
    ),
    TextTask(
        name="super_glue_wsc_v102_simple_eval",
        source=f"super_glue/wsc.fixed:{VERSION}",
        splits=("validation", "test"),
        text=(_WSC_TEXT,),
        postprocess=postprocessors.wsc_simple,
        metrics=(metrics.accuracy,),
        samples=Samples(title="wsc"),
        index=SENTINELS["wsc"],
    ),
    # Training on it helps WSC (Kocijan et al., 2019, arXiv 1905.06290).
    TextTask(
        name="dpr_v001_simple",
        source="definite_pronoun_resolution:1.1.0",
        splits=("train", "test"),
        text=(seqio.map_over_dataset(preprocessors.definite_pronoun_resolution),),
        postprocess=postprocessors.identity,
        metrics=(metrics.accuracy,),
        samples=Samples(title="dpr"),
        index=SENTINELS["wsc"],
    ),
)


def _register_mixtures() -> list[str]:
    names = []
    for model, form, suffix in itertools.product(MODELS, FORMS, ("", "_examples")):
        wsc = f"{model}{form}super_glue_wsc"
        # Nobody looks at answers to what is trained on; the original names them so nevertheless.
        train = f"{wsc}_v102_simple_train{suffix if form else ''}"
        members = [train, f"{wsc}_v102_simple_eval{suffix}"]
        names.append(register_mixture(f"{wsc}_and_dev_v102_simple{suffix}", members))

    dpr, *others = SIZES
    plain = SIZES | dict.fromkeys(("super_glue_axb_v102", "super_glue_axg_v102"), 0.0)
    names.append(register_mixture("super_glue_v102_proportional", plain))
    start, end = "task_index_super_glue", "v102_examples_proportional"
    names.append(register_mixture(f"{start}_{end}", _task_index_rates(others)))
    names.append(register_mixture(f"{start}_with_dpr_{end}", _task_index_rates([dpr, *others])))
    return names


def _task_index_rates(names: list[str]) -> dict[str, float]:
    def member(name: str) -> str:
        # What is trained on only has no answers to show.
        return f"task_index_{name}" + ("" if name.endswith("_train") else "_examples")

    return {member(name): SIZES[name] for name in names}


NAMES = register(*TASKS)
MIXTURES = _register_mixtures()
