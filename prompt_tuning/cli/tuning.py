"""What is tuned, and by which step: the same for a run and for the plan of one."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jaxtyping import Float

from prompt_tuning.checkpoints import base as base_model
from prompt_tuning.checkpoints.contents import Contents
from prompt_tuning.checkpoints.mapping import EMBEDDING
from prompt_tuning.cli.base import fill_base
from prompt_tuning.errors import ConfigError, nearest
from prompt_tuning.losses import Loss
from prompt_tuning.model import T5, BaseParam, parameters
from prompt_tuning.partitioning import Placement
from prompt_tuning.planning import Split
from prompt_tuning.prompts import PromptParam
from prompt_tuning.training.optimizer import Optimizer
from prompt_tuning.training.state import check_trainable, split_model
from prompt_tuning.training.step import TrainStep, make_train_step

TRAINABLE = {"prompt": PromptParam, "model": BaseParam}

LOGITS = "decoder/logits_dense/kernel"

# Rows and their width -> a vector for each token id; rows of zeros where nothing is known.
TokenVectors = Callable[[int, int], Float[np.ndarray, "rows width"]]


class Tuning(NamedTuple):
    """A model that was split, and the step that trains its first part."""

    split: Split
    step: TrainStep


def check_choice(trainable: str) -> None:
    """Raises ConfigError for what nobody can train."""
    if trainable not in TRAINABLE:
        raise ConfigError(
            f"train.trainable is {trainable!r}, expected one of {', '.join(TRAINABLE)}."
            f"{nearest(str(trainable), TRAINABLE)}"
        )


def built(
    model: Callable[..., T5],
    prompt: Callable[..., nnx.Module] | None,
    base: Contents | None,
    trainable: str,
    seed: int,
    digest: parameters.Fingerprint,
    placed: Placement,
    *,
    shapes_only: bool,
) -> T5:
    """Returns the model on its devices, with what is learned over it.

    Args:
        model: makes the base model; called with `rngs`.
        prompt: makes the prompt; called with `embed_dim` and `rngs`.
        base: what the base is filled from; None draws it.
        trainable: `prompt`, or `model` for one without a prompt.
        seed: of what is drawn.
        digest: gets every parameter as it is stored.
        placed: where the parameters go.
        shapes_only: make no arrays but those of the prompt, and read none of the base.
    """
    check_choice(trainable)
    base_key, prompt_key = jax.random.split(jax.random.key(seed))

    def make() -> T5:
        return model(rngs=nnx.Rngs(params=base_key))

    # Only shapes are needed of a base that is read from a file.
    module = nnx.eval_shape(make) if shapes_only or base is not None else make()
    check_trainable(module, TRAINABLE[trainable])  # before minutes of reading
    if base is not None:
        base_model.check_architecture(module.config, base)
        if not shapes_only:
            module = fill_base(module, base, digest, placed)
    module.hold(placed.layout)
    if prompt is not None and trainable == "prompt":
        rngs = nnx.Rngs(params=prompt_key)
        module.encoder.prompt = prompt(embed_dim=module.config.embed_dim, rngs=rngs)
    return module


def with_vectors(chosen: nnx.State, vectors: TokenVectors) -> nnx.State:
    """Returns the parameters of a model with token vectors in the place of its embeddings.

    The embeddings become the vectors, and the kernel of the logits the same in the size of its own
    initial values, 1 / sqrt(width). Tokens without a vector keep what they have.
    """
    arrays = parameters.named(chosen)
    rows, width = arrays[EMBEDDING].shape
    found = vectors(rows, width)
    if jax.process_count() > 1:
        # Another machine may round otherwise.
        found = multihost_utils.broadcast_one_to_all(found)
    new = {EMBEDDING: found, LOGITS: found.T / np.sqrt(np.float32(width))}
    started = {
        name: np.where(new[name] == 0, arrays[name], new[name]) for name in new if name in arrays
    }
    return parameters.replaced(chosen, arrays | started)


def tuned(
    module: T5,
    trainable: str,
    optimizer: Optimizer,
    *,
    loss: Loss | None,
    microbatches: int,
    placed: Placement,
) -> Tuning:
    """Splits a model into what is trained and the rest, and makes the step."""
    graph, chosen, frozen = split_model(module, TRAINABLE[trainable])
    step = make_train_step(graph, optimizer, loss=loss, microbatches=microbatches, placement=placed)
    split = Split(model=module, graph=graph, chosen=chosen, frozen=frozen, trainable=trainable)
    return Tuning(split, step)
