"""The commands to type when a run has ended, with the settings of this one."""

import ast
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from prompt_tuning.cli import config
from prompt_tuning.cli.arguments import gin_flag
from prompt_tuning.cli.configuration.shipped_paths import spelled_out
from prompt_tuning.data.split_files import in_folder

# Macros that say what the task, the text and the devices are, and what they are in most runs.
_SHARED = {
    "VOCABULARY_FILE": "None",
    "MIXTURE_OR_TASK_NAME": "None",
    "MIXTURE_OR_TASK_MODULE": "None",
    "FILE_TASK": "None",
    "ANSWERING": "@answering.Decode()",
    "CACHE_DIR": "None",
    "USE_CACHED_TASKS": "False",
    "ACTIVATION_DTYPE": "'bfloat16'",
    "PARAM_DTYPE": "'float32'",
    "NUM_PARTITIONS": "1",
    "MODEL_PARALLEL_SUBMESH": "None",
    "FSDP": "1",
    "OFFLOAD": "False",
}
# What the runs/ files know; other functions are known only to the file that imports their module.
_KNOWN = ("@file_task.FileTask()", "@answering.ChooseLabel()")
_ANY_MODEL = "models/from_checkpoint.gin"


def next_commands(values: Mapping[str, str], *, trained: str, best: bool) -> list[str]:
    """Returns how to evaluate what was trained, and how to ask it.

    Nothing without a task, or with one that a gin file of the user's own puts together.

    Args:
        values: of the run, see `config.operative_values`.
        trained: `prompt` or `model`.
        best: whether the run says which of its states is the best.
    """
    # A command may be typed without the file that imports `shipped`.
    values = spelled_out(values)
    task, model = _task(values), _model_file(values)
    if task is None or model is None or "MODEL_DIR" not in values:
        return []
    run = values["MODEL_DIR"]
    if trained == "model":
        subject = {"CHECKPOINT_PATH": run}
    else:
        subject = {"CHECKPOINT_PATH": values["INITIAL_CHECKPOINT_PATH"], "PROMPT_FILE": run}
        subject |= {"CHECKPOINTS": "'best'"} if best else {}
    if model == _ANY_MODEL:
        task.pop("PARAM_DTYPE", None)
    return [
        _typed(command, model, trained, subject | _own(command, values) | task)
        for command in ("eval", "infer")
    ]


def _own(command: str, values: Mapping[str, str]) -> dict[str, str]:
    """Returns the settings that one of the commands has for itself."""
    out = os.path.join(values["MODEL_DIR"].strip("'\""), command)
    own = {f"{command.upper()}_OUTPUT_DIR": repr(out)}
    if (split := values.get("EVAL_SPLIT", "None")) != "None":
        own[f"{command.upper()}_SPLIT"] = split
    if command == "infer" and "TASK_FEATURE_LENGTHS" in values:
        own["TASK_FEATURE_LENGTHS"] = values["TASK_FEATURE_LENGTHS"]
    return own


def _task(values: Mapping[str, str]) -> dict[str, str] | None:
    found = {
        name: values[name]
        for name, usual in _SHARED.items()
        if name in values and values[name] != usual
    }
    if "MIXTURE_OR_TASK_NAME" not in found:
        return None
    if found["MIXTURE_OR_TASK_NAME"] == "@split_files.in_folder()":
        folder = _arguments(values, "split_files.in_folder")
        if folder is None:
            return None
        found["MIXTURE_OR_TASK_NAME"] = repr(in_folder(**folder))
    if any("@" in value and value not in _KNOWN for value in found.values()):
        return None
    if "FILE_TASK" in found:
        task = _arguments(values, "file_task.FileTask")
        if task is None:
            return None
        found |= {f"file_task.FileTask.{name}": repr(value) for name, value in task.items()}
    return found


def _arguments(values: Mapping[str, str], function: str) -> dict[str, Any] | None:
    """Returns what a function is called with; None if that cannot be written down as text."""
    found = {}
    for name, value in values.items():
        scoped, _, argument = name.rpartition(".")
        if scoped.rpartition("/")[2] != function:
            continue
        meant = re.sub(r"%(\w+)", lambda macro: values.get(macro[1], macro[0]), value)
        try:
            found[argument] = ast.literal_eval(meant)
        except (SyntaxError, ValueError):
            return None
    return found


def _model_file(values: Mapping[str, str]) -> str | None:
    """Returns the file of any model, unless its own says more: of bytes, or of another dtype."""
    has_file = values.get("VOCABULARY_FILE", "None") != "None"
    if has_file and values.get("PARAM_DTYPE", "'float32'") == "'float32'":
        return _ANY_MODEL
    parts = [values.get(name, "").strip("'\"") for name in ("MODEL_FAMILY", "MODEL_SIZE")]
    file = f"models/{'_'.join(parts)}.gin"
    return file if (config.gin_root() / file).is_file() else None


def _typed(command: str, model: str, trained: str, settings: Mapping[str, str]) -> str:
    run = f"runs/{command}.gin" if trained == "model" else f"runs/prompt_{command}.gin"
    flags = [f"--gin_file={model}", f"--gin_file={run}"]
    flags += [gin_flag(name, value) for name, value in settings.items()]
    return " \\\n  ".join(_lines([f"prompt-tuning {command}", *flags]))


def _lines(words: Sequence[str], width: int = 100) -> list[str]:
    """Puts words together into lines, without breaking a word that has spaces of its own."""
    lines: list[str] = []
    for word in words:
        if lines and len(lines[-1]) + 1 + len(word) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines
