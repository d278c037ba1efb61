"""What an evaluation is, and the teacher-forced one: what the model was trained for."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
from flax import nnx

from prompt_tuning.batch import Batch
from prompt_tuning.data.examples import Example
from prompt_tuning.data.task_split import Judge
from prompt_tuning.errors import ConfigError
from prompt_tuning.evaluation.confusion import Confusion
from prompt_tuning.evaluation.examination import Place, one_pass
from prompt_tuning.losses import Loss
from prompt_tuning.training.compilations import Compilations
from prompt_tuning.training.metrics import finish
from prompt_tuning.training.step import Sums, make_eval_step


@runtime_checkable
class Judged(Protocol):
    """A split whose task judges answers, as `data.task_split.TaskSplit` does."""

    @property
    def examples(self) -> Sequence[Example]: ...

    @property
    def longest(self) -> tuple[int, int]: ...

    @property
    def answer_length(self) -> int: ...

    def targets(self) -> Sequence[Any]: ...

    def predictions(self, texts: Sequence[str]) -> Sequence[Any]: ...

    @property
    def split(self) -> str: ...

    @property
    def judge(self) -> Judge: ...

    @property
    def fingerprint(self) -> str: ...

    def record(self, index: int) -> Mapping[str, Any]: ...


class Result(NamedTuple):
    """What one evaluation found.

    Attributes:
        metrics: numbers by name.
        rows: one for each example, if it was answered.
        alarms: sentences that a person should read.
        texts: what the task's metrics say in words, by name.
        confusion: of the classes, if the answers are classes.
    """

    metrics: dict[str, float]
    rows: list[dict[str, Any]] = []  # noqa: RUF012 - nobody adds to it.
    alarms: list[str] = []  # noqa: RUF012
    texts: dict[str, str] = {}  # noqa: RUF012
    confusion: Confusion | None = None


Evaluate = Callable[[nnx.State, nnx.State], Result]


@runtime_checkable
class Evaluation(Protocol):
    """What `train` evaluates now and then: it is prepared once and then called.

    `fingerprint` is that of its data; `folder` and `tag_prefix` say where its metrics go and what
    they are called in TensorBoard. `prepare` is told where batches go (`Placement.batch`); None
    leaves them to the default device.
    """

    name: str
    folder: str
    tag_prefix: str

    @property
    def fingerprint(self) -> str: ...

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

    def __post_init__(self):
        if self.steps is not None and self.steps < 1:
            raise ConfigError(
                f"EVAL_STEPS is {self.steps}, expected 1 or more batches, or None for all."
            )

    @property
    def fingerprint(self) -> str:
        read = len(self.split.examples) if self.steps is None else self.steps * self.batch_size
        every = read >= len(self.split.examples)
        return self.split.fingerprint + ("" if every else f", the first {read}")

    def prepare(self, graph: nnx.GraphDef, place: Place | None = None) -> Evaluate:
        """Returns the evaluation of a pair of trainable and frozen state."""
        source = one_pass(self.split.examples, self.split.longest, self.batch_size)
        step = make_eval_step(graph, loss=self.loss)
        compilations = Compilations(f"The loss of {self.name}")

        def one(trainable: nnx.State, frozen: nnx.State, batch: Batch) -> Sums:
            with compilations.counted(batch):
                return step(trainable, frozen, batch)

        def evaluate(trainable: nnx.State, frozen: nnx.State) -> Result:
            batches = map(place or _stay, itertools.islice(source.batches(), self.steps))
            sums = jax.device_get([one(trainable, frozen, batch) for batch in batches])
            total = {name: sum(float(one[name]) for one in sums) for name in sums[0]}
            return Result(finish(total | {"steps": float(len(sums))}))

        return evaluate


def _stay(batch: Batch) -> Batch:
    return batch
