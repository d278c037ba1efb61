"""What a seqio task makes of answers: its postprocessor and its metrics."""

import dataclasses
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import seqio

from prompt_tuning.errors import DataError

log = logging.getLogger("prompt_tuning")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SeqioJudge:
    """Judges answers as a seqio task does, see `task_split.Judge`."""

    task: seqio.Task

    @property
    def modes(self) -> frozenset[str]:
        """What the task's metric functions ask for, by the names of their arguments."""
        kinds = {
            "predict": self.task.predict_metric_fns,
            "predict_with_aux": self.task.predict_with_aux_metric_fns,
            "score": self.task.score_metric_fns,
        }
        return frozenset(mode for mode, metrics in kinds.items() if metrics)

    @property
    def label_names(self) -> tuple[str, ...] | None:
        """The labels that the task's postprocessor knows, if it is one for classes."""
        return _label_names(self.task.postprocessor)

    def target(self, record: Mapping[str, Any]) -> Any:
        """Returns the right answer of an example, postprocessed."""
        text = record.get("targets_pretokenized")
        if text is None:
            text = self.task.output_features["targets"].vocabulary.decode(record["targets"])
        if isinstance(text, bytes):
            text = text.decode("utf-8")
        return self.task.postprocess_fn(text, example=record, is_target=True)

    def prediction(self, text: str, record: Mapping[str, Any]) -> Any:
        """Returns a decoded text, postprocessed."""
        return self.task.postprocess_fn(text, example=record, is_target=False)

    def metrics(
        self, targets: Sequence[Any], predictions: Sequence[Any], scores: Sequence[float]
    ) -> dict[str, float | str]:
        """Returns the task's metrics over predictions, and those that look at their scores too."""
        aux_values = {"scores": list(scores)}
        return _values(
            [
                *(metric(targets, predictions) for metric in self.task.predict_metric_fns),
                *(
                    metric(targets, predictions, aux_values)
                    for metric in self.task.predict_with_aux_metric_fns
                ),
            ]
        )

    def score_metrics(
        self, targets: Sequence[Any], scores: Sequence[float]
    ) -> dict[str, float | str]:
        """Returns the task's metrics over the log-probabilities of its targets."""
        return _values([metric(targets, list(scores)) for metric in self.task.score_metric_fns])


def _label_names(postprocessor: Any) -> tuple[str, ...] | None:
    keywords = getattr(postprocessor, "keywords", None) or {}
    if "label_names" in keywords:
        return tuple(keywords["label_names"])
    # A postprocessor may be wrapped in another, as those that keep examples for the log.
    inner = (*getattr(postprocessor, "args", ()), *keywords.values())
    found = (_label_names(one) for one in inner if callable(one))
    return next((names for names in found if names is not None), None)


def _values(metrics: Iterable[Mapping[str, Any]]) -> dict[str, float | str]:
    """Returns numbers as numbers and what is for people as text.

    Raises:
        DataError: two metric functions give something of the same name.
    """
    found: dict[str, float | str] = {}
    for values in metrics:
        for name, value in values.items():
            plain = getattr(value, "value", value)
            if name in found:
                raise DataError(
                    f"Two metric functions of the task give the metric {name!r}. Rename one of "
                    "them, or leave one out of `metric_fns`."
                )
            if isinstance(value, seqio.metrics.Text):
                found[name] = _text(value.textdata)
            elif isinstance(value, seqio.metrics.MetricValue) and plain is value:
                log.info("The metric %r is a %s, which is not written", name, type(value).__name__)
            else:
                found[name] = float(plain)
    return found


def _text(textdata: Any) -> str:
    if isinstance(textdata, bytes):
        return textdata.decode("utf-8", errors="replace")
    return textdata if isinstance(textdata, str) else "\n".join(map(_text, textdata))
