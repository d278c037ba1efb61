"""The training loop: batches in, steps out, and what is due in between."""

import collections
import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from flax import nnx
from jaxtyping import Array, Bool, PRNGKeyArray

from prompt_tuning.batch import Batch
from prompt_tuning.errors import ConfigError, DivergedError
from prompt_tuning.training.clock import Clock
from prompt_tuning.training.compilations import Compilations
from prompt_tuning.training.metrics import finish
from prompt_tuning.training.schedules import Schedule
from prompt_tuning.training.state import RunState
from prompt_tuning.training.step import Sums, TrainStep
from prompt_tuning.training.watchdog import Watchdog

Write = Callable[[int, dict[str, float]], None]

# How many steps the device is given ahead of the one whose sums are read: enough to keep it busy,
# and few enough to stop soon when asked to.
_IN_FLIGHT = 2
# How many steps are measured before it is said how long one takes.
_MEASURED = 10

_ADVICE = (
    "Lower the learning rate, look at the batch of that step, or use float32 activations to see "
    "whether it is the arithmetic."
)


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


def never() -> bool:
    """Does not stop a run."""
    return False


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
    stop: Callable[[], bool] = never,
    watchdog: Watchdog | None = None,
    name_batch: Callable[[int], str] | None = None,
    clock: Clock | None = None,
    seen: Callable[[Mapping[str, float]], None] | None = None,
    pace: Callable[[int, float], None] | None = None,
) -> RunState:
    """Trains from `state.step` to `total_steps` and returns the final state.

    At most two steps are under way on the device when the next one is given to it. The sums of a
    step are added up on the host, in the order of the steps, and travel with the state: a run that
    is stopped anywhere and resumed writes the same numbers as one that was not, timings aside.

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
        actions: what else to do and how often; they only observe. What they get is finite, loss
            and parameters, and may be saved and resumed from.
        stop: asked before every step; if true the state is returned as it is, at an earlier step
            than `total_steps`.
        watchdog: told of every step; compiling and actions are not held against it.
        name_batch: the examples behind the update that led to a (global) step, for an error.
        clock: counts what is spent to `train`, to `compile`, and on `actions` that do not count it
            themselves.
        seen: receives the sums of every step, in their order; those of a state that an action gets
            have been received.
        pace: told once, when enough steps have been measured, the step and the seconds that one
            takes, compilations and actions left out.

    Raises:
        DivergedError: the loss of a step is not finite, or what a step left behind is not.
    """
    log = _Log(
        Every(steps=log_every, action=lambda state: None),
        learning_rate,
        write,
        last=total_steps,
        pending=state.pending,
        name_batch=name_batch,
        seen=seen,
    )
    clock = clock or Clock()
    measured = _Pace(state.step, clock, pace)
    paused = contextlib.nullcontext if watchdog is None else watchdog.paused
    compilations = Compilations("The training step")
    bar = tqdm.tqdm(initial=state.step, total=total_steps, unit="step", disable=None)
    with bar, clock.spent("train"), watchdog or contextlib.nullcontext():
        while state.step < total_steps:
            if stop():
                return log.checked(state)
            if watchdog is not None:
                watchdog.begin(state.step + 1)
            batch = next(batches)
            step_key = None if key is None else _folded(key, state.step)
            asked, programs = time.monotonic(), compilations.programs
            # A call returns when its program is compiled, well before it has run.
            known = compilations.known(batch)
            with (
                contextlib.ExitStack() if known else _compiling(paused(), clock),
                compilations.counted(batch),
            ):
                trainable, opt_state, sums = train_step(
                    state.trainable, state.opt_state, frozen, batch, step_key
                )
            if not known or compilations.programs > programs:
                log.compiled(time.monotonic() - asked, compilations.programs)
            state = RunState(trainable, opt_state, state.step + 1)
            bar.update()
            log.add(state.step, sums)
            measured.passed(state.step)
            if log.every.due(state.step, total_steps):
                bar.set_postfix(loss=log.close(state.step), refresh=False)
            due = [every for every in actions if every.due(state.step, total_steps)]
            if due:
                state = log.checked(state)
            for every in due:
                began = time.monotonic()
                with paused(), clock.spent("actions"):
                    every.action(state)
                log.skip(time.monotonic() - began)
    return state


