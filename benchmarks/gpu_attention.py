"""The plain attention of T5 against cuDNN's on one GPU, forward and backward: errors and times.

T5 1.1 XL's heads in bfloat16, batch 8, over 612 and 640 positions, and from few queries across. The
errors are those of the output and the gradients of queries, keys and values against float32, as a
part of the largest number there. How the biases are handed over is what differs:

    whole    all biases as one array of [batch, heads, queries, keys]: what `ATTENTION='fused'` does
    lengths  biases by position, and the lengths of the examples: padding has to be at their end

    python benchmarks/gpu_attention.py [--quick]
"""

import argparse
import json
import os
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from prompt_tuning.model.attention import attend_plainly
from prompt_tuning.model.layers import mask_bias

BATCH, HEADS, WIDTH = 8, 32, 64
# Queries and keys, and whether there are biases by position.
SHAPES = {"612": (612, 612, True), "640": (640, 640, True), "across": (16, 612, False)}
CALLS = 20


def plain(queries, keys, values, relative, real):
    """Attends as the model does."""
    mask = mask_bias(jnp.ones((len(real), 1), bool), real)
    biases = (mask,) if relative is None else (relative, mask)
    return attend_plainly(queries, (keys, values), *biases)


def whole(queries, keys, values, relative, real):
    """Attends by cuDNN, all biases in one array."""
    mask = mask_bias(jnp.ones((len(real), 1), bool), real)
    shape = (len(queries), HEADS, queries.shape[1], keys.shape[1])
    bias = jnp.broadcast_to(mask if relative is None else relative + mask, shape)
    return _cudnn(queries, keys, values, bias.astype(queries.dtype))


def lengths(queries, keys, values, relative, real):
    """Attends by cuDNN, which is told how long each example is."""
    bias = None if relative is None else relative.astype(queries.dtype)
    many = jnp.sum(real, axis=1, dtype=jnp.int32)
    return _cudnn(queries, keys, values, bias, key_value_seq_lengths=many)


def _cudnn(queries, keys, values, bias, **more):
    return jax.nn.dot_product_attention(
        queries, keys, values, bias=bias, scale=1.0, implementation="cudnn", **more
    )


WAYS = {"plain": plain, "whole": whole, "lengths": lengths}


def main() -> None:
    """Tries each way on each shape, one after the other in turn, and prints what it found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    rounds = 3 if parser.parse_args().quick else 10
    results = {}
    print(
        f"{'shape':8} {'way':8} {'there us':>9} {'and back':>9}  errors: out, queries, keys, values"
    )
    for shape, (queries, keys, has_relative) in SHAPES.items():
        arguments = problem(queries, keys, has_relative=has_relative)
        wide = [x.astype(jnp.float32) for x in arguments[:4]]
        with jax.default_matmul_precision("highest"):
            exact = jax.device_get(both(plain)(*wide, *arguments[4:]))
        for way, attend in WAYS.items():
            try:
                errors = distances(both(attend)(*arguments), exact)
                there = seconds(jax.jit(attend), (*arguments[:3], *arguments[4:]), rounds)
                back = seconds(both(attend), arguments, rounds)
            except (RuntimeError, ValueError, NotImplementedError) as error:
                print(f"{shape:8} {way:8} {(str(error) or repr(error)).splitlines()[0][:90]}")
                continue
            print(
                f"{shape:8} {way:8} {there * 1e6:9.0f} {back * 1e6:9.0f}  "
                + " ".join(f"{one:.1e}" for one in errors)
            )
            results[f"{shape}_{way}"] = {"there_s": there, "both_s": back, "errors": errors}
    ratio = None
    if "612_whole" in results:
        ratio = results["612_plain"]["both_s"] / results["612_whole"]["both_s"]
    device = jax.devices()[0].device_kind
    found = {"benchmark": "gpu_attention", "device": device, "ratio": ratio, "rounds": rounds}
    print(json.dumps({**found, "load": os.getloadavg(), **results}))


def problem(queries: int, keys: int, *, has_relative: bool) -> tuple:
    """Returns queries, keys, values, a gradient, biases by position, and which keys are real."""
    rng = np.random.default_rng(0)

    def drawn(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=shape), jnp.bfloat16)

    asked, gradient = (drawn(BATCH, queries, HEADS, WIDTH) for _ in range(2))
    seen, said = (drawn(BATCH, keys, HEADS, WIDTH) for _ in range(2))
    table = 2 * rng.normal(size=(1, HEADS, queries, keys)).astype(np.float32)
    real = np.arange(keys)[None] < np.linspace(keys // 2, keys, BATCH).astype(int)[:, None]
    relative = jnp.asarray(table) if has_relative else None
    return asked / 3, seen, said, gradient, relative, jnp.asarray(real)


def both(attend):
    """Returns the attention with its gradients, compiled."""

    def run(queries, keys, values, gradient, relative, real):
        def forward(queries, keys, values):
            return attend(queries, keys, values, relative, real)

        attended, back = jax.vjp(forward, queries, keys, values)
        return attended, *back(gradient)

    return jax.jit(run)


def distances(found, exact) -> list[float]:
    """Returns how far arrays are off, as a part of the largest number in each."""
    pairs = zip(jax.device_get(found), exact, strict=True)
    return [
        float(np.max(np.abs(np.float32(one) - two)) / np.max(np.abs(two))) for one, two in pairs
    ]


def seconds(function, arguments, rounds: int) -> float:
    """Returns the median time of a call."""
    jax.block_until_ready(function(*arguments))
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        for _ in range(CALLS):
            result = function(*arguments)
        jax.block_until_ready(result)
        times.append((time.perf_counter() - began) / CALLS)
    return statistics.median(times)


if __name__ == "__main__":
    main()
