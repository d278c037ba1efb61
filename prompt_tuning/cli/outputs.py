"""What a training run leaves in MODEL_DIR beside its checkpoints: prompts, metrics, the best one.

Everything here can be done again for the same step and comes out the same, so that a run which was
killed between two of its writes repairs them when it goes on.
"""

import dataclasses
import functools
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from etils import epath
from flax import nnx

from prompt_tuning.batch import Batch
from prompt_tuning.checkpoints import mapping, numpy_file, prompt_file
from prompt_tuning.checkpoints.containers import storage
from prompt_tuning.evaluation.evaluate import Evaluation, Result
from prompt_tuning.evaluation.predictions import as_lines
from prompt_tuning.model import parameters
from prompt_tuning.partitioning import is_main
from prompt_tuning.training.metrics import Console, JsonLines, TensorBoard, read_lines
from prompt_tuning.training.preemption import Preemption
from prompt_tuning.training.state import RunState

BEST = "best"

Value = TypeVar("Value")

log = logging.getLogger("prompt_tuning")


class Prompts:
    """Writes a run's prompts where others look for them, with where they come from.

    Args:
        folder: the run's.
        initial: the state before the first update. Its prompt is written beside the first trained
            one, for drift is measured from it, and not before, so that a run that fails leaves
            nothing.
        provenance: fields of PromptFile that stay the same.
    """

    def __init__(self, folder: epath.Path, *, initial: RunState, **provenance: Any):
        self._folder = folder
        self._start = prompt_file.PromptFile.of(_vectors(initial), step=initial.step, **provenance)

    def moved(self, state: RunState) -> tuple[np.ndarray, np.ndarray]:
        """Returns the vectors before the first update, and those of a state."""
        return self._start.vectors, _vectors(state)

    def save(self, state: RunState, metrics: Mapping[str, float] | None = None) -> None:
        """Writes the newest prompt, with what was measured of it if that is known already."""
        file = self._file(state, metrics)
        if not is_main():
            return
        for one in (self._start, file):
            numpy_file.save_numpy(self._folder, one.step, one.vectors)
        file.save(self._folder / prompt_file.FILE)

    def save_best(self, state: RunState, metrics: Mapping[str, float]) -> None:
        """Writes the prompt to `best/`, in place of what was best before."""
        if is_main():
            self._file(state, metrics).save(self._folder / BEST / prompt_file.FILE)

    def _file(self, state: RunState, metrics: Mapping[str, float] | None) -> prompt_file.PromptFile:
        arrays = {mapping.PROMPT: _vectors(state)}
        return dataclasses.replace(
            self._start, arrays=arrays, step=state.step, metrics=metrics or {}
        )


class Evaluations:
    """Runs all evaluations of a state and writes what they find, each step once.

    Args:
        evaluations: what to evaluate.
        graph: of the split model.
        frozen: its other half.
        place: puts a batch on the devices.
        folder: the run's.
        last_step: the step at which the run goes on; what is logged of later ones is dropped. None
            keeps all.
        preemption: breaks off what takes longer than a scheduler waits.
    """

    def __init__(
        self,
        evaluations: Sequence[Evaluation],
        graph: nnx.GraphDef,
        frozen: nnx.State,
        *,
        place: Callable[[Batch], Batch],
        folder: epath.Path,
        last_step: int | None,
        preemption: Preemption,
    ):
        self._frozen = frozen
        self._preemption = preemption
        self._logs = [
            _Log(one, one.prepare(graph, place), folder, last_step) for one in evaluations
        ]

    def __call__(self, state: RunState) -> dict[str, float] | None:
        """Returns the metrics of a state, from the log if they are there already.

        None if the run is asked to stop before all are known.
        """
        found: dict[str, float] = {}
        for one in self._logs:
            metrics = one.values.get(state.step)
            if metrics is None:
                evaluate = functools.partial(one.evaluate, state.trainable, self._frozen)
                result = self._preemption.unless_requested(evaluate)
                if result is None:
                    return None
                metrics = one.write(state.step, result)
            found |= _prefixed(one.prefix, metrics)
        return found

    def has(self, step: int) -> bool:
        """Tells whether everything was measured of a step before."""
        return all(step in one.values for one in self._logs)

    @property
    def prefixes(self) -> list[str]:
        """What the names of all metrics begin with, as in `inference_eval/sst2/`."""
        return [one.prefix for one in self._logs]

    def history(self) -> dict[str, dict[int, float]]:
        """Returns all that was measured so far: name, step, value."""
        found: dict[str, dict[int, float]] = {}
        for one in self._logs:
            for step, metrics in one.values.items():
                for name, value in _prefixed(one.prefix, metrics).items():
                    found.setdefault(name, {})[step] = value
        return found

    def alarms(self) -> dict[str, dict[int, bool]]:
        """Returns of each evaluation at which steps there was an alarm, those of before included.

        Only the process that writes knows.
        """
        return {one.prefix.rstrip("/"): one.alarms() for one in self._logs}


