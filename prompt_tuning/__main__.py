"""`python -m prompt_tuning COMMAND`, installed as `prompt-tuning COMMAND`.

Only the module of the chosen command is imported, and only after its flags are understood: help and
a misspelt flag answer without JAX, TensorFlow or gin.
"""

import dataclasses
import importlib
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import prompt_tuning
from prompt_tuning.cli import (
    arguments,
    asset_arguments,
    completion,
    config_arguments,
    demo,
    doctor_arguments,
    find_module,
    launch_command_arguments,
    plan_arguments,
    report_arguments,
    task_arguments,
)
from prompt_tuning.errors import (
    CheckpointError,
    ConfigError,
    OutOfMemoryError,
    Preempted,
    PromptTuningError,
    nearest,
)
from prompt_tuning.libtpu import look_for_no_tpu

INTERRUPTED = 130  # 128 + SIGINT, what a shell reports
PIPE_CLOSED = 141  # 128 + SIGPIPE


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """One row of the table of commands.

    `module` has a function `run(arguments) -> int`, which returns the exit code; `parse` makes its
    `arguments` from the flags and needs nothing heavy. The files of a command `on_checkpoints` are
    all checkpoints, so that what the system says about one is a fault of that class. `actions` are
    what may follow the command's name, if it is `COMMAND ACTION [flags]`, for completion.
    """

    module: str
    about: str
    parse: Callable[..., Any] = arguments.parse_run
    on_checkpoints: bool = False
    actions: Mapping[str, str] = dataclasses.field(default_factory=dict)


