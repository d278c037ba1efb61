"""What happens to the states of a run: they are saved, evaluated and compared.

All of it can be done again for the same state and comes out the same: a run that was stopped
between two of its writes makes up for what is missing when it goes on.
"""

import logging
from collections.abc import Mapping

from prompt_tuning.checkpoints.run import RunCheckpoints
from prompt_tuning.cli.outputs import Evaluations, Prompts
from prompt_tuning.cli.reports.concerns import still_prompt
from prompt_tuning.cli.reports.progress import Progress
from prompt_tuning.cli.source import Place
from prompt_tuning.training.clock import Clock
from prompt_tuning.training.monitor import Monitor
from prompt_tuning.training.state import RunState

log = logging.getLogger("prompt_tuning")


class Bookkeeping:
    """Saves and evaluates the states of one run.

    Args:
        checkpoints: of the run.
        prompts: files of the prompt; None for a run that trains a model.
        evaluations: of a state.
        monitor: what is best, and when to stop early.
        data: the run's place in it.
        progress: what the run has seen, which is saved with every state.
        clock: counts the time that is spent here to `save` and `evaluate`.
        restored: the state that the run goes on from, if there is one.

    Attributes:
        exhausted: whether the run has gone without improvement for as long as its monitor allows.
    """

    def __init__(
        self,
        *,
        checkpoints: RunCheckpoints,
        prompts: Prompts | None,
        evaluations: Evaluations,
        monitor: Monitor | None,
        data: Place,
        progress: Progress,
        clock: Clock,
        restored: RunState | None,
    ):
        self._checkpoints = checkpoints
        self._prompts = prompts
        self._evaluations = evaluations
        self._monitor = monitor
        self._data = data
        self._progress = progress
        self._clock = clock
        self._warned = False
        self._saved = None if restored is None else restored.step
        self.exhausted = False
        if monitor is not None:
            watched = self._watched(monitor)
            self.exhausted = monitor.exhausted(watched)
            if (best := monitor.best(watched)) is not None:
                checkpoints.protect(best)

    def save(self, state: RunState, *, wait: bool = False) -> None:
        """Saves a state, in the background unless it is to be waited for."""
        with self._clock.spent("save"):
            # The prompt first: a checkpoint says that everything up to its step is there.
            if self._prompts is not None and self._saved != state.step:
                self._prompts.save(state)
                self._look_at(self._prompts, state)
            self._saved = state.step
            details, data = self._data.saved_at(state.step)
            details |= self._progress.saved()
            self._checkpoints.save(state, details=details, data=data, wait=wait)

    def evaluate(self, state: RunState) -> None:
        """Evaluates a state, notes what was found, and keeps it apart if it is the best so far."""
        with self._clock.spent("evaluate"):
            metrics = self._evaluations(state)
        if metrics is None:
            return  # It is made up for when the run goes on.
        if self._prompts is not None and self._saved == state.step:
            self._prompts.save(state, metrics)
        if self._monitor is None:
            return
        watched = self._watched(self._monitor)
        self.exhausted = self._monitor.exhausted(watched)
        if self._monitor.best(watched) == state.step:
            self.save(state)
            self._checkpoints.protect(state.step)
            if self._prompts is not None:
                self._prompts.save_best(state, metrics)

    def _look_at(self, prompts: Prompts, state: RunState) -> None:
        """Warns once if the prompt does not move, while there is time to do something about it."""
        start, vectors = prompts.moved(state)
        concern = still_prompt(vectors, start, self._data.steps_at(state.step))
        if concern and not self._warned:
            log.warning("%s", concern)
            self._warned = True

    def _watched(self, monitor: Monitor) -> Mapping[int, float]:
        """The history of the metric that is monitored; empty before the first evaluation."""
        history = self._evaluations.history()
        return history[monitor.resolve(history)] if history else {}
