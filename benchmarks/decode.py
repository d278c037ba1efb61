"""How fast answers come: our compiled loop against `generate` of Hugging Face's transformers.

T5 1.1 small in float32 with the same random weights on both sides, batch 16, inputs 64, 16 new
tokens (no token ends an answer), greedy and 4 beams; all in one process, turn and turn about.
torch loses more than it gains by a second thread while others use the machine, so that a first call
with every number of threads decides how many it runs with. The tokens of both greedy ways must be
equal; beams follow other rules there and are only timed. Beside the time on the wall stands that of
all threads together on the cores, which other work on the machine disturbs least.

    make .venv-interop/.installed  # our environment, and torch and transformers in it
    .venv-interop/bin/python benchmarks/decode.py [--quick]
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from etils import epath
from flax import nnx

from prompt_tuning.checkpoints.containers.stored import Stored
from prompt_tuning.checkpoints.hugging_face import save_hugging_face
from prompt_tuning.checkpoints.mapping import to_t5x
from prompt_tuning.decoding import BeamSearch, Greedy, make_generate
from prompt_tuning.model import T5, BaseParam, parameters, t5_config

BATCH, INPUTS, NEW = 16, 64, 16
STRATEGIES = {"greedy": (Greedy(), 1), "beam4": (BeamSearch(beams=4), 4)}
NEVER = -1  # An end token that nothing says.


def main() -> None:
    """Times every way in turn and prints what it found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    rounds = 3 if parser.parse_args().quick else 10
    try:
        import torch  # noqa: F401 - asked for before anything is computed
        import transformers  # noqa: F401
    except ImportError as error:
        sys.exit(
            f"{error}. This benchmark compares with torch and transformers: run "
            "`make .venv-interop/.installed`, then .venv-interop/bin/python benchmarks/decode.py "
            '(or install them beside this package: pip install -e ".[interop]").'
        )

    inputs = np.random.default_rng(0).integers(2, 32000, (BATCH, INPUTS), dtype=np.int32)
    model = T5(t5_config("t5_1_1_small", dtype="float32"), rngs=nnx.Rngs(0))
    theirs = their_model(model)
    results, threads = {}, {}
    for name in STRATEGIES:
        run_ours = ours(model, name, inputs)
        tokens = run_ours()  # Compiles.
        threads[name], run_theirs = fastest(theirs, name, inputs)
        expected = run_theirs()
        assert tokens.shape == expected.shape == (BATCH, NEW), (tokens.shape, expected.shape)
        if name == "greedy":
            np.testing.assert_array_equal(tokens, expected)
        ways = {"ours": run_ours, "transformers": run_theirs}
        results[name] = {way: [] for way in ways}
        for _ in range(rounds):
            for way, run in ways.items():
                results[name][way].append(timed(run))
    report(results, threads, rounds)


class Time(NamedTuple):
    """Seconds of one call."""

    wall: float
    cores: float


def timed(run: Callable[[], np.ndarray]) -> Time:
    """Calls once."""
    wall, cores = time.monotonic(), time.process_time()
    run()
    return Time(time.monotonic() - wall, time.process_time() - cores)


def ours(model: T5, name: str, inputs: np.ndarray) -> Callable[[], np.ndarray]:
    """Returns our compiled `generate`."""
    graph, *state = nnx.split(model, BaseParam, ...)
    strategy, _ = STRATEGIES[name]
    generate = make_generate(graph, strategy=strategy, length=NEW, eos_id=NEVER)
    return lambda: np.asarray(generate(*state, inputs).tokens[:, -1])


def their_model(model: T5):
    """Returns the same weights in transformers, by way of a checkpoint."""
    import torch
    import transformers

    named = parameters.named(nnx.state(model))
    arrays = to_t5x({name: np.asarray(array) for name, array in named.items()})
    stored = {name: Stored.of(array, name) for name, array in arrays.items()}
    with tempfile.TemporaryDirectory() as folder:
        saved = epath.Path(folder) / "saved"
        save_hugging_face(stored, model.config, 0, saved)
        kind = transformers.AutoModelForSeq2SeqLM
        theirs = kind.from_pretrained(str(saved), dtype=torch.float32).eval()
    theirs.generation_config.eos_token_id = None
    return theirs


def their_way(theirs, name: str, inputs: np.ndarray, threads: int) -> Callable[[], np.ndarray]:
    """Returns `generate` of transformers with so many threads."""
    import torch

    tokens = torch.tensor(inputs, dtype=torch.long)
    mask = torch.ones_like(tokens)
    _, beams = STRATEGIES[name]

    def run():
        torch.set_num_threads(threads)
        with torch.inference_mode():
            found = theirs.generate(
                input_ids=tokens,
                attention_mask=mask,
                max_new_tokens=NEW,
                do_sample=False,
                num_beams=beams,
            )
        return found.numpy()[:, 1:]

    return run


def fastest(theirs, name: str, inputs: np.ndarray) -> tuple[int, Callable[[], np.ndarray]]:
    """Returns the number of threads that transformers is fastest with, and its `generate`."""
    most = os.cpu_count() or 1
    ways = {threads: their_way(theirs, name, inputs, threads) for threads in {1, most}}
    seconds = {threads: timed(run).wall for threads, run in ways.items()}
    best = min(seconds, key=seconds.__getitem__)
    return best, ways[best]


def report(results: dict[str, dict[str, list[Time]]], threads: dict[str, int], rounds: int) -> None:
    """Prints a table of tokens per second, and everything as JSON."""
    print(f"{'':8} {'':12} {'tokens/s':>9} {'median s':>9} {'min':>7} {'max':>7} {'on cores':>9}")
    figures = {}
    for name, ways in results.items():
        walls = {way: [one.wall for one in times] for way, times in ways.items()}
        medians = {way: statistics.median(times) for way, times in walls.items()}
        cores = {way: statistics.median([one.cores for one in ways[way]]) for way in ways}
        for way, times in walls.items():
            print(
                f"{name:8} {way:12} {BATCH * NEW / medians[way]:9.0f} {medians[way]:9.3f} "
                f"{min(times):7.3f} {max(times):7.3f} {cores[way]:9.3f}"
            )
        paired = [b / a for a, b in zip(*walls.values(), strict=True)]
        figures[name] = {
            "ratio": medians["transformers"] / medians["ours"],
            "ratio_pairwise": [min(paired), statistics.median(paired), max(paired)],
            "ratio_on_cores": cores["transformers"] / cores["ours"],
            "threads_of_transformers": threads[name],
            "tokens_per_second": {way: BATCH * NEW / x for way, x in medians.items()},
            "median_s": medians,
            "min_s": {way: min(times) for way, times in walls.items()},
            "max_s": {way: max(times) for way, times in walls.items()},
            "on_cores_s": cores,
        }
        print(
            f"{name:8} ratio {figures[name]['ratio']:.2f} ({min(paired):.2f} to {max(paired):.2f})"
        )
    print(
        json.dumps(
            {
                "benchmark": "decode",
                "ratio": figures["greedy"]["ratio"],
                **figures,
                "rounds": rounds,
                "load": os.getloadavg(),
                "cores": os.cpu_count(),
            }
        )
    )


if __name__ == "__main__":
    main()
