"""Cross-entropy with z-loss, summed over the target tokens of a batch."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from prompt_tuning.batch import PAD, Batch
from prompt_tuning.errors import ConfigError, nearest

_SPECIAL_FACTORS = ("NUM_REAL_TARGET_TOKENS", "NUM_TOTAL_TARGET_TOKENS", "AVERAGE_PER_SEQUENCE")


def token_losses(
    logits: Float[Array, "B U V"],
    targets: Int[Array, "B U"],
    *,
    z_loss: float = 1e-4,
    label_smoothing: float = 0.0,
) -> tuple[Float[Array, "B U"], Float[Array, "B U"]]:
    """Returns the loss of each token, z-loss included, and the z-loss alone, in float32.

    The z-loss is `z_loss * log(sum(exp(logits)))**2`: it keeps the logits from drifting. Label
    smoothing spreads `label_smoothing` evenly over the V - 1 wrong tokens and subtracts the entropy
    of that distribution, so that a perfect model has loss 0 (t5x `losses.py`).
    """
    logits = logits.astype(jnp.float32)
    # Everything is computed relative to the largest logit, so nothing overflows. The maximum is a
    # constant to the gradient: moving it changes no result.
    largest = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    shifted = logits - largest
    log_sum = jnp.log(jnp.sum(jnp.exp(shifted), axis=-1))
    z = z_loss * jnp.square(log_sum + jnp.squeeze(largest, axis=-1))

    # A masked sum instead of a gather: its gradient is not a scatter, and it stays local when V is
    # split over devices.
    vocabulary = jax.lax.broadcasted_iota(targets.dtype, logits.shape, dimension=2)
    is_target = vocabulary == targets[:, :, None]
    nll = log_sum - jnp.sum(jnp.where(is_target, shifted, 0.0), axis=-1)
    if label_smoothing:
        wrong = logits.shape[-1] - 1
        on, off = 1.0 - label_smoothing, label_smoothing / wrong
        entropy = -(on * math.log(on) + label_smoothing * math.log(off))
        all_nll = logits.shape[-1] * log_sum - jnp.sum(shifted, axis=-1)
        nll = (on - off) * nll + off * all_nll - entropy
    return nll + z, z


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss:
    """The training loss: a weighted sum over target tokens, as in t5x.

    `normalizing_factor` divides the sum. `None` leaves it a sum, so its gradient grows with the
    number of target tokens: harmless for Adafactor, which does not see the gradient's scale. A
    number divides by that number. Three names are computed from the batch:

    - `NUM_REAL_TARGET_TOKENS`: the sum of the weights;
    - `NUM_TOTAL_TARGET_TOKENS`: B * U, padding included, but not rows of nothing else;
    - `AVERAGE_PER_SEQUENCE`: the mean over examples of each one's weighted mean over tokens.

    The batch is whatever the call gets. When a step is split into microbatches each one computes
    its own factor and the results are *added*, so with a name the loss is about as many times
    larger as there are microbatches, and their tokens count differently. t5x does the same, and
    its trajectories are reproduced only this way.

    Raises:
        ConfigError: a normalizing factor that is neither a positive number nor one of the names, a
            negative `z_loss`, or a `label_smoothing` outside [0, 1).
    """

    z_loss: float = 1e-4
    label_smoothing: float = 0.0
    normalizing_factor: float | int | str | None = None

    def __post_init__(self) -> None:
        factor = self.normalizing_factor
        if isinstance(factor, str) and factor.upper() not in _SPECIAL_FACTORS:
            raise ConfigError(
                f"Loss.normalizing_factor is {factor!r}, expected None, a positive number or one "
                f"of {', '.join(_SPECIAL_FACTORS)}.{nearest(factor.upper(), _SPECIAL_FACTORS)}"
            )
        if isinstance(factor, float | int) and not factor > 0:
            raise ConfigError(
                f"Loss.normalizing_factor is {factor}, but the loss is divided by it: give a "
                "positive number, or None to keep the sum over tokens."
            )
        if not self.z_loss >= 0:
            raise ConfigError(f"Loss.z_loss is {self.z_loss}, expected 0 or more (usually 1e-4).")
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(
                f"Loss.label_smoothing is {self.label_smoothing}, expected 0 <= label_smoothing < "
                "1: it is the probability taken away from the target."
            )

    def __call__(
        self, logits: Float[Array, "B U V"], batch: Batch
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Returns the loss to differentiate and the sums from which every metric is finished.

        The sums are float32 scalars that add up over microbatches, devices and steps; what they
        become is in `training/metrics.py`. Counts are exact up to 2**24: add up longer intervals
        on the host, in float64.
        """
        inputs, targets = jnp.asarray(batch.inputs), jnp.asarray(batch.targets)
        # A row without a token is no example: it only fills the batch up, perhaps for a device.
        rows = _count(jnp.any(inputs != PAD, axis=1) | jnp.any(targets != PAD, axis=1))
        weights = jnp.asarray(batch.weights).astype(jnp.float32)
        weights, factor = self._normalized(weights, rows)
        loss, z = token_losses(
            logits, targets, z_loss=self.z_loss, label_smoothing=self.label_smoothing
        )
        total = jnp.sum(loss * weights) / factor
        sums = {
            "loss": total,
            "z_loss": jnp.sum(z * weights) / factor,
            "correct": _count((jnp.argmax(logits, axis=-1) == targets) & (weights != 0)),
            "predicted": _count(weights != 0),
            "weights": jnp.sum(weights),
            **_occupancy("decoder_target_tokens", targets, rows),
            **_occupancy("encoder_input_tokens", inputs, rows),
        }
        return total, sums

    def _normalized(
        self, weights: Float[Array, "B U"], rows: Float[Array, ""]
    ) -> tuple[Float[Array, "B U"], Float[Array, ""] | float]:
        """Returns the weights that count and what the weighted sum is divided by."""
        match self.normalizing_factor:
            case None:
                return weights, 1.0
            case str() as name if name.upper() == "NUM_REAL_TARGET_TOKENS":
                return weights, _or_one(jnp.sum(weights))
            case str() as name if name.upper() == "NUM_TOTAL_TARGET_TOKENS":
                return weights, _or_one(rows * weights.shape[1])
            case str():
                weights = weights / _or_one(jnp.sum(weights, axis=1, keepdims=True))
                return weights, _or_one(jnp.sum(weights))
            case number:
                return weights, float(number)


def _occupancy(
    feature: str, tokens: Int[Array, "B S"], rows: Float[Array, ""]
) -> dict[str, Float[Array, ""]]:
    """Counts the real tokens, all positions and the non-empty sequences of one side."""
    real = tokens != PAD
    return {
        f"{feature}/real": _count(real),
        f"{feature}/all": rows * tokens.shape[1],
        f"{feature}/sequences": _count(jnp.any(real, axis=1)),
    }


def _count(condition: Bool[Array, "..."]) -> Float[Array, ""]:
    return jnp.sum(condition, dtype=jnp.float32)


def _or_one(divisor: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Keeps 0 / 0 out: rows and microbatches of nothing but padding have loss 0."""
    return jnp.where(divisor == 0, 1.0, divisor)
