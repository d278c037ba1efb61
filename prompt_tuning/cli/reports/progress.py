"""How far a run has come, over all the processes that it took."""

from collections.abc import Mapping
from typing import Any

from prompt_tuning.training.clock import Clock

# Under which checkpoints keep it.
DETAIL = "progress"


class Progress:
    """Counts what a run has seen and the time it took; a checkpoint keeps the totals.

    What is saved with a state is exact for that state: a process that was killed after it has its
    lost steps counted once, by whoever makes them again, and its lost time not at all.

    Args:
        clock: of this process.
        step: the step that this process goes on from.
        details: what was saved with the state it goes on from; empty for a new run.
    """

    def __init__(self, clock: Clock, step: int, details: Mapping[str, Any]):
        before = details.get(DETAIL) or {}
        self._clock = clock
        self._examples: int = before.get("examples", 0)
        self._target_tokens: int = before.get("target_tokens", 0)
        self._seconds: dict[str, float] = before.get("seconds", {})
        # Checkpoints older than these totals say nothing of the steps before.
        self.since: int = before.get("since", step)
        self.processes: int = before.get("processes", 0) + 1

    def add(self, sums: Mapping[str, float]) -> None:
        """Counts a step, by its sums."""
        self._examples += round(sums["encoder_input_tokens/sequences"])
        self._target_tokens += round(sums["decoder_target_tokens/real"])

    @property
    def examples(self) -> int:
        """How many examples the steps have seen, repeated ones counted again."""
        return self._examples

    @property
    def target_tokens(self) -> int:
        """How many tokens of targets these had."""
        return self._target_tokens

    def seconds(self) -> dict[str, float]:
        """Returns the time of all processes by what it was spent on."""
        here = self._clock.seconds()
        names = dict.fromkeys([*self._seconds, *here])
        return {name: self._seconds.get(name, 0.0) + here.get(name, 0.0) for name in names}

    def saved(self) -> dict[str, Any]:
        """Returns what a checkpoint keeps, for the process that goes on from it."""
        totals = {
            "examples": self._examples,
            "target_tokens": self._target_tokens,
            "seconds": self.seconds(),
            "since": self.since,
            "processes": self.processes,
        }
        return {DETAIL: totals}
