"""Where values come from: the statements about every setting, in order, and who reads a macro.

All of it is text. Nothing is imported, so names of functions are told apart by what their file
imports: after `from prompt_tuning import prompts`, `prompts.Prompt` is
`prompt_tuning.prompts.Prompt`.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

from gin.config_parser import BindingStatement, ImportStatement

from prompt_tuning.cli.configuration.gin_reader import (
    Configuration,
    Macro,
    Reference,
    Source,
    binding_name,
    macros_in,
    references_in,
)

Naming: TypeAlias = Callable[[str], str]


class Parameter(NamedTuple):
    """A parameter of a function, wherever and however it is written."""

    scope: str
    function: str
    argument: str


Setting: TypeAlias = str | Parameter  # a macro is its name


@dataclasses.dataclass(frozen=True)
class Settings:
    """The statements of a configuration in the order of execution, each with what it sets."""

    statements: tuple[tuple[Setting, BindingStatement], ...]

    def about(self, setting: Setting) -> list[BindingStatement]:
        """Returns the statements about a macro, or a parameter in exactly its scope."""
        return [statement for one, statement in self.statements if one == setting]

    def last(self) -> dict[Setting, BindingStatement]:
        """Returns the statement that has the last word on each setting."""
        return dict(self.statements)

    def macros(self) -> dict[str, BindingStatement]:
        """Returns the statements in effect on macros, by name."""
        return {name: one for name, one in self.last().items() if isinstance(name, str)}

    def macro_names(self) -> set[str]:
        """Returns the macros that are set, and those that are only read."""
        read = {
            macro.name
            for statement in self.last().values()
            for macro in macros_in(statement.value)
            if not macro.is_constant
        }
        return {*self.macros(), *read}

    def seen_in(self, scope: str, function: str, argument: str) -> list[BindingStatement]:
        """Returns what is said to a parameter in a scope; the last one is in effect.

        Scopes are as folders: in `a/b` the statements of `a` and of no scope are heard too, and
        the innermost wins, whatever the order.
        """
        inside = [""] + ["/".join(scope.split("/")[: i + 1]) for i in range(scope.count("/") + 1)]
        found = [
            (inside.index(one.scope), statement)
            for one, statement in self.statements
            if isinstance(one, Parameter) and one[1:] == (function, argument)
            if one.scope in inside
        ]
        return [statement for _, statement in sorted(found, key=lambda pair: pair[0])]

    def readers(self, macro: str) -> list[tuple[Setting, BindingStatement]]:
        """Returns the statements that read a macro, those without effect included."""
        return [
            (setting, statement)
            for setting, statement in self.statements
            if any(one.name == macro for one in macros_in(statement.value))
        ]


def settings(configuration: Configuration, unify: Naming = str) -> Settings:
    """Returns what a configuration says.

    Args:
        configuration: as it was read.
        unify: maps the names of one function, in several modules perhaps, to one of them.
    """
    return Settings(
        tuple(
            (
                Parameter(one.scope, unify(name(one.selector)), one.arg_name)
                if one.arg_name
                else binding_name(one),
                one,
            )
            for one, name in named(configuration)
        )
    )


def named(configuration: Configuration) -> list[tuple[BindingStatement, Naming]]:
    """Returns each statement with what completes the names of functions in it."""
    imports: dict[str, ImportStatement] = {}
    found = [pair for file in configuration.files for pair in _named(file, imports)]
    known = {name(selector) for one, name in found for selector in selectors(one)}
    by_ending = _ByEnding(known, imports)
    return [*found, *_named(configuration.command_line, {}, by_ending)]


def selectors(statement: BindingStatement) -> Iterator[str]:
    """Yields the functions that a statement names, without their scopes."""
    if statement.arg_name:
        yield statement.selector
    for reference in references_in(statement.value):
        yield reference.selector.rpartition("/")[2]


def resolved(value: Any, macros: Mapping[str, Any]) -> list[Any]:
    """Returns a value, then with its macros replaced by their values, and so on to the end.

    Macros without a value stay, and so does a value that is defined by itself.

    >>> resolved(Macro("A"), {"A": Macro("B"), "B": 3})
    [Macro(name='A'), Macro(name='B'), 3]
    """

    def replaced(one: Any) -> Any:
        return macros.get(one.name, one) if isinstance(one, Macro) else one

    found = [value]
    if not _is_circular(value, macros, above=()):
        while any(macro.name in macros for macro in macros_in(found[-1])):
            found.append(_mapped(found[-1], replaced))
    return found


def with_names(value: Any, name: Naming) -> Any:
    """Returns a value with the names of its functions completed."""

    def completed(one: Any) -> Any:
        if not isinstance(one, Reference):
            return one
        scope, slash, selector = one.selector.rpartition("/")
        return Reference(f"{scope}{slash}{name(selector)}", one.evaluate)

    return _mapped(value, completed)


def shown(value: Any) -> str:
    """Returns a value as gin text.

    >>> shown({"inputs": Macro("LENGTH"), "of": Reference("eval/split", True)})
    "{'inputs': %LENGTH, 'of': @eval/split()}"
    """
    return repr(_mapped(value, _spelling))


def ends_with(name: str, ending: str) -> bool:
    """Tells whether `ending` is `name` or its last parts."""
    return f".{name}".endswith(f".{ending}")


@dataclasses.dataclass(frozen=True)
class _ByEnding:
    """Completes a name as the command line does: what is named in a file, then what is imported."""

    known: set[str]
    imports: Mapping[str, ImportStatement]

    def __call__(self, selector: str) -> str:
        found = [name for name in self.known if ends_with(name, selector)]
        return found[0] if len(found) == 1 else _full(selector, self.imports)


def _named(
    source: Source, all_imports: dict[str, ImportStatement], naming: Naming | None = None
) -> Iterator[tuple[BindingStatement, Naming]]:
    imports: dict[str, ImportStatement] = {}
    for statement in source.statements:
        if isinstance(statement, Source):
            yield from _named(statement, all_imports)
        elif isinstance(statement, ImportStatement):
            imports[statement.bound_name()] = all_imports[statement.bound_name()] = statement
        elif isinstance(statement, BindingStatement):
            yield statement, naming or (lambda selector: _full(selector, imports))


def _full(selector: str, imports: Mapping[str, ImportStatement]) -> str:
    first, dot, rest = selector.partition(".")
    statement = imports.get(first)
    # `import a.b` gives the name `a`, and every other form the last part or the alias.
    if statement is None or not (statement.is_from or statement.alias):
        return selector
    return f"{statement.module}{dot}{rest}"


def _is_circular(value: Any, macros: Mapping[str, Any], above: tuple[str, ...]) -> bool:
    names = {macro.name for macro in macros_in(value)} & macros.keys()
    return any(
        name in above or _is_circular(macros[name], macros, (*above, name)) for name in names
    )


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """Applies a function to all that is no container."""
    if isinstance(value, dict):
        return {_mapped(key, change): _mapped(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_mapped(item, change) for item in value)
    return change(value)


def _spelling(value: Any) -> Any:
    if isinstance(value, Reference):
        return _Bare(f"@{value.selector}{'()' if value.evaluate else ''}")
    return _Bare(f"%{value.name}") if isinstance(value, Macro) else value


class _Bare(str):
    """Text that is shown without quotes."""

    def __repr__(self) -> str:
        return str(self)
