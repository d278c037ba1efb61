"""QQP and MRPC judged by a model of the other one, which has other words for the same classes.

`glue_mrpc_from_qqp_v002` is MRPC's validation split, and takes "duplicate" for "equivalent"; its
`_zeroshot_` mixture trains on QQP (prompt_tuning/data/glue_transfer.py).
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


def _tasks(source: str, target: str) -> list[TextTask]:
    row = GLUE[target]
    old, new = WORDS[source, target]
    name = f"glue_{target}_from_{source}_v002"

    def task(name: str, postprocess, metrics) -> TextTask:
        return row.task(
            name,
            source=f"glue/{target}:{VERSIONS['v002']}",
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
    for model, form, (source, target), examples in itertools.product(
        MODELS, FORMS, WORDS, ("", "_examples")
    ):
        start = f"{model}{form}glue"
        transfer = f"{start}_{target}_from_{source}"
        members = [f"{start}_{source}_v002", f"{transfer}_v002{examples}"]
        names.append(register_mixture(f"{transfer}_zeroshot_v002{examples}", members))
    return names


TASKS = tuple(task for pair in WORDS for task in _tasks(*pair))
NAMES = register(*TASKS)
MIXTURES = _register_mixtures()
