"""Executes the statements that `gin_reader` has read: imports and bindings.

This is the loop of gin's `parse_config`, with a place and the nearest name in every error. gin's
public functions report neither, so its private names are used here; setup.py bounds the version of
gin-config for that reason.
"""

import contextlib
import inspect
import pkgutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import gin
from gin import config as gin_config
from gin.config_parser import BindingStatement, BlockDeclaration, ImportStatement

from prompt_tuning.cli.configuration.gin_reader import (
    Configuration,
    Macro,
    Reference,
    Source,
    binding_name,
    place,
)
from prompt_tuning.errors import ConfigError, nearest

RESERVED = ("gin", "dynamic_registration")


def bind(configuration: Configuration) -> None:
    """Executes the files in their order and then the bindings of the command line.

    Raises:
        ConfigError: A module that cannot be imported, an unknown function, class or parameter.
    """
    for file in configuration.files:
        _execute(file, gin_config.ParseContext())
    _execute(configuration.command_line, _CommandLine(configuration.files))


def parameters(function_or_class: Callable[..., Any]) -> list[inspect.Parameter]:
    """Returns what can be bound: the parameters of a function or of a class's constructor."""
    if not inspect.isclass(function_or_class):
        return list(inspect.signature(function_or_class).parameters.values())
    # Not the signature of the class: a metaclass with `__call__(*args, **kwargs)` hides it.
    construct = gin_config._find_class_construction_fn(function_or_class)
    return list(inspect.signature(construct).parameters.values())[1:]


def spelling(configurable: gin_config.Configurable, scopes: Sequence[str]) -> str:
    """Returns how a gin file names a configurable, or the macro of these scopes."""
    if configurable.wrapped is gin_config.macro:
        return f"%{'/'.join(scopes)}"
    if not configurable.import_source:
        return configurable.selector
    statement, name = configurable.import_source
    short = statement.is_from or statement.alias
    return f"{statement.bound_name() if short else statement.module}.{name}"


class _CommandLine(gin_config.ParseContext):
    """Resolves names as on the command line: what is registered, then what any file imports."""

    def __init__(self, files: Iterable[Source]) -> None:
        super().__init__()
        self._enable_dynamic_registration()
        for statement in (statement for file in files for statement in file.walk()):
            # The names of gin's own packages are those that it reserves.
            if isinstance(statement, ImportStatement) and statement.bound_name() not in RESERVED:
                self.process_import(statement)

    def get_configurable(self, selector: str) -> Any:
        registered = gin_config._REGISTRY.get_match(selector)
        return registered or super().get_configurable(selector)


def _execute(source: Source, context: gin_config.ParseContext) -> None:
    gin_config._PARSE_CONTEXTS.append(context)  # where gin resolves the names of references
    try:
        for statement in source.statements:
            if isinstance(statement, Source):
                _execute(statement, gin_config.ParseContext())
            else:
                with _located(statement):
                    _execute_statement(statement, context)
    finally:
        gin_config._PARSE_CONTEXTS.pop()
    gin_config._IMPORTS.update(context.imports)  # for `operative_config`


@contextlib.contextmanager
def _located(statement: Any) -> Iterator[None]:
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{place(statement)}: {error}") from error.__cause__


def _execute_statement(
    statement: BindingStatement | BlockDeclaration | ImportStatement,
    context: gin_config.ParseContext,
) -> None:
    if isinstance(statement, ImportStatement):
        _import(statement, context)
    elif isinstance(statement, BlockDeclaration):
        _configurable(statement.selector, context)
    elif not statement.arg_name:
        key = (binding_name(statement), "gin.macro", "value")
        gin.bind_parameter(key, _gin_value(statement.value, context))
    else:
        configurable = _configurable(statement.selector, context)
        _check_parameter(configurable, statement)
        key = (statement.scope, statement.selector, statement.arg_name)
        gin.bind_parameter(key, _gin_value(statement.value, context))


