"""A split of seqio's that is read as it comes, and what is known of it beforehand."""

import dataclasses
from collections.abc import Mapping

import seqio
import tensorflow as tf

from prompt_tuning.data.examples import Example
from prompt_tuning.errors import ConfigError, DataError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stream:
    """A split of a registered task or mixture that is read as it comes.

    Attributes:
        provider: the seqio task or mixture.
        split: the name of the split.
        lengths: the longest inputs and targets, which are not known beforehand otherwise.
        fingerprint: hash of what is known of the examples: the task, its preprocessors, its
            vocabulary, its lengths; equal ones make equal examples of equal sources.
        use_cached: reads seqio's own cache of the tasks.
    """

    provider: seqio.Task | seqio.Mixture
    split: str
    lengths: Mapping[str, int]
    fingerprint: str
    use_cached: bool = False

    def __post_init__(self):
        for feature in Example._fields:
            if not (self.lengths or {}).get(feature):
                raise ConfigError(
                    f"{self.task!r} is read as a stream, whose longest {feature} nobody knows "
                    f"beforehand. Set TASK_FEATURE_LENGTHS['{feature}']."
                )

    @property
    def task(self) -> str:
        """The name of the task or mixture."""
        return self.provider.name

    @property
    def rates(self) -> dict[str, float]:
        """How much of a mixture each of its tasks is; empty for a task."""
        if not isinstance(self.provider, seqio.Mixture):
            return {}
        tasks = [task for task in self.provider.tasks if self.split in task.splits]
        return {task.name: float(self.provider.get_rate(task)) for task in tasks}

    def dataset(self, *, batch_size: int, seed: int) -> tf.data.Dataset:
        """Returns shuffled, endless and always equal batches, each padded to its longest row.

        Raises:
            ConfigError: seqio refuses to read the task so.
            DataError: the examples are not those of a T5.
        """
        try:
            examples = self.provider.get_dataset(
                sequence_length=self.lengths,
                split=self.split,
                use_cached=self.use_cached,
                shuffle=True,
                seed=seed,
                num_epochs=None,
                # What seqio keeps of a small task in memory would be part of every checkpoint.
                try_in_mem_cache=False,
            )
        except ValueError as error:  # for example of a task that must not be shuffled
            raise ConfigError(f"{self.task!r} cannot be read as a stream: {error}") from error
        for feature in Example._fields:
            if feature not in examples.element_spec:
                raise DataError(
                    f"The examples of {self.task!r} have no {feature!r}, but a T5 reads inputs and "
                    f"writes targets. They have: {', '.join(examples.element_spec)}."
                )
        tokens = examples.map(
            lambda record: {feature: record[feature] for feature in Example._fields},
            num_parallel_calls=tf.data.AUTOTUNE,
        )
        options = tf.data.Options()
        options.deterministic = True
        return tokens.padded_batch(batch_size, drop_remainder=True).with_options(options)
