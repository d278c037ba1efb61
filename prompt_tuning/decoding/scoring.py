"""How likely given answers are: one of each row, or the candidates of a classification."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from prompt_tuning.batch import PAD, Batch
from prompt_tuning.errors import ConfigError
from prompt_tuning.losses import token_losses
from prompt_tuning.model import T5

Inputs = Int[Array | np.ndarray, "B T"]
# A label set that all rows share, or the candidates of each row; rows of `PAD` fill a set up.
Candidates = Int[Array | np.ndarray, "C U"] | Int[Array | np.ndarray, "B C U"]

Score = Callable[[nnx.State, nnx.State, Batch], Float[Array, " B"]]
Rank = Callable[[nnx.State, nnx.State, Inputs, Candidates], Float[Array, "B C"]]


def score(model: T5, batch: Batch) -> Float[Array, " B"]:
    """Returns the log-probability of each row's target: a sum over its tokens, times their weights.

    Float32, without z-loss and without regard to length (t5x `score_batch`).
    """
    log_probs = token_log_probs(model(batch), jnp.asarray(batch.targets))
    return jnp.sum(log_probs * jnp.asarray(batch.weights).astype(jnp.float32), axis=1)


def token_log_probs(
    logits: Float[Array, "B U V"], targets: Int[Array, "B U"]
) -> Float[Array, "B U"]:
    """Returns the float32 log-probability of every target token; at padding it means nothing."""
    return -token_losses(logits, targets, z_loss=0.0)[0]


def rank(
    model: T5,
    inputs: Inputs,
    candidates: Candidates,
    *,
    normalize: bool = False,
    at_once: int | None = None,
) -> Float[Array, "B C"]:
    """Returns the log-probability of every candidate as the answer of every row, in float32.

    The encoder runs once for each row, and so do the decoder's keys and values over its output:
    they are not repeated for the candidates. One that is nothing but `PAD` is absent and scores
    -inf, so rows may have label sets of different sizes.

    Args:
        candidates: with their end tokens, as targets have them.
        normalize: divide by the number of tokens, end token included (the `length_normalize` of the
            original's perceptron, `normalize_by_target_length` of T5's `rank_classification`).
        at_once: score so many candidates at a time. Logits take B * C * U * V floats; None has
            them all, which is fastest where it fits.

    Raises:
        ConfigError: `at_once` is less than 1.
    """
    if at_once is not None and at_once < 1:
        raise ConfigError(f"at_once is {at_once}, expected 1 or more, or None for all candidates.")
    encoded = model.encode(jnp.asarray(inputs))
    cross = model.cross_keys_values(encoded)
    batch = inputs.shape[0]

    def log_probability(targets: Int[Array, "*B U"]) -> Float[Array, " B"]:
        targets = jnp.broadcast_to(targets, (batch, targets.shape[-1]))
        logits = model.decode(encoded, targets, cross=cross)
        said = targets != PAD
        total = jnp.sum(jnp.where(said, token_log_probs(logits, targets), 0.0), axis=1)
        length = jnp.sum(said, axis=1, dtype=jnp.float32)
        value = total / jnp.maximum(length, 1.0) if normalize else total
        return jnp.where(length > 0, value, -jnp.inf)

    # Candidates first. `vmap` leaves alone what does not depend on them: what was encoded.
    candidates = jnp.asarray(candidates)
    each = candidates if candidates.ndim == 2 else jnp.swapaxes(candidates, 0, 1)
    if at_once is None:
        return jax.vmap(log_probability, out_axes=1)(each)
    return jnp.swapaxes(jax.lax.map(log_probability, each, batch_size=at_once), 0, 1)


def make_score(graph: nnx.GraphDef) -> Score:
    """Returns `score(trainable, frozen, batch)`, compiled once for every shape of batch."""

    def compiled(trainable, frozen, batch):
        return score(nnx.merge(graph, trainable, frozen), batch)

    return jax.jit(compiled)


def make_rank(graph: nnx.GraphDef, *, normalize: bool = False, at_once: int | None = None) -> Rank:
    """Returns `rank(trainable, frozen, inputs, candidates)`, compiled once for every shape."""

    def compiled(trainable, frozen, inputs, candidates):
        model = nnx.merge(graph, trainable, frozen)
        return rank(model, inputs, candidates, normalize=normalize, at_once=at_once)

    return jax.jit(compiled)
