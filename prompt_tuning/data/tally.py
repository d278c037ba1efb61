"""What is counted of examples while they pass: their lengths, and the hash of their ids."""

import hashlib
import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prompt_tuning.data.examples import Example
from prompt_tuning.data.records import Records
from prompt_tuning.data.task_split import Lengths
from prompt_tuning.errors import DataError


class Tally:
    """Counts the records of the split that `description` describes, see `cache.cached`."""

    def __init__(self, description: Mapping[str, Any]):
        self.examples = 0
        self._description = description
        self._limits: Mapping[str, int] = description["lengths"] or {}
        self._counts = {name: Counter[int]() for name in Example._fields}
        self._hash = hashlib.sha256()

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Counts some more records."""
        self.examples += len(rows)
        for row in rows:
            for name, counts in self._counts.items():
                ids = np.asarray(row[name], "<i4")
                counts[len(ids)] += 1
                self._hash.update(struct.pack("<q", len(ids)))
                self._hash.update(ids.tobytes())

    def check(self) -> None:
        """Raises DataError if no record has passed."""
        if not self.examples:
            raise DataError(
                f"The split {self._description['split']!r} of the task "
                f"{self._description['task']!r} has no examples."
            )

    @property
    def fingerprint(self) -> str:
        """The hash of all ids, in their order."""
        return self._hash.hexdigest()

    def lengths(self, records: Records) -> dict[str, Lengths]:
        """Returns the lengths of inputs and targets, once all records have passed."""
        truncated = (records.truncated() if records.truncated else None) or {}
        return {
            name: Lengths(
                counts=dict(sorted(counts.items())),
                limit=self._limits.get(name),
                truncated=truncated.get(name) if name in self._limits else 0,
            )
            for name, counts in self._counts.items()
        }
