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

POD = {"data": 4, "fsdp": 1, "model": 2}
SHARED = {"data": 1, "fsdp": 4, "model": 2}
# What t5x's rules make of what its T5 has: its parameters and the stream between its layers. The
# columns are activations x parameters. For 2D parameters its `data` is our `fsdp`, with all devices
# that have different examples.
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
# The same of FSDP, which divides kernels only; the columns are 1D and 2D activations.
FSDP_FACTS = {
    **dict.fromkeys([("embed", "mlp"), ("embed", "joined_kv")], "dm dm"),
    **dict.fromkeys([("mlp", "embed"), ("joined_kv", "embed")], "md md"),
    ("vocab", "embed"): "m- m-",
    ("embed", "vocab"): "-m -m",
    ("embed",): "- m",
    ("layers", "embed"): "-- -m",
    ("layers", "embed", "mlp"): "-dm -dm",
    ("layers", "mlp"): "-m -m",
    ("prompt", "prompt_embed"): "-- --",
    ("batch", "length", "embed"): "d-- d-m",
}


def spec(letters, data):
    return P(*({"-": None, "d": data, "m": "model"}[one] for one in letters))


def rules(activations=1, parameters=1):
    return standard_logical_axis_rules(
        activation_partitioning_dims=activations, parameter_partitioning_dims=parameters
    )


@pytest.mark.parametrize("dimensions", FACTS)
def test_the_rules_are_those_of_t5x(dimensions):
    for dims, fact in zip(DIMS, FACTS[dimensions].split(), strict=True):
        mesh, data = (POD, "data") if dims[1] == 1 else (SHARED, "fsdp")
        assert partition_spec(dimensions, rules(*dims), mesh) == spec(fact, data), dims


@pytest.mark.parametrize("dimensions", FSDP_FACTS)
def test_fsdp_divides_kernels(dimensions):
    for activations, fact in zip([1, 2], FSDP_FACTS[dimensions].split(), strict=True):
        wanted = spec(fact, "fsdp")
        assert partition_spec(dimensions, rules(activations), SHARED) == wanted, activations


def test_rows_lie_along_both_axes_of_examples():
    mesh = {"data": 2, "fsdp": 2, "model": 2}
    assert partition_spec(("batch", "length"), rules(), mesh) == P(("data", "fsdp"), None)


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
    # Of axes that go together none is given if one is taken.
    both = (("width", "model"), ("height", ("data", "model")), ("height", "data"))
    assert partition_spec(("height", "width"), both, POD) == P("data", "model")


def test_a_rule_for_a_dimension_beside_another_knows_only_such_arrays():
    beside = ((("height", "width"), "model"),)
    assert partition_spec(("width", "height"), beside, POD) == P(None, "model")
    assert partition_spec(("height", "depth"), beside, POD) == P(None, None)


def test_an_axis_of_one_device_divides_nothing():
    for size, wanted in [(1, P(None, None)), (2, P(None, "model"))]:
        mesh = {"data": 8, "fsdp": 1, "model": size}
        assert partition_spec(("embed", "mlp"), rules(), mesh) == wanted


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
    two_d = dims[1] == 2
    mesh = {"data": 1 if two_d else 2, "fsdp": 2 if two_d else 1, "model": 32}
    check_sizes(parameters, rules(*dims), mesh)
    held = sum(
        np.prod(shape, dtype=np.int64)
        // np.prod([mesh[axis] for axis in partition_spec(names, rules(*dims), mesh) if axis])
        for _, names, shape in parameters
    )
    # Norms apart, which some rules leave whole: half a million numbers on every device.
    assert held == pytest.approx(total / (64 if two_d else 32), rel=2e-3)


def test_a_size_that_does_not_divide_is_named_with_what_would():
    parameters, _ = shapes("t5_1_1_small")
    message = (
        "Parameter 'decoder/relpos_bias/rel_embedding' has 6 'heads', which do not divide among "
        "the 4 devices on the axis 'model' of the mesh. Set NUM_PARTITIONS to one of 1, 2, which "
        "all sizes of this model are multiples of."
    )
    with pytest.raises(DeviceError, match=f"^{re.escape(message)}$"):
        check_sizes(parameters, rules(), {"data": 2, "fsdp": 1, "model": 4})


def test_a_width_that_does_not_divide_names_the_setting_of_its_axis():
    message = (
        "Parameter 'kernel' has 6 'embed', which do not divide among the 4 devices on the axis "
        "'fsdp' of the mesh. Set FSDP to one of 1, 2, 3, 6, which all sizes of this model are "
        "multiples of."
    )
    with pytest.raises(DeviceError, match=f"^{re.escape(message)}$"):
        check_sizes([("kernel", ("embed", "mlp"), (6, 8))], rules(), SHARED)


def test_a_size_that_several_axes_divide_names_both_settings():
    together = (("width", ("fsdp", "model")),)
    message = "Set FSDP x NUM_PARTITIONS to one of 1, 2, 3, 4, 6, 12, which"
    with pytest.raises(DeviceError, match=re.escape(message)):
        check_sizes([("scale", ("width",), (12,))], together, SHARED)
