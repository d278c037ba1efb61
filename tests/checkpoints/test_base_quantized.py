"""A base that becomes integers while it is read."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from prompt_tuning.checkpoints import base, load_model
from prompt_tuning.checkpoints.mapping import from_t5x
from prompt_tuning.model import BaseParam, parameters
from prompt_tuning.model.quantization import Quantization, quantize
from tests import assets

WAYS = [Quantization(dtype="int8"), Quantization(dtype="int4", group=8)]
MESH = jax.make_mesh((2, 4), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)


def settings(how):
    return {"quantization": how.dtype, "quantization_group": how.group}


def named(model):
    return parameters.named(nnx.state(model, BaseParam))


def check_is_quantized(arrays, how):
    """Compares with the stored arrays, quantized all at once."""
    expected = from_t5x(assets.arrays())
    for name, array in expected.items():
        if f"{name}_scale" in arrays:
            integers, scale = quantize(array, how)
            assert arrays[name].dtype == how.dtype
            np.testing.assert_array_equal(arrays[name], integers, err_msg=name)
            np.testing.assert_array_equal(arrays[f"{name}_scale"], scale, err_msg=name)
        else:
            np.testing.assert_array_equal(arrays[name], array, err_msg=name)
    quantized = {name for name in expected if "/layers/" in name and name.endswith("kernel")}
    assert arrays.keys() == expected.keys() | {f"{name}_scale" for name in quantized}


@pytest.mark.parametrize("name", ["t5x", "orbax", "huggingface", "safetensors"])
@pytest.mark.parametrize(
    "how", [WAYS[0], pytest.param(WAYS[1], marks=pytest.mark.slow)], ids=["int8", "int4 in groups"]
)
def test_every_format_gives_the_same_integers(tmp_path, name, how):
    model = load_model(assets.write_model(tmp_path / "model", name), **settings(how))
    check_is_quantized(named(model), how)


def on_mesh(kernel, scale, **kind):
    """Divides the layers' kernels and their scales; everything else is whole."""

    def place(name):
        spec = {"kernel": kernel, "kernel_scale": scale}.get(name.split("/")[-1], ())
        spec = spec if "/layers/" in name else ()
        return jax.sharding.NamedSharding(MESH, jax.sharding.PartitionSpec(*spec), **kind)

    return place


# The largest weight of an output may lie on another device: inputs are divided as well.
PLACES = {
    "by outputs": (WAYS[0], on_mesh((None, None, "model"), (None, "model"))),
    "by inputs": (WAYS[0], on_mesh((None, ("data", "model")), ())),
    "in groups, by both": (WAYS[1], on_mesh((None, "model", "data"), (None, None, "data"))),
    "in the host's memory": (WAYS[0], on_mesh((None, "model"), (), memory_kind="pinned_host")),
}


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("digest", [None, parameters.Fingerprint()], ids=["", "with digest"])
def test_devices_that_share_a_kernel_make_the_same_integers(name, digest):
    how, place = PLACES[name]
    contents = assets.opened()
    model = base.shapes(contents, **settings(how))
    places = {one: place(one) for one in named(model)}
    arrays = named(base.fill(model, contents, shardings=places, digest=digest))
    for one, array in arrays.items():
        assert array.sharding.is_equivalent_to(places[one], array.ndim), one
        assert array.sharding.memory_kind == places[one].memory_kind
    check_is_quantized({one: np.asarray(array) for one, array in arrays.items()}, how)
    if digest is not None:
        # Prompts are of the base as it is stored, whatever it became here.
        assert digest.hexdigest() == parameters.fingerprint(from_t5x(assets.arrays()))


def test_bfloat16_checkpoints_are_quantized_from_what_they_hold():
    narrow = {name: array.astype("bfloat16") for name, array in assets.arrays().items()}
    wide = {name: array.astype(np.float32) for name, array in narrow.items()}
    one, other = (
        named(base.fill(base.shapes(contents, **settings(WAYS[0])), contents))
        for contents in (assets.opened(narrow), assets.opened(wide))
    )
    for name, array in one.items():
        np.testing.assert_array_equal(array, other[name], err_msg=name)


def test_a_layer_at_a_time_is_read():
    contents = assets.opened()
    reads = []

    def watched(name, one):
        def read(index):
            reads.append(name)
            return one.read(index)

        return dataclasses.replace(one, read=read)

    tensors = {name: watched(name, one) for name, one in contents.tensors.items()}
    model = base.shapes(contents, **settings(WAYS[0]))
    base.fill(model, dataclasses.replace(contents, tensors=tensors))
    assert sorted(reads) == sorted(contents.tensors)
