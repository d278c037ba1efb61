import dataclasses
import functools
import json
import re
import shutil
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from etils import epath
from hypothesis import given, settings
from hypothesis import strategies as st

from prompt_tuning.checkpoints import hugging_face
from prompt_tuning.checkpoints.containers.stored import Stored
from prompt_tuning.checkpoints.containers.torch_file import open_torch
from prompt_tuning.checkpoints.contents import expected_shapes
from prompt_tuning.checkpoints.hugging_face import (
    looks_like_hugging_face,
    open_hugging_face,
    save_hugging_face,
)
from prompt_tuning.checkpoints.mapping import from_t5x
from prompt_tuning.errors import CheckpointError, ConfigError
from prompt_tuning.model import T5Config, t5_config
from tests.model.test_t5_hugging_face import CASES, CONFIGS, read_batch, renamed
from tests.reference_models import GOLDEN, filled, forward, read

SHARED, HEAD = "shared.weight", "lm_head.weight"
COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
UNUSED = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"

# What transformers 4.57.6 and 5.23.0 write; what they share, and what tells them apart.
MT5 = {
    "model_type": "mt5",
    "d_model": 32,
    "d_kv": 16,
    "d_ff": 48,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 3,
    "vocab_size": 384,
    "feed_forward_proj": "gated-gelu",
    "dense_act_fn": "gelu_new",
    "is_gated_act": True,
    "layer_norm_epsilon": 1e-06,
    "relative_attention_max_distance": 128,
    "relative_attention_num_buckets": 32,
    "dropout_rate": 0.1,
    "is_encoder_decoder": True,
    "pad_token_id": 0,
    "transformers_version": "5.23.0",
    "tie_word_embeddings": True,
}
T5_1_1 = MT5 | {
    "model_type": "t5",
    "d_kv": 8,
    "d_ff": 64,
    "num_heads": 4,
    "vocab_size": 512,
    "scale_decoder_outputs": False,
}
T5_1_0 = MT5 | {
    "model_type": "t5",
    "d_kv": 8,
    "d_ff": 128,
    "num_heads": 4,
    "vocab_size": 288,
    "feed_forward_proj": "relu",
    "dense_act_fn": "relu",
    "is_gated_act": False,
    "scale_decoder_outputs": True,
}
NEWER = {"t5v11_a": T5_1_1, "mt5_a": MT5, "t5orig_a": T5_1_0}


def older(config):
    """Returns the same as transformers 4 writes it, which leaves out what it takes for granted."""
    scaled = config.get("scale_decoder_outputs", False)
    older = config | {"transformers_version": "4.57.6", "tie_word_embeddings": scaled}
    older.pop("scale_decoder_outputs", None)
    if scaled:
        del older["tie_word_embeddings"]
    return older


@functools.cache
def golden_weights(name):
    arrays = read(f"hf/{name}.npz")
    return {
        key.removeprefix("weights/"): array
        for key, array in arrays.items()
        if key.startswith("weights/")
    }


def write_folder(path, config, tensors, *, shards=1):
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    if shards == 1:
        safetensors.numpy.save_file(tensors, path / "model.safetensors", {"format": "pt"})
        return epath.Path(path)
    names = sorted(tensors)
    weight_map = {}
    for i in range(shards):
        shard = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: tensors[name] for name in names[i::shards]}
        safetensors.numpy.save_file(part, path / shard, {"format": "pt"})
        weight_map |= dict.fromkeys(part, shard)
    write_index(path, weight_map)
    return epath.Path(path)


def write_index(path, weight_map):
    content = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (path / "model.safetensors.index.json").write_text(json.dumps(content))


def loaded(contents):
    return {name: one.load() for name, one in contents.tensors.items()}


def without(tensors, *names):
    return {name: array for name, array in tensors.items() if name not in names}


# The folders of transformers.

