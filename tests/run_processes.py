"""Training runs in processes of their own: started, killed at some moment, started again."""

import contextlib
import dataclasses
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np

from tests.small_vocabulary import SENTENCES
from tests.tiny_runs import BASE_STEP, binding, make_base

ROOT = pathlib.Path(__file__).parent.parent
STEPS = 60
LAST = BASE_STEP + STEPS
# One shape, so that a run compiles one program.
ONE_SHAPE = [
    "--gin.INPUT_BUCKETS=@inputs/batches.fixed()",
    "--gin.inputs/batches.fixed.length=24",
    "--gin.TARGET_BUCKETS=@targets/batches.fixed()",
    "--gin.targets/batches.fixed.length=8",
]
FLAGS = [
    "--gin_file=models/ours_tiny.gin",
    "--gin_file=prompts/from_sampled_vocab.gin",
    "--gin_file=runs/prompt_finetune.gin",
    "--gin.TASK_FEATURE_LENGTHS={'inputs': 24, 'targets': 8}",
    "--gin.FILE_TASK=@file_task.FileTask()",
    "--gin.file_task.FileTask.inputs='is it good? {sentence}'",
    "--gin.file_task.FileTask.targets='{label}'",
    "--gin.file_task.FileTask.names={'label': ['bad', 'good']}",
    "--gin.PROMPT_LENGTH=5",
    "--gin.BATCH_SIZE=8",
    "--gin.ACTIVATION_DTYPE='float32'",
    "--gin.DROPOUT_RATE=0.1",
    f"--gin.TRAIN_STEPS={LAST}",
    # No two of them have a common period, so that every kind of interval is cut somewhere.
    "--gin.SAVE_PERIOD=3",
    "--gin.STATS_PERIOD=5",
    "--gin.EVAL_PERIOD=20",
]
# What differs between two runs that are the same.
_TIMES = re.compile(r"timing/.*")


@dataclasses.dataclass(frozen=True)
class World:
    """A base model, a vocabulary and the files of a task, in one folder."""

    folder: pathlib.Path

    def flags(self, model_dir, cache_dir):
        return [
            *FLAGS,
            binding("INITIAL_CHECKPOINT_PATH", self.folder / "base"),
            binding("VOCABULARY_FILE", self.folder / "small.model"),
            binding("MIXTURE_OR_TASK_NAME", self.folder / "train.tsv"),
            binding("MODEL_DIR", model_dir),
            binding("CACHE_DIR", cache_dir),
        ]

    def start(self, model_dir, cache_dir, *flags, devices=1, stderr=None):
        """Starts a run as a process of its own."""
        arguments = ["train", *self.flags(model_dir, cache_dir), *flags]
        return self.command(*arguments, devices=devices, stderr=stderr)

    def command(self, *arguments, devices=1, stderr=None):
        """Starts a command as a process of its own."""
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            "PYTHONPATH": str(ROOT),
            # Compiled once for all of these processes.
            "JAX_COMPILATION_CACHE_DIR": str(self.folder / "programs"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        with heeding_ctrl_c():
            return subprocess.Popen(
                [sys.executable, "-m", "prompt_tuning", *arguments],
                env=environment,
                cwd=ROOT,
                stdout=subprocess.DEVNULL,
                stderr=stderr or subprocess.PIPE,
                text=True,
            )

    def finish(self, model_dir, cache_dir, *flags, devices=1):
        """Runs to the end; returns the exit code and what it said."""
        process = self.start(model_dir, cache_dir, *flags, devices=devices)
        _, said = process.communicate(timeout=300)
        return process.returncode, said

    def finish_together(self, model_dir, cache_dir, *, processes, moment=None):
        """Runs in several connected processes to the end, or kills all of them at a moment."""
        started = [self.start(model_dir, cache_dir, *flags) for flags in connected(processes)]
        if moment is not None:
            moment(started[0])
            for process in started:
                process.kill()
        said = [process.communicate(timeout=300)[1] for process in started]
        return [process.returncode for process in started], said

    def kill(self, model_dir, cache_dir, moment, *flags):
        """Starts a run and kills it at a moment; returns whether it was still running."""
        with open(os.devnull, "w") as nowhere:
            process = self.start(model_dir, cache_dir, *flags, stderr=nowhere)
        moment(process)
        process.send_signal(signal.SIGKILL)
        return process.wait() == -signal.SIGKILL


def connected(processes):
    """Returns the flags of each of several processes that run one command together."""
    with socket.socket() as listening:
        listening.bind(("localhost", 0))
        port = listening.getsockname()[1]
    shared = ["--multiprocess_gpu", f"--coordinator_address=localhost:{port}"]
    shared += [f"--process_count={processes}"]
    return [[*shared, f"--process_index={index}"] for index in range(processes)]


@contextlib.contextmanager
def heeding_ctrl_c():
    """Starts processes that heed Ctrl-C, though the tests may run in the background and do not."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def make_world(folder, *, rows=200):
    """Writes what the runs read: a task of many short sentences with labels."""
    from tests.small_vocabulary import train

    train(folder / "small.model")
    make_base(folder / "base")
    rng = np.random.default_rng(0)
    for split, count in [("train", rows), ("validation", 16)]:
        lines = ["sentence\tlabel"]
        for _ in range(count):
            words = " ".join(rng.choice(SENTENCES, 3)).replace("\t", " ").split(" ")
            text = " ".join(words[: rng.integers(1, 6)])
            lines.append(f"{text}\t{rng.integers(2)}")
        (folder / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    return World(folder)


def after(seconds):
    """Returns the moment so many seconds after the start."""

    def moment(process):
        del process
        time.sleep(seconds)

    return moment


def when(folder, pattern, *, times=1):
    """Returns the moment at which the n-th file of this pattern has come up in a folder."""

    def moment(process):
        seen = set()
        while process.poll() is None:
            seen |= {path.name for path in folder.glob(pattern)}
            if len(seen) >= times:
                return
            time.sleep(0.0005)

    return moment


def outcome(model_dir):
    """Returns all that a run says: the bytes of its last prompt, and every number it logged."""
    prompt = model_dir / f"numpy_checkpoints/checkpoint_{LAST}/encoder.prompt.prompt.prompt"
    return prompt.read_bytes(), logged(model_dir)


def concluded(model_dir):
    """Returns what a run says of itself at its end, timings and its own folder aside."""
    found = json.loads((model_dir / "summary.json").read_text())
    return {name: x for name, x in found.items() if name not in ("timing", "next")}


def logged(model_dir):
    """Returns every number that a run has logged, timings aside."""
    return {
        str(path.relative_to(model_dir)): _lines(path)
        for path in sorted(model_dir.rglob("*metrics.jsonl"))
    }


def _lines(path):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{name: x for name, x in row.items() if not _TIMES.fullmatch(name)} for row in rows]
