"""The flags of `config explain` and `config diff`.

Nothing heavy may be imported here: this module alone answers their `--help`.
"""

import dataclasses
import itertools
import re
from collections.abc import Callable, Mapping, Sequence

from prompt_tuning.cli.arguments import (
    Parser,
    RunArguments,
    add_boolean,
    gin_flag,
    parse_action,
    parse_with,
    run_parser,
)
from prompt_tuning.errors import ConfigError, nearest

_NAME = re.compile(r"(\w+/)*\w+(\.\w+)*")
_TRUTHS = ("true", "t", "1", "false", "f", "0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExplainArguments:
    """What to explain, of which configuration; no names ask for all macros."""

    names: tuple[str, ...] = ()
    run: RunArguments
    json: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiffArguments:
    """Two recorded configurations; gin files are looked for in `gin_search_paths` as well."""

    a: str
    b: str
    gin_search_paths: tuple[str, ...] = ()
    json: bool = False


def parse_config(program: str, about: str, argv: Sequence[str]) -> ExplainArguments | DiffArguments:
    """Parses the action of `config` and its flags.

    Raises:
        ConfigError: an unknown action or flag, or a flag without its value.
        SystemExit: after `--help`.
    """
    action, text, parse, flags = parse_action(program, about, argv, ACTIONS)
    return parse(f"{program} {action}", text, _without_traps(flags))


def _without_traps(flags: Sequence[str]) -> list[str]:
    """Lets `--json` be followed by a name, which argparse would take for its value."""
    return [
        "--json=true" if flag == "--json" and after.lower() not in _TRUTHS else flag
        for flag, after in itertools.pairwise([*flags, ""])
    ]


def _parse_explain(program: str, about: str, argv: Sequence[str]) -> ExplainArguments:
    parser = run_parser(program, about)
    parser.usage = f"{program} [NAME ...] --gin_file=FILE [--gin.NAME=VALUE ...] [--json]"
    parser.epilog = (
        f"examples: {program} --gin_file=runs/prompt_finetune.gin lists all macros; "
        f"{program} BATCH_SIZE train.eval_period eval/task_split.split "
        "--gin_file=runs/prompt_finetune.gin explains three settings"
    )
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="a macro (BATCH_SIZE), a parameter (train.eval_period, with its scope "
        "eval/task_split.split) or a function (train); the last parts of a name are enough",
    )
    add_boolean(parser, "json", "print JSON instead")
    run, parsed = parse_with(parser, argv)
    for name in parsed.names:
        _check_name(name, program)
    return ExplainArguments(names=tuple(parsed.names), run=run, json=parsed.json)


def _check_name(name: str, program: str) -> None:
    if _NAME.fullmatch(name):
        return
    left, equals, _ = name.partition("=")
    if equals and _NAME.fullmatch(left):
        raise ConfigError(f"{name!r} is not a name. To set it, write {gin_flag(left, 'VALUE')}.")
    raise ConfigError(
        f"{name!r} is not the name of a setting (see `{program} --help`). If it is part of the "
        "value of a flag, the shell has cut that value at a space: put the whole value in double "
        "quotes."
    )


def _parse_diff(program: str, about: str, argv: Sequence[str]) -> DiffArguments:
    parser = Parser(
        prog=program, usage=f"{program} A B [flags]", description=about, allow_abbrev=False
    )
    for name in ("a", "b"):
        parser.add_argument(
            name,
            metavar=name.upper(),
            help="a run's folder, one of its checkpoints, a prompt.safetensors, the folder of an "
            "evaluation, or a gin file",
        )
    parser.add_argument(
        "--gin_search_paths",
        type=lambda text: tuple(filter(None, text.split(","))),
        default=(),
        metavar="DIR,DIR",
        help="folders to look for gin files and their includes in",
    )
    add_boolean(parser, "json", "print one JSON object instead")
    parsed, unknown = parser.parse_known_intermixed_args(list(argv))
    if unknown:
        known = [flag for one in parser._actions for flag in one.option_strings]
        name = unknown[0].partition("=")[0]
        kind = "There is no flag" if name.startswith("-") else "Unexpected argument"
        raise ConfigError(
            f"{kind} {name} (see `{program} --help`)."
            f"{nearest(name, known) if name.startswith('-') else ''}"
        )
    return DiffArguments(**vars(parsed))


ACTIONS: Mapping[str, tuple[str, Callable[..., ExplainArguments | DiffArguments]]] = {
    "explain": (
        "Says of each setting its value, who set it, what that overrode and how to change it.",
        _parse_explain,
    ),
    "diff": (
        "Compares the settings of two runs; exit code 1 if they differ.",
        _parse_diff,
    ),
}
