"""Training batches of a task, from its name: a registered one, a file, or a cached split's folder.

Only a registered task imports seqio and TensorFlow.
"""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

from etils import epath

from prompt_tuning.data import cache, lines, split_files, tables
from prompt_tuning.data.batches import Buckets, ExampleBatches, MixtureBatches
from prompt_tuning.data.task_split import TaskSplit
from prompt_tuning.errors import ConfigError, DataError
from prompt_tuning.vocabulary import Vocabulary

if TYPE_CHECKING:
    from prompt_tuning.data.streams import Stream, StreamBatches

# The splits of a mixture's tasks, each with the rate at which it is drawn from.
Mixture: TypeAlias = Sequence[tuple[TaskSplit, float]]


def task_split(
    name: str,
    *,
    split: str | None,
    vocabulary: Vocabulary,
    lengths: Mapping[str, int] | None = None,
    modules: str | Sequence[str] | None = None,
    use_cached: bool = False,
    cache_dir: str | os.PathLike[str] | None = None,
    file_task: lines.FileTask | None = None,
    max_examples: int | None = None,
    stream_above: int = 10_000_000,
    plain_text: bool = False,
    seed: int = 0,
) -> "TaskSplit | Mixture | Stream | None":
    """Loads a split of a task, tokenised once and kept for the next run.

    Args:
        name: a registered task or mixture, the path of a file (`.tsv`, `.csv`, `.jsonl`,
            `.parquet`), or the folder of a cached split or task (MIXTURE_OR_TASK_NAME).
        split: of the task; None loads nothing.
        vocabulary: the model's.
        lengths: the longest inputs and targets (TASK_FEATURE_LENGTHS); None trims nothing.
        modules: imported first, to register tasks (MIXTURE_OR_TASK_MODULE).
        use_cached: reads seqio's own cache where there is one (USE_CACHED_TASKS).
        cache_dir: where tokenised splits are kept; None for the user's cache folder (CACHE_DIR).
        file_task: how the rows of a file become text.
        max_examples: reads only the first so many examples.
        stream_above: a registered task with more examples than this, or with an endless source, is
            read as a stream instead.
        plain_text: a file may go without `file_task`, see `file_task.plain_text`, and without
            splits. For inference.
        seed: for preprocessors that draw at random. They draw once, not once an epoch, and the same
            for every RANDOM_SEED, so that all runs share one cache.

    Returns:
        The split; for a mixture those of its tasks with their rates; None if `split` is.
    """
    if split is None:
        return None
    if lines.is_file_task(name):
        return lines.file_split(
            name,
            split=split,
            task=file_task,
            vocabulary=vocabulary,
            lengths=lengths,
            cache_dir=cache_dir,
            max_examples=max_examples,
            plain_text=plain_text,
        )
    if cache.is_cached(name):
        if epath.Path(name).is_file():
            raise DataError(
                f"MIXTURE_OR_TASK_NAME is the file {name!r}. Its name should end with one of: "
                f"{tables.endings()}."
            )
        if max_examples is not None:
            raise ConfigError(
                f"task_split.max_examples is {max_examples}, but {name!r} is the folder of a "
                "cached split, which is read whole. Name the task that it was made of."
            )
        return cache.open_split(name, split=split, vocabulary=vocabulary, lengths=lengths)
    # Here, because the other two kinds of task need no TensorFlow.
    from prompt_tuning.data import seqio_tasks

    return seqio_tasks.load(
        name,
        split,
        lengths,
        vocabulary=vocabulary,
        modules=seqio_tasks.import_task_modules(modules),
        use_cached=use_cached,
        cache_dir=cache_dir,
        max_examples=max_examples,
        stream_above=stream_above,
        seed=seed,
    )


def task_title(name: str, *, file_task: lines.FileTask | None = None) -> str:
    """Returns what a task is called in reports: a file's or a folder's own name, not its path.

    Args:
        name: MIXTURE_OR_TASK_NAME, see `task_split`.
        file_task: how the rows of a file become text; it may give the name.
    """
    if lines.is_file_task(name):
        return (file_task and file_task.name) or split_files.task_name(name)
    return cache.task_of(name) if cache.is_cached(name) else name


def task_batches(
    split: "TaskSplit | Mixture | Stream",
    *,
    batch_size: int,
    seed: int,
    inputs: Buckets | None = None,
    targets: Buckets | None = None,
) -> "ExampleBatches | MixtureBatches | StreamBatches":
    """Returns shuffled, endless batches of a split, cut to buckets up to its longest example.

    Args:
        split: see `task_split`.
        batch_size: rows of a batch (BATCH_SIZE).
        seed: of the order.
        inputs: the lengths to which inputs are padded; few ones, as each is compiled.
        targets: the same for the targets.
    """
    options = {"batch_size": batch_size, "seed": seed, "inputs": inputs, "targets": targets}
    if isinstance(split, TaskSplit):
        return ExampleBatches(split=split, **options)
    if isinstance(split, Sequence):
        return MixtureBatches(parts=split, **options)
    from prompt_tuning.data.streams import StreamBatches  # TensorFlow's, so is the split.

    return StreamBatches(stream=split, **options)
