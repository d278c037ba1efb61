"""What integers cost and save: how far logits move, and how fast a step is, by storage of the base.

The logits of a base whose layers' kernels are stored as bfloat16, int8 and int4 are compared with
those of float32, all computed in float32: the root of the mean square of the difference and its
largest value, both over the spread of the logits, and how often the likeliest token is the same.
Then steps of prompt tuning are timed, turn and turn about.

    python benchmarks/quantization.py [--quick] [--checkpoint=/tmp/mini] [--text_length=64]

Without a checkpoint the base is a T5 1.1 small of random values, whose logits say less: nothing in
it was learned.
"""

import argparse
import dataclasses
import functools
import json
import os
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from prompt_tuning.batch import Batch
from prompt_tuning.checkpoints import load_model
from prompt_tuning.model import T5, parameters, t5_config
from prompt_tuning.prompts import Prompt, PromptParam, uniform
from prompt_tuning.training.optimizer import adafactor
from prompt_tuning.training.state import split_model, start
from prompt_tuning.training.step import make_train_step

ROWS, TARGETS, PROMPT = 8, 8, 20
STORED = {
    "float32": {},
    "bfloat16": {"param_dtype": "bfloat16"},
    "int8": {"quantization": "int8"},
    "int8 g64": {"quantization": "int8", "quantization_group": 64},
    "int4": {"quantization": "int4"},
    "int4 g128": {"quantization": "int4", "quantization_group": 128},
    "int4 g64": {"quantization": "int4", "quantization_group": 64},
    "int4 g32": {"quantization": "int4", "quantization_group": 32},
}
TIMED = ("float32", "bfloat16", "int8", "int4 g64")


def main() -> None:
    """Compares logits, times steps and prints both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small random model, few steps")
    parser.add_argument("--checkpoint", help="a base of any format")
    parser.add_argument("--text_length", type=int, default=64)
    arguments = parser.parse_args()
    make = functools.partial(model_of, arguments.checkpoint, quick=arguments.quick)
    batch = random_batch(make("float32").config.vocab_size, arguments.text_length)
    rows, reference = [], None
    for name in STORED:
        found = logits_of(make(name), batch)
        reference = found if reference is None else reference
        size = parameters.nbytes(nnx.state(make(name)))
        rows.append({"stored": name, "bytes": size, **compared(found, reference)})
    runs = {name: Run(make(name), batch) for name in TIMED}
    for round_ in range(3 if arguments.quick else 12):
        for run in runs.values():
            run.step(measured=round_ > 0)
    print(f"{'stored':10} {'MB':>8} {'rms':>8} {'max':>8} {'top-1':>7} {'step':>9}")
    for row in rows:
        if row["stored"] in runs:
            seconds = runs[row["stored"]].seconds
            row |= {"step_s": statistics.median(seconds), "spread_s": [min(seconds), max(seconds)]}
            paired = zip(seconds, runs["float32"].seconds, strict=True)
            row["step_ratio"] = statistics.median(one / other for one, other in paired)
        step = f"{row['step_ratio']:8.2f}x" if "step_ratio" in row else ""
        print(
            f"{row['stored']:10} {row['bytes'] / 1e6:8.1f} {row['rms']:8.4f} {row['max']:8.4f} "
            f"{row['top_1']:7.2%} {step:>9}"
        )
    ratio = next(row["step_ratio"] for row in rows if row["stored"] == "int8")
    print(
        json.dumps(
            {
                "benchmark": "quantization",
                "ratio": ratio,
                "checkpoint": arguments.checkpoint,
                "rows": rows,
                "load": os.getloadavg(),
                "cores": os.cpu_count(),
            }
        )
    )


@functools.cache
def model_of(checkpoint: str | None, stored: str, *, quick: bool) -> T5:
    """Returns the base, stored in one of the ways."""
    changes = {"dtype": "float32", **STORED[stored]}
    if checkpoint is not None:
        return load_model(checkpoint, **changes)
    config = t5_config("t5_1_1_small", **changes)
    if quick:
        config = dataclasses.replace(
            config, vocab_size=1024, embed_dim=256, mlp_dim=512, encoder_layers=3, decoder_layers=3
        )
    if stored != "bfloat16":
        return T5(config, rngs=nnx.Rngs(0))
    # Drawn in bfloat16 they would be other values.
    graph, shapes = nnx.split(nnx.eval_shape(lambda: T5(config, rngs=nnx.Rngs(0))))
    drawn = nnx.state(model_of(checkpoint, "float32", quick=quick))
    return nnx.merge(graph, parameters.replaced(shapes, parameters.named(drawn)))


def random_batch(vocab_size: int, length: int) -> Batch:
    """Returns tokens that mean nothing."""
    rng = np.random.default_rng(0)
    inputs = rng.integers(3, vocab_size, (ROWS, length)).astype(np.int32)
    targets = rng.integers(3, vocab_size, (ROWS, TARGETS)).astype(np.int32)
    return Batch(inputs=inputs, targets=targets, weights=np.ones(targets.shape, np.float32))


def logits_of(model: T5, batch: Batch) -> np.ndarray:
    """Returns what a base says to a batch."""
    graph, state = nnx.split(model)
    return np.asarray(jax.jit(lambda state: nnx.merge(graph, state)(batch))(state))


def compared(found: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """Returns how far logits are from others, in spreads of those."""
    spread = reference.std(axis=-1, keepdims=True)
    off = np.abs(found - reference) / spread
    same = found.argmax(axis=-1) == reference.argmax(axis=-1)
    return {
        "rms": float(np.sqrt(np.mean(np.square(off)))),
        "max": float(off.max()),
        "top_1": float(same.mean()),
    }


class Run:
    """Steps that train a prompt over one base."""

    def __init__(self, model: T5, batch: Batch):
        prompt = Prompt(
            length=PROMPT, init=uniform(), embed_dim=model.config.embed_dim, rngs=nnx.Rngs(1)
        )
        # Shared with nobody: a model's own place for a prompt is written to.
        graph, state = nnx.split(model)
        model = nnx.merge(graph, state)
        model.encoder.prompt = prompt
        optimizer = adafactor()
        graph, chosen, self.frozen = split_model(model, PromptParam)
        self.state = start(chosen, optimizer, step=0)
        self.program = make_train_step(graph, optimizer)
        self.batch = jax.tree.map(jnp.asarray, batch)
        self.seconds: list[float] = []

    def step(self, *, measured: bool) -> None:
        started = time.perf_counter()
        chosen, slots, _ = self.program(
            self.state.trainable, self.state.opt_state, self.frozen, self.batch, None
        )
        jax.block_until_ready(chosen)
        self.state = self.state._replace(trainable=chosen, opt_state=slots)
        if measured:
            self.seconds.append(time.perf_counter() - started)


if __name__ == "__main__":
    main()
