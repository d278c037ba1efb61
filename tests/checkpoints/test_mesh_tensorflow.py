import dataclasses
import os
import shutil

import ml_dtypes
import numpy as np
import pytest
from etils import epath

from prompt_tuning.checkpoints.containers.tensor_bundle import open_tensor_bundle
from prompt_tuning.checkpoints.mesh_tensorflow import (
    looks_like_mesh_tensorflow,
    open_mesh_tensorflow,
)
from prompt_tuning.errors import CheckpointError
from prompt_tuning.model import T5Config
from tests.conftest import GOLDEN
from tests.reference_models import CONFIGS
from tests.tensor_bundles import block, entry, header, message, table

MTF = epath.Path(GOLDEN / "mtf")
PREFIX = "model.ckpt-1000"
T5_1_0 = T5Config(
    vocab_size=40,
    embed_dim=12,
    mlp_dim=12,
    num_heads=2,
    head_dim=4,
    encoder_layers=1,
    decoder_layers=1,
    mlp_activations=("relu",),
    tied_logits=True,
)
T5X_TINY = T5Config(
    vocab_size=32128,
    embed_dim=32,
    mlp_dim=64,
    num_heads=2,
    head_dim=64,
    encoder_layers=2,
    decoder_layers=2,
)


@pytest.fixture
def folder(tmp_path):
    """A copy of the checkpoint of a T5 1.0, to be damaged."""
    shutil.copytree(MTF / "t5_1_0", tmp_path / "t5")
    return epath.Path(tmp_path / "t5")


def write(prefix, *entries, data=bytes(8)):
    """Writes an index of our own making over one data file."""
    prefix.with_name(f"{prefix.name}.index").write_bytes(table(block(entries)))
    prefix.with_name(f"{prefix.name}.data-00000-of-00001").write_bytes(data)
    return prefix


def refusal(act, path):
    with pytest.raises(CheckpointError) as error:
        act(path)
    return str(error.value)


# What TensorFlow writes is what we read.


def test_every_array_is_what_tensorflow_reads(golden):
    theirs = golden("mtf/t5_1_0.npz")
    ours = open_tensor_bundle(MTF / "t5_1_0" / PREFIX)
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        read = ours[name].load()
        assert (read.dtype, read.shape) == (array.dtype, array.shape), name
        np.testing.assert_array_equal(read, array, err_msg=name)


@pytest.mark.parametrize(
    "dtype", ["float32", "float64", "int32", "int64", ml_dtypes.bfloat16, "float16"]
)
def test_numbers_of_every_type_are_read(dtype):
    array = open_tensor_bundle(MTF / "types")[np.dtype(dtype).name].load()
    assert array.dtype == dtype
    np.testing.assert_array_equal(array.astype(np.float64), [[1, 2, 3], [4, 5, 6]])


def test_a_part_is_read_by_its_rows(folder, golden):
    whole = golden("mtf/t5_1_0.npz")["shared/embedding"]
    stored = open_tensor_bundle(folder / PREFIX)["shared/embedding"]
    for index in [
        (slice(3, 7), slice(None)),
        (slice(None), slice(2, 5)),
        (slice(39, 40), slice(11, 12)),
        (slice(5, 5), slice(None)),
    ]:
        np.testing.assert_array_equal(stored[index], whole[index])


def test_the_checkpoint_of_t5x_is_opened(tmp_path):
    for end in ("index", "data-00000-of-00002"):
        shutil.copy(MTF / f"t5x_tiny.{end}", tmp_path)
    other = tmp_path / "t5x_tiny.data-00001-of-00002"
    other.touch()
    os.truncate(other, 13_078_208)
    opened = open_mesh_tensorflow(epath.Path(tmp_path / "t5x_tiny"))
    assert (opened.kind, opened.step, opened.config) == ("mesh-tensorflow", 0, T5X_TINY)
    assert {one.dtype for one in opened.tensors.values()} == {np.dtype(ml_dtypes.bfloat16)}
    assert opened.slots.keys() == {f"{name}/v" for name in opened.tensors}
    assert {one.dtype for one in opened.slots.values()} == {np.dtype("float32")}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_t5_1_1_is_the_model_of_its_t5x_checkpoint(tmp_path, golden, name):
    """The index is TensorFlow's own, so that its checksums vouch for the order of the bytes."""
    params = {
        key: array for key, array in golden(f"{name}/params.npz").items() if "prompt" not in key
    }
    shutil.copy(MTF / f"{name}.index", tmp_path / f"{name}.index")
    data = b"".join(params[key].tobytes() for key in params)
    (tmp_path / f"{name}.data-00000-of-00001").write_bytes(data + np.int64(1_100_000).tobytes())
    opened = open_mesh_tensorflow(epath.Path(tmp_path / name))
    assert opened.step == 1_100_000
    assert opened.config == dataclasses.replace(CONFIGS[name], dtype="bfloat16")
    assert opened.tensors.keys() == params.keys()
    for key, array in params.items():
        np.testing.assert_array_equal(opened.tensors[key].load(), array, err_msg=key)
    assert (opened.slots, opened.methods) == ({}, {})


