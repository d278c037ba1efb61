"""What `eval` and `infer` need: a base that answers every input differently, prompts, tasks, flags.

A model of the usual random weights says the same to everything, so that an answer in the place of
another one would not be seen.
"""

import dataclasses
import json
import pathlib
import re
import zlib

import numpy as np
from flax import nnx

from prompt_tuning.checkpoints.run import RunCheckpoints
from prompt_tuning.model import T5, BaseParam, parameters, t5_config
from prompt_tuning.training.optimizer import adafactor
from prompt_tuning.training.state import split_model, start
from tests.small_vocabulary import SENTENCES, SIZE, train
from tests.tiny_runs import BASE_STEP, binding

# Two words of one token, of which the base finds each as often the likelier one.
LABELS = ["every", "twice"]
FILMS = [
    "--gin.FILE_TASK=@file_task.FileTask()",
    "--gin.file_task.FileTask.inputs='{sentence}'",
    "--gin.file_task.FileTask.targets='{label}'",
    f"--gin.file_task.FileTask.names={{'label': {LABELS}}}",
    "--gin.file_task.FileTask.name='films'",
]
CHOOSING = ["--gin.ANSWERING=@answering.ChooseLabel()"]
LENGTHS = "--gin.TASK_FEATURE_LENGTHS={'inputs': 16, 'targets': 8}"
LAST = BASE_STEP + 3
STEPS = list(range(BASE_STEP + 1, LAST + 1))
TUNING = [
    "--gin_file=models/ours_tiny.gin",
    LENGTHS,
    "--gin.BATCH_SIZE=8",
    "--gin.ACTIVATION_DTYPE='float32'",
    f"--gin.TRAIN_STEPS={LAST}",
    "--gin.SAVE_PERIOD=1",
    "--gin.EVAL_PERIOD=1",
    "--gin.EVAL_STEPS=None",
    "--gin.train.devices=1",
]
PROMPT_TUNING = [*TUNING, "--gin_file=runs/prompt_finetune.gin", "--gin.PROMPT_LENGTH=5"]
MODEL_TUNING = [*TUNING, "--gin_file=runs/finetune.gin", "--gin.KEEP_CHECKPOINTS=None"]
ASKING = [
    "--gin_file=models/from_checkpoint.gin",
    "--gin.BATCH_SIZE=8",
    "--gin.ACTIVATION_DTYPE='float32'",
]


@dataclasses.dataclass(frozen=True)
class World:
    """A folder with a base, its vocabulary and a task of films."""

    folder: pathlib.Path

    @property
    def assets(self):
        return [
            binding("VOCABULARY_FILE", self.folder / "small.model"),
            binding("CACHE_DIR", self.folder / "cache"),
        ]

    @property
    def films(self):
        return [*FILMS, binding("MIXTURE_OR_TASK_NAME", self.folder / "train.tsv")]

    def train(self, name):
        """Returns the flags that train a prompt (or with MODEL_TUNING a model) in a folder."""
        return [
            *self.assets,
            *self.films,
            binding("INITIAL_CHECKPOINT_PATH", self.folder / "base"),
            binding("MODEL_DIR", self.folder / name),
        ]

    def ask(self, command, out, *, prompt=None):
        """Returns the flags of `eval` or `infer` over the base."""
        run = f"runs/prompt_{command}.gin" if prompt else f"runs/{command}.gin"
        return [
            *ASKING,
            f"--gin_file={run}",
            *self.assets,
            binding("CHECKPOINT_PATH", self.folder / "base"),
            *([binding("PROMPT_FILE", prompt)] if prompt else []),
            binding(f"{command.upper()}_OUTPUT_DIR", out),
        ]


def make_world(folder, *, rows=40):
    """Writes the base, the vocabulary and two splits of films, of `rows` and 13 rows."""
    vocabulary = train(folder / "small.model")
    make_base(folder / "base")
    rng = np.random.default_rng(0)
    for split, count in [("train", rows), ("validation", 13)]:
        write_films(folder / f"{split}.tsv", rng, count, vocabulary)
    return World(folder)


def write_films(path, rng, count, vocabulary):
    """Writes as many pairs of words, all short enough for the smallest bucket."""
    rows = ["sentence\tlabel"]
    while len(rows) <= count:
        words = str(rng.choice(SENTENCES)).split()
        first = rng.integers(len(words) - 1)
        text = " ".join(words[first : first + 2])
        if 3 < len(vocabulary.encode(text)) < 8:
            rows.append(f"{text}\t{rng.integers(2)}")
    path.write_text("\n".join(rows) + "\n")


def make_base(folder, *, seed=0, step=BASE_STEP, **changes):
    """Writes a tiny model whose answers depend on all that it reads."""
    config = dataclasses.replace(t5_config("ours_tiny"), **changes)
    model = nnx.eval_shape(lambda: T5(config, rngs=nnx.Rngs(0)))
    shapes = parameters.named(nnx.state(model))
    arrays = {name: _drawn(name, leaf.shape, seed) for name, leaf in shapes.items()}
    graph, state = nnx.split(model)
    _, weights, _ = split_model(nnx.merge(graph, parameters.replaced(state, arrays)), BaseParam)
    optimizer = adafactor(multiply_by_parameter_scale=True, weight_decay_rate=None)
    with RunCheckpoints(folder, base="", keep=None) as checkpoints:
        checkpoints.save(start(weights, optimizer, step=step))


def _drawn(name, shape, seed):
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    if name.endswith("scale"):
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    deviation = 1.5 / np.sqrt(shape[-2]) if name.endswith("kernel") else 1.0
    array = (rng.normal(size=shape) * deviation).astype(np.float32)
    if "logits" in name:
        # Nothing is said that the vocabulary has no text for; the end now and then.
        array[:, SIZE:] = 0.0
        array[:, [0, 2]] = 0.0
        array[:, 1] *= 2.0
    return array


def lines(path):
    """Returns the objects of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def error_in(said):
    """Returns the error that a command ended with."""
    return said[said.index("error: ") + len("error: ") :].removesuffix("\n")


def settings_in(said):
    """Returns the settings that a command misses, in the order of the alphabet."""
    return sorted(re.findall(r"^  (\w+) \(\S+:\d+\): --gin\.", said, re.MULTILINE))
