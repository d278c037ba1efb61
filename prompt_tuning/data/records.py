"""Records, examples with all their features, in record batches of Arrow, and back as numpy.

A feature is a scalar or an array of numbers or texts; all records have the same features with the
same dtype and rank, and shapes of their own. What is read is numpy's view of the file: nothing is
copied but the bytes of texts.
"""

import bisect
import dataclasses
import itertools
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, SupportsIndex

import ml_dtypes
import numpy as np
import pyarrow as pa
from jaxtyping import Shaped

from prompt_tuning.data.examples import Example
from prompt_tuning.errors import DataError

# What a batch takes in memory while it is written, and about what one read brings in.
_BATCH_ROWS = 4096
_BATCH_BYTES = 1 << 24
_TEXTS = {"bytes": pa.large_binary(), "str": pa.large_string()}
# Arrow packs bits and has no bfloat16, so neither could be viewed by numpy as it lies in the file.
_STORED_AS = {"bool": np.dtype(np.uint8), "bfloat16": np.dtype(np.uint16)}
_NUMBERS = {
    "float16", "float32", "float64",
    "int8", "int16", "int32", "int64",
    "uint8", "uint16", "uint32", "uint64",
    *_STORED_AS,
}  # fmt: skip


class UnstorableError(Exception):
    """A feature that Arrow cannot hold; the examples can still be used from memory."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Records:
    """The records of a split, as whoever tokenises them hands them over.

    Attributes:
        rows: examples with all their features by name: `inputs` and `targets` as int32, and others
            (numbers, `bytes`, `str`, arrays of them), the same in every row. Read once.
        expected: how many there are, if known; for messages.
        truncated: called after the last row: how many examples lost tokens to the limit, by
            feature; None if nobody counted.
    """

    rows: Iterable[Mapping[str, Any]]
    expected: int | None = None
    truncated: Callable[[], Mapping[str, int | None]] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Feature:
    """What the values of a feature have in common.

    Attributes:
        dtype: numpy's name, or "bytes" or "str".
        rank: the number of dimensions.
    """

    dtype: str
    rank: int


def features_of(record: Mapping[str, Any]) -> dict[str, Feature]:
    """Returns the features of a record.

    Raises:
        UnstorableError: a value that is neither a number nor a text nor an array of them.
    """
    return {name: _feature(name, value) for name, value in record.items()}


def schema_of(features: Mapping[str, Feature]) -> pa.Schema:
    """Returns how Arrow calls the features."""
    return pa.schema(
        [pa.field(name, _arrow_type(one), nullable=False) for name, one in features.items()]
    )


def in_batches(
    records: Iterator[Mapping[str, Any]], features: Mapping[str, Feature]
) -> Iterator[tuple[pa.RecordBatch, list[Mapping[str, Any]]]]:
    """Yields the records as Arrow's batches, each with the records it was made of.

    Raises:
        DataError: a record with other features than the first.
    """
    schema = schema_of(features)
    numbered = enumerate(records)
    while chosen := _next_records(numbered, features):
        columns = [
            _to_arrow([record[name] for record in chosen], feature)
            for name, feature in features.items()
        ]
        yield pa.record_batch(columns, schema=schema), chosen


class Table:
    """The batches of a file as one row of records.

    Args:
        batches: as `in_batches` makes them.
        features: of the records.
    """

    def __init__(self, batches: Sequence[pa.RecordBatch], features: Mapping[str, Feature]):
        self.features = dict(features)
        self._batches = batches
        self._ends = list(itertools.accumulate(batch.num_rows for batch in batches))
        self._views: dict[tuple[int, str], _View] = {}

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def value(self, name: str, index: int) -> Any:
        """Returns the value of one feature of one record."""
        batch = bisect.bisect_right(self._ends, index)
        row = index - (self._ends[batch - 1] if batch else 0)
        view = self._views.get((batch, name))
        if view is None:
            view = _View(self._batches[batch].column(name), self.features[name])
            self._views[batch, name] = view
        return view[row]


@dataclasses.dataclass(frozen=True)
class Column(Sequence):
    """One feature of all records, read when asked for."""

    table: Table
    name: str

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self.table.value(self.name, _position(index, len(self)))


@dataclasses.dataclass(frozen=True)
class Examples(Sequence):
    """The inputs and targets of all records, read when asked for."""

    table: Table

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        position = _position(index, len(self))
        return Example(self.table.value("inputs", position), self.table.value("targets", position))


class _View:
    """One feature of one batch as numpy arrays over Arrow's buffers."""

    def __init__(self, array: pa.Array, feature: Feature):
        self.feature = feature
        self.shapes = None
        if feature.rank > 1:
            self.shapes = _View(array.field("shape"), Feature(dtype="int64", rank=1))
            array = array.field("values")
        self.ends = None
        if feature.rank:
            self.ends = array.offsets.to_numpy()
            array = array.values
        if feature.dtype in _TEXTS:
            _, ends, characters = array.buffers()
            self.text_ends = np.frombuffer(ends, np.int64)
            self.values = np.frombuffer(characters or b"", np.uint8)
        else:
            self.values = array.to_numpy().view(_dtype(feature.dtype))

    def __getitem__(self, row: int) -> Any:
        if self.ends is None:
            return self._one(row)
        start, end = self.ends[row], self.ends[row + 1]
        if self.feature.dtype in _TEXTS:
            values = np.empty(end - start, object)
            values[:] = [self._one(i) for i in range(start, end)]
        else:
            values = self.values[start:end]
        return values if self.shapes is None else values.reshape(self.shapes[row])

    def _one(self, index: int) -> Any:
        if self.feature.dtype not in _TEXTS:
            return self.values[index]
        text = self.values[self.text_ends[index] : self.text_ends[index + 1]].tobytes()
        return text.decode("utf-8") if self.feature.dtype == "str" else text


