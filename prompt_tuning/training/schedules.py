"""The learning-rate language of t5x: a product of named factors."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from prompt_tuning.errors import ConfigError, nearest

# optax calls it with a traced count, we with a number.
Schedule = Callable[[Any], Float[Array, ""]]


def learning_rate(
    factors: str = "constant",
    base_learning_rate: float = 0.5,
    warmup_steps: int = 1000,
    decay_factor: float = 0.5,
    steps_per_decay: int = 20000,
    steps_per_cycle: int = 100000,
    step_offset: int = 0,
    min_learning_rate: float = 1e-8,
) -> Schedule:
    """Returns the learning rate as a function of the step (t5x `create_learning_rate_scheduler`).

    `factors` names what is multiplied, separated by `*`, with s = max(0, step - step_offset):

    - `constant`: base_learning_rate
    - `linear_warmup`: min(1, s / warmup_steps)
    - `linear_decay`: base_learning_rate * min(s / warmup_steps,
      1 + decay_factor * (warmup_steps - s)); it contains `constant` and `linear_warmup`
    - `rsqrt_decay`: 1 / sqrt(max(s, warmup_steps))
    - `rsqrt_normalized_decay`: sqrt(warmup_steps) / sqrt(max(s, warmup_steps))
    - `decay_every`: decay_factor ** (s // steps_per_decay)
    - `cosine_decay`: (1 + cos(pi * c)) / 2, c the fraction of the cycle of `steps_per_cycle` steps
      that starts at warmup_steps

    The product is never below `min_learning_rate`. The step is the global one: after a checkpoint
    of step 1,100,000 a warm-up needs `step_offset=1_100_000`. The result is float32 and may be
    traced.

    >>> learning_rate("constant * linear_warmup", base_learning_rate=0.3, warmup_steps=10)(5)
    Array(0.15, dtype=float32)

    Raises:
        ConfigError: an unknown factor, or a factor that would divide by zero.
    """
    names = [name.strip() for name in factors.split("*")]

    def constant(s):
        return jnp.float32(base_learning_rate)

    def linear_warmup(s):
        return jnp.minimum(1.0, s / warmup_steps)

    def linear_decay(s):
        rise, fall = s / warmup_steps, 1.0 + decay_factor * (warmup_steps - s)
        return base_learning_rate * jnp.minimum(rise, fall)

    def rsqrt_decay(s):
        return 1.0 / jnp.sqrt(jnp.maximum(s, float(warmup_steps)))

    def rsqrt_normalized_decay(s):
        return jnp.sqrt(jnp.float32(warmup_steps)) * rsqrt_decay(s)

    def decay_every(s):
        return decay_factor ** jnp.floor(s / steps_per_decay)

    def cosine_decay(s):
        progress = jnp.maximum(0.0, (s - warmup_steps) / steps_per_cycle)
        return 0.5 * (1.0 + jnp.cos(jnp.pi * (progress % 1.0)))

    # Each factor with the setting it divides by.
    known = {
        "constant": (constant, None),
        "linear_warmup": (linear_warmup, "warmup_steps"),
        "linear_decay": (linear_decay, "warmup_steps"),
        "rsqrt_decay": (rsqrt_decay, "warmup_steps"),
        "rsqrt_normalized_decay": (rsqrt_normalized_decay, "warmup_steps"),
        "decay_every": (decay_every, "steps_per_decay"),
        "cosine_decay": (cosine_decay, "steps_per_cycle"),
    }
    divisors = {
        "warmup_steps": warmup_steps,
        "steps_per_decay": steps_per_decay,
        "steps_per_cycle": steps_per_cycle,
    }
    for name in names:
        if name not in known:
            raise ConfigError(
                f"Unknown learning-rate factor {name!r} in factors={factors!r}, expected "
                f"{', '.join(known)}, separated by '*'.{nearest(name, known)}"
            )
        divisor = known[name][1]
        if divisor is not None and divisors[divisor] <= 0:
            raise ConfigError(
                f"Learning-rate factor {name!r} divides by {divisor}, which is "
                f"{divisors[divisor]}. Set {divisor} above 0 or remove {name!r} from factors="
                f"{factors!r}."
            )

    def schedule(step: Int[Array, ""] | int) -> Float[Array, ""]:
        s = jnp.maximum(0, jnp.asarray(step, jnp.int32) - step_offset).astype(jnp.float32)
        rate = jnp.float32(1.0)
        for name in names:
            rate = rate * known[name][0](s)
        return jnp.maximum(rate, min_learning_rate)

    return schedule
