"""Running text of the web: C4, with T5's objectives and BART's.

c4_v220_{span_corruption | iid_denoising | prefix_lm | full_lm} (t5/data/tasks.py) and
c4_v220_bart_{text_infilling | token_deletion} (prompt_tuning/data/c4.py).
"""

import functools
from collections.abc import Mapping

import seqio
import tensorflow as tf

from . import c4_objectives, features
from .preprocessors import Record
from .registration import TextTask, register


def text_as_targets(record: Record) -> dict[str, tf.Tensor]:
    """Writes the text of a web page as targets; an objective makes inputs of them later."""
    return {"inputs": tf.constant(""), "targets": record["text"]}


def without_inputs(model: str) -> Mapping[str, seqio.Feature]:
    """Returns the features of a model that only continues what it has written."""
    return {"targets": features.model_features(model)["targets"]}


c4_task = functools.partial(
    TextTask,
    source="c4/en:2.2.0",
    splits=("train", "validation"),
    text=(seqio.map_over_dataset(text_as_targets),),
    models=("",),
    forms=("",),
    examples=(False,),
)

# A piece of text is as long as the inputs may be, so only a bound on targets can trim anything.
OBJECTIVES = {
    "span_corruption": c4_objectives.span_corruption,
    "iid_denoising": c4_objectives.iid_denoising,
    "prefix_lm": c4_objectives.prefix_lm,
    "bart_text_infilling": c4_objectives.text_infilling,
    "bart_token_deletion": c4_objectives.token_deletion,
}

TASKS = (
    *(
        c4_task(
            name=f"c4_v220_{name}",
            after_tokenizing=(objective, seqio.preprocessors.append_eos_after_trim),
        )
        for name, objective in OBJECTIVES.items()
    ),
    c4_task(
        name="c4_v220_full_lm",
        # A document ends with an end token, but not every piece of one.
        after_tokenizing=(c4_objectives.full_lm,),
        output_features=without_inputs,
    ),
)

NAMES = register(*TASKS)
