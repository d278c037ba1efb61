"""`prompt-tuning config explain`: values, who set them, and how to change them, as text."""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Sequence

from prompt_tuning.cli.config_arguments import ExplainArguments
from prompt_tuning.cli.configuration.explanation import Explanation, Said, explain, explain_macros
from prompt_tuning.cli.configuration.gin_checks import REQUIRED

_WIDEST = 60  # of a value in a table


def run(arguments: ExplainArguments) -> int:
    """Prints the table of macros, or all about the settings that are named."""
    if arguments.names:
        found = explain(arguments.run, arguments.names)
        lines = _paragraphs(found)
    else:
        found = explain_macros(arguments.run)
        lines = _table(found)
    if arguments.json:
        print(json.dumps([_plain(one) for one in found], indent=2))
    else:
        print("\n".join(lines))
    return 0


def _plain(one: Explanation) -> dict[str, object]:
    return {"name": one.name, "value": one.value, **dataclasses.asdict(one)}


def _paragraphs(found: Sequence[Explanation]) -> Iterator[str]:
    for number, one in enumerate(found):
        if number:
            yield ""
        yield _headline(one)
        yield from _columns(_rows(one))


def _headline(one: Explanation) -> str:
    if one.state == "required":
        return f"{one.name} has no value yet"
    if one.state == "given" and one.in_scopes:
        return f"{one.name} is set in scopes only"
    if one.state == "given":
        return f"{one.name} is not set and has no default: its caller must give it"
    return " = ".join([one.name, *dict.fromkeys(one.values)])


def _rows(one: Explanation) -> Iterator[tuple[str, str, str]]:
    """Yields what, where, and the statement."""
    for said in one.said:
        yield ("required" if REQUIRED in said.value else "set", said.place, _statement(said))
        for other in said.overrides:
            yield ("overrides", other.place, _statement(other))
    for reader in one.readers:
        yield ("read", reader.place, _statement(reader) + "  (overridden)" * (not reader.in_effect))
    if one.kind == "macro" and not one.readers:
        yield ("read", "by nothing", "")
    for said in one.in_scopes:
        yield ("in a scope", said.place, _statement(said))
    if default := one.default:
        yield ("default", default.place or "", f"{default.value}, of {default.function}")
    yield ("change", one.change, "")


def _statement(said: Said) -> str:
    return f"{said.name} = {said.value}"


def _columns(rows: Iterable[tuple[str, ...]], indent: str = "  ") -> Iterator[str]:
    rows = list(rows)
    # The last one may be as long as it likes, and so may what has nothing beside it.
    widths = [
        max((len(row[i]) for row in rows if any(row[i + 1 :])), default=0)
        for i in range(len(rows[0]) - 1)
    ]
    for *row, last in rows:
        cells = [f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)]
        yield f"{indent}{'  '.join([*cells, last])}".rstrip()


def _table(found: Sequence[Explanation]) -> Iterator[str]:
    """Yields all macros, and what must be set, as flags."""
    rows = [("macro", "value", "set at")]
    for one in found:
        where = one.said[-1].place if one.said else f"read at {one.readers[0].place}"
        rows.append((one.name, _short(one), where if one.readers else f"{where}  read by nothing"))
    yield from _columns(rows, indent="")
    required = {one.change: None for one in found if one.state == "required"}
    if required:
        yield "\nTo be set:"
        yield from (f"  {flag}" for flag in required)


def _short(one: Explanation) -> str:
    if one.state == "required":
        return "REQUIRED"
    value = one.values[-1]
    if len(value) > _WIDEST and len(one.values) > 1 and one.values[-2].startswith("@"):
        value = one.values[-2]  # says more than the beginning of a path
    return value if len(value) <= _WIDEST else f"{value[: _WIDEST - 4]} ..."
