import numpy as np
import pytest

from prompt_tuning.checkpoints.containers.stored import Stored
from prompt_tuning.checkpoints.contents import expected_shapes
from prompt_tuning.checkpoints.mapping import (
    RULES,
    fill,
    from_t5x,
    to_t5x,
    to_t5x_names,
    translated,
)
from prompt_tuning.errors import CheckpointError
from prompt_tuning.model import t5_config
from tests.reference_models import CONFIGS

every_model = pytest.mark.parametrize("name", CONFIGS)


def small(layers=2, stack="encoder"):
    """Returns a kernel of every layer, filled with the number of its layer."""
    return {f"{stack}/layers_{i}/mlp/wo/kernel": np.full((3, 2), float(i)) for i in range(layers)}


@every_model
def test_t5x_names_there_and_back_are_the_same_arrays(golden, name):
    theirs = golden(f"{name}/params.npz")
    back = to_t5x(from_t5x(theirs))
    assert back.keys() == theirs.keys()
    for key, array in theirs.items():
        np.testing.assert_array_equal(back[key], array, err_msg=key)


def test_layers_are_stacked_and_the_prompt_is_nested_less_deep(golden):
    theirs = golden("C/params.npz")
    assert {name: array.shape for name, array in from_t5x(theirs).items()} == {
        "token_embedder/embedding": (272, 40),
        "encoder/prompt/prompt": (7, 40),
        "encoder/relpos_bias/rel_embedding": (3, 32),
        "encoder/layers/pre_attention_layer_norm/scale": (2, 40),
        "encoder/layers/attention/query/kernel": (2, 40, 48),
        "encoder/layers/attention/key/kernel": (2, 40, 48),
        "encoder/layers/attention/value/kernel": (2, 40, 48),
        "encoder/layers/attention/out/kernel": (2, 48, 40),
        "encoder/layers/pre_mlp_layer_norm/scale": (2, 40),
        "encoder/layers/mlp/wi_0/kernel": (2, 40, 56),
        "encoder/layers/mlp/wi_1/kernel": (2, 40, 56),
        "encoder/layers/mlp/wo/kernel": (2, 56, 40),
        "encoder/encoder_norm/scale": (40,),
        "decoder/relpos_bias/rel_embedding": (3, 32),
        "decoder/layers/pre_self_attention_layer_norm/scale": (1, 40),
        "decoder/layers/self_attention/query/kernel": (1, 40, 48),
        "decoder/layers/self_attention/key/kernel": (1, 40, 48),
        "decoder/layers/self_attention/value/kernel": (1, 40, 48),
        "decoder/layers/self_attention/out/kernel": (1, 48, 40),
        "decoder/layers/pre_cross_attention_layer_norm/scale": (1, 40),
        "decoder/layers/encoder_decoder_attention/query/kernel": (1, 40, 48),
        "decoder/layers/encoder_decoder_attention/key/kernel": (1, 40, 48),
        "decoder/layers/encoder_decoder_attention/value/kernel": (1, 40, 48),
        "decoder/layers/encoder_decoder_attention/out/kernel": (1, 48, 40),
        "decoder/layers/pre_mlp_layer_norm/scale": (1, 40),
        "decoder/layers/mlp/wi_0/kernel": (1, 40, 56),
        "decoder/layers/mlp/wi_1/kernel": (1, 40, 56),
        "decoder/layers/mlp/wo/kernel": (1, 56, 40),
        "decoder/decoder_norm/scale": (40,),
        "decoder/logits_dense/kernel": (40, 272),
    }


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_layers_are_stacked_by_number_not_by_name(stack):
    # As text, layers_10 comes before layers_2.
    arrays = dict(sorted(small(layers=12, stack=stack).items()))
    [(name, stacked)] = from_t5x(arrays).items()
    assert name == f"{stack}/layers/mlp/wo/kernel"
    np.testing.assert_array_equal(stacked[:, 0, 0], np.arange(12))


