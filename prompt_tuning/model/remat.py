"""Rematerialisation policies by name: what a block keeps for its backward pass.

A frozen layer needs no weight gradient, hence no matmul input: keeping the projections' outputs
is enough to recompute only norms, scores, softmax and activation (`projections`).
"""

from collections.abc import Callable

import jax
from jax.ad_checkpoint import checkpoint_name

from prompt_tuning.errors import ConfigError, nearest

# The outputs that `projections` keeps; blocks mark them with `keep`.
PROJECTIONS = ("query", "key", "value", "attention_out", "wi")

POLICIES: dict[str, Callable | None] = {
    "none": None,
    "minimal": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "projections": jax.checkpoint_policies.save_only_these_names(*PROJECTIONS),
    "full": jax.checkpoint_policies.nothing_saveable,
}


def keep(x: jax.Array, name: str) -> jax.Array:
    """Marks an array that the policy `projections` keeps."""
    assert name in PROJECTIONS
    return checkpoint_name(x, name)


def remat_policy(name: str) -> Callable | None:
    """Returns the policy for `jax.checkpoint`, None for no rematerialisation.

    `none` keeps everything; `minimal` (t5x's name) keeps every matmul without batch dimensions;
    `projections` keeps the outputs named in `PROJECTIONS`; `full` keeps only each block's input.

    Raises:
        ConfigError: an unknown name.
    """
    if name not in POLICIES:
        raise ConfigError(
            f"T5Config(remat={name!r}): unknown rematerialisation policy, known are "
            f"{', '.join(POLICIES)}.{nearest(str(name), POLICIES)}"
        )
    return POLICIES[name]


def rematerialised(function: Callable, name: str) -> Callable:
    """Wraps the body of a scan over layers so that it keeps what the named policy says."""
    policy = remat_policy(name)
    if policy is None:
        return function
    # Inside a scan XLA cannot merge the recomputation with the forward pass anyway.
    return jax.checkpoint(function, policy=policy, prevent_cse=False)
