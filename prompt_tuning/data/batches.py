"""Ragged examples into batches: cut to the longest example, rounded up to a named bucket.

Padding costs as much as text, so a batch is only as long as it must be; but every new length is a
new compilation, so the lengths are few and known beforehand.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from typing import Any

import google_crc32c
import numpy as np
from jaxtyping import Int, Integer

from prompt_tuning.batch import PAD, Batch
from prompt_tuning.data.buckets import Buckets as Buckets
from prompt_tuning.data.buckets import buckets_up_to as buckets_up_to
from prompt_tuning.data.buckets import fixed as fixed
from prompt_tuning.data.examples import Example
from prompt_tuning.data.lengths import describe
from prompt_tuning.data.objectives import Objective
from prompt_tuning.data.order import Order, Place, epoch_rng, example_order, example_rng
from prompt_tuning.data.prefetch import prefetch as prefetch
from prompt_tuning.data.task_split import TaskSplit
from prompt_tuning.errors import ConfigError, DataError
from prompt_tuning.vocabulary import Vocabulary

# Part of every fingerprint: another order of the same examples is another run.
_ORDER_FORMAT = "order 2"
_CHUNK = 1 << 22


def assemble(examples: Sequence[Example], *, inputs: Buckets, targets: Buckets) -> Batch:
    """Pads examples into one batch, with weight 1 on every target that is not padding."""
    if not examples:
        raise ConfigError("A batch has no examples. Choose a BATCH_SIZE of 1 or more.")
    padded = _pad([example.targets for example in examples], targets)
    return Batch(
        inputs=_pad([example.inputs for example in examples], inputs),
        targets=padded,
        weights=(padded != PAD).astype(np.float32),
    )


class _TrainingBatches:
    """What `ExampleBatches` and `MixtureBatches` share: all but where the examples come from."""

    batch_size: int
    seed: int
    inputs: Buckets | None
    targets: Buckets | None

    def _parts(self) -> Sequence[tuple[TaskSplit, float]]:
        raise NotImplementedError

    def __post_init__(self):
        if self.batch_size < 1:
            raise ConfigError(f"BATCH_SIZE is {self.batch_size}, expected 1 or more.")
        for feature, buckets in self.buckets.items():
            # Here, because the longest example may come after hours.
            buckets.round_up(max(split.lengths[feature].longest for split, _ in self._parts()))

    @functools.cached_property
    def buckets(self) -> dict[str, Buckets]:
        """The lengths to which each feature is padded."""
        longest = zip(*(split.longest for split, _ in self._parts()), strict=True)
        given = {"inputs": self.inputs, "targets": self.targets}
        return {
            feature: buckets or buckets_up_to(max(lengths))
            for (feature, buckets), lengths in zip(given.items(), longest, strict=True)
        }

    @functools.cached_property
    def _order(self) -> Order:
        parts = self._parts()
        return Order(
            sizes=tuple(len(split.examples) for split, _ in parts),
            rates=tuple(rate for _, rate in parts),
            seed=self.seed,
        )

    def batches(self, start_step: int = 0) -> Iterator[Batch]:
        """Yields the batches of the steps from `start_step` on, without end."""
        parts = self._parts()
        for step in itertools.count(start_step):
            chosen = [parts[task][0].examples[index] for task, index in self._places(step)]
            yield assemble(chosen, **self.buckets)

    @property
    def splits(self) -> list[TaskSplit]:
        """What the examples are taken from."""
        return [split for split, _ in self._parts()]

    @property
    def epoch_size(self) -> int:
        """The number of all examples; of a mixture those of all its tasks, whatever their rates."""
        return sum(len(split.examples) for split in self.splits)

    def example_ids(self, step: int) -> list[str]:
        """Returns a name for every row of a step's batch, for example `sst2/train 1234`."""
        names = [_name(split) for split, _ in self._parts()]
        return [f"{names[task]} {index}" for task, index in self._places(step)]

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of all that decides which examples come when; the buckets are no part of it."""
        parts = [[split.fingerprint, float(rate).hex()] for split, rate in self._parts()]
        return _digest([_ORDER_FORMAT, parts, self.seed, self.batch_size])

    def summary(self) -> str:
        """Returns what to know of the data before it is trained on, as a few lines."""
        parts = self._parts()
        total = sum(rate for _, rate in parts)
        lines = [f"Batches of {self.batch_size} examples from"]
        for split, rate in parts:
            share = f", {rate / total:.2%} of every batch" if len(parts) > 1 else ""
            lines.append(f"  {_name(split)}: {len(split.examples):,} examples{share}")
        for feature, buckets in self.buckets.items():
            lengths = [(split.lengths[feature], rate) for split, rate in parts]
            found = describe(feature, lengths, buckets=buckets, batch_size=self.batch_size)
            lines += [f"  {line}" for line in found]
        return "\n".join(lines)

    def _places(self, step: int) -> list[Place]:
        return self._order.places(step * self.batch_size, self.batch_size)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExampleBatches(_TrainingBatches):
    """Training batches of one split: endless, reshuffled every epoch, always full.

    Attributes:
        split: its examples.
        batch_size: rows of a batch (BATCH_SIZE).
        seed: of the order.
        inputs: the lengths to which inputs are padded; None for some up to the longest.
        targets: the same for the targets.
    """

    split: TaskSplit
    batch_size: int
    seed: int
    inputs: Buckets | None = None
    targets: Buckets | None = None

    def _parts(self) -> Sequence[tuple[TaskSplit, float]]:
        return ((self.split, 1.0),)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixtureBatches(_TrainingBatches):
    """Training batches of several splits, which take turns by their rates; else `ExampleBatches`.

    Attributes:
        parts: the splits, each with how often it is drawn from relative to the others.
    """

    parts: Sequence[tuple[TaskSplit, float]]
    batch_size: int
    seed: int
    inputs: Buckets | None = None
    targets: Buckets | None = None

    def _parts(self) -> Sequence[tuple[TaskSplit, float]]:
        return self.parts


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnePassBatches:
    """Evaluation batches: every example once and in order, the last batch filled with empty rows.

    An empty row is all padding and has weight 0; `rows(step)` says how many rows are examples.
    """

    examples: Sequence[Example] = dataclasses.field(repr=False)
    batch_size: int
    inputs: Buckets
    targets: Buckets

    def __len__(self) -> int:
        """The number of batches."""
        return -(-len(self.examples) // self.batch_size)

    def rows(self, step: int) -> int:
        """Returns how many rows of a batch are examples."""
        return min(self.batch_size, len(self.examples) - step * self.batch_size)

    def batches(self, start_step: int = 0) -> Iterator[Batch]:
        """Yields the batches from `start_step` to the last."""
        empty = Example(np.zeros(0, np.int32), np.zeros(0, np.int32))
        for step in range(start_step, len(self)):
            start = step * self.batch_size
            chosen = list(self.examples[start : start + self.rows(step)])
            chosen += [empty] * (self.batch_size - len(chosen))
            yield assemble(chosen, inputs=self.inputs, targets=self.targets)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CorpusBatches:
    """Pretraining batches: windows of running text, each made into an example by the objective.

    An epoch cuts the row of tokens into windows side by side, from another starting point each
    time, and visits them in another order; so all text is seen equally often and never twice in
    the same pieces.

    Attributes:
        tokens: the text, as `load_corpus` returns it.
        objective: what is learnt from a window.
        input_length: the longest inputs, with their end token; windows are as long as fits.
        inputs: the buckets of the inputs; by default all batches have `input_length`.
        targets: the buckets of the targets; by default all have the objective's longest.
    """

    tokens: Integer[np.ndarray, " N"] = dataclasses.field(repr=False)
    vocabulary: Vocabulary
    objective: Objective
    batch_size: int
    seed: int
    input_length: int = 512
    inputs: Buckets | None = None
    targets: Buckets | None = None

    def __post_init__(self):
        if len(self.tokens) < self.window:
            raise DataError(
                f"The corpus has {len(self.tokens)} tokens, but an input length of "
                f"{self.input_length} takes windows of {self.window}. Give more text or choose "
                "shorter inputs."
            )

    @functools.cached_property
    def window(self) -> int:
        """The number of tokens that make one example."""
        return self.objective.window(self.input_length)

    @property
    def windows(self) -> int:
        """The number of examples in an epoch."""
        return max(len(self.tokens) // self.window - 1, 1)

    @property
    def epoch_size(self) -> int:
        """The same under the name that all finite data has."""
        return self.windows

    @functools.cached_property
    def buckets(self) -> dict[str, Buckets]:
        """The lengths to which each feature is padded."""
        return {
            "inputs": self.inputs or fixed(self.input_length),
            "targets": self.targets or fixed(self.objective.target_length(self.input_length)),
        }

    def batches(self, start_step: int = 0) -> Iterator[Batch]:
        """Yields the batches of the steps from `start_step` on, without end."""
        for step in itertools.count(start_step):
            yield assemble(self._examples(step), **self.buckets)

    def example_ids(self, step: int) -> list[str]:
        """Returns a name for every row of a step's batch: where in the text its window begins."""
        return [f"corpus token {start}" for start in self._windows(step)]

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of all that decides which windows come when; the buckets are no part of it."""
        checksum = google_crc32c.Checksum()
        for start in range(0, len(self.tokens), _CHUNK):
            checksum.update(np.ascontiguousarray(self.tokens[start : start + _CHUNK]).tobytes())
        text = [checksum.hexdigest().decode(), len(self.tokens), self.vocabulary.fingerprint]
        task = [repr(self.objective), self.input_length]
        return _digest([_ORDER_FORMAT, text, task, self.seed, self.batch_size])

    def summary(self) -> str:
        """Returns what to know of the data before it is trained on, in one line."""
        return (
            f"Batches of {self.batch_size} windows of {self.window} tokens from a corpus of "
            f"{len(self.tokens):,} tokens, which make {self.windows:,} windows an epoch."
        )

    def _examples(self, step: int) -> list[Example]:
        positions = itertools.count(step * self.batch_size)
        return [
            self.objective(
                self.tokens[start : start + self.window],
                example_rng(self.seed, position),
                self.vocabulary,
            )
            for position, start in zip(positions, self._windows(step), strict=False)
        ]

    def _windows(self, step: int) -> list[int]:
        """Returns the first token of every window of a step."""
        first, count = step * self.batch_size, self.batch_size
        order = example_order(size=self.windows, seed=self.seed, start=first, count=count)
        slack = min(len(self.tokens) - self.windows * self.window, self.window - 1)
        epochs = (position // self.windows for position in range(first, first + count))
        shifts = (int(epoch_rng(self.seed, epoch).integers(slack + 1)) for epoch in epochs)
        windows = zip(order.tolist(), shifts, strict=True)
        return [index * self.window + shift for index, shift in windows]


def _pad(rows: Sequence[Int[np.ndarray, " _"]], buckets: Buckets) -> Int[np.ndarray, "B T"]:
    padded = np.full((len(rows), buckets.round_up(max(map(len, rows)))), PAD, np.int32)
    for row, tokens in zip(padded, rows, strict=True):
        row[: len(tokens)] = tokens
    return padded


def _name(split: TaskSplit) -> str:
    return f"{split.task}/{split.split}"


def _digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()