class _Log:
    """Adds up the sums of an interval, step by step, and writes them at its end."""

    def __init__(
        self,
        every: Every,
        learning_rate: Schedule,
        write: Write,
        *,
        last: int,
        pending: dict[str, float] | None,
        name_batch: Callable[[int], str] | None,
        seen: Callable[[Mapping[str, float]], None] | None,
    ):
        self.every = every
        self._learning_rate = learning_rate
        self._write = write
        self._last = last
        self._name_batch = name_batch
        self._seen = seen
        self._in_flight: collections.deque[tuple[int, Sums]] = collections.deque()
        self._total = dict(pending or {})
        # What the process before has added up took none of our time.
        self._resumed = dict(self._total)
        self._timings: dict[str, float] = {}
        self._began = self._since = time.monotonic()

    def add(self, step: int, sums: Sums) -> None:
        """Takes the sums of a step that is under way, and waits for an earlier one."""
        for value in sums.values():
            value.copy_to_host_async()
        self._in_flight.append((step, sums))
        self._wait(_IN_FLIGHT)

    def skip(self, seconds: float) -> None:
        """Leaves seconds out of the interval's speed."""
        self._since += seconds

    def compiled(self, seconds: float, programs: int) -> None:
        """Leaves out a call that compiled, and reports the seconds and programs of all of them."""
        self.skip(seconds)
        seconds += self._timings.get("timing/compilation_seconds", 0.0)
        self._timings["timing/compilation_seconds"] = seconds
        self._timings["timing/compilations"] = float(programs)

    def checked(self, state: RunState) -> RunState:
        """Waits for a state and returns it with what is pending; `DivergedError` if it is lost."""
        self._wait()
        # A gradient may overflow where the loss does not, which the next step's loss would show.
        if not _all_finite(state.trainable):
            raise DivergedError(
                f"The update of step {state.step} left values in the parameters that are not "
                f"finite, though its loss was.{self._examples(state.step)} {_ADVICE}"
            )
        return state._replace(pending=dict(self._total) or None)

    def close(self, step: int) -> float:
        """Writes the interval that ends with `step` and returns its loss."""
        self._wait()
        now = time.monotonic()
        total, resumed = self._total, self._resumed
        metrics = finish(total)
        seconds = max(now - self._since, 1e-9)
        ours = {name: x - resumed.get(name, 0.0) for name, x in total.items()}
        sequences = ours["encoder_input_tokens/sequences"]
        # The step is counted from 0: the rate of the update that led to `step`.
        metrics["learning_rate"] = float(self._learning_rate(step - 1))
        metrics |= self._timings | {
            "timing/seconds": seconds,
            "timing/steps_per_second": ours["steps"] / seconds,
            "timing/seconds_left": (self._last - step) * seconds / ours["steps"],
            "timing/seqs": sequences,
            "timing/seqs_per_second": sequences / seconds,
            "timing/seqs_per_second_per_core": sequences / seconds / jax.device_count(),
            "timing/target_tokens_per_second": ours["decoder_target_tokens/real"] / seconds,
            "timing/uptime": now - self._began,
        }
        self._write(step, metrics)
        self._total, self._resumed, self._since = {}, {}, time.monotonic()
        return metrics["loss"]

    def _wait(self, but: int = 0) -> None:
        """Adds up the steps under way, all `but` the last few; the first bad one raises."""
        while len(self._in_flight) > but:
            step, sums = self._in_flight.popleft()
            values = {name: float(x) for name, x in jax.device_get(sums).items()}
            if not np.isfinite(values["loss"]):
                raise DivergedError(
                    f"The loss of step {step} is {values['loss']}.{self._examples(step)} {_ADVICE}"
                )
            if self._seen is not None:
                self._seen(values)
            for name, value in (values | {"steps": 1.0}).items():
                self._total[name] = self._total.get(name, 0.0) + value

    def _examples(self, step: int) -> str:
        return f" Its batch: {self._name_batch(step)}." if self._name_batch else ""


class _Pace:
    """Measures some steps, once as many are under way as will ever be, and says what one takes."""

    def __init__(self, first: int, clock: Clock, told: Callable[[int, float], None] | None):
        self._from = first + _IN_FLIGHT + 1
        self._clock = clock
        self._told = told
        self._began = 0.0

    def passed(self, step: int) -> None:
        """Takes note of a step that was given to the device."""
        if self._told is None or step not in (self._from, self._from + _MEASURED):
            return
        spent = self._clock.seconds()["train"]
        if step == self._from:
            self._began = spent
        else:
            self._told(step, (spent - self._began) / _MEASURED)


@contextlib.contextmanager
def _compiling(paused: contextlib.AbstractContextManager, clock: Clock) -> Iterator[None]:
    with paused, clock.spent("compile"):
        yield


def _folded(key: PRNGKeyArray, step: int) -> PRNGKeyArray:
    # A step gives the device nothing but what it is told to: JAX's transfer guard may be on.
    return jax.random.fold_in(key, jax.device_put(np.uint32(step)))


@jax.jit
def _all_finite(trainable: nnx.State) -> Bool[Array, ""]:
    leaves = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(trainable)]
    return jnp.all(jnp.stack(leaves))
