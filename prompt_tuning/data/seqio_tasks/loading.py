"""A split from the name of a task or mixture, in whichever of three forms it can be read."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import seqio

from prompt_tuning.data.seqio_tasks.checks import check_task
from prompt_tuning.data.seqio_tasks.examples import examples_of, mixture_of
from prompt_tuning.data.seqio_tasks.model_vocabulary import with_vocabulary
from prompt_tuning.data.seqio_tasks.registry import (
    find_mixture,
    find_task,
    is_mixture,
    is_split,
    is_stream,
)
from prompt_tuning.data.seqio_tasks.sources import describe_stream
from prompt_tuning.data.streams import Stream
from prompt_tuning.data.task_split import TaskSplit
from prompt_tuning.vocabulary import Vocabulary


def load(
    name: str,
    split: str,
    lengths: Mapping[str, int] | None,
    *,
    vocabulary: Vocabulary,
    modules: Sequence[str] = (),
    use_cached: bool = False,
    max_examples: int | None = None,
    stream_above: int = 10_000_000,
    **options: Any,
) -> TaskSplit | list[tuple[TaskSplit, float]] | Stream:
    """Loads a split of a registered task or mixture; see `task_batches.task_split`.

    Args:
        **options: of `examples_of`, which a stream has no use for: `cache_dir` and `seed`.

    Returns:
        The split of a task, those of a mixture's tasks with their rates, or a stream if they are
        too large to be kept.
    """
    find = find_mixture if is_mixture(name) else find_task
    # First, as a data set that is not there is built before its records are counted.
    provider = with_vocabulary(find(name, modules), vocabulary)
    if max_examples is None and is_stream(
        name, split, modules=modules, use_cached=use_cached, above=stream_above
    ):
        return _stream(provider, split, lengths, vocabulary, use_cached)
    read = mixture_of if is_mixture(name) else examples_of
    return read(
        name,
        split,
        lengths,
        vocabulary=vocabulary,
        modules=modules,
        use_cached=use_cached,
        max_examples=max_examples,
        **options,
    )


def _stream(
    provider: seqio.Task | seqio.Mixture,
    split: str,
    lengths: Mapping[str, int] | None,
    vocabulary: Vocabulary,
    use_cached: bool,
) -> Stream:
    members = provider.tasks if isinstance(provider, seqio.Mixture) else [provider]
    tasks = [task for task in members if is_split(task, split)]
    for task in tasks:
        check_task(task, split, lengths, vocabulary)
    made_of = [
        provider.name,
        split,
        dict(lengths or {}),
        vocabulary.fingerprint,
        [describe_stream(task) for task in tasks],
    ]
    text = json.dumps(made_of, sort_keys=True, default=str)
    return Stream(
        provider=provider,
        split=split,
        lengths=dict(lengths or {}),
        fingerprint=hashlib.sha256(text.encode()).hexdigest(),
        use_cached=use_cached and all(task.cache_dir for task in tasks),
    )
