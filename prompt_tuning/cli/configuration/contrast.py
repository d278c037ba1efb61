"""Where two recorded configurations differ, and whether the numbers of a run depend on it."""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

from gin.config_parser import BindingStatement

from prompt_tuning.cli.configuration.gin_checks import REQUIRED
from prompt_tuning.cli.configuration.gin_reader import Configuration, binding_name, macros_in
from prompt_tuning.cli.configuration.provenance import (
    Setting,
    named,
    resolved,
    settings,
    shown,
    with_names,
)
from prompt_tuning.cli.configuration.recorded import Recorded
from prompt_tuning.cli.identity import identity

NOT_SET = "not set"
# Two runs are never in one place, and by that one tells them apart.
_PLACES = re.compile(r"(.*\b)?(train\.model_dir|(evaluate|infer)\.output_dir)")
_ANSWERING_RUNS = re.compile(r"(.*\b)?(evaluate|infer)\.\w+")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """A setting or a hash that is not the same; `decides` if the numbers depend on it."""

    name: str
    a: str
    b: str
    decides: bool


def differences(a: Recorded, b: Recorded) -> list[Difference]:
    """Returns each difference once: a macro stands for all the parameters that read it.

    Where a run lies does not count, nor does a hash that only one side knows.
    """
    if a.configuration is None or b.configuration is None:
        found = list(_identities(a, b))
    else:
        found = list(_settings(_Side.of(a), _Side.of(b)))
    found += [
        Difference(name=name, a=a.hashes[name], b=b.hashes[name], decides=True)
        for name in a.hashes.keys() & b.hashes.keys()
        if a.hashes[name] != b.hashes[name]
    ]
    return sorted(found, key=lambda one: (not one.decides, one.name))


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Side:
    """The settings of one configuration.

    Attributes:
        last: the statements in effect.
        written: their values with the full names of functions, which are the same under whatever
            name a module is imported.
        value: these with macros replaced.
        short: those that are for people.
        decisive: the settings that decide the numbers, and the macros that they read.
        places: those of where the run lies.
        is_operative: see `Recorded`.
    """

    last: Mapping[Setting, BindingStatement]
    written: Mapping[Setting, str]
    value: Mapping[Setting, str]
    short: Mapping[Setting, str]
    decisive: frozenset[Setting]
    places: frozenset[Setting]
    is_operative: bool

    @classmethod
    def of(cls, one: Recorded) -> "_Side":
        assert one.configuration is not None
        last = settings(one.configuration).last()
        naming = {id(statement): name for statement, name in named(one.configuration)}
        values = {key: one.value for key, one in last.items()}
        full = {key: with_names(one.value, naming[id(one)]) for key, one in last.items()}
        of_numbers = identity(
            _values(one.configuration), vocabulary=None, answers=_is_of_answers(one)
        )
        decisive = {key for key, one in last.items() if binding_name(one) in of_numbers}
        places = {key for key, one in last.items() if _PLACES.fullmatch(binding_name(one))}
        return cls(
            last=last,
            written={key: shown(value) for key, value in full.items()},
            value=_in_effect(full),
            short=_in_effect(values),
            decisive=frozenset(decisive | _read_by(decisive, last)),
            places=frozenset(
                places | (_read_by(places, last) - _read_by(last.keys() - places, last))
            ),
            is_operative=one.is_operative,
        )

    def readers(self, macro: Setting) -> set[Setting]:
        """Returns the settings that read a macro themselves."""
        return {
            key
            for key, statement in self.last.items()
            if any(one.name == macro for one in macros_in(statement.value))
        }


def _in_effect(values: Mapping[Setting, Any]) -> dict[Setting, str]:
    macros = {name: value for name, value in values.items() if isinstance(name, str)}
    return {setting: shown(resolved(value, macros)[-1]) for setting, value in values.items()}


def _settings(a: _Side, b: _Side) -> Iterator[Difference]:
    alike = a.is_operative == b.is_operative
    # What somebody has written is not all: of the rest it says nothing.
    keys = a.last.keys() | b.last.keys() if alike else a.last.keys() & b.last.keys()
    for key in keys - a.places - b.places:
        sides = [side for side in (a, b) if key in side.last]
        if len(sides) == 2 and (a.value[key] == b.value[key] or a.written[key] == b.written[key]):
            continue  # or else the macros in it differ, and are said themselves
        if len(sides) == 1 and isinstance(key, str) and not _is_missed(key, sides[0], a, b):
            continue
        if not alike and any(f"%{REQUIRED}" in side.value[key] for side in sides):
            continue
        short = [side.short.get(key, NOT_SET) for side in (a, b)]
        if short[0] == short[1]:
            short = [side.value.get(key, NOT_SET) for side in (a, b)]
        yield Difference(
            name=binding_name(sides[0].last[key]),
            a=short[0],
            b=short[1],
            decides=any(key in side.decisive for side in sides),
        )


def _is_missed(macro: str, side: _Side, a: _Side, b: _Side) -> bool:
    """Tells whether a macro that one side lacks is a difference of its own.

    Where the other side has written something else in its place, what reads it says so.
    """
    readers = side.readers(macro)
    return not readers or any(a.written.get(key) == b.written.get(key) for key in readers)


def _read_by(keys: set[Setting], last: Mapping[Setting, BindingStatement]) -> set[Setting]:
    """Returns the macros that settings are made of, and those that they are made of."""
    found: set[Setting] = set()
    rest = list(keys)
    while rest:
        names = {one.name for one in macros_in(last[rest.pop()].value)} & last.keys()
        rest += names - found
        found |= names
    return found


def _identities(a: Recorded, b: Recorded) -> Iterator[Difference]:
    """Yields what decides the numbers and differs, where nothing else is recorded."""
    answers = _is_of_answers(a) or _is_of_answers(b)
    x, y = (
        one.identity or {}
        if one.configuration is None
        else identity(_values(one.configuration), vocabulary=None, answers=answers)
        for one in (a, b)
    )
    for name in x.keys() | y.keys():
        left, right = x.get(name, NOT_SET), y.get(name, NOT_SET)
        if left != right:
            yield Difference(name=name, a=left, b=right, decides=True)


def _is_of_answers(one: Recorded) -> bool:
    names = one.identity or {}
    if one.configuration is not None:
        names = _values(one.configuration)
    return any(map(_ANSWERING_RUNS.fullmatch, names))


def _values(configuration: Configuration) -> dict[str, str]:
    return {binding_name(one): shown(one.value) for one in configuration.bindings()}
