"""What the names of settings mean in a configuration: those that one would write after `--gin.`."""

import contextlib
import dataclasses
import re
from collections.abc import Collection, Iterable, Iterator, Sequence

from gin.config_parser import BindingStatement

from prompt_tuning.cli import config
from prompt_tuning.cli.arguments import RunArguments
from prompt_tuning.cli.configuration import gin_binder
from prompt_tuning.cli.configuration.bound_functions import parameters, registered_name
from prompt_tuning.cli.configuration.gin_reader import Configuration, binding_name
from prompt_tuning.cli.configuration.provenance import (
    Parameter,
    Setting,
    Settings,
    ends_with,
    named,
    selectors,
    settings,
)
from prompt_tuning.errors import ConfigError, nearest

# Stands for a value where only the name is of interest: some settings of t5x take some values only,
# and every macro.
_PROBE = "VALUE"


def look_up(
    arguments: RunArguments, names: Sequence[str]
) -> tuple[Settings, dict[str, list[Setting]]]:
    """Returns what a configuration says, and which settings each name means.

    A function means all its parameters. If all names are those of macros nothing is imported;
    otherwise the configuration is bound, and the functions have gin's own names in what is
    returned.

    Raises:
        ConfigError: A name that means nothing in this configuration, or several things; or, if any
            name is not a macro's, a configuration that cannot be bound.
    """
    configuration = config.read(arguments)
    found = settings(configuration)
    macros = found.macro_names()
    others = [name for name in names if name not in macros]
    functions = {name: some for name in others if (some := _functions(configuration, name))}
    probed, asked = _asked(
        arguments, configuration, [name for name in others if name not in functions]
    )
    unify = str
    if functions or any(one.arg_name for probes in asked.values() for one in probes):
        config.clear()
        with _explained(asked):
            gin_binder.bind(probed)
        unify = registered_name
    bound = settings(probed, unify)
    meant: dict[str, list[Setting]] = {name: [name] for name in names if name in macros}
    for name, some in functions.items():
        meant[name] = _parameters(name, set(map(registered_name, some)))
    for name, probes in asked.items():
        meant[name] = [
            setting
            for setting, statement in bound.statements
            if any(statement is probe for probe in probes)
        ]
    return Settings(bound.statements[: len(found.statements)]), meant


def _functions(configuration: Configuration, name: str) -> set[str]:
    """Returns the functions in a configuration that a name means by its last parts."""
    return {
        full
        for one, complete in named(configuration)
        for selector in selectors(one)
        for full in [complete(selector)]
        if ends_with(full, name) or ends_with(selector, name)
    }


def _parameters(name: str, functions: Iterable[str]) -> list[Setting]:
    function, *others = sorted(functions)
    if others:
        raise ConfigError(f"{name!r} may be {' or '.join([function, *others])}: say which.")
    return [Parameter("", function, one) for one in parameters(function)]


def _asked(
    arguments: RunArguments, configuration: Configuration, names: Sequence[str]
) -> tuple[Configuration, dict[str, list[BindingStatement]]]:
    """Returns the configuration as if each name was set on the command line, too, and where it is.

    So names are read as they are there, those of t5x included.
    """
    probes = tuple(f"{name} = %{_PROBE}" for name in names)
    with _explained(names):
        probed = config.read(
            dataclasses.replace(arguments, gin_bindings=(*arguments.gin_bindings, *probes))
        )
    count = sum(1 for _ in configuration.bindings())
    asked: dict[str, list[BindingStatement]] = {name: [] for name in names}
    for one in list(probed.bindings())[count:]:
        # Whatever a setting of t5x is called here, its place is what was typed.
        asked[one.location.line_content.partition("=")[0].strip()].append(one)
    for name, bindings in asked.items():
        if not bindings:
            raise ConfigError(f"{name!r} is a setting of t5x that has no effect here.")
        if "." not in name and name in map(binding_name, bindings):
            raise ConfigError(_unknown(name, configuration))
    return probed, asked


@contextlib.contextmanager
def _explained(asked: Collection[str]) -> Iterator[None]:
    """Says of a name that was asked for what would be said of the flag that sets it."""
    try:
        yield
    except ConfigError as error:
        flag, _, problem = str(error).partition(": ")
        name = flag.removeprefix("--gin.")
        if name not in asked:
            raise
        raise ConfigError(f"There is no setting {name!r}: {problem}") from error


def _unknown(name: str, configuration: Configuration) -> str:
    package = config.gin_root()
    files = [
        str(file.relative_to(package))
        for file in sorted(package.rglob("*.gin"))
        if re.search(rf"^{re.escape(name)}\s*=", file.read_text("utf-8"), re.MULTILINE)
    ]
    if files := [one for one in files if not one.startswith("examples/")] or files:
        return (
            f"{name!r} means nothing in this configuration. It is a macro of these files of the "
            f"package, none of which is loaded by a --gin_file: {', '.join(files)}."
        )
    known = {binding_name(statement) for statement in configuration.bindings()}
    endings = sorted(one for one in known if one.endswith(f".{name}"))
    hint = f" Did you mean {' or '.join(map(repr, endings))}?" if endings else nearest(name, known)
    return (
        f"{name!r} means nothing in this configuration.{hint} "
        "`prompt-tuning config explain` without a NAME lists all macros."
    )
