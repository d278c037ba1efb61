"""QQP and MRPC judged by a model of the other one, which has other words for the same classes.

`glue_mrpc_from_qqp_v002` is MRPC's validation split, and takes "duplicate" for "equivalent"; its
`_zeroshot_` mixture trains on QQP (prompt_tuning/data/glue_transfer.py). The original has `_v002`
alone, over GLUE 1.0.0, which today's TFDS does not build; `_v200` is the same over 2.0.0.
"""

import functools
import itertools

from .glue import GLUE, SENTINELS, VERSIONS
from .postprocessors import translated
from .registration import FORMS, MODELS, TextTask, keep_examples, register, register_mixture
from .samples import Samples

# From the source and the target to the source's word and the target's; each stands in the names of
# both classes: "not_duplicate" holds "duplicate".
WORDS = {("qqp", "mrpc"): ("duplicate", "equivalent"), ("mrpc", "qqp"): ("equivalent", "duplicate")}


def _tasks(source: str, target: str, version: str) -> list[TextTask]:
    row = GLUE[target]
    old, new = WORDS[source, target]
    name = f"glue_{target}_from_{source}_{version}"

    def task(name: str, postprocess, metrics) -> TextTask:
        return row.task(
            name,
            source=f"glue/{target}:{VERSIONS[version]}",
            splits=("validation",),
            postprocess=functools.partial(translated, postprocess, old=old, new=new),
            metrics=metrics,
            examples=(False,),
            index=SENTINELS[row.head],
        )

    # What is shown of an answer is its translation.
    shown = keep_examples(row.postprocess, row.metrics, Samples(title=target))
    return [task(name, row.postprocess, row.metrics), task(f"{name}_examples", *shown)]


def _register_mixtures() -> list[str]:
    names = []
    for model, form, (source, target), version, examples in itertools.product(
        MODELS, FORMS, WORDS, VERSIONS, ("", "_examples")
    ):
        start = f"{model}{form}glue"
        transfer = f"{start}_{target}_from_{source}"
        members = [f"{start}_{source}_{version}", f"{transfer}_{version}{examples}"]
        names.append(register_mixture(f"{transfer}_zeroshot_{version}{examples}", members))
    return names


TASKS = tuple(task for pair in WORDS for version in VERSIONS for task in _tasks(*pair, version))
NAMES = register(*TASKS)
MIXTURES = _register_mixtures()
