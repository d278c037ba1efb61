"""The pickle inside a torch file, followed without running anything that it names.

Pickle is a program that may call any function of Python. A dictionary of tensors needs only a few
of its instructions and the names below; whatever else a file asks for is refused.
"""

import dataclasses
import io
import pickletools
from collections.abc import Iterable
from typing import Any, cast

import ml_dtypes
import numpy as np

from prompt_tuning.checkpoints.containers.byte_range import MAX_DIMENSIONS, damaged
from prompt_tuning.errors import CheckpointError

STORAGES = {
    "torch.DoubleStorage": np.dtype("<f8"),
    "torch.FloatStorage": np.dtype("<f4"),
    "torch.HalfStorage": np.dtype("<f2"),
    "torch.BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch.LongStorage": np.dtype("<i8"),
    "torch.IntStorage": np.dtype("<i4"),
    "torch.ShortStorage": np.dtype("<i2"),
    "torch.CharStorage": np.dtype("i1"),
    "torch.ByteStorage": np.dtype("u1"),
    "torch.BoolStorage": np.dtype("?"),
}


@dataclasses.dataclass(frozen=True)
class Global:
    """A name of Python's that the file mentions; never looked up."""

    name: str


@dataclasses.dataclass(frozen=True)
class Storage:
    """A run of numbers outside of the pickle."""

    key: str
    dtype: np.dtype
    count: int


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A view of a storage; offset and strides count numbers, not bytes."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def unpickled(file: io.BytesIO, where: str) -> Any:
    """Returns what one pickle describes and leaves the file behind it.

    Dictionaries, lists, tuples, texts and numbers are Python's, the rest is described by the
    classes above. Never print, hash or compare the result as a whole: a few bytes can describe
    tuples in tuples whose text has no end.

    Raises:
        CheckpointError: it is damaged, or asks for more than a dictionary of tensors needs.
    """
    # The warning is about an escape sequence in a name, where warnings are errors.
    with damaged(where, ValueError, IndexError, KeyError, DeprecationWarning):
        return _followed(file, where)


def _followed(file: io.BytesIO, where: str) -> Any:
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        mark = marks.pop()
        items = stack[mark:]
        del stack[mark:]
        return items

    # Typed as if any instruction could come without its argument.
    for opcode, argument, _ in cast("Iterable[tuple[Any, Any, Any]]", pickletools.genops(file)):
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return stack.pop()
            case "MARK":
                marks.append(len(stack))
            case "NONE":
                stack.append(None)
            case "NEWTRUE":
                stack.append(True)
            case "NEWFALSE":
                stack.append(False)
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT":
                stack.append(argument)
            case "BINUNICODE" | "SHORT_BINUNICODE":
                stack.append(argument)
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(opcode.name[-1])
                items = tuple(stack[-count:])
                del stack[-count:]
                stack.append(items)
            case "TUPLE":
                stack.append(tuple(since_mark()))
            case "APPEND":
                item = stack.pop()
                _kind(stack[-1], list, where).append(item)
            case "APPENDS":
                items = since_mark()
                _kind(stack[-1], list, where).extend(items)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _kind(stack[-1], dict, where)[_kind(key, str, where)] = value
            case "SETITEMS":
                items = since_mark()
                target = _kind(stack[-1], dict, where)
                for key, value in zip(items[::2], items[1::2], strict=True):
                    target[_kind(key, str, where)] = value
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL":
                stack.append(_global(argument.replace(" ", "."), where))
            case "STACK_GLOBAL":
                name, module = _kind(stack.pop(), str, where), _kind(stack.pop(), str, where)
                stack.append(_global(f"{module}.{name}", where))
            case "BINPERSID":
                stack.append(_storage(stack.pop(), where))
            case "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                name = _kind(function, Global, where).name
                stack.append(_CALLS[name](*_kind(arguments, tuple, where), where=where))
            case "BUILD":
                stack.pop()  # Attributes of a state dict: versions of its modules.
                _kind(stack[-1], dict, where)
            case other:
                raise CheckpointError(
                    f"{where} uses pickle's instruction {other}, which a dictionary of tensors "
                    "does not need. It was not read any further."
                )
    raise CheckpointError(f"{where} has no end.")


def _kind(found: Any, kind: type, where: str) -> Any:
    # Not isinstance: True is an int.
    if type(found) is not kind:
        raise CheckpointError(
            f"{where} holds a {type(found).__name__} where a dictionary of tensors has a "
            f"{kind.__name__}. It was not read any further."
        )
    return found


def _global(name: str, where: str) -> Global:
    if name not in STORAGES and name not in _CALLS:
        raise CheckpointError(
            f"{where} wants to run {name[:80]!r}, which a dictionary of tensors does not need. "
            "Nothing of it was run. Ask who made the file for safetensors."
        )
    return Global(name)


def _storage(description: Any, where: str) -> Storage:
    description = _kind(description, tuple, where)
    if len(description) == 6 and description[5] is None:  # torch before 1.6: no view of another
        description = description[:5]
    if len(description) != 5:
        raise CheckpointError(f"{where} describes a storage by {len(description)} items, not 5.")
    kind, dtype, key, _, count = description
    name = _kind(dtype, Global, where).name
    if name not in STORAGES or _kind(kind, str, where) != "storage":
        raise CheckpointError(f"{where} keeps numbers in something else than a storage: {name}.")
    return Storage(_kind(key, str, where), STORAGES[name], _sizes((count,), where)[0])


def _sizes(found: Any, where: str) -> tuple[int, ...]:
    sizes = _kind(found, tuple, where)
    # Below 2**40 no stride of numpy's overflows.
    if len(sizes) > MAX_DIMENSIONS or not all(type(n) is int and 0 <= n < 2**40 for n in sizes):
        raise CheckpointError(f"{where} holds sizes that are not those of a tensor.")
    return sizes


def _rebuild_tensor(*arguments: Any, where: str) -> Tensor:
    # What follows are gradients, hooks and metadata.
    if len(arguments) < 4:
        raise CheckpointError(f"{where} describes a tensor by {len(arguments)} items.")
    storage, offset, shape, strides = arguments[:4]
    (offset,) = _sizes((offset,), where)
    shape, strides = _sizes(shape, where), _sizes(strides, where)
    if len(shape) != len(strides):
        raise CheckpointError(f"{where} holds a tensor of {len(shape)} sizes and other strides.")
    return Tensor(_kind(storage, Storage, where), offset, shape, strides)


def _rebuild_parameter(*arguments: Any, where: str) -> Tensor:
    if not arguments:
        raise CheckpointError(f"{where} holds a parameter without a tensor.")
    return _kind(arguments[0], Tensor, where)


def _ordered_dict(*arguments: Any, where: str) -> dict:
    if arguments:
        raise CheckpointError(f"{where} makes an OrderedDict of something.")
    return {}


# What each function that a file may call stands for.
_CALLS = {
    "collections.OrderedDict": _ordered_dict,
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
}