def test_mapping_keeps_the_dtype():
    arrays = {name: array.astype(np.float16) for name, array in small().items()}
    [stacked] = from_t5x(arrays).values()
    assert stacked.dtype == np.float16
    assert {array.dtype for array in to_t5x(from_t5x(arrays)).values()} == {np.dtype("float16")}


def test_missing_layers_are_counted():
    arrays = small(layers=5)
    del arrays["encoder/layers_1/mlp/wo/kernel"], arrays["encoder/layers_3/mlp/wo/kernel"]
    with pytest.raises(CheckpointError) as error:
        from_t5x(arrays)
    assert str(error.value) == (
        "Layers [1, 3] of 'encoder/layers/mlp/wo/kernel' are missing (found [0, 2, 4]). The "
        "checkpoint is incomplete."
    )


def test_layers_of_different_shapes_are_named():
    arrays = small() | {"encoder/layers_1/mlp/wo/kernel": np.zeros((2, 3))}
    with pytest.raises(CheckpointError) as error:
        from_t5x(arrays)
    assert str(error.value) == (
        "The layers of 'encoder/layers/mlp/wo/kernel' have different shapes, [(2, 3), (3, 2)]; a "
        "stack needs one."
    )


# The table of names.

COLUMNS = ("t5x", "hugging_face", "mesh_tensorflow")


@pytest.mark.parametrize("source", COLUMNS)
@pytest.mark.parametrize("target", COLUMNS)
def test_every_name_is_translated_by_its_own_rule(source, target):
    for rule in RULES:
        for index in (0, 7, 123):
            name = fill(rule, source, index)
            found = translated(name, source=source, target=target)
            assert found == (fill(rule, target, index), rule), name


def test_no_two_rules_have_a_name_in_common():
    for column in COLUMNS:
        names = [getattr(rule, column) for rule in RULES]
        assert len(names) == len(set(names))


def test_the_table_has_every_parameter_of_every_family():
    families = [CONFIGS["C"], t5_config("t5_small"), t5_config("mt5_small")]
    known = {fill(rule, "t5x", index) for rule in RULES for index in range(12)}
    for config in families:
        assert expected_shapes(config).keys() <= known


@pytest.mark.parametrize(
    "name",
    [
        "",
        "encoder.block.07.layer.0.layer_norm.weight",
        "encoder.block.x.layer.0.layer_norm.weight",
        f"encoder.block.{'9' * 5000}.layer.0.layer_norm.weight",
        "encoder.block.0.layer.0.SelfAttention.q.bias",
        "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight",
    ],
)
def test_a_name_of_no_rule_is_nobody_s(name):
    assert translated(name, source="hugging_face", target="t5x") is None


def test_what_no_rule_knows_is_left_over_and_named():
    tensors = {"shared.weigth": Stored.of(np.zeros((2, 2)), "x")}
    with pytest.raises(CheckpointError) as error:
        to_t5x_names(tensors, source="hugging_face", where="model")
    assert str(error.value) == (
        "model holds 1 arrays that a T5 does not have; is it a checkpoint of another "
        "architecture?\n  left over 'shared.weigth'. Did you mean 'shared.weight' or "
        "'lm_head.weight'?"
    )


def test_kernels_of_torch_are_turned_and_those_of_mesh_tensorflow_are_not():
    kernel = Stored.of(np.zeros((3, 2)), "x")
    names = {
        "hugging_face": "encoder.block.0.layer.1.DenseReluDense.wo.weight",
        "mesh_tensorflow": "encoder/block_000/layer_001/DenseReluDense/wo/kernel",
    }
    for column, shape in (("hugging_face", (2, 3)), ("mesh_tensorflow", (3, 2))):
        found = to_t5x_names({names[column]: kernel}, source=column, where="model")
        assert {name: one.shape for name, one in found.items()} == {
            "encoder/layers_0/mlp/wo/kernel": shape
        }
