"""One split of a task: its tokenised examples, what else is known of them, and who judges answers.

Whether it comes from seqio, from a file or from the cache by its path, the rest of the program sees
this and nothing of its origin.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from prompt_tuning.data.examples import Example
from prompt_tuning.errors import DataError

# The class of a row without a label, as in the test splits of GLUE, and what its target says.
UNKNOWN_CLASS = -1
UNKNOWN_LABEL = "<unk>"


@runtime_checkable
class Judge(Protocol):
    """How a task turns texts into answers and compares them.

    A record is an example with all its features, see `TaskSplit.record`. Metrics are numbers, or
    texts for people, by name.
    """

    @property
    def modes(self) -> frozenset[str]:
        """What the task's metrics ask of a model, in t5x's words.

        `predict` for decoded texts, `predict_with_aux` for texts with their scores, `score` for
        the log-probabilities of the right answers.
        """
        ...

    @property
    def label_names(self) -> Sequence[str] | None:
        """The texts of all classes if the answers are classes, else None."""
        ...

    def target(self, record: Mapping[str, Any]) -> Any:
        """Returns the right answer of an example."""
        ...

    def prediction(self, text: str, record: Mapping[str, Any]) -> Any:
        """Returns what a decoded text means as an answer to an example."""
        ...

    def metrics(
        self, targets: Sequence[Any], predictions: Sequence[Any], scores: Sequence[float]
    ) -> Mapping[str, float | str]:
        """Returns what the predictions are worth; `scores` are their log-probabilities."""
        ...

    def score_metrics(
        self, targets: Sequence[Any], scores: Sequence[float]
    ) -> Mapping[str, float | str]:
        """Returns what the log-probabilities of the right answers are worth (mode `score`)."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lengths:
    """How long the examples of a feature are, in tokens, end token included.

    Attributes:
        counts: how many examples have each length.
        limit: of TASK_FEATURE_LENGTHS; None if nothing was trimmed.
        truncated: how many examples lost tokens to the limit; None if nobody counted.
    """

    counts: Mapping[int, int]
    limit: int | None = None
    truncated: int | None = None

    @property
    def longest(self) -> int:
        """The number of tokens of the longest example."""
        return max(self.counts)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskSplit:
    """The tokenised examples of one split, and how the task judges answers to them.

    Attributes:
        task: its name.
        split: the name of the split.
        examples: the ids, in the order of the split; read when asked for.
        columns: the other features of the records (untokenised text, labels, indices), each as
            long as `examples`.
        judge: of decoded answers.
        lengths: of `inputs` and `targets`.
        fingerprint: hash of all that the examples follow from; equal ones have equal examples.
    """

    task: str
    split: str
    examples: Sequence[Example] = dataclasses.field(repr=False)
    columns: Mapping[str, Sequence[Any]] = dataclasses.field(repr=False)
    judge: Judge
    lengths: Mapping[str, Lengths] = dataclasses.field(repr=False)
    fingerprint: str

    @property
    def longest(self) -> tuple[int, int]:
        """The lengths of the longest inputs and of the longest targets."""
        return self.lengths["inputs"].longest, self.lengths["targets"].longest

    @property
    def answer_length(self) -> int:
        """How many tokens an answer may have: TASK_FEATURE_LENGTHS, or the longest right one's."""
        return self.lengths["targets"].limit or self.longest[1]

    def record(self, index: int) -> dict[str, Any]:
        """Returns one example with all its features, as the task's functions expect it."""
        features = {name: column[index] for name, column in self.columns.items()}
        return features | self.examples[index]._asdict()

    def targets(self) -> list[Any]:
        """Returns the right answers, postprocessed by the task."""
        return [self.judge.target(self.record(index)) for index in range(len(self.examples))]

    def predictions(self, texts: Sequence[str]) -> list[Any]:
        """Returns decoded answers, one for each example, postprocessed by the task."""
        if len(texts) != len(self.examples):
            raise DataError(
                f"There are {len(texts)} answers to the {len(self.examples)} examples of "
                f"{self.task!r}, split {self.split!r}. Give one for each, in order."
            )
        return [self.judge.prediction(text, self.record(i)) for i, text in enumerate(texts)]

    def metrics(
        self, texts: Sequence[str], scores: Sequence[float] | None = None
    ) -> dict[str, float | str]:
        """Returns the task's metrics over decoded answers, one for each example.

        Args:
            texts: the answers.
            scores: their log-probabilities; NaN where nobody knows them.
        """
        scores = [math.nan] * len(texts) if scores is None else scores
        return dict(self.judge.metrics(self.targets(), self.predictions(texts), scores))

    def score_metrics(self, scores: Sequence[float]) -> dict[str, float | str]:
        """Returns the task's metrics over the log-probabilities of the right answers."""
        return dict(self.judge.score_metrics(self.targets(), scores))


@dataclasses.dataclass(frozen=True, kw_only=True)
class EqualAnswers:
    """What judges have in common to whom an answer is right if it equals the right one."""

    modes: frozenset[str] = dataclasses.field(default=frozenset({"predict"}), init=False)

    def metrics(
        self, targets: Sequence[Any], predictions: Sequence[Any], scores: Sequence[float] = ()
    ) -> dict[str, float]:
        return share_of_equal(targets, predictions)

    def score_metrics(self, targets: Sequence[Any], scores: Sequence[float]) -> dict[str, float]:
        del targets, scores
        return {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExactMatch(EqualAnswers):
    """Judges an answer right if it is the right text, white space around it aside.

    Attributes:
        decode: ids into text, for records without `targets_pretokenized`.
    """

    decode: Any
    label_names: None = dataclasses.field(default=None, init=False)

    def target(self, record: Mapping[str, Any]) -> str:
        text = record.get("targets_pretokenized")
        if text is None:
            text = self.decode(record["targets"])
        return (text.decode("utf-8") if isinstance(text, bytes) else str(text)).strip()

    def prediction(self, text: str, record: Mapping[str, Any]) -> str:
        del record
        return text.strip()


def share_of_equal(targets: Sequence[Any], predictions: Sequence[Any]) -> dict[str, float]:
    """Returns the share of predictions that equal their target as `accuracy`, in percent."""
    right = sum(target == guess for target, guess in zip(targets, predictions, strict=True))
    return {"accuracy": 100.0 * right / len(targets)}
