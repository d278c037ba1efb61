"""One line of the doctor's report."""

import dataclasses
from typing import Any, Literal

from prompt_tuning.errors import ConfigError, PromptTuningError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """What was looked at, how it is, and what to do about it.

    Attributes:
        group: which file of this folder has asked.
        name: of what was looked at.
        state: a warning leaves runs possible, a fault does not.
        found: how it is.
        advice: what to do; empty if nothing.
        kind: of a fault, the class whose exit code it has.
    """

    group: str
    name: str
    state: Literal["ok", "warning", "fault"]
    found: str
    advice: str = ""
    kind: type[PromptTuningError] = ConfigError

    @property
    def exit_code(self) -> int:
        return self.kind.exit_code if self.state == "fault" else 0

    def row(self) -> dict[str, Any]:
        """Returns the finding as JSON can write it."""
        names = ("group", "name", "state", "found", "advice")
        return {name: getattr(self, name) for name in names} | {"exit_code": self.exit_code}
