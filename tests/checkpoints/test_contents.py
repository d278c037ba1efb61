"""Which T5 a set of arrays is, and what is wrong if it is none."""

import re

import numpy as np
import pytest
from etils import epath

from prompt_tuning.checkpoints.containers.stored import Stored
from prompt_tuning.checkpoints.contents import contents, expected_shapes
from prompt_tuning.errors import CheckpointError
from prompt_tuning.model import t5_config
from tests import assets
from tests.reference_models import CONFIGS

WHERE = epath.Path("model")
EVERY_SIZE = ["t5_1_1_small", "t5_1_1_xxl", "mt5_base", "byt5_small", "t5_small", "t5_11b"]


def shapes_only(config):
    def read(index):
        raise AssertionError("nothing is read on opening")

    return {
        name: Stored(shape=shape, dtype=np.dtype(np.float32), read=read, where=name)
        for name, shape in expected_shapes(config).items()
    }


def opened(tensors, **given):
    return contents(kind="t5x", where=WHERE, tensors=tensors, **given)


def refused(tensors, message, **given):
    with pytest.raises(CheckpointError, match=message) as error:
        opened(tensors, **given)
    assert error.value.exit_code == 4


@pytest.mark.parametrize("name", EVERY_SIZE)
def test_every_size_is_recognised_by_its_shapes_alone(name):
    config = t5_config(name)
    assert opened(shapes_only(config)).config == config


def test_methods_and_slots_are_kept_apart():
    tensors = assets.stored({**assets.arrays(), assets.T5X_PROMPT: assets.prompt()})
    found = opened(tensors, slots={"x/v": tensors[assets.T5X_PROMPT]}, step=3)
    assert found.tensors.keys() == assets.arrays().keys()
    assert list(found.methods) == [assets.T5X_PROMPT]
    assert (list(found.slots), found.step) == (["x/v"], 3)
    assert found.config.dtype == "bfloat16"  # a choice of the run, not of the checkpoint


@pytest.mark.parametrize("name", sorted(expected_shapes(CONFIGS["C"])))
def test_no_array_can_be_missing_or_of_another_shape(name):
    tensors = assets.stored(assets.arrays())
    if name != "decoder/logits_dense/kernel":  # without it the logits are tied
        refused({key: one for key, one in tensors.items() if key != name}, ".")
    wrong = np.zeros((*tensors[name].shape[:-1], tensors[name].shape[-1] + 1), np.float32)
    refused({**tensors, name: Stored.of(wrong, name)}, ".")


def test_what_is_missing_is_named_as_the_user_s_file_does():
    tensors = assets.stored(assets.arrays())
    del tensors["encoder/layers_1/mlp/wo/kernel"]
    name = re.escape("missing 'encoder.block.1.layer.1.DenseReluDense.wo.weight'")
    refused(tensors, name, column="hugging_face")


def test_what_is_left_over_is_named():
    tensors = assets.stored({**assets.arrays(), "encoder/bias": np.zeros(3, np.float32)})
    refused(tensors, "1 left over.\n  left over 'encoder/bias'")


@pytest.mark.parametrize("dtype", [np.int32, np.complex64, bool])
def test_numbers_that_are_no_floats_are_refused(dtype):
    name = "encoder/encoder_norm/scale"
    wrong = Stored.of(np.zeros(40, dtype), "the norm")
    refused({**assets.stored(assets.arrays()), name: wrong}, "the norm holds .*, expected one of")


@pytest.mark.parametrize(
    ("field", "value"), [("num_heads", 4), ("encoder_layers", 3), ("tied_logits", True)]
)
def test_a_configuration_that_contradicts_the_arrays_is_refused(field, value):
    message = f"The configuration of model says {field} is {value}, its arrays say"
    refused(assets.stored(assets.arrays()), message, settings={field: value})


def test_what_shapes_do_not_show_is_taken_from_the_configuration():
    tensors = assets.stored(assets.arrays())
    settings = {"relative_max_distance": 64, "mlp_activations": ("silu", "linear")}
    found = opened(tensors, settings=settings)
    assert (found.config.relative_max_distance, found.config.mlp_activations) == (
        64,
        ("silu", "linear"),
    )
    assert found.stated == settings.keys()
    refused(tensors, "those of a gated MLP", settings={"mlp_activations": ("relu",)})


def test_heads_that_do_not_divide_the_attention_are_refused():
    tensors = assets.stored(assets.arrays())
    table = Stored.of(np.zeros((5, 32), np.float32), "x")
    tensors["encoder/relpos_bias/rel_embedding"] = table
    refused(tensors, "width 48 cannot be divided among the 5 heads")
