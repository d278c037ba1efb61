"""Training batches of a stream, and where to go on after so many of them."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator, Mapping

import numpy as np
import tensorflow as tf
from jaxtyping import Int

from prompt_tuning.batch import PAD, Batch
from prompt_tuning.data.buckets import Buckets, buckets_up_to
from prompt_tuning.data.examples import Example
from prompt_tuning.data.streams.places import Places, Snapshot, restore
from prompt_tuning.data.streams.stream import Stream
from prompt_tuning.errors import DataError


@dataclasses.dataclass(frozen=True, kw_only=True)
class StreamBatches:
    """Training batches of a stream, cut to their longest example rounded up to a bucket.

    While `batches` runs it notes the pipeline's place now and then, for `snapshot`. A source that
    tf.data cannot save, such as a Python generator, is read again from its start instead; a
    resumed run sees the same batches as long as the source yields the same.

    Attributes:
        stream: what is read.
        batch_size: rows of a batch.
        seed: of the order, and of preprocessors that draw at random.
        inputs: the buckets of the inputs; by default `buckets_up_to` the longest.
        targets: the same for the targets.
        state_every: steps between two places; at most so many batches are read again on resuming.
    """

    stream: Stream
    batch_size: int
    seed: int
    inputs: Buckets | None = None
    targets: Buckets | None = None
    state_every: int = 100
    _places: Places = dataclasses.field(
        default_factory=Places, init=False, repr=False, compare=False
    )

    def batches(self, start_step: int = 0, snapshot: Snapshot | None = None) -> Iterator[Batch]:
        """Yields the batches of the steps from `start_step` on, without end.

        Args:
            start_step: counted from the start of the run.
            snapshot: of a step not after `start_step`, to go on from; without one the stream is
                read from its start.

        Raises:
            DataError: the stream is empty or cannot be read.
        """
        at = 0 if snapshot is None else snapshot[0]
        if at > start_step:
            raise DataError(
                f"The stream {self.stream.task!r} was saved at step {at}, after step {start_step} "
                "at which it should go on. Resume from the checkpoint that it was saved in."
            )
        self._places.forget()
        place = f"The stream {self.stream.task!r}, split {self.stream.split!r},"
        iterator = iter(self.stream.dataset(batch_size=self.batch_size, seed=self.seed))
        step = at
        try:
            if snapshot is not None:
                restore(iterator, snapshot[1])
                self._places.add(step, snapshot[1])
            while True:
                tokens = next(iterator)
                step += 1
                # Before the batch is given away, so that who was trained on it finds the place.
                if step % self.state_every == 0:
                    self._places.save(step, iterator, self.stream.task)
                if step > start_step:
                    yield self._batch({name: value.numpy() for name, value in tokens.items()})
        except StopIteration:
            raise DataError(
                f"{place} ended after {step} batches of {self.batch_size}: it has not even one "
                "batch of examples."
            ) from None
        except tf.errors.OpError as error:
            raise DataError(f"{place} failed at batch {step}: {error.message}") from error
        finally:
            # Its threads would keep the program from ending.
            del iterator

    def snapshot(self, step: int) -> Snapshot | None:
        """Returns the newest place of the pipeline that is not after `step`.

        Only the last places are kept: ask for a step that was trained just now. None if there is
        none, and the stream would be read from its start.
        """
        return self._places.before(step)

    def example_ids(self, step: int) -> list[str]:
        """Returns a name for every row of a step's batch: its place, for nothing else is known."""
        name = f"{self.stream.task}/{self.stream.split}"
        return [f"{name} batch {step} row {row}" for row in range(self.batch_size)]

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of all that decides which examples come when; the buckets are no part of it."""
        # Shuffling is TensorFlow's own, and no release promises the order of another.
        order = [self.stream.rates, self.seed, self.batch_size, tf.__version__]
        values = [self.stream.fingerprint, *order]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()

    def summary(self) -> str:
        """Returns what to know of the data before it is trained on, as a few lines."""
        lines = [
            f"Batches of {self.batch_size} examples from the stream {self.stream.task}/"
            f"{self.stream.split}, whose lengths show only as it is read; padded to"
        ]
        for feature, buckets in self.buckets.items():
            lines.append(f"  {feature:8} {' '.join(map(str, buckets.lengths))}")
        return "\n".join(lines)

    @functools.cached_property
    def buckets(self) -> dict[str, Buckets]:
        """The lengths to which each feature is padded."""
        given = {"inputs": self.inputs, "targets": self.targets}
        return {
            feature: buckets or buckets_up_to(self.stream.lengths[feature])
            for feature, buckets in given.items()
        }

    def _batch(self, tokens: Mapping[str, Int[np.ndarray, "B L"]]) -> Batch:
        inputs, targets = (_cut(tokens[name], self.buckets[name]) for name in Example._fields)
        return Batch(inputs=inputs, targets=targets, weights=(targets != PAD).astype(np.float32))


def _cut(tokens: Int[np.ndarray, "B L"], buckets: Buckets) -> Int[np.ndarray, "B K"]:
    length = buckets.round_up(tokens.shape[1])
    return np.pad(tokens, ((0, 0), (0, length - tokens.shape[1]))).astype(np.int32)
