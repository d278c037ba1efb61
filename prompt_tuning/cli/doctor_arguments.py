"""The flags of `doctor`: those of a run, all of them optional, and its own.

Nothing heavy may be imported here: this module alone answers `doctor --help`.
"""

import argparse
import dataclasses
from collections.abc import Sequence

from prompt_tuning.cli.arguments import RunArguments, add_boolean, parse_with, run_parser

PATIENCE = 60.0  # as long as JAX waits before it says that it waits


@dataclasses.dataclass(frozen=True, kw_only=True)
class DoctorArguments:
    """The flags of `doctor`; those of a run are in `run`."""

    run: RunArguments = dataclasses.field(default_factory=RunArguments)
    timeout: float = PATIENCE
    kill: bool = False
    json: bool = False


def parse_doctor(program: str, about: str, argv: Sequence[str]) -> DoctorArguments:
    """Parses the flags of `doctor`.

    Raises:
        ConfigError: an unknown flag, a flag without its value, or flags that contradict each other.
        SystemExit: after `--help`.
    """
    parser = run_parser(program, about)
    parser.usage = f"{program} [flags] [the flags of a run]"
    parser.epilog = f"example: {program} --gin_file=runs/prompt_finetune.gin, and its other flags"
    group = parser.add_argument_group(
        "the doctor's own", "The exit code is 0 with warnings only, else that of the worst fault."
    )
    add_boolean(group, "json", "print the rows as JSON instead")
    add_boolean(group, "kill", "ask the processes that hold a TPU to end (SIGTERM)")
    group.add_argument(
        "--timeout",
        type=_seconds,
        default=PATIENCE,
        metavar="SECONDS",
        help=f"to wait for the devices; {PATIENCE:g} without it",
    )
    run, parsed = parse_with(parser, argv)
    return DoctorArguments(run=run, timeout=parsed.timeout, kill=parsed.kill, json=parsed.json)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e6:
        raise argparse.ArgumentTypeError(f"expected seconds, more than 0, got {text!r}")
    return seconds
