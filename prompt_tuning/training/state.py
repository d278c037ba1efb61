"""What changes during a run, and how a model is split into that and the rest."""

from typing import Any, NamedTuple

from flax import nnx

from prompt_tuning.errors import ConfigError
from prompt_tuning.model import parameters
from prompt_tuning.partitioning import Placement
from prompt_tuning.training.optimizer import Optimizer


class RunState(NamedTuple):
    """Everything that a step changes: about three times the bytes of a prompt.

    `step` is the global step: the number of updates behind these parameters, those of the base
    model included. `pending` holds the sums of the steps since the last line of the log, so that a
    resumed run writes the same lines; None when there are none.
    """

    trainable: nnx.State
    opt_state: Any
    step: int
    pending: dict[str, float] | None = None


def split_model(
    model: nnx.Module, trainable: type[nnx.Variable]
) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """Splits a model by the type of variable to train: `PromptParam` or `BaseParam`.

    Returns the graph, the trainable state and the frozen state. Gradient, optimizer state, donation
    and checkpoint all follow from this split.

    Raises:
        ConfigError: the model has no variable of that type, or they are integers.
    """
    check_trainable(model, trainable)
    graph, chosen, frozen = nnx.split(model, trainable, ...)
    if not nnx.to_flat_state(chosen):
        raise ConfigError(
            f"There is nothing to train: the model has no {trainable.__name__}. Give the model a "
            "`prompt` (T5.prompt), or train BaseParam for model tuning."
        )
    return graph, chosen, frozen


def check_trainable(model: nnx.Module, trainable: type[nnx.Variable]) -> None:
    """Raises ConfigError if what is to be trained is quantized; shapes are enough."""
    names = parameters.named(nnx.state(model, trainable))
    if any(name.endswith(parameters.SCALE) for name in names):
        raise ConfigError(
            "The whole model is to be trained, but its kernels are quantized: integers have no "
            "gradient. Set QUANTIZATION = None, or train a prompt (runs/prompt_finetune.gin)."
        )


def start(trainable: nnx.State, optimizer: Optimizer, *, step: int) -> RunState:
    """Returns the state before the first update, over a base that stands at the global `step`."""
    return RunState(trainable, optimizer.init(trainable, step=step), step)


def laid_out(state: RunState, placement: Placement) -> RunState:
    """Returns the state on the devices of a mesh, ready for its steps."""
    return state._replace(
        trainable=placement.parameters(state.trainable),
        opt_state=placement.slots(state.opt_state, state.trainable),
    )
