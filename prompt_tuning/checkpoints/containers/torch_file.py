"""Files of `torch.save` with a dictionary of tensors (`pytorch_model.bin`), read without torch.

Nothing in the file is run (see `torch_pickle`), and numbers are read when they are asked for. Both
layouts: the zip archive of torch 1.6 and later, and the one before, a row of pickles with the
storages behind.
"""

import dataclasses
import io
import math
import re
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
from etils import epath

from prompt_tuning.checkpoints.containers import byte_range, torch_pickle
from prompt_tuning.checkpoints.containers.byte_range import damaged
from prompt_tuning.checkpoints.containers.stored import Index, Stored
from prompt_tuning.checkpoints.containers.torch_pickle import Storage, Tensor
from prompt_tuning.errors import CheckpointError

# Names and shapes of the largest T5 take 200 kB, the directory of its archive 100 kB.
_LONGEST_TABLE = 4_000_000
_ZIP = b"PK\x03\x04"
_PICKLE = b"\x80\x02"
_LEGACY_MAGIC, _LEGACY_VERSION = 0x1950A86A20F9469CFC6C, 1001
_RESAVE = "Load it with torch and save it again, or convert it to safetensors."


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Data:
    """Where a storage's numbers lie; `start` looks at the file, and only when they are needed."""

    start: Callable[[], int]
    size: int


def open_torch(path: epath.Path) -> dict[str, Stored]:
    """Returns the tensors of a file by name; those that share their numbers are one object.

    Raises:
        CheckpointError: no such file, damaged, or anything else than a dictionary of tensors.
    """
    size = byte_range.file_size(path)
    head = byte_range.read_range(path, 0, min(4, size))
    if head == _ZIP:
        tensors, data = _open_zip(path, size)
    elif head[:2] == _PICKLE:
        tensors, data = _open_legacy(path, size)
    else:
        raise CheckpointError(f"{path!s} is not a file of torch.save.")
    # Tied weights are several names for the same numbers.
    opened: dict[Tensor, Stored] = {}
    return {
        name: opened.setdefault(one, _stored(path, name, one, data))
        for name, one in tensors.items()
    }


def _tensors(found: Any, where: str) -> dict[str, Tensor]:
    if type(found) is not dict:
        raise CheckpointError(f"{where} holds a {type(found).__name__}, expected a dictionary.")
    for name, one in found.items():
        if type(one) is not Tensor:
            raise CheckpointError(
                f"{where} holds a {type(one).__name__} under {name[:80]!r}, expected a tensor. "
                "Is it a training checkpoint? Save the model's state dict alone."
            )
    return found


class _Guarded(io.RawIOBase):
    """A zip file whose directory cannot make `zipfile` read more than a directory has."""

    def __init__(self, file: Any):
        self._file = file

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0, /) -> int:
        if whence == 0 and offset < 0:
            raise ValueError(f"byte {offset} is before the file")
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def read(self, size: int = -1, /) -> bytes:
        if size > _LONGEST_TABLE:
            raise ValueError(f"{size} bytes where the names of the tensors are expected")
        return self._file.read(min(size, _LONGEST_TABLE) if size >= 0 else _LONGEST_TABLE)


def _open_zip(path: epath.Path, size: int) -> tuple[dict[str, Tensor], dict[str, _Data]]:
    faults = (zipfile.BadZipFile, struct.error, ValueError, EOFError, RuntimeError)
    with path.open("rb") as file, damaged(path, *faults):
        archive = zipfile.ZipFile(_Guarded(file))  # pyright: ignore[reportArgumentType]
        members = {info.filename: info for info in archive.infolist()}
        if len(members) < len(archive.infolist()):
            raise CheckpointError(f"{path!s} holds two members of one name. {_RESAVE}")
        inside = _folder(members, path)
        for name in (f"{inside}/data.pkl", f"{inside}/byteorder"):
            if name in members and members[name].file_size > _LONGEST_TABLE:
                raise CheckpointError(
                    f"{path!s}: {name} has {members[name].file_size} bytes, expected no more than "
                    f"{_LONGEST_TABLE}."
                )
        for info in members.values():
            _check_member(info, size, path)
        order = archive.read(f"{inside}/byteorder") if f"{inside}/byteorder" in members else b""
        pickle = archive.read(f"{inside}/data.pkl")
    if order not in (b"", b"little"):
        raise CheckpointError(f"{path!s} was saved by a big-endian machine. {_RESAVE}")
    found = torch_pickle.unpickled(io.BytesIO(pickle), f"{path!s}: {inside}/data.pkl")
    data = {
        name.removeprefix(f"{inside}/data/"): _zip_data(info, path)
        for name, info in members.items()
        if name.startswith(f"{inside}/data/")
    }
    return _tensors(found, str(path)), data


def _folder(members: dict[str, zipfile.ZipInfo], path: epath.Path) -> str:
    """Returns the folder in the archive that holds everything; torch names it after the file."""
    found = [match[1] for name in members if (match := re.fullmatch(r"([^/]+)/data\.pkl", name))]
    if len(found) != 1:
        raise CheckpointError(
            f"{path!s} is a zip archive with {len(found)} files data.pkl, torch.save writes one."
        )
    return found[0]


