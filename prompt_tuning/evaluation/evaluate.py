"""Evaluation of a split: teacher forced (what the model was trained for) and decoded."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from flax import nnx

from prompt_tuning.batch import Batch
from prompt_tuning.data.batches import OnePassBatches
from prompt_tuning.data.buckets import buckets_up_to
from prompt_tuning.data.examples import Example
from prompt_tuning.decoding.generate import make_generate
from prompt_tuning.evaluation.alarms import constant_answers
from prompt_tuning.losses import Loss
from prompt_tuning.partitioning import on_host
from prompt_tuning.training.metrics import finish
from prompt_tuning.training.step import make_eval_step
from prompt_tuning.vocabulary import Vocabulary


@runtime_checkable
class Judged(Protocol):
    """A split whose task judges decoded answers, as `data.task_split.TaskSplit` does."""

    @property
    def examples(self) -> Sequence[Example]: ...

    @property
    def longest(self) -> tuple[int, int]: ...

    def targets(self) -> Sequence[Any]: ...

    def metrics(self, texts: Sequence[str]) -> Mapping[str, Any]: ...

    def record(self, index: int) -> Mapping[str, Any]: ...


class Result(NamedTuple):
    """The metrics of one evaluation and, if answers were decoded, one row for each example.

    `alarms` are sentences that a person should read.
    """

    metrics: dict[str, float]
    rows: list[dict[str, Any]]
    alarms: list[str]


Evaluate = Callable[[nnx.State, nnx.State], Result]
Place = Callable[[Batch], Batch]


@runtime_checkable
class Evaluation(Protocol):
    """What `train` evaluates now and then: it is prepared once and then called.

    `folder` and `tag_prefix` say where its metrics go and what they are called in TensorBoard.
    `prepare` is told where batches go (`Placement.batch`); None leaves them to the default device.
    """

    name: str
    folder: str
    tag_prefix: str

    def prepare(self, graph: nnx.GraphDef, place: Place | None = None) -> Evaluate: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherForced:
    """Loss and token accuracy on the right answers, without dropout (t5x `train_eval`).

    Attributes:
        name: the task.
        split: its examples.
        batch_size: rows of a batch.
        steps: stop after this many batches; None reads the whole split.
        loss: as in training.
    """

    name: str
    split: Judged
    batch_size: int
    steps: int | None = None
    loss: Loss = dataclasses.field(default_factory=Loss)
    folder: str = dataclasses.field(default="training_eval", init=False)
    tag_prefix: str = dataclasses.field(default="", init=False)

    def prepare(self, graph: nnx.GraphDef, place: Place | None = None) -> Evaluate:
        """Returns the evaluation of a pair of trainable and frozen state."""
        source = one_pass(self.split, self.batch_size)
        step = make_eval_step(graph, loss=self.loss)

        def evaluate(trainable: nnx.State, frozen: nnx.State) -> Result:
            batches = map(place or _stay, itertools.islice(source.batches(), self.steps))
            sums = jax.device_get([step(trainable, frozen, batch) for batch in batches])
            total = {name: sum(float(one[name]) for one in sums) for name in sums[0]}
            return Result(finish(total | {"steps": float(len(sums))}), [], [])

        return evaluate


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoded:
    """Answers decoded greedily and judged by the task's own metrics (t5x `infer_eval`).

    Attributes:
        name: the task.
        split: its examples and its judgement.
        vocabulary: turns tokens into the text that is judged.
        batch_size: rows of a batch.
    """

    name: str
    split: Judged
    vocabulary: Vocabulary
    batch_size: int
    folder: str = dataclasses.field(default="inference_eval", init=False)
    tag_prefix: str = dataclasses.field(default="eval/", init=False)

    def prepare(self, graph: nnx.GraphDef, place: Place | None = None) -> Evaluate:
        """Returns the evaluation of a pair of trainable and frozen state."""
        source = one_pass(self.split, self.batch_size)
        # As in t5x, no answer is longer than the longest right one.
        _, length = self.split.longest
        generate = make_generate(graph, length=length, eos_id=self.vocabulary.eos_id)
        targets = self.split.targets()

        def evaluate(trainable: nnx.State, frozen: nnx.State) -> Result:
            answers: list[np.ndarray] = []
            for step, batch in enumerate(map(place or _stay, source.batches())):
                tokens = on_host(generate(trainable, frozen, batch.inputs))
                answers.extend(tokens[: source.rows(step)])
            texts = [self.vocabulary.decode(tokens) for tokens in answers]
            metrics = {name: float(x) for name, x in self.split.metrics(texts).items()}
            rows = [self._row(*row) for row in enumerate(zip(targets, texts, strict=True))]
            alarm = constant_answers(texts, targets)
            return Result(metrics, rows, [alarm] if alarm else [])

        return evaluate

    def _row(self, index: int, answers: tuple[Any, str]) -> dict[str, Any]:
        """What seqio's evaluator writes of an example (`<task>-<step>.jsonl`)."""
        target, prediction = answers
        record = self.split.record(index)
        return {
            "input": {name: _plain(value) for name, value in record.items()},
            "target": _plain(target),
            "prediction": prediction,
        }


def one_pass(split: Judged, batch_size: int) -> OnePassBatches:
    """Returns the batches of a split, in buckets that end at its longest example."""
    inputs, targets = map(buckets_up_to, split.longest)
    return OnePassBatches(
        examples=split.examples, batch_size=batch_size, inputs=inputs, targets=targets
    )


def _stay(batch: Batch) -> Batch:
    return batch


def _plain(value: Any) -> Any:
    """What JSON can hold of a feature."""
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return value.decode("utf-8", errors="replace") if isinstance(value, bytes) else value
