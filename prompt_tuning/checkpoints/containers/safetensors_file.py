"""Files of safetensors, read lazily and written one array at a time.

The library reads only local files and writes only what is in memory as a whole. Layout: the length
of the header (8 bytes, little endian), the header as JSON, the arrays without a gap.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
from etils import epath

from prompt_tuning.checkpoints.containers import byte_range, storage
from prompt_tuning.checkpoints.containers.json_file import parse_json, shown
from prompt_tuning.checkpoints.containers.stored import Stored
from prompt_tuning.errors import CheckpointError

# In the library's order, in which the arrays of a file follow each other from below.
DTYPES = {
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype("<f2"),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
_METADATA = "__metadata__"
# The library's own limit.
_LONGEST_HEADER = 100_000_000
# Bytes that are written at a time.
_BLOCK = 64_000_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class SafetensorsFile:
    """An opened file: the arrays by name, not yet read, and the notes of who wrote it."""

    tensors: dict[str, Stored]
    metadata: dict[str, str]


def open_safetensors(path: epath.Path) -> SafetensorsFile:
    """Reads the header of a file and checks that it describes all of the file and nothing else.

    Raises:
        CheckpointError: no such file, cut short, damaged, or of a dtype that numpy lacks.
    """
    size = byte_range.file_size(path)
    length = int.from_bytes(byte_range.read_range(path, 0, min(8, size)), "little")
    if size < 8 or length > min(size - 8, _LONGEST_HEADER):
        raise CheckpointError(
            f"{path!s} is not a safetensors file, or cut short: it has {size} bytes, and its "
            f"header is said to have {length}."
        )
    header = parse_json(byte_range.read_range(path, 8, length), f"The header of {path!s}")
    metadata = header.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise CheckpointError(f"The header of {path!s} holds metadata other than texts.")
    start = 8 + length
    tensors, spans = {}, []
    for name, entry in header.items():
        dtype, shape, begin, end = _entry(entry, f"{path!s}: {name!r}")
        spans.append((begin, end, name))
        tensors[name] = byte_range.array_at(path, start + begin, shape, dtype, f"{path!s}: {name}")
    _check_spans(sorted(spans), size - start, path)
    return SafetensorsFile(tensors=tensors, metadata=metadata)


def _entry(entry: Any, where: str) -> tuple[np.dtype, tuple[int, ...], int, int]:
    """Returns dtype, shape and first and last byte of one array."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{where} is described without dtype, shape and data_offsets alone.")
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(code, str) or code not in DTYPES:
        raise CheckpointError(
            f"{where} has dtype {shown(code)}, expected one of {', '.join(DTYPES)}."
        )
    if not _is_sizes(shape) or len(shape) > byte_range.MAX_DIMENSIONS:
        raise CheckpointError(f"{where} has a shape that is not one: {shown(shape)}.")
    if not _is_sizes(offsets) or len(offsets) != 2:
        raise CheckpointError(f"{where} has data_offsets that are not two: {shown(offsets)}.")
    begin, end = offsets
    if math.prod(shape) * DTYPES[code].itemsize != end - begin:
        raise CheckpointError(
            f"{where} of dtype {code} and shape {tuple(shape)} is said to lie in bytes {begin} to "
            f"{end}, which are {end - begin}."
        )
    return DTYPES[code], tuple(shape), begin, end


def _is_sizes(found: Any) -> bool:
    # No bool, which is an int to Python; below 2**40 no stride of numpy's overflows either.
    return isinstance(found, list) and all(type(n) is int and 0 <= n < 2**40 for n in found)


def _check_spans(spans: list[tuple[int, int, str]], available: int, path: epath.Path) -> None:
    """Checks that the arrays follow each other from the first byte to the last."""
    reached = 0
    for begin, end, name in spans:
        if begin != reached:
            raise CheckpointError(
                f"{path!s}: {name!r} begins at byte {begin} of the data, but the arrays before it "
                f"end at byte {reached}. The file is damaged."
            )
        reached = end
    if reached != available:
        raise CheckpointError(
            f"{path!s} has {available} bytes of data, its header describes {reached}. The file is "
            "cut short or damaged."
        )


def write_safetensors(
    path: epath.Path, tensors: Mapping[str, Stored], metadata: Mapping[str, str]
) -> None:
    """Writes a file, one array in memory at a time, so that it is either whole or absent.

    The bytes are those that the library writes.

    Raises:
        CheckpointError: the file is there already, or a dtype has no place in this format.
    """
    with storage.new_file(path) as partial:
        write_into(partial, tensors, metadata)


def write_into(
    path: epath.Path, tensors: Mapping[str, Stored], metadata: Mapping[str, str]
) -> None:
    """Writes a file in place, inside a folder that is not yet where others look for it."""
    codes = {dtype: code for code, dtype in DTYPES.items()}
    for name, one in tensors.items():
        if one.dtype not in codes or name == _METADATA:
            raise CheckpointError(
                f"{name!r} ({one.where}) of dtype {one.dtype} cannot be stored as safetensors, "
                f"which knows {', '.join(DTYPES)}."
            )
    rank = {dtype: i for i, dtype in enumerate(DTYPES.values())}
    ordered = sorted(tensors.items(), key=lambda item: (rank[item[1].dtype], item[0]))
    header: dict[str, Any] = {_METADATA: dict(metadata)} if metadata else {}
    reached = 0
    for name, one in ordered:
        end = reached + one.nbytes
        header[name] = {
            "dtype": codes[one.dtype],
            "shape": list(one.shape),
            "data_offsets": [reached, end],
        }
        reached = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, one in ordered:
            _write_array(file, one)


def _write_array(file: Any, one: Stored) -> None:
    """Writes some rows after the other: their bytes are a copy, and turned arrays need one."""
    if not one.shape or one.axis:  # rows lie apart
        one = Stored.of(one.load().reshape(one.shape or (1,)), one.where)
    step = max(1, _BLOCK * one.shape[0] // max(one.nbytes, 1))
    step = max(1, step // one.rows) * one.rows
    rest = (slice(None),) * (len(one.shape) - 1)
    for i in range(0, one.shape[0], step):
        file.write(one.part((slice(i, i + step), *rest)).tobytes())
