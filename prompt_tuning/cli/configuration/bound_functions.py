"""The functions and classes of a bound configuration: what gin calls them, and their defaults."""

import ast
import dataclasses
import inspect
import sys
from typing import Any

from gin import config as gin_config

from prompt_tuning.cli.configuration import gin_binder


@dataclasses.dataclass(frozen=True, kw_only=True)
class Default:
    """The value that a function has of its own, and where the function is defined.

    `is_literal` says that gin can read the value.
    """

    value: str
    is_literal: bool
    function: str
    place: str | None


def registered_name(name: str) -> str:
    """Returns gin's own name of a function, through whichever module it is named.

    What is not registered keeps its name.
    """
    configurable = _configurable(name)
    return name if configurable is None else configurable.selector


def spelling(name: str) -> str:
    """Returns how a gin file names a function."""
    configurable = _configurable(name)
    return name if configurable is None else gin_binder.spelling(configurable, [])


def parameters(name: str) -> list[str]:
    """Returns the names of what can be bound, whether it has a default or not."""
    configurable = _configurable(name)
    return [] if configurable is None else list(_by_name(configurable))


def default_of(name: str, parameter: str) -> Default | None:
    """Returns the default of a parameter; None if it has none."""
    configurable = _configurable(name)
    found = configurable and _by_name(configurable).get(parameter)
    if configurable is None or found is None or found.default is found.empty:
        return None
    function = configurable.wrapped
    value = _default(function, found)
    return Default(
        value=_text(value),
        is_literal=_is_literal(value),
        function=f"{function.__module__}.{function.__qualname__}",
        place=_defined_at(function),
    )


def _configurable(name: str) -> gin_config.Configurable | None:
    parts = name.split(".")
    for end in range(len(parts) - 1, 0, -1):
        found = sys.modules.get(".".join(parts[:end]))
        for part in parts[end:]:
            found = getattr(found, part, None)
        if found is not None and (configurable := gin_config._inverse_lookup(found)):
            return configurable
    try:
        return gin_config._REGISTRY.get_match(name)
    except KeyError:  # several have this ending
        return None


def _by_name(configurable: gin_config.Configurable) -> dict[str, inspect.Parameter]:
    return {
        one.name: one
        for one in gin_binder.parameters(configurable.wrapped)
        if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)
    }


def _default(function: Any, parameter: inspect.Parameter) -> Any:
    # The signature of a dataclass shows `<factory>`.
    for field in dataclasses.fields(function) if dataclasses.is_dataclass(function) else ():
        if field.name == parameter.name and field.default_factory is not dataclasses.MISSING:
            return field.default_factory()
    return parameter.default


def _text(value: Any) -> str:
    if inspect.isroutine(value) or inspect.isclass(value):
        return f"{value.__module__}.{value.__qualname__}"
    return repr(value)


def _is_literal(value: Any) -> bool:
    try:
        return bool(ast.literal_eval(repr(value)) == value)
    except (SyntaxError, ValueError):
        return False


def _defined_at(function: Any) -> str | None:
    function = inspect.unwrap(function)
    try:
        return f"{inspect.getsourcefile(function)}:{inspect.findsource(function)[1] + 1}"
    except (OSError, TypeError):  # of C, or made at run time
        return None
