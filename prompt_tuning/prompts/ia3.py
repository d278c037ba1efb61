"""IA3 (Liu et al., 2022): learned factors for keys, values and the hidden features of the MLPs."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from prompt_tuning.prompts.prompt import PromptParam


class Scale(nnx.Module):
    """One learned factor for each feature of a layer; all begin at 1, which changes nothing.

        T5(config, scales=Scale, rngs=rngs)

    The model's constructor calls it for the keys and values of every attention (a factor for each
    head and feature) and for the hidden features of every MLP, each time for all layers of a stack.

    Args:
        shape: layers first, then the features that are scaled.
        axes: their names.
    """

    def __init__(self, *, shape: tuple[int, ...], axes: tuple[str, ...]) -> None:
        self.ia3_scaling = PromptParam(jnp.ones(shape, jnp.float32), axes=axes)

    def __call__(self, x: Float[Array, "B T *features"]) -> Float[Array, "B T *features"]:
        """Scales the features of one layer; inside a stack the axis of layers is gone."""
        # In float32, so that the factors' gradient is summed over all positions in float32.
        factors = self.ia3_scaling[...][None, None]
        return (x.astype(jnp.float32) * factors).astype(x.dtype)