def test_a_t5_1_0_has_one_mlp_kernel_and_tied_logits(folder, golden):
    theirs = golden("mtf/t5_1_0.npz")
    opened = open_mesh_tensorflow(folder)
    assert opened.config == T5_1_0
    assert opened.step == 1000
    for ours, name in {
        "token_embedder/embedding": "shared/embedding",
        "encoder/layers_0/mlp/wi/kernel": "encoder/block_000/layer_001/DenseReluDense/wi/kernel",
        "decoder/decoder_norm/scale": "decoder/final_layer_norm/scale",
        "decoder/layers_0/encoder_decoder_attention/out/kernel": (
            "decoder/block_000/layer_001/EncDecAttention/o"
        ),
        "decoder/relpos_bias/rel_embedding": (
            "decoder/block_000/layer_000/SelfAttention/relative_attention_bias"
        ),
    }.items():
        np.testing.assert_array_equal(opened.tensors[ours].load(), theirs[name])


def test_slots_are_those_of_t5x(folder, golden):
    theirs = golden("mtf/t5_1_0.npz")
    wi = "encoder/block_000/layer_001/DenseReluDense/wi/kernel"
    slots = open_mesh_tensorflow(folder).slots
    for ours, name in {
        "encoder/encoder_norm/scale/v": "encoder/final_layer_norm/scale_slot_v",
        "encoder/encoder_norm/scale/m": "encoder/final_layer_norm/scale_slot_m",
        "token_embedder/embedding/v_row": "shared/embedding_slot_vr",
        "token_embedder/embedding/v_col": "shared/embedding_slot_vc",
        # A square: Mesh TensorFlow calls its first dimension the larger one, t5x the last.
        "encoder/layers_0/mlp/wi/kernel/v_row": f"{wi}_slot_vc",
        "encoder/layers_0/mlp/wi/kernel/v_col": f"{wi}_slot_vr",
    }.items():
        np.testing.assert_array_equal(slots[ours].load(), theirs[name], err_msg=ours)
    assert len(slots) == sum("_slot_" in name for name in theirs)


# Which checkpoint a path means.


@pytest.mark.parametrize("path", ["", PREFIX, f"{PREFIX}.index"])
def test_a_folder_a_prefix_and_an_index_are_the_same_checkpoint(folder, path):
    where = folder / path if path else folder
    assert looks_like_mesh_tensorflow(where)
    opened = open_mesh_tensorflow(where)
    assert (opened.where, opened.step) == (where, 1000)


def test_without_a_state_file_the_newest_is_opened(folder):
    (folder / "checkpoint").unlink()
    for file in list(folder.iterdir()):
        # As text, 999 comes after 1000.
        shutil.copy(file, folder / file.name.replace("1000", "999"))
    (folder / "model.ckpt-1000.index").rename(folder / "model.ckpt-10000.index")
    assert looks_like_mesh_tensorflow(folder)
    assert "model.ckpt-10000.data-00000-of-00002" in refusal(open_mesh_tensorflow, folder)


