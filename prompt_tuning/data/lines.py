"""Tasks without Python: a file of examples, and templates that write its rows as text.

The same ids as a seqio task that formats, tokenises, trims and closes with an end token
(`tokenize`, `append_eos_after_trim`), without TensorFlow. Where two ways to cut a word have the
same probability, "xx x" and "x xx", TensorFlow's tokeniser may choose the other one: in 4 of the
67,349 sentences of SST-2 with a vocabulary of ours, in none with T5's own.
"""

import itertools
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from prompt_tuning.data import cache, file_task, fingerprints, tables
from prompt_tuning.data.examples import Example
from prompt_tuning.data.file_task import GIN_EXAMPLE, FileTask
from prompt_tuning.data.records import Records
from prompt_tuning.data.split_files import find_split, task_name
from prompt_tuning.data.task_split import TaskSplit
from prompt_tuning.errors import ConfigError, nearest
from prompt_tuning.vocabulary import Vocabulary

# Part of every cache key: a change of how rows become tokens makes the old splits invalid.
_FORMAT = "lines 1"
_BATCH_ROWS = 4096


def is_file_task(name: str) -> bool:
    """Tells whether MIXTURE_OR_TASK_NAME is a file, by its ending; it need not exist."""
    return tables.is_table(name)


def file_split(
    name: str,
    *,
    split: str,
    task: FileTask | None,
    vocabulary: Vocabulary,
    lengths: Mapping[str, int] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    max_examples: int | None = None,
    plain_text: bool = False,
) -> TaskSplit:
    """Loads a split of a file task, tokenised once and kept for the next run.

    Args:
        name: the path of the training file, or one with `{split}` in it (MIXTURE_OR_TASK_NAME).
        split: `train`, or the name of a split whose file lies beside, see `FileTask.splits`.
        task: how rows become text.
        vocabulary: the model's.
        lengths: the longest inputs and targets, end token included (TASK_FEATURE_LENGTHS); longer
            ones are trimmed before their end token. None trims nothing.
        cache_dir: where tokenised splits are kept; None for the user's cache folder.
        max_examples: reads only the first so many examples.
        plain_text: a file may go without `task`, see `file_task.plain_text`, and without splits.

    Raises:
        ConfigError: there are no templates, or they or the lengths cannot be used.
        DataError: there is no such file, or its rows do not fit.
    """
    if task is None and plain_text:
        path = find_split(name, split, {}, itself=True)
        task = file_task.plain_text(path, next(tables.read_rows(path)).fields)
    if task is None:
        raise ConfigError(
            f"MIXTURE_OR_TASK_NAME is the file {name!r}, but nothing says how its rows become "
            f"text. Add to a gin file, with the columns of yours:\n{GIN_EXAMPLE}"
        )
    if task.targets is None and not plain_text:
        raise ConfigError(
            "FileTask.targets is None, but without the right answers there is nothing to learn and "
            "nothing to judge. Say what the answer to a row is; only `infer` can do without."
        )
    lengths = {feature: n for feature, n in (lengths or {}).items() if n is not None}
    _check_lengths(lengths)
    path = find_split(name, split, task.splits, itself=plain_text)
    title = task.name or task_name(name)
    description = {
        "task": title,
        "split": split,
        "made by": _FORMAT,
        "source": fingerprints.of_files([path]),
        "inputs": task.inputs,
        "targets": task.targets,
        "names": {
            column: list(names.items() if isinstance(names, Mapping) else names)
            for column, names in task.names.items()
        },
        "vocabulary": vocabulary.fingerprint,
        "lengths": lengths or None,
        "max_examples": max_examples,
    }

    def records() -> Records:
        texts = itertools.islice(_texts(path, task), max_examples)
        return _tokenised(texts, vocabulary, lengths)

    kept = cache.cached(cache_dir, description, records)
    return kept.with_judge(task.judge(vocabulary))


def _tokenised(
    records: Iterator[dict[str, Any]], vocabulary: Vocabulary, lengths: Mapping[str, int]
) -> Records:
    truncated = dict.fromkeys(lengths, 0)

    def rows() -> Iterator[dict[str, Any]]:
        while chosen := list(itertools.islice(records, _BATCH_ROWS)):
            for feature in Example._fields:
                # Where nobody knows the target, nothing but its end token.
                texts = [one.get(f"{feature}_pretokenized", "") for one in chosen]
                tokens = vocabulary.encode_batch(texts)
                limit = lengths.get(feature)
                if limit is not None:
                    # One place is the end token's.
                    truncated[feature] += sum(len(ids) >= limit for ids in tokens)
                    tokens = [ids[: limit - 1] for ids in tokens]
                for record, ids in zip(chosen, tokens, strict=True):
                    record[feature] = np.append(ids, np.int32(vocabulary.eos_id))
            yield from chosen

    return Records(rows=rows(), truncated=lambda: truncated)


def _texts(path: str, task: FileTask) -> Iterator[dict[str, Any]]:
    rows = tables.read_rows(path)
    first = next(rows)
    task.check_columns(path, first.fields)
    for number, row in enumerate(itertools.chain([first], rows)):
        yield task.record(row) | {"idx": np.int32(number)}


def _check_lengths(lengths: Mapping[str, int]) -> None:
    for feature, length in lengths.items():
        if feature not in Example._fields:
            raise ConfigError(
                f"TASK_FEATURE_LENGTHS has a length for {feature!r}, but the features of a file "
                f"task are: {', '.join(Example._fields)}.{nearest(feature, Example._fields)}"
            )
        if length < 1:
            raise ConfigError(
                f"TASK_FEATURE_LENGTHS trims the {feature} to {length} tokens, but the end token "
                "alone is 1."
            )
