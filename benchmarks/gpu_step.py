r"""What a step of prompt tuning takes on one accelerator, with random weights made on it.

T5 1.1 in bfloat16, full rows of random tokens. Every configuration runs in a process of its own, so
that the peak of its memory is its own and one that does not fit leaves the others alone:

    python benchmarks/gpu_step.py --config=base:batch=64 \
        --config=xl:batch=32,inputs=512,targets=64,remat=projections,attention=fused

The part before the colon is a size of T5 1.1, or any name that `t5_config` knows; then follow what
`Shape` has and every field of `T5Config`. Each configuration answers with one line of JSON:

    median_s                 of a step, as in training, where the next is given before one is read
    tokens_per_second        input tokens, without those of the prompt
    positions_per_second     input tokens and prompt: what the encoder computes
    mfu                      the least FLOPs (see `least_flops`) in that time, against --peak-tflops
    peak_gib                 the most memory ever held; `init_peak_gib` is that before any step
    program_gib              what the compiled step says it needs: arguments, temporaries, results
"""

import argparse
import dataclasses
import functools
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
import traceback

# The rest of the memory is for the driver and the libraries.
os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.95")

PEAK_TFLOPS = 989.0  # An H100 or H200 in dense bfloat16, by its data sheet.
GIB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """The shapes of a step that are not the model's own.

    Of `steps` the times are taken, after three that are not.
    """

    batch: int = 32
    inputs: int = 512
    targets: int = 64
    prompt: int = 100
    microbatches: int = 1
    steps: int = 20


