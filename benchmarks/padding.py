"""What cutting batches saves: steps over buckets against steps over the original's fixed lengths.

SST-2 and RTE (GLUE's TSV files) at TASK_FEATURE_LENGTHS of 512 inputs, a prompt of 100 before a T5
of the size of the mini model with random weights. Both ways take the same examples in the same
order through the same step in one process, turn and turn about; their losses must be equal. The
input pipeline, which reads the cache, is timed alone as well, against the steps that it feeds.

    python benchmarks/padding.py --sst2=/data/sst2/train.tsv --rte=/data/rte/train.tsv \
        --vocabulary=/tmp/mini.model [--quick]
"""

import argparse
import functools
import itertools
import json
import os
import statistics
import tempfile
import time

import jax
from flax import nnx

from prompt_tuning.batch import Batch
from prompt_tuning.data.batches import ExampleBatches
from prompt_tuning.data.buckets import fixed
from prompt_tuning.data.file_task import FileTask
from prompt_tuning.data.lines import file_split
from prompt_tuning.data.task_split import TaskSplit
from prompt_tuning.model import T5, t5_config
from prompt_tuning.prompts import Prompt, PromptParam, uniform
from prompt_tuning.training.optimizer import adafactor
from prompt_tuning.training.state import split_model
from prompt_tuning.training.step import make_eval_step, make_train_step
from prompt_tuning.vocabulary import SentencePieceVocabulary

INPUTS, TARGETS, PROMPT = 512, 8, 100
TASKS = {
    "sst2": FileTask(
        inputs="sst2 sentence: {sentence}",
        targets="{label}",
        names={"label": ("negative", "positive")},
    ),
    "rte": FileTask(
        inputs="rte sentence1: {sentence1} sentence2: {sentence2}",
        targets="{label}",
        names={"label": ("entailment", "not_entailment")},
    ),
}


def main() -> None:
    """Times both paddings of every task in turn and prints what it found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sst2", required=True, help="train.tsv of GLUE's SST-2")
    parser.add_argument("--rte", required=True, help="train.tsv of GLUE's RTE")
    parser.add_argument("--vocabulary", required=True, help="a SentencePiece model")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    arguments = parser.parse_args()
    rounds = 3 if arguments.quick else 12
    vocabulary = SentencePieceVocabulary(arguments.vocabulary)
    results = {}
    for name, task in TASKS.items():
        with tempfile.TemporaryDirectory() as cache_dir:
            split = file_split(
                getattr(arguments, name),
                split="train",
                task=task,
                vocabulary=vocabulary,
                lengths={"inputs": INPUTS, "targets": TARGETS},
                cache_dir=cache_dir,
            )
            results[name] = compare(split, vocabulary.size, arguments.batch_size, rounds)
        print_table(name, results[name])
    print(
        json.dumps(
            {
                "benchmark": "padding",
                "ratio": results["sst2"]["ratio"],
                "rounds": rounds,
                "batch_size": arguments.batch_size,
                "load": os.getloadavg(),
                "cores": os.cpu_count(),
                **{f"{task}_{key}": x for task, row in results.items() for key, x in row.items()},
            }
        )
    )


def compare(
    split: TaskSplit, vocabulary_size: int, batch_size: int, rounds: int
) -> dict[str, float]:
    """Steps through the same batches with both paddings."""
    source = functools.partial(ExampleBatches, split=split, batch_size=batch_size, seed=0)
    ways = {
        "buckets": source(targets=fixed(TARGETS)),
        "fixed": source(inputs=fixed(INPUTS), targets=fixed(TARGETS)),
    }
    model = Model(vocabulary_size)
    taken = {name: list(itertools.islice(way.batches(), rounds)) for name, way in ways.items()}
    for batches in taken.values():
        for batch in {batch.inputs.shape: batch for batch in batches}.values():
            model.step(batch)  # Compiles.
    seconds = {name: [] for name in ways}
    differences = []
    for step in range(rounds):
        losses = {}
        for name, batches in taken.items():
            losses[name] = model.loss(batches[step])
            seconds[name].append(model.step(batches[step]))
        differences.append(abs(losses["buckets"] / losses["fixed"] - 1))
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    pairs = [slow / fast for fast, slow in zip(*seconds.values(), strict=True)]
    pipeline = {name: make_batches(way) for name, way in ways.items()}
    total = {name: sum(times) for name, times in seconds.items()}
    return {
        # Of all steps, as buckets differ in length.
        "ratio": total["fixed"] / total["buckets"],
        "ratio_of_a_step_least": min(pairs),
        "ratio_of_a_step_median": statistics.median(pairs),
        "ratio_of_a_step_most": max(pairs),
        "largest_relative_difference_of_losses": max(differences),
        "inputs_mean_length": statistics.mean(b.inputs.shape[1] for b in taken["buckets"]),
        **{f"{name}_step_median_s": value for name, value in medians.items()},
        **{f"{name}_examples_per_s": rounds * batch_size / value for name, value in total.items()},
        **{f"{name}_pipeline_batch_median_s": value for name, value in pipeline.items()},
        **{f"{name}_pipeline_times_faster": total[name] / rounds / pipeline[name] for name in ways},
    }


def make_batches(source: ExampleBatches, count: int = 200) -> float:
    """Returns the median seconds that it takes to make a batch."""
    seconds = []
    batches = source.batches()
    next(batches)
    for _ in range(count):
        began = time.perf_counter()
        next(batches)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


class Model:
    """A T5 with random weights, and its step."""

    def __init__(self, vocabulary_size: int):
        config = t5_config("ours_mini", vocab_size=vocabulary_size, dtype="float32")
        prompt = functools.partial(Prompt, length=PROMPT, init=uniform())
        graph, chosen, self._frozen = split_model(
            T5(config, prompt=prompt, rngs=nnx.Rngs(0)), PromptParam
        )
        optimizer = adafactor()
        self._state = chosen, optimizer.init(chosen, step=0)
        self._train_step = make_train_step(graph, optimizer)
        self._eval_step = make_eval_step(graph)

    def loss(self, batch: Batch) -> float:
        return float(self._eval_step(self._state[0], self._frozen, batch)["loss"])

    def step(self, batch: Batch) -> float:
        """Takes a step without leaving it behind, and returns how many seconds it took."""
        state = jax.tree.map(jax.numpy.copy, self._state)
        jax.block_until_ready(state)
        began = time.perf_counter()
        jax.block_until_ready(self._train_step(*state, self._frozen, batch, None))
        return time.perf_counter() - began


def print_table(task: str, row: dict[str, float]) -> None:
    """Prints one line for each padding."""
    print(f"{task:8} {'step s':>8} {'examples/s':>11} {'batch ms':>9} pipeline faster by")
    for name in ("buckets", "fixed"):
        print(
            f"{name:8} {row[f'{name}_step_median_s']:8.3f} {row[f'{name}_examples_per_s']:11.1f} "
            f"{1000 * row[f'{name}_pipeline_batch_median_s']:9.2f} "
            f"{row[f'{name}_pipeline_times_faster']:8.0f}x"
        )
    print(
        f"ratio {row['ratio']:.1f}, losses equal to "
        f"{row['largest_relative_difference_of_losses']:.1e}\n"
    )


if __name__ == "__main__":
    main()
