"""Arrays in the zarr format, in a folder or in a database of orbax (OCDBT).

Tensorstore reads files and databases, and decodes what is more than gzip. Arrays are not opened by
it: it reads zeros where a chunk is missing, and ends the process where a damaged header claims more
bytes than there is memory.
"""

import functools
import itertools
import os
import zlib
from collections.abc import Callable, Mapping
from concurrent import futures

import numpy as np
import tensorstore as ts
from etils import epath

from prompt_tuning.checkpoints.containers import storage
from prompt_tuning.checkpoints.containers.stored import Index, Stored
from prompt_tuning.checkpoints.containers.zarr_layout import Layout, chunk_shape, parse
from prompt_tuning.errors import CheckpointError

# What tensorstore raises, with the reason in its message.
_FAULTS = (ValueError, OSError, RuntimeError)

# A database is a tree of small nodes; without a cache each array would read them all again.
_DATABASE_CACHE = 2**26
_THREADS = min(16, os.cpu_count() or 1)
# Bytes of chunks that are decoded at the same time, if there is more than one.
_AT_ONCE = 2**25
# Compressed bytes that are fed to zlib at once.
_PIECE = 2**20


def open_store(folder: epath.Path) -> ts.KvStore:
    """Returns the files of a folder, or what is stored in the database that lies there.

    Raises:
        CheckpointError: the database is damaged, or the path is of an unknown kind.
    """
    place = storage.kvstore(folder)
    if place["path"]:
        place["path"] = place["path"].rstrip("/") + "/"
    database = (folder / "manifest.ocdbt").exists()
    context = ts.Context({"cache_pool": {"total_bytes_limit": _DATABASE_CACHE}})
    try:
        return ts.KvStore.open(
            {"driver": "ocdbt", "base": place} if database else place, context=context
        ).result()
    except _FAULTS as error:
        raise CheckpointError(f"{folder!s} cannot be opened ({error}).") from error


def open_arrays(
    store: ts.KvStore,
    folders: Mapping[str, tuple[str, ...]],
    where: epath.Path,
    *,
    header: str = ".zarray",
) -> dict[str, Stored]:
    """Reads the headers of arrays.

    Args:
        store: what `open_store` returned.
        folders: for each array the folders to look in; the first that has a header counts.
        where: of the store, for messages.
        header: name of the headers, see `zarr_layout`.

    Raises:
        CheckpointError: an array is in none of its folders, or its header makes no sense.
    """
    try:
        # All are asked for before the first is waited for: in an object store each takes a while.
        asked = {
            name: [(folder, store.read(f"{folder}/{header}".encode())) for folder in candidates]
            for name, candidates in folders.items()
        }
    except _FAULTS as error:
        raise CheckpointError(f"{where!s} names an array that cannot be ({error}).") from error
    found, recent = {}, _Recent()
    for name, candidates in asked.items():
        for folder, answer in candidates:
            content = _result(answer, f"{where!s}/{folder}/{header}")
            if content is not None:
                layout = parse(content, header, f"{where!s}/{folder}")
                found[name] = _stored(store, folder, layout, f"{where!s}/{folder}", recent)
                break
        else:
            raise CheckpointError(
                f"{where!s} has no array {candidates[0][0]!r} ({name}). The checkpoint is "
                "incomplete; copy it again."
            )
    return found


def write_array(root: epath.Path, folder: str, tensor: Stored, dtype: np.dtype) -> dict:
    """Writes an array as t5x does, into `root/folder`; returns the spec for t5x's index."""
    array = tensor.load(dtype)
    spec = {
        "driver": "zarr",
        "dtype": dtype.name,
        "metadata": {
            "shape": list(array.shape),
            "chunks": list(chunk_shape(array.shape, dtype.itemsize)),
            "compressor": {"id": "gzip", "level": 1},
        },
    }
    place = storage.kvstore(root / folder)
    ts.open({**spec, "kvstore": place}, create=True).result().write(array).result()
    return {**spec, "kvstore": {"driver": "file", "path": f"{folder}/"}}


class _Recent:
    """The chunks of the stack of layers that was read last.

    A stack is asked for layer by layer, and a chunk of it holds many layers.
    """

    def __init__(self):
        self._folder = ""
        self._chunks: dict[tuple[int, ...], np.ndarray] = {}

    def chunk(
        self, folder: str, position: tuple[int, ...], read: Callable[[], np.ndarray]
    ) -> np.ndarray:
        if folder != self._folder:
            self._folder, self._chunks = folder, {}
        chunks = self._chunks
        if position not in chunks:
            chunks[position] = read()
        return chunks[position]


