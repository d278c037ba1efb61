"""The splits of tasks and mixtures, from the cache or into it."""

import dataclasses
import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from prompt_tuning.data.cache import cached, in_memory
from prompt_tuning.data.fingerprints import IndescribableError
from prompt_tuning.data.records import Records, UnstorableError
from prompt_tuning.data.seqio_tasks.checks import check_features, check_task
from prompt_tuning.data.seqio_tasks.judge import SeqioJudge
from prompt_tuning.data.seqio_tasks.model_vocabulary import with_vocabulary
from prompt_tuning.data.seqio_tasks.registry import (
    find_mixture,
    find_task,
    is_in_cache,
    is_split,
    is_stream,
    number_of_records,
)
from prompt_tuning.data.seqio_tasks.sources import describe_task
from prompt_tuning.data.task_split import TaskSplit
from prompt_tuning.errors import DataError
from prompt_tuning.vocabulary import Vocabulary

log = logging.getLogger("prompt_tuning")


def examples_of(
    name: str,
    split: str,
    lengths: Mapping[str, int] | None,
    *,
    vocabulary: Vocabulary,
    modules: Sequence[str] = (),
    use_cached: bool = False,
    cache_dir: str | os.PathLike[str] | None = None,
    seed: int = 0,
    max_examples: int | None = None,
) -> TaskSplit:
    """Loads a finite split of a registered task, tokenised once and kept for ever.

    Args:
        name: the task.
        split: a split of the task.
        lengths: the longest inputs and targets, by feature name; longer ones are trimmed as the
            task says. `None` trims nothing.
        vocabulary: the model's; a task that names another than `ModelVocabulary` must share it.
        modules: the modules imported for their tasks, to be named if the task is missing.
        use_cached: reads seqio's cache of the task instead of its source, if it has one.
        cache_dir: where the split is kept; None for the user's own folder of caches.
        seed: for preprocessors that draw at random; they draw once, not once an epoch.
        max_examples: reads only the first so many examples.

    Raises:
        DataError: no such task or split, or examples that a T5 cannot take.
        ConfigError: another vocabulary than the model's, or a length of an unknown feature.
    """
    task = with_vocabulary(find_task(name, modules), vocabulary)
    check_task(task, split, lengths, vocabulary)
    if task.metric_objs and not SeqioJudge(task=task).modes:
        log.warning(
            "The task %r has `metric_objs`, which are not computed here; give it `metric_fns`",
            task.name,
        )
    reading = _Reading(
        task=task,
        split=split,
        lengths=dict(lengths) if lengths else None,
        from_cache=is_in_cache(task, split, use_cached),
        seed=seed,
        max_examples=max_examples,
    )
    description = {
        "task": task.name,
        "split": split,
        "vocabulary": vocabulary.fingerprint,
        "lengths": reading.lengths,
        "seed": seed,
        "max_examples": max_examples,
    }
    try:
        if max_examples is not None and is_stream(name, split, use_cached=use_cached):
            raise IndescribableError("a source that nobody reads to its end")
        made_of = describe_task(task, split, from_cache=reading.from_cache, seed=seed)
        tokenised = cached(cache_dir, description | made_of, reading.records)
    except (IndescribableError, UnstorableError) as reason:
        log.warning(
            "The split %r of %r is tokenised for this run only, as it depends on %s",
            split, task.name, reason,
        )  # fmt: skip
        tokenised = in_memory(description, reading.records)
    return tokenised.with_judge(SeqioJudge(task=task))


def mixture_of(
    name: str,
    split: str,
    lengths: Mapping[str, int] | None,
    *,
    modules: Sequence[str] = (),
    **options: Any,
) -> list[tuple[TaskSplit, float]]:
    """Loads a split of every task of a mixture, each with the rate at which seqio draws from it.

    As in seqio, tasks without the split are left out and named in the log; nested mixtures share
    their rate among their tasks.

    Args:
        name: the mixture.
        split: of its tasks.
        lengths: see `examples_of`.
        modules: see `examples_of`.
        **options: of `examples_of`, the same for every task.

    Raises:
        DataError: no such mixture, no task with that split, or a rate that is not known.
    """
    mixture = find_mixture(name, modules)
    tasks = [task for task in mixture.tasks if is_split(task, split)]
    if not tasks:
        known = ", ".join(sorted(mixture.splits))
        raise DataError(
            f"No task of the mixture {name!r} has a split {split!r}. They have: {known}. "
            "EVAL_SPLIT names the one to evaluate on; None evaluates nothing."
        )
    for task in mixture.tasks:
        if task not in tasks:
            log.warning("The task %r of %r has no split %r and is left out", task.name, name, split)
    rates = [_rate(mixture, task) for task in tasks]
    return [
        (examples_of(task.name, split, lengths, modules=modules, **options), rate)
        for task, rate in zip(tasks, rates, strict=True)
    ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Reading:
    """How a split is read through seqio."""

    task: seqio.Task
    split: str
    lengths: dict[str, int] | None
    from_cache: bool
    seed: int
    max_examples: int | None

    def records(self) -> Records:
        dataset = self._dataset(self.lengths)
        check_features(self.task, dataset.element_spec)
        longest = Counter(dict.fromkeys(self.lengths or {}, 0))
        count = 0

        def rows() -> Iterator[Mapping[str, Any]]:
            nonlocal count
            for record in dataset.as_numpy_iterator():
                for name in ("inputs", "targets"):
                    record[name] = record[name].astype(np.int32)
                    longest[name] = max(longest[name], len(record[name]))
                count += 1
                yield record

        def truncated() -> dict[str, int | None]:
            # What seqio trims has the full length, so most splits need no second look.
            full = [
                name for name in longest if longest[name] >= (self.lengths or {}).get(name, 1 << 62)
            ]
            return dict.fromkeys(longest, 0) | (self._count_longer(full, count) if full else {})

        expected = number_of_records(self.task.source, self.split)
        if self.max_examples is not None:
            expected = min(expected or self.max_examples, self.max_examples)
        return Records(rows=rows(), expected=expected, truncated=truncated)

    def _count_longer(self, names: Sequence[str], count: int) -> dict[str, int | None]:
        """Counts the examples that are longer than allowed when nothing is trimmed."""
        longer, seen = Counter(dict.fromkeys(names, 0)), 0
        try:
            for record in self._dataset(None).as_numpy_iterator():
                seen += 1
                for name in names:
                    longer[name] += len(record[name]) > self.lengths[name]
        except Exception as error:  # noqa: BLE001 - preprocessors that need lengths fail as they like.
            log.info("Nobody knows how many examples of %r are truncated: %s", self.split, error)
            return dict.fromkeys(names)
        # Other examples come out without lengths, as of a task that cuts its text into windows.
        return dict(longer) if seen == count else dict.fromkeys(names)

    def _dataset(self, lengths: dict[str, int] | None) -> tf.data.Dataset:
        dataset = self.task.get_dataset(
            sequence_length=lengths,
            split=self.split,
            use_cached=self.from_cache,
            shuffle=False,
            seed=self.seed,
            try_in_mem_cache=False,
        )
        return dataset if self.max_examples is None else dataset.take(self.max_examples)


def _rate(mixture: seqio.Mixture, task: seqio.Task) -> float:
    try:
        return float(mixture.get_rate(task))
    except (TypeError, ValueError) as error:
        raise DataError(
            f"The rate of the task {task.name!r} in the mixture {mixture.name!r} is not known: "
            f"{error}. Give its source `num_input_examples`, or the mixture a number as rate."
        ) from error
