"""The faults a user can meet, each with the exit code of its class.

All are `ValueError`s, so that plain library code can catch them without knowing this module; the
command line turns them into one message and the exit code. `Preempted` is no fault, and no
`Exception` either.
"""

import difflib
from collections.abc import Iterable


class PromptTuningError(ValueError):
    """A fault that a user can mend; `exit_code` is what the command line returns for it."""

    exit_code = 1


class ConfigError(PromptTuningError):
    """A flag, gin name or value that cannot be used."""

    exit_code = 2


class DataError(PromptTuningError):
    """A task, split, file or record that cannot be read."""

    exit_code = 3


class CheckpointError(PromptTuningError):
    """A checkpoint or prompt that is missing, misshapen or of another model."""

    exit_code = 4


class DeviceError(PromptTuningError):
    """Devices, mesh or the distributed start."""

    exit_code = 5


class OutOfMemoryError(PromptTuningError):
    """A program does not fit into the memory of its devices."""

    exit_code = 6


class DivergedError(PromptTuningError):
    """The loss is not finite."""

    exit_code = 7


class Preempted(BaseException):
    """The run was asked to stop and did; the same command goes on with it.

    As with `KeyboardInterrupt`, which it resembles, no `except Exception` on its way holds it up.
    """

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: try again later


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns a hint to append to an error message: the closest known names, or nothing.

    >>> nearest("prefx", ["prefix", "suffix"])
    " Did you mean 'prefix'?"
    """
    close = difflib.get_close_matches(name, list(known), n=3)
    return f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