FOLDERS = {
    "T5 1.1": ("t5v11_a", False, lambda tensors: tensors, 1),
    "T5 1.1 of transformers 4": ("t5v11_a", True, lambda tensors: tensors, 1),
    "T5 1.1 in four files": ("t5v11_a", False, lambda tensors: tensors, 4),
    "T5 1.1 without shared.weight": (
        "t5v11_a",
        True,
        lambda tensors: without(tensors, SHARED) | {COPIES[1]: tensors[SHARED]},
        1,
    ),
    "T5 1.1 with every copy": (
        "t5v11_a",
        True,
        lambda tensors: (
            tensors
            | dict.fromkeys(COPIES, tensors[SHARED])
            | {UNUSED: np.ones((32, 4), np.float32)}
        ),
        1,
    ),
    "mT5": ("mt5_a", False, lambda tensors: tensors, 1),
    "mT5 of transformers 4": ("mt5_a", True, lambda tensors: tensors, 1),
    "T5 1.0": ("t5orig_a", False, lambda tensors: tensors, 1),
    "T5 1.0 of transformers 4": ("t5orig_a", True, lambda tensors: tensors, 1),
    "T5 1.0 with its table as a head": (
        "t5orig_a",
        True,
        lambda tensors: tensors | {HEAD: tensors[SHARED]},
        1,
    ),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_every_folder_of_transformers_holds_the_same_model(tmp_path, name):
    golden, is_older, changed, shards = FOLDERS[name]
    config = older(NEWER[golden]) if is_older else NEWER[golden]
    tensors = changed(golden_weights(golden))
    where = write_folder(tmp_path, config, tensors, shards=shards)
    assert looks_like_hugging_face(where)
    contents = open_hugging_face(where)
    assert (contents.kind, contents.where, contents.step) == ("huggingface", where, None)
    assert contents.config == dataclasses.replace(CONFIGS[golden], dtype=contents.config.dtype)
    arrays, expected = loaded(contents), in_t5x_names(golden)
    assert arrays.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(arrays[name], array, err_msg=name, strict=True)


def in_t5x_names(golden):
    arrays = {renamed(name): array for name, array in golden_weights(golden).items()}
    turned = ("kernel", "rel_embedding")
    return {name: array.T if name.endswith(turned) else array for name, array in arrays.items()}


@pytest.mark.parametrize("golden", NEWER)
def test_logits_are_those_of_transformers(tmp_path, golden):
    arrays = read(f"hf/{golden}.npz")
    contents = open_hugging_face(write_folder(tmp_path, NEWER[golden], golden_weights(golden)))
    config = dataclasses.replace(contents.config, dtype="float32")
    _, logits = forward(filled(config, from_t5x(loaded(contents))), read_batch(arrays))
    row = 0
    for case in CASES:
        labels = arrays[f"{case}/labels"]
        rows = slice(row, row := row + len(labels))
        if case != "long":  # Cut out of the file for its size.
            found = np.asarray(logits[rows, : labels.shape[1]])[labels >= 0]
            # See test_t5_hugging_face.py.
            np.testing.assert_allclose(
                found, arrays[f"{case}/logits"][labels >= 0], rtol=0, atol=5e-5
            )


def test_opening_reads_no_tensor_but_the_table(tmp_path):
    where = write_folder(tmp_path, T5_1_1, golden_weights("t5v11_a"))
    contents = open_hugging_face(where)
    (where / "model.safetensors").unlink()
    assert len(contents.tensors) == len(in_t5x_names("t5v11_a"))
    with pytest.raises(CheckpointError, match="is gone"):
        contents.tensors["encoder/encoder_norm/scale"].load()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_the_dtype_stays_as_it_is_stored(tmp_path, dtype):
    weights = {name: array.astype(dtype) for name, array in golden_weights("t5v11_a").items()}
    contents = open_hugging_face(write_folder(tmp_path, T5_1_1, weights))
    assert {one.dtype.name for one in contents.tensors.values()} == {dtype}
    table = contents.tensors["token_embedder/embedding"].load()
    np.testing.assert_array_equal(table, weights[SHARED], strict=True)


# The embedding table and the head.


@pytest.mark.parametrize("copy", COPIES)
@pytest.mark.parametrize("place", [(0, 0), (511, 31)])
def test_copies_of_the_table_that_differ_are_refused(tmp_path, monkeypatch, copy, place):
    monkeypatch.setattr(hugging_face, "_BLOCK", 1_000)  # Several blocks in a small table.
    weights = dict(golden_weights("t5v11_a"))
    weights[copy] = weights[SHARED].copy()
    weights[copy][place] += 1
    where = write_folder(tmp_path, T5_1_1, weights)
    message = f"{where}: {copy!r} differs from {where}/model.safetensors: shared.weight. Every T5"
    with pytest.raises(CheckpointError, match=re.escape(message)):
        open_hugging_face(where)


V4, V5 = {"transformers_version": "4.57.6"}, {"transformers_version": "5.23.0"}
TIED, UNTIED = {"tie_word_embeddings": True}, {"tie_word_embeddings": False}
SCALED, UNSCALED = {"scale_decoder_outputs": True}, {"scale_decoder_outputs": False}
OF_MT5 = {"model_type": "mt5"}
OURS_TIED, TABLE, OWN, FOLDED = "tied", "the table as the head", "the head", "the head, scaled"
# What config.json says, which head is there, and what our model is.
OUTPUTS = [
    # transformers 4
    (V4, "no head", OURS_TIED),
    (V4, "the table", OURS_TIED),
    (V4 | TIED, "no head", OURS_TIED),
    (V4 | UNTIED, "a head", OWN),
    (V4 | UNTIED, "the table", TABLE),
    (V4 | UNTIED, "no head", "is incomplete"),
    (V4, "a head", "transformers 4 leaves it out, transformers 5 uses it"),
    (V4 | TIED, "a head", "transformers 4 leaves it out, transformers 5 uses it"),
    (V4 | OF_MT5, "a head", OWN),
    (V4 | OF_MT5 | UNTIED, "a head", OWN),
    (V4 | OF_MT5 | UNTIED, "the table", TABLE),
    (V4 | OF_MT5 | UNTIED, "no head", "is incomplete"),
    (V4 | OF_MT5 | TIED, "no head", "transformers 4 scales its output, transformers 5 does not"),
    (V4 | OF_MT5 | TIED, "a head", "transformers 4 scales its output, transformers 5 does not"),
    # transformers 5
    (V5 | TIED | SCALED, "no head", OURS_TIED),
    (V5 | TIED | SCALED, "the table", OURS_TIED),
    (V5 | TIED | SCALED, "a head", FOLDED),
    (V5 | TIED | UNSCALED, "no head", TABLE),
    (V5 | TIED | UNSCALED, "the table", TABLE),
    (V5 | TIED | UNSCALED, "a head", OWN),
    (V5 | OF_MT5 | TIED, "no head", TABLE),
    (V5 | OF_MT5 | TIED, "the table", TABLE),
    (V5 | OF_MT5 | TIED, "a head", OWN),
    # Ours, and what nobody signed.
    (UNTIED | UNSCALED, "a head", OWN),
    (TIED | SCALED, "no head", OURS_TIED),
    (OF_MT5 | UNTIED, "a head", OWN),
    (OF_MT5, "no head", TABLE),
]


@pytest.mark.parametrize(("says", "head", "expected"), OUTPUTS)
def test_the_output_is_tied_and_scaled_as_in_transformers(tmp_path, says, head, expected):
    weights = dict(golden_weights("t5v11_a"))
    own = weights.pop(HEAD)
    weights |= {"no head": {}, "the table": {HEAD: weights[SHARED]}, "a head": {HEAD: own}}[head]
    silent = without(T5_1_1, "tie_word_embeddings", "scale_decoder_outputs", "transformers_version")
    where = write_folder(tmp_path, silent | says, weights)
    if expected not in (OURS_TIED, TABLE, OWN, FOLDED):
        with pytest.raises(CheckpointError, match=expected):
            open_hugging_face(where)
        return
    contents = open_hugging_face(where)
    assert contents.config.tied_logits == (expected == OURS_TIED)
    kernels = {TABLE: weights[SHARED].T, OWN: own.T, FOLDED: own.T * np.float32(32**-0.5)}
    if expected != OURS_TIED:
        kernel = contents.tensors["decoder/logits_dense/kernel"]
        np.testing.assert_array_equal(kernel.load(), kernels[expected], strict=True)
        rows = kernel[slice(3, 5), slice(100, 200)]
        np.testing.assert_array_equal(rows, kernels[expected][3:5, 100:200])


def test_a_scaled_head_in_bfloat16_is_not_rounded_again(tmp_path):
    weights = {
        name: array.astype(ml_dtypes.bfloat16) for name, array in golden_weights("t5v11_a").items()
    }
    contents = open_hugging_face(write_folder(tmp_path, T5_1_1 | SCALED, weights))
    kernel = contents.tensors["decoder/logits_dense/kernel"].load()
    expected = weights[HEAD].T.astype(np.float32) * np.float32(32**-0.5)
    np.testing.assert_array_equal(kernel, expected, strict=True)
    assert contents.tensors["token_embedder/embedding"].dtype == ml_dtypes.bfloat16


# config.json.

ACTIVATIONS = [
    ({"feed_forward_proj": "gated-gelu"}, ("gelu", "linear")),
    ({"feed_forward_proj": "gated-silu"}, ("silu", "linear")),
    ({"feed_forward_proj": "gated-gelu_new"}, ("gelu", "linear")),
    ({"feed_forward_proj": "gated-relu"}, ("relu", "linear")),
    ({"feed_forward_proj": "gated-gelu", "dense_act_fn": "silu"}, ("silu", "linear")),
    ({"model_type": "mt5"}, ("gelu", "linear")),
]


@pytest.mark.parametrize(("says", "expected"), ACTIVATIONS)
def test_activations_are_read_as_transformers_does(tmp_path, says, expected):
    config = without(T5_1_1, "feed_forward_proj", "dense_act_fn", "is_gated_act") | says
    contents = open_hugging_face(write_folder(tmp_path, config, golden_weights("t5v11_a")))
    assert contents.config.mlp_activations == expected


def test_what_config_json_leaves_out_is_seen_in_the_tensors(tmp_path):
    kept = ("model_type", "feed_forward_proj", "tie_word_embeddings")
    config = {field: T5_1_1[field] for field in kept} | UNTIED
    contents = open_hugging_face(write_folder(tmp_path, config, golden_weights("t5v11_a")))
    assert dataclasses.replace(contents.config, dtype="float32") == CONFIGS["t5v11_a"]


def test_the_decoder_is_as_deep_as_the_encoder_unless_said_otherwise(tmp_path):
    weights = golden_weights("t5v11_a")
    shallow = [name for name in weights if name.startswith("decoder.block.1.")]
    config = without(T5_1_1, "num_decoder_layers")
    where = write_folder(tmp_path, config, without(weights, *shallow))
    with pytest.raises(CheckpointError, match="says decoder_layers is 2, its arrays say 1"):
        open_hugging_face(where)
    config = T5_1_1 | {"num_decoder_layers": None}
    open_hugging_face(write_folder(tmp_path, config, weights))


WRONG_CONFIGS = {
    "another architecture": ({"model_type": "bert"}, "says model_type is 'bert', expected t5 or"),
    "a misspelt one": ({"model_type": "mt-5"}, "Did you mean 'mt5'"),
    "none": ({"model_type": None}, "says model_type is None, expected t5 or mt5"),
    "umT5": ({"model_type": "umt5"}, "every layer has a table of relative positions of its own"),
    "an epsilon": ({"layer_norm_epsilon": 1e-5}, "layer_norm_epsilon is 1e-05; every T5 has 1e-06"),
    "a text": ({"layer_norm_epsilon": "1e-6"}, "layer_norm_epsilon is '1e-6'"),
    "quantized": ({"quantization_config": {"bits": 8}}, "has a quantization_config"),
    "a size as text": ({"d_model": "32"}, "d_model is '32', expected a whole number from 1"),
    "a size as fraction": ({"d_ff": 64.0}, "d_ff is 64.0, expected a whole number"),
    "a size that is a truth": ({"num_heads": True}, "num_heads is True, expected a whole number"),
    "a size that is a list": ({"num_heads": [4] * 99}, "num_heads is a list of 99, expected"),
    "a negative size": ({"num_layers": -2}, "num_layers is -2, expected a whole number from 1"),
    "an absurd size": ({"vocab_size": 10**30}, "expected a whole number from 1 to 268435456"),
    "no distance": ({"relative_attention_max_distance": 0}, "max_distance is 0, expected a whole"),
    "a distance too short": (
        {"relative_attention_max_distance": 16},
        "max_distance is 16, expected more than half of relative_attention_num_buckets, 32",
    ),
    "the exact gelu": (
        {"dense_act_fn": "gelu"},
        "activation of its MLPs is 'gelu', ours are gelu_new, gelu_pytorch_tanh, relu, silu, "
        "swish, linear. 'gelu' is the exact one, T5's is its approximation by tanh.",
    ),
    "an unknown activation": ({"dense_act_fn": "mish"}, "activation of its MLPs is 'mish'"),
    "an activation of a number": ({"dense_act_fn": 3}, "activation of its MLPs is 3"),
    "a projection of a number": ({"feed_forward_proj": 3}, "feed_forward_proj is 3, no text"),
    "another gate": ({"feed_forward_proj": "wide-relu"}, "expected an activation, or 'gated-' and"),
    "a gate that is a text": ({"is_gated_act": "yes"}, "is_gated_act is 'yes'; expected"),
    "no gate": ({"is_gated_act": False}, "mlp_activations is ('gelu',), but its arrays are those"),
    "tied as text": ({"tie_word_embeddings": "no"}, "tie_word_embeddings is 'no', expected true"),
    "scaled as number": ({"scale_decoder_outputs": 0}, "scale_decoder_outputs is 0, expected true"),
    "another width": ({"d_model": 64}, "says embed_dim is 64, its arrays say 32"),
    "another MLP": ({"d_ff": 65}, "says mlp_dim is 65, its arrays say 64"),
    "other heads": ({"num_heads": 8}, "says num_heads is 8, its arrays say 4"),
    "larger heads": ({"d_kv": 16}, "says head_dim is 16, its arrays say 8"),
    "more layers": ({"num_decoder_layers": 3}, "says decoder_layers is 3, its arrays say 2"),
    "a larger vocabulary": ({"vocab_size": 513}, "says vocab_size is 513, its arrays say 512"),
    "more buckets": ({"relative_attention_num_buckets": 64}, "says relative_buckets is 64, its"),
}


@pytest.mark.parametrize("name", WRONG_CONFIGS)
def test_a_wrong_config_json_is_refused(tmp_path, name):
    changes, message = WRONG_CONFIGS[name]
    where = write_folder(tmp_path, T5_1_1 | changes, golden_weights("t5v11_a"))
    with pytest.raises(CheckpointError, match=re.escape(message)) as error:
        open_hugging_face(where)
    assert str(where) in str(error.value)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "[" * 50_000,
        '{"model_type": "t5", "model_type": "mt5"}',
        '{"d_model": ' + "9" * 5000 + "}",
        " " * 2_000_000 + "{}",
    ],
)
def test_a_config_json_that_is_none_is_refused(tmp_path, content):
    where = write_folder(tmp_path, content, golden_weights("t5v11_a"))
    with pytest.raises(CheckpointError, match=r"config\.json"):
        open_hugging_face(where)


