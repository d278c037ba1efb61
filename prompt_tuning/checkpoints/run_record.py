"""What a run's checkpoint says about itself: of which run it is, and whether it is whole."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from prompt_tuning.errors import CheckpointError


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunRecord:
    """Everything of a saved state that is not an array.

    Attributes:
        step: the global step.
        base: hash of the frozen parameters.
        identity: what decides the numbers of a run, name by name; None if it was not told.
        pending: sums since the last line of the log, see `RunState`.
        details: whatever else the run wants back, as JSON has it.
        checksums: of the arrays, by their names; None in checkpoints older than checksums.
    """

    step: int
    base: str
    identity: dict[str, str] | None = None
    pending: dict[str, float] | None = None
    details: dict[str, Any] = dataclasses.field(default_factory=dict)
    checksums: dict[str, str] | None = None

    def encode(self) -> dict[str, Any]:
        """Returns the record as orbax takes it: step, base, JSON text and the text's checksum."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True)
        checksum = _digest(text.encode())
        return {"step": self.step, "base": self.base, "record": text, "checksum": checksum}


def decode(saved: Mapping[str, Any], where: str) -> RunRecord:
    """Returns the record that `RunRecord.encode` made; `step` and `base` are enough if it is old.

    Raises:
        CheckpointError: it is not what was written.
    """
    try:
        if set(saved) == {"step", "base"}:  # as this program wrote before it had records
            return RunRecord(step=int(saved["step"]), base=str(saved["base"]))
        if _digest(saved["record"].encode()) == saved["checksum"]:
            return RunRecord(**json.loads(saved["record"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{where} is not what was written ({error!r}).") from error
    raise CheckpointError(f"{where} is not what was written: its checksum differs.")


def checksum(array: np.ndarray) -> str:
    """Returns a hash of an array's dtype, shape and values."""
    about = f"{array.dtype} {array.shape} ".encode()
    return _digest(about, np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def check_arrays(arrays: Mapping[str, np.ndarray], record: RunRecord, where: str) -> None:
    """Raises CheckpointError naming the first array that is not the one that was saved."""
    if record.checksums is None:
        return
    if missing := sorted(record.checksums.keys() ^ arrays.keys()):
        raise CheckpointError(f"{where} has other arrays than were saved: {', '.join(missing)}.")
    for name, array in arrays.items():
        if checksum(array) != record.checksums[name]:
            raise CheckpointError(f"{name!r} in {where} has other values than were saved.")


def differences(was: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Returns `name: was X, is Y` for every name whose value is not the same on both sides."""
    return [
        f"{name}: was {was.get(name, 'not set')}, is {now.get(name, 'not set')}"
        for name in sorted(was.keys() | now.keys())
        if was.get(name) != now.get(name)
    ]


def _digest(*parts: bytes | memoryview) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
