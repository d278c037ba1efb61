"""Hashes of what examples follow from: of files, and of the functions that make text of records.

A function is described by what it does: its bytecode, constants, defaults and closure, and the
same of all that it refers to. What comes from a library is described by its name and the library's
version, as nobody can publish two contents under one version.
"""

import dataclasses
import dis
import functools
import hashlib
import importlib
import importlib.util
import logging
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any

import numpy as np
from etils import epath

from prompt_tuning.data.module_versions import (
    UnversionedError,
    is_versioned,
    name_with_version,
)
from prompt_tuning.errors import DataError
from prompt_tuning.paths import is_local

_LITERALS = (type(None), bool, int, float, complex, str, bytes, type(...), range)
_NO_INSTRUCTIONS = {"CACHE", "EXTENDED_ARG", "NOP", "PUSH_NULL"}
_ATTRIBUTES = {"LOAD_ATTR", "LOAD_METHOD"}


class IndescribableError(Exception):
    """A value of which nothing is known but where it lies in memory."""


def of_files(paths: Iterable[str]) -> str:
    """Returns a hash of files, in their order, wherever they lie.

    Of local files the contents count, of objects in a store the size and the time of writing.

    Raises:
        DataError: a file that cannot be read.
    """
    with futures.ThreadPoolExecutor(4) as pool:
        return _digest("files", *pool.map(_of_file, map(epath.Path, paths)))


def of_function(
    function: Callable[..., Any], known: Callable[[Any], str | None] = lambda value: None
) -> str:
    """Returns a hash of what a function does.

    Args:
        function: also a partial, a method, or an object that can be called.
        known: describes values that it knows, and returns None of the others.

    Raises:
        IndescribableError: the function depends on something that cannot be described.
    """
    module = _module_of(getattr(function, "func", function)) or ""
    try:
        return _Descriptions(package=module.partition(".")[0], known=known).of(function)
    except (UnversionedError, RecursionError) as error:
        raise IndescribableError(str(error)) from error


