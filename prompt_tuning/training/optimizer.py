"""Adafactor as t5x runs it: optax's, per matrix, counting the global step."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from prompt_tuning.errors import ConfigError
from prompt_tuning.training.schedules import Schedule, learning_rate


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
    """An optax transformation together with what to say of it.

    Attributes:
        transform: changes gradients into updates.
        learning_rate: that it applies, for the logs.
        about: which optimizer it is, in a few words.
        relative: whether the learning rate is a fraction of each matrix's own size; None if nobody
            knows.
        first_step: the global step before which it computes nothing that makes sense.
    """

    transform: optax.GradientTransformation
    learning_rate: Schedule
    about: str = "an optimizer of your own"
    relative: bool | None = None
    first_step: int = 0

    def init(self, params: nnx.State, *, step: int) -> Any:
        """Returns fresh slots whose counters stand at the global `step`.

        A prompt trained over a checkpoint of step 1,100,000 starts there, as in the original. That
        is part of the method: the second moment starts at 0 with a decay close to 1, so that the
        update clipping binds and every update has RMS `learning_rate` (Lester et al. tuned 0.3
        under exactly this).

        Raises:
            ConfigError: `step` is before `first_step`.
        """
        if step < self.first_step:
            raise ConfigError(
                f"The optimizer's step_offset is {self.first_step:,}, but training starts at step "
                f"{step:,}: its second moments would not be numbers. Set step_offset to the step "
                "of the base at most; examples call it BASE_STEP."
            )
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: jnp.full_like(leaf, step) if _is_counter(path) else leaf,
            self.transform.init(params),
        )


def adafactor(
    schedule: Schedule | None = None,
    *,
    decay_rate: float = 0.8,
    step_offset: int = 0,
    multiply_by_parameter_scale: bool = False,
    weight_decay_rate: float | None = 1e-5,
    clipping_threshold: float | None = 1.0,
    min_dim_size_to_factor: int = 128,
    momentum: float | None = None,
) -> Optimizer:
    """Adafactor (Shazeer & Stern, 2018) with the defaults of prompt tuning.

    Per matrix, at global step s (t5x `adafactor.py`):

        beta = 1 - (s - step_offset + 1) ** -decay_rate
        v    = beta * v + (1 - beta) * (g**2 + 1e-30)        as row and column means if factored
        y    = g / sqrt(v)
        y    = y / max(1, rms(y) / clipping_threshold)
        p    = (1 - weight_decay_rate) * p - schedule(s) * y

    The weight decay is absolute, not a fraction of the learning rate. A matrix is factored when
    both of its dimensions reach `min_dim_size_to_factor`: a prompt of 100 vectors is not, one of
    150 is. Full model tuning wants `multiply_by_parameter_scale=True` and no weight decay (t5x
    `finetune.gin`), which turns the learning rate into a fraction of each matrix's RMS.

    Args:
        schedule: step -> learning rate; the constant 0.3 if not given.
        step_offset: subtracted from the step in `beta`; the base's step makes it start afresh, and
            a later one is refused when slots are made.
        momentum: decay of a first moment; None keeps none.
    """
    schedule = schedule or learning_rate("constant", base_learning_rate=0.3)
    transform = optax.adafactor(
        schedule,
        min_dim_size_to_factor=min_dim_size_to_factor,
        decay_rate=decay_rate,
        decay_offset=step_offset,
        multiply_by_parameter_scale=multiply_by_parameter_scale,
        clipping_threshold=clipping_threshold,
        momentum=momentum,
        weight_decay_rate=weight_decay_rate,
    )
    return Optimizer(
        transform=per_matrix(transform),
        learning_rate=schedule,
        about=(
            f"Adafactor, decay {decay_rate:g}, "
            f"{'with' if multiply_by_parameter_scale else 'no'} parameter scaling, "
            + (f"weight decay {weight_decay_rate:g}" if weight_decay_rate else "no weight decay")
        ),
        relative=multiply_by_parameter_scale,
        first_step=step_offset,
    )


def per_matrix(transform: optax.GradientTransformation) -> optax.GradientTransformation:
    """Applies a transformation to every matrix on its own, also those of a stack of layers.

    Adafactor reasons about matrices: what it factors, clips and scales by. A stacked parameter
    `[L, in, out]` is L matrices, as t5x stores them, and must be treated as L.
    """

    # The types are optax's: any tree. These trees are states, with a variable at every leaf.
    def init(params: Any) -> Any:
        return {
            name: _over_layers(variable, transform.init)(variable[...])
            for name, variable in _variables(params).items()
        }

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        if params is None:
            raise ValueError("per_matrix needs the parameters: call update(grads, state, params).")
        grads, slots, stepped = _variables(updates), {}, []
        for path, variable in nnx.to_flat_state(params):
            name = _name(path)
            step = _over_layers(variable, transform.update)
            change, slots[name] = step(grads[name][...], state[name], variable[...])
            stepped.append((path, variable.replace(change)))
        return nnx.from_flat_state(stepped), slots

    return optax.GradientTransformation(init, update)


def _variables(state: nnx.State) -> dict[str, nnx.Variable]:
    return {_name(path): variable for path, variable in nnx.to_flat_state(state)}


def _name(path: tuple) -> str:
    return "/".join(map(str, path))


def _over_layers(variable: nnx.Variable, function: Callable) -> Callable:
    stacked = variable.get_metadata("axes")[0] == "layers"
    return jax.vmap(function) if stacked else function


def _is_counter(path: tuple) -> bool:
    return getattr(path[-1], "name", None) == "count"
