"""What is written of an example and the answer to it: one JSON object a line."""

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from prompt_tuning.batch import PAD
from prompt_tuning.errors import ConfigError, nearest
from prompt_tuning.evaluation.answering import Answer

_TEXT = "_pretokenized"


def example_id(split: str, index: int) -> str:
    """Returns the name of an example, the same in every run: its split and its place in it."""
    return f"{split}/{index}"


def plain(value: Any) -> Any:
    """Returns what JSON can hold of a feature; numbers that are not finite become null."""
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(name): plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, set | frozenset):
        # Sets have an order of their own in every process.
        return sorted(map(plain, value), key=repr)
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain(dataclasses.asdict(value))
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def as_lines(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """Returns rows as JSON lines in UTF-8."""
    return "".join(json.dumps(plain(row), ensure_ascii=False) + "\n" for row in rows).encode()


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputFields:
    """Which features of an example are written beside its answer (t5x `write_fn`).

    Attributes:
        include_all_inputs: every feature, tokens included.
        input_fields_to_include: these, or their texts before they were tokenised. By default only
            the texts: `inputs_pretokenized` and `targets_pretokenized`.
    """

    include_all_inputs: bool = False
    input_fields_to_include: Sequence[str] | None = None

    def __post_init__(self):
        if self.include_all_inputs and self.input_fields_to_include is not None:
            raise ConfigError(
                "InputFields.include_all_inputs and input_fields_to_include exclude each other: "
                "leave one out."
            )

    def of(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the chosen features of a record.

        Raises:
            ConfigError: it has none of one of the names.
        """
        if self.include_all_inputs:
            return dict(record)
        if self.input_fields_to_include is None:
            return {name: one for name, one in record.items() if name.endswith(_TEXT)}
        for field in self.input_fields_to_include:
            if not {field, f"{field}{_TEXT}"} & record.keys():
                raise ConfigError(
                    f"InputFields.input_fields_to_include has {field!r}, but the examples have: "
                    f"{', '.join(record)}.{nearest(field, record)}"
                )
        return {
            name: one
            for name, one in record.items()
            if {name, name.removesuffix(_TEXT)} & set(self.input_fields_to_include)
        }


def prediction(
    answer: Answer, *, mode: str, output_ids: bool = False, all_decodes: bool = False
) -> dict[str, Any]:
    """Returns what t5x writes of an answer.

    Args:
        answer: see `answering`.
        mode: `predict`, or `predict_with_aux` for its scores as well.
        output_ids: adds the tokens before the padding, as `prediction_tokens`.
        all_decodes: lists all answers to the example, the best last, instead of the best.
    """
    answers = (*answer.others, answer)
    row: dict[str, Any] = {"prediction": [one.text for one in answers]}
    if output_ids:
        row["prediction_tokens"] = [_before_padding(one.tokens) for one in answers]
    if mode == "predict_with_aux":
        row["aux"] = {"scores": [one.score for one in answers]}
    return row if all_decodes else _last(row)


def _last(row: Any) -> Any:
    return {k: _last(v) for k, v in row.items()} if isinstance(row, dict) else row[-1]


def _before_padding(tokens: np.ndarray) -> list[int]:
    (padding,) = np.nonzero(tokens == PAD)
    return tokens[: padding[0] if len(padding) else None].tolist()
