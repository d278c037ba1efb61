"""`prompt-tuning tasks`: which tasks there are, and what a model reads and should say in them."""

import argparse
import fnmatch
import importlib
import itertools
import json
import pkgutil
import statistics
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from prompt_tuning.cli.task_arguments import ACTIONS
from prompt_tuning.data import lines, tables
from prompt_tuning.data.file_task import FileTask, plain_text
from prompt_tuning.data.seqio_tasks import import_task_modules, listing, use_folders
from prompt_tuning.data.split_files import find_split
from prompt_tuning.errors import ConfigError, DataError, nearest
from prompt_tuning.vocabulary import ByteVocabulary, SentencePieceVocabulary, Vocabulary

# By name: this package never depends on its tasks, but here is who asks which there are.
OURS = "prompt_tuning.tasks"
SHOWN_IDS = 48
FEATURES = ("inputs", "targets")


def run(arguments: argparse.Namespace) -> int:
    """Prints what was asked for; returns the exit code."""
    assert arguments.action in ACTIONS
    return (_list if arguments.action == "list" else _show)(arguments)


def _list(arguments: argparse.Namespace) -> int:
    modules = import_modules(arguments.modules)
    known = [name for name in listing.names() if listing.is_mixture(name) or not arguments.mixtures]
    rows = [
        {
            "name": name,
            "kind": "mixture" if listing.is_mixture(name) else "task",
            "splits": listing.splits_of(name),
            "module": modules.get(name),
        }
        for name in _matching(arguments.pattern, known)
    ]
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return 0
    width = max((len(row["name"]) for row in rows), default=0)
    for row in rows:
        splits = ", ".join(row["splits"] or ["splits unknown"])
        mixture = "mixture of: " if row["kind"] == "mixture" else ""
        print(f"{row['name']:<{width}}  {row['module'] or '-'}  {mixture}{splits}")
    count = sum(row["kind"] == "mixture" for row in rows)
    print(f"{len(rows) - count} tasks, {count} mixtures", file=sys.stderr)
    return 0


def _show(arguments: argparse.Namespace) -> int:
    vocabulary = _vocabulary(arguments.vocabulary)
    if lines.is_file_task(arguments.name):
        split = arguments.split or "train"
        about: dict[str, Any] = {"file": find_split(arguments.name, split, {}, itself=True)}
        records = _of_file(about["file"], arguments, vocabulary)
    else:
        if arguments.inputs or arguments.targets:
            raise ConfigError(
                f"--inputs and --targets are the templates of a file, but {arguments.name!r} is a "
                f"registered task, which says itself how its text is made. Files end with one of: "
                f"{tables.endings()}."
            )
        use_folders(tfds_data_dir=arguments.tfds_data_dir)
        modules = import_modules(arguments.modules)
        _check_name(arguments.name, modules)
        about = listing.about(arguments.name) | {"module": modules.get(arguments.name)}
        split = arguments.split or _default_split(about["splits"])
        records = iter(())
        if "task" in about and split is not None and arguments.examples:
            count = max(arguments.examples, arguments.counted if vocabulary else 0)
            records = listing.rendered(
                arguments.name,
                split,
                vocabulary=vocabulary,
                lengths=arguments.lengths,
                count=count,
            )
    if not arguments.json:
        # Before the records are read, which may take its time or fail.
        print("\n".join(_described(about)), flush=True)
    about |= _summary(records, split, arguments.examples, counted=vocabulary is not None)
    print(json.dumps(about, indent=2) if arguments.json else "\n".join(_examples(about)))
    return 0


def import_modules(names: Sequence[str] | None) -> dict[str, str]:
    """Imports modules that register tasks; returns for each task and mixture which one it was.

    Ours say in `NAMES` and `MIXTURES` what they register; of others it is what is new.

    Args:
        names: of the modules; None for all of this package's.

    Raises:
        ConfigError: there is no such module.
    """
    if names is None:
        package = importlib.import_module(OURS)
        names = [f"{OURS}.{one.name}" for one in pkgutil.iter_modules(package.__path__)]
    owners: dict[str, str] = {}
    before = set(listing.names())
    for name in names:
        import_task_modules(name, setting="--modules")
        module = sys.modules[name]
        after = set(listing.names())
        own = [*getattr(module, "NAMES", ()), *getattr(module, "MIXTURES", ())]
        owners |= dict.fromkeys(own or after - before - set(owners), name)
        before = after
    return owners


