"""The programs of a run on shapes: a training step, an evaluation step, and answering a batch."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from prompt_tuning.decoding import Strategy, make_generate
from prompt_tuning.losses import Loss
from prompt_tuning.model import T5
from prompt_tuning.partitioning import Placement
from prompt_tuning.planning import minimum, shapes
from prompt_tuning.planning.minimum import Sizes
from prompt_tuning.planning.plan import Plan, planned
from prompt_tuning.planning.topologies import Topology
from prompt_tuning.training.optimizer import Optimizer
from prompt_tuning.training.state import start
from prompt_tuning.training.step import TrainStep, make_eval_step


@dataclasses.dataclass(frozen=True, kw_only=True)
class Split:
    """A model that was split into what is trained and the rest; shapes are enough.

    Attributes:
        model: before it was split.
        graph: of it.
        chosen: what is trained, or what was learned.
        frozen: the rest.
        trainable: `prompt` or `model`.
    """

    model: T5
    graph: nnx.GraphDef
    chosen: nnx.State
    frozen: nnx.State
    trainable: str = "prompt"

    def sizes(self, rows: int, inputs: int, targets: int, beams: int = 1) -> Sizes:
        prompt = getattr(self.model.encoder, "prompt", None)
        prefix = getattr(self.model.decoder, "prefix", None)
        return Sizes(
            rows=rows,
            inputs=inputs,
            targets=targets,
            prompt=getattr(prompt, "length", 0),
            prefix=getattr(prefix, "length", 0),
            beams=beams,
        )


def plan_training(
    split: Split,
    step: TrainStep,
    optimizer: Optimizer,
    topology: Topology,
    placement: Placement,
    *,
    rows: int,
    inputs: int,
    targets: int,
    microbatches: int = 1,
) -> Plan:
    """Compiles a training step, see `make_train_step`; with dropout if the model has it."""
    state = jax.eval_shape(
        lambda chosen: start(chosen, optimizer, step=optimizer.first_step), split.chosen
    )
    batch = shapes.batch(rows, inputs, targets, placement, microbatches=microbatches)
    config, sizes = split.model.config, split.sizes(batch.inputs.shape[0], inputs, targets)
    arguments = (
        shapes.parameters(split.chosen, placement),
        shapes.slots(state.opt_state, split.chosen, placement),
        shapes.parameters(split.frozen, placement),
        batch,
        jax.eval_shape(lambda: jax.random.key(0)) if config.dropout_rate else None,
    )
    return planned(
        "train",
        step,
        arguments,
        topology,
        mesh=placement.describe(),
        minimum=minimum.of_training(config, sizes, trainable=split.trainable),
        recomputed=minimum.recomputed(config, sizes),
        rows=sizes.rows,
        inputs=inputs,
        targets=targets,
        microbatches=microbatches,
    )


def plan_evaluation(
    split: Split,
    topology: Topology,
    placement: Placement,
    *,
    rows: int,
    inputs: int,
    targets: int,
    loss: Loss | None = None,
) -> Plan:
    """Compiles the loss of a batch without an update, see `make_eval_step`."""
    batch = shapes.batch(rows, inputs, targets, placement)
    sizes = split.sizes(batch.inputs.shape[0], inputs, targets)
    arguments = (
        shapes.parameters(split.chosen, placement),
        shapes.parameters(split.frozen, placement),
        batch,
    )
    return planned(
        "eval",
        make_eval_step(split.graph, loss=loss),
        arguments,
        topology,
        mesh=placement.describe(),
        minimum=minimum.of_evaluation(split.model.config, sizes),
        rows=sizes.rows,
        inputs=inputs,
        targets=targets,
    )


def plan_decoding(
    split: Split,
    topology: Topology,
    placement: Placement,
    strategy: Strategy,
    *,
    rows: int,
    inputs: int,
    targets: int,
) -> Plan:
    """Compiles answering a batch in up to `targets` tokens, see `make_generate`."""
    batch = shapes.batch(rows, inputs, targets, placement)
    beams = getattr(strategy, "beams", 1)
    sizes = split.sizes(batch.inputs.shape[0], inputs, targets, beams)
    function: Any = make_generate(split.graph, length=targets, strategy=strategy)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), sizes.rows))
    limits = jax.ShapeDtypeStruct((sizes.rows,), jnp.int32)
    arguments = (
        shapes.parameters(split.chosen, placement),
        shapes.parameters(split.frozen, placement),
        batch.inputs,
        keys,
        None,
        limits,
    )
    return planned(
        "decode",
        function,
        arguments,
        topology,
        mesh=placement.describe(),
        minimum=minimum.of_decoding(split.model.config, sizes),
        most_trips=targets,
        rows=sizes.rows,
        inputs=inputs,
        targets=targets,
    )
