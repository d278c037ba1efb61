"""Parameters by name: the view of a model's state that checkpoints, hashes and reports share."""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from prompt_tuning.errors import CheckpointError, nearest

# Behind the name of a quantized kernel: its scale.
SCALE = "_scale"


def named(state: nnx.State) -> dict[str, Any]:
    """Returns the leaves of a split state by path, as in `encoder/layers/mlp/wo/kernel`.

    They are arrays, or what `jax.eval_shape` and the like put in the place of arrays.
    """
    return {"/".join(map(str, path)): leaf.get_value() for path, leaf in nnx.to_flat_state(state)}


def axes(state: nnx.State) -> dict[str, tuple[str, ...]]:
    """Returns the names of every parameter's dimensions."""
    return {
        "/".join(map(str, path)): leaf.get_metadata("axes")
        for path, leaf in nnx.to_flat_state(state)
    }


def replaced(state: nnx.State, arrays: Mapping[str, jax.Array | np.ndarray]) -> nnx.State:
    """Returns the state with every array replaced by the one of the same name.

    NNX's own `update` accepts wrong shapes, wrong dtypes and unknown names in silence.

    Raises:
        CheckpointError: a name is missing or left over, or a shape differs.
    """
    flat = list(nnx.to_flat_state(state))
    check_names(
        found=arrays, wanted=["/".join(map(str, path)) for path, _ in flat], where="the parameters"
    )
    new = []
    for path, leaf in flat:
        name = "/".join(map(str, path))
        array = arrays[name]
        if array.shape != leaf.shape:
            raise CheckpointError(
                f"Parameter {name!r} has shape {tuple(array.shape)}, the model needs "
                f"{tuple(leaf.shape)}. Choose the checkpoint of this model size, or the size of "
                "this checkpoint."
            )
        new.append((path, leaf.replace(jax.numpy.asarray(array, leaf.dtype))))
    return nnx.from_flat_state(new)


def check_names(*, found: Iterable[str], wanted: Iterable[str], where: str) -> None:
    """Raises `CheckpointError` naming what is missing or left over, with the nearest names."""
    found, wanted = set(found), set(wanted)
    missing, surplus = sorted(wanted - found), sorted(found - wanted)
    if not missing and not surplus:
        return
    lines = [f"missing {name!r}.{nearest(name, surplus)}" for name in missing[:5]]
    lines += [f"left over {name!r}.{nearest(name, missing)}" for name in surplus[:5]]
    raise CheckpointError(
        f"The names in {where} do not match the model: {len(missing)} missing, "
        f"{len(surplus)} left over.\n  " + "\n  ".join(lines)
    )


class Fingerprint:
    """SHA-256 of a model's values by name, taken in whatever order they come.

    Layers count one by one, and 16-bit values as the float32 they are, so that the same model has
    the same fingerprint in every format it is stored in, stacked or not.

    >>> fingerprint = Fingerprint()
    >>> fingerprint.add("encoder/encoder_norm/scale", scale)
    >>> fingerprint.hexdigest()
    """

    # Values are widened and hashed so many at a time, which keeps the copy small.
    CHUNK = 1 << 22

    def __init__(self):
        self._lines: dict[str, str] = {}

    def add(self, name: str, array: jax.Array | np.ndarray) -> None:
        """Adds one parameter under t5x's name, or a stack of them under ours."""
        stack, stacked, rest = name.partition("/layers/")
        if stacked:
            for i in range(len(array)):
                self._add(f"{stack}/layers_{i}/{rest}", np.asarray(array[i]))
        else:
            self._add(name, np.asarray(array))

    def _add(self, name: str, array: np.ndarray) -> None:
        dtype = np.dtype(np.float32) if array.dtype.itemsize == 2 else array.dtype
        digest = hashlib.sha256()
        rows = max(1, self.CHUNK // max(1, array[:1].size))
        for start in range(0, len(array), rows):
            digest.update(np.ascontiguousarray(array[start : start + rows], dtype).data)
        self._lines[name] = f"{name} {dtype} {array.shape} {digest.hexdigest()}\n"

    def hexdigest(self) -> str:
        lines = "".join(self._lines[name] for name in sorted(self._lines))
        return hashlib.sha256(lines.encode()).hexdigest()


def fingerprint(arrays: Mapping[str, jax.Array | np.ndarray]) -> str:
    """Returns the `Fingerprint` of all arrays, wherever they lie."""
    whole = Fingerprint()
    for name, array in arrays.items():
        whole.add(name, array)
    return whole.hexdigest()


def count(state: nnx.State) -> int:
    """Returns the number of scalars, the scales of quantized kernels not counted."""
    return sum(array.size for name, array in named(state).items() if not name.endswith(SCALE))


def nbytes(state: nnx.State) -> int:
    """Returns the number of bytes of all arrays, two int4 in each."""
    return sum(array.size * _bits(array.dtype) for array in named(state).values()) // 8


def _bits(dtype: Any) -> int:
    # NumPy, which has no such type, says that an int4 has a byte.
    integer = jax.numpy.issubdtype(dtype, jax.numpy.integer)
    return jax.numpy.iinfo(dtype).bits if integer else np.dtype(dtype).itemsize * 8


def table(state: nnx.State) -> str:
    """Returns one line for every parameter and the total, as in t5x's `model-info.txt`."""
    lines = []
    for path, leaf in nnx.to_flat_state(state):
        shape = ", ".join(
            f"{axis}={size}"
            for axis, size in zip(leaf.get_metadata("axes"), leaf.shape, strict=True)
        )
        name = "/".join(map(str, path))
        lines.append(f"Variable {name:<70} size {leaf.size:<12} shape ({shape})")
    return "\n".join([*lines, f"Total number of parameters: {count(state)}", ""])
