"""A split of seven questions, and who judges answers to it."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from prompt_tuning.data.examples import Example
from prompt_tuning.decoding import Answers
from tests.data.splits import split_of

VOCABULARY_SIZE = 260


def example(inputs, targets):
    return Example(np.array([*inputs, 1], np.int32), np.array([*targets, 1], np.int32))


# Of several lengths, but of the same bucket, as each one is compiled. In batches of three the last
# one has two empty rows.
EXAMPLES = [
    example([5, 9], [7]),
    example([6, 6, 6, 40, 41, 42, 43], [9]),
    example([90, 17], [8]),
    example([11, 12], [8]),
    example([100, 101, 102, 103, 104], [12, 13, 14]),
    example([30, 31, 32, 33, 34, 35, 36], [7]),
    example([250, 3], [8]),
]


@dataclasses.dataclass(frozen=True)
class Told:
    """A judge whose metrics are what it was told."""

    modes: frozenset = frozenset({"predict"})
    label_names: Sequence[str] | None = None

    def target(self, record):
        return np.int64(record["idx"])

    def prediction(self, text, record):
        return f"{record['idx']}: {text}"

    def metrics(self, targets, predictions, scores):
        assert [f"{target}: " for target in targets] == [
            text[: text.index(":") + 2] for text in predictions
        ]
        return {
            "count": float(len(predictions)),
            "letters": float(sum(map(len, predictions))),
            "scores": math.fsum(scores),
            "said": "\n".join(predictions),
        }

    def score_metrics(self, targets, scores):
        weighted = [float(target) * score for target, score in zip(targets, scores, strict=True)]
        return {"weighted score": math.fsum(weighted), "best": str(targets[int(np.argmax(scores))])}


def columns(count):
    return {
        "inputs_pretokenized": [f"number {index} – ü".encode() for index in range(count)],
        "idx": np.arange(count, dtype=np.int32),
        "parts": [np.array([0.5, index]) for index in range(count)],
        "languages": [np.array([b"de", b"en"])] * count,
    }


def questions(examples=EXAMPLES, judge=Told(), **lengths):
    """Returns examples as the split `validation`; `lengths` may say what `Lengths` to have."""
    split = split_of("tiny", examples, split="validation", **lengths)
    return dataclasses.replace(split, judge=judge, columns=columns(len(examples)))


@dataclasses.dataclass(frozen=True)
class SaysTerms:
    """A strategy that answers with what it was asked to keep to: before where a row must end."""

    def __call__(self, decoder, terms, keys):
        rows, length = terms.forced.shape
        ends = terms.ends.reshape(rows, 1)
        return Answers(
            (ends[:, :, None] + 0 * terms.forced[:, None, :]).reshape(rows, 1, length),
            ends.astype("float32"),
        )


def found_by(evaluation, split_states, where=None):
    """Returns what is found, with batches and states on the devices of a placement."""
    graph, *states = split_states
    if where is None:
        return evaluation.prepare(graph)(*states)
    placed = []

    def place(batch):
        placed.append(where.batch(batch))
        return placed[-1]

    found = evaluation.prepare(graph, place)(*map(where.replicated, states))
    assert placed
    return found