def test_a_list_in_a_list_in_a_list_is_no_name(tmp_path):
    for depth in (100, 900, 990):
        content = '{"model_type": ' + "[" * depth + "]" * depth + "}"
        where = write_folder(tmp_path / str(depth), content, {})
        with pytest.raises(CheckpointError, match=r"config\.json"):
            open_hugging_face(where)


# The files of the weights.


def test_a_folder_without_config_json_is_refused(tmp_path):
    where = write_folder(tmp_path, T5_1_1, golden_weights("t5v11_a"))
    (where / "config.json").unlink()
    assert looks_like_hugging_face(where)
    with pytest.raises(CheckpointError, match=rf"There is no file at {where}/config\.json\."):
        open_hugging_face(where)


def test_a_folder_without_weights_says_what_it_holds(tmp_path):
    where = write_folder(tmp_path, T5_1_1, {})
    (where / "model.safetensors").rename(where / "tf_model.h5")
    assert looks_like_hugging_face(where)
    with pytest.raises(CheckpointError) as error:
        open_hugging_face(where)
    assert str(error.value) == (
        f"{where} holds no weights: expected one of model.safetensors, "
        "model.safetensors.index.json, pytorch_model.bin, pytorch_model.bin.index.json, found "
        "config.json, tf_model.h5. Weights of TensorFlow and Flax are not read."
    )


