import re

import ml_dtypes
import numpy as np
import pytest
from etils import epath

from prompt_tuning.checkpoints import t5x, t5x_layers
from prompt_tuning.checkpoints.containers import zarr
from prompt_tuning.checkpoints.containers.stored import Stored
from prompt_tuning.errors import CheckpointError
from tests import t5x_checkpoints
from tests.reference_models import CONFIGS
from tests.t5x_checkpoints import FORMS, STEP, below, unpacked, variables, write_index

LAYER = "encoder/layers_1/attention/out/kernel"


def assert_same(found, wanted):
    """Names, dtypes, shapes and bits."""
    assert set(found) == set(wanted)
    for name, array in wanted.items():
        got = found[name].load()
        assert (got.dtype, got.shape) == (array.dtype, array.shape), name
        assert got.tobytes() == array.tobytes(), name


@pytest.fixture(scope="module", params=FORMS, ids=lambda form: form.__name__)
def checkpoint(request, tmp_path_factory):
    return request.param(tmp_path_factory.mktemp("checkpoint"))


def test_every_form_holds_what_the_original_saved(checkpoint):
    contents = t5x.open_t5x(checkpoint)
    assert_same({**contents.tensors, **contents.methods}, below("target/"))
    assert_same(contents.slots, below("state/param_states/"))
    assert contents.step == STEP
    assert contents.config.embed_dim == CONFIGS["A"].embed_dim


def test_every_form_is_recognised_as_one_of_two(checkpoint):
    kind = t5x.open_t5x(checkpoint).kind
    recognised = {"t5x": t5x.looks_like_t5x(checkpoint), "orbax": t5x.looks_like_orbax(checkpoint)}
    assert [name for name, so in recognised.items() if so] == [kind]


def test_parts_are_read_as_they_lie_in_the_whole(checkpoint):
    tensor = t5x.open_t5x(checkpoint).tensors[LAYER]
    wanted = below("target/")[LAYER]
    np.testing.assert_array_equal(tensor[3:9, 5:6], wanted[3:9, 5:6])
    np.testing.assert_array_equal(tensor[:, 30:], wanted[:, 30:])
    assert tensor[4:4, :].shape == (0, 32)


@pytest.mark.parametrize("form", [t5x_checkpoints.as_saved, t5x_checkpoints.of_todays_orbax])
def test_variables_have_full_paths(tmp_path, form):
    assert_same(t5x.variables(form(tmp_path)), variables())


def test_variables_of_any_model_are_read(tmp_path):
    arrays = {"target/bias": np.arange(5.0), "state/step": np.asarray(3)}
    write_index(epath.Path(tmp_path), arrays)
    assert_same(t5x.variables(epath.Path(tmp_path)), arrays)


def test_bfloat16_is_read_as_the_original_wrote_it(tmp_path):
    path = unpacked("t5x_pretrained_bf16", tmp_path)
    wanted = {
        name: array.astype(ml_dtypes.bfloat16)
        for name, array in below("target/").items()
        if "prompt" not in name
    }
    folders = {name: (f"target.{name.replace('/', '.')}",) for name in wanted}
    assert_same(zarr.open_arrays(zarr.open_store(path), folders, path), wanted)


def test_arrays_that_were_not_copied_are_missed_on_opening(tmp_path):
    path = unpacked("t5x_pretrained_bf16", tmp_path)  # without the optimizer's arrays
    with pytest.raises(CheckpointError) as error:
        t5x.open_t5x(path)
    assert re.fullmatch(
        rf"{path} has no array '(state\.param_states\..+\.v)' \(state/.+\)\. "
        r"The checkpoint is incomplete; copy it again\.",
        str(error.value),
    )


def test_version_2_holds_bfloat16_as_integers(tmp_path):
    narrow = {
        path: array.astype(ml_dtypes.bfloat16) if path.startswith("target/") else array
        for path, array in variables().items()
    }
    leaves = {
        path: array.view(np.uint16) if array.dtype.itemsize == 2 else array
        for path, array in narrow.items()
    }
    name = "target.encoder.encoder_norm.scale"
    leaves["target/encoder/encoder_norm/scale"] = zarr.write_array(
        epath.Path(tmp_path),
        name,
        Stored.of(leaves["target/encoder/encoder_norm/scale"], name),
        np.dtype(np.uint16),
    )
    path = write_index(epath.Path(tmp_path), leaves, version=2)
    contents = t5x.open_t5x(path)
    assert_same({**contents.tensors, **contents.methods}, below("target/", narrow))


