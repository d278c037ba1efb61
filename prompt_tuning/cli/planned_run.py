"""What a configuration would run, for `plan`: models, steps and the shapes of batches.

Nothing is read but, of an `eval` or `infer` without MODEL, the shapes in a checkpoint. Shapes of
batches are those of the longest bucket, which is what must fit.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from prompt_tuning.checkpoints import base as base_model
from prompt_tuning.checkpoints import formats, methods
from prompt_tuning.cli import eval as eval_command
from prompt_tuning.cli import infer as infer_command
from prompt_tuning.cli import train as train_command
from prompt_tuning.cli.base import open_base
from prompt_tuning.cli.configuration.bound_arguments import Bound, Missing, bound
from prompt_tuning.cli.tuning import built, tuned
from prompt_tuning.data import batches, task_batches
from prompt_tuning.decoding import BeamSearch, Strategy
from prompt_tuning.errors import ConfigError
from prompt_tuning.evaluation import answering, task_evaluations
from prompt_tuning.losses import Loss
from prompt_tuning.model import T5, parameters
from prompt_tuning.partitioning import Partitioning, Placement
from prompt_tuning.planning import (
    Plan,
    Split,
    Topology,
    plan_decoding,
    plan_evaluation,
    plan_training,
)
from prompt_tuning.prompts import Prompt, PromptParam
from prompt_tuning.training.optimizer import Optimizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """Of a batch: examples, and the longest inputs and targets."""

    rows: int
    inputs: int
    targets: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """What would be run.

    Attributes:
        make: the model as shapes, with what is learned over it, on the devices of a placement.
        partitioning: how it is divided among devices.
        trainable: `prompt` or `model`.
        training: shape of a batch to train on; None for a command that does not.
        optimizer: of the training.
        microbatches: parts of such a batch.
        evaluation: shape of a batch whose loss is measured.
        answers: shape of a batch that is answered.
        strategy: of the answers.
        loss: of training and evaluation.
    """

    make: Callable[[Placement], T5]
    partitioning: Partitioning
    trainable: str = "prompt"
    training: Shape | None = None
    optimizer: Optimizer | None = None
    microbatches: int = 1
    evaluation: Shape | None = None
    answers: Shape | None = None
    strategy: Strategy = dataclasses.field(default_factory=BeamSearch)
    loss: Loss | None = None

    @property
    def shapes(self) -> dict[str, Shape]:
        """The shape of the batches of every program that there is."""
        found = {"train": self.training, "eval": self.evaluation, "decode": self.answers}
        return {program: shape for program, shape in found.items() if shape is not None}

    def plan(self, program: str, topology: Topology) -> Plan:
        """Compiles one of the programs for a topology.

        Raises:
            DeviceError: the model does not divide among the devices.
        """
        placed = self.partitioning.placement(topology.devices)
        module, shape = self.make(placed), dataclasses.asdict(self.shapes[program])
        if program == "train":
            assert self.optimizer is not None
            split, step = tuned(
                module,
                self.trainable,
                self.optimizer,
                loss=self.loss,
                microbatches=self.microbatches,
                placed=placed,
            )
            return plan_training(
                split,
                step,
                self.optimizer,
                topology,
                placed,
                microbatches=self.microbatches,
                **shape,
            )
        graph, learned, frozen = nnx.split(module, PromptParam, ...)
        split = Split(model=module, graph=graph, chosen=learned, frozen=frozen)
        if program == "eval":
            return plan_evaluation(split, topology, placed, loss=self.loss, **shape)
        return plan_decoding(split, topology, placed, self.strategy, **shape)


def planned_run() -> PlannedRun:
    """Returns what the configuration that gin has would run.

    Raises:
        Missing: a setting that decides about shapes has no value.
        ConfigError: the files configure no command, or data of which no shapes are known.
    """
    if found := bound(train_command.train):
        return _training(found)
    if found := bound(eval_command.evaluate):
        shape, strategy, loss = _evaluations(found, None)
        return PlannedRun(
            make=_asked(found),
            partitioning=found.value("partitioning") or Partitioning(),
            evaluation=shape,
            answers=None if strategy is None else shape,
            strategy=strategy or BeamSearch(),
            loss=loss,
        )
    if found := bound(infer_command.infer):
        strategy = _strategy(found)
        lengths = _lengths(found.follow("split"))
        if lengths is None:
            raise _unknown_lengths()
        shape = Shape(rows=found.value("batch_size", 32), **lengths)
        scores = found.value("mode") == "score" or strategy is None
        return PlannedRun(
            make=_asked(found),
            partitioning=found.value("partitioning") or Partitioning(),
            evaluation=shape if scores else None,
            answers=None if scores else shape,
            strategy=strategy or BeamSearch(),
        )
    raise ConfigError(
        "None of the gin files says what to run. Add one of this package's runs/ files, such as "
        "--gin_file=runs/prompt_finetune.gin."
    )


def _training(found: Bound) -> PlannedRun:
    trainable = found.value("trainable", "prompt")
    model, optimizer = found.value("model", without=("init",)), found.value("optimizer")
    learned = found.follow("prompt") if trainable == "prompt" else None
    # How a prompt begins is read from checkpoints and vocabularies, and changes no shape.
    prompt = None if learned is None else learned.partial(init=_zeros)
    seed = found.value("random_seed", 0)

    def make(placed: Placement) -> T5:
        digest = parameters.Fingerprint()
        return built(model, prompt, None, trainable, seed, digest, placed, shapes_only=True)

    training = _batches(found.follow("train_data"))
    shape, strategy, _ = _evaluations(found, training)
    return PlannedRun(
        make=make,
        partitioning=found.value("partitioning") or Partitioning(),
        trainable=trainable,
        training=training,
        optimizer=optimizer,
        microbatches=found.value("microbatches", 1),
        evaluation=shape,
        answers=None if strategy is None else shape,
        strategy=strategy or BeamSearch(),
        loss=found.value("loss"),
    )


def _zeros(key: Any, shape: tuple[int, ...]) -> jax.Array:
    del key
    return jnp.zeros(shape, jnp.float32)


def _batches(data: Bound | None) -> Shape:
    """Returns the shape of the longest batches of a source of training data."""
    if data is not None and data.function is batches.CorpusBatches:
        length = data.value("input_length", 512)
        longest = {
            "inputs": length,
            "targets": data.value("objective").target_length(length),
        }
    elif data is not None and data.function is task_batches.task_batches:
        longest = _lengths(data.follow("split"))
    else:
        name = "train.train_data" if data is None else data.function.__name__
        raise ConfigError(
            f"`plan` knows the shapes of task_batches and CorpusBatches, but not of {name}. "
            "`train --dry_run` compiles a step over the data as they are."
        )
    buckets = {name: data.value(name) for name in ("inputs", "targets")}
    if longest is None and None in buckets.values():
        raise _unknown_lengths()
    return Shape(
        rows=data.value("batch_size"),
        **{
            name: (longest or {})[name] if one is None else one.lengths[-1]
            for name, one in buckets.items()
        },
    )


def _lengths(split: Bound | None) -> dict[str, int] | None:
    """Returns the longest inputs and targets of a task's split; None if nothing trims them."""
    lengths: Mapping[str, int] | None = None if split is None else split.value("lengths")
    return None if lengths is None else {name: lengths[name] for name in ("inputs", "targets")}


