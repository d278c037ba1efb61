"""Arrays as int8 with float32 scales beside them: `integers * scale`, a quarter of float32.

The rounding is that of `model.quantization`, in numpy: a file must not depend on the device of who
writes it. As XLA does, it divides by multiplying with an inverse. The scale that is kept is the one
that `integers * scale` has, which may lie some units in the last place beside the one that they
were rounded with. So what was packed once is packed to the same bytes again, and quantizing it
changes nothing.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Int

from prompt_tuning.checkpoints import mapping
from prompt_tuning.checkpoints.containers.stored import Index, Stored
from prompt_tuning.errors import CheckpointError
from prompt_tuning.model.quantization import LARGEST

INT8 = "int8"
# Behind the name of an array: its scales.
SCALE = ".scale"


def has_scales(name: str) -> bool:
    """Whether an array is packed: kernels and the token table; the rest is small."""
    return name == mapping.EMBEDDING or name.endswith("/kernel")


def scales(values: Float[np.ndarray, "..."], name: str) -> Float[np.ndarray, "..."]:
    """Returns what to round with: a scale for each row of the token table, or output of a kernel.

    Raises:
        CheckpointError: a value is not finite.
    """
    largest = np.max(np.abs(values), axis=_shared(name, values.ndim), initial=0.0)
    if not np.isfinite(largest).all():
        raise CheckpointError(
            f"{name!r} holds values that are not finite, which int8 cannot: choose "
            "--dtype=float32, or a checkpoint from before the model diverged."
        )
    return _scale_of(largest.astype(np.float32))


def settled(scale: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Returns the nearest scales that rounded values have again: they are kept."""
    while np.any(scale != (again := _scale_of(scale * np.float32(LARGEST[INT8])))):
        scale = again
    return scale


def _scale_of(largest: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Returns the scale that takes a value to 127."""
    scale = largest * (np.float32(1.0) / np.float32(LARGEST[INT8]))
    # A row of zeros stays one, and so does what is too small for an inverse.
    return np.where(scale < np.finfo(np.float32).tiny, np.float32(1.0), scale)


def rounded(
    values: Float[np.ndarray, "..."], scale: Float[np.ndarray, "..."], name: str
) -> Int[np.ndarray, "..."]:
    """Returns the integers nearest to the values."""
    inverse = np.expand_dims(np.float32(1.0) / scale, _shared(name, values.ndim))
    return np.rint(values * inverse).astype(INT8)


def values_of(
    integers: Int[np.ndarray, "..."], scale: Float[np.ndarray, "..."], name: str
) -> Float[np.ndarray, "..."]:
    """Undoes `rounded`, but for what it has rounded."""
    return integers.astype(np.float32) * np.expand_dims(scale, _shared(name, integers.ndim))


def pack(one: Stored, scale: Float[np.ndarray, "..."], name: str) -> Stored:
    """Returns the integers of an array that is not in memory."""

    def read(index: Index) -> np.ndarray:
        return rounded(one.read(index), scale[_of_scale(index, name)], name)

    return dataclasses.replace(one, dtype=np.dtype(INT8), read=read)


def unpack(tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    """Returns the arrays of a file without their scales, those that are int8 there in float32.

    Raises:
        CheckpointError: integers or scales alone, or of shapes that do not belong together.
    """
    found = {}
    for name, one in tensors.items():
        beside = tensors.get(f"{name}{SCALE}")
        if one.dtype == np.int8 and has_scales(name) and len(one.shape) > 1:
            found[name] = _unpacked(one, beside, name)
        elif beside is not None or not (name.endswith(SCALE) and name[: -len(SCALE)] in tensors):
            found[name] = one
    return found


def _unpacked(integers: Stored, scale: Stored | None, name: str) -> Stored:
    shape = list(integers.shape)
    del shape[_shared(name, len(shape))]
    if scale is None or scale.dtype != np.float32 or scale.shape != tuple(shape):
        there = "none" if scale is None else f"{scale.dtype} of shape {scale.shape}"
        raise CheckpointError(
            f"{integers.where} is int8 of shape {integers.shape} and needs scales, "
            f"{name + SCALE!r}, which are float32 of shape {tuple(shape)}; there is {there}."
        )

    def read(index: Index) -> np.ndarray:
        return values_of(integers.read(index), scale.read(_of_scale(index, name)), name)

    return dataclasses.replace(integers, dtype=np.dtype(np.float32), read=read)


def _of_scale(index: Index, name: str) -> Index:
    along = list(index)
    del along[_shared(name, len(along))]
    return tuple(along)


def _shared(name: str, dimensions: int) -> int:
    """The axis along which values share a scale: of a kernel its inputs."""
    return dimensions - (1 if name == mapping.EMBEDDING else 2)
