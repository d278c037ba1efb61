"""Along which axis of the mesh a dimension lies: t5x's rules, from the names of dimensions.

The mesh has the axes `data` and `fsdp`, whose devices have different examples, and `model`, whose
devices compute one example together. Along `data` parameters are whole; along `fsdp` and `model`
they are divided, along `fsdp` only until their turn comes.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

from jax.sharding import PartitionSpec

from prompt_tuning.errors import ConfigError, DeviceError

DATA = "data"
FSDP = "fsdp"
MODEL = "model"
BATCH = "batch"
# What says how long an axis is.
_SETTINGS = {DATA: "the number of devices", FSDP: "FSDP", MODEL: "NUM_PARTITIONS"}

# One axis of the mesh, several of them together, or none.
MeshAxes = str | tuple[str, ...] | None
# By the name of a dimension, or by its name and that of another dimension of the same array.
Rules = tuple[tuple[str | tuple[str, str], MeshAxes], ...]

# The part of the table that depends on nothing. A name without a rule is not divided either.
_ALWAYS: Rules = (
    (BATCH, (DATA, FSDP)),
    ("vocab", MODEL),
    ("mlp", MODEL),
    ("heads", MODEL),
    ("kv", None),
    ("joined_kv", MODEL),
    # Ours: kernels only. A divided token table would have activations exchanged to look tokens up
    # and to compare with them, and a norm is too small to be worth a message.
    (("embed", "mlp"), FSDP),
    (("embed", "joined_kv"), FSDP),
)
# By the dimensions in which activations and parameters are divided. The width is last in each: a
# kernel gives `model` to its other dimension first, and the width gets what is left.
_WIDTH: dict[tuple[int, int], Rules] = {
    (1, 1): (("embed", None),),
    (2, 1): (("embed", MODEL),),
    (1, 2): (("embed", FSDP),),
    (2, 2): (("embed", MODEL), ("embed", FSDP)),
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
    """Returns t5x's rules of this name, those of prompts and of FSDP included.

    Where t5x says `data` for parameters it is `fsdp` here, which then takes all devices of t5x's
    `data` (see `Partitioning.placement`).

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
    """Returns the axes of the mesh for every dimension of an array.

    Each rule in its turn gives its axes to the dimension of its name, unless either has been given
    away before; so a collision is won by the first rule. An axis of one device divides nothing.

    >>> mesh = {"data": 4, "fsdp": 1, "model": 2}
    >>> partition_spec(("embed", "mlp"), standard_logical_axis_rules(), mesh)
    PartitionSpec(None, 'model')
    """
    given: dict[int, tuple[str, ...]] = {}
    for dimensions, axis in rules:
        names = (dimensions,) if isinstance(dimensions, str) else dimensions
        wanted = (axis,) if isinstance(axis, str) else axis or ()
        taken = {one for others in given.values() for one in others}
        if set(names) <= set(axes) and not taken & set(wanted):
            given.setdefault(axes.index(names[0]), wanted)
    divided = [[one for one in given.get(i, ()) if mesh[one] > 1] for i in range(len(axes))]
    return PartitionSpec(*(_together(one) for one in divided))


def _together(axes: Sequence[str]) -> MeshAxes:
    return (axes[0] if len(axes) == 1 else tuple(axes)) if axes else None


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
        along = (axis,) if isinstance(axis, str) else axis
        devices = math.prod(mesh[one] for one in along)
        if size % devices:
            common = math.gcd(*(size for *_, size, other in divided if other == axis))
            possible = ", ".join(str(n) for n in range(1, common + 1) if common % n == 0)
            settings = " x ".join(_SETTINGS[one] for one in along)
            raise DeviceError(
                f"Parameter {name!r} has {size} {dimension!r}, which do not divide among the "
                f"{devices} devices on the axis {' x '.join(map(repr, along))} of the mesh. Set "
                f"{settings} to one of {possible}, which all sizes of this model are multiples of."
            )
