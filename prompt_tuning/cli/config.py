"""The gin layer: from `--gin_file` and `--gin.NAME=VALUE` to a configured function.

    config.parse(arguments)
    config.call(train, dry_run=arguments.dry_run)

Files are found in the current folder, then in `--gin_search_paths`, then in this package's own gin
folder, and so are their includes. Our files begin with `from __gin__ import dynamic_registration`:
any function or class of an imported module can be bound or referenced, nothing is decorated, and a
direct call from Python is unaffected. A binding of the command line may use every name that some
file has registered or imported; the last parts of a name are enough when they are unambiguous, as
in `--gin.train.seed=1`.

What gin would let pass, or report one at a time and without a place, is checked here: every setting
without a value, every macro that nothing reads, and every argument that a call would miss.

gin keeps its state in module globals, so a process has one configuration; `clear` empties it.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import gin
from gin import config as gin_config
from gin import config_parser
from gin.config_parser import BindingStatement

from prompt_tuning.cli.arguments import RunArguments
from prompt_tuning.cli.configuration import (
    gin_binder,
    gin_checks,
    gin_reader,
    gin_types,
    t5x_translation,
)
from prompt_tuning.cli.configuration.gin_files import package_root as gin_root
from prompt_tuning.cli.configuration.gin_reader import Configuration, binding_name
from prompt_tuning.errors import ConfigError


def parse(arguments: RunArguments, *, demanded: Collection[str] | None = None) -> Configuration:
    """Reads, checks and executes the configuration of a command, in place of any earlier one.

    Args:
        arguments: of the command line.
        demanded: the macros that must have a value; None for all, as for a run.

    Raises:
        ConfigError: An unknown file, name or parameter, a value that is not gin, a setting without
            a value, or a macro that nothing reads.
    """
    clear()
    configuration = read(arguments)
    gin_checks.check_order(configuration, gin_root())
    gin_checks.check_macros(configuration, gin_root(), demanded)
    gin_binder.bind(configuration)
    gin_types.check(configuration)
    if demanded is not None:  # gin itself demands them all
        return configuration
    try:
        gin.finalize()
    except ValueError as error:
        raise ConfigError(str(error).partition(" in config string")[0]) from error
    # Task modules written for the original decorate their functions with gin when a task is first
    # needed, which a locked configuration forbids.
    gin_config._set_config_is_locked(False)
    return configuration


def demand(configuration: Configuration, names: Collection[str]) -> None:
    """Raises ConfigError if one of these macros has no value, and says how to give it one."""
    gin_checks.check_macros(configuration, gin_root(), names)


def read(arguments: RunArguments) -> Configuration:
    """Reads the configuration of a command without executing any of it.

    What it says in the names of t5x is said in ours in what is returned.

    Raises:
        ConfigError: An unknown file, one that is not gin, or a name of t5x that means nothing here.
    """
    if not arguments.gin_file:
        runs = sorted(f"runs/{file.name}" for file in (gin_root() / "runs").glob("*.gin"))
        raise ConfigError(
            f"No --gin_file was given. Name your own, or one of this package: {', '.join(runs)}."
        )
    search_paths = [".", *arguments.gin_search_paths, str(gin_root())]
    configuration = Configuration(
        files=tuple(gin_reader.read_file(name, search_paths) for name in arguments.gin_file),
        command_line=gin_reader.read_bindings(arguments.gin_bindings, search_paths),
    )
    return t5x_translation.translated(configuration)


def call(function: Callable[..., Any], **given: Any) -> Any:
    """Calls `function` with the arguments its gin bindings give it; `given` has precedence.

    Raises:
        ConfigError: No gin file mentions `function`, or it, or a function that gin calls for one of
            its arguments, misses arguments; all of them are listed.
    """
    configurable = gin_config._inverse_lookup(function)
    name = f"{function.__module__}.{function.__qualname__}"
    if configurable is None:
        raise ConfigError(
            f"None of the gin files configures `{name}`, which this command runs. "
            "Add the file that does, for example one of this package's runs/ files."
        )
    missing = dict.fromkeys(_missing_arguments(configurable, [], given, above=()))
    if missing:
        lines = [f"  {name} = ..." for name in missing]
        raise ConfigError("\n".join(["Arguments without a value:", *lines]))
    return gin.get_configurable(function)(**given)


def operative_config() -> str:
    """Returns the bindings and defaults of all that gin has called so far, as a gin file.

    Write it when everything is built: what is called later is not in it.
    """
    return gin.operative_config_str()


def operative_values() -> dict[str, str]:
    """Returns `operative_config` flat: the value of every macro and `function.argument`, as text.

    >>> operative_values()["train.total_steps"]
    '%TRAIN_STEPS'
    """
    statements = config_parser.ConfigParser(operative_config(), _Spellings())
    bindings = [one for one in statements if isinstance(one, BindingStatement)]
    return {binding_name(one): repr(one.value) for one in bindings}


def clear() -> None:
    """Forgets the configuration and the names that its files gave to functions and classes.

    gin would keep the names, and the short names of the next command line could mean them.
    """
    gin.clear_config()
    for selector, configurable in list(gin_config._REGISTRY.items()):
        if configurable.import_source:  # registered by a gin file, not by a decorator
            gin_config._REGISTRY.pop(selector)
            del gin_config._INVERSE_REGISTRY[configurable.wrapped]


class _Spelling(str):
    """Text that is shown without quotes."""

    def __repr__(self) -> str:
        return str(self)


class _Spellings(config_parser.ParserDelegate):
    """Leaves references and macros as they are written."""

    def configurable_reference(self, scoped_configurable_name: str, evaluate: bool) -> _Spelling:
        return _Spelling(f"@{scoped_configurable_name}{'()' if evaluate else ''}")

    def macro(self, macro_name: str) -> _Spelling:
        return _Spelling(f"%{macro_name}")


def _missing_arguments(
    configurable: gin_config.Configurable,
    scopes: Sequence[str],
    given: Collection[str],
    above: tuple[Any, ...],
) -> Iterator[str]:
    """Yields `function.argument` for each argument without a value.

    Follows the references that gin calls (`@function()` and macros), which get nothing but their
    bindings; what `@function` misses is its caller's to give.
    """
    here = (configurable.selector, tuple(scopes))
    if here in above:
        raise ConfigError(f"{gin_binder.spelling(configurable, scopes)} is defined by itself.")
    bound = gin_config._get_bindings(configurable.selector, scope_components=scopes)
    for parameter in gin_binder.parameters(configurable.wrapped):
        by_name = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        has_value = parameter.default is not parameter.empty or parameter.name in {*bound, *given}
        if by_name and not has_value:
            yield f"{gin_binder.spelling(configurable, scopes)}.{parameter.name}"
    for reference in gin_config.iterate_references(bound):
        if reference.evaluate:
            yield from _missing_arguments(
                reference.configurable, reference.scopes or scopes, (), (*above, here)
            )
