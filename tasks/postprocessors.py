"""From the text a model wrote to the value that the metrics compare.

seqio calls each with the text, `example`, the record that the question is from, and `is_target`,
which tells whether the text is the right answer or the model's.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from prompt_tuning.data.task_split import UNKNOWN_CLASS
from prompt_tuning.errors import DataError

# The features that seqio keeps of an example's text, and what `with_examples` calls an answer.
INPUT_TEXT = "inputs_pretokenized"
TARGET_TEXT = "targets_pretokenized"
TEXTS = (INPUT_TEXT, TARGET_TEXT)
PREDICTION = "prediction"
PREDICTION_TEXT = "prediction_pretokenized"


def string_label_to_class_id(text: str, *, label_names: Sequence[str], **_: Any) -> int:
    """Returns the number of the label that the text is, or -1 if it is none of them.

    seqio passes `example` and `is_target` as well; a label needs neither.
    """
    names = list(label_names)
    return names.index(text) if text in names else UNKNOWN_CLASS


def identity(text: str, **_: Any) -> str:
    """Returns the text."""
    return text


def string_to_float(text: str, **_: Any) -> float:
    """Returns the number that the text is, or -1.0 if it is none.

    "nan" and "inf" are none either: one such answer would leave a split without correlations.
    """
    try:
        number = float(text)
    except ValueError:
        return float(UNKNOWN_CLASS)
    return number if math.isfinite(number) else float(UNKNOWN_CLASS)


def multirc(
    text: str,
    *,
    label_names: Sequence[str],
    example: Mapping[str, Any] | None = None,
    is_target: bool = False,
) -> dict[str, int]:
    """Returns the number of the label as `value`; of a target its question too, as `group`."""
    answer = {"value": string_label_to_class_id(text, label_names=label_names)}
    return answer | {"group": int(_record(example)["idx/question"])} if is_target else answer


def record(
    text: str, *, example: Mapping[str, Any] | None = None, is_target: bool = False
) -> dict[str, Any]:
    """Returns the text as `value`; of a target all right answers, and its query as `group`."""
    if not is_target:
        return {"value": text}
    known = _record(example)
    return {
        "value": [_decoded(answer) for answer in known["answers"]],
        "group": (int(known["idx/passage"]), int(known["idx/query"])),
    }


_DETERMINERS = frozenset(
    {
        "a",
        "an",
        "few",
        "her",
        "his",
        "each",
        "every",
        "many",
        "much",
        "my",
        "our",
        "some",
        "that",
        "the",
        "their",
        "these",
        "this",
        "those",
        "which",
        "whose",
        "your",
    }
)


def wsc_simple(
    text: str, *, example: Mapping[str, Any] | None = None, is_target: bool = False
) -> int:
    """Tells whether the text means the target, 1 or 0, and -1 of an empty one; a target its label.

    It does if all words of one are in the other, letter case and determiners aside. Only one of
    both with an apostrophe, "Bob" and "Bob's hat", is another thing.
    """
    known = _record(example)
    if is_target:
        return int(known["label"])
    said, meant = (_words(one) for one in (text, _decoded(known[TARGET_TEXT])))
    if not any(said):
        return UNKNOWN_CLASS
    if any("'" in word for word in said) != any("'" in word for word in meant):
        return 0
    return int(set(said) <= set(meant) or set(meant) <= set(said))


def translated(
    postprocess: Callable[..., Any], text: str, *, old: str, new: str, **options: Any
) -> Any:
    """Returns what a text means after `old` is replaced by `new` all through it.

    So the answers of a model of one task are judged by another with other names for its labels.
    """
    return postprocess(text.replace(old, new), **options)


def of_candidates(
    postprocess: Callable[..., Any],
    text: str,
    *,
    example: Mapping[str, Any] | None = None,
    is_target: bool = False,
) -> Any:
    """Postprocesses answers to an example whose features have a row for each candidate.

    The target is the right candidate; for the answer, so is the text of the example's targets.
    """
    known = _record(example)
    right = _decoded(known[TARGET_TEXT][int(np.argmax(known["is_correct"]))])
    if is_target:
        return postprocess(right, example=known, is_target=True)
    one = {**known, INPUT_TEXT: known[INPUT_TEXT][0], TARGET_TEXT: right}
    return postprocess(text, example=one, is_target=False)


def with_examples(
    postprocess: Callable[..., Any],
    text: str,
    *,
    example: Mapping[str, Any] | None = None,
    is_target: bool = False,
    kept: Sequence[str] = TEXTS,
) -> Any:
    """Returns an answer with its text and with features of its example; targets stay as they are.

    Args:
        postprocess: what the answer means.
        text: the answer.
        example: the record.
        is_target: whether the text is the right answer.
        kept: the features of the example; None where it has none of that name.
    """
    value = postprocess(text, example=example, is_target=is_target)
    if is_target:
        return value
    features = {name: (example or {}).get(name) for name in kept}
    return {PREDICTION: value, PREDICTION_TEXT: text, **features}


def _record(example: Mapping[str, Any] | None) -> Mapping[str, Any]:
    if example is None:
        raise DataError(
            "The postprocessor of this task needs the record of the example, but got none. Pass "
            "`example`, a row of the split with all its features."
        )
    return example


def _decoded(text: str | bytes) -> str:
    return text.decode("utf-8") if isinstance(text, bytes) else str(text)


def _words(text: str) -> list[str]:
    words = text.strip().lower().split(" ")
    # Nothing but determiners leaves one empty word, as if joined and split again.
    return [word for word in words if word not in _DETERMINERS] or [""]
