"""Classification that chooses among the labels: all of them in one example, or one example each.

For every data set three ways to learn and to be judged, over splits in which a part of the train
split validates, so that TFDS's validation split can test (prompt_tuning/extended/perceptron/data/):

    glue_sst2_v200_perceptron       an example holds the inputs and each label as rows
    glue_sst2_v200_generation       the label is written; trained and judged as any task
    ..._rank_classification_test    an example for each label, judged by which is the likeliest

In the first, `inputs` and `targets` are [tokens, labels], so that seqio trims tokens and not
labels; who trains on them turns them around. `is_correct` tells the right label.
"""

import functools
from collections.abc import Mapping

import seqio
import tensorflow as tf

from . import features, postprocessors, preprocessors, rank_classification
from .benchmarks import DataSet
from .glue import GLUE
from .registration import Postprocess, TextTask, keep_examples, register, register_mixture
from .samples import Samples
from .super_glue import SUPER_GLUE

# How many examples at the end of the train split validate.
HELD_OUT = {
    "glue": {"cola": 500, "sst2": 2000, "mrpc": 200, "qqp": 5000, "qnli": 3000, "rte": 200},
    "super_glue": {"boolq": 400, "cb": 50, "copa": 50, "rte": 200, "wic": 400},
}
_BENCHMARKS = {"glue": (GLUE, "2.0.0", "v200"), "super_glue": (SUPER_GLUE, "1.0.2", "v102")}


@seqio.map_over_dataset
def columns(record: preprocessors.Record) -> dict[str, tf.Tensor]:
    """Turns rows of tokens of several lengths into columns, padded with 0 to the longest."""
    dense = {name: record[name].to_tensor() for name in ("inputs", "targets")}
    return {**record, **{name: tf.transpose(rows) for name, rows in dense.items()}}


def column_features(prefix: str = "") -> dict[str, seqio.Feature]:
    """Returns features for examples that hold several inputs and targets, and which is right."""
    vocabulary = features.model_features(prefix)["targets"].vocabulary
    tokens = seqio.Feature(vocabulary=vocabulary, add_eos=True, rank=2)
    is_correct = seqio.Feature(
        vocabulary=seqio.PassThroughVocabulary(size=2), add_eos=False, dtype=tf.bool
    )
    return {"inputs": tokens, "targets": tokens, "is_correct": is_correct}


def _tasks(benchmark: str, row: DataSet, held_out: int) -> list[TextTask]:
    _, tfds_version, version = _BENCHMARKS[benchmark]
    name = f"{benchmark}_{row.config}_{version}"
    written = (*row.text, preprocessors.taskless)
    labels = tuple(row.label_names or ())
    candidates = {
        "candidates": functools.partial(rank_classification.labels, label_names=labels),
        "is_correct": functools.partial(rank_classification.is_target, label_names=labels),
    }
    all_in_one = functools.partial(rank_classification.with_candidates, **candidates)
    one_each = functools.partial(rank_classification.one_a_candidate, **candidates)
    train = {"train": f"train[:-{held_out}]", "validation": f"train[-{held_out}:]"}

    def task(kind: str, splits: Mapping[str, str], **options) -> TextTask:
        return TextTask(
            name=f"{name}_{kind}",
            source=f"{benchmark}/{row.config}:{tfds_version}",
            splits=splits,
            models=("",),
            forms=("",),
            examples=(False,),
            **options,
        )

    def perceptron(kind: str, splits: Mapping[str, str], title: str) -> TextTask:
        postprocess, metrics = _shown(row, f"Perceptron {title}")
        return task(
            f"perceptron_{kind}",
            splits,
            text=(*written, all_in_one),
            postprocess=functools.partial(postprocessors.of_candidates, postprocess),
            metrics=metrics,
            after_tokenizing=(seqio.preprocessors.append_eos_after_trim, columns),
            # seqio's cache has no rows of several lengths.
            cacheable=False,
            output_features=column_features,
        )

    def generation(kind: str, splits: Mapping[str, str], title: str) -> TextTask:
        postprocess, metrics = _shown(row, f"Generation {title}")
        return task(
            f"generation_{kind}", splits, text=written, postprocess=postprocess, metrics=metrics
        )

    def ranked(kind: str, splits: Mapping[str, str]) -> TextTask:
        return task(
            f"rank_classification_{kind}",
            splits,
            text=(*written, one_each),
            postprocess=rank_classification.candidate,
            metrics=(functools.partial(rank_classification.likeliest, num_classes=len(labels)),),
        )

    test = {"validation": "validation"}
    return [
        perceptron("train", train, "Validation"),
        perceptron("test", test, "Test"),
        generation("train", train, "Valid"),
        generation("test", test, "Test"),
        ranked("validation", {"validation": train["validation"]}),
        ranked("test", test),
    ]


def _shown(row: DataSet, title: str) -> tuple[Postprocess, list]:
    return keep_examples(row.postprocess, row.metrics, Samples(title=f"{row.config} {title}"))


def _register_mixtures() -> list[str]:
    names = []
    for benchmark, sizes in HELD_OUT.items():
        version = _BENCHMARKS[benchmark][2]
        for config in sizes:
            name = f"{benchmark}_{config}_{version}"
            for mixture, members in {
                "perceptron": ("perceptron_train", "perceptron_test"),
                "generation": (
                    "rank_classification_validation",
                    "rank_classification_test",
                    "generation_train",
                    "generation_test",
                ),
            }.items():
                tasks = [f"{name}_{member}" for member in members]
                names.append(register_mixture(f"{name}_{mixture}", tasks))
    return names


TASKS = tuple(
    task
    for benchmark, sizes in HELD_OUT.items()
    for config, held_out in sizes.items()
    for task in _tasks(benchmark, _BENCHMARKS[benchmark][0][config], held_out)
)
NAMES = register(*TASKS)
MIXTURES = _register_mixtures()
