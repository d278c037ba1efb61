"""What is registered, and what a task does to its records, for people to read."""

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import seqio
import tensorflow as tf

from prompt_tuning.data.seqio_tasks.judge import SeqioJudge
from prompt_tuning.data.seqio_tasks.model_vocabulary import ModelVocabulary, with_vocabulary
from prompt_tuning.data.seqio_tasks.registry import is_mixture, is_split
from prompt_tuning.errors import ConfigError, DataError, nearest
from prompt_tuning.vocabulary import Vocabulary

_USUAL = ("train", "validation", "test")


def names() -> list[str]:
    """Returns the names of all tasks and mixtures."""
    return sorted({*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()})


def splits_of(name: str) -> list[str] | None:
    """Returns the splits of a task, or of a mixture's tasks; None if the source must be asked.

    Asking a source of seqio's own for its splits may ask the network.
    """
    provider = seqio.get_mixture_or_task(name)
    tasks = provider.tasks if is_mixture(name) else [provider]
    known = [task.source._splits for task in tasks]
    if not all(known):
        return None
    splits = dict.fromkeys(split for splits in known for split in splits)
    return sorted(splits, key=lambda split: _USUAL.index(split) if split in _USUAL else len(_USUAL))


def about(name: str) -> dict[str, Any]:
    """Returns what a task or mixture is made of, without reading a record."""
    if is_mixture(name):
        return _about_mixture(seqio.MixtureRegistry.get(name))
    task = seqio.TaskRegistry.get(name)
    judge = SeqioJudge(task=task)
    return {
        "task": name,
        "source": _source(task.source),
        "splits": splits_of(name),
        "features": {key: _feature(one) for key, one in task.output_features.items()},
        "steps": [called(step) for step in task.preprocessors],
        "postprocessor": called(task.postprocessor) if task.postprocessor else None,
        "metrics": [called(metric) for metric in task.metric_fns],
        "labels": list(judge.label_names or []),
    }


def rendered(
    name: str,
    split: str,
    *,
    vocabulary: Vocabulary | None,
    lengths: Mapping[str, int] | None = None,
    count: int,
) -> Iterator[dict[str, Any]]:
    """Yields the first records of a split as a run would read them, in the order of the source.

    With `inputs`, `targets` and their `_pretokenized` text; without a vocabulary `inputs` and
    `targets` are the text.

    Raises:
        DataError: no such split, or it cannot be read.
        ConfigError: the task's models have another kind of vocabulary.
    """
    task = seqio.TaskRegistry.get(name)
    if not is_split(task, split):
        raise DataError(
            f"The task {name!r} has no split {split!r}.{nearest(split, task.splits)} Choose one "
            f"with --split: {', '.join(task.splits)}."
        )
    if vocabulary is None:
        dataset = _as_text(task, split)
    else:
        dataset = with_vocabulary(task, vocabulary).get_dataset(
            sequence_length=lengths,
            split=split,
            use_cached=False,
            shuffle=False,
            seed=0,
            try_in_mem_cache=False,
        )
    yield from itertools.islice(dataset.as_numpy_iterator(), count)


def called(function: Callable[..., Any]) -> str:
    """Returns the name of a function; of one that calls others also theirs, in parentheses.

    >>> called(functools.partial(with_examples, identity))
    'with_examples(identity)'
    """
    inner: list[str] = []
    while True:
        if isinstance(function, functools.partial):
            given = [*function.args, *(function.keywords or {}).values()]
            inner += [called(one) for one in given if callable(one)]
            function = function.func
        elif isinstance(function, seqio.CacheDatasetPlaceholder):
            return "(seqio's cache)"
        elif callable(wrapped := getattr(function, "__wrapped__", None)):
            function = wrapped
        else:
            break
    name = getattr(function, "__name__", None) or type(function).__name__
    return f"{name}({', '.join(inner)})" if inner else name


def _about_mixture(mixture: seqio.Mixture) -> dict[str, Any]:
    rates = {task.name: _rate(mixture, task) for task in mixture.tasks}
    return {"mixture": mixture.name, "splits": splits_of(mixture.name), "tasks": rates}


def _rate(mixture: seqio.Mixture, task: seqio.Task) -> float | None:
    try:
        return float(mixture.get_rate(task))
    # A rate may be any function of the task, as of how many examples it has.
    except Exception:  # noqa: BLE001
        return None


def _as_text(task: seqio.Task, split: str) -> tf.data.Dataset:
    """The records before they become tokens; what comes after needs a vocabulary."""
    steps = list(itertools.takewhile(lambda step: not _tokenizes(step), task.preprocessors))
    dataset = task.source.get_dataset(split=split, shuffle=False, seed=0)
    try:
        with seqio.map_seed_manager(initial_seed=0):
            return task._preprocess_dataset(dataset, steps)
    except (TypeError, KeyError) as error:
        raise ConfigError(
            f"The steps of the task {task.name!r} need tokens or their lengths ({error}). Give "
            "--vocabulary, and --lengths inputs=512,targets=114 or what your run has."
        ) from error


def _tokenizes(step: Callable[..., Any]) -> bool:
    return called(step).startswith("tokenize")


def _source(source: seqio.DataSource) -> str:
    if isinstance(source, seqio.TfdsDataSource):
        split_map = source.tfds_dataset._split_map or {}
        slices = ", ".join(f"{key} is {there}" for key, there in split_map.items() if key != there)
        return f"TFDS {source.tfds_dataset.name}{f' ({slices})' if slices else ''}"
    return type(source).__name__


def _feature(feature: Any) -> str:
    vocabulary = getattr(feature, "vocabulary", None)
    if isinstance(vocabulary, ModelVocabulary):
        kind = f"vocabulary of the model ({vocabulary.family})"
    else:
        kind = type(vocabulary).__name__
    return f"{kind}, {'with' if feature.add_eos else 'without'} end token"