@pytest.mark.parametrize("state", [b"", b"\x83\xa7version\x03", b"all_model_checkpoint_paths"])
def test_other_folders_and_files_are_left_to_others(tmp_path, state):
    path = epath.Path(tmp_path)
    (path / "checkpoint").write_bytes(state)
    (path / "model.safetensors.index.json").touch()
    assert not looks_like_mesh_tensorflow(path)
    assert not looks_like_mesh_tensorflow(path / "checkpoint")
    assert not looks_like_mesh_tensorflow(path / "absent")
    assert "has no file 'checkpoint'" in refusal(open_mesh_tensorflow, path)


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ('model_checkpoint_path: "../../etc/x"', "names 'x', but x.index is not in this folder."),
        ('model_checkpoint_path: "model.ckpt-100"', "Did you mean 'model.ckpt-1000'?"),
        ('model_checkpoint_path: ".."', "expected model_checkpoint_path"),
        ('model_checkpoint_path: "a/"', "expected model_checkpoint_path"),
        ('model_checkpoint_path: "a\\134b"', "expected model_checkpoint_path"),
        ('model_checkpoint_path: "a\0b"', "expected model_checkpoint_path"),
        ("model_checkpoint_path", "expected model_checkpoint_path"),
        ('model_checkpoint_path: "' + "x" * 9000, "expected model_checkpoint_path"),
    ],
)
def test_a_state_file_names_a_checkpoint_of_its_folder(folder, state, reason):
    (folder / "checkpoint").write_text(state)
    assert looks_like_mesh_tensorflow(folder)
    said = refusal(open_mesh_tensorflow, folder)
    assert str(folder / "checkpoint") in said
    assert reason in said


# What is damaged, or no T5, is refused with file and reason.


def cut(file, length):
    file.write_bytes(file.read_bytes()[:length])


def flip(file, at):
    content = bytearray(file.read_bytes())
    content[at] ^= 16
    file.write_bytes(bytes(content))