def _unknown_lengths() -> ConfigError:
    return ConfigError(
        "TASK_FEATURE_LENGTHS is None, so how long batches are only their data say, which `plan` "
        "does not read. Set it: --gin.TASK_FEATURE_LENGTHS=\"{'inputs': 512, 'targets': 16}\""
    )


def _evaluations(
    found: Bound, training: Shape | None
) -> tuple[Shape | None, Strategy | None, Loss | None]:
    """Returns the shape of batches that are evaluated, how they are answered, and the loss."""
    evaluations = found.follow("evaluations")
    if evaluations is None or evaluations.function is not task_evaluations.task_evaluations:
        return None, None, None
    split = evaluations.follow("split")
    if split is None or split.value("split", "validation") is None:
        return None, None, None
    # The split for evaluation is not trimmed: its examples are taken to be as long as those to
    # train on.
    lengths = _lengths(split)
    if lengths is None and training is not None:
        lengths = {"inputs": training.inputs, "targets": training.targets}
    if lengths is None:
        raise _unknown_lengths()
    shape = Shape(rows=evaluations.value("batch_size"), **lengths)
    return shape, _strategy(evaluations), evaluations.value("loss")


def _strategy(found: Bound) -> Strategy | None:
    """Returns how answers are written; None if they are chosen, which costs what a loss costs."""
    answers = found.follow("answering")
    if answers is None or answers.function is not answering.Decode:
        return None
    return answers.value("strategy", BeamSearch())


def _asked(found: Bound) -> Callable[[Placement], T5]:
    """Returns what makes the model of an `eval` or `infer`, with the prompt that is named."""
    model = found.value("model")
    try:
        learned = found.value("prompt")
    except Missing:  # one of the paper's length, until it is known
        learned = 100
    if isinstance(learned, list | tuple):
        raise ConfigError(
            f"PROMPT_FILE names {len(learned)} prompts, but `plan` knows the shapes of one at a "
            "time. Name one of them; an ensemble takes as many rows as it has prompts."
        )
    if model is None:
        contents = open_base(found.value("checkpoint"), "CHECKPOINT_PATH")
        settings = {
            "dtype": found.value("activation_dtype", "bfloat16"),
            "param_dtype": found.value("param_dtype", "float32"),
            "quantization": found.value("quantization"),
            "quantization_group": found.value("quantization_group"),
        }
    file = formats.open_prompt(learned) if isinstance(learned, str) else None

    def make(placed: Placement) -> T5:
        if model is None:
            module = base_model.shapes(contents, **settings)
        else:
            module = nnx.eval_shape(lambda: model(rngs=nnx.Rngs(0)))
        if file is not None:
            module = methods.attach(module, file)
        elif learned is not None:
            width = module.config.embed_dim
            module.encoder.prompt = Prompt(
                length=learned, init=_zeros, embed_dim=width, rngs=nnx.Rngs(0)
            )
        module.hold(placed.layout)
        return module

    return make
