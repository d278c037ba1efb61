"""What a person should be told of a run that would otherwise only look bad at the end."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from prompt_tuning.cli.source import Source
from prompt_tuning.prompts import neighbours
from prompt_tuning.training.optimizer import Optimizer

# The method's learning rate (Lester et al., 2021), and below which a prompt hardly moves.
USUAL_RATE = 0.3
SLOW_RATE = 1e-2
# Of the steps of a run, how many may pass at its end while the learning rate is below this share
# of its highest. Half a cosine spends 2 % of its steps there.
IDLE, FADED = 0.1, 1e-3
# Drift in lengths of the prompt below which it has not learned anything.
STILL = 1e-3
# Of the examples of a task, how many may be cut before it is said.
CUT = 0.01
# Lines of the log, and steps, before it is asked whether the loss has fallen.
ENOUGH_LINES, ENOUGH_STEPS = 4, 100


def slow_learning_rate(optimizer: Optimizer, first: int, last: int) -> str | None:
    """Returns a warning if a prompt's learning rate is far below the method's.

    Adafactor without parameter scaling moves every number by about the learning rate in a step,
    whatever the gradient. Rates that suit Adam, or a model, are some hundred times too small.

    Args:
        optimizer: of the prompt.
        first: the step that the run starts from.
        last: the one it ends at.
    """
    if optimizer.relative is not False or last <= first:
        return None
    highest = rates(optimizer, first, last).max()
    # A rate is a float32, which may be a little less than it was written.
    if highest >= 0.999 * SLOW_RATE:
        return None
    steps = last - first
    earlier = rates(optimizer, 0, first).max()
    fix = (
        f"Before step {first:,}, where the base stands, the schedule reached {earlier:.2g}: it "
        f"starts anew there with step_offset = {first} of schedules.learning_rate."
        if earlier >= 0.999 * SLOW_RATE
        else f"The method's default is {USUAL_RATE}: --gin.LEARNING_RATE={USUAL_RATE}."
    )
    return (
        f"The learning rate is at most {highest:.2g}: without parameter scaling each number of the "
        f"prompt moves by no more than about {steps * highest:.2g} in all {steps:,} steps, and "
        f"usually a prompt learns nothing so. {fix}"
    )


def faded_learning_rate(optimizer: Optimizer, first: int, last: int) -> str | None:
    """Returns a warning if the learning rate has come to its end long before the run does.

    A decay goes by its own settings, which do not follow a change of the run's length.

    Args:
        optimizer: of what is trained.
        first: the step that the run starts from.
        last: the one it ends at.
    """
    found = rates(optimizer, first, last)
    at_work = np.flatnonzero(found > FADED * found.max())
    steps = len(found)
    idle = steps - 1 - int(at_work[-1])
    if idle <= IDLE * steps:
        return None
    return (
        f"From step {last - idle:,} on the learning rate is below {FADED:g} of its highest, so "
        f"hardly anything changes in the last {idle:,} of {steps:,} steps. A decay does not follow "
        "the number of steps: `linear_decay` comes to 0 at the end of a run with decay_factor = "
        "1 / (steps - warmup_steps)."
    )


def still_prompt(
    vectors: Float[np.ndarray, "P D"], start: Float[np.ndarray, "P D"], steps: int
) -> str | None:
    """Returns a warning if a prompt is, after some steps, where it started."""
    drift = float(np.mean(neighbours.drift(vectors, start).distance))
    length = float(np.mean(np.linalg.norm(start, axis=1)))
    # A few steps at a low rate may be the beginning of many.
    if steps < 1 or drift > (STILL * length if steps >= ENOUGH_STEPS else 0.0):
        return None
    how = "not moved" if drift == 0.0 else f"moved by only {drift:.2g}, being {length:.2g} long"
    return (
        f"After {steps:,} steps the prompt has {how}. Raise the learning rate (the method's "
        f"default is {USUAL_RATE}), and look whether the targets of the examples are empty."
    )


def steady_loss(losses: Mapping[int, float], steps: int) -> str | None:
    """Returns a warning if the loss at the end of a run is not below the one at its beginning.

    Args:
        losses: of every line of the log, by step.
        steps: of the run.
    """
    values = [losses[step] for step in sorted(losses)]
    if len(values) < ENOUGH_LINES or steps < ENOUGH_STEPS:
        return None
    part = len(values) // ENOUGH_LINES
    before, after = float(np.mean(values[:part])), float(np.mean(values[-part:]))
    if after < before:
        return None
    return (
        f"The loss did not fall: {before:.4g} a target token at the beginning, {after:.4g} at the "
        "end. Try another learning rate or initial value, and look at the examples with "
        "`prompt-tuning tasks show`."
    )


def constant_answers(alarms: Mapping[str, Mapping[int, bool]]) -> list[str]:
    """Returns a warning for every task that got the same answer to everything at last.

    Args:
        alarms: whether there was one, by the names of tasks and by steps.
    """
    return [
        f"{task}: at step {max(steps)} all answers were the same though the right ones differ "
        f"(so at {sum(steps.values())} of {len(steps)} evaluations)."
        for task, steps in alarms.items()
        if steps and steps[max(steps)]
    ]


def cut_texts(data: Source) -> list[str]:
    """Returns a warning for every part of the data of which many examples lost some text."""
    found = []
    for split in getattr(data, "splits", ()):
        for feature, lengths in split.lengths.items():
            examples = len(split.examples)
            if lengths.truncated and lengths.truncated > CUT * examples:
                found.append(
                    f"{lengths.truncated:,} of {examples:,} examples of {split.task}/{split.split} "
                    f"({lengths.truncated / examples:.0%}) lost the end of their {feature}, cut to "
                    f"{lengths.limit:,} tokens: see TASK_FEATURE_LENGTHS."
                )
    return found


def rates(optimizer: Optimizer, first: int, last: int) -> Float[np.ndarray, " steps"]:
    """Returns the learning rates of all updates of a run, and of one if it has none to make."""
    steps = jnp.arange(first, max(first + 1, last), dtype=jnp.int32)
    return np.asarray(jax.jit(jax.vmap(optimizer.learning_rate))(steps), np.float32)