INDEX, FIRST, SECOND = (
    f"{PREFIX}.{end}" for end in ("index", "data-00000-of-00002", "data-00001-of-00002")
)
DAMAGES = {
    "index cut": (lambda at: cut(at / INDEX, 700), INDEX, "magic number"),
    "index emptied": (lambda at: cut(at / INDEX, 0), INDEX, "magic number"),
    "bit of the index": (lambda at: flip(at / INDEX, 300), INDEX, "checksum of the block at 0"),
    "garbage": (lambda at: (at / INDEX).write_bytes(b"\xff" * 5000), INDEX, "magic number"),
    "large index": (lambda at: os.truncate(at / INDEX, 1 << 40), INDEX, "1099511627776 bytes"),
    "data cut": (lambda at: cut(at / SECOND, 9000), SECOND, "is cut short"),
    "data missing": (lambda at: (at / FIRST).unlink(), FIRST, "There is no file at"),
    "data is a folder": (
        lambda at: ((at / FIRST).unlink(), (at / FIRST).mkdir()),
        FIRST,
        "is a folder, expected a file",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_checkpoint_is_refused(folder, name):
    damage, file, reason = DAMAGES[name]
    damage(folder)
    said = refusal(open_mesh_tensorflow, folder)
    assert str(folder / file) in said
    assert reason in said


def test_a_flipped_bit_in_an_array_is_seen_when_it_is_read_whole(folder):
    opened = open_mesh_tensorflow(folder)
    flip(folder / SECOND, 8000)
    damaged = []
    for name, array in opened.tensors.items():
        try:
            array.load()
        except CheckpointError as error:
            damaged.append(name)
            assert str(error) == (
                f"The checksum of 'shared/embedding' in {folder / SECOND} does not match. The file "
                "is damaged."
            )
    assert damaged == ["token_embedder/embedding"]


def test_data_that_is_cut_short_later_is_seen_when_it_is_read(folder):
    opened = open_mesh_tensorflow(folder)
    cut(folder / SECOND, 8000)
    said = refusal(lambda name: opened.tensors[name].load(), "token_embedder/embedding")
    assert str(folder / SECOND) in said and "The file is cut short" in said


HEADER = (b"", header())
ENTRIES = {
    "no header": ([(b"a", entry())], "no entry for the checkpoint as a whole"),
    "no data files": ([(b"", header(0))], "announces 0 data files"),
    "too many data files": ([(b"", header(1 << 62))], "announces 4611686018427387904 data files"),
    "big-endian": ([(b"", message((1, 1), (2, 1)))], "big-endian"),
    "header of garbage": ([(b"", b"\xff" * 11)], "more than 64 bits"),
    "header of another kind": ([(b"", message((1, b"1")))], "field 1 of a message is not a number"),
    "shard beyond the last": ([HEADER, (b"a", entry(shard=1))], "'a' lies in data file 1 of 1"),
    "huge shape": (
        [HEADER, (b"a", entry(shape=(1 << 40, 1 << 40), size=1 << 63))],
        r"'a' of shape \(1099511627776, 1099511627776\) and float32 is said to have",
    ),
    "size that is not the shape's": ([HEADER, (b"a", entry(size=12))], "said to have 12 bytes"),
    "huge dimension": ([HEADER, (b"a", entry(shape=((1 << 64) - 1,)))], "impossible shape"),
    "empty dimension": ([HEADER, (b"a", entry(shape=(0,), size=0))], "impossible shape"),
    "many dimensions": ([HEADER, (b"a", entry(shape=(1,) * 70, size=4))], "impossible shape"),
    "beyond the file": ([HEADER, (b"a", entry(offset=1))], "'a' is said to be the 8 bytes at 1"),
    "offset of 2**63": ([HEADER, (b"a", entry(offset=1 << 63))], "8 bytes at 9223372036854775808"),
    "unknown type": ([HEADER, (b"a", entry(dtype=99))], "'a' is of TensorFlow's type 99"),
    "no shape": ([HEADER, (b"a", message((1, 1), (2, 7), (5, 8)))], "not made of bytes"),
    "message cut": ([HEADER, (b"a", entry()[:-3])], "are announced|has 8 bytes|said to have"),
    "fields of a kind that is gone": ([HEADER, (b"a", b"\x0b")], "unknown kind 3"),
    "name that is no text": ([HEADER, (b"\xff", entry())], "can't decode byte"),
}


@pytest.mark.parametrize("name", ENTRIES)
def test_an_index_is_not_believed(tmp_path, name):
    entries, reason = ENTRIES[name]
    prefix = write(epath.Path(tmp_path / "x"), *entries)
    with pytest.raises(CheckpointError, match=reason) as error:
        open_mesh_tensorflow(prefix)
    assert str(prefix) in str(error.value)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("slices", "'a' is saved in slices"),
        ("text", "'words' is of TensorFlow's type 7, expected 1 (float32)"),
        ("resnet", "holds 1 arrays that a T5 does not have"),
    ],
)
def test_other_checkpoints_of_tensorflow_are_refused(name, reason):
    said = refusal(open_mesh_tensorflow, MTF / name)
    assert str(MTF / name) in said
    assert reason in said


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (
            ["encoder/block_001/layer_000/SelfAttention/relative_attention_bias"],
            "every block has relative positions of its own (relative_attention_type 'bias')",
        ),
        (
            ["encoder/final_layer_norm/scale", "encoder/rms_norm/scale"],
            "holds 'encoder/final_layer_norm/scale' under two names, one is 'encoder/rms_norm",
        ),
        (["encoder/rms_norm/scale"], "has no 'shared/embedding', which every T5 has"),
        (["shared/embeddings_slot_v"], "left over 'shared/embeddings'. Did you mean"),
        (["global_step", "shared/embedding"], "expected one number of steps"),
    ],
)
def test_other_models_are_refused(tmp_path, names, reason):
    prefix = write(epath.Path(tmp_path / "x"), HEADER, *((one.encode(), entry()) for one in names))
    said = refusal(open_mesh_tensorflow, prefix)
    assert str(prefix) in said
    assert reason in said


@pytest.mark.slow
def test_no_damage_is_another_kind_of_error(folder):
    """Every 40th byte of the index is changed, and every 300th of the data."""
    opened = 0
    for file, step in ((INDEX, 40), (FIRST, 300), (SECOND, 300)):
        content = (folder / file).read_bytes()
        for at in range(0, len(content), step):
            (folder / file).write_bytes(
                content[:at] + bytes([content[at] ^ 255]) + content[at + 1 :]
            )
            try:
                for array in open_tensor_bundle(folder / PREFIX).values():
                    array.load()
                opened += 1
            except CheckpointError:
                continue
        (folder / file).write_bytes(content)
    # What nobody reads: the padding of the footer and the empty block.
    assert opened < 4
