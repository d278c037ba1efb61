"""Compilation does not grow with depth: the prompt step of T5 1.1 base with 2 to 24 layers a stack.

The layers are one loop in the compiled program, so its size is that of one encoder and one decoder
block. Nothing is run and no weights are made: the step is compiled on shapes, each depth in turn.

    python benchmarks/compile_time.py [--quick]
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
from prompt_tuning.training.state import split_model, start
from prompt_tuning.training.step import make_train_step


def main() -> None:
    """Compiles each depth in turn and prints what it found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one round, fewer depths")
    quick = parser.parse_args().quick
    depths, rounds = ([2, 12], 1) if quick else ([2, 6, 12, 24], 3)

    compile_seconds(2)  # what only the first compilation of a process pays
    seconds: dict[int, list[float]] = {depth: [] for depth in depths}
    instructions = {}
    for _ in range(rounds):
        for depth in depths:
            took, instructions[depth] = compile_seconds(depth)
            seconds[depth].append(took)

    print(f"{'layers':>7} {'median s':>9} {'min':>6} {'max':>6} {'HLO instructions':>17}")
    for depth, took in seconds.items():
        print(
            f"{depth:3}+{depth:<3} {statistics.median(took):9.2f} {min(took):6.2f} "
            f"{max(took):6.2f} {instructions[depth]:17}"
        )
    medians = {depth: statistics.median(took) for depth, took in seconds.items()}
    print(
        json.dumps(
            {
                "benchmark": "compile_time",
                "ratio": medians[depths[-1]] / medians[depths[0]],
                "base_size_s": medians[12],
                "median_s": medians,
                "spread_s": {depth: [min(took), max(took)] for depth, took in seconds.items()},
                "hlo_instructions": instructions,
                "rounds": rounds,
                "load": os.getloadavg(),
                "cores": os.cpu_count(),
            }
        )
    )


def compile_seconds(depth: int) -> tuple[float, int]:
    """Traces and compiles the step; returns seconds and the instructions of the program."""
    config = t5_config("t5_1_1_base", encoder_layers=depth, decoder_layers=depth, dtype="float32")
    prompt = functools.partial(Prompt, length=100, init=uniform())
    model = nnx.eval_shape(lambda: T5(config, prompt=prompt, rngs=nnx.Rngs(0)))
    graph, chosen, frozen = split_model(model, PromptParam)
    optimizer = adafactor()
    state = jax.eval_shape(lambda chosen: start(chosen, optimizer, step=0), chosen)
    tokens = jax.ShapeDtypeStruct((8, 64), np.int32), jax.ShapeDtypeStruct((8, 8), np.int32)
    batch = Batch(inputs=tokens[0], targets=tokens[1], weights=tokens[1])
    began = time.monotonic()
    step = make_train_step(graph, optimizer)
    compiled = step.lower(state.trainable, state.opt_state, frozen, batch, None).compile()
    return time.monotonic() - began, compiled.as_text().count(" = ")


if __name__ == "__main__":
    main()
