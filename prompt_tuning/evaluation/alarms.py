"""What a person should be told about the answers of an evaluation, beyond its metrics."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_SHOWN = 60  # characters of an answer that fit into a line of a log


def constant_answers(texts: Sequence[str], targets: Sequence[Any]) -> str | None:
    """Returns a warning if every example got the same answer though the right ones differ.

    Accuracy hides it: the share of the most frequent class looks like something learnt. A single
    example, or a split in which every right answer is the same, gives no warning.

    Args:
        texts: the decoded answers.
        targets: the right answers, of any type the task has: texts, numbers, lists, arrays.
    """
    if len(texts) < 2 or any(text != texts[0] for text in texts):
        return None
    if all(_same(target, targets[0]) for target in targets):
        return None
    answer = texts[0] if len(texts[0]) <= _SHOWN else f"{texts[0][:_SHOWN]}..."
    if answer:
        advice = (
            "The prompt does not tell the inputs apart (yet): if later evaluations say the same, "
            "try another learning rate, initial value or seed, and look at the inputs in the "
            "predictions file."
        )
    else:
        advice = (
            "No text at all is what a model of the wrong size or vocabulary says, and one whose "
            "activations overflow: check INITIAL_CHECKPOINT_PATH and VOCABULARY, and use bfloat16 "
            "or float32 activations."
        )
    return f"All {len(texts)} answers are {answer!r}, but the right ones differ. {advice}"


def _same(one: Any, other: Any) -> bool:
    """Equality also for arrays, and for lists and dictionaries of them, where `==` gives none."""
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        return np.array_equal(one, other)
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_same(one[name], other[name]) for name in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)
