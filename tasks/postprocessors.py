"""From the text a model wrote to the value that the metrics compare."""

from collections.abc import Sequence
from typing import Any

UNKNOWN_CLASS = -1


def string_label_to_class_id(text: str, *, label_names: Sequence[str], **_: Any) -> int:
    """Returns the number of the label that the text is, or -1 if it is none of them.

    seqio passes `example` and `is_target` as well; a label needs neither.
    """
    names = list(label_names)
    return names.index(text) if text in names else UNKNOWN_CLASS
