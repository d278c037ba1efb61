"""The flags of `tasks list` and `tasks show`.

Nothing heavy may be imported here: this module alone answers their `--help`.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence

from prompt_tuning.cli.arguments import Parser, add_boolean, parse_action
from prompt_tuning.errors import ConfigError, nearest


def parse_tasks(program: str, about: str, argv: Sequence[str]) -> argparse.Namespace:
    """Parses the action of `tasks` and its flags.

    Raises:
        ConfigError: an unknown action or flag, or a flag without its value.
        SystemExit: after `--help`.
    """
    action, text, add_flags, flags = parse_action(program, about, argv, ACTIONS)
    parser = Parser(prog=f"{program} {action}", description=text, allow_abbrev=False)
    parser.set_defaults(action=action)
    add_flags(parser)
    parsed, unknown = parser.parse_known_args(flags)
    if unknown:
        known = [flag for one in parser._actions for flag in one.option_strings]
        name = unknown[0].partition("=")[0]
        hint = nearest(name, known) if name.startswith("-") else ""
        kind = "There is no flag" if name.startswith("-") else "Unexpected argument"
        raise ConfigError(f"{kind} {name} (see `{parser.prog} --help`).{hint}")
    return parsed


def _add_list(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("pattern", nargs="?", metavar="PATTERN", help="part of a name, or a pattern like 'mt5_*'")
    add_boolean(parser, "mixtures", "mixtures only")
    _add_shared(parser)


def _add_show(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("name", metavar="NAME", help="a task, a mixture, or a file of examples")
    add("--split", metavar="SPLIT", help="whose examples to show; without it validation, if any")
    add("--examples", type=_count, default=2, metavar="N", help="how many to show; 0 reads no data")
    add(
        "--vocabulary",
        metavar="FILE",
        help="SentencePiece model, or `bytes`: shows the ids and counts them; needs no model",
    )
    add(
        "--lengths",
        type=_lengths,
        metavar="NAME=N,NAME=N",
        help="the longest inputs and targets, as TASK_FEATURE_LENGTHS of a run",
    )
    add(
        "--counted",
        type=_count,
        default=1000,
        metavar="N",
        help="count the tokens of the first so many examples",
    )
    add("--inputs", metavar="TEMPLATE", help="of a file: what to read, 'sst2: {sentence}'")
    add("--targets", metavar="TEMPLATE", help="of a file: what to say, '{label}'")
    add("--tfds_data_dir", metavar="DIR", help="where TFDS keeps its data sets")
    _add_shared(parser)


def _add_shared(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--modules",
        type=lambda text: tuple(filter(None, text.split(","))),
        metavar="M,M",
        help="the modules that register tasks; without it all of this package's",
    )
    add_boolean(parser, "json", "print JSON instead")


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected 0 or more, got {text!r}")
    return int(text)


def _lengths(text: str) -> dict[str, int]:
    pairs = [pair.partition("=") for pair in text.split(",")]
    if not all(name and number.isdecimal() and int(number) for name, _, number in pairs):
        raise argparse.ArgumentTypeError(f"expected something like inputs=512,targets=8: {text!r}")
    return {name: int(number) for name, _, number in pairs}


ACTIONS: Mapping[str, tuple[str, Callable[[argparse.ArgumentParser], None]]] = {
    "list": ("Lists the tasks and mixtures, their splits and modules.", _add_list),
    "show": ("Says what a task is made of, and shows examples as a model reads them.", _add_show),
}
