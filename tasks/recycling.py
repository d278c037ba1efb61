"""What recycled prompts are trained and measured on: with answers written, and with answers ranked.

    pr:glue_sst2_v200                            _train _test _test_rc
    pr:imdb_v100_A_B_verbalizers                 _train _test _test_rc
    pr:glue_qqp_v200_A_B_verbalizers             _training _test _rc _rc_normed
    pr:super_glue_record_v102                    _training _test _rc
    c4_v220_random_positive_negative_targets     a control: what the target is, nothing tells

The names without an ending are mixtures of their tasks, those with `_eval` of the ones that test.
Validation examples are the last of the train split; GLUE's own validation split is the test. A and
B are what stands for the classes 0 and 1, with `_spc_` for a space (prompt_tuning/recycling/data).
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import seqio
import tensorflow as tf

from . import c4, c4_objectives, metrics, preprocessors, rank_classification, recycling_text
from .benchmarks import class_of, classes
from .glue import F1_AND_ACCURACY, GLUE
from .preprocessors import Record
from .registration import Metric, TextTask, register, register_mixture
from .super_glue import SUPER_GLUE

# What stands for the classes 0 and 1.
SST2_LABELS = ("negative", "positive")
IMDB_VERBALIZERS = (("0", "1"), ("negative", "positive"))
QQP_VERBALIZERS = (
    ("not_duplicate", "duplicate"),
    ("0", "1"),
    ("unique", "duplicate"),
    ("not duplicate", "duplicate"),
)
SENTIMENTS = ("positive", "negative")

_task = functools.partial(TextTask, models=("",), forms=("",), examples=(False,))
# How often the likeliest candidate is right, by its score and by its score a token; `_beside` names
# the latter `normed_`, so that one scoring gives both.
_OF_ANY = rank_classification.likeliest
_OF_TWO = functools.partial(_OF_ANY, num_classes=2)
_NORMED_OF_ANY = functools.partial(_OF_ANY, normalize_by_target_length=True)
_NORMED_OF_TWO = functools.partial(_NORMED_OF_ANY, num_classes=2)
_beside = functools.partial(rank_classification.prefixed, prefix="normed")


def without_last(count: int) -> dict[str, str]:
    """Returns the splits that keep the last examples of the train split for validation."""
    return {"train": f"train[:-{count}]", "validation": f"train[-{count}:]"}


def ranked(
    task: TextTask,
    name: str,
    metrics: Sequence[Metric],
    *,
    candidates: Callable[[Record], tf.Tensor],
    is_correct: Callable[[Record], tf.Tensor],
) -> TextTask:
    """Returns the task that ranks candidates where another one writes an answer."""
    expand = functools.partial(
        rank_classification.one_a_candidate, candidates=candidates, is_correct=is_correct
    )
    return dataclasses.replace(
        task,
        name=name,
        text=(*task.text, expand),
        postprocess=rank_classification.candidate,
        metrics=tuple(metrics),
    )


def ranked_labels(
    task: TextTask, name: str, metrics: Sequence[Metric], label_names: Sequence[str]
) -> TextTask:
    """Returns the task that ranks the labels where another one writes one of them."""
    known = {"label_names": tuple(label_names)}
    return ranked(
        task,
        name,
        metrics,
        candidates=functools.partial(rank_classification.labels, **known),
        is_correct=functools.partial(rank_classification.is_target, **known),
    )


def sst2() -> list[TextTask]:
    """Returns the tasks of SST-2."""
    row = GLUE["sst2"]
    train = _task(
        name="pr:glue_sst2_v200_train",
        source="glue/sst2:2.0.0",
        splits=without_last(1000),
        text=(*row.text, preprocessors.taskless),
        postprocess=row.postprocess,
        metrics=row.metrics,
    )
    test = dataclasses.replace(train, name="pr:glue_sst2_v200_test", splits=("validation",))
    return [train, test, ranked_labels(test, f"{test.name}_rc", [_OF_TWO], SST2_LABELS)]


def imdb(label_names: Sequence[str]) -> list[TextTask]:
    """Returns the tasks of IMDB with these names for its labels."""
    train = _task(
        name=f"pr:imdb_v100_{'_'.join(label_names)}_verbalizers_train",
        source="imdb_reviews/plain_text:1.0.0",
        splits=without_last(1000),
        text=(
            seqio.map_over_dataset(
                functools.partial(recycling_text.review, label_names=tuple(label_names))
            ),
        ),
        postprocess=class_of(label_names),
        metrics=(metrics.accuracy,),
    )
    test = dataclasses.replace(
        train, name=train.name.replace("_train", "_test"), splits={"validation": "test"}
    )
    judges = (
        [_OF_TWO, functools.partial(_beside, metric=_NORMED_OF_TWO)]
        if tuple(label_names) == ("0", "1")
        else [_OF_TWO]
    )
    return [train, test, ranked_labels(test, f"{test.name}_rc", judges, label_names)]


def qqp(label_names: Sequence[str]) -> list[TextTask]:
    """Returns the tasks of QQP with these names for its labels."""
    name = "_".join(label.replace(" ", "_spc_") for label in label_names)
    row = classes("qqp", ("question1", "question2"), label_names, metrics=F1_AND_ACCURACY)
    training = _task(
        name=f"pr:glue_qqp_v200_{name}_verbalizers_training",
        source="glue/qqp:2.0.0",
        splits=without_last(10_000),
        text=(*row.text, preprocessors.taskless),
        postprocess=row.postprocess,
        metrics=row.metrics,
    )
    family = training.name.removesuffix("_training")
    test = dataclasses.replace(training, name=f"{family}_test", splits=("validation",))
    return [
        training,
        test,
        ranked_labels(test, f"{family}_rc", [_OF_TWO], label_names),
        ranked_labels(test, f"{family}_rc_normed", [_NORMED_OF_TWO], label_names),
    ]


def record() -> list[TextTask]:
    """Returns the tasks of ReCoRD."""
    row = SUPER_GLUE["record"]
    training = _task(
        name="pr:super_glue_record_v102_training",
        source="super_glue/record:1.0.2",
        splits=without_last(10_000),
        text=(*row.text, preprocessors.taskless),
        postprocess=row.postprocess,
        metrics=row.metrics,
    )
    test = dataclasses.replace(
        training, name="pr:super_glue_record_v102_test", splits=("validation",)
    )
    # One example a query, however many right answers it has: all of them are candidates.
    queries = dataclasses.replace(
        test, text=(recycling_text.record_with_entities, preprocessors.taskless)
    )
    judges = [_OF_ANY, functools.partial(_beside, metric=_NORMED_OF_ANY)]
    return [
        training,
        test,
        ranked(
            queries,
            "pr:super_glue_record_v102_rc",
            judges,
            candidates=recycling_text.entities,
            is_correct=recycling_text.is_answer,
        ),
    ]


_RANDOM_SENTIMENT = c4.c4_task(
    name="c4_v220_random_positive_negative_targets",
    after_tokenizing=(
        c4_objectives.prefix_lm,
        functools.partial(recycling_text.random_targets, targets=SENTIMENTS),
        seqio.preprocessors.append_eos_after_trim,
    ),
)

# The first task of a family trains, the others test.
FAMILIES = (sst2(), *map(imdb, IMDB_VERBALIZERS), *map(qqp, QQP_VERBALIZERS), record())
TASKS = (*(task for family in FAMILIES for task in family), _RANDOM_SENTIMENT)


def _register_mixtures() -> list[str]:
    names = []
    for train, *tests in FAMILIES:
        name = train.name.removesuffix("_train").removesuffix("_training")
        tested = [task.name for task in tests]
        names += [register_mixture(name, [train.name, *tested])]
        names += [register_mixture(f"{name}_eval", tested)]
    return names


NAMES = register(*TASKS)
MIXTURES = _register_mixtures()
