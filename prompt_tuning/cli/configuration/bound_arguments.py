"""What gin would call a function with, argument by argument, and nothing that is not asked for.

gin makes every argument before it calls a function, so that a look at a batch's size would read the
data. Here a reference can be followed without being called, and a setting without a value is only
missed by those who ask for what needs it.
"""

import copy
import functools
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from gin import config as gin_config

from prompt_tuning.cli.configuration import gin_binder


class Missing(Exception):
    """What was asked for needs these macros, which have no value."""

    def __init__(self, names: Collection[str]):
        super().__init__(", ".join(names))
        self.names = names


class Bound:
    """A function or class with what gin has bound to it.

    Args:
        configurable: as gin knows it.
        scopes: of the reference that leads to it.

    Attributes:
        function: itself, without gin.
    """

    def __init__(self, configurable: gin_config.Configurable, scopes: Sequence[str] = ()):
        self.function: Callable[..., Any] = configurable.wrapped
        self._configurable = configurable
        self._scopes = list(scopes)
        self._bound = gin_config._get_bindings(configurable.selector, scope_components=self._scopes)

    def __contains__(self, name: str) -> bool:
        return name in self._bound

    def value(self, name: str, default: Any = None, *, without: Collection[str] = ()) -> Any:
        """Returns one argument as gin would make it.

        Args:
            name: of the argument.
            default: what it is if gin has nothing for it.
            without: arguments that whoever calls it will give, however deep they are.

        Raises:
            Missing: it needs macros that have no value.
        """
        if name not in self._bound:
            return default
        missing = sorted(set(_missing(self._bound[name], without)))
        if missing:
            raise Missing(missing)
        return copy.deepcopy(self._bound[name])

    def follow(self, name: str) -> "Bound | None":
        """Returns the function or class that an argument is, or is made by; None for other values.

        Raises:
            Missing: it is a macro without a value.
        """
        value = self._bound.get(name)
        while isinstance(value, gin_config.ConfigurableReference):
            if value.configurable.wrapped is not gin_config.macro:
                if value.configurable.wrapped is gin_config._retrieve_constant:
                    return None
                return Bound(value.configurable, value.scopes or self._scopes)
            if _is_required(value):
                raise Missing(["/".join(value.scopes)])
            value = _value_of(value)
        return None

    def partial(self, **given: Any) -> Callable[..., Any]:
        """Returns the function without gin, with all that is bound but for what is given here."""
        made = {name: self.value(name, without=given) for name in self._bound if name not in given}
        known = {one.name for one in gin_binder.parameters(self.function)}
        return functools.partial(
            self.function, **made, **{name: one for name, one in given.items() if name in known}
        )


def bound(function: Callable[..., Any]) -> Bound | None:
    """Returns a function with what the configuration binds to it; None if no file mentions it."""
    configurable = gin_config._inverse_lookup(function)
    return None if configurable is None else Bound(configurable)


def _missing(value: Any, without: Collection[str]) -> Iterator[str]:
    for reference in gin_config.iterate_references(value):
        if _is_required(reference):
            yield "/".join(reference.scopes)
            continue
        if reference.configurable.wrapped is gin_config._retrieve_constant:
            continue
        given = gin_config._get_bindings(
            reference.configurable.selector, scope_components=reference.scopes
        )
        for name, one in given.items():
            if name not in without:
                yield from _missing(one, without)


def _value_of(macro: gin_config.ConfigurableReference) -> Any:
    bound = gin_config._get_bindings(macro.configurable.selector, scope_components=macro.scopes)
    return bound.get("value")


def _is_required(reference: gin_config.ConfigurableReference) -> bool:
    if reference.configurable.wrapped is not gin_config.macro:
        return False
    value = _value_of(reference)
    if isinstance(value, gin_config.ConfigurableReference):
        is_constant = value.configurable.wrapped is gin_config._retrieve_constant
        return is_constant and value.scopes == ["gin.REQUIRED"]
    return value is gin_config.REQUIRED