def _matching(pattern: str | None, known: Sequence[str]) -> list[str]:
    if pattern is None:
        return list(known)
    glob = pattern if set(pattern) & set("*?[") else f"*{pattern}*"
    found = fnmatch.filter(known, glob)
    if not found:
        raise DataError(f"Nothing is named like {pattern!r}.{nearest(pattern, known)}")
    return found


def _check_name(name: str, modules: Mapping[str, str]) -> None:
    known = listing.names()
    if name not in known:
        imported = ", ".join(sorted(set(modules.values()))) or "none that registers any"
        raise DataError(
            f"There is no task or mixture named {name!r}.{nearest(name, known)} Task modules "
            f"imported: {imported}; name others with --modules."
        )


def _default_split(splits: Sequence[str] | None) -> str | None:
    if not splits:
        return "validation"
    return "validation" if "validation" in splits else splits[0]


def _vocabulary(path: str | None) -> Vocabulary | None:
    if path is None:
        return None
    return ByteVocabulary() if path == "bytes" else SentencePieceVocabulary(path)


def _of_file(
    path: str, arguments: argparse.Namespace, vocabulary: Vocabulary | None
) -> Iterator[dict[str, Any]]:
    rows = iter(tables.read_rows(path))
    first = next(rows)
    if arguments.inputs is None:
        task = plain_text(path, first.fields)
    else:
        task = FileTask(inputs=arguments.inputs, targets=arguments.targets)
    task.check_columns(path, first.fields)
    count = max(arguments.examples, arguments.counted if vocabulary else 0)
    for row in itertools.islice(itertools.chain([first], rows), count):
        record = dict(task.record(row))
        for feature in FEATURES:
            text = record.get(f"{feature}_pretokenized")
            if vocabulary is not None and text is not None:
                record[feature] = np.array([*vocabulary.encode(text), vocabulary.eos_id])
        yield record


def _summary(
    records: Iterable[Mapping[str, Any]], split: str | None, shown: int, *, counted: bool
) -> dict[str, Any]:
    """Returns the first records as JSON takes them, and how many tokens all of them have."""
    examples: list[dict[str, Any]] = []
    lengths: dict[str, list[int]] = {feature: [] for feature in FEATURES}
    for record in records:
        if len(examples) < shown:
            examples.append({name: _plain(value) for name, value in record.items()})
        for feature in FEATURES:
            if counted and np.ndim(record.get(feature)) == 1:
                lengths[feature].append(len(record[feature]))
    return {
        "split": split,
        "examples": examples,
        "lengths": {feature: _spread(counts) for feature, counts in lengths.items() if counts},
    }


def _spread(counts: Sequence[int]) -> dict[str, int | float]:
    ordered = sorted(counts)
    return {
        "examples": len(ordered),
        "shortest": ordered[0],
        "median": statistics.median(ordered),
        "95%": ordered[max(0, -(-95 * len(ordered) // 100) - 1)],
        "longest": ordered[-1],
    }


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    array = np.asarray(value)
    if array.dtype == object:
        return [_plain(one) for one in array]
    return array.tolist()


def _described(about: Mapping[str, Any]) -> Iterator[str]:
    for name, value in about.items():
        if value not in (None, [], {}):
            yield f"{name:<14} {_line(value)}"


def _line(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {one}" for name, one in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _examples(about: Mapping[str, Any]) -> Iterator[str]:
    for number, example in enumerate(about["examples"]):
        yield f"\nexample {number} of {about['split']}"
        for feature in FEATURES:
            value = example.get(feature)
            text = example.get(f"{feature}_pretokenized", value)
            if text is not None:
                yield f"  {feature:<12} {_quoted(text)}"
            if value is not None and text is not value:
                yield f"  {'':<12} {_ids(value)}"
        for name, value in example.items():
            if name.removesuffix("_pretokenized") not in FEATURES:
                yield f"  {name:<12} {_quoted(value)}"
    for feature, spread in about["lengths"].items():
        of = f"tokens of the {feature} of the first {spread['examples']:,} examples"
        rest = {name: value for name, value in spread.items() if name != "examples"}
        yield f"\n{of}: " + ", ".join(f"{name} {value:g}" for name, value in rest.items())


def _quoted(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _ids(ids: Sequence[Any]) -> str:
    more = f" ... {len(ids)} tokens" if len(ids) > SHOWN_IDS else f"  {len(ids)} tokens"
    return f"{' '.join(map(str, ids[:SHOWN_IDS]))}{more}"
