"""Which step of a run is the best so far, and when there is no use in going on."""

import dataclasses
import math
from collections.abc import Iterable, Mapping

from prompt_tuning.errors import ConfigError, nearest


@dataclasses.dataclass(frozen=True, kw_only=True)
class Monitor:
    """Watches one metric of the evaluations.

    A value that is not a number is never the best and never an improvement.

    Args:
        metric: `task/metric`, or `inference_eval/task/metric` and `training_eval/task/metric` with
            the folder. Without a folder the one of decoded predictions comes first.
        mode: whether `max` or `min` is good.
        patience: how many evaluations in a row may show no improvement before the run stops, the
            first of them included, as in t5x; None never stops.
        atol: an improvement is more than `atol + rtol * abs(previous)`.
        rtol: see `atol`.
    """

    metric: str
    mode: str = "max"
    patience: int | None = None
    atol: float = 0.0
    rtol: float = 0.0

    def __post_init__(self):
        if self.mode not in ("max", "min"):
            raise ConfigError(
                f"Monitor.mode is {self.mode!r}, expected 'max' or 'min'."
                f"{nearest(self.mode, ('max', 'min'))}"
            )
        if self.patience is not None and self.patience < 2:
            raise ConfigError(
                f"Monitor.patience is {self.patience}, expected 2 or more: it counts evaluations, "
                "and of fewer none can be compared with one before. None never stops."
            )
        for name in ("atol", "rtol"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise ConfigError(
                    f"Monitor.{name} is {getattr(self, name)}, expected a number from 0."
                )

    def check(self, prefixes: Iterable[str]) -> None:
        """Checks what can be known before the first evaluation: that the task is evaluated.

        Args:
            prefixes: of the names of all metrics, as in `inference_eval/sst2/`.

        Raises:
            ConfigError: it is not.
        """
        known = sorted({prefix.partition("/")[2].rstrip("/") for prefix in prefixes})
        task = self.metric.removeprefix("inference_eval/").removeprefix("training_eval/")
        task = task.rpartition("/")[0]
        if task not in known:
            raise ConfigError(
                f"Monitor.metric is {self.metric!r}, but the tasks that are evaluated are: "
                f"{', '.join(known) or 'none (set EVAL_SPLIT)'}.{nearest(task, known)} Name one as "
                "in 'task/accuracy'."
            )

    def best(self, history: Mapping[int, float]) -> int | None:
        """Returns the step with the best value, the first of equals; None if there is none."""
        steps = [step for step in sorted(history) if not math.isnan(history[step])]
        sign = 1.0 if self.mode == "max" else -1.0
        return max(steps, key=lambda step: sign * history[step], default=None)

    def exhausted(self, history: Mapping[int, float]) -> bool:
        """Tells whether none of the last `patience` values improves on the one right before it.

        So t5x's `EarlyStoppingAction` decides: by consecutive values, not by the best one.

        Args:
            history: the values by their steps.
        """
        values = [history[step] for step in sorted(history)]
        if self.patience is None or len(values) < self.patience:
            return False
        last = values[-self.patience :]
        return not any(map(self._improves, last[1:], last[:-1]))

    def resolve(self, names: Iterable[str]) -> str:
        """Returns the full name of the metric, which is one of `names`.

        Args:
            names: as in `inference_eval/sst2/accuracy`.

        Raises:
            ConfigError: it is none of them.
        """
        known = list(names)
        for name in (self.metric, f"inference_eval/{self.metric}", f"training_eval/{self.metric}"):
            if name in known:
                return name
        short = {name.partition("/")[2]: name.partition("/")[0] for name in known}
        with_folder = self.metric.partition("/")[0] in short.values()
        hint = nearest(self.metric, known if with_folder else short)
        raise ConfigError(
            f"Monitor.metric is {self.metric!r}, but no evaluation measures that.{hint} Known are: "
            f"{', '.join(sorted(known)) or 'none'}."
        )

    def _improves(self, value: float, previous: float) -> bool:
        if math.isnan(value):
            return False
        if math.isnan(previous):
            return True
        needed = self.atol + self.rtol * abs(previous)
        return value > previous + needed if self.mode == "max" else value < previous - needed
