"""What the predictions of a split are worth, in percent where it is a share."""

from collections.abc import Sequence
from typing import Any


def accuracy(targets: Sequence[Any], predictions: Sequence[Any]) -> dict[str, float]:
    """Returns the percentage of predictions that equal their target."""
    right = sum(target == guess for target, guess in zip(targets, predictions, strict=True))
    return {"accuracy": 100.0 * right / len(targets)}
