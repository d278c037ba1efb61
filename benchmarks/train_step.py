"""What freezing the model saves: a step that trains the prompt against one that trains the model.

T5 1.1 small with activations in float32 and in bfloat16, batch 8, inputs 64, targets 8, prompt 100;
all steps in one process, turn and turn about. Also what each compiles to: FLOPs (of the unrolled
program, because XLA counts the body of a loop once), temporary memory and seconds of compilation.

    python benchmarks/train_step.py [--quick]
"""

import argparse
import functools
import json
import os
import statistics
import time

import jax
import numpy as np
from flax import nnx

from prompt_tuning.batch import Batch
from prompt_tuning.model import T5, BaseParam, T5Config, t5_config
from prompt_tuning.planning.minimum import Sizes, of_training
from prompt_tuning.prompts import Prompt, PromptParam, uniform
from prompt_tuning.training.optimizer import Optimizer, adafactor
from prompt_tuning.training.state import RunState, split_model, start
from prompt_tuning.training.step import make_train_step

BATCH, INPUTS, TARGETS, PROMPT = 8, 64, 8, 100
TUNED = {"prompt": PromptParam, "model": BaseParam}
DTYPES = "float32", "bfloat16"


def main() -> None:
    """Compiles both steps, times them in turn and prints what it found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    rounds = 4 if parser.parse_args().quick else 15

    batch = random_batch()
    steps = [(name, dtype) for dtype in DTYPES for name in TUNED]
    runs = {step: Run(step[0], t5_config("t5_1_1_small", dtype=step[1]), batch) for step in steps}
    for run in runs.values():
        run.step()
    for _ in range(rounds):
        for run in runs.values():
            run.step(measured=True)

    results = {step: run.results() for step, run in runs.items()}
    for name, dtype in steps:
        unrolled = t5_config("t5_1_1_small", dtype=dtype, unroll=True)
        cost = Run(name, unrolled, batch).compiled.cost_analysis()
        results[name, dtype]["gflop"] = cost["flops"] / 1e9
    sizes = Sizes(rows=BATCH, inputs=INPUTS, targets=TARGETS, prompt=PROMPT)
    minimum = of_training(t5_config("t5_1_1_small"), sizes) / 1e9
    print_table(results, minimum)
    prompt, model = (runs[name, "float32"] for name in TUNED)
    print(
        json.dumps(
            {
                "benchmark": "train_step",
                "ratio": ratio(prompt, model),
                "ratio_pairwise": spread(prompt, model),
                **{
                    f"{name}_bfloat16_to_float32": [
                        ratio(runs[name, "bfloat16"], runs[name, "float32"]),
                        *spread(runs[name, "bfloat16"], runs[name, "float32"]),
                    ]
                    for name in TUNED
                },
                "analytic_minimum_gflop": minimum,
                "rounds": rounds,
                "load": os.getloadavg(),
                "cores": os.cpu_count(),
                **{
                    f"{name}_{dtype}_{key}": x
                    for (name, dtype), row in results.items()
                    for key, x in row.items()
                },
            }
        )
    )


class Run:
    """One kind of tuning, compiled and ready to step."""

    def __init__(self, name: str, config: T5Config, batch: Batch):
        prompt = functools.partial(Prompt, length=PROMPT, init=uniform())
        model = T5(config, prompt=prompt, rngs=nnx.Rngs(0))
        graph, chosen, self.frozen = split_model(model, TUNED[name])
        optimizer: Optimizer = adafactor()
        self.state: RunState = start(chosen, optimizer, step=0)
        self.batch = batch
        began = time.monotonic()
        lowered = make_train_step(graph, optimizer).lower(
            self.state.trainable, self.state.opt_state, self.frozen, batch, None
        )
        self.compiled = lowered.compile()
        self.compile_seconds = time.monotonic() - began
        self.seconds: list[float] = []

    def step(self, *, measured: bool = False) -> None:
        began = time.monotonic()
        trainable, opt_state, sums = self.compiled(
            self.state.trainable, self.state.opt_state, self.frozen, self.batch, None
        )
        jax.block_until_ready((trainable, sums))
        self.state = RunState(trainable, opt_state, self.state.step + 1)
        if measured:
            self.seconds.append(time.monotonic() - began)

    def results(self) -> dict[str, float]:
        return {
            "median_s": statistics.median(self.seconds),
            "min_s": min(self.seconds),
            "max_s": max(self.seconds),
            "compile_s": self.compile_seconds,
            "temporary_mib": self.compiled.memory_analysis().temp_size_in_bytes / 2**20,
        }


def ratio(one: Run, other: Run) -> float:
    """Returns the ratio of the medians."""
    return statistics.median(one.seconds) / statistics.median(other.seconds)


def spread(one: Run, other: Run) -> list[float]:
    """Returns the least, the median and the greatest ratio of the rounds."""
    paired = [a / b for a, b in zip(one.seconds, other.seconds, strict=True)]
    return [min(paired), statistics.median(paired), max(paired)]


def random_batch() -> Batch:
    """Returns full rows: nothing here depends on what the tokens are."""
    rng = np.random.default_rng(0)
    return Batch(
        inputs=rng.integers(2, 32000, (BATCH, INPUTS), dtype=np.int32),
        targets=rng.integers(2, 32000, (BATCH, TARGETS), dtype=np.int32),
        weights=np.ones((BATCH, TARGETS), np.float32),
    )


def print_table(results: dict[tuple[str, str], dict[str, float]], minimum: float) -> None:
    """Prints one line for each kind of tuning in each dtype."""
    print(
        f"{'trains':8} {'in':8} {'median s':>9} {'min':>7} {'max':>7} {'GFLOP':>7} {'temp MiB':>9} "
        "compile s"
    )
    for (name, dtype), row in results.items():
        print(
            f"{name:8} {dtype:8} {row['median_s']:9.3f} {row['min_s']:7.3f} {row['max_s']:7.3f} "
            f"{row['gflop']:7.1f} {row['temporary_mib']:9.0f} {row['compile_s']:9.1f}"
        )
    print(f"analytic minimum of the prompt step: {minimum:.1f} GFLOP")


if __name__ == "__main__":
    main()
