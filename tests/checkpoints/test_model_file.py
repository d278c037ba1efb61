"""Our own file of a model: the same numbers, in four sizes of bytes."""

import json

import ml_dtypes
import numpy as np
import pytest
import safetensors
from etils import epath

from prompt_tuning.checkpoints import base, formats, load_embeddings, load_model, model_file, packed
from prompt_tuning.checkpoints.contents import contents
from prompt_tuning.checkpoints.mapping import from_t5x
from prompt_tuning.checkpoints.model_file import save_model_file
from prompt_tuning.errors import CheckpointError
from prompt_tuning.model import T5Config, parameters
from prompt_tuning.model.quantization import Quantization, quantize
from tests import assets

INT8 = Quantization(dtype="int8")
EMBEDDING = "token_embedder/embedding"
CHOICES = ("dtype", "param_dtype", "quantization", "quantization_group", "dropout_rate")
CHOICES += ("attention", "remat", "unroll")

every_dtype = pytest.mark.parametrize("dtype", [None, "float32", "bfloat16", "int8"])


def write(folder, dtype=None, found=None, name="base"):
    held = assets.opened(found)
    path = epath.Path(folder) / f"{name}.safetensors"
    save_model_file(held.tensors, held.config, held.step, path, dtype=dtype)
    return path


def values(path):
    return {name: one.load() for name, one in formats.open_model(path).tensors.items()}


def quantized(array, name):
    """What `model.quantization` makes of an array; of the token table, turned over."""
    turned = array.T if name == EMBEDDING else array
    integers, scale = map(np.asarray, quantize(turned, INT8))
    return (integers.T if name == EMBEDDING else integers), scale


@every_dtype
def test_what_is_opened_and_saved_again_is_the_same_file(tmp_path, dtype):
    path = write(tmp_path, dtype)
    held = formats.open_model(path)
    assert (held.kind, held.config, held.step) == (
        "safetensors",
        assets.opened().config,
        assets.STEP,
    )
    again = epath.Path(tmp_path / "again.safetensors")
    save_model_file(held.tensors, held.config, held.step, again, dtype=dtype)
    assert again.read_bytes() == path.read_bytes()
    assert base.fingerprint(formats.open_model(again)) == base.fingerprint(held) == held.digest


@every_dtype
def test_other_programs_find_our_names_with_all_layers_in_one_array(tmp_path, dtype):
    expected = from_t5x(assets.arrays())
    with safetensors.safe_open(write(tmp_path, dtype), framework="numpy") as reader:
        names = {name for name in reader.keys() if not name.endswith(packed.SCALE)}  # noqa: SIM118
        assert names == expected.keys()
        for name in names:
            assert tuple(reader.get_slice(name).get_shape()) == expected[name].shape, name
        metadata = reader.metadata()
    assert metadata["format"] == "prompt-tuning model 1"
    assert json.loads(metadata["config"])["encoder_layers"] == 2


def test_the_configuration_in_the_file_is_all_that_no_run_decides():
    fields = set(T5Config.__dataclass_fields__) - set(CHOICES)
    assert fields == set(model_file.ARCHITECTURE)


def test_what_shapes_do_not_show_is_kept(tmp_path):
    held = contents(
        kind="memory",
        where=epath.Path("memory"),
        tensors=assets.stored(assets.arrays()),
        settings={"relative_max_distance": 64, "mlp_activations": ("silu", "linear")},
    )
    path = epath.Path(tmp_path / "base.safetensors")
    save_model_file(held.tensors, held.config, None, path)
    found = formats.open_model(path)
    assert (found.config, found.step) == (held.config, None)


# int8.


def test_integers_are_those_of_the_model_s_own_quantization(tmp_path):
    arrays = from_t5x(assets.arrays())
    scaled = set()
    with safetensors.safe_open(write(tmp_path, "int8"), framework="numpy") as reader:
        for name in reader.keys():  # noqa: SIM118
            found = reader.get_tensor(name)
            if found.dtype == np.int8:
                integers, scale = quantized(arrays[name], name)
                np.testing.assert_array_equal(found, integers, err_msg=name)
                beside = reader.get_tensor(name + packed.SCALE)
                np.testing.assert_allclose(beside, scale, rtol=1e-6, err_msg=name)
                scaled |= {name, name + packed.SCALE}
            elif not name.endswith(packed.SCALE):
                np.testing.assert_array_equal(found, arrays[name], err_msg=name)
        left = {name.split("/")[-1] for name in set(reader.keys()) - scaled}
    assert left == {"scale", "rel_embedding"}  # norms and relative positions


def test_what_is_read_is_the_integers_times_their_scales(tmp_path):
    path = write(tmp_path, "int8")
    stacked = from_t5x(values(path))
    with safetensors.safe_open(path, framework="numpy") as reader:
        for name, array in stacked.items():
            found = reader.get_tensor(name)
            if found.dtype == np.int8:
                scale = reader.get_tensor(name + packed.SCALE)
                axis = 1 if name == EMBEDDING else -2
                found = found.astype(np.float32) * np.expand_dims(scale, axis)
            np.testing.assert_array_equal(array, found, err_msg=name)


