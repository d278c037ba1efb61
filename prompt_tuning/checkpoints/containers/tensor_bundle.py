"""TensorFlow's checkpoint files, read without TensorFlow.

`<prefix>.index` is a sorted table from the name of an array to a protocol buffer that says what it
is and where it lies; `<prefix>.data-00000-of-00002` and so on hold the plain numbers. The messages
are described in TensorFlow's `core/protobuf/tensor_bundle.proto`.
"""

import dataclasses
import math
from collections.abc import Iterator

import ml_dtypes
import numpy as np
from etils import epath

from prompt_tuning.checkpoints.containers.byte_range import (
    MAX_DIMENSIONS,
    array_at,
    file_size,
    read_whole,
)
from prompt_tuning.checkpoints.containers.sorted_table import (
    LIMIT,
    Cursor,
    masked_crc32c,
    read_table,
)
from prompt_tuning.checkpoints.containers.stored import Index, Stored
from prompt_tuning.errors import CheckpointError

# By their numbers in TensorFlow's `types.proto`.
DTYPES = {
    1: np.dtype("float32"),
    2: np.dtype("float64"),
    3: np.dtype("int32"),
    9: np.dtype("int64"),
    14: np.dtype(ml_dtypes.bfloat16),
    19: np.dtype("float16"),
}
_MOST_SHARDS = 100_000  # the names of the files have five digits


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Entry:
    """Where one array lies."""

    shape: tuple[int, ...]
    dtype: np.dtype
    shard: int
    offset: int
    size: int
    checksum: int


def index_file(prefix: epath.Path) -> epath.Path:
    """Returns the file whose presence shows that there is a checkpoint of this prefix."""
    return prefix.with_name(f"{prefix.name}.index")


def open_tensor_bundle(prefix: epath.Path) -> dict[str, Stored]:
    """Returns the arrays of the checkpoint `<prefix>.index` by name.

    Arrays are read by rows. One that is read whole is checked against its checksum.

    Raises:
        CheckpointError: a file is missing, cut short or damaged, or holds what is not an array of
            numbers in one piece.
    """
    entries, shards = _read_index(index_file(prefix))
    files = {
        shard: prefix.with_name(f"{prefix.name}.data-{shard:05d}-of-{shards:05d}")
        for shard in sorted({entry.shard for entry in entries.values()})
    }
    lengths = {shard: file_size(file) for shard, file in files.items()}
    for name, entry in entries.items():
        if entry.offset + entry.size > lengths[entry.shard]:
            raise CheckpointError(
                f"{files[entry.shard]} has {lengths[entry.shard]} bytes, but {name!r} is said to "
                f"be the {entry.size} bytes at {entry.offset}. The file is cut short."
            )
    return {name: _stored(name, entry, files[entry.shard]) for name, entry in entries.items()}


def _read_index(file: epath.Path) -> tuple[dict[str, _Entry], int]:
    """Returns where each array lies, and the number of data files."""
    content = read_whole(file, limit=LIMIT)
    try:
        table = read_table(content)
        if b"" not in table:
            raise ValueError("it has no entry for the checkpoint as a whole")
        shards = _shards(table.pop(b""))
        # A key that begins with a zero is a slice of an array that has an entry of its own.
        names = {key: key.decode() for key in table if not key.startswith(b"\0")}
        return {name: _entry(name, table[key], shards) for key, name in names.items()}, shards
    except ValueError as error:
        raise CheckpointError(
            f"{file} is not the index of a TensorFlow checkpoint that can be read: {error}."
        ) from error


def _stored(name: str, entry: _Entry, file: epath.Path) -> Stored:
    unchecked = array_at(file, entry.offset, entry.shape, entry.dtype, f"{name!r} in {file}")

    def read(index: Index) -> np.ndarray:
        part = unchecked.read(index)
        if part.shape == entry.shape:
            checksum = masked_crc32c(part.reshape(-1).view(np.uint8).data)
            if checksum != entry.checksum:
                raise CheckpointError(
                    f"The checksum of {unchecked.where} does not match. The file is damaged."
                )
        return part

    return dataclasses.replace(unchecked, read=read)


def _shards(header: bytes) -> int:
    """Parses a `BundleHeaderProto`."""
    fields = dict(_fields(header))
    if fields.get(2, 0) != 0:
        raise ValueError("its numbers are big-endian")
    shards = _number(fields, 1)
    if not 0 < shards < _MOST_SHARDS:
        raise ValueError(f"it announces {shards} data files")
    return shards


def _entry(name: str, message: bytes, shards: int) -> _Entry:
    """Parses a `BundleEntryProto`."""
    fields = dict(_fields(message))
    if 7 in fields:
        raise ValueError(
            f"{name!r} is saved in slices; load it in TensorFlow and save it without a partitioner"
        )
    dtype = DTYPES.get(_number(fields, 1))
    if dtype is None:
        raise ValueError(
            f"{name!r} is of TensorFlow's type {fields.get(1)}, expected "
            f"{', '.join(f'{number} ({one})' for number, one in DTYPES.items())}"
        )
    shape = _shape(name, fields.get(2, b""))
    entry = _Entry(
        shape=shape,
        dtype=dtype,
        shard=_number(fields, 3),
        offset=_number(fields, 4),
        size=_number(fields, 5),
        checksum=_number(fields, 6),
    )
    if entry.shard >= shards:
        raise ValueError(f"{name!r} lies in data file {entry.shard} of {shards}")
    if entry.size != math.prod(shape) * dtype.itemsize:
        raise ValueError(
            f"{name!r} of shape {shape} and {dtype} is said to have {entry.size} bytes"
        )
    return entry


def _shape(name: str, message: int | bytes) -> tuple[int, ...]:
    """Parses a `TensorShapeProto`."""
    sizes = [
        _number(dict(_fields(dimension)), 1)
        for number, dimension in _fields(message)
        if number == 2
    ]
    if len(sizes) > MAX_DIMENSIONS or not all(0 < size < 1 << 48 for size in sizes):
        raise ValueError(f"{name!r} has an impossible shape")
    return tuple(sizes)


def _number(fields: dict[int, int | bytes], number: int) -> int:
    value = fields.get(number, 0)  # protocol buffers leave out zeros
    if not isinstance(value, int):
        raise ValueError(f"field {number} of a message is not a number")
    return value


def _fields(message: int | bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yields number and value of every field of a protocol buffer."""
    if not isinstance(message, bytes):
        raise ValueError("a message is not made of bytes")
    cursor = Cursor(message)
    while cursor.left:
        tag = cursor.varint()
        match tag & 7:
            case 0:
                yield tag >> 3, cursor.varint()
            case 1:
                yield tag >> 3, int.from_bytes(cursor.take(8), "little")
            case 2:
                yield tag >> 3, cursor.take(cursor.varint())
            case 5:
                yield tag >> 3, int.from_bytes(cursor.take(4), "little")
            case kind:
                raise ValueError(f"a message has a field of unknown kind {kind}")
