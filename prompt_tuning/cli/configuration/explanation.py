"""What `prompt-tuning config explain` says of a setting, as data.

A macro is explained from the text of the configuration alone. For a parameter the configuration is
bound, which imports modules and nothing more: only then is known which names mean one function and
what its defaults are. Settings without a value do no harm to either.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from gin.config_parser import BindingStatement

from prompt_tuning.cli import config
from prompt_tuning.cli.arguments import RunArguments, gin_flag
from prompt_tuning.cli.configuration import setting_names
from prompt_tuning.cli.configuration.bound_functions import Default, default_of, spelling
from prompt_tuning.cli.configuration.gin_checks import REQUIRED, example
from prompt_tuning.cli.configuration.gin_reader import Macro, binding_name, macros_in, place
from prompt_tuning.cli.configuration.provenance import (
    Parameter,
    Settings,
    resolved,
    settings,
    shown,
)
from prompt_tuning.cli.configuration.shipped_paths import with_paths


@dataclasses.dataclass(frozen=True, kw_only=True)
class Said:
    """One statement: `NAME = VALUE` at a place; `in_effect` unless it is overridden.

    `overrides` are the statements that have no effect because of this one, in their order.
    """

    name: str
    value: str
    place: str
    in_effect: bool = True
    overrides: tuple["Said", ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Explanation:
    """A setting, its value and where that comes from.

    Attributes:
        name: of the macro, or of the parameter as a gin file writes it.
        kind: `macro` or `parameter`.
        state: `set`; `default`; `required`, if a value must still be given; `given`, if only the
            code that calls the function gives one.
        values: as it was written, then with macros replaced, then with the paths of files that
            the package brings along; the last is the value in effect.
        said: the statement in effect, then those of the macros that it reads.
        readers: of a macro.
        in_scopes: what is said to a parameter in scopes of its own.
        default: of a parameter.
        change: the flag that gives another value, with the one in effect as an example.
    """

    name: str
    kind: str
    state: str
    values: tuple[str, ...] = ()
    said: tuple[Said, ...] = ()
    readers: tuple[Said, ...] = ()
    in_scopes: tuple[Said, ...] = ()
    default: Default | None = None
    change: str

    @property
    def value(self) -> str | None:
        """The value in effect, as gin text."""
        return self.values[-1] if self.state in ("set", "default") else None


def explain_macros(arguments: RunArguments) -> list[Explanation]:
    """Explains all macros that are set or read, by name."""
    found = settings(config.read(arguments))
    return [_macro(found, name) for name in sorted(found.macro_names())]


def explain(arguments: RunArguments, names: Sequence[str]) -> list[Explanation]:
    """Explains macros, parameters, and all parameters of functions.

    Raises:
        ConfigError: A name that means nothing in this configuration, or several things; or, if any
            name is not a macro's, a configuration that cannot be bound.
    """
    found, meant = setting_names.look_up(arguments, names)
    return [
        _macro(found, setting) if isinstance(setting, str) else _parameter(found, setting)
        for name in names
        for setting in meant[name]
    ]


def _macro(found: Settings, name: str) -> Explanation:
    last = found.last()
    about = found.about(name)
    readers = tuple(
        _said(one, in_effect=last[setting] is one) for setting, one in found.readers(name)
    )
    if not about:
        change = gin_flag(name, "VALUE")
        return Explanation(
            name=name, kind="macro", state="required", readers=readers, change=change
        )
    return dataclasses.replace(_explained(found, "macro", about), readers=readers)


def _explained(found: Settings, kind: str, about: Sequence[BindingStatement]) -> Explanation:
    """Explains what the last of some statements about one setting says."""
    last = about[-1]
    macros = found.macros()
    values = resolved(last.value, {name: one.value for name, one in macros.items()})
    if (path := with_paths(values[-1])) != values[-1]:
        values.append(path)
    reads = {name: found.about(name) for name in _reads(last, macros)}
    reads.pop(binding_name(last), None)  # of a macro that is defined by itself
    target = last  # of a flag: the macro that a value is nothing but, where it is one
    for _ in values[1:]:
        if isinstance(target.value, Macro):
            target = macros.get(target.value.name, target)
    without_value = [macro for macro in macros_in(values[-1]) if _has_no_value(macro)]
    return Explanation(
        name=binding_name(last),
        kind=kind,
        state="required" if without_value else "set",
        values=tuple(map(shown, values)),
        said=tuple(map(_last_said, [about, *reads.values()])),
        change=_change(target, values[-1], without_value),
    )


def _change(target: BindingStatement, value: Any, without_value: Sequence[Macro]) -> str:
    unset = [macro.name for macro in without_value if not macro.is_constant]
    if unset:
        return gin_flag(unset[0], "VALUE")
    if not without_value:
        return gin_flag(binding_name(target), shown(value))
    return gin_flag(binding_name(target), example(target))


def _has_no_value(macro: Macro) -> bool:
    # Of those that are left in a resolved value: not set at all, or only declared.
    return macro.name == REQUIRED or not macro.is_constant


def _reads(
    statement: BindingStatement, macros: dict[str, BindingStatement], above: tuple[str, ...] = ()
) -> dict[str, None]:
    """Returns the macros that a value is made of, and those that they are made of."""
    found: dict[str, None] = {}
    for macro in macros_in(statement.value):
        if macro.name in macros and macro.name not in above:
            inner = _reads(macros[macro.name], macros, (*above, macro.name))
            found |= {macro.name: None} | inner
    return found


def _said(statement: BindingStatement, *, in_effect: bool = True) -> Said:
    return Said(
        name=binding_name(statement),
        value=shown(statement.value),
        place=place(statement),
        in_effect=in_effect,
    )


def _last_said(about: Sequence[BindingStatement]) -> Said:
    overridden = tuple(_said(one, in_effect=False) for one in about[:-1])
    return dataclasses.replace(_said(about[-1]), overrides=overridden)


def _parameter(found: Settings, parameter: Parameter) -> Explanation:
    written = spelling(parameter.function)
    name = f"{parameter.scope}{'/' if parameter.scope else ''}{written}.{parameter.argument}"
    default = default_of(parameter.function, parameter.argument)
    about = found.seen_in(*parameter)
    in_scopes = tuple(
        _said(one)
        for setting, one in found.last().items()
        if isinstance(setting, Parameter) and setting[1:] == parameter[1:]
        if setting.scope != parameter.scope
        if f"{setting.scope}/".startswith(f"{parameter.scope}/" if parameter.scope else "")
    )
    if about:
        found_out = _explained(found, "parameter", about)
        return dataclasses.replace(found_out, name=name, default=default, in_scopes=in_scopes)
    example = "VALUE" if default is None or not default.is_literal else default.value
    return Explanation(
        name=name,
        kind="parameter",
        state="given" if default is None else "default",
        values=() if default is None else (default.value,),
        default=default,
        in_scopes=in_scopes,
        change=gin_flag(name, example),
    )