def test_slots_of_scanned_layers_are_taken_apart(tmp_path):
    path = epath.Path(t5x_checkpoints.scanned(tmp_path))
    leaves = t5x_checkpoints.read_leaves(path)
    kernel = "encoder/encoder/attention/query/kernel"
    second_moment = np.abs(leaves[f"target/{kernel}"])
    leaves |= {
        f"state/param_states/{kernel}/v": second_moment,
        f"state/param_states/{kernel}/m": np.zeros(1, np.float32),
        f"state/param_states/{kernel}/v_row": np.ones((2, 32), np.float32),
    }
    slots = t5x.open_t5x(write_index(path, leaves)).slots
    one = "encoder/layers_1/attention/query/kernel"
    np.testing.assert_array_equal(slots[f"{one}/v"].load(), second_moment[:, 1])
    assert slots[f"{one}/m"].shape == (1,)
    assert f"{kernel}/v_row" in slots


def changed(path, array):
    """Returns a form that differs from the original's checkpoint in one array."""

    def form(folder):
        return write_index(epath.Path(folder), variables() | {path: array})

    return form


def other_scan(name, shape):
    def form(folder):
        path = t5x_checkpoints.scanned(folder)
        leaves = t5x_checkpoints.read_leaves(path) | {f"target/{name}": np.zeros(shape, np.float32)}
        return write_index(path, leaves)

    return form


NOT_OURS = {
    "a step that is no number": (changed("state/step", np.float32(np.nan)), "number of steps"),
    "half a step": (changed("state/step", np.float32(0.5)), "is 0.5, expected a number of steps"),
    "a step below zero": (changed("state/step", np.int32(-1)), "expected a number of steps"),
    "two steps": (changed("state/step", np.asarray([1, 2])), "expected one number"),
    "another state": (changed("state/extra", np.zeros(3)), "(state/extra) is neither a parameter"),
    "another tree": (changed("flax_mutables/x", np.zeros(3)), "is neither a parameter"),
    "an unknown parameter": (changed("target/encoder/extra/scale", np.zeros(3)), "left over"),
    "integers": (changed(f"target/{LAYER}", np.zeros((32, 32), np.int32)), "holds int32, expected"),
    "another shape": (changed(f"target/{LAYER}", np.zeros((32, 33), np.float32)), "(32, 33)"),
    "bits in version 3": (changed(f"target/{LAYER}", np.zeros((32, 32), np.uint16)), "uint16"),
    "positions of each layer": (
        changed("target/encoder/layers_0/relpos_bias/rel_embedding", np.zeros((4, 32))),
        "shares one table among all layers",
    ),
    "scanned positions": (
        other_scan("encoder/encoder/relpos_bias/rel_embedding", (4, 2, 32)),
        "shares one table among all layers",
    ),
    "stacks of two depths": (
        other_scan("encoder/encoder/attention/out/kernel", (32, 3, 32)),
        "scanned layers of the encoder are",
    ),
    "a stack without layers": (
        other_scan("encoder/encoder/attention/out/kernel", (32,)),
        "expected the layers of a scanned stack",
    ),
    "a stack without end": (
        other_scan("encoder/encoder/attention/out/kernel", (0, 10**12, 32)),
        f"at most {t5x_layers.MOST_LAYERS}",
    ),
}


@pytest.mark.parametrize(("form", "message"), NOT_OURS.values(), ids=NOT_OURS.keys())
def test_what_is_not_a_checkpoint_of_a_t5_is_refused(tmp_path, form, message):
    with pytest.raises(CheckpointError, match=re.escape(message)):
        t5x.open_t5x(form(tmp_path))


def test_a_folder_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="it has neither 'checkpoint' nor state/_METADATA"):
        t5x.open_t5x(epath.Path(tmp_path))


NO_INDEX = {
    "TensorFlow's": b'model_checkpoint_path: "model.ckpt-1"\nall_model_checkpoint_paths: "version"',
    "nothing": b"",
    "another tree": b"\x81\xa6params\x01",
}


@pytest.mark.parametrize("content", NO_INDEX.values(), ids=NO_INDEX.keys())
def test_other_files_of_the_same_name_are_not_taken_for_t5x(tmp_path, content):
    (tmp_path / "checkpoint").write_bytes(content)
    assert not t5x.looks_like_t5x(epath.Path(tmp_path))
    assert not t5x.looks_like_orbax(epath.Path(tmp_path))


def test_nothing_is_not_taken_for_a_checkpoint(tmp_path):
    missing = epath.Path(tmp_path / "missing")
    assert not t5x.looks_like_t5x(missing)
    assert not t5x.looks_like_orbax(missing)