@pytest.mark.parametrize("name", ["nothing", "checkpoint", "t5.safetensors"])
def test_other_folders_do_not_look_like_hugging_face(tmp_path, name):
    (tmp_path / name).write_text("")
    assert not looks_like_hugging_face(epath.Path(tmp_path))
    assert not looks_like_hugging_face(epath.Path(tmp_path / name))
    assert not looks_like_hugging_face(epath.Path(tmp_path / "not there"))


def test_a_pointer_of_git_lfs_is_named(tmp_path):
    where = write_folder(tmp_path, T5_1_1, {})
    (where / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid 1")
    with pytest.raises(CheckpointError, match="is a pointer of Git LFS"):
        open_hugging_face(where)


def test_a_missing_tensor_is_called_by_its_name_in_the_file(tmp_path):
    name = "encoder.block.1.layer.0.SelfAttention.q.weight"
    where = write_folder(tmp_path, T5_1_1, without(golden_weights("t5v11_a"), name))
    with pytest.raises(CheckpointError, match=re.escape(f"missing {name!r}")):
        open_hugging_face(where)


def test_a_tensor_that_no_t5_has_is_refused(tmp_path):
    extra = {"encoder.block.0.layer.0.SelfAttention.q.bias": np.zeros(3, np.float32)}
    where = write_folder(tmp_path, T5_1_1, golden_weights("t5v11_a") | extra)
    with pytest.raises(CheckpointError, match=r"left over '.*q\.bias'.* Did you mean"):
        open_hugging_face(where)


def test_a_folder_without_a_table_is_refused(tmp_path):
    where = write_folder(tmp_path, T5_1_1, without(golden_weights("t5v11_a"), SHARED))
    with pytest.raises(CheckpointError, match=r"has no 'shared\.weight', which every T5 has"):
        open_hugging_face(where)


FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
NAME = "shared.weight"
# What becomes of the index and the folder, and what is said about it.
WRONG_SHARDS = {
    "one is missing": (lambda where, named: (where / SECOND).unlink(), f"{SECOND!r}, which is not"),
    "one is cut short": (
        lambda where, named: (where / SECOND).write_bytes((where / SECOND).read_bytes()[:-1]),
        "cut short",
    ),
    "a name too few": (lambda where, named: named.pop(NAME), f"holds {NAME!r}, which"),
    "a name too many": (lambda where, named: named.update(more=FIRST), "'more' is in"),
    "exchanged": (
        lambda where, named: named.update({NAME: FIRST if named[NAME] == SECOND else SECOND}),
        f"{NAME!r} is in ",
    ),
    "a path": (lambda where, named: named.update({NAME: f"../x/{FIRST}"}), "in the same folder"),
    "an absolute path": (lambda where, named: named.update({NAME: f"/{FIRST}"}), "the same folder"),
    "a bucket": (lambda where, named: named.update({NAME: "gs://x.bin"}), "in the same folder"),
    "a hidden file": (lambda where, named: named.update({NAME: "..bin"}), "in the same folder"),
    "a backslash": (lambda where, named: named.update({NAME: "..\\x.bin"}), "in the same folder"),
    "a zero byte": (lambda where, named: named.update({NAME: "x\0.bin"}), "in the same folder"),
    "another kind": (
        lambda where, named: named.update({NAME: "config.json"}),
        "in the same folder",
    ),
    "no name": (lambda where, named: named.update({NAME: 3}), "is in 3, expected the name"),
    "nothing": (lambda where, named: named.clear(), "has no weight_map"),
}


@pytest.mark.parametrize("name", WRONG_SHARDS)
def test_a_wrong_index_is_refused(tmp_path, name):
    change, message = WRONG_SHARDS[name]
    where = write_folder(tmp_path / "model", T5_1_1, golden_weights("t5v11_a"), shards=2)
    index = where / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    change(where, weight_map)
    write_index(where, weight_map)
    with pytest.raises(CheckpointError, match=re.escape(message)):
        open_hugging_face(where)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": 3}'])
def test_an_index_that_is_none_is_refused(tmp_path, content):
    where = write_folder(tmp_path, T5_1_1, golden_weights("t5v11_a"), shards=2)
    (where / "model.safetensors.index.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"index\.json"):
        open_hugging_face(where)


@pytest.mark.parametrize("layout", ["zip", "legacy"])
@pytest.mark.parametrize("sharded", [False, True])
def test_weights_of_torch_are_read(tmp_path, layout, sharded):
    source = GOLDEN / "hf" / f"torch_t5_{layout}.bin"
    config = T5_1_0 | {
        "d_model": 8,
        "d_kv": 3,
        "d_ff": 12,
        "num_layers": 1,
        "num_decoder_layers": 1,
        "num_heads": 2,
        "vocab_size": 24,
        "relative_attention_num_buckets": 4,
        "relative_attention_max_distance": 8,
    }
    where = write_folder(tmp_path, config, {})
    (where / "model.safetensors").unlink()
    name = "pytorch_model-00001-of-00001.bin" if sharded else "pytorch_model.bin"
    shutil.copy(source, tmp_path / name)
    if sharded:
        weight_map = dict.fromkeys(open_torch(where / name), name)
        index = where / "pytorch_model.bin.index.json"
        index.write_text(json.dumps({"weight_map": weight_map}))
    contents = open_hugging_face(where)
    assert contents.config.tied_logits
    assert contents.config.relative_max_distance == 8
    last = np.random.default_rng(25).standard_normal((24, 8), np.float32)
    np.testing.assert_array_equal(contents.tensors["token_embedder/embedding"].load(), last)


# Saving.

SMALL = T5Config(
    vocab_size=20,
    embed_dim=16,
    mlp_dim=24,
    num_heads=2,
    head_dim=6,
    encoder_layers=1,
    decoder_layers=2,
    relative_buckets=8,
    relative_max_distance=16,
)


def random_tensors(config, dtype, seed=0):
    """Returns arrays of random bits, so that a lost one shows."""
    rng = np.random.default_rng(seed)
    dtype = np.dtype(dtype)
    return {
        name: Stored.of(
            np.frombuffer(rng.bytes(int(np.prod(shape)) * dtype.itemsize), dtype).reshape(shape),
            name,
        )
        for name, shape in expected_shapes(config).items()
    }


@settings(max_examples=8)
@given(
    fields=st.fixed_dictionaries(
        {
            "vocab_size": st.integers(1, 30),
            "embed_dim": st.integers(1, 9),
            "mlp_dim": st.integers(1, 9),
            "num_heads": st.integers(1, 3),
            "head_dim": st.integers(1, 5),
            "encoder_layers": st.sampled_from([1, 2, 11]),
            "decoder_layers": st.integers(1, 3),
            "relative_buckets": st.sampled_from([4, 32]),
            "relative_max_distance": st.sampled_from([64, 128]),
            "mlp_activations": st.sampled_from(
                [("gelu", "linear"), ("relu",), ("silu", "linear"), ("gelu",), ("relu", "linear")]
            ),
            "tied_logits": st.booleans(),
        }
    ),
    dtype=st.sampled_from(["float32", "bfloat16", "float16", "float64"]),
    shard_bytes=st.sampled_from([700, 10**9]),
    step=st.none() | st.integers(0, 10**12),
    seed=st.integers(0, 2**32),
)
def test_what_is_saved_is_read_bit_for_bit(
    tmp_path_factory, fields, dtype, shard_bytes, step, seed
):
    config = T5Config(**fields)
    tensors = random_tensors(config, dtype, seed)
    path = epath.Path(tmp_path_factory.mktemp("saved") / "model")
    family = "t5" if config.tied_logits else ("t5", "mt5")[seed % 2]
    save_hugging_face(tensors, config, step, path, shard_bytes=shard_bytes, family=family)
    contents = open_hugging_face(path)
    assert (contents.config, contents.step) == (config, step)
    assert contents.tensors.keys() == tensors.keys()
    for name, one in tensors.items():
        found = contents.tensors[name].load()
        assert (found.dtype, found.shape) == (one.dtype, one.shape)
        assert found.tobytes() == one.load().tobytes()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_arrays_are_cast_when_asked(tmp_path, dtype):
    tensors = {
        name: Stored.of(np.random.default_rng(1).normal(size=one.shape), name)
        for name, one in random_tensors(SMALL, "float32").items()
    }
    save_hugging_face(tensors, SMALL, 3, epath.Path(tmp_path / "x"), dtype=dtype)
    assert json.loads((tmp_path / "x/config.json").read_text())["dtype"] == dtype
    for name, one in open_hugging_face(epath.Path(tmp_path / "x")).tensors.items():
        expected = tensors[name].load().astype(dtype)
        np.testing.assert_array_equal(one.load(), expected, strict=True)


def test_a_folder_is_laid_out_as_transformers_does(tmp_path):
    tensors = random_tensors(SMALL, "float32")
    save_hugging_face(tensors, SMALL, 1_100_000, epath.Path(tmp_path / "whole"))
    assert sorted(path.name for path in (tmp_path / "whole").iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
    ]
    with safetensors.safe_open(tmp_path / "whole/model.safetensors", framework="numpy") as file:
        assert file.metadata() == {"format": "pt", "step": "1100000"}
        names = set(file.keys())
    save_hugging_face(tensors, SMALL, None, epath.Path(tmp_path / "x"), shard_bytes=8_000)
    index = json.loads((tmp_path / "x/model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": sum(one.nbytes for one in tensors.values())}
    assert index["weight_map"].keys() == names
    shards = sorted((tmp_path / "x").glob("model-*"))
    count = len(shards)
    assert count > 2
    assert [shard.name for shard in shards] == [
        f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)
    ]
    assert {*index["weight_map"].values()} == {shard.name for shard in shards}
    assert all(shard.stat().st_size < 8_000 + 2_000 for shard in shards)


def test_a_tensor_larger_than_a_file_gets_its_own(tmp_path):
    tensors = random_tensors(SMALL, "float32")
    save_hugging_face(tensors, SMALL, None, epath.Path(tmp_path / "x"), shard_bytes=1)
    assert len(list((tmp_path / "x").glob("model-*"))) == len(tensors)


def test_config_json_says_the_same_to_both_versions_of_transformers(tmp_path):
    says = {}
    for name, tied, family in (("1.1", False, "t5"), ("1.0", True, "t5"), ("mT5", False, "mt5")):
        config = dataclasses.replace(SMALL, tied_logits=tied)
        path = epath.Path(tmp_path / name)
        save_hugging_face(random_tensors(config, "float32"), config, 0, path, family=family)
        written = json.loads((path / "config.json").read_text())
        says[name] = {
            field: written.get(field)
            for field in ("model_type", "tie_word_embeddings", "scale_decoder_outputs")
        }
    assert says == {
        "1.1": {"model_type": "t5"} | UNTIED | UNSCALED,
        "1.0": {"model_type": "t5"} | TIED | SCALED,
        "mT5": {"model_type": "mt5"} | UNTIED | {"scale_decoder_outputs": None},
    }


def test_saving_holds_about_one_array_in_memory(tmp_path):
    config = t5_config("t5_1_1_small", encoder_layers=3, decoder_layers=3, vocab_size=1024)
    shapes = expected_shapes(config)
    tensors = {
        name: Stored(
            shape=shape,
            dtype=np.dtype(np.float32),
            read=lambda index, shape=shape: np.ones(shape, np.float32)[index],
            where=name,
        )
        for name, shape in shapes.items()
    }
    tracemalloc.start()
    path = epath.Path(tmp_path / "x")
    save_hugging_face(tensors, config, 0, path, dtype="bfloat16", shard_bytes=10_000_000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    largest = max(one.nbytes for one in tensors.values())
    assert sum(one.nbytes for one in tensors.values()) > 10 * largest
    assert peak < 3 * largest


def test_steps_of_different_exports_are_not_mixed(tmp_path):
    tensors = random_tensors(SMALL, "float32")
    for step in (1, 2):
        path = epath.Path(tmp_path / str(step))
        save_hugging_face(tensors, SMALL, step, path, shard_bytes=8_000)
    shard = next((tmp_path / "1").glob("model-00001-*"))
    shutil.copy(shard, tmp_path / "2")
    with pytest.raises(CheckpointError, match=r"are of different steps, \['1', '2'\]"):
        open_hugging_face(epath.Path(tmp_path / "2"))


@pytest.mark.parametrize("step", ["last", "-3", "", "9" * 30, "1e3"])
def test_a_step_of_somebody_else_is_no_step(tmp_path, step):
    where = write_folder(tmp_path, T5_1_1, {})
    safetensors.numpy.save_file(
        golden_weights("t5v11_a"), tmp_path / "model.safetensors", {"format": "pt", "step": step}
    )
    assert open_hugging_face(where).step is None


def saved(path, *, changes=None, config=SMALL, **options):
    tensors = random_tensors(SMALL, "float32") | (changes or {})
    save_hugging_face(tensors, config, 0, path, **options)


VECTORS = Stored.of(np.zeros((5, 16), np.float32), "prompt")
TIED_SMALL = dataclasses.replace(SMALL, tied_logits=True)
# Options, and what is said about them.
UNSAVED = {
    "a prompt": (
        {"changes": {"encoder/prompt/prompt/prompt": VECTORS}},
        CheckpointError,
        "have no place in it: encoder/prompt/prompt/prompt. Save a prompt as an adapter of PEFT",
    ),
    "another model": (
        {"config": dataclasses.replace(SMALL, decoder_layers=3)},
        CheckpointError,
        "missing 'decoder/layers_2/",
    ),
    "another shape": (
        {"changes": {"encoder/encoder_norm/scale": VECTORS}},
        CheckpointError,
        "prompt has shape (5, 16), but 'encoder/encoder_norm/scale' of this model has (16,)",
    ),
    "a head that is tied": ({"config": TIED_SMALL}, CheckpointError, "left over 'decoder/logits"),
    "another family": ({"family": "bert"}, ConfigError, "Unknown family 'bert', known are t5, mt5"),
    "float16": ({"dtype": "float16"}, ConfigError, "Cannot save as 'float16', expected float32 or"),
    "no bytes": ({"shard_bytes": 0}, ConfigError, "shard_bytes is 0, expected a positive number"),
}


@pytest.mark.parametrize("name", UNSAVED)
def test_what_cannot_be_saved_is_refused_and_leaves_nothing(tmp_path, name):
    options, kind, message = UNSAVED[name]
    with pytest.raises(kind, match=re.escape(message)):
        saved(epath.Path(tmp_path / "x"), **options)
    assert list(tmp_path.iterdir()) == []


def test_an_mt5_is_never_tied(tmp_path):
    tensors = random_tensors(TIED_SMALL, "float32")
    with pytest.raises(CheckpointError, match=r"An mT5 .* never scales its output"):
        save_hugging_face(tensors, TIED_SMALL, 0, epath.Path(tmp_path / "x"), family="mt5")


def test_activations_without_a_name_there_are_refused(tmp_path):
    config = dataclasses.replace(SMALL, mlp_activations=("linear", "gelu"))
    with pytest.raises(CheckpointError, match="has no name at Hugging Face"):
        saved(epath.Path(tmp_path / "x"), config=config)


def test_a_folder_that_is_there_is_not_touched(tmp_path):
    (tmp_path / "x").mkdir()
    with pytest.raises(CheckpointError, match="already exists"):
        saved(epath.Path(tmp_path / "x"))
    assert list((tmp_path / "x").iterdir()) == []


def test_an_export_that_fails_leaves_nothing(tmp_path):
    def fails(index):
        raise CheckpointError("cut short")

    # The last one that is written.
    bad = Stored(shape=(20, 16), dtype=np.dtype(np.float32), read=fails, where="bad")
    with pytest.raises(CheckpointError, match="cut short"):
        saved(
            epath.Path(tmp_path / "x"),
            changes={"token_embedder/embedding": bad},
            shard_bytes=1_000,
        )
    assert list(tmp_path.iterdir()) == []
