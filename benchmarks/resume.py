"""What resuming costs, early and late in a run: from the command to the end of its first step.

`prompt-tuning train` over a T5 of the size of the tiny model, on a TSV task that is tokenised
already. One run is trained for a step; its state is written down as if it had taken 100 steps and
as if it had taken 1,000,000, and both are started again in turn. Timed from the start of the
process until the first step is logged.

    python benchmarks/resume.py --data=/data/sst2/train.tsv --vocabulary=/tmp/mini.model [--quick]
"""

import argparse
import dataclasses
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

from etils import epath
from flax import nnx

from prompt_tuning.checkpoints import run_folder
from prompt_tuning.checkpoints.run import RunCheckpoints
from prompt_tuning.model import T5, BaseParam, t5_config
from prompt_tuning.training.optimizer import adafactor
from prompt_tuning.training.state import split_model, start
from prompt_tuning.vocabulary import SentencePieceVocabulary

STEPS = (100, 1_000_000)


def main() -> None:
    """Resumes at both steps in turn and prints what it took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="train.tsv of GLUE's SST-2")
    parser.add_argument("--vocabulary", required=True, help="a SentencePiece model")
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    arguments = parser.parse_args()
    rounds = 2 if arguments.quick else 9
    found = {step: [] for step in STEPS}
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        make_base(folder / "base", SentencePieceVocabulary(arguments.vocabulary).size)
        train(arguments, folder, folder / "run", steps=1)  # Tokenises and compiles.
        for step in STEPS:
            shutil.copytree(folder / "run", folder / f"at_{step}")
            move(folder / f"at_{step}", step)
        for number in range(rounds):
            # Whoever comes second finds the files in memory; so they take turns in that, too.
            for step in STEPS[:: 1 if number % 2 else -1]:
                again = folder / f"{step}_{number}"
                shutil.copytree(folder / f"at_{step}", again)
                found[step].append(train(arguments, folder, again, steps=step + 1))
                shutil.rmtree(again)
    print(f"{'resumed at':>12} {'first step s':>13} {'min':>7} {'max':>7}")
    for step, seconds in found.items():
        median = statistics.median(seconds)
        print(f"{step:12,} {median:13.2f} {min(seconds):7.2f} {max(seconds):7.2f}")
    early, late = (statistics.median(found[step]) for step in STEPS)
    print(
        json.dumps(
            {
                "benchmark": "resume",
                "ratio": late / early,
                "rounds": rounds,
                "load": os.getloadavg(),
                "cores": os.cpu_count(),
                **{f"step_{step}_first_step_s": seconds for step, seconds in found.items()},
            }
        )
    )


def make_base(folder: pathlib.Path, vocabulary_size: int) -> None:
    """Writes a T5 of random weights that stands at step 0."""
    config = t5_config("ours_tiny", vocab_size=vocabulary_size)
    _, weights, _ = split_model(T5(config, rngs=nnx.Rngs(0)), BaseParam)
    with RunCheckpoints(folder, base="") as checkpoints:
        checkpoints.save(start(weights, adafactor(), step=0))


def move(run: pathlib.Path, step: int) -> None:
    """Lets the only checkpoint of a run say that it was saved at another step."""
    checkpoints = epath.Path(run) / "checkpoints"
    (old,) = run_folder.saved_steps(checkpoints)
    record, arrays = run_folder.read(checkpoints / str(old))
    trees: dict[str, dict] = {}
    for name, array in arrays.items():
        tree, _, rest = name.partition("/")
        trees.setdefault(tree, {})[rest] = array
    details = record.details | {"steps": step}
    moved = dataclasses.replace(record, step=step, details=details)
    run_folder.write(checkpoints / str(step), {**trees, "meta": moved.encode()})
    (run / "train/metrics.jsonl").unlink()


def train(
    arguments: argparse.Namespace, folder: pathlib.Path, run: pathlib.Path, *, steps: int
) -> float:
    """Trains until so many steps are done; returns the seconds until the first one is logged."""
    settings = {
        "MODEL_DIR": str(run),
        "INITIAL_CHECKPOINT_PATH": str(folder / "base"),
        "VOCABULARY_FILE": arguments.vocabulary,
        "MIXTURE_OR_TASK_NAME": arguments.data,
        "CACHE_DIR": str(folder / "cache"),
        "TASK_FEATURE_LENGTHS": {"inputs": 128, "targets": 8},
        "file_task.FileTask.inputs": "sst2 sentence: {sentence}",
        "file_task.FileTask.targets": "{label}",
        "file_task.FileTask.names": {"label": ["negative", "positive"]},
        "t5_config.vocab_size": SentencePieceVocabulary(arguments.vocabulary).size,
        "BATCH_SIZE": 32,
        "TRAIN_STEPS": steps,
        "STATS_PERIOD": 1,
        "SAVE_PERIOD": 10_000_000,
        "EVAL_SPLIT": None,
    }
    # One shape, so that both steps run the same program.
    shapes = ["INPUT_BUCKETS=@inputs/batches.fixed()", "inputs/batches.fixed.length=128"]
    shapes += ["TARGET_BUCKETS=@targets/batches.fixed()", "targets/batches.fixed.length=8"]
    bindings = [*(f"{name}={value!r}" for name, value in settings.items()), *shapes]
    bindings.append("FILE_TASK=@file_task.FileTask()")
    files = ("models/ours_tiny.gin", "prompts/from_sampled_vocab.gin", "runs/prompt_finetune.gin")
    command = [sys.executable, "-m", "prompt_tuning", "train"]
    command += [f"--gin_file={name}" for name in files]
    command += [f"--gin.{binding}" for binding in bindings]
    programs = {
        # Compiling would hide all else.
        "JAX_COMPILATION_CACHE_DIR": str(folder / "programs"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    log = run / "train/metrics.jsonl"
    began = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, env=os.environ | programs, stderr=said)
        seconds = None
        while process.poll() is None:
            if seconds is None and log.exists() and log.stat().st_size:
                seconds = time.perf_counter() - began
            time.sleep(0.005)
        if process.returncode or seconds is None:
            said.seek(0)
            raise RuntimeError(said.read().decode())
    return seconds


if __name__ == "__main__":
    main()