class _Descriptions:
    """Describes values by hashes, each value once; one within itself by how far above it stands."""

    def __init__(self, package: str, known: Callable[[Any], str | None]):
        self.package = package
        self.known = known
        self.above: list[Any] = []
        # The values stay alive, so that no other one gets the address of one of them.
        self.done: dict[int, tuple[Any, str]] = {}

    def of(self, value: Any) -> str:
        if isinstance(value, _LITERALS):
            return _digest("literal", type(value).__name__, repr(value))
        if id(value) in self.done:
            return self.done[id(value)][1]
        for height, outer in enumerate(reversed(self.above)):
            if outer is value:
                return _digest("cycle", str(height))
        self.above.append(value)
        description = _digest(type(value).__qualname__, *self._parts(value))
        self.above.pop()
        self.done[id(value)] = (value, description)
        return description

    def _parts(self, value: Any) -> Iterator[str]:
        """Yields the descriptions of what a value consists of."""
        if (description := self.known(value)) is not None:
            yield description
            return
        match value:
            case types.FunctionType():
                yield from self._of_function(value)
            case types.CodeType():
                yield from self._of_code(value)
            case types.ModuleType():
                yield self._of_module(value)
            case type():
                yield from self._of_class(value)
            case functools.partial():
                yield from map(self.of, (value.func, value.args, value.keywords))
            case types.MethodType():
                yield from map(self.of, (value.__func__, value.__self__))
            case staticmethod() | classmethod():
                yield self.of(value.__func__)
            case functools.cached_property():
                yield self.of(value.func)
            case property():
                yield from map(self.of, (value.fget, value.fset, value.fdel))
            case types.BuiltinFunctionType() if not isinstance(value.__self__, types.ModuleType):
                yield from (value.__name__, self.of(value.__self__))
            case _ if isinstance(value, _WRITTEN_IN_C):
                yield from (name_with_version(_module_of(value) or "builtins"), value.__qualname__)
            case np.ndarray() | np.generic() if value.dtype != object:
                yield from (str(value.dtype), str(value.shape))
                yield hashlib.sha256(value.tobytes()).hexdigest()
            case logging.Logger():
                yield value.name
            case dict() | types.MappingProxyType():
                yield self.of(type(value))
                yield from (self.of(part) for item in value.items() for part in item)
            case set() | frozenset():
                yield from sorted(map(self.of, value))
            case tuple() | list():
                yield from (self.of(type(value)), *map(self.of, value))
            case _:
                yield from self._of_instance(value)

    def _of_function(self, function: types.FunctionType) -> Iterator[str]:
        module = function.__globals__.get("__name__", "")
        yield function.__qualname__
        for cell in function.__closure__ or ():
            yield self.of(_content(cell))
        if is_versioned(module, self.package):
            yield name_with_version(module)
            return
        yield module
        for part in (function.__code__, function.__defaults__, function.__kwdefaults__):
            yield self.of(part)
        for code in _nested(function.__code__):
            for value in self._referred(code, function.__globals__):
                yield self.of(value)

    def _of_code(self, code: types.CodeType) -> Iterator[str]:
        arguments = code.co_argcount + code.co_kwonlyargcount
        yield code.co_code.hex() + code.co_exceptiontable.hex()
        # The names of arguments too, as a caller may look which there are.
        yield repr((code.co_flags, code.co_argcount, code.co_varnames[:arguments], code.co_names))
        yield from map(self.of, code.co_consts)

    def _of_module(self, module: types.ModuleType) -> str:
        path = getattr(module, "__file__", None)
        if path and not is_versioned(module.__name__, self.package):
            return of_files([path])
        return name_with_version(module.__name__)

    def _of_class(self, cls: type) -> Iterator[str]:
        yield cls.__qualname__
        if is_versioned(cls.__module__, self.package):
            yield name_with_version(cls.__module__)
            return
        yield cls.__module__
        yield from map(self.of, cls.__bases__)
        for name, member in vars(cls).items():
            generated = name.startswith("__") and not isinstance(member, _CODE)
            if not generated and name != "_abc_impl" and not isinstance(member, _WRITTEN_IN_C):
                yield from (name, self.of(member))

    def _of_instance(self, value: Any) -> Iterator[str]:
        if isinstance(fingerprint := getattr(value, "fingerprint", None), str):
            yield from (type(value).__module__, fingerprint)
            return
        yield self.of(type(value))
        if dataclasses.is_dataclass(value):
            for field in dataclasses.fields(value):
                yield from (field.name, self.of(getattr(value, field.name)))
        elif callable(inner := getattr(value, "__wrapped__", None)):
            yield self.of(inner)  # of a functools.cache
        elif callable(inner := getattr(value, "python_function", None)):
            yield self.of(inner)  # of a tf.function
        elif hasattr(value, "__array__"):
            yield self.of(_as_array(value))
        else:
            yield from map(self.of, _state(value))

    def _referred(self, code: types.CodeType, known: Mapping[str, Any]) -> Iterator[Any]:
        """Yields the globals of a function, and of our own modules only what it takes of them."""
        steps = [one for one in dis.get_instructions(code) if one.opname not in _NO_INSTRUCTIONS]
        for index, step in enumerate(steps):
            if step.opname in ("LOAD_GLOBAL", "LOAD_NAME") and step.argval in known:
                yield self._followed(known[step.argval], steps[index + 1 :])
            elif step.opname == "IMPORT_NAME":
                level, names = (one.argval for one in steps[index - 2 : index])
                yield from self._imported(step.argval, level, names, known.get("__package__"))

    def _followed(self, value: Any, steps: Sequence[dis.Instruction]) -> Any:
        for step in steps:
            if not isinstance(value, types.ModuleType) or step.opname not in _ATTRIBUTES:
                break
            if is_versioned(value.__name__, self.package):
                break
            value = getattr(value, step.argval, None)
        return value

    def _imported(
        self, name: str, level: int, names: Sequence[str] | None, package: str | None
    ) -> Iterator[Any]:
        """Yields what an import inside a function brings."""
        full = importlib.util.resolve_name("." * level + name, package)
        if is_versioned(full, self.package):
            yield name_with_version(full)  # Perhaps not imported yet, and not by us.
            return
        try:
            module = importlib.import_module(full)
        except ImportError:
            yield f"no {full}"
            return
        taken = [getattr(module, one, None) for one in names or () if one != "*"]
        yield from (taken or [module])


_CODE = (types.FunctionType, property, staticmethod, classmethod)
_WRITTEN_IN_C = (
    types.BuiltinFunctionType,
    types.GetSetDescriptorType,
    types.MemberDescriptorType,
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
    types.MethodWrapperType,
    types.ClassMethodDescriptorType,
    np.ufunc,
)


def _digest(*parts: str) -> str:
    lengths = ",".join(str(len(part)) for part in parts)
    return hashlib.sha256("\0".join([lengths, *parts]).encode("utf-8", "surrogatepass")).hexdigest()


def _of_file(path: epath.Path) -> str:
    try:
        if not is_local(path):
            stat = path.stat()
            return f"{path} {stat.length} {stat.mtime}"
        with path.open("rb") as file:
            return hashlib.file_digest(file, hashlib.blake2b).hexdigest()
    except OSError as error:
        raise DataError(f"Cannot read {str(path)!r}: {error}.") from error


def _module_of(value: Any) -> str | None:
    return getattr(value, "__module__", None)


def _nested(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _nested(constant)


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # Its name has no value yet.
        return None


def _state(value: Any) -> list[Any]:
    """Returns what pickle would keep of an object."""
    try:
        parts = value.__reduce_ex__(2)
    except Exception as error:
        raise IndescribableError(f"a {type(value).__qualname__} ({error})") from error
    if isinstance(parts, str):  # the name under which it would be imported
        raise IndescribableError(f"the {type(value).__qualname__} {parts}")
    return [part if index < 3 else list(part or ()) for index, part in enumerate(parts)]


def _as_array(value: Any) -> Any:
    try:
        return np.asarray(value)
    except Exception as error:
        raise IndescribableError(f"a {type(value).__qualname__} ({error})") from error
