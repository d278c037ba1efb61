"""What a run over the tiny model needs: a base, a vocabulary, a task of a few lines, and flags."""

import dataclasses
import pathlib

import seqio
from flax import nnx

from prompt_tuning.checkpoints.run import RunCheckpoints
from prompt_tuning.model import T5, BaseParam, t5_config
from prompt_tuning.training.optimizer import adafactor
from prompt_tuning.training.state import split_model, start
from tests.small_vocabulary import SENTENCES, train

BASE_STEP = 20
ROWS = [(sentence.replace("\t", " "), i % 2) for i, sentence in enumerate(SENTENCES)]


@dataclasses.dataclass(frozen=True)
class Place:
    """A folder with what a run reads, and the flags that name it."""

    folder: pathlib.Path

    @property
    def flags(self):
        return [
            binding("TSV_DIR", self.folder),
            binding("INITIAL_CHECKPOINT_PATH", self.folder / "base"),
            binding("VOCABULARY_FILE", self.folder / "small.model"),
        ]


def binding(name, path):
    return f"--gin.{name}='{path}'"


def make_place(folder):
    """Writes a base of random weights that stands at step 20, its vocabulary and a task."""
    train(folder / "small.model")
    make_base(folder / "base")
    write_task(folder)
    return Place(folder)


def make_base(folder, *, seed=0, step=BASE_STEP):
    model = T5(t5_config("ours_tiny"), rngs=nnx.Rngs(seed))
    _, weights, _ = split_model(model, BaseParam)
    # The optimizer of runs/pretrain.gin, whose slots model tuning goes on with.
    optimizer = adafactor(multiply_by_parameter_scale=True, weight_decay_rate=None)
    with RunCheckpoints(folder, base="") as checkpoints:
        checkpoints.save(start(weights, optimizer, step=step))


def write_task(folder, rows=ROWS):
    """Writes the two files of the task `sst2_tsv`; every fifth row is for validation."""
    for name, chosen in [
        ("train", [row for i, row in enumerate(rows) if i % 5]),
        ("validation", rows[::5]),
    ]:
        lines = ["sentence\tlabel", *(f"{text}\t{label}" for text, label in chosen)]
        (folder / f"{name}.tsv").write_text("\n".join(lines) + "\n")


def forget_tasks():
    """Takes away the tasks that a run has registered over its own files."""
    for name in ("sst2_tsv", "taskless_sst2_tsv"):
        if name in seqio.TaskRegistry.names():
            seqio.TaskRegistry.remove(name)
