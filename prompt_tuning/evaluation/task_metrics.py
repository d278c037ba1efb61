"""Evaluation by the task's own metrics: of answers, and of what the right answers are worth."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flax import nnx

from prompt_tuning.decoding.ensemble import Combination
from prompt_tuning.errors import ConfigError, DataError
from prompt_tuning.evaluation.alarms import constant_answers
from prompt_tuning.evaluation.answering import Answer, Answering, score_targets
from prompt_tuning.evaluation.confusion import OTHER, Confusion, confusion
from prompt_tuning.evaluation.evaluate import Evaluate, Judged, Result
from prompt_tuning.evaluation.examination import Examination, Examine, Place
from prompt_tuning.evaluation.predictions import example_id, plain


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskMetrics:
    """What the task's metrics say of a model (t5x `infer_eval`).

    Metrics over predictions get the model's answers. Metrics over scores get the log-probability of
    every right answer: so are tasks judged that ask of each candidate apart how likely it is (t5's
    rank classification).

    Attributes:
        name: the task.
        split: its examples and its judgement.
        answering: how the model answers.
        batch_size: rows of a batch.
        combination: how the prompts of an ensemble agree; None for one prompt or none.
        write_rows: how many examples, from the first, to give a row to; None for all. All of them
            count for the metrics.
    """

    name: str
    split: Judged
    answering: Answering
    batch_size: int
    combination: Combination | None = None
    write_rows: int | None = None
    folder: str = dataclasses.field(default="inference_eval", init=False)
    tag_prefix: str = dataclasses.field(default="eval/", init=False)

    def __post_init__(self):
        if self.write_rows is not None and self.write_rows < 0:
            raise ConfigError(
                f"JSON_WRITE_N_RESULTS is {self.write_rows}, expected 0 or more rows, or None for "
                "all."
            )

    @property
    def fingerprint(self) -> str:
        return self.split.fingerprint

    def prepare(self, graph: nnx.GraphDef, place: Place | None = None) -> Evaluate:
        """Returns the evaluation of a pair of trainable and frozen state."""
        modes = self.split.judge.modes
        examine = Examination(
            examples=self.split.examples,
            longest=self.split.longest,
            batch_size=self.batch_size,
            place=place,
        )
        score = (
            score_targets(graph, together=self.combination is not None)
            if "score" in modes
            else None
        )
        answer = self._answerer(graph) if modes - {"score"} else None

        def evaluate(trainable: nnx.State, frozen: nnx.State) -> Result:
            targets = self.split.targets()
            rows = [
                {"id": example_id(self.split.split, i), "input": self._input(i), "target": plain(x)}
                for i, x in enumerate(targets[: self.write_rows])
            ]
            result = Result({}, rows)
            if answer is not None:
                result = self._judged(examine(answer, trainable, frozen), targets, result)
            if score is not None:
                result = self._scored(examine(score, trainable, frozen), targets, result)
            return result

        return evaluate

    def _answerer(self, graph: nnx.GraphDef) -> Examine[Answer]:
        return self.answering.prepare(
            graph,
            length=self.split.answer_length,
            label_names=self.split.judge.label_names,
            combination=self.combination,
        )

    def _judged(self, answers: Sequence[Answer], targets: Sequence[Any], result: Result) -> Result:
        texts = [answer.text for answer in answers]
        scores = [answer.score for answer in answers]
        for row, answer in zip(result.rows, answers, strict=False):
            row["prediction"] = answer.text
            if "predict_with_aux" in self.split.judge.modes:
                row["aux_scores"] = plain(answer.score)
        alarm = constant_answers(texts, targets)
        predictions = self.split.predictions(texts)
        metrics = self.split.judge.metrics(targets, predictions, scores)
        return _with_metrics(result, metrics)._replace(
            alarms=[alarm] if alarm else [], confusion=self._confusion(targets, predictions)
        )

    def _scored(self, scores: Sequence[float], targets: Sequence[Any], result: Result) -> Result:
        for row, score in zip(result.rows, scores, strict=False):
            row["score"] = plain(score)
        return _with_metrics(result, self.split.judge.score_metrics(targets, scores))

    def _input(self, index: int) -> dict[str, Any]:
        """What seqio's evaluator writes of an example's features."""
        return plain(self.split.record(index))

    def _confusion(self, targets: Sequence[Any], predictions: Sequence[Any]) -> Confusion | None:
        labels = self.split.judge.label_names
        if labels is None:
            return None
        right = [_class_number(target) for target in targets]
        if None in right:
            return None
        # As the task reads the answers: it may take a word of another task for one of its own.
        answered = [_class_number(one) for one in predictions]
        return confusion(labels, _names(labels, right), _names(labels, answered))


def _class_number(value: Any) -> int | None:
    """Returns the class that a postprocessor found, alone or with what it tells of an example."""
    while isinstance(value, Mapping):
        value = value.get("prediction", value.get("value"))
    return int(value) if isinstance(value, int | np.integer) else None


def _names(labels: Sequence[str], numbers: Sequence[int | None]) -> list[str]:
    known = range(len(labels))
    return [labels[n] if n is not None and n in known else OTHER for n in numbers]


def _with_metrics(result: Result, metrics: Mapping[str, float | str]) -> Result:
    """Returns the result with more metrics, told apart into numbers and texts.

    Raises:
        DataError: there is one of that name already.
    """
    for name in metrics:
        if name in result.metrics or name in result.texts:
            raise DataError(
                f"The task has a metric {name!r} over predictions and another over scores. Rename "
                "one of them."
            )
    numbers = {name: float(x) for name, x in metrics.items() if not isinstance(x, str)}
    texts = {name: x for name, x in metrics.items() if isinstance(x, str)}
    return result._replace(metrics=result.metrics | numbers, texts=result.texts | texts)
