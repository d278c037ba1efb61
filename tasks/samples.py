"""What the `_examples` variant of a task shows of its answers: some of them, as text."""

import dataclasses
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import seqio

from . import postprocessors

Answer = Mapping[str, Any]
Metric = Callable[[Sequence[Any], Sequence[Any]], Mapping[str, Any]]


def of_predictions(
    metric: Metric, targets: Sequence[Any], predictions: Sequence[Answer]
) -> Mapping[str, Any]:
    """Returns a metric of what `postprocessors.with_examples` wrapped."""
    return metric(targets, [answer[postprocessors.PREDICTION] for answer in predictions])


def classification(answer: Answer) -> str:
    """Returns a question, the right answer and the answer given, as Markdown paragraphs."""
    return "\n\n".join(
        f"{title}: {_text(answer[key])}"
        for title, key in (
            ("example", postprocessors.INPUT_TEXT),
            ("target", postprocessors.TARGET_TEXT),
            ("prediction", postprocessors.PREDICTION_TEXT),
        )
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Samples:
    """A metric of seqio's whose values are texts: answers drawn at random, and wrong ones.

    The same ones for every checkpoint, as the draw has its own seed, so that they can be compared.

    Attributes:
        title: of the task: "sst2" gives "sst2 samples" and "sst2 negative samples".
        count: how many to draw; all if there are no more.
        wrong: draws among the answers that are not their target, too.
        show: makes text of one.
        seed: of the draw.
    """

    title: str
    count: int = 8
    wrong: bool = True
    show: Callable[[Answer], str] = classification
    seed: int = 0

    def __call__(
        self, targets: Sequence[Any], predictions: Sequence[Answer]
    ) -> dict[str, seqio.metrics.Text]:
        shown = {f"{self.title} samples": self._text(predictions)}
        if self.wrong:
            wrong = [
                answer
                for target, answer in zip(targets, predictions, strict=True)
                if answer[postprocessors.PREDICTION] != target
            ]
            shown[f"{self.title} negative samples"] = self._text(wrong)
        return shown

    def _text(self, answers: Sequence[Answer]) -> seqio.metrics.Text:
        drawn = sample(self.count, len(answers), seed=self.seed)
        return seqio.metrics.Text("\n\n".join(self.show(answers[index]) for index in drawn))


def sample(count: int, among: int, *, seed: int) -> list[int]:
    """Draws up to `count` different numbers below `among`; all of them in order if that is all."""
    if count >= among:
        return list(range(among))
    return random.Random(seed).sample(range(among), count)


def _text(value: Any) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)