def _position(index: SupportsIndex, length: int) -> int:
    number = operator.index(index)
    position = number + length if number < 0 else number
    if not 0 <= position < length:
        raise IndexError(f"There are {length} records, and no record {number}.")
    return position


def _dtype(name: str) -> np.dtype:
    if name in _TEXTS:  # as numpy holds them
        return np.dtype(object)
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def _feature(name: str, value: Any) -> Feature:
    array = _as_array(value)
    if array.dtype == object:
        texts = array.reshape(-1).tolist()
        kinds = {type(text).__name__ for text in texts} or {"bytes"}
        if len(kinds) == 1 and kinds <= set(_TEXTS):
            return Feature(dtype=kinds.pop(), rank=array.ndim)
    elif array.dtype.name in _NUMBERS:
        return Feature(dtype=array.dtype.name, rank=array.ndim)
    raise UnstorableError(f"the feature {name!r} is a {type(value).__name__} of {array.dtype}")


def _as_array(value: Any) -> Shaped[np.ndarray, "..."]:
    if isinstance(value, bytes | str):
        # numpy would cut the zeros at the end of bytes.
        array = np.empty((), object)
        array[()] = value
        return array
    try:
        array = np.asarray(value)
        # Of bytes and texts in one list numpy makes texts, and of either it cuts the zeros.
        return np.array(value, object) if array.dtype.kind in "SU" else array
    except ValueError as error:
        raise UnstorableError(str(error)) from error


def _arrow_type(feature: Feature) -> pa.DataType:
    if feature.dtype in _TEXTS:
        kind = _TEXTS[feature.dtype]
    else:
        kind = pa.from_numpy_dtype(_STORED_AS.get(feature.dtype, feature.dtype))
    if feature.rank:
        kind = pa.large_list(pa.field("item", kind, nullable=False))
    if feature.rank > 1:
        shape = pa.field("shape", _arrow_type(Feature(dtype="int64", rank=1)), nullable=False)
        kind = pa.struct([shape, pa.field("values", kind, nullable=False)])
    return kind


def _next_records(
    numbered: Iterator[tuple[int, Mapping[str, Any]]], features: Mapping[str, Feature]
) -> list[Mapping[str, Any]]:
    chosen, size = [], 0
    dtypes = {name: _dtype(one.dtype) for name, one in features.items()}
    for number, record in numbered:
        found = {
            name: features[name]
            if name in features and _is_plainly(value, features[name], dtypes[name])
            else _feature(name, value)
            for name, value in record.items()
        }
        if found != features and (wrong := _different(found, features)):
            raise DataError(f"Record {number} {wrong}, as the first record has.")
        chosen.append(record)
        size += sum(_bytes_of(value) for value in record.values())
        if len(chosen) == _BATCH_ROWS or size >= _BATCH_BYTES:
            break
    return chosen


def _is_plainly(value: Any, feature: Feature, dtype: np.dtype) -> bool:
    """Tells at a glance, for most values; others are looked at closely."""
    if isinstance(value, np.ndarray | np.generic):
        is_number = feature.dtype not in _TEXTS
        return is_number and value.dtype == dtype and value.ndim == feature.rank
    return not feature.rank and type(value).__name__ == feature.dtype


def _different(found: Mapping[str, Feature], wanted: Mapping[str, Feature]) -> str | None:
    if found.keys() != wanted.keys():
        return f"has the features {', '.join(found)}, but expected {', '.join(wanted)}"
    for name, feature in wanted.items():
        if found[name] != feature and not _is_empty_text(found[name], feature):
            return (
                f"has {name!r} of {found[name].dtype} with {found[name].rank} dimensions, but "
                f"expected {feature.dtype} with {feature.rank}"
            )
    return None


def _is_empty_text(found: Feature, wanted: Feature) -> bool:
    # An array without texts does not tell which kind they would be.
    return found.rank == wanted.rank > 0 and found.dtype == "bytes" and wanted.dtype in _TEXTS


def _bytes_of(value: Any) -> int:
    if isinstance(value, bytes | str):
        return len(value)
    return value.nbytes if isinstance(value, np.ndarray | np.generic) else _as_array(value).nbytes


def _to_arrow(values: Sequence[Any], feature: Feature) -> pa.Array:
    kind = _arrow_type(feature)
    if not feature.rank:
        return _flat(values, feature)
    arrays = [_as_array(value) for value in values]
    if feature.rank > 1:
        shapes = [np.array(array.shape, np.int64) for array in arrays]
        flat = [array.reshape(-1) for array in arrays]
        columns = [
            _to_arrow(shapes, Feature(dtype="int64", rank=1)),
            _to_arrow(flat, Feature(dtype=feature.dtype, rank=1)),
        ]
        return pa.StructArray.from_arrays(columns, fields=list(kind))
    ends = np.cumsum([0, *map(len, arrays)], dtype=np.int64)
    if feature.dtype in _TEXTS:
        items = _flat([text for array in arrays for text in array.tolist()], feature)
    else:
        items = _flat(np.concatenate(arrays), feature)
    return pa.LargeListArray.from_arrays(pa.array(ends), items, type=kind)


def _flat(values: Any, feature: Feature) -> pa.Array:
    if feature.dtype in _TEXTS:
        return pa.array(values, _TEXTS[feature.dtype])
    array = np.asarray(values, _dtype(feature.dtype))
    return pa.array(array.view(_STORED_AS.get(feature.dtype, array.dtype)))
