"""Splits that were tokenised once, on disk, to be read by index ever after.

A split is a folder `<cache_dir>/<task>/<split>-<key>/`. Its name follows from all that its examples
follow from, so whoever describes the same split finds the same folder, and a change of anything
makes another one.

    examples.arrow    the records, see `data.records`
    split.json        written last: what the split was made of, and the checksum of the records

A folder is written beside its place and moved there, so it is whole or it is not there. In an
object store `split.json` makes it whole.
"""

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import google_crc32c
import pyarrow as pa
from etils import epath

from prompt_tuning.data.cache_writer import Unwritten, write
from prompt_tuning.data.examples import Example
from prompt_tuning.data.records import Column, Examples, Feature, Records, Table, schema_of
from prompt_tuning.data.split_document import DOCUMENT, FORMAT, damaged, read_document
from prompt_tuning.data.tally import Tally
from prompt_tuning.data.task_split import ExactMatch, Judge, Lengths, TaskSplit
from prompt_tuning.errors import DataError, nearest
from prompt_tuning.paths import is_local
from prompt_tuning.vocabulary import Vocabulary

_PIECE = 1 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class CachedSplit:
    """The examples of a split and what is known of them.

    Attributes:
        examples: in the order of the split; read when asked for.
        columns: the other features, each as long as `examples`.
        description: what the split was made of.
        lengths: of `inputs` and `targets`.
        fingerprint: hash of the ids: equal ones have equal examples in equal order.
    """

    examples: Sequence[Example] = dataclasses.field(repr=False)
    columns: Mapping[str, Sequence[Any]] = dataclasses.field(repr=False)
    description: Mapping[str, Any]
    lengths: Mapping[str, Lengths]
    fingerprint: str

    def with_judge(self, judge: Judge) -> TaskSplit:
        """Returns the split as the rest of the program knows it."""
        return TaskSplit(
            task=self.description["task"],
            split=self.description["split"],
            examples=self.examples,
            columns=self.columns,
            judge=judge,
            lengths=self.lengths,
            fingerprint=self.fingerprint,
        )


def default_cache_dir() -> str:
    """Returns `$PROMPT_TUNING_CACHE`, or `prompt_tuning` in the user's folder of caches."""
    if folder := os.environ.get("PROMPT_TUNING_CACHE"):
        return folder
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(caches, "prompt_tuning")


def cached(
    cache_dir: str | os.PathLike[str] | None,
    description: Mapping[str, Any],
    make: Callable[[], Records],
) -> CachedSplit:
    """Returns a split from the cache; if it is not there, makes and keeps it.

    Args:
        cache_dir: the folder of all splits (CACHE_DIR), local or in an object store; None for
            `default_cache_dir()`.
        description: all that the examples follow from, as JSON can write it (mappings with text
            keys, sequences, texts, numbers, None). Required: `task` and `split` (their names),
            `vocabulary` (its fingerprint), `lengths` (the limits by feature, None for no limits).
        make: tokenises; called only if the split is not in the cache.

    Raises:
        DataError: no examples, a damaged file, or no room on the disk.
        UnstorableError: a feature that no file can hold, see `in_memory`.
    """
    description = json.loads(json.dumps(description))
    key = key_of(description)
    folder = epath.Path(cache_dir or default_cache_dir()).joinpath(
        _file_name(description["task"]), f"{_file_name(description['split'])}-{key[:16]}"
    )
    if not (folder / DOCUMENT).exists():
        write(Unwritten(folder=folder, description=description, key=key), make)
    opened, found = _open(folder)
    if found != key:
        raise damaged(folder, f"its key is {found}, but expected {key}")
    return opened


def in_memory(description: Mapping[str, Any], make: Callable[[], Records]) -> CachedSplit:
    """Returns a split that is kept nowhere, of records that no file can hold or no key describes.

    Raises:
        DataError: no examples.
    """
    records, tally = make(), Tally(description)
    rows = [dict(row) for row in records.rows]
    tally.add(rows)
    tally.check()
    return CachedSplit(
        examples=[Example(row["inputs"], row["targets"]) for row in rows],
        columns={
            name: [row[name] for row in rows] for name in rows[0] if name not in Example._fields
        },
        description=description,
        lengths=tally.lengths(records),
        fingerprint=tally.fingerprint,
    )


def open_cached(path: str | os.PathLike[str]) -> CachedSplit:
    """Returns the split in a folder that `cached` wrote.

    Raises:
        DataError: a missing or damaged file, or another version of the format.
    """
    return _open(epath.Path(path))[0]


def is_cached(name: str) -> bool:
    """Tells whether the name of a task is the folder of a cached split or of a cached task.

    Registered tasks have no slash in their names, so what has one is a folder, there or not.
    """
    return "/" in name or bool(_splits_in(epath.Path(name)))


def task_of(path: str | os.PathLike[str]) -> str:
    """Returns the name of the task whose cached splits lie in a folder; of an empty one its own."""
    folder = epath.Path(path)
    return next((one["task"] for one in _splits_in(folder).values()), folder.name)


