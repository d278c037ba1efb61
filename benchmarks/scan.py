"""What the loop over layers costs: one program for all layers against each layer on its own.

A step of prompt tuning, T5 1.1 small in float32, batch 8, inputs 64, targets 8, prompt 100; looped,
partly and wholly unrolled, in one process, turn and turn about. Also what each takes to compile.

    python benchmarks/scan.py [--quick]
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
from prompt_tuning.model import T5, t5_config
from prompt_tuning.prompts import Prompt, PromptParam, uniform
from prompt_tuning.training.optimizer import adafactor
from prompt_tuning.training.state import RunState, split_model, start
from prompt_tuning.training.step import make_train_step

BATCH, INPUTS, TARGETS, PROMPT = 8, 64, 8, 100
WAYS = {"loop": False, "unrolled": True}


def main() -> None:
    """Compiles the steps, times them in turn and prints what it found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    rounds = 4 if parser.parse_args().quick else 15

    batch = random_batch()
    runs = {name: Run(unroll, batch) for name, unroll in WAYS.items()}
    for run in runs.values():
        run.step()
    for _ in range(rounds):
        for run in runs.values():
            run.step(measured=True)

    results = {name: run.results() for name, run in runs.items()}
    paired = {
        name: statistics.median(
            one / other for one, other in zip(run.seconds, runs["unrolled"].seconds, strict=True)
        )
        for name, run in runs.items()
    }
    print(f"{'layers':10} {'median s':>9} {'min':>7} {'max':>7} {'ratio':>6} {'MiB':>5} compile s")
    for name, row in results.items():
        print(
            f"{name:10} {row['median_s']:9.3f} {row['min_s']:7.3f} {row['max_s']:7.3f} "
            f"{paired[name]:6.3f} {row['temporary_mib']:5.0f} {row['compile_s']:9.1f}"
        )
    print(
        json.dumps(
            {
                "benchmark": "scan",
                "ratio": paired["loop"],
                "ratio_of_medians": results["loop"]["median_s"] / results["unrolled"]["median_s"],
                "ratio_of_minima": results["loop"]["min_s"] / results["unrolled"]["min_s"],
                "rounds": rounds,
                "load": os.getloadavg(),
                "cores": os.cpu_count(),
                **{f"{name}_{key}": x for name, row in results.items() for key, x in row.items()},
            }
        )
    )


class Run:
    """A step, compiled and ready."""

    def __init__(self, unroll: bool, batch: Batch):
        prompt = functools.partial(Prompt, length=PROMPT, init=uniform())
        config = t5_config("t5_1_1_small", dtype="float32", unroll=unroll)
        graph, chosen, self.frozen = split_model(
            T5(config, prompt=prompt, rngs=nnx.Rngs(0)), PromptParam
        )
        optimizer = adafactor()
        self.state: RunState = start(chosen, optimizer, step=0)
        self.batch = batch
        lowered = make_train_step(graph, optimizer).lower(
            self.state.trainable, self.state.opt_state, self.frozen, batch, None
        )
        began = time.monotonic()
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


def random_batch() -> Batch:
    """Returns full rows: nothing here depends on what the tokens are."""
    rng = np.random.default_rng(0)
    return Batch(
        inputs=rng.integers(2, 32000, (BATCH, INPUTS), dtype=np.int32),
        targets=rng.integers(2, 32000, (BATCH, TARGETS), dtype=np.int32),
        weights=np.ones((BATCH, TARGETS), np.float32),
    )


if __name__ == "__main__":
    main()
