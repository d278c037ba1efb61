"""Products with kernels, each in the form for which the platform has fast units.

A CPU multiplies bfloat16 in units of its own (AMX, AVX-512 BF16) only where the sum is asked for in
float32; otherwise XLA widens both factors first. So that is asked for, forwards and backwards, and
the sum is rounded afterwards, as it is on an accelerator. There the products are left alone: what
devices exchange is a rounded sum, in half the bytes.
"""

import functools

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float


def product(x: Float[Array, "B T I"], kernel: Float[Array, "I O"]) -> Float[Array, "B T O"]:
    """Multiplies every position by a kernel, in `x`'s dtype."""
    kernel = kernel.astype(x.dtype)
    return _product(x, kernel) if x.dtype == jnp.bfloat16 else jnp.matmul(x, kernel)


def logits(hidden: Float[Array, "B U D"], kernel: Float[Array, "D V"]) -> Float[Array, "B U V"]:
    """Multiplies in float32, as t5x's `logits_dense` does.

    If `hidden` is of bfloat16, a CPU rounds both to that, as a TPU does to factors of float32.
    """
    wide = hidden.astype(jnp.float32), kernel.astype(jnp.float32)
    return _product(*wide) if hidden.dtype == jnp.bfloat16 else jnp.matmul(*wide)


def contract(equation: str, one: Float[Array, "..."], other: Float[Array, "..."]) -> jax.Array:
    """Returns the einsum of two arrays of one dtype in that dtype; it has no gradient."""
    if one.dtype != jnp.bfloat16:
        return jnp.einsum(equation, one, other)
    return _narrow(equation, one, other)


def _narrow(equation, one, other):
    def on_cpu(one, other):
        factors = one.astype(jnp.bfloat16), other.astype(jnp.bfloat16)
        wide = jnp.einsum(equation, *factors, preferred_element_type=jnp.float32)
        return wide.astype(one.dtype)

    anywhere = functools.partial(jnp.einsum, equation)
    return jax.lax.platform_dependent(one, other, cpu=on_cpu, default=anywhere)


@jax.custom_vjp
def _product(x, kernel):
    return _narrow("BTI,IO->BTO", x, kernel)


def _forward(x, kernel):
    # A frozen kernel has no gradient, for which `x` would be kept.
    kept = x.value if kernel.perturbed else None, kernel.value if x.perturbed else None
    return _product(x.value, kernel.value), kept


def _backward(kept, gradient):
    x, kernel = kept
    if isinstance(gradient, SymbolicZero):
        return None, None
    return (
        None if kernel is None else _narrow("BTO,IO->BTI", gradient, kernel),
        None if x is None else _narrow("BTI,BTO->IO", x, gradient),
    )


_product.defvjp(_forward, _backward, symbolic_zeros=True)
