"""Which classes a model takes for which."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

OTHER = "(other)"


class Confusion(NamedTuple):
    """How often each class was answered for each right one.

    `counts[right, answered]`; one column more than there are labels, for answers that are none.
    Examples whose right answer is no label, as in a test split, are not counted.
    """

    labels: tuple[str, ...]
    counts: Int[np.ndarray, "C C+1"]

    def as_json(self) -> Mapping[str, list]:
        """Returns the names of rows and columns and the counts, row by row."""
        return {
            "targets": list(self.labels),
            "predictions": [*self.labels, OTHER],
            "counts": self.counts.tolist(),
        }

    def __str__(self) -> str:
        """A table for people: a row for each right answer, a column for each given one."""
        columns = [*self.labels, *([OTHER] if self.counts[:, -1].any() else [])]
        rows = [["", *columns]]
        for label, counts in zip(self.labels, self.counts, strict=True):
            rows.append([label, *map(str, counts[: len(columns)])])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])
            for row in rows
        )


def confusion(
    labels: Sequence[str], targets: Sequence[str], predictions: Sequence[str]
) -> Confusion:
    """Counts answers by the right class and the answered one.

    Args:
        labels: the text of every class.
        targets: the text of the right answer to each example.
        predictions: the text that was answered.
    """
    numbers = {label: number for number, label in enumerate(labels)}
    counts = np.zeros((len(labels), len(labels) + 1), np.int64)
    for target, answered in zip(targets, predictions, strict=True):
        if target in numbers:
            counts[numbers[target], numbers.get(answered, len(labels))] += 1
    return Confusion(tuple(labels), counts)
