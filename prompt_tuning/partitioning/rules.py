"""Along which axis of the mesh a dimension lies: t5x's rules, from the names of dimensions.

The mesh has the axes `data`, whose devices have different examples, and `model`, whose devices
hold one copy of the model together.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

from jax.sharding import PartitionSpec

from prompt_tuning.errors import ConfigError, DeviceError

DATA = "data"
MODEL = "model"
BATCH = "batch"

Rules = tuple[tuple[str, str | None], ...]

# The part of the table that depends on nothing. A name without a rule is not divided either.
_ALWAYS: Rules = (
    (BATCH, DATA),
    ("vocab", MODEL),
    ("mlp", MODEL),
    ("heads", MODEL),
    ("kv", None),
    ("joined_kv", MODEL),
)
# By the dimensions in which activations and parameters are divided. The width is last in each: a
# kernel gives `model` to its other dimension first, and the width gets what is left.
_WIDTH: dict[tuple[int, int], Rules] = {
    (1, 1): (("embed", None),),
    (2, 1): (("embed", MODEL),),
    (1, 2): (("embed", DATA),),
    (2, 2): (("embed", MODEL), ("embed", DATA)),
}
_WHOLE: Rules = tuple(
    (name, None)
    for name in (
        "relpos_buckets",
        "abspos_buckets",
        "length",
        "layers",
        "stack",
        "mlp_activations",
        "prompts",
        "prompt",
        "prompt_embed",
    )
)


def standard_logical_axis_rules(
    *, activation_partitioning_dims: int = 1, parameter_partitioning_dims: int = 1
) -> Rules:
    """Returns t5x's rules of this name, those of prompts included.

    Raises:
        ConfigError: a number that is neither 1 nor 2.
    """
    dims = (activation_partitioning_dims, parameter_partitioning_dims)
    if dims not in _WIDTH:
        raise ConfigError(
            f"activation_partitioning_dims is {dims[0]!r} and parameter_partitioning_dims "
            f"{dims[1]!r}, expected 1 or 2 for each (partitioning.Partitioning)."
        )
    return (*_ALWAYS, *_WIDTH[dims], *_WHOLE)


def partition_spec(axes: Sequence[str], rules: Rules, mesh: Mapping[str, int]) -> PartitionSpec:
    """Returns the axis of the mesh for every dimension of an array.

    Each rule in its turn gives its axis to the dimension of its name, unless either has been given
    away before; so a collision is won by the first rule. An axis of one device divides nothing.

    >>> partition_spec(("embed", "mlp"), standard_logical_axis_rules(), {"data": 4, "model": 2})
    PartitionSpec(None, 'model')
    """
    given: dict[int, str | None] = {}
    for name, axis in rules:
        if name in axes and (axis is None or axis not in given.values()):
            given.setdefault(axes.index(name), axis)
    divided = {i: axis for i, axis in given.items() if axis is not None and mesh[axis] > 1}
    return PartitionSpec(*(divided.get(i) for i in range(len(axes))))


def check_sizes(
    parameters: Iterable[tuple[str, Sequence[str], Sequence[int]]],
    rules: Rules,
    mesh: Mapping[str, int],
) -> None:
    """Raises `DeviceError` if a parameter does not divide into equal parts.

    Nothing is filled up and nothing left whole instead: as in t5x, the rules are what happens.

    Args:
        parameters: name, axes and shape of each.
        rules: what is divided.
        mesh: the number of devices on each of its axes.
    """
    divided = [
        (name, dimension, size, axis)
        for name, axes, shape in parameters
        for dimension, size, axis in zip(
            axes, shape, partition_spec(axes, rules, mesh), strict=True
        )
        if axis is not None
    ]
    for name, dimension, size, axis in divided:
        if size % mesh[axis]:
            common = math.gcd(*(size for *_, size, other in divided if other == axis))
            possible = ", ".join(str(n) for n in range(1, common + 1) if common % n == 0)
            setting = "NUM_PARTITIONS" if axis == MODEL else f"the number of devices on {DATA!r}"
            raise DeviceError(
                f"Parameter {name!r} has {size} {dimension!r}, which do not divide among the "
                f"{mesh[axis]} devices on the axis {axis!r} of the mesh. Set {setting} to one of "
                f"{possible}, which all sizes of this model are multiples of."
            )
