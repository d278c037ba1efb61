"""Training batches of a registered task, from its name."""

from collections.abc import Mapping, Sequence

from prompt_tuning.data.batches import Buckets, ExampleBatches, buckets_up_to
from prompt_tuning.data.seqio_tasks import TaskSplit, examples_of, import_task_modules
from prompt_tuning.vocabulary import Vocabulary


def task_split(
    name: str,
    *,
    split: str,
    vocabulary: Vocabulary,
    lengths: Mapping[str, int] | None = None,
    modules: str | Sequence[str] | None = None,
    use_cached: bool = False,
    seed: int = 0,
) -> TaskSplit:
    """Imports the modules that register tasks and loads a split of one of them.

    Args:
        name: the task (MIXTURE_OR_TASK_NAME).
        split: of the task.
        vocabulary: the model's.
        lengths: the longest inputs and targets (TASK_FEATURE_LENGTHS); None trims nothing.
        modules: imported first (MIXTURE_OR_TASK_MODULE).
        use_cached: reads seqio's own cache (USE_CACHED_TASKS).
        seed: for preprocessors that draw at random.
    """
    imported = import_task_modules(modules)
    return examples_of(
        name,
        split,
        lengths,
        vocabulary=vocabulary,
        modules=imported,
        use_cached=use_cached,
        seed=seed,
    )


def task_batches(
    split: TaskSplit,
    *,
    batch_size: int,
    seed: int,
    inputs: Buckets | None = None,
    targets: Buckets | None = None,
) -> ExampleBatches:
    """Returns shuffled, endless batches of a split, cut to buckets up to its longest example.

    Args:
        split: see `task_split`.
        batch_size: rows of a batch (BATCH_SIZE).
        seed: of the order.
        inputs: the lengths to which inputs are padded; few ones, as each is compiled.
        targets: the same for the targets.
    """
    longest_input, longest_target = split.longest
    return ExampleBatches(
        examples=split.examples,
        batch_size=batch_size,
        seed=seed,
        inputs=inputs or buckets_up_to(longest_input),
        targets=targets or buckets_up_to(longest_target),
    )