def _check_member(info: zipfile.ZipInfo, size: int, path: epath.Path) -> None:
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
        raise CheckpointError(
            f"{path!s}: {info.filename[:80]!r} is compressed, torch.save never does that. {_RESAVE}"
        )
    if not 0 <= info.header_offset <= info.header_offset + 30 + info.file_size <= size:
        raise CheckpointError(
            f"{path!s}: {info.filename[:80]!r} of {info.file_size} bytes does not fit into the "
            f"file of {size} bytes. The file is cut short or damaged."
        )


def _zip_data(info: zipfile.ZipInfo, path: epath.Path) -> _Data:
    def start() -> int:
        # Name and extra field stand between the header of 30 bytes and the numbers.
        header = byte_range.read_range(path, info.header_offset, 30)
        if header[:4] != _ZIP:
            raise CheckpointError(f"{path!s}: {info.filename!r} is not where it is said to be.")
        lengths = np.frombuffer(header[26:30], "<u2").astype(int)
        return info.header_offset + 30 + int(lengths.sum())

    return _Data(start=start, size=info.file_size)


def _open_legacy(path: epath.Path, size: int) -> tuple[dict[str, Tensor], dict[str, _Data]]:
    head = io.BytesIO(byte_range.read_range(path, 0, min(size, _LONGEST_TABLE)))
    magic, version, machine = (torch_pickle.unpickled(head, str(path)) for _ in range(3))
    if type(magic) is not int or magic != _LEGACY_MAGIC:
        raise CheckpointError(f"{path!s} is a pickle, but not of torch.save.")
    if type(version) is not int or version != _LEGACY_VERSION or type(machine) is not dict:
        raise CheckpointError(f"{path!s} was saved by a torch that nobody knows. {_RESAVE}")
    if machine.get("little_endian") is not True:
        raise CheckpointError(f"{path!s} was saved by a big-endian machine. {_RESAVE}")
    tensors = _tensors(torch_pickle.unpickled(head, str(path)), str(path))
    keys = torch_pickle.unpickled(head, str(path))
    storages = {one.storage.key: one.storage for one in tensors.values()}
    if type(keys) is not list or not all(type(key) is str and key in storages for key in keys):
        raise CheckpointError(f"{path!s} lists other storages than its tensors lie in. {_RESAVE}")
    data, position = {}, head.tell()
    for key in keys:
        data[key] = _legacy_data(storages[key], position, path)
        position += 8 + data[key].size
    if position != size:
        raise CheckpointError(
            f"{path!s} has {size} bytes, its tensors end at byte {position}. The file is cut short "
            "or damaged."
        )
    return tensors, data


def _legacy_data(storage: Storage, position: int, path: epath.Path) -> _Data:
    def start() -> int:
        count = int.from_bytes(byte_range.read_range(path, position, 8), "little")
        if count != storage.count:
            raise CheckpointError(
                f"{path!s}: storage {storage.key[:80]!r} is said to hold {storage.count} numbers "
                f"and holds {count}. The file is damaged."
            )
        return position + 8

    return _Data(start=start, size=storage.count * storage.dtype.itemsize)


def _stored(path: epath.Path, name: str, tensor: Tensor, data: dict[str, _Data]) -> Stored:
    where = f"{path!s}: {name}"
    storage, dtype = tensor.storage, tensor.storage.dtype
    if storage.key not in data:
        raise CheckpointError(f"{where} lies in storage {storage.key[:80]!r}, which is missing.")
    numbers = data[storage.key]
    needed = 1 + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.strides, strict=True))
    needed = needed if math.prod(tensor.shape) else 0
    # No more numbers than are stored: a stride of 0 would make a large tensor of a small file.
    if max(tensor.offset + needed, math.prod(tensor.shape)) * dtype.itemsize > numbers.size:
        raise CheckpointError(
            f"{where} of shape {tensor.shape} does not fit into its storage of {numbers.size} "
            "bytes. The file is damaged."
        )
    skipped = tensor.offset * dtype.itemsize

    def rows(index: Index) -> np.ndarray:
        begin = numbers.start() + skipped
        return byte_range.array_at(path, begin, tensor.shape, dtype, where).read(index)

    def strided(index: Index) -> np.ndarray:
        begin = numbers.start() + skipped
        flat = byte_range.array_at(path, begin, (needed,), dtype, where).load()
        steps = tuple(step * dtype.itemsize for step in tensor.strides)
        return np.lib.stride_tricks.as_strided(flat, tensor.shape, steps, writeable=False)[index]

    read = rows if _is_row_major(tensor) else strided
    return Stored(shape=tensor.shape, dtype=dtype, read=read, where=where)


def _is_row_major(tensor: Tensor) -> bool:
    step = 1
    for size, found in zip(reversed(tensor.shape), reversed(tensor.strides), strict=True):
        if size != 1 and found != step:
            return False
        step *= size
    return True