def _import(statement: ImportStatement, context: gin_config.ParseContext) -> None:
    module = statement.module
    if context._dynamic_registration and statement.bound_name() == "gin":
        raise ConfigError(f"`{statement.format()}`: gin keeps the name `gin`; add `as ANOTHER`.")
    try:
        context.process_import(statement)
    except SyntaxError as error:
        if module.startswith("__gin__"):
            raise ConfigError(error.msg) from error
        raise
    except ImportError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise ConfigError(f"importing {module} failed: {error}") from error
        raise ConfigError(f"there is no module {error.name}.{_instead_of(error.name)}") from error


def _instead_of(module: str) -> str:
    parent, _, name = module.rpartition(".")
    package = sys.modules.get(parent)
    if hasattr(package, name):
        return (
            f" `{name}` is a name in {parent}, and gin imports modules only: import {parent} and "
            f"write `{parent.rpartition('.')[2]}.{name}`."
        )
    beside = [found.name for found in pkgutil.iter_modules(getattr(package, "__path__", None))]
    return nearest(name, beside)


def _configurable(selector: str, context: gin_config.ParseContext) -> gin_config.Configurable:
    try:
        found = context.get_configurable(selector)
    except KeyError as error:  # the last parts of a name, which several registered names share
        raise ConfigError(error.args[0]) from error
    except (NameError, AttributeError, TypeError, ValueError) as error:
        raise ConfigError(_unknown_name(selector, context) or _taken(error)) from error
    if found is None:
        raise ConfigError(_unknown_name(selector, context))
    return found


def _unknown_name(selector: str, context: gin_config.ParseContext) -> str:
    first, *rest = selector.split(".")
    if not context._dynamic_registration:
        registered = [name for name, _ in gin_config._REGISTRY.items()]
        return (
            f"nothing called `{selector}` is registered.{nearest(selector, registered)} "
            "To use what a module defines, begin the file with "
            "`from __gin__ import dynamic_registration` and import the module."
        )
    if first not in context._symbol_table:
        names = [name for name in context._symbol_table if name != "gin"]
        imported = f" Imported are: {', '.join(names)}." if names else " Nothing is imported."
        close = nearest(first, names)
        if isinstance(context, _CommandLine):
            parts = -len(selector.split("."))
            registered = [name.split(".")[parts:] for name, _ in gin_config._REGISTRY.items()]
            close = nearest(selector, map(".".join, registered)) or close
        return f"`{first}` in `{selector}` is not imported.{close}{imported}"
    owner, path = context._symbol_table[first], first
    for name in rest:
        if not hasattr(owner, name):
            return f"`{path}` has no `{name}`.{nearest(name, dir(owner))}"
        owner, path = getattr(owner, name), f"{path}.{name}"
    return "" if callable(owner) else f"`{selector}` is not a function or a class."


def _taken(error: Exception) -> str:
    problem = str(error).partition("\n")[0]
    return f"{problem} Import one of the two modules under another name (`import ... as ...`)."


def _check_parameter(configurable: gin_config.Configurable, binding: BindingStatement) -> None:
    accepted = parameters(configurable.wrapped)
    accepts_any = any(one.kind is one.VAR_KEYWORD for one in accepted)
    names = [one.name for one in accepted]
    if not accepts_any and binding.arg_name not in names:
        raise ConfigError(
            f"`{binding.selector}` has no parameter `{binding.arg_name}`."
            f"{nearest(binding.arg_name, names)} It has: {', '.join(names) or 'none'}."
        )


def _gin_value(value: Any, context: gin_config.ParseContext) -> Any:
    """Replaces the placeholders of the reader by gin's references, in containers too."""
    if isinstance(value, dict):
        return {_gin_value(key, context): _gin_value(item, context) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_gin_value(item, context) for item in value)
    if isinstance(value, Reference):
        _configurable(value.selector.rpartition("/")[2], context)
        return gin_config.ConfigurableReference(value.selector, value.evaluate)
    if isinstance(value, Macro):
        constants = [name for name, _ in gin_config._CONSTANTS.items()]
        if value.is_constant and not gin_config._CONSTANTS.matching_selectors(value.name):
            raise ConfigError(
                f"there is no constant %{value.name}.{nearest(value.name, constants)}"
            )
        return gin_config.ParserDelegate().macro(value.name)
    return value
