"""From where to where a run counts its steps."""

import dataclasses
import fractions
import logging
import math

from prompt_tuning.checkpoints.contents import Contents
from prompt_tuning.cli.source import Source
from prompt_tuning.errors import ConfigError
from prompt_tuning.model import T5Config
from prompt_tuning.model.config import sizes_like

log = logging.getLogger("prompt_tuning")

# Where the released checkpoints stand, by the first part of their sizes' names.
RELEASED = {"t5_1_1": "1,000,000, and LM-adapted T5 1.1 at 1,100,000", "mt5": "1,000,000"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Length:
    """How long to train, as it was asked for; one of the three says it.

    Attributes:
        total_steps: the global step to end at, the base's own included (TRAIN_STEPS).
        relative_steps: how many steps to train (TRAIN_STEPS_RELATIVE). As in t5x it wins over
            `total_steps`.
        epochs: how often to see every training example (EPOCHS).
    """

    total_steps: int | None = None
    relative_steps: int | None = None
    epochs: float | int | None = None

    def last_step(self, first_step: int, data: Source) -> int:
        """Returns the global step to end at.

        Args:
            first_step: of the base.
            data: what is trained on, whose size an epoch is.

        Raises:
            ConfigError: none of the three is given, or one that makes no sense, or EPOCHS together
                with another.
        """
        self._check()
        if self.epochs is not None:
            last = first_step + self._of_epochs(self.epochs, data)
        elif self.relative_steps is not None:
            last = first_step + self.relative_steps
            if self.total_steps not in (None, last):
                log.info(
                    "TRAIN_STEPS_RELATIVE is %d and wins over TRAIN_STEPS, which is %d (as in "
                    "t5x): the run ends at step %d.",
                    self.relative_steps,
                    self.total_steps,
                    last,
                )
        else:
            assert self.total_steps is not None  # checked
            last = self.total_steps
        if last < first_step:
            raise ConfigError(
                f"TRAIN_STEPS is {last}, but the base model already stands at step {first_step}, "
                f"and TRAIN_STEPS counts those too (as in t5x). For {last} more steps set "
                f"--gin.TRAIN_STEPS={first_step + last} or --gin.TRAIN_STEPS_RELATIVE={last}."
            )
        if last == first_step:
            given = "TRAIN_STEPS_RELATIVE is 0"
            if self.relative_steps is None:
                given = f"TRAIN_STEPS is {last}, which counts the base's own steps (as in t5x)"
            log.warning(
                "Nothing is trained: %s, and the base model stands at step %d. For 1000 more steps "
                "set --gin.TRAIN_STEPS_RELATIVE=1000.",
                given,
                first_step,
            )
        return last

    def _check(self) -> None:
        given = {
            name: value
            for name, value in [
                ("TRAIN_STEPS", self.total_steps),
                ("TRAIN_STEPS_RELATIVE", self.relative_steps),
                ("EPOCHS", self.epochs),
            ]
            if value is not None
        }
        if not given:
            raise ConfigError(
                "How long to train is not set. Set one of --gin.TRAIN_STEPS (the base's own steps "
                "included), --gin.TRAIN_STEPS_RELATIVE (steps of this run) and --gin.EPOCHS "
                "(passes over the training examples)."
            )
        if self.epochs is not None and len(given) > 1:
            both = " and ".join(f"{name} is {value}" for name, value in given.items())
            unset = " or ".join(f"--gin.{name}=None" for name in given)
            raise ConfigError(
                f"{both}, but a run ends only once. Keep one of them and unset the rest: {unset}."
            )
        if self.epochs is not None and not (math.isfinite(self.epochs) and self.epochs > 0):
            raise ConfigError(
                f"EPOCHS is {self.epochs}, expected a number above 0, such as 3 or 0.5."
            )
        if self.relative_steps is not None and self.relative_steps < 0:
            raise ConfigError(
                f"TRAIN_STEPS_RELATIVE is {self.relative_steps}, expected 0 or more steps beyond "
                "the base's."
            )

    def _of_epochs(self, epochs: float | int, data: Source) -> int:
        size, rows = getattr(data, "epoch_size", None), getattr(data, "batch_size", None)
        if size is None or rows is None:
            raise ConfigError(
                f"EPOCHS is {epochs}, but the training data is read as a stream, of which nobody "
                "knows the number of examples. Set --gin.TRAIN_STEPS_RELATIVE to a number of "
                "steps, and --gin.EPOCHS=None."
            )
        # As it is written: 0.7 of 10 examples are 7, and not a rounding error more.
        return math.ceil(fractions.Fraction(str(epochs)) * size / rows)


def first_step(base: Contents | None, given: int | None) -> int:
    """Returns the global step that a run starts from.

    Args:
        base: what is trained over, if anything.
        given: for a base whose format does not say.

    Raises:
        ConfigError: the base stands elsewhere than is said.
    """
    if base is None or base.step is not None:
        known = base.step if base else 0
        if given not in (None, known):
            raise ConfigError(
                f"train.initial_step is {given}, but the base stands at step {known}. Leave it out."
            )
        return known
    if given is None:
        log.warning(
            "%s does not say at which step it stands: counting from 0. The optimizer counts the "
            "base's steps too; for LM-adapted T5 1.1 set --gin.train.initial_step=1_100_000.",
            base.where,
        )
    return given or 0


def unlikely_step(base: Contents | None, config: T5Config) -> str | None:
    """Returns a warning if a base of a released size says that it stands at step 0."""
    if base is None or base.step != 0:
        return None
    sizes = sizes_like(config)
    for family, stands in RELEASED.items():
        if any(name.startswith(family) for name in sizes):
            return (
                f"{base.where!s} says that it stands at step 0, but the released checkpoints of "
                f"this size stand at step {stands}. Adafactor counts the base's steps, and prompt "
                "tuning was tuned with them: if this is such a model, give it its step with "
                f"`prompt-tuning convert --from={base.where!s} --to=DIR --step=1100000`."
            )
    return None
