"""The flags of `report`. Nothing heavy may be imported here."""

import argparse
from collections.abc import Sequence

from prompt_tuning.cli.arguments import Parser
from prompt_tuning.errors import ConfigError, nearest


def parse_report(program: str, about: str, argv: Sequence[str]) -> argparse.Namespace:
    """Parses the flags of `report`."""
    usage = f"{program} MODEL_DIR [flags]"
    parser = Parser(prog=program, usage=usage, description=about, allow_abbrev=False)
    add = parser.add_argument
    add(
        "path", metavar="MODEL_DIR", help="the folder of a run, or EVAL_OUTPUT_DIR of an evaluation"
    )
    add("--output", metavar="DIR", help="where to write it; MODEL_DIR/report without it")
    add("--base", metavar="PATH", help="the base, if it is no longer where the run found it")
    add("--vocabulary", metavar="FILE", help="its SentencePiece model, likewise")
    parsed, unknown = parser.parse_known_args(list(argv))
    if unknown:
        known = [flag for action in parser._actions for flag in action.option_strings]
        name = unknown[0].partition("=")[0]
        raise ConfigError(
            f"`report` has no flag {name}.{nearest(name, known)}"
            if name.startswith("-")
            else f"Unexpected argument {unknown[0]!r}: `report` takes one folder."
        )
    return parsed