def main() -> None:
    """Runs every configuration in turn and prints what it found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--config", action="append", help="NAME:FIELD=VALUE,...; may be given several times"
    )
    parser.add_argument("--quick", action="store_true", help="one small model, for a look")
    parser.add_argument("--peak-tflops", type=float, default=PEAK_TFLOPS, help="for the MFU")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds of a configuration")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.alone:
        print(json.dumps(measured(arguments.alone, arguments.peak_tflops)), flush=True)
        return
    asked = arguments.config or ["base:batch=32,steps=5"]
    if arguments.quick:
        asked = ["ours_tiny:batch=4,inputs=32,targets=8,prompt=20,steps=5"]
    rows = []
    for config in asked:
        rows.append(in_own_process(config, arguments))
        print(json.dumps(rows[-1]), flush=True)
    print_table(rows)
    print(json.dumps({"benchmark": "gpu_step", "configurations": rows}))


def in_own_process(config: str, arguments: argparse.Namespace) -> dict:
    """Returns what one configuration measured, or why it did not."""
    command = [sys.executable, __file__, f"--alone={config}"]
    command.append(f"--peak-tflops={arguments.peak_tflops}")
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, timeout=arguments.limit, check=False
        )
    except subprocess.TimeoutExpired:
        return {"config": config, "error": f"not done after {arguments.limit:.0f} s"}
    lines = done.stdout.splitlines()
    if not lines or not lines[-1].startswith("{"):
        return {"config": config, "error": f"the process ended with code {done.returncode}"}
    return json.loads(lines[-1])


def measured(text: str, peak_tflops: float) -> dict:
    """Runs one configuration in this process; an error becomes part of the answer."""
    found = {"config": text}
    try:
        run(text, peak_tflops, found.update)
    except Exception as error:  # noqa: BLE001 - one that does not fit has still compiled
        traceback.print_exc()
        found["error"] = str(error).partition("\n")[0][:300]
    return found


def run(text: str, peak_tflops: float, tell) -> None:
    """Compiles a step, runs it, and tells what it finds as it finds it."""
    import jax

    config, shape = parsed(text)
    device = jax.devices()[0]
    tell({"device": device.device_kind, "jax": jax.__version__, **dataclasses.asdict(shape)})
    began = time.monotonic()
    graph, prompt, frozen = random_model(config, shape)
    jax.block_until_ready((prompt, frozen))
    tell({"init_s": time.monotonic() - began, "parameters_gib": size(frozen) / GIB})
    tell({"init_peak_gib": peak(device)})

    from prompt_tuning.training.optimizer import adafactor
    from prompt_tuning.training.state import start
    from prompt_tuning.training.step import make_train_step

    optimizer = adafactor()
    state = start(prompt, optimizer, step=0)
    batch = jax.device_put(random_batch(config, shape))
    key = jax.random.key(0) if config.dropout_rate else None
    began = time.monotonic()
    step = make_train_step(graph, optimizer, microbatches=shape.microbatches)
    lowered = step.lower(state.trainable, state.opt_state, frozen, batch, key)
    traced = time.monotonic()
    compiled = lowered.compile()
    tell({"trace_s": traced - began, "compile_s": time.monotonic() - traced})
    tell(program(compiled))

    prompt, slots = state.trainable, state.opt_state
    stamps, before = [], None
    for _ in range(3 + shape.steps):
        prompt, slots, sums = compiled(prompt, slots, frozen, batch, key)
        if before is not None:
            before.block_until_ready()
            stamps.append(time.monotonic())
        before = sums["loss"]
    loss = float(before)
    stamps.append(time.monotonic())
    seconds = [later - earlier for earlier, later in itertools.pairwise(stamps[2:])]
    median = statistics.median(seconds)
    least = least_flops(config, shape)
    tell(
        {
            "median_s": median,
            "min_s": min(seconds),
            "max_s": max(seconds),
            "first_steps_s": [stamps[1] - stamps[0], stamps[2] - stamps[1]],
            "examples_per_second": shape.batch / median,
            "tokens_per_second": shape.batch * shape.inputs / median,
            "positions_per_second": shape.batch * (shape.inputs + shape.prompt) / median,
            "least_tflop": least / 1e12,
            "tflops_per_second": least / median / 1e12,
            "mfu": least / median / (peak_tflops * 1e12),
            "peak_gib": peak(device),
            "loss_per_token": loss / (shape.batch * shape.targets),
        }
    )


def parsed(text: str):
    """Reads `xl:batch=8,remat=full` into a configuration of the model and one of the step."""
    from prompt_tuning.model import SIZES, T5Config, t5_config

    name, _, settings = text.partition(":")
    name = name if name in SIZES else f"t5_1_1_{name}"
    of_step, of_model = {}, {"dtype": "bfloat16", "param_dtype": "bfloat16"}
    fields = {field.name for field in dataclasses.fields(T5Config)}
    for setting in filter(None, settings.split(",")):
        field, _, value = setting.partition("=")
        if field in {one.name for one in dataclasses.fields(Shape)}:
            of_step[field] = int(value)
        elif field in fields:
            of_model[field] = literal(value)
        else:
            sys.exit(f"{field!r} is no field of Shape or T5Config: {text}")
    return t5_config(name, **of_model), Shape(**of_step)


def literal(value: str):
    """Returns a number, a truth value or a text."""
    if value in ("True", "False"):
        return value == "True"
    try:
        return int(value)
    except ValueError:
        pass
    try:
        return float(value)
    except ValueError:
        return value


def random_model(config, shape: Shape):
    """Returns graph, prompt and frozen parameters, drawn on the device in one program."""
    import jax
    from flax import nnx

    from prompt_tuning.model import T5
    from prompt_tuning.prompts import Prompt, PromptParam, uniform

    prompt = functools.partial(Prompt, length=shape.prompt, init=uniform())

    def make():
        return nnx.split(T5(config, prompt=prompt, rngs=nnx.Rngs(0)), PromptParam, ...)

    graph, _, _ = nnx.split(
        nnx.eval_shape(lambda: T5(config, prompt=prompt, rngs=nnx.Rngs(0))), PromptParam, ...
    )
    return graph, *jax.jit(lambda: make()[1:])()


def random_batch(config, shape: Shape):
    """Returns full rows: nothing here depends on what the tokens are."""
    import numpy as np

    from prompt_tuning.batch import Batch

    rng = np.random.default_rng(0)
    rows, most = shape.batch, config.vocab_size - 100
    return Batch(
        inputs=rng.integers(2, most, (rows, shape.inputs), dtype=np.int32),
        targets=rng.integers(2, most, (rows, shape.targets), dtype=np.int32),
        weights=np.ones((rows, shape.targets), np.float32),
    )


def least_flops(config, shape: Shape) -> float:
    """Nothing is counted for what a policy computes twice, nor for weights, which are frozen."""
    from prompt_tuning.planning.minimum import Sizes, of_training

    sizes = Sizes(rows=shape.batch, inputs=shape.inputs, targets=shape.targets, prompt=shape.prompt)
    return of_training(config, sizes)


def program(compiled) -> dict[str, float]:
    """Returns what the compiler says of memory, where it does."""
    found = compiled.memory_analysis()
    if found is None:
        return {}
    temporary, arguments = found.temp_size_in_bytes, found.argument_size_in_bytes
    results = found.output_size_in_bytes - found.alias_size_in_bytes
    return {
        "temporary_gib": temporary / GIB,
        "program_gib": (temporary + arguments + results) / GIB,
    }


def peak(device) -> float | None:
    """Returns the most bytes that were ever held, in GiB; a CPU does not count them."""
    found = device.memory_stats() or {}
    return found["peak_bytes_in_use"] / GIB if "peak_bytes_in_use" in found else None


def size(state) -> int:
    """Returns the bytes of all arrays."""
    import jax

    return sum(leaf.nbytes for leaf in jax.tree.leaves(state))


def print_table(rows: list[dict]) -> None:
    """Prints one line for each configuration."""
    print(
        f"{'configuration':60} {'median ms':>10} {'min':>8} {'max':>8} {'tokens/s':>9} {'MFU':>6} "
        f"{'peak GiB':>9} {'compile s':>9}"
    )
    for row in rows:
        if "median_s" not in row:
            print(f"{row['config']:60} {row.get('error')}")
            continue
        print(
            f"{row['config']:60} {1e3 * row['median_s']:10.2f} {1e3 * row['min_s']:8.2f} "
            f"{1e3 * row['max_s']:8.2f} {row['tokens_per_second']:9.0f} {row['mfu']:6.1%} "
            f"{row['peak_gib'] or float('nan'):9.2f} {row['compile_s']:9.1f}"
        )


if __name__ == "__main__":
    main()