def open_split(
    path: str | os.PathLike[str],
    *,
    split: str | None,
    vocabulary: Vocabulary,
    lengths: Mapping[str, int] | None = None,
) -> TaskSplit:
    """Returns a cached split by its path; nothing but what is in the folder is needed.

    Args:
        path: of a split's folder, or of a task's folder with the splits in it.
        split: which one; None if `path` is the split's own folder.
        vocabulary: the model's, which must be the one of the ids.
        lengths: those that the split was made with; None for whichever these are.

    Raises:
        DataError: no such split, several of them, or one of another vocabulary or other lengths.
    """
    folder = epath.Path(path)
    descriptions = _splits_in(folder)
    if not descriptions:
        raise DataError(
            f"There is no cached split in {str(folder)!r}. Give the folder of a split (with a "
            f"{DOCUMENT} in it), or the folder of a task with such folders in it."
        )
    named = {place: one for place, one in descriptions.items() if split in (None, one["split"])}
    if not named:
        known = sorted({one["split"] for one in descriptions.values()})
        raise DataError(
            f"{str(folder)!r} holds no split {split!r}.{nearest(str(split), known)} It holds: "
            f"{', '.join(known)}."
        )
    reasons = {place: _unfit(one, vocabulary, lengths) for place, one in named.items()}
    fit = [place for place, reason in reasons.items() if reason is None]
    if not fit:
        raise DataError(
            f"No cached split in {str(folder)!r} can be used. "
            + " ".join(f"{place.name}: {reason}." for place, reason in reasons.items())
        )
    if len(fit) > 1:
        raise DataError(
            f"{len(fit)} cached splits in {str(folder)!r} can be used: "
            f"{', '.join(place.name for place in fit)}. Give the path of one of them"
            f"{'' if lengths else ', or set TASK_FEATURE_LENGTHS'}."
        )
    return open_cached(fit[0]).with_judge(ExactMatch(decode=vocabulary.decode))


def key_of(description: Mapping[str, Any]) -> str:
    """Returns the hash under which a split is kept."""
    text = json.dumps([FORMAT, description], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.+-]", "_", name)


def _splits_in(folder: epath.Path) -> dict[epath.Path, dict[str, Any]]:
    places = [folder]
    if not (folder / DOCUMENT).exists():
        places = sorted(folder.iterdir()) if folder.is_dir() else []
    return {
        place: read_document(place)["description"]
        for place in places
        if not place.name.startswith(".") and (place / DOCUMENT).exists()
    }


def _unfit(
    description: Mapping[str, Any], vocabulary: Vocabulary, lengths: Mapping[str, int] | None
) -> str | None:
    if description["vocabulary"] != vocabulary.fingerprint:
        return "was made with another vocabulary than the model's (VOCABULARY)"
    if lengths is None:
        return None
    wanted = {name: length for name, length in lengths.items() if length is not None}
    if wanted != (description["lengths"] or {}):
        return (
            f"was made with the lengths {description['lengths']}, but TASK_FEATURE_LENGTHS is "
            f"{wanted}"
        )
    return None


def _open(folder: epath.Path) -> tuple[CachedSplit, str]:
    document = read_document(folder)
    features = {name: Feature(dtype=dtype, rank=rank) for name, dtype, rank in document["features"]}
    table = Table(_read_batches(folder, document, features), features)
    if len(table) != document["examples"]:
        raise damaged(folder, f"it has {len(table)} examples of {document['examples']}")
    split = CachedSplit(
        examples=Examples(table),
        columns={name: Column(table, name) for name in features if name not in Example._fields},
        description=document["description"],
        lengths={name: _lengths(one) for name, one in document["lengths"].items()},
        fingerprint=document["fingerprint"],
    )
    return split, document["key"]


def _read_batches(
    folder: epath.Path, document: Mapping[str, Any], features: Mapping[str, Feature]
) -> list[pa.RecordBatch]:
    path = folder / document["file"]["name"]
    try:
        if is_local(path):
            content = pa.memory_map(os.fspath(path)).read_buffer()
        else:
            content = pa.py_buffer(path.read_bytes())
    except OSError as error:
        raise damaged(folder, f"{path.name} cannot be read ({error})") from error
    wanted = document["file"]["bytes"]
    if content.size != wanted:
        raise damaged(folder, f"{path.name} has {content.size} bytes, but expected {wanted}")
    if _checksum(content) != document["file"]["crc32c"]:
        raise damaged(folder, f"the checksum of {path.name} is wrong")
    try:
        reader = pa.ipc.open_file(content)
        batches = [reader.get_batch(index) for index in range(reader.num_record_batches)]
        for batch in batches:
            batch.validate(full=True)
    except pa.ArrowInvalid as error:
        raise damaged(folder, f"{path.name} is no Arrow file ({error})") from error
    if reader.schema != schema_of(features):
        raise damaged(folder, f"{path.name} has other features than {DOCUMENT}")
    return batches


def _checksum(content: pa.Buffer) -> int:
    view, crc = memoryview(content), 0
    for start in range(0, len(view), _PIECE):
        # In pieces, because the library takes nothing but copies.
        crc = google_crc32c.extend(crc, bytes(view[start : start + _PIECE]))
    return crc


def _lengths(document: Mapping[str, Any]) -> Lengths:
    counts = {int(length): count for length, count in document["counts"].items()}
    return Lengths(counts=counts, limit=document["limit"], truncated=document["truncated"])
