"""Checks the type of plain values before anything is called with them.

A number in quotes or a `None` too many would otherwise end in a traceback, and far from the line
that it stands in. Only plain values are looked at: numbers, texts, truth values, None, lists and
dictionaries. An argument may ask for such a value, or for a strategy, which a plain value never is:
a function, a dataclass or what a protocol describes.
"""

import collections.abc
import dataclasses
import difflib
import inspect
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from gin import config as gin_config
from gin.config_parser import BindingStatement

from prompt_tuning.cli.arguments import gin_flag
from prompt_tuning.cli.configuration.gin_reader import (
    Configuration,
    Macro,
    Reference,
    binding_name,
    place,
    setting_of,
)
from prompt_tuning.cli.configuration.provenance import shown
from prompt_tuning.errors import ConfigError

_WORDS = {
    bool: "True or False",
    int: "an integer",
    float: "a number",
    str: "text",
    type(None): "None",
    collections.abc.Sequence: "a list",
    collections.abc.Mapping: "a dictionary",
}
# What an argument of a type takes.
_TAKES = {
    bool: bool,
    int: int,
    float: (int, float),
    str: str,
    type(None): type(None),
    collections.abc.Sequence: (list, tuple),
    collections.abc.Mapping: dict,
}
_CONTAINERS = {
    list: collections.abc.Sequence,
    tuple: collections.abc.Sequence,
    dict: collections.abc.Mapping,
}


def check(configuration: Configuration) -> None:
    """Checks the values of all arguments, after the configuration was bound.

    Raises:
        ConfigError: all values of a wrong type, each with its place and what was expected.
    """
    macros = {one.selector: one for one in configuration.bindings() if not one.arg_name}
    last = {setting_of(one): one for one in configuration.bindings() if one.arg_name}
    faults = dict.fromkeys(fault for one in last.values() for fault in _faults(one, macros))
    if faults:
        raise ConfigError("\n".join(faults))


def _faults(one: BindingStatement, macros: Mapping[str, BindingStatement]) -> Iterator[str]:
    source = one
    for _ in macros:  # a macro may stand for another, or by mistake for itself
        if isinstance(source.value, Macro) and source.value.name in macros:
            source = macros[source.value.name]
    value = source.value
    accepted = _accepted(_function(one.selector.rpartition(".")[2]), one.arg_name)
    if accepted is None or isinstance(value, Macro) or _fits(value, accepted):
        return
    wanted = " or ".join(map(_word, accepted))
    name = binding_name(source)
    of = "" if source is one else f", of {binding_name(one)}"
    mended = _mended(value, accepted)
    fix = f" Write {gin_flag(name, mended)}." if mended else _references(value, accepted)
    yield f"{place(source)}: {name} is {_said(value)}, expected {wanted}{of}.{fix}"


def _word(kind: Any) -> str:
    if kind is collections.abc.Callable:
        return "a function (@module.name)"
    return _WORDS.get(kind) or f"{kind.__name__} (@module.name())"


def _references(value: Any, accepted: list[type]) -> str:
    """Returns what was probably meant by a name in the place of a strategy."""
    if not isinstance(value, str) or not _strategies(accepted):
        return ""
    known = {
        name.rpartition(".")[2].casefold(): ".".join(name.split(".")[-2:])
        for name in gin_config._REGISTRY._selector_map
    }
    close = difflib.get_close_matches(value.casefold(), known, n=1)
    return f" Did you mean @{known[close[0]]}()?" if close else ""


def _function(selector: str) -> Any:
    """Returns what a name of the configuration means; None if that is nothing or several things."""
    try:
        configurable = gin_config._REGISTRY.get_match(selector)
    except KeyError:  # several functions of this name
        return None
    return None if configurable is None else configurable.wrapped


def _accepted(function: Any, argument: str) -> list[type] | None:
    """Returns the types that an argument may have; None if plain values may be others, too.

    Those that a function returns are the types of its argument `return`.
    """
    construct = function.__init__ if inspect.isclass(function) else function
    try:
        hint = typing.get_type_hints(construct).get(argument)
    except (NameError, TypeError, AttributeError):  # names that only a type checker imports
        return None
    if hint is None:
        return None
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    kinds = []
    for member in typing.get_args(hint) if union else (hint,):
        origin = typing.get_origin(member) or member
        kind = _CONTAINERS.get(origin, origin)
        if kind not in _WORDS and not _is_strategy(kind):
            return None
        kinds.append(kind)
    return kinds


def _is_strategy(kind: Any) -> bool:
    """Tells whether instances of a type are never plain values."""
    return kind is collections.abc.Callable or (
        inspect.isclass(kind)
        and (dataclasses.is_dataclass(kind) or getattr(kind, "_is_runtime_protocol", False))
    )


def _strategies(accepted: list[type]) -> list[type]:
    return [kind for kind in accepted if kind not in _WORDS]


def _fits(value: Any, accepted: list[type]) -> bool:
    strategies = _strategies(accepted)
    if isinstance(value, Reference):
        return bool(strategies) or (value.evaluate and _returns(value, accepted))
    if any(isinstance(value, kind) for kind in strategies):
        return True  # a protocol of what plain values have, too
    if isinstance(value, bool):
        return bool in accepted
    return any(isinstance(value, _TAKES[kind]) for kind in accepted if kind in _TAKES)


def _returns(reference: Reference, accepted: list[type]) -> bool:
    """Whether a function returns a type that is accepted, as far as that is known."""
    function = _function(reference.selector.rpartition("/")[2])
    # A class returns itself, whatever its constructor does.
    kinds = None if inspect.isclass(function) else _accepted(function, "return")
    takes = {one for kind in accepted for one in _as_types(_TAKES[kind])}
    return kinds is None or any(
        takes & set(_as_types(_TAKES[kind])) for kind in kinds if kind in _TAKES
    )


def _as_types(kinds: Any) -> tuple[type, ...]:
    return kinds if isinstance(kinds, tuple) else (kinds,)


def _said(value: Any) -> str:
    if not isinstance(value, Reference):
        return repr(value)
    what = "which returns something else" if value.evaluate else "a function that is not called"
    return f"{shown(value)}, {what}"


def _mended(value: Any, accepted: list[type]) -> str | None:
    """Returns what was probably meant: `'32'` is 32 in quotes."""
    if _strategies(accepted):
        return None
    if isinstance(value, Reference):
        called = Reference(value.selector, evaluate=True)
        return shown(called) if not value.evaluate and _fits(called, accepted) else None
    if isinstance(value, str) and collections.abc.Sequence in accepted:
        return repr([value])
    if isinstance(value, str) and str not in accepted:
        return value if value and not value.isspace() else None
    if str in accepted and isinstance(value, int | float):
        return repr(str(value))
    return None