class _Log:
    """The files of one evaluation."""

    def __init__(
        self,
        one: Evaluation,
        evaluate: Callable[[nnx.State, nnx.State], Result],
        folder: epath.Path,
        last_step: int | None,
    ):
        self.evaluate = evaluate
        self.prefix = f"{one.folder}/{one.name}/"
        self._one = one
        self._folder = folder / one.folder
        self._last_step = last_step
        self._files: tuple[JsonLines, TensorBoard] | None = None
        self.values = read_lines(self._lines, last_step=last_step)

    @property
    def _lines(self) -> epath.Path:
        return self._folder / f"{self._one.name}-metrics.jsonl"

    def alarms(self) -> dict[int, bool]:
        """Returns at which steps there was an alarm."""
        if not self._lines.exists():
            return {}
        rows = map(json.loads, self._lines.read_text().splitlines())
        return {row["step"]: "alarm" in row for row in rows if row["step"] in self.values}

    def write(self, step: int, result: Result) -> dict[str, float]:
        """Writes a result, its line last: with it the step counts as evaluated."""
        self.values[step] = result.metrics
        for alarm in result.alarms:
            log.warning("Step %d, %s: %s", step, self._one.name, alarm)
        if not is_main():
            return result.metrics
        Console(names=None).write(step, _prefixed(f"{self._one.folder}/", result.metrics))
        path = self._folder / f"{self._one.name}-{step:06}.jsonl"
        if result.rows:
            storage.write_whole(path, as_lines(result.rows))
        texts = dict(result.texts)
        if result.confusion is not None:
            storage.write_whole(
                path.with_name(f"{path.stem}-confusion.json"),
                as_lines([result.confusion.as_json()]),
            )
            texts["confusion"] = str(result.confusion)
            log.info("Right answers in rows, given ones in columns:\n%s", result.confusion)
        lines, board = self._open()
        board.write(step, _prefixed(self._one.tag_prefix, result.metrics | texts))
        alarms = {"alarm": " ".join(result.alarms)} if result.alarms else {}
        lines.write(step, result.metrics | result.texts | alarms)
        return result.metrics

    def _open(self) -> tuple[JsonLines, TensorBoard]:
        # When there is something to write, so that a run which fails before leaves nothing.
        if self._files is None:
            self._files = (
                JsonLines(self._lines, last_step=self._last_step),
                TensorBoard(self._folder / self._one.name, last_step=self._last_step),
            )
        return self._files


def _prefixed(prefix: str, metrics: Mapping[str, Value]) -> dict[str, Value]:
    return {f"{prefix}{name}": value for name, value in metrics.items()}


def _vectors(state: RunState) -> np.ndarray:
    (vectors,) = parameters.named(state.trainable).values()
    return np.asarray(jax.device_get(vectors))
