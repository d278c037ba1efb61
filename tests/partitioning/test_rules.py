import re

import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from prompt_tuning.errors import ConfigError, DeviceError
from prompt_tuning.model import T5, t5_config
from prompt_tuning.model.parameters import axes, count, named
from prompt_tuning.partitioning.rules import (
    check_sizes,
    partition_spec,
    standard_logical_axis_rules,
)
from tests.small_models import MODELS

POD = {"data": 4, "model": 2}
# What t5x's rules make of what its T5 has: its parameters and the stream between its layers. The
# columns are activations x parameters.
FACTS = {
    ("embed", "mlp"): "-m -m dm dm",
    ("mlp", "embed"): "m- m- md md",
    ("embed", "joined_kv"): "-m -m dm dm",
    ("joined_kv", "embed"): "m- m- md md",
    ("vocab", "embed"): "m- m- md md",
    ("embed", "vocab"): "-m -m dm dm",
    ("embed",): "- m d m",
    ("heads", "relpos_buckets"): "m- m- m- m-",
    ("layers", "heads", "kv"): "-m- -m- -m- -m-",
    ("prompt", "prompt_embed"): "-- -- -- --",
    ("batch", "length", "embed"): "d-- d-m d-- d-m",
    ("batch", "length", "mlp"): "d-m d-m d-m d-m",
}
DIMS = [(1, 1), (2, 1), (1, 2), (2, 2)]
AXES = {"-": None, "d": "data", "m": "model"}


def rules(activations=1, parameters=1):
    return standard_logical_axis_rules(
        activation_partitioning_dims=activations, parameter_partitioning_dims=parameters
    )


@pytest.mark.parametrize("dimensions", FACTS)
def test_the_rules_are_those_of_t5x(dimensions):
    for dims, fact in zip(DIMS, FACTS[dimensions].split(), strict=True):
        wanted = P(*(AXES[one] for one in fact))
        assert partition_spec(dimensions, rules(*dims), POD) == wanted, dims


@pytest.mark.parametrize("dims", [(0, 1), (1, 3), (2, 0)])
def test_other_numbers_of_dimensions_are_refused(dims):
    message = (
        f"activation_partitioning_dims is {dims[0]} and parameter_partitioning_dims {dims[1]}, "
        "expected 1 or 2 for each (partitioning.Partitioning)."
    )
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        rules(*dims)


def test_the_first_rule_wins_a_collision():
    twice = (("width", "model"), ("height", "model"), ("height", "data"))
    assert partition_spec(("height", "width"), twice, POD) == P("data", "model")
    never = (("width", None), ("width", "model"))
    assert partition_spec(("width",), never, POD) == P(None)


def test_an_axis_of_one_device_divides_nothing():
    for size, wanted in [(1, P(None, None)), (2, P(None, "model"))]:
        assert partition_spec(("embed", "mlp"), rules(), {"data": 8, "model": size}) == wanted


@pytest.mark.parametrize("name", MODELS)
def test_every_dimension_of_our_models_has_a_rule(name):
    config, methods = MODELS[name]
    model = nnx.eval_shape(lambda: T5(config, **methods, rngs=nnx.Rngs(0)))
    used = {one for names in axes(nnx.state(model)).values() for one in names}
    assert used <= {name for name, _ in rules()}


def shapes(name):
    """Returns the axes and shape of every parameter of a size, by name."""
    state = nnx.state(nnx.eval_shape(lambda: T5(t5_config(name), rngs=nnx.Rngs(0))))
    sizes = {name: leaf.shape for name, leaf in named(state).items()}
    return [(name, one, sizes[name]) for name, one in axes(state).items()], count(state)


@pytest.mark.parametrize("dims", DIMS)
def test_xxl_divides_as_the_original_command_asks(dims):
    """`model_parallel_submesh="(4, 4, 1, 2)"` makes 32 partitions, here of 64 devices."""
    parameters, total = shapes("t5_1_1_xxl")
    mesh = {"data": 2, "model": 32}
    check_sizes(parameters, rules(*dims), mesh)
    held = sum(
        np.prod(shape, dtype=np.int64)
        // np.prod([mesh[axis] for axis in partition_spec(names, rules(*dims), mesh) if axis])
        for _, names, shape in parameters
    )
    # Norms apart, which some rules leave whole: half a million numbers on every device.
    assert held == pytest.approx(total / (64 if dims[1] == 2 else 32), rel=2e-3)


def test_a_size_that_does_not_divide_is_named_with_what_would():
    parameters, _ = shapes("t5_1_1_small")
    message = (
        "Parameter 'decoder/relpos_bias/rel_embedding' has 6 'heads', which do not divide among "
        "the 4 devices on the axis 'model' of the mesh. Set NUM_PARTITIONS to one of 1, 2, which "
        "all sizes of this model are multiples of."
    )
    with pytest.raises(DeviceError, match=f"^{re.escape(message)}$"):
        check_sizes(parameters, rules(), {"data": 2, "model": 4})


def test_a_width_that_does_not_divide_names_the_axis_of_the_data():
    message = "Set the number of devices on 'data' to one of 1, 2, 3, 6, which"
    with pytest.raises(DeviceError, match=re.escape(message)):
        check_sizes([("scale", ("embed",), (6,))], rules(1, 2), {"data": 4, "model": 1})
