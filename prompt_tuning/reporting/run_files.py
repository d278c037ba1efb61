"""What a run has left in its folder, read for people: nothing is loaded onto a device."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float

from prompt_tuning.checkpoints import numpy_file, prompt_file, run, run_folder
from prompt_tuning.checkpoints.containers.json_file import parse_json
from prompt_tuning.checkpoints.prompt_file import PromptFile
from prompt_tuning.checkpoints.run_record import RunRecord
from prompt_tuning.errors import CheckpointError, nearest

# What `train` and `eval` write, beside what the checkpoints' own modules name.
SUMMARY, CONFIG, PARAMETERS = "summary.json", "config.gin", "model-info.txt"
ENVIRONMENT, EVALUATED = "environment.json", "evaluated.json"
LOG = "train/metrics.jsonl"
TASKS, LOSSES = "inference_eval", "training_eval"
_METRICS = "-metrics.jsonl"

Metrics = Mapping[int, Mapping[str, float]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Log:
    """What one evaluation has found, step by step.

    Attributes:
        folder: `inference_eval` for a task's own metrics, `training_eval` for its loss.
        task: its name.
        metrics: by step in ascending order.
        alarms: sentences that a person should read, by step.
    """

    folder: str
    task: str
    metrics: Metrics
    alarms: Mapping[int, str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunFiles:
    """What lies in the folder of a run. Whatever it has not written is None or empty.

    Attributes:
        folder: the run's, or that of an evaluation.
        train: the log of the training.
        logs: of the evaluations.
        summary: what the run said at its end.
        record: of its newest checkpoint.
        config: the operative configuration.
        parameters: how many numbers each variable has.
        environment: versions and devices.
        prompt: the newest prompt.
        prompts: the vectors of all saved prompts, by step in ascending order.
    """

    folder: epath.Path
    train: Metrics
    logs: Sequence[Log]
    summary: Mapping[str, Any]
    record: RunRecord | None
    config: str | None
    parameters: Mapping[str, int]
    environment: Mapping[str, Any]
    prompt: PromptFile | None
    prompts: Mapping[int, Float[np.ndarray, "P D"]]

    @property
    def settings(self) -> dict[str, str]:
        """The macros of the configuration, as gin writes their values."""
        found = re.findall(r"^([A-Z][A-Z0-9_]*) = (.+?)$", self.config or "", re.MULTILINE)
        return dict(found)

    @property
    def learned(self) -> int:
        """How many numbers were trained beside a frozen base; 0 if the model was trained."""
        patterns = "|".join(f"(?:{one})" for one in prompt_file.METHODS.values())
        return sum(size for name, size in self.parameters.items() if re.fullmatch(patterns, name))

    @property
    def trains_model(self) -> bool:
        """Whether it is the model that is trained, and no prompt."""
        return bool(self.parameters) and not self.learned

    @property
    def is_evaluation(self) -> bool:
        """Whether nothing was trained here."""
        return not self.train and self.record is None and self.prompt is None

    def rows(self, log: Log, step: int) -> list[dict[str, Any]]:
        """Returns the examples of an evaluation with the answers of a step, if it wrote them."""
        return _lines(self._written(log, step, ".jsonl"))

    def confusion(self, log: Log, step: int) -> dict[str, Any]:
        """Returns names and counts of classes, if the answers were classes."""
        return _object(self._written(log, step, "-confusion.json"))

    def steps_with_rows(self, log: Log) -> list[int]:
        """Returns the evaluated steps whose answers are there."""
        return [step for step in log.metrics if self._written(log, step, ".jsonl").exists()]

    def _written(self, log: Log, step: int, ending: str) -> epath.Path:
        return self.folder / log.folder / f"{log.task}-{step:06}{ending}"


def read_run(path: epath.PathLike) -> RunFiles:
    """Reads the folder of a run, finished or not, or of an evaluation.

    Raises:
        CheckpointError: it is neither, or a file in it is not what was written.
    """
    folder = epath.Path(path)
    _check_is_run(folder)
    prompt = folder / prompt_file.FILE
    return RunFiles(
        folder=folder,
        train=_metrics(_lines(folder / LOG), folder / LOG),
        logs=[one for kind in (TASKS, LOSSES) for one in _logs(folder / kind)],
        summary=_object(folder / SUMMARY),
        record=_newest_record(folder / run.FOLDER),
        config=_text(folder / CONFIG),
        parameters=_parameters(_text(folder / PARAMETERS) or ""),
        environment=_object(folder / ENVIRONMENT),
        prompt=PromptFile.load(prompt) if prompt.exists() else None,
        prompts={
            step: numpy_file.load_numpy(one)
            for step, one in numpy_file.saved_prompts(folder).items()
        },
    )


def _check_is_run(folder: epath.Path) -> None:
    if not folder.exists():
        around = [one.name for one in folder.parent.iterdir()] if folder.parent.is_dir() else []
        raise CheckpointError(f"There is no folder {folder!s}.{nearest(folder.name, around)}")
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder!s} is a file, and a report is made of the folder of a run. Name the "
            "MODEL_DIR that it lies in."
        )
    if not any((folder / one).exists() for one in (LOG, run.FOLDER, prompt_file.FILE, EVALUATED)):
        runs = sorted(one.name for one in folder.iterdir() if (one / run.FOLDER).exists())
        there = f" Runs in it: {', '.join(runs)}." if runs else ""
        raise CheckpointError(
            f"{folder!s} is not the folder of a run: there is no {LOG}, no {run.FOLDER}/, no "
            f"{prompt_file.FILE} and no {EVALUATED} in it. Name a MODEL_DIR, or the "
            f"EVAL_OUTPUT_DIR of an evaluation.{there}"
        )


def _logs(folder: epath.Path) -> list[Log]:
    paths = sorted(folder.glob(f"*{_METRICS}")) if folder.is_dir() else []
    found = []
    for path in paths:
        lines = _lines(path)
        alarms = {one["step"]: one["alarm"] for one in lines if "alarm" in one}
        task = path.name.removesuffix(_METRICS)
        metrics = _metrics(lines, path)
        found.append(Log(folder=folder.name, task=task, metrics=metrics, alarms=alarms))
    return found


def _metrics(lines: Sequence[Mapping[str, Any]], path: epath.Path) -> Metrics:
    """Returns the numbers of each step; what was not finite is NaN."""
    found: dict[int, dict[str, float]] = {}
    for line in lines:
        if not isinstance(line.get("step"), int):
            raise CheckpointError(f"{path!s} is not what was written: a line has no step.")
        found[line["step"]] = {
            name: math.nan if value is None else float(value)
            for name, value in line.items()
            if name != "step" and (value is None or isinstance(value, int | float))
        }
    return dict(sorted(found.items()))


def _lines(path: epath.Path) -> list[dict[str, Any]]:
    """Returns the objects of a file of JSON lines, but for a last one that is half written."""
    whole, _, _ = (_text(path) or "").rpartition("\n")
    return [
        parse_json(line.encode(), f"Line {i} of {path!s}")
        for i, line in enumerate(whole.split("\n") if whole else [], 1)
    ]


def _object(path: epath.Path) -> dict[str, Any]:
    return parse_json(path.read_bytes(), str(path)) if path.exists() else {}


def _text(path: epath.Path) -> str | None:
    try:
        return path.read_text() if path.exists() else None
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path!s} is not what was written: it is no text.") from error


def _parameters(table: str) -> dict[str, int]:
    """Returns the sizes of all variables in the table that a run writes."""
    found = re.findall(r"^Variable (\S+) +size ([0-9]+) ", table, re.MULTILINE)
    return {name: int(size) for name, size in found}


def _newest_record(folder: epath.Path) -> RunRecord | None:
    """Returns the record of the newest checkpoint; a run at work may remove it meanwhile."""
    while steps := run_folder.saved_steps(folder):
        try:
            return run_folder.read_record(folder / str(steps[-1]))
        except CheckpointError:
            if steps[-1] in run_folder.saved_steps(folder):
                raise
    return None
