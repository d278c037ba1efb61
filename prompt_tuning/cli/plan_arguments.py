"""The flags of `plan`: those of a run's configuration, and for which devices to compile what.

Nothing heavy may be imported here: this module alone answers `--help`.
"""

import argparse
import dataclasses
from collections.abc import Sequence

from prompt_tuning.cli.arguments import RunArguments, parse_with, run_parser
from prompt_tuning.errors import ConfigError, nearest

PROGRAMS = ("train", "eval", "decode")
SEARCHES = ("batch", "slice")
# What `--json` alone stands for.
STDOUT = "-"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanArguments:
    """The flags of `plan`; those of a configuration are in `run`."""

    run: RunArguments
    topology: tuple[str, ...]
    what: tuple[str, ...] | None = None
    search: str | None = None
    json: str | None = None


def parse_plan(program: str, about: str, argv: Sequence[str]) -> PlanArguments:
    """Parses the flags of `plan`.

    Raises:
        ConfigError: an unknown flag or value, or no topology.
        SystemExit: after `--help`.
    """
    parser = run_parser(program, about)
    parser.usage = f"{program} --gin_file=FILE --topology=NAME [--gin.NAME=VALUE ...] [flags]"
    parser.epilog = (
        f"example: {program} --gin_file=models/t5_1_1_xxl.gin --gin_file=runs/prompt_finetune.gin "
        "--gin.TASK_FEATURE_LENGTHS=\"{'inputs': 512, 'targets': 16}\" --topology=v5e:4x4"
    )
    _add_flags(parser)
    run, parsed = parse_with(parser, argv)
    if not parsed.topology:
        raise ConfigError(
            "No --topology was given. Name the devices to compile for: --topology=v5e:4x4, or "
            "v4:2x2x1, v5p:2x2x1, v6e:2x4, h100:8, gpu:8, cpu:8."
        )
    return PlanArguments(
        run=run,
        topology=tuple(parsed.topology),
        what=None if parsed.what is None else _programs(parsed.what),
        search=parsed.search,
        json=parsed.json,
    )


def _add_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "plan",
        "MODEL_DIR, checkpoints and data are not read and need not be set; of "
        "models/from_checkpoint.gin the checkpoint's shapes are.",
    )
    group.add_argument(
        "--topology",
        action="append",
        default=[],
        metavar="NAME",
        help="devices to compile for, such as v5e:4x4 or cpu:8; repeatable",
    )
    group.add_argument(
        "--what",
        metavar="PROGRAMS",
        help=f"some of {','.join(PROGRAMS)}; all that the configuration has by default",
    )
    group.add_argument(
        "--search",
        choices=SEARCHES,
        help="batch: the most rows at a time that fit; slice: the fewest chips that fit",
    )
    group.add_argument(
        "--json",
        nargs="?",
        const=STDOUT,
        metavar="FILE",
        help="writes all figures to a file, or to stdout in place of the tables",
    )


def _programs(text: str) -> tuple[str, ...]:
    names = tuple(filter(None, text.split(",")))
    for name in names:
        if name not in PROGRAMS:
            raise ConfigError(
                f"--what={text}: there is no program {name!r}, expected some of "
                f"{','.join(PROGRAMS)}.{nearest(name, PROGRAMS)}"
            )
    if not names:
        raise ConfigError(f"--what is empty, expected some of {','.join(PROGRAMS)}.")
    return names
