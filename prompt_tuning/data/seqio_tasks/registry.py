"""Tasks and mixtures by their names, and the folders and modules they come from."""

import importlib
import logging
import math
import pkgutil
import sys
from collections.abc import Sequence

import numpy as np
import seqio
import tensorflow as tf

from prompt_tuning.data import original_modules
from prompt_tuning.data.seqio_tasks.tfds_source import build
from prompt_tuning.errors import ConfigError, DataError, nearest

log = logging.getLogger("prompt_tuning")


def use_folders(*, tfds_data_dir: str | None = None, cache_dirs: Sequence[str] = ()) -> None:
    """Says where TFDS keeps its data sets, and where else seqio's cached tasks lie.

    For every task of this process, whatever folder it was registered with (t5x's `--tfds_data_dir`
    and `--seqio_additional_cache_dirs`).
    """
    if tfds_data_dir is not None:
        seqio.set_tfds_data_dir_override(tfds_data_dir)
        for name in seqio.TaskRegistry.names():
            source = seqio.TaskRegistry.get(name).source
            if isinstance(source, seqio.TfdsDataSource):
                # A task that was read before would go on with the folder of that time.
                source.tfds_dataset._data_dir_override = None
    seqio.add_global_cache_dirs(cache_dirs)


def import_task_modules(
    modules: str | Sequence[str] | None, *, setting: str = "MIXTURE_OR_TASK_MODULE"
) -> tuple[str, ...]:
    """Imports the modules that register tasks, and returns their names.

    Those of the original are read as ours that register the same tasks.

    Args:
        modules: their names, one, several or none.
        setting: what names them, for the message.

    Raises:
        ConfigError: there is no such module.
    """
    given = (modules,) if isinstance(modules, str) else tuple(modules or ())
    names = tuple(dict.fromkeys(name for one in given for name in original_modules.ours(one)))
    for name in names:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            # A module that exists, but lacks something itself, speaks for itself.
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise
            raise ConfigError(
                f"{setting} names {name!r}, but there is no module {error.name!r}."
                f"{_close(error.name)} Install its package or put its folder on PYTHONPATH."
            ) from error
    return names


def _close(module: str) -> str:
    """Returns a hint to the modules of nearly this name in the same package."""
    package, _, name = module.rpartition(".")
    folders = getattr(sys.modules.get(package), "__path__", ())
    return nearest(name, [one.name for one in pkgutil.iter_modules(folders)])


def is_mixture(name: str) -> bool:
    """Tells whether a name belongs to a mixture."""
    return name in seqio.MixtureRegistry.names()


def is_stream(
    name: str,
    split: str,
    *,
    modules: Sequence[str] = (),
    use_cached: bool = False,
    above: int = 10_000_000,
) -> bool:
    """Tells whether a task, or one of a mixture's, is endless or has more records than `above`.

    Records are counted as the source has them. A source that does not know how many it has is
    counted by reading it up to that number, unless its files are too small for that many.

    Raises:
        DataError: no such task or mixture.
    """
    return any(
        _has_more(task, split, use_cached, above)
        for task in tasks_of(name, modules)
        if is_split(task, split)
    )


def tasks_of(name: str, modules: Sequence[str] = ()) -> list[seqio.Task]:
    """Returns a task, or all tasks of a mixture and of the mixtures in it.

    Raises:
        DataError: no such task or mixture.
    """
    return find_mixture(name).tasks if is_mixture(name) else [find_task(name, modules)]


def is_split(task: seqio.Task, split: str) -> bool:
    """Tells whether a task has a split; of slices like "train[:100]" only TFDS can tell."""
    source, renamed = task.source, False
    if isinstance(source, seqio.TfdsDataSource):
        renamed = bool(source.tfds_dataset._split_map)
        if not source._splits:
            build(source)  # Nobody has said which splits it has, so TFDS must.
    return split in task.splits or (not renamed and bool({"[", "+"} & set(split)))


def is_in_cache(task: seqio.Task, split: str, use_cached: bool) -> bool:
    """Tells whether a split is to be read from seqio's own cache.

    Raises:
        DataError: it is not there, and the task can be read from nowhere else.
    """
    if task.requires_caching and not use_cached:
        raise DataError(
            f"The task {task.name!r} can be read from seqio's cache only. Set "
            "`USE_CACHED_TASKS = True`, and its folder with --seqio_additional_cache_dirs."
        )
    if not use_cached or not task.supports_caching:
        return False
    if task.cache_dir and tf.io.gfile.exists(
        seqio.utils.get_cached_info_path(task.cache_dir, split)
    ):
        return True
    if task.requires_caching:
        raise DataError(
            f"The split {split!r} of the task {task.name!r} is not in seqio's cache, and can be "
            "read from nowhere else. Add its folder with --seqio_additional_cache_dirs."
        )
    log.info("%r is not in seqio's cache (split %r); it is tokenised into ours", task.name, split)
    return False


def find_task(name: str, modules: Sequence[str] = ()) -> seqio.Task:
    """Returns a registered task.

    Raises:
        DataError: there is none of that name, or it is a mixture.
    """
    if is_mixture(name):
        tasks = ", ".join(sorted(task.name for task in seqio.MixtureRegistry.get(name).tasks))
        raise DataError(f"{name!r} is a mixture. Name one of its tasks: {tasks}.")
    known = seqio.TaskRegistry.names()
    if name not in known:
        raise _unknown("task", name, [*known, *seqio.MixtureRegistry.names()], modules)
    return seqio.TaskRegistry.get(name)


def find_mixture(name: str, modules: Sequence[str] = ()) -> seqio.Mixture:
    """Returns a registered mixture.

    Raises:
        DataError: there is none of that name.
    """
    known = seqio.MixtureRegistry.names()
    if name not in known:
        raise _unknown("mixture", name, known, modules)
    return seqio.MixtureRegistry.get(name)


def number_of_records(source: seqio.DataSource, split: str) -> int | None:
    """Returns how many records a source says it has, None if it does not know or has no end."""
    try:
        count = source.num_input_examples(split)
    except (KeyError, ValueError):  # a slice of a split, or one that nobody counted
        return None
    return int(count) if count is not None and math.isfinite(count) else None


def _unknown(kind: str, name: str, known: Sequence[str], modules: Sequence[str]) -> DataError:
    imported = ", ".join(modules) or "none"
    return DataError(
        f"There is no {kind} named {name!r}.{nearest(name, known)} Task modules imported: "
        f"{imported}; set `MIXTURE_OR_TASK_MODULE` to the module that registers it."
    )


def _has_more(task: seqio.Task, split: str, use_cached: bool, above: int) -> bool:
    if is_in_cache(task, split, use_cached):
        return task.get_cached_stats(split)["examples"] > above
    source = task.source
    if isinstance(source, seqio.TfdsDataSource):
        build(source, split)
        return bool(source.num_input_examples(split) > above)
    if (count := number_of_records(source, split)) is not None:
        return count > above
    if isinstance(source, seqio.FileDataSource) and _bytes(source.list_shards(split)) <= above:
        return False
    dataset = source.get_dataset(split=split, shuffle=False)
    cardinality = int(dataset.cardinality())
    if cardinality == tf.data.INFINITE_CARDINALITY:
        return True
    if cardinality == tf.data.UNKNOWN_CARDINALITY:
        counted = dataset.take(above + 1).reduce(np.int64(0), lambda count, _: count + 1)
        cardinality = int(counted)
    return cardinality > above


def _bytes(files: Sequence[str]) -> int:
    return sum(tf.io.gfile.stat(file).length for file in files)
