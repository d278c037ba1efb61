import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from prompt_tuning.errors import CheckpointError
from prompt_tuning.model import BaseParam
from prompt_tuning.model.parameters import (
    axes,
    check_names,
    count,
    fingerprint,
    named,
    replaced,
    table,
)
from tests.small_models import MODELS, small_model


class Pair(nnx.Module):
    """Two parameters with names of different depth."""

    def __init__(self):
        self.table = BaseParam(jnp.arange(6.0).reshape(2, 3), axes=("vocab", "embed"))
        self.norm = nnx.Dict(scale=BaseParam(jnp.ones(3), axes=("embed",)))


@pytest.fixture
def state():
    return nnx.state(Pair())


@pytest.fixture
def arrays():
    """Other values for the same parameters, from the host."""
    return {"table": np.full((2, 3), 7.0, np.float32), "norm/scale": np.zeros(3, np.float32)}


def test_parameters_are_named_by_their_path(state):
    assert {name: array.shape for name, array in named(state).items()} == {
        "table": (2, 3),
        "norm/scale": (3,),
    }
    assert axes(state) == {"table": ("vocab", "embed"), "norm/scale": ("embed",)}
    assert count(state) == 9


def test_shapes_have_names_and_counts_as_arrays_do(state):
    abstract = nnx.state(nnx.eval_shape(Pair))
    assert {k: v.shape for k, v in named(abstract).items()} == {
        k: v.shape for k, v in named(state).items()
    }
    assert axes(abstract) == axes(state)
    assert count(abstract) == count(state)
    assert table(abstract) == table(state)


@pytest.mark.parametrize("model", MODELS)
def test_every_parameter_of_a_model_names_all_its_axes(model):
    state = nnx.state(small_model(model))
    names, shapes = axes(state), named(state)
    assert names.keys() == shapes.keys()
    assert all(len(names[name]) == array.ndim for name, array in shapes.items())
    assert names.get("encoder/prompt/prompt") in (None, ("prompt", "prompt_embed"))


def test_replacing_changes_the_values_and_nothing_else(state, arrays):
    new = replaced(state, arrays)
    for name, array in named(new).items():
        np.testing.assert_array_equal(array, arrays[name])
        assert isinstance(array, jax.Array)
    assert axes(new) == axes(state)
    assert jax.tree.structure(new) == jax.tree.structure(state)
    np.testing.assert_array_equal(named(state)["norm/scale"], np.ones(3))


def test_replacing_by_its_own_arrays_is_the_identity(state):
    assert fingerprint(named(replaced(state, named(state)))) == fingerprint(named(state))


@pytest.mark.parametrize("dtype", [np.float64, jnp.bfloat16])
def test_replacing_keeps_the_dtype_of_the_model(state, arrays, dtype):
    new = replaced(state, {name: array.astype(dtype) for name, array in arrays.items()})
    assert {array.dtype for array in named(new).values()} == {jnp.dtype("float32")}


def test_a_misshapen_array_is_named_with_both_shapes(state, arrays):
    with pytest.raises(CheckpointError) as error:
        replaced(state, arrays | {"table": np.zeros((3, 2), np.float32)})
    assert str(error.value) == (
        "Parameter 'table' has shape (3, 2), the model needs (2, 3). Choose the checkpoint of this "
        "model size, or the size of this checkpoint."
    )


def test_missing_and_surplus_names_are_listed_with_the_nearest(state, arrays):
    arrays["tabel"] = arrays.pop("table")
    arrays["optimizer"] = np.zeros(3)
    with pytest.raises(CheckpointError) as error:
        replaced(state, arrays)
    assert str(error.value) == (
        "The names in the parameters do not match the model: 1 missing, 2 left over.\n"
        "  missing 'table'. Did you mean 'tabel'?\n"
        "  left over 'optimizer'.\n"
        "  left over 'tabel'. Did you mean 'table'?"
    )


def test_many_wrong_names_are_counted_but_not_all_listed():
    wanted = [f"layer_{i}" for i in range(9)]
    with pytest.raises(CheckpointError) as error:
        check_names(found=[], wanted=wanted, where="the file")
    assert str(error.value) == (
        "The names in the file do not match the model: 9 missing, 0 left over.\n"
        "  missing 'layer_0'.\n"
        "  missing 'layer_1'.\n"
        "  missing 'layer_2'.\n"
        "  missing 'layer_3'.\n"
        "  missing 'layer_4'."
    )


def test_matching_names_pass_in_any_order():
    check_names(found=["b", "a"], wanted=["a", "b"], where="the file")


CHANGES = {
    "one bit of one number": lambda a: a | {"norm/scale": np.nextafter(a["norm/scale"], np.inf)},
    "a name": lambda a: {name.replace("table", "tables"): array for name, array in a.items()},
    "a dtype of the same values": lambda a: a | {"table": a["table"].astype(np.float64)},
    "a dtype of the same bytes": lambda a: a | {"table": a["table"].view(np.int32)},
    "a shape of the same bytes": lambda a: a | {"table": a["table"].reshape(3, 2)},
    "the order of rows": lambda a: a | {"table": a["table"][::-1]},
    "two arrays swapped": lambda a: a | {"norm/scale": a["table"], "table": a["norm/scale"]},
    "one more": lambda a: a | {"other": a["table"]},
    "one less": lambda a: {"table": a["table"]},
}


@pytest.fixture
def numbers():
    return {"table": np.arange(6.0, dtype=np.float32).reshape(2, 3), "norm/scale": np.ones(3)}


@pytest.mark.parametrize("change", CHANGES)
def test_any_change_is_another_fingerprint(numbers, change):
    assert fingerprint(CHANGES[change](numbers)) != fingerprint(numbers)


def test_a_fingerprint_is_a_sha256_of_the_values_in_any_order(numbers):
    assert len(bytes.fromhex(fingerprint(numbers))) == 32
    assert fingerprint(dict(reversed(numbers.items()))) == fingerprint(numbers)


def test_a_fingerprint_does_not_depend_on_where_the_arrays_lie(numbers):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    table = jax.device_put(numbers["table"], spread)
    assert len(table.sharding.device_set) == 2
    assert fingerprint(numbers | {"table": table}) == fingerprint(numbers)
    transposed = np.asfortranarray(numbers["table"])
    assert fingerprint(numbers | {"table": transposed}) == fingerprint(numbers)


def test_the_table_lists_every_parameter_and_the_total(state):
    assert table(state) == (
        f"Variable {'norm/scale':<70} size 3            shape (embed=3)\n"
        f"Variable {'table':<70} size 6            shape (vocab=2, embed=3)\n"
        "Total number of parameters: 9\n"
    )
