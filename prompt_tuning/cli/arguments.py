"""The flags of the commands that run a gin configuration: t5x's names with t5x's meaning.

argparse and not absl.flags: absl keeps one registry per process, where every imported library adds
its own flags to our help and a second command line cannot be parsed cleanly (tests do it often),
and it answers a wrong flag with exit code 1. What scripts written for absl rely on is kept:
`--flag value` as well as `--flag=value`, and booleans as `--dry_run`, `--dry_run=true`,
`--nodry_run`.

Nothing heavy may be imported here: this module alone answers `--help`.
"""

import argparse
import dataclasses
import itertools
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, TypeVar

from prompt_tuning.errors import ConfigError, nearest

Action = TypeVar("Action")  # what parses the flags of one

IGNORED_FLAGS = ("logtostderr", "alsologtostderr")
IGNORED_LEVELS = ("verbosity", "stderrthreshold")
DISTRIBUTED_FLAGS = (
    "coordinator_address",
    "process_count",
    "process_index",
    "initialization_timeout",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunArguments:
    """The flags of `train`, `pretrain`, `eval` and `infer`; each field is named as its flag.

    Without `multiprocess_gpu` the cluster decides whether there are several processes.
    `gin_bindings` holds `--gin_bindings` and `--gin.NAME=VALUE` in the order they were given, each
    as gin text, `NAME = VALUE`.
    """

    gin_file: tuple[str, ...] = ()
    gin_bindings: tuple[str, ...] = ()
    gin_search_paths: tuple[str, ...] = ()
    tfds_data_dir: str | None = None
    seqio_additional_cache_dirs: tuple[str, ...] = ()
    multiprocess_gpu: bool | None = None
    coordinator_address: str | None = None
    process_count: int | None = None
    process_index: int | None = None
    initialization_timeout: int | None = None
    dry_run: bool = False


def parse_run(program: str, about: str, argv: Sequence[str]) -> RunArguments:
    """Parses the flags of a command that runs a gin configuration.

    Raises:
        ConfigError: An unknown flag, a flag without its value, or flags that contradict each other.
        SystemExit: After `--help`.
    """
    return parse_with(run_parser(program, about), argv)[0]


def parse_infer(program: str, about: str, argv: Sequence[str]) -> RunArguments:
    """Parses the flags of `infer`: those of `parse_run`, and t5x's `--shard_id`."""
    parser = run_parser(program, about)
    parser.add_argument(
        "--shard_id",
        type=int,
        metavar="I",
        help="which of infer.num_shards parts to answer, from 0; the same as --gin.infer.shard_id",
    )
    arguments, parsed = parse_with(parser, argv)
    if parsed.shard_id is None:
        return arguments
    # As in t5x, it wins over what the configuration says.
    bindings = (*arguments.gin_bindings, f"infer.shard_id = {parsed.shard_id}")
    return dataclasses.replace(arguments, gin_bindings=bindings)


def parse_with(
    parser: argparse.ArgumentParser, argv: Sequence[str]
) -> tuple[RunArguments, argparse.Namespace]:
    """Parses as `parse_run` does, with a `run_parser` that a command has given flags of its own.

    Returns:
        the flags of a run, and all flags.
    """
    rewritten = [_as_gin_binding(*pair) for pair in itertools.pairwise([*argv, ""])]
    # Intermixed, so that arguments without a flag may stand anywhere.
    parsed, unknown = parser.parse_known_intermixed_args(rewritten)
    if unknown:
        raise ConfigError(_unknown(unknown, argv, parser))
    names = [field.name for field in dataclasses.fields(RunArguments)]
    arguments = RunArguments(**{name: _frozen(getattr(parsed, name)) for name in names})
    _check_distributed(arguments)
    return arguments, parsed


def parse_action(
    program: str, about: str, argv: Sequence[str], actions: Mapping[str, tuple[str, Action]]
) -> tuple[str, str, Action, list[str]]:
    """Parses the name of an action, for commands that are written `COMMAND ACTION [flags]`.

    Args:
        program: the command.
        about: what it does, for `--help`.
        argv: what follows its name.
        actions: what each does, and whatever parses the flags of each.

    Returns:
        the action, what `actions` has about it, and its flags.

    Raises:
        ConfigError: no action, or an unknown one.
        SystemExit: after `--help`.
    """
    action, *flags = argv or [""]
    if action in ("-h", "--help"):
        width = max(map(len, actions))
        rows = [f"  {name:<{width}}  {text}" for name, (text, _) in actions.items()]
        more = f"`{program} ACTION --help` lists the flags of an action."
        print("\n".join([f"usage: {program} ACTION [flags]", "", about, "", *rows, "", more]))
        raise SystemExit(0)
    if action not in actions:
        problem = f"`{program}` has no action {action!r}.{nearest(action, actions)}"
        raise ConfigError(
            f"{problem if action else 'No action was given.'} "
            f"Usage: {program} ACTION [flags], where ACTION is one of {', '.join(actions)}."
        )
    return action, *actions[action], flags


def gin_flag(name: str, value: str) -> str:
    """Returns `--gin.NAME=VALUE` as one types it in a shell; `value` is gin syntax.

    >>> print(gin_flag("MODEL_DIR", "'/tmp/run'"))
    --gin.MODEL_DIR="'/tmp/run'"
    """
    if "'" in value and not re.search(r'["$`\\!]', value):
        return f'--gin.{name}="{value}"'
    return f"--gin.{name}={shlex.quote(value)}"


class Parser(argparse.ArgumentParser):
    """Reports a wrong flag as the fault of the class that it is."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (see `{self.prog} --help`).")


def run_parser(program: str, about: str) -> argparse.ArgumentParser:
    """Returns the parser of a command that runs a gin configuration."""
    example = gin_flag("MODEL_DIR", "'/tmp/run'")
    parser = Parser(
        prog=program,
        usage=f"{program} --gin_file=FILE [--gin.NAME=VALUE ...] [flags]",
        description=about,
        epilog=f"example: {program} --gin_file=runs/prompt_finetune.gin {example}",
        # An abbreviation that is unique today is ambiguous when a flag is added.
        allow_abbrev=False,
    )

    configuration = parser.add_argument_group(
        "configuration",
        "Gin files are read in the order given, then the bindings; the later one wins. "
        "--gin.NAME=VALUE sets a macro or a parameter. VALUE is gin syntax, so text has its own "
        f"quotes inside those of the shell: {example}",
    )
    configuration.add_argument(
        "--gin_file",
        action="append",
        default=[],
        metavar="FILE",
        help="looked for in the current folder, in --gin_search_paths and in this package's own "
        "gin folder; repeatable",
    )
    configuration.add_argument(
        "--gin_bindings",
        action="append",
        default=[],
        metavar="'NAME = VALUE'",
        help="the same as --gin.NAME=VALUE; repeatable",
    )
    configuration.add_argument(
        "--gin_search_paths",
        type=_comma_list,
        default=(),
        metavar="DIR,DIR",
        help="folders to look for gin files and their includes in",
    )
    add_boolean(
        configuration, "dry_run", "read the data, trace one step on shapes; leave MODEL_DIR alone"
    )

    data = parser.add_argument_group("data")
    data.add_argument("--tfds_data_dir", metavar="DIR", help="where TFDS keeps its data sets")
    data.add_argument(
        "--seqio_additional_cache_dirs",
        type=_comma_list,
        default=(),
        metavar="DIR,DIR",
        help="more folders with cached seqio tasks",
    )

    processes = parser.add_argument_group(
        "several processes (found without a flag where a TPU slice, srun, mpirun or an indexed job "
        "of Kubernetes has started several)"
    )
    add_boolean(processes, "multiprocess_gpu", "connect the processes; =false keeps each alone")
    parser.set_defaults(multiprocess_gpu=None)
    processes.add_argument("--coordinator_address", metavar="HOST:PORT", help="of process 0")
    processes.add_argument("--process_count", type=int, metavar="N", help="of the whole run")
    processes.add_argument("--process_index", type=int, metavar="I", help="of this one, from 0")
    processes.add_argument(
        "--initialization_timeout", type=int, metavar="SECONDS", help="to wait for the others"
    )

    ignored = parser.add_argument_group("accepted and ignored, for scripts written for absl")
    for name in IGNORED_FLAGS:
        add_boolean(ignored, name, "the log always goes to stderr")
    for name in IGNORED_LEVELS:
        ignored.add_argument(f"--{name}", metavar="LEVEL", help="the log has one level")
    return parser


def add_boolean(group: Any, name: str, about: str) -> None:
    """Adds a flag that may be written `--NAME`, `--NAME=true` and `--noNAME`."""
    group.add_argument(
        f"--{name}",
        nargs="?",
        const=True,
        default=False,
        type=_boolean,
        metavar="true|false",
        help=about,
    )
    group.add_argument(
        f"--no{name}", dest=name, action="store_false", default=False, help=argparse.SUPPRESS
    )


def _boolean(text: str) -> bool:
    known = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}
    if text.lower() not in known:
        raise argparse.ArgumentTypeError(f"expected true or false, got {text!r}")
    return known[text.lower()]


def _comma_list(text: str) -> tuple[str, ...]:
    return tuple(filter(None, text.split(",")))


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _as_gin_binding(argument: str, following: str) -> str:
    """Rewrites `--gin.NAME=VALUE` as t5x does, so that it keeps its place among the bindings."""
    if not argument.startswith("--gin."):
        return argument
    name, equals, value = argument.removeprefix("--gin.").partition("=")
    if not equals:
        meant = f"--gin.{name}=VALUE" if following[:2] in ("", "--") else gin_flag(name, following)
        raise ConfigError(f"{argument} has no value: write {meant}, with '=' and without a space.")
    return f"--gin_bindings={name} = {value}"


def _unknown(unknown: Sequence[str], argv: Sequence[str], parser: argparse.ArgumentParser) -> str:
    flags = [argument.partition("=")[0] for argument in unknown if argument.startswith("-")]
    if flags:
        shown = [action for action in parser._actions if action.help != argparse.SUPPRESS]
        known = [flag for action in shown for flag in action.option_strings]
        return "\n".join(
            f"There is no flag {flag} (see `{parser.prog} --help`).{nearest(flag, known)}"
            for flag in flags
        )
    before = list(argv)[: list(argv).index(unknown[0])]
    owners = [argument.partition("=")[0] for argument in before if argument.startswith("--gin")]
    hint = (
        f" If it is part of the value of {owners[-1]}, the shell has cut that value at a space: "
        "put the whole value in double quotes."
        if owners
        else ""
    )
    return f"Unexpected argument {unknown[0]!r}.{hint}"


def _check_distributed(arguments: RunArguments) -> None:
    given = [name for name in DISTRIBUTED_FLAGS if getattr(arguments, name) is not None]
    if given and not arguments.multiprocess_gpu:
        # Ignoring them would start one whole run per process, all writing to one MODEL_DIR.
        raise ConfigError(
            f"{', '.join(f'--{name}' for name in given)} has no effect without --multiprocess_gpu: "
            "add it, or leave the others out to run in one process."
        )
    count, index = arguments.process_count, arguments.process_index
    if count is not None and count < 1:
        raise ConfigError(f"--process_count={count}: expected at least 1.")
    if index is not None and not 0 <= index < (count or index + 1):
        raise ConfigError(
            f"--process_index={index}: expected 0 to {'N' if count is None else count} - 1, "
            "a different one for each process."
        )
    address = arguments.coordinator_address
    if address is not None and not re.search(r":\d+$", address):
        raise ConfigError(
            f"--coordinator_address={address}: expected HOST:PORT, for example {address}:1234."
        )
