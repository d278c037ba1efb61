"""How an array in the zarr format is cut into chunks and compressed, as its header says.

t5x writes version 2 of the format, whose header is `.zarray`; orbax that or version 3, `zarr.json`.
"""

import dataclasses
import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import ml_dtypes
import numpy as np

from prompt_tuning.checkpoints.containers.stored import Index
from prompt_tuning.errors import CheckpointError

# How many bytes one byte can become, by the format of each compressor: a match of 258 bytes in two
# bits, and a block of 128 KiB in four bytes.
_EXPANSION = {None: 1, "gzip": 1032, "zlib": 1032, "zstd": 32768}
# A larger chunk is not believed to be so empty that zstd alone could compress it.
_LARGE = 2**30
_NOT_COMPRESSORS = {"bytes", "crc32c", "sharding_indexed", "transpose"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """What the header of an array says.

    Attributes:
        shape: of the array.
        chunks: shape of every chunk; those at the far edges are padded.
        dtype: in memory.
        expansion: how many bytes one byte of a chunk's file can become.
        plain: dtype in the file and order of the dimensions, if nothing but gzip or zlib is
            around the numbers.
        deflated: whether gzip or zlib is.
        prefix: what a chunk's name begins with.
        separator: between the numbers in a chunk's name.
        driver: tensorstore's name of the version.
        one_chunk: the header of an array that is a single chunk, to decode one with.
    """

    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: np.dtype
    expansion: int
    plain: tuple[np.dtype, Literal["C", "F"]] | None = None
    deflated: bool = False
    prefix: tuple[str, ...] = ()
    separator: str
    driver: str
    one_chunk: Mapping[str, object]

    def key(self, position: tuple[int, ...]) -> str:
        """Returns the name of the chunk at a place in the grid of chunks."""
        return self.separator.join([*self.prefix, *map(str, position)]) or "0"

    def positions(self, index: Index) -> Iterator[tuple[int, ...]]:
        """Yields the chunks that a part lies in."""
        firsts = [one.start // size for one, size in zip(index, self.chunks, strict=True)]
        ends = [-(-one.stop // size) for one, size in zip(index, self.chunks, strict=True)]
        counts = [max(0, end - first) for first, end in zip(firsts, ends, strict=True)]
        # Not `itertools.product`, which makes lists of the ranges first.
        for number in range(math.prod(counts)):
            place = np.unravel_index(number, counts)
            yield tuple(first + int(i) for first, i in zip(firsts, place, strict=True))

    def is_in_one_chunk(self, index: Index) -> bool:
        """Whether a part, which is not empty, lies in a single chunk."""
        return all(
            one.start < one.stop and one.start // size == (one.stop - 1) // size
            for one, size in zip(index, self.chunks, strict=True)
        )

    def overlap(self, position: tuple[int, ...], index: Index) -> tuple[Index, Index]:
        """Returns what a chunk and a part have in common: where in the part, where in the chunk."""
        into, of = [], []
        for one, number, size in zip(index, position, self.chunks, strict=True):
            start, stop = max(one.start, number * size), min(one.stop, (number + 1) * size)
            into.append(slice(start - one.start, stop - one.start))
            of.append(slice(start - number * size, stop - number * size))
        return tuple(into), tuple(of)

    @property
    def chunk_bytes(self) -> int:
        """Size of a chunk in memory."""
        return math.prod(self.chunks) * self.dtype.itemsize

    def can_be_chunk(self, nbytes: int) -> bool:
        """Whether a file of this size can hold a chunk, before memory is taken for it."""
        most = min(self.expansion, _EXPANSION["gzip"])
        return self.chunk_bytes <= max(min(nbytes * self.expansion, _LARGE), nbytes * most)


def parse(header: bytes, name: str, where: str) -> Layout:
    """Reads the header called `name` of the array at `where`.

    Raises:
        CheckpointError: it makes no sense, or says what neither t5x nor orbax writes.
    """
    try:
        return HEADERS[name](json.loads(header))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{where}/{name} is not the header of an array as t5x or orbax writes it ({error!r}). "
            "The file is damaged, or the checkpoint of other software."
        ) from error


def chunk_shape(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """Returns the chunks that t5x writes: up to 64 MiB, dividing the array evenly.

    The largest dimension is divided first (t5x/checkpoints.py, `_choose_chunk_shape`).

    >>> chunk_shape((32128, 768), itemsize=4)
    (16064, 768)
    """
    chunks = list(shape)
    while math.prod(chunks) * itemsize > 2**26:
        axis = int(np.argmax(chunks))
        smaller = range(chunks[axis] - 1, 0, -1)
        chunks[axis] = next(size for size in smaller if shape[axis] % size == 0)
    return tuple(chunks)


def _version_2(fields: dict[str, Any]) -> Layout:
    _expect(fields, zarr_format=2)
    if fields["filters"] or fields["order"] not in ("C", "F"):
        raise ValueError(f"filters {fields['filters']}, order {fields['order']}")
    shape, chunks = _shapes(fields["shape"], fields["chunks"])
    dtype = fields["dtype"]
    if dtype != "bfloat16" and not re.fullmatch(r"[<>|][fiub][1248]", dtype):
        raise ValueError(f"dtype {dtype}")
    separator = _separator(fields.get("dimension_separator", "."))
    compressor = fields["compressor"]["id"] if fields["compressor"] else None
    deflated = compressor in ("gzip", "zlib")
    return Layout(
        shape=shape,
        chunks=chunks,
        dtype=_native(dtype),
        expansion=_EXPANSION[compressor],
        plain=(_dtype(dtype), fields["order"]) if deflated or compressor is None else None,
        deflated=deflated,
        separator=separator,
        driver="zarr",
        one_chunk={
            **{key: fields[key] for key in ("compressor", "order", "dtype")},
            "dimension_separator": separator,
            "shape": chunks,
            "chunks": chunks,
            "fill_value": None,
        },
    )


def _version_3(fields: dict[str, Any]) -> Layout:
    _expect(fields, zarr_format=3, node_type="array")
    _expect(fields["chunk_grid"], name="regular")
    _expect(fields["chunk_key_encoding"], name="default")
    grid = fields["chunk_grid"]["configuration"]
    shape, chunks = _shapes(fields["shape"], grid["chunk_shape"])
    names = fields["chunk_key_encoding"].get("configuration", {})
    compressors = set(_codecs(fields["codecs"])) - _NOT_COMPRESSORS
    if not re.fullmatch(r"bool|bfloat16|(float|int|uint)(8|16|32|64)", fields["data_type"]):
        raise ValueError(f"data_type {fields['data_type']}")
    return Layout(
        shape=shape,
        chunks=chunks,
        dtype=_native(fields["data_type"]),
        expansion=math.prod(_EXPANSION[one] for one in compressors),
        prefix=("c",),
        separator=_separator(names.get("separator", "/")),
        driver="zarr3",
        one_chunk=fields | {"shape": chunks},
    )


# The two versions, by the name of the header's file.
HEADERS = {".zarray": _version_2, "zarr.json": _version_3}


def _codecs(codecs: list[dict[str, Any]]) -> Iterator[str]:
    for codec in codecs:
        yield codec["name"]
        yield from _codecs(codec.get("configuration", {}).get("codecs", []))


def _expect(fields: dict[str, Any], **wanted: object) -> None:
    for key, value in wanted.items():
        if fields[key] != value:
            raise ValueError(f"{key} {fields[key]}")


def _shapes(shape: list[int], chunks: list[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    if not all(type(size) is int and 0 <= size < 2**63 for size in [*shape, *chunks]):
        raise ValueError(f"shape {shape} in chunks {chunks}")
    if len(shape) != len(chunks) or 0 in chunks:
        raise ValueError(f"shape {shape} in chunks {chunks}")
    return tuple(shape), tuple(chunks)


def _separator(separator: str) -> str:
    if separator not in (".", "/"):
        raise ValueError(f"separator {separator}")
    return separator


def _dtype(name: str) -> np.dtype:
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def _native(name: str) -> np.dtype:
    return _dtype(name).newbyteorder("=")