def test_no_value_is_further_off_than_half_a_step(tmp_path):
    found = values(write(tmp_path, "int8"))
    for name, array in assets.arrays().items():
        axis = -1 if name == EMBEDDING else -2
        step = np.max(np.abs(array), axis=axis, keepdims=True) / 127 if array.ndim > 1 else 0
        assert (np.abs(found[name] - array) <= step / 2 * (1 + 1e-5)).all(), name


def test_quantizing_such_a_file_changes_nothing(tmp_path):
    held = formats.open_model(write(tmp_path, "int8"))
    model = load_model(held.where, quantization="int8")
    leaves = parameters.named(base.nnx.state(model, base.BaseParam))
    stacked = from_t5x({name: one.load() for name, one in held.tensors.items()})
    kernels = [name for name in leaves if f"{name}_scale" in leaves]
    assert len(kernels) == 18
    for name in kernels:
        integers, scale = (np.asarray(leaves[one]) for one in (name, f"{name}_scale"))
        meant = integers.astype(np.float32) * np.expand_dims(scale, -2)
        np.testing.assert_array_equal(meant, stacked[name], err_msg=name)


def test_scales_of_any_size_are_found_again():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(20_000, 8)) * np.exp(rng.uniform(-60, 60, (20_000, 1)))
    table = rows.astype(np.float32)
    first = packed.scales(table, EMBEDDING)
    integers = packed.rounded(table, first, EMBEDDING)
    scale = packed.settled(first)
    np.testing.assert_allclose(scale, first, rtol=1e-6)
    assert np.abs(integers).max(axis=1).min() == 127
    again = packed.values_of(integers, scale, EMBEDDING)
    for found in (packed.scales(again, EMBEDDING), quantized(again, EMBEDDING)[1]):
        np.testing.assert_array_equal(found, scale)
    np.testing.assert_array_equal(packed.rounded(again, scale, EMBEDDING), integers)


@pytest.mark.parametrize("value", [0.0, 1e-44, 1e-37])
def test_a_row_of_next_to_nothing_becomes_one_of_zeros(tmp_path, value):
    arrays = dict(assets.arrays())
    arrays[EMBEDDING] = arrays[EMBEDDING].copy()
    arrays[EMBEDDING][3] = value
    path = write(tmp_path, "int8", arrays)
    np.testing.assert_array_equal(load_embeddings(path)[3], 0.0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_does_not_become_integers(tmp_path, value):
    arrays = dict(assets.arrays())
    name = "decoder/layers_0/mlp/wo/kernel"
    arrays[name] = arrays[name].copy()
    arrays[name][2, 1] = value
    with pytest.raises(CheckpointError, match=f"'{name}' holds values that are not finite"):
        write(tmp_path, "int8", arrays)
    assert list(tmp_path.iterdir()) == []


# How it is read and written.


def test_a_part_of_a_layer_is_read_by_itself(tmp_path):
    whole = from_t5x(values(path := write(tmp_path, "int8")))
    one = formats.open_model(path).tensors["encoder/layers_1/mlp/wi_0/kernel"]
    part = (slice(3, 9), slice(10, 30))
    np.testing.assert_array_equal(one[part], whole["encoder/layers/mlp/wi_0/kernel"][1][part])


def test_layers_may_come_in_any_order_and_in_several_dtypes(tmp_path):
    arrays = dict(reversed(assets.arrays().items()))
    name = "encoder/layers_1/mlp/wo/kernel"
    arrays[name] = arrays[name].astype(np.float64)
    held = formats.open_model(write(tmp_path, None, arrays))
    assert held.tensors["encoder/layers_0/mlp/wo/kernel"].dtype == np.float64
    for key, array in assets.arrays().items():
        np.testing.assert_array_equal(held.tensors[key].load(), array, err_msg=key)
    assert base.fingerprint(held) == held.digest


def test_bfloat16_stays_what_it_is(tmp_path):
    arrays = {key: array.astype(ml_dtypes.bfloat16) for key, array in assets.arrays().items()}
    found = values(write(tmp_path, None, arrays))
    assert {array.dtype.name for array in found.values()} == {"bfloat16"}


# Damage that no size or name shows.


def test_a_flipped_bit_is_seen_where_all_values_are_read(tmp_path):
    path = write(tmp_path, "int8")
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    held = formats.open_model(path)
    with pytest.raises(CheckpointError, match="is damaged: its values have the hash"):
        base.fill(base.shapes(held), held, digest=parameters.Fingerprint())
    with pytest.raises(CheckpointError, match="is damaged: its values have the hash"):
        base.fingerprint(held)
