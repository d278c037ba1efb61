"""Ragged examples into batches: cut to the longest example, rounded up to a named bucket.

Padding costs as much as text, so a batch is only as long as it must be; but every new length is a
new compilation, so the lengths are few and known beforehand.
"""

import dataclasses
import functools
import itertools
import queue
import threading
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int, Integer

from prompt_tuning.batch import PAD, Batch
from prompt_tuning.data.examples import Example
from prompt_tuning.data.objectives import Objective
from prompt_tuning.data.order import epoch_rng, example_order, example_rng
from prompt_tuning.errors import ConfigError, DataError
from prompt_tuning.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class Buckets:
    """The lengths to which inputs or targets may be padded, in ascending order."""

    lengths: tuple[int, ...]

    def __post_init__(self):
        # gin writes tuples and lists alike.
        object.__setattr__(self, "lengths", tuple(self.lengths))
        if not self.lengths or list(self.lengths) != sorted({*self.lengths} - {0}):
            raise ConfigError(
                f"Bucket lengths are {self.lengths}, but they must ascend from at least 1, "
                "for example (32, 64, 128)."
            )

    def round_up(self, length: int) -> int:
        """Returns the smallest bucket that holds `length` tokens."""
        for bucket in self.lengths:
            if length <= bucket:
                return bucket
        raise DataError(
            f"An example has {length} tokens, but the longest bucket holds {self.lengths[-1]}. "
            "Trim the examples with TASK_FEATURE_LENGTHS or add a longer bucket."
        )


def fixed(length: int) -> Buckets:
    """Returns the one bucket of the original software: every batch has the full length."""
    return Buckets((length,))


def buckets_up_to(longest: int) -> Buckets:
    """Returns the buckets 8, 16, 24, 32, 48, 64, 96, 128 ... and at last `longest` itself.

    They are few, and above 16 tokens no example is padded by more than half its length.
    """
    doublings = ((2**n, 2**n * 3 // 2) for n in itertools.count(4))
    steps = itertools.chain([8], itertools.chain.from_iterable(doublings))
    shorter = itertools.takewhile(lambda length: length < longest, steps)
    return Buckets((*shorter, longest))


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExampleBatches:
    """Training batches from tokenised examples: endless, reshuffled every epoch, always full."""

    examples: Sequence[Example] = dataclasses.field(repr=False)
    batch_size: int
    seed: int
    inputs: Buckets
    targets: Buckets

    def __post_init__(self):
        if not self.examples:
            raise DataError("There is nothing to train on: the split has no examples.")

    def batches(self, start_step: int = 0) -> Iterator[Batch]:
        """Yields the batches of the steps from `start_step` on."""
        for step in itertools.count(start_step):
            order = example_order(
                size=len(self.examples),
                seed=self.seed,
                start=step * self.batch_size,
                count=self.batch_size,
            )
            chosen = [self.examples[index] for index in order]
            yield assemble(chosen, inputs=self.inputs, targets=self.targets)


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

    def batches(self, start_step: int = 0) -> Iterator[Batch]:
        """Yields the batches of the steps from `start_step` on, without end."""
        inputs = self.inputs or fixed(self.input_length)
        targets = self.targets or fixed(self.objective.target_length(self.input_length))
        for step in itertools.count(start_step):
            yield assemble(self._examples(step), inputs=inputs, targets=targets)

    def _examples(self, step: int) -> list[Example]:
        start = step * self.batch_size
        order = example_order(size=self.windows, seed=self.seed, start=start, count=self.batch_size)
        return [self._example(start + i, int(index)) for i, index in enumerate(order)]

    def _example(self, position: int, index: int) -> Example:
        epoch = position // self.windows
        slack = min(len(self.tokens) - self.windows * self.window, self.window - 1)
        start = index * self.window + int(epoch_rng(self.seed, epoch).integers(slack + 1))
        text = self.tokens[start : start + self.window]
        return self.objective(text, example_rng(self.seed, position), self.vocabulary)


def prefetch(batches: Iterator[Batch], *, depth: int = 2) -> Iterator[Batch]:
    """Yields the same batches, made in a background thread while the last ones are used.

    An error of `batches` is raised here, at its place in the order. The thread ends when the
    batches do or when this iterator is closed or dropped.
    """
    ready: queue.Queue[Batch | _Failure | None] = queue.Queue(depth)
    closed = threading.Event()

    def put(item: Batch | _Failure | None) -> None:
        # Without a timeout a full queue would hold the thread for ever after its consumer has gone.
        while not closed.is_set():
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def produce() -> None:
        try:
            for batch in batches:
                put(batch)
                if closed.is_set():
                    return
            put(None)
        except BaseException as error:  # noqa: BLE001 - raised again in the consumer.
            put(_Failure(error))

    thread = threading.Thread(target=produce, name="prefetch", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, _Failure):
                raise item.error
            yield item
    finally:
        closed.set()
        thread.join()


@dataclasses.dataclass(frozen=True)
class _Failure:
    error: BaseException


def _pad(rows: Sequence[Int[np.ndarray, " _"]], buckets: Buckets) -> Int[np.ndarray, "B T"]:
    padded = np.full((len(rows), buckets.round_up(max(map(len, rows)))), PAD, np.int32)
    for row, tokens in zip(padded, rows, strict=True):
        row[: len(tokens)] = tokens
    return padded
