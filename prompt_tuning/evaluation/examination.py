"""A pass over examples: which ones share a batch, and each answer at its example's place."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
from flax import nnx

from prompt_tuning.batch import Batch
from prompt_tuning.data.batches import OnePassBatches
from prompt_tuning.data.buckets import buckets_up_to
from prompt_tuning.data.examples import Example

Place = Callable[[Batch], Batch]
Found = TypeVar("Found")
# What is found of the examples of a batch, whose numbers in their split are given.
Examine = Callable[[nnx.State, nnx.State, Batch, Sequence[int]], Sequence[Found]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Examination:
    """Takes examples of about the same length together, and gives what is found in their order.

    Attributes:
        examples: of the whole split.
        longest: the lengths of the longest inputs and targets, at which the buckets end.
        batch_size: rows of a batch.
        place: puts a batch where the model is; None leaves it to the default device.
    """

    examples: Sequence[Example] = dataclasses.field(repr=False)
    longest: tuple[int, int]
    batch_size: int
    place: Place | None = None

    def __call__(
        self,
        examine: Examine[Found],
        trainable: nnx.State,
        frozen: nnx.State,
        ids: Sequence[int] | None = None,
    ) -> list[Found]:
        """Examines the examples with these numbers, or all; the longest first.

        What does not fit into memory fails in the first batch and not after an hour.
        """
        numbers = np.arange(len(self.examples)) if ids is None else np.asarray(ids)
        chosen = [self.examples[int(number)] for number in numbers]
        order = np.argsort([-len(one.inputs) for one in chosen], kind="stable")
        found: list[Found | None] = [None] * len(chosen)
        for batch, places in self._batches([chosen[i] for i in order], order):
            answers = examine(trainable, frozen, batch, [int(numbers[i]) for i in places])
            for i, one in zip(places, answers, strict=True):
                found[i] = one
        return [one for one in found if one is not None]

    def _batches(
        self, examples: Sequence[Example], order: np.ndarray
    ) -> Iterator[tuple[Batch, np.ndarray]]:
        source = one_pass(examples, self.longest, self.batch_size)
        for step, batch in enumerate(source.batches()):
            start = step * self.batch_size
            places = order[start : start + source.rows(step)]
            yield (self.place(batch) if self.place else batch), places


def one_pass(
    examples: Sequence[Example], longest: tuple[int, int], batch_size: int
) -> OnePassBatches:
    """Returns the batches of examples, in buckets that end at the longest of their split."""
    inputs, targets = map(buckets_up_to, longest)
    return OnePassBatches(examples=examples, batch_size=batch_size, inputs=inputs, targets=targets)
