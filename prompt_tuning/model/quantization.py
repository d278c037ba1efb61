"""Frozen kernels as integers and scales: a half or a quarter of bfloat16's memory.

Weight-only and symmetric: a kernel is `integers * scale`, with one scale for each output, or for
each output and group of inputs, that takes the largest weight to the largest integer. Activations
keep their dtype. Scales are float32, so that no error of their own is stored: for each output they
are next to nothing, for groups of 64 an eighth of int4's bytes. Over bfloat16 activations a group's
scale is rounded where it is used, as every weight is there.

Backwards only the gradient of the input exists, and all that it keeps is integers and scales. Plain
differentiation would keep the float kernels of all layers, more than was saved.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from prompt_tuning.errors import ConfigError, nearest
from prompt_tuning.model.products import contract

# By the name of the dtype, the largest integer. -8 and -128 are not used, for symmetry.
LARGEST = {"int8": 127, "int4": 7}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantization:
    """How kernels are stored.

    Attributes:
        dtype: `int8` or `int4`; JAX packs two int4 in a byte.
        group: inputs that share a scale; None for all inputs of an output. Only int4 needs it.
    """

    dtype: str
    group: int | None = None

    def __post_init__(self):
        if self.dtype not in LARGEST:
            raise ConfigError(
                f"T5Config(quantization={self.dtype!r}): expected one of {tuple(LARGEST)} or None."
                f"{nearest(str(self.dtype), LARGEST)}"
            )
        if self.group is not None and self.group < 1:
            raise ConfigError(
                f"T5Config(quantization_group={self.group}): expected the number of inputs that "
                "share a scale, such as 64, or None for one scale for each output."
            )

    def __str__(self):
        return self.dtype if self.group is None else f"{self.dtype} in groups of {self.group}"


@jax.jit(static_argnames="how")
def quantize(
    kernel: Float[Array, "*L I O"], how: Quantization
) -> tuple[Int[Array, "*L I O"], Float[Array, "..."]]:
    """Returns integers and their scales, `[*L O]`, or `[*L I/group O]` with groups."""
    *layers, inputs, outputs = kernel.shape
    groups = kernel.astype(jnp.float32).reshape(*layers, -1, how.group or inputs, outputs)
    scale = jnp.max(jnp.abs(groups), axis=-2, keepdims=True) / LARGEST[how.dtype]
    # A group of zeros stays one.
    scale = jnp.where(scale == 0.0, 1.0, scale)
    integers = jnp.round(groups / scale).astype(how.dtype).reshape(kernel.shape)
    return integers, scale.squeeze((-3, -2) if how.group is None else -2)


def dequantize(
    integers: Int[Array, "I O"], scale: Float[Array, "*G O"], dtype: Any
) -> Float[Array, "I O"]:
    """Returns the kernel of one layer that integers and scales stand for."""
    groups = integers.reshape(*(scale.shape[:-1] or (1,)), -1, integers.shape[-1]).astype(dtype)
    return (groups * scale.astype(dtype).reshape(-1, 1, scale.shape[-1])).reshape(integers.shape)


@jax.custom_vjp
def quantized_matmul(
    x: Float[Array, "B T I"], integers: Int[Array, "I O"], scale: Float[Array, "*G O"]
) -> Float[Array, "B T O"]:
    """Multiplies by a quantized kernel; differentiable in `x` only.

    With a scale for each output the product is scaled, not the kernel, so that the integers go into
    the product as they are. With groups the kernel of this one layer exists in `x`'s dtype.
    """
    if scale.ndim == 1:
        return _scaled(contract("BTI,IO->BTO", x, integers.astype(x.dtype)), scale)
    return contract("BTI,IO->BTO", x, dequantize(integers, scale, x.dtype))


def _forward(x, integers, scale):
    return quantized_matmul(x, integers, scale), (integers, scale)


def _backward(kept, gradient):
    integers, scale = kept
    if scale.ndim == 1:
        scaled = _scaled(gradient, scale)
        return contract("BTO,IO->BTI", scaled, integers.astype(gradient.dtype)), None, None
    kernel = dequantize(integers, scale, gradient.dtype)
    return contract("BTO,IO->BTI", gradient, kernel), None, None


quantized_matmul.defvjp(_forward, _backward)


def _scaled(x: Float[Array, "B T O"], scale: Float[Array, " O"]) -> Float[Array, "B T O"]:
    """Scales in float32 what a product has rounded, so that devices exchange it in `x`'s dtype."""
    return (x.astype(jnp.float32) * scale[None, None]).astype(x.dtype)
