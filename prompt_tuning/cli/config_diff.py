"""`prompt-tuning config diff`: the settings in which two runs differ."""

import json
import re
from collections.abc import Iterator, Sequence

from prompt_tuning.cli.config_arguments import DiffArguments
from prompt_tuning.cli.configuration.contrast import Difference, differences
from prompt_tuning.cli.configuration.recorded import Recorded, recorded
from prompt_tuning.cli.diff import DIFFERENT


def run(arguments: DiffArguments) -> int:
    """Prints the differences; returns 0 if there are none and 1 if there are, as diff(1) does."""
    a, b = (recorded(path, arguments.gin_search_paths) for path in (arguments.a, arguments.b))
    found = differences(a, b)
    if arguments.json:
        groups = {"decides": True, "other": False}
        report = {
            group: {one.name: {"a": one.a, "b": one.b} for one in found if one.decides == decides}
            for group, decides in groups.items()
        }
        print(json.dumps({"a": arguments.a, "b": arguments.b, **report}, indent=2))
    else:
        print("\n".join([*_lines(found), *_notes(a, b)]))
    return DIFFERENT if found else 0


def _lines(found: Sequence[Difference]) -> Iterator[str]:
    decisive = [one for one in found if one.decides]
    for title, group in (
        ("What decides the numbers of a run:", decisive),
        ("What does not:", [one for one in found if not one.decides]),
    ):
        if group:
            yield title
            yield from (f"  {one.name}: {_short(one.a)} -> {_short(one.b)}" for one in group)
    count = len(found)
    yield (
        f"{count} difference{'s' * (count != 1)}, {len(decisive)} in what decides the numbers."
        if found
        else "No differences."
    )


def _short(value: str) -> str:
    """The beginning of a hash is enough for people."""
    return value[:12] if re.fullmatch(r"[0-9a-f]{32,}", value) else value


def _notes(a: Recorded, b: Recorded) -> Iterator[str]:
    """Says what could not be compared."""
    if a.configuration is None or b.configuration is None:
        yield "Only what decides the numbers was compared: nothing else is recorded of one of them."
    elif a.is_operative != b.is_operative:
        yield "Only what the gin file sets was compared: of a run all that it used is recorded."
