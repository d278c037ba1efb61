"""Memory of the host while a model is read: its own arrays and about one stored array more.

A synthetic checkpoint of 2.3 GB (T5 1.1 large with 17+17 layers, float32, random numbers) is
written in each format, then a fresh process reads it into a model, in float32 and in bfloat16, with
the hash of the base as `train` does. What its resident memory peaks at, less what it had before and
less the model's own arrays, is what reading costs; the ratio compares that with the largest array.

    python benchmarks/load_memory.py [--quick]
"""

import argparse
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time

FORMATS = ("t5x", "orbax", "huggingface")
DTYPES = ("float32", "bfloat16")
MIB = 1 << 20


def main() -> None:
    """Writes every format, reads it in processes of their own and prints what they took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a checkpoint of 0.4 GB, one round")
    # What the processes of their own do.
    parser.add_argument("--write", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--read", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.write:
        write(*arguments.write)
        return
    if arguments.read:
        print(json.dumps(read(*arguments.read)))
        return
    layers, rounds = (2, 1) if arguments.quick else (17, 3)
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            row
            for name in FORMATS
            for row in measure(name, layers, rounds, pathlib.Path(folder) / name)
        ]
    print(
        f"{'format':12} {'dtype':9} {'model':>6} {'extra':>6} {'(min, max)':>14} {'ratio':>6} "
        f"{'s':>5}   (MiB)"
    )
    for row in rows:
        spread = f"({row['extra_mib'][0]:.0f}, {row['extra_mib'][-1]:.0f})"
        print(
            f"{row['format']:12} {row['dtype']:9} {row['model_mib']:6.0f} "
            f"{statistics.median(row['extra_mib']):6.0f} {spread:>14} {row['ratio']:6.2f} "
            f"{row['median_s']:5.1f}"
        )
    print(
        json.dumps(
            {
                "benchmark": "load_memory",
                "ratio": max(row["ratio"] for row in rows),
                "rows": rows,
                "load": os.getloadavg(),
                "cores": os.cpu_count(),
            }
        )
    )


def measure(name: str, layers: int, rounds: int, path: pathlib.Path) -> list[dict]:
    """Writes one format and reads it `rounds` times in each dtype, taking turns."""
    target = path / "checkpoint_0"
    subprocess.run(
        [sys.executable, __file__, "--write", name, str(layers), str(target)], check=True
    )
    found: dict[str, list[dict]] = {dtype: [] for dtype in DTYPES}
    for _ in range(rounds):
        for dtype in DTYPES:
            command = [sys.executable, __file__, "--read", str(target), dtype]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found[dtype].append(json.loads(done.stdout.splitlines()[-1]))
    return [
        {
            "format": name,
            "dtype": dtype,
            "checkpoint_mib": runs[0]["stored_mib"],
            "model_mib": runs[0]["model_mib"],
            "largest_mib": runs[0]["largest_mib"],
            "extra_mib": sorted(run["extra_mib"] for run in runs),
            "ratio": statistics.median(run["extra_mib"] for run in runs) / runs[0]["largest_mib"],
            "median_s": statistics.median(run["seconds"] for run in runs),
        }
        for dtype, runs in found.items()
    ]


def write(name: str, layers: str, path: str) -> None:
    """Writes a checkpoint of random numbers, which hardly compress, as weights hardly do."""
    import numpy as np
    from etils import epath

    from prompt_tuning.checkpoints import formats
    from prompt_tuning.checkpoints.containers.stored import Stored
    from prompt_tuning.checkpoints.contents import expected_shapes
    from prompt_tuning.model import t5_config

    depth = int(layers)
    config = t5_config("t5_1_1_large", encoder_layers=depth, decoder_layers=depth)
    rng = np.random.default_rng(0)

    def stored(name: str, shape: tuple[int, ...]) -> Stored:
        def part(index: tuple[slice, ...]) -> np.ndarray:
            return rng.standard_normal([one.stop - one.start for one in index], np.float32)

        return Stored(shape=shape, dtype=np.dtype(np.float32), read=part, where=name)

    tensors = {key: stored(key, shape) for key, shape in expected_shapes(config).items()}
    formats.MODEL_FORMATS[name].save(tensors, config, 0, epath.Path(path))


def read(path: str, dtype: str) -> dict:
    """Reads a checkpoint into a model and returns what that took, in MiB."""
    import jax
    from flax import nnx

    from prompt_tuning import checkpoints
    from prompt_tuning.checkpoints import base
    from prompt_tuning.model import parameters

    contents = checkpoints.open_model(path)
    shapes, digest = base.shapes(contents, param_dtype=dtype), parameters.Fingerprint()
    jax.block_until_ready(jax.numpy.zeros(8) + 1)
    before, began = _resident(), time.monotonic()
    model = base.fill(shapes, contents, digest=digest)
    seconds = time.monotonic() - began
    arrays = parameters.named(nnx.state(model)).values()
    own = sum(array.nbytes for array in arrays)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "seconds": seconds,
        "stored_mib": sum(one.nbytes for one in contents.tensors.values()) / MIB,
        "largest_mib": max(one.nbytes for one in contents.tensors.values()) / MIB,
        "model_mib": own / MIB,
        "extra_mib": (peak - before - own) / MIB,
    }


def _resident() -> int:
    pages = pathlib.Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * resource.getpagesize()


if __name__ == "__main__":
    main()
