"""The flags of `launch`, and those of the command that it starts.

Nothing heavy may be imported here: this module alone answers `launch --help`.
"""

import argparse
import dataclasses
import re
from collections.abc import Sequence

from prompt_tuning.cli.arguments import (
    Parser,
    RunArguments,
    add_boolean,
    parse_infer,
    parse_run,
)
from prompt_tuning.errors import ConfigError, nearest

PLACES = ("tpu-vm", "slurm", "ssh")
STARTED = {"train": parse_run, "pretrain": parse_run, "eval": parse_run, "infer": parse_infer}
# What each of these belongs to.
_OWN = {
    "tpu-vm": ("name", "zone", "project"),
    "slurm": ("nodes", "tasks_per_node", "gpus_per_node", "sbatch"),
    "ssh": ("hosts", "port"),
}
_NEEDED = {"tpu-vm": ("name", "zone"), "slurm": (), "ssh": ("hosts",)}
# Flags of every process, which the launcher sets; --initialization_timeout is the user's to choose.
_OURS = (
    "multiprocess_gpu",
    "nomultiprocess_gpu",
    "coordinator_address",
    "process_count",
    "process_index",
)
PORT = 8476


@dataclasses.dataclass(frozen=True, kw_only=True)
class LaunchArguments:
    """The flags of `launch`; each field is named as its flag.

    `command` is what every process runs, from `train` on; `arguments` are its flags, understood.
    """

    on: str
    command: tuple[str, ...]
    arguments: RunArguments
    run: bool = False
    script: str | None = None
    directory: str | None = None
    setup: str | None = None
    executable: str = "prompt-tuning"
    restart_preempted: bool = False
    name: str | None = None
    zone: str | None = None
    project: str | None = None
    nodes: int | None = None
    tasks_per_node: int | None = None
    gpus_per_node: int | None = None
    sbatch: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    port: int | None = None


def parse_launch(program: str, about: str, argv: Sequence[str]) -> LaunchArguments:
    """Parses the flags of `launch` and, behind `--`, those of the command.

    Raises:
        ConfigError: an unknown flag, flags that do not belong together, or a command that is not
            one of `STARTED` or whose flags are wrong.
        SystemExit: after `--help`.
    """
    flags, command = _divided(argv)
    parser = _parser(program, about)
    parsed, unknown = parser.parse_known_args(flags)
    if unknown:
        known = [flag for one in parser._actions for flag in one.option_strings]
        name = unknown[0].partition("=")[0]
        if name in STARTED:
            raise ConfigError(f"Write -- before {name}: {program} --on=... -- {name} [flags].")
        raise ConfigError(
            f"There is no flag {name} (see `{program} --help`). The flags of the command stand "
            f"behind --.{nearest(name, known)}"
        )
    if not command or command[0] not in STARTED:
        first = command[0] if command else ""
        problem = f"{first!r} is no command to launch." if first else "No command was given."
        raise ConfigError(
            f"{problem} Expected {program} --on=... -- COMMAND [flags], where COMMAND is one of "
            f"{', '.join(STARTED)}.{nearest(first, STARTED)}"
        )
    _check_belonging(parsed)
    said = {word.partition("=")[0].removeprefix("--") for word in command}
    given = [f"--{name}" for name in _OURS if name in said]
    if given:
        raise ConfigError(
            f"{', '.join(given)} is for `launch` to say, which knows the processes: leave it out."
        )
    flags = [*command[1:], "--multiprocess_gpu"]
    arguments = STARTED[command[0]](f"prompt-tuning {command[0]}", "", flags)
    values = {
        field.name: getattr(parsed, field.name)
        for field in dataclasses.fields(LaunchArguments)
        if field.name not in ("command", "arguments")
    }
    values["sbatch"] = tuple(values["sbatch"])
    return LaunchArguments(command=tuple(command), arguments=arguments, **values)


def _divided(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """What stands before `--`, and behind it."""
    words = list(argv)
    at = words.index("--") if "--" in words else len(words)
    return words[:at], words[at + 1 :]


def _check_belonging(parsed: argparse.Namespace) -> None:
    for place, names in _OWN.items():
        given = [name for name in names if getattr(parsed, name)]
        if place != parsed.on and given:
            raise ConfigError(f"--{given[0]} is for --on={place}, and --on={parsed.on} was given.")
    missing = [name for name in _NEEDED[parsed.on] if not getattr(parsed, name)]
    if missing:
        raise ConfigError(f"--on={parsed.on} needs {', '.join(f'--{name}' for name in missing)}.")
    doubled = {host for host in parsed.hosts if parsed.hosts.count(host) > 1}
    if doubled:
        raise ConfigError(
            f"--hosts names {', '.join(sorted(doubled))} twice: one process of a host takes all of "
            "its devices."
        )
    if parsed.restart_preempted and parsed.on == "tpu-vm":
        raise ConfigError(
            "--restart_preempted is for --on=slurm and --on=ssh: gcloud does not pass on the exit "
            "code of a host."
        )


def _parser(program: str, about: str) -> argparse.ArgumentParser:
    parser = Parser(
        prog=program,
        usage=f"{program} --on={'|'.join(PLACES)} [flags] -- COMMAND [the flags of COMMAND]",
        description=about,
        epilog=f"example: {program} --on=ssh --hosts=a,b --run -- train --gin_file=run.gin",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--on", required=True, choices=PLACES, help="what starts the processes")
    add_boolean(parser, "run", "do it; without it the script is shown")
    add("--script", metavar="FILE", help="write the script to a file instead")
    add("--directory", metavar="DIR", help="where the command starts, on every host")
    add("--setup", metavar="COMMAND", help="in the shell, before: '. env/bin/activate'")
    add("--executable", default="prompt-tuning", metavar="FILE", help="prompt-tuning, by its path")
    add_boolean(parser, "restart_preempted", "start again what ends with exit code 75 (slurm, ssh)")
    tpu = parser.add_argument_group("a TPU VM or slice (gcloud)")
    for name, text in {"name": "of the TPU", "zone": "it is in", "project": "it is in"}.items():
        tpu.add_argument(f"--{name}", metavar=name.upper(), help=text)
    slurm = parser.add_argument_group("Slurm (sbatch)")
    slurm.add_argument("--nodes", type=_count, metavar="N", help="how many; 1 without it")
    slurm.add_argument(
        "--tasks_per_node", type=_count, metavar="N", help="one for each GPU; as --gpus_per_node"
    )
    slurm.add_argument("--gpus_per_node", type=_count, metavar="N", help="none without it")
    slurm.add_argument(
        "--sbatch",
        action="append",
        default=[],
        metavar="OPTION",
        help="one more line of #SBATCH, as --sbatch=--partition=gpu; repeatable",
    )
    ssh = parser.add_argument_group("hosts with ssh")
    ssh.add_argument(
        "--hosts", type=_hosts, default=(), metavar="HOST,HOST", help="the first is process 0"
    )
    ssh.add_argument(
        "--port", type=_count, metavar="PORT", help=f"a free one of the first host; {PORT}"
    )
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, got {text!r}")
    return int(text)


def _hosts(text: str) -> tuple[str, ...]:
    hosts = tuple(filter(None, text.split(",")))
    for host in hosts:
        # ssh would take a name that begins with a dash for an option.
        if not re.fullmatch(r"[A-Za-z0-9_\[][\w.@:\[\]-]*", host):
            raise argparse.ArgumentTypeError(f"expected names of hosts, got {host!r}")
    return hosts
