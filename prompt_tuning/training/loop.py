"""The training loop: batches in, steps out, and what is due in between."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
import tqdm
from flax import nnx
from jaxtyping import PRNGKeyArray

from prompt_tuning.batch import Batch
from prompt_tuning.errors import ConfigError, DivergedError
from prompt_tuning.training.metrics import finish
from prompt_tuning.training.schedules import Schedule
from prompt_tuning.training.state import RunState
from prompt_tuning.training.step import Sums, TrainStep

Write = Callable[[int, dict[str, float]], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Every:
    """Calls `action(state)` at every multiple of `steps`, and after the last step.

    Multiples of the global step, so that a resumed run does the same things at the same steps as
    one that was never interrupted.
    """

    steps: int
    action: Callable[[RunState], None]

    def __post_init__(self):
        if self.steps < 1:
            raise ConfigError(f"A period of {self.steps} steps was asked for, expected 1 or more.")

    def due(self, step: int, last: int) -> bool:
        """Tells whether the action is to be called after `step`."""
        return step == last or step % self.steps == 0


def train(
    state: RunState,
    frozen: nnx.State,
    train_step: TrainStep,
    batches: Iterator[Batch],
    *,
    total_steps: int,
    key: PRNGKeyArray | None,
    learning_rate: Schedule,
    write: Write,
    log_every: int = 100,
    actions: Sequence[Every] = (),
) -> RunState:
    """Trains from `state.step` to `total_steps` and returns the final state.

    Steps are dispatched without waiting for each other; the host reads their metrics once per
    `log_every`, as every reading makes the device wait.

    Args:
        state: consumed, as its arrays are donated to the step.
        frozen: the other half of the split, the same before and after.
        train_step: see `make_train_step`.
        batches: of the steps from `state.step` on.
        total_steps: the global step to end at, the base's own steps included (t5x).
        key: source of all dropout; every step folds its number in. None trains without dropout.
        learning_rate: for the logs.
        write: receives a step and the metrics of the steps since the last call.
        log_every: steps between two calls of `write`.
        actions: what else to do and how often; they only observe.

    Raises:
        DivergedError: the loss of a step is not finite.
    """
    log = _Log(Every(steps=log_every, action=lambda state: None), learning_rate, write)
    compiled: set[tuple[int, int]] = set()
    bar = tqdm.tqdm(initial=state.step, total=total_steps, unit="step", disable=None)
    with bar:
        while state.step < total_steps:
            batch = next(batches)
            step_key = None if key is None else jax.random.fold_in(key, state.step)
            asked = time.monotonic()
            trainable, opt_state, sums = train_step(
                state.trainable, state.opt_state, frozen, batch, step_key
            )
            state = RunState(trainable, opt_state, state.step + 1)
            lengths = (batch.inputs.shape[1], batch.targets.shape[1])
            if lengths not in compiled:
                # A call returns when its program is compiled, well before it has run.
                compiled.add(lengths)
                log.skip(time.monotonic() - asked, "timing/compilation_seconds")
            bar.update()
            log.add(sums)
            due = [every for every in actions if every.due(state.step, total_steps)]
            if log.every.due(state.step, total_steps):
                bar.set_postfix(loss=log.close(state.step), refresh=False)
            elif due:
                # A state that has diverged must not replace the last good checkpoint.
                log.check(state.step)
            for every in due:
                began = time.monotonic()
                every.action(state)
                log.skip(time.monotonic() - began)
    return state


class _Log:
    """Collects the sums of an interval on the device and reads them once, at its end."""

    def __init__(self, every: Every, learning_rate: Schedule, write: Write):
        self.every = every
        self._learning_rate = learning_rate
        self._write = write
        self._steps: list[Sums] = []
        self._totals: dict[str, float] = {}
        self._began = self._since = time.monotonic()

    def add(self, sums: Sums) -> None:
        self._steps.append(sums)

    def skip(self, seconds: float, name: str | None = None) -> None:
        """Leaves seconds out of the interval's speed; under a name they are reported in total."""
        self._since += seconds
        if name:
            self._totals[name] = self._totals.get(name, 0.0) + seconds

    def check(self, step: int) -> None:
        """Waits for the steps up to `step`; the first that diverged raises `DivergedError`."""
        self._steps = jax.device_get(self._steps)
        for number, sums in enumerate(self._steps, start=step - len(self._steps) + 1):
            if not np.isfinite(sums["loss"]):
                raise DivergedError(
                    f"The loss of step {number} is {sums['loss']}. Lower the learning rate, look "
                    "at the batch of that step, or use float32 activations to see whether it is "
                    "the arithmetic."
                )

    def close(self, step: int) -> float:
        """Writes the interval that ends with `step` and returns its loss."""
        self.check(step)
        now = time.monotonic()
        steps = [{name: float(x) for name, x in sums.items()} for sums in self._steps]
        total = {name: sum(sums[name] for sums in steps) for name in steps[0]}
        metrics = finish(total | {"steps": float(len(steps))})
        seconds = max(now - self._since, 1e-9)
        sequences = total["encoder_input_tokens/sequences"]
        # The step is counted from 0: the rate of the update that led to `step`.
        metrics["learning_rate"] = float(self._learning_rate(step - 1))
        metrics |= self._totals | {
            "timing/seconds": seconds,
            "timing/steps_per_second": len(steps) / seconds,
            "timing/seqs": sequences,
            "timing/seqs_per_second": sequences / seconds,
            "timing/seqs_per_second_per_core": sequences / seconds / jax.device_count(),
            "timing/target_tokens_per_second": total["decoder_target_tokens/real"] / seconds,
            "timing/uptime": now - self._began,
        }
        self._write(step, metrics)
        self._steps, self._since = [], time.monotonic()
        return metrics["loss"]