def _stored(store: ts.KvStore, folder: str, layout: Layout, where: str, recent: _Recent) -> Stored:
    def chunk(position: tuple[int, ...]) -> np.ndarray:
        if len(layout.shape) < 3:
            return _chunk(store, folder, layout, position, where)
        read = functools.partial(_chunk, store, folder, layout, position, where)
        return recent.chunk(folder, position, read)

    return Stored(
        shape=layout.shape,
        dtype=layout.dtype,
        read=lambda index: _read(chunk, layout, index, where),
        where=where,
        rows=layout.chunks[0] if layout.chunks else 1,
    )


def _read(
    chunk: Callable[[tuple[int, ...]], np.ndarray], layout: Layout, index: Index, where: str
) -> np.ndarray:
    try:
        np.empty(layout.chunk_bytes, np.uint8)  # tensorstore would end the process
        if layout.is_in_one_chunk(index):
            position = next(layout.positions(index))
            return np.asarray(chunk(position)[layout.overlap(position, index)[1]])
        part = np.empty([one.stop - one.start for one in index], layout.dtype)
    except (MemoryError, ValueError) as error:
        raise CheckpointError(f"{where} is larger than the memory ({error}).") from error

    def fill(position: tuple[int, ...]) -> None:
        into, of = layout.overlap(position, index)
        part[into] = chunk(position)[of]

    positions = layout.positions(index)
    # Many small chunks at a time, or one that is large: each takes its memory twice.
    threads = max(1, min(_THREADS, _AT_ONCE // max(1, layout.chunk_bytes)))
    with futures.ThreadPoolExecutor(threads) as pool:
        # In groups, so that a missing chunk is met before a false number of chunks is queued.
        while group := list(itertools.islice(positions, 4 * threads)):
            list(pool.map(fill, group))
    return part


def _chunk(
    store: ts.KvStore, folder: str, layout: Layout, position: tuple[int, ...], where: str
) -> np.ndarray:
    key = layout.key(position)
    content = _result(store.read(f"{folder}/{key}"), f"{where}/{key}")
    if content is None:
        raise CheckpointError(
            f"{where} has no chunk {key!r}. The checkpoint is incomplete; copy it again."
        )
    if not layout.can_be_chunk(len(content)):
        raise CheckpointError(
            f"{where}/{key} has {len(content)} bytes, which cannot be a chunk of {layout.dtype} "
            f"of shape {layout.chunks}. The file is cut short or damaged."
        )
    try:
        if layout.plain is not None:
            return _unpacked(content, layout)
        # Decoding stops with an error where a chunk goes on beyond its shape.
        memory = ts.KvStore.open({"driver": "memory"}).result()
        array = ts.open(
            {"driver": layout.driver, "metadata": layout.one_chunk}, kvstore=memory, create=True
        ).result()
        memory.write(layout.key((0,) * len(layout.chunks)), content).result()
        del content  # it has been copied
        return array.read().result()
    except (*_FAULTS, zlib.error) as error:
        raise CheckpointError(f"{where}/{key} is cut short or damaged ({error}).") from error


def _unpacked(content: bytes, layout: Layout) -> np.ndarray:
    # Not by tensorstore, which does not see that the end with the checksum is missing.
    numbers = _inflated(content, layout.chunk_bytes) if layout.deflated else content
    dtype, order = layout.plain or (layout.dtype, "C")
    return np.frombuffer(numbers, dtype).reshape(layout.chunks, order=order)


def _inflated(content: bytes, size: int) -> bytearray:
    """Unpacks gzip or zlib piece by piece, so that the whole is in memory once."""
    stream, inflated, end = zlib.decompressobj(wbits=47), bytearray(size), 0
    view = memoryview(content)
    for start in range(0, len(content), _PIECE):
        # One byte more than there is room for shows that there is too much.
        piece = stream.decompress(view[start : start + _PIECE], size - end + 1)
        if stream.unconsumed_tail or stream.unused_data or end + len(piece) > size:
            break
        inflated[end : end + len(piece)] = piece
        end += len(piece)
    if end != size or not stream.eof or stream.unused_data or stream.unconsumed_tail:
        raise ValueError(f"expected {size} bytes and the end of the stream")
    return inflated


def _result(future: ts.Future, where: str) -> bytes | None:
    try:
        answer = future.result()
    except _FAULTS as error:
        raise CheckpointError(f"{where} cannot be read ({error}).") from error
    return None if answer.state == "missing" else answer.value
