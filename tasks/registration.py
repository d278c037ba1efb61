"""One row of a table for each task, and the names under which it is registered.

A row becomes up to 18 tasks, named after the original's rule (prompt_tuning/data/glue.py):

    {"", "mt5_", "byt5_"} {"", "taskless_", "task_index_"} {name} {"", "_examples"}
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import seqio

from prompt_tuning.data.seqio_tasks import TfdsSource
from prompt_tuning.errors import ConfigError

from . import features, postprocessors, preprocessors
from .samples import Samples, of_predictions

Postprocess = Callable[..., Any]
Metric = Callable[..., Mapping[str, Any]]

MODELS = tuple(features.FAMILIES)
FORMS = ("", "taskless_", "task_index_")
TRAIN_VALIDATION_TEST = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextTask:
    """A task: where its records come from, how they become text, and what answers are worth.

    Attributes:
        name: what stands between the form and `_examples`: "glue_sst2_v200".
        source: the data set of TFDS with its version, "glue/sst2:2.0.0", or a seqio source.
        splits: of a TFDS data set, or what each split is there: {"train": "train[:-500]"}. They are
            given, so that nobody has to ask TFDS.
        text: functions of a `tf.data.Dataset` that leave `inputs` and `targets` as text.
        postprocess: of a decoded text, see seqio; None leaves it as it is.
        metrics: of all targets and predictions, or of targets and scores.
        index: of its sentinel in the `task_index_` form, counted from the last id.
        models: the prefixes of the families of models that it is registered for.
        forms: those it is registered in. `taskless_` leaves out the first word of the inputs,
            `task_index_` has a sentinel there.
        examples: whether to register the plain variant, the one named `_examples`, or both.
        samples: what the `_examples` variant writes of its answers, besides its metrics.
        kept: features of an example that `_examples` puts beside its prediction.
        after_tokenizing: the steps that follow, which may know the lengths of a run.
        cacheable: whether seqio can cache what comes before `after_tokenizing`.
        output_features: from a prefix of `models` to the features.
    """

    name: str
    source: str | seqio.DataSource
    splits: Sequence[str] | Mapping[str, str] = TRAIN_VALIDATION_TEST
    text: Sequence[Callable[..., Any]]
    postprocess: Postprocess | None = None
    metrics: Sequence[Metric] = ()
    index: int | None = None
    models: Sequence[str] = MODELS
    forms: Sequence[str] = FORMS
    examples: Sequence[bool] = (False, True)
    samples: Samples | None = None
    kept: Sequence[str] = postprocessors.TEXTS
    after_tokenizing: Sequence[Callable[..., Any]] = (seqio.preprocessors.append_eos_after_trim,)
    cacheable: bool = True
    output_features: Callable[[str], Mapping[str, seqio.Feature]] = features.model_features

    def names(self) -> list[str]:
        """Returns the names of all its variants."""
        return [name for name, *_ in self._variants()]

    def _variants(self) -> list[tuple[str, str, str, bool]]:
        return [
            (f"{model}{form}{self.name}{'_examples' if examples else ''}", model, form, examples)
            for model in self.models
            for form in self.forms
            for examples in self.examples
        ]


def register(*tasks: TextTask) -> list[str]:
    """Registers all variants of tasks and returns their names.

    A name that is there already, over the same data, is left alone, so a module may be imported
    twice.

    Raises:
        ConfigError: a name belongs to a task over other data.
    """
    names = []
    for task in tasks:
        for name, model, form, examples in task._variants():
            if not _is_there(name, task.source):
                _add(name, task, model, form, examples)
            names.append(name)
    return names


def register_mixture(name: str, tasks: Sequence[str] | Mapping[str, float]) -> str:
    """Registers a mixture of tasks by name, at equal rates or at those given; returns its name.

    Raises:
        ConfigError: the name belongs to a mixture of others.
    """
    rates = dict(tasks) if isinstance(tasks, Mapping) else dict.fromkeys(tasks, 1.0)
    if name not in seqio.MixtureRegistry.names():
        seqio.MixtureRegistry.add(name, list(rates.items()))
    elif (there := seqio.MixtureRegistry.get(name).rate_per_task_name) != rates:
        raise ConfigError(
            f"The name {name!r} belongs to a mixture of {there}, and should be one of {rates}. "
            "Give your mixture another name."
        )
    return name


def keep_examples(
    postprocess: Postprocess,
    metrics: Sequence[Metric],
    samples: Samples | None,
    kept: Sequence[str] = postprocessors.TEXTS,
) -> tuple[Postprocess, list[Metric]]:
    """Returns the postprocessor and the metrics of the `_examples` variant of a task."""
    wrapped = functools.partial(postprocessors.with_examples, postprocess, kept=kept)
    unwrapping = [functools.partial(of_predictions, metric) for metric in metrics]
    return wrapped, [*unwrapping, *([samples] if samples else [])]


def _add(name: str, task: TextTask, model: str, form: str, examples: bool) -> None:
    shorten = [] if form == "" else [preprocessors.taskless]
    point = []
    if form == "task_index_":
        if task.index is None:
            raise ConfigError(f"The task {name!r} has no `TextTask.index`.")
        point = [functools.partial(preprocessors.prepend_sentinel, index=task.index)]
    postprocess, metrics = task.postprocess, list(task.metrics)
    if examples and postprocess is not None:
        postprocess, metrics = keep_examples(postprocess, metrics, task.samples, task.kept)
    seqio.TaskRegistry.add(
        name,
        source=_source(task),
        output_features=task.output_features(model),
        preprocessors=[
            *task.text,
            *shorten,
            seqio.preprocessors.tokenize,
            *point,
            *([seqio.CacheDatasetPlaceholder()] if task.cacheable else []),
            *task.after_tokenizing,
        ],
        postprocess_fn=postprocess,
        metric_fns=metrics,
    )


def _source(task: TextTask) -> seqio.DataSource:
    if isinstance(task.source, str):
        return TfdsSource(task.source, splits=task.splits)
    return task.source


def _is_there(name: str, source: str | seqio.DataSource) -> bool:
    if name not in seqio.TaskRegistry.names():
        return False
    there = seqio.TaskRegistry.get(name).source
    if isinstance(there, seqio.TfdsDataSource) and there.tfds_dataset.name == source:
        return True
    if type(there) is type(source) and not isinstance(there, seqio.TfdsDataSource):
        return True
    raise ConfigError(
        f"The name {name!r} belongs to a task over {there}, and should be one over {source}. "
        "Give your task another name."
    )
