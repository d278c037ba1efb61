"""One step: differentiate the loss with respect to the trainable split, and nothing else."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from prompt_tuning.batch import Batch
from prompt_tuning.errors import ConfigError
from prompt_tuning.losses import Loss
from prompt_tuning.partitioning import Placement
from prompt_tuning.training.optimizer import Optimizer

Sums = dict[str, Float[Array, ""]]
TrainStep = Callable[
    [nnx.State, Any, nnx.State, Batch, PRNGKeyArray | None], tuple[nnx.State, Any, Sums]
]
EvalStep = Callable[[nnx.State, nnx.State, Batch], Sums]


def make_train_step(
    graph: nnx.GraphDef,
    optimizer: Optimizer,
    *,
    loss: Loss | None = None,
    microbatches: int = 1,
    placement: Placement | None = None,
) -> TrainStep:
    """Returns `train_step(prompt, opt_state, frozen, batch, key) -> (prompt, opt_state, sums)`.

    `prompt` is whatever `nnx.split` put first: the prompt (`PromptParam`), or the whole model
    (`BaseParam`) for model tuning. It and `opt_state` are donated; `frozen` is an argument of its
    own, never differentiated, donated or written. The step is pure and compiled once for every
    shape of batch. With a key dropout is active.

    Gradients of `microbatches` contiguous parts of the batch are summed, as the loss is a sum.

    With a `placement` the arguments lie on its devices (`parameters`, `slots` and `batch`, with the
    same number of microbatches), and what is returned lies where it came from. The program is the
    same: it divides its rows, and over a base that is whole on every device these exchange nothing
    but the sum of their gradients.

    >>> graph, prompt, frozen = nnx.split(model, PromptParam, ...)
    >>> train_step = make_train_step(graph, adafactor())
    >>> opt_state = adafactor().init(prompt, step=0)
    >>> prompt, opt_state, sums = train_step(prompt, opt_state, frozen, batch, jax.random.key(0))
    """
    loss = loss or Loss()
    if microbatches < 1:
        raise ConfigError(f"microbatches is {microbatches}, expected 1 or more.")

    def gradient(prompt, frozen, batch, key) -> tuple[nnx.State, Sums]:
        def differentiated(prompt):
            return loss(nnx.merge(graph, prompt, frozen)(batch, key=key), batch)

        grads, sums = jax.grad(differentiated, has_aux=True)(prompt)
        return grads, sums

    def train_step(prompt, opt_state, frozen, batch, key):
        if microbatches == 1:
            grads, sums = gradient(prompt, frozen, batch, key)
        else:
            parts = _microbatches(batch, microbatches, 1 if placement is None else placement.rows)
            keys = None if key is None else jax.random.split(key, microbatches)

            def accumulate(total, part):
                return jax.tree.map(jnp.add, total, gradient(prompt, frozen, *part)), None

            shapes = jax.eval_shape(gradient, prompt, frozen, *jax.tree.map(_first, (parts, keys)))
            zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
            (grads, sums), _ = jax.lax.scan(accumulate, zeros, (parts, keys))
        updates, opt_state = optimizer.transform.update(grads, opt_state, prompt)
        updated: Any = optax.apply_updates(prompt, updates)  # a tree like `prompt`
        if placement is None:
            return updated, opt_state, sums
        # Not left to the compiler, which would choose what suits this one program.
        slots = placement.slots(opt_state, updated)
        return placement.parameters(updated), slots, placement.replicated(sums)

    return jax.jit(train_step, donate_argnums=(0, 1))


def make_eval_step(graph: nnx.GraphDef, *, loss: Loss | None = None) -> EvalStep:
    """Returns `eval_step(prompt, frozen, batch) -> sums`: the loss without dropout, no update."""
    loss = loss or Loss()

    def eval_step(prompt, frozen, batch):
        return loss(nnx.merge(graph, prompt, frozen)(batch), batch)[1]

    return jax.jit(eval_step)


def _microbatches(batch: Batch, microbatches: int, devices: int) -> Batch:
    """Returns the batch in parts, of each the rows of all devices (see `Placement.batch`)."""
    if batch.size % (microbatches * devices):
        raise ConfigError(
            f"A batch of {batch.size} examples does not divide into {microbatches} microbatches. "
            f"Choose a BATCH_SIZE that is a multiple of {microbatches}, or another number of "
            "microbatches."
        )

    def divide(rows: jax.Array) -> jax.Array:
        by_device = rows.reshape(devices, microbatches, -1, *rows.shape[1:])
        return by_device.swapaxes(0, 1).reshape(microbatches, -1, *rows.shape[1:])

    return jax.tree.map(divide, batch)


def _first(x: jax.Array) -> jax.Array:
    return x[0]