COMMANDS = {
    "train": Command(
        module="prompt_tuning.cli.train",
        about="Trains a prompt in front of a frozen model; resumes where it was stopped.",
    ),
    "pretrain": Command(
        module="prompt_tuning.cli.pretrain",
        about="Trains all weights of a T5 on text: a base model to tune prompts for.",
    ),
    "eval": Command(
        module="prompt_tuning.cli.eval",
        about="Measures prompts and models by the metrics of a task; skips what it has measured.",
    ),
    "infer": Command(
        module="prompt_tuning.cli.infer",
        about="Writes what a model says to a task or to plain text; goes on where it was killed.",
        parse=arguments.parse_infer,
    ),
    "plan": Command(
        module="prompt_tuning.cli.plan",
        about="Says what a run takes on chips that are not here: memory, FLOPs, exchanges, time.",
        parse=plan_arguments.parse_plan,
    ),
    "launch": Command(
        module="prompt_tuning.cli.launch_command",
        about="Starts the processes of a run on a TPU slice, under Slurm or on hosts with ssh.",
        parse=launch_command_arguments.parse_launch,
    ),
    "tasks": Command(
        module="prompt_tuning.cli.tasks",
        about="Lists the registered tasks, and shows what a model reads in one.",
        parse=task_arguments.parse_tasks,
        actions={name: about for name, (about, _) in task_arguments.ACTIONS.items()},
    ),
    "config": Command(
        module="prompt_tuning.cli.config_command",
        about="Explains where the settings of a run come from, and compares those of two runs.",
        parse=config_arguments.parse_config,
        actions={name: about for name, (about, _) in config_arguments.ACTIONS.items()},
    ),
    "convert": Command(
        module="prompt_tuning.cli.convert",
        about="Turns checkpoints and prompts of one format into another.",
        parse=asset_arguments.parse_convert,
        on_checkpoints=True,
    ),
    "inspect": Command(
        module="prompt_tuning.cli.inspect",
        about="Says what a checkpoint or prompt is: shapes, base, norms, nearest tokens, drift.",
        parse=asset_arguments.parse_inspect,
        on_checkpoints=True,
    ),
    "diff": Command(
        module="prompt_tuning.cli.diff",
        about="Compares two checkpoints or prompts; exit code 1 if they differ.",
        parse=asset_arguments.parse_diff,
        on_checkpoints=True,
    ),
    "extract": Command(
        module="prompt_tuning.cli.extract",
        about="Writes one variable of a checkpoint as a numpy file.",
        parse=asset_arguments.parse_extract,
        on_checkpoints=True,
    ),
    "sample-vocabulary": Command(
        module="prompt_tuning.cli.sample_vocabulary",
        about="Draws rows of a checkpoint's embeddings as an initial prompt.",
        parse=asset_arguments.parse_sample_vocabulary,
        on_checkpoints=True,
    ),
    "splice": Command(
        module="prompt_tuning.cli.splice",
        about="Puts a prompt into a full t5x checkpoint.",
        parse=asset_arguments.parse_splice,
        on_checkpoints=True,
    ),
    "report": Command(
        module="prompt_tuning.cli.report",
        about="Shows what became of a run, as one page with plots, and as pictures.",
        parse=report_arguments.parse_report,
        on_checkpoints=True,
    ),
    "demo": Command(
        module="prompt_tuning.cli.demo",
        about="Compares prompt tuning with its baselines, in minutes on two CPU cores, offline.",
        parse=demo.parse,
    ),
    "doctor": Command(
        module="prompt_tuning.cli.doctor",
        about="Says what is wrong with an installation, a machine and a configuration.",
        parse=doctor_arguments.parse_doctor,
    ),
    "completion": Command(
        module="prompt_tuning.cli.completion",
        about="Prints the script that lets bash, zsh or fish complete commands and flags.",
        parse=completion.parse,
    ),
    "find-module": Command(
        module="prompt_tuning.cli.find_module",
        about="Prints the folder of an installed package, for --gin_search_paths.",
        parse=find_module.parse,
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code.

    A fault that the user can mend becomes one message and the exit code of its class
    (`prompt_tuning.errors`); anything else is ours and keeps its traceback.
    """
    if "_ARGCOMPLETE" in os.environ:  # the shell asks: somebody has pressed TAB
        importlib.import_module("prompt_tuning.cli.tab").complete(COMMANDS)
    try:
        code = _dispatch(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()  # here, where a closed pipe is understood
        return code
    except PromptTuningError as error:
        print(f"error: {_without_gin_trail(error)}", file=sys.stderr)
        return error.exit_code
    except Preempted as stopped:
        print(stopped, file=sys.stderr)
        return stopped.exit_code
    except BrokenPipeError:
        # `... | head` has read enough. What is left in the buffer must not be written at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def _dispatch(argv: list[str]) -> int:
    first = argv[0] if argv else ""
    if first in ("-h", "--help", "help"):
        print(_help())
        return 0
    if first == "--version":
        print(f"prompt-tuning {prompt_tuning.__version__}")
        return 0
    if first not in COMMANDS:
        problem = f"There is no command {first!r}.{nearest(first, COMMANDS)}"
        raise ConfigError(
            f"{problem if first else 'No command was given.'} "
            f"Usage: prompt-tuning COMMAND [flags], where COMMAND is one of {', '.join(COMMANDS)}."
        )
    command = COMMANDS[first]
    try:
        parsed = command.parse(f"prompt-tuning {first}", command.about, argv[1:])
    except SystemExit as done:  # argparse leaves this way after it has printed the help
        return int(done.code or 0)
    look_for_no_tpu()
    if "" not in sys.path:
        # `python -m t5x.train` finds the user's own modules in the current folder.
        sys.path.append("")
    try:
        return importlib.import_module(command.module).run(parsed)
    except OSError as error:
        if not command.on_checkpoints or error.filename is None:
            raise
        raise CheckpointError(f"{error.filename}: {error.strerror}.") from error
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        # XLA goes on for pages with a table of its buffers.
        problem = _without_gin_trail(error).partition("\n")[0] or "the host has none left"
        # What failed holds on to its arrays, and what follows needs room as well.
        traceback.clear_frames(error.__traceback__)
        changes = importlib.import_module("prompt_tuning.cli.out_of_memory").explanation()
        raise OutOfMemoryError(f"out of memory: {problem}\n{changes}") from error


def _help() -> str:
    width = max(map(len, COMMANDS))
    rows = [f"  {name:<{width}}  {command.about}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: prompt-tuning COMMAND [flags]",
            "",
            *rows,
            "",
            "`prompt-tuning COMMAND --help` lists the flags of a command.",
        ]
    )


def _is_out_of_memory(error: Exception) -> bool:
    # XLA's error is a RuntimeError with this status in its text, from the compiler as from a step.
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)


def _without_gin_trail(error: Exception) -> str:
    """The message without the "In call to configurable" lines that gin appends on its way up."""
    return str(error).partition("\n  In call to configurable ")[0]


if __name__ == "__main__":
    sys.exit(main())
