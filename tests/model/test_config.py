import dataclasses

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from prompt_tuning.batch import Batch
from prompt_tuning.errors import ConfigError
from prompt_tuning.losses import Loss
from prompt_tuning.model import SIZES, T5, BaseParam, t5_config
from prompt_tuning.model.config import FAMILIES, model_name
from prompt_tuning.model.parameters import count
from prompt_tuning.prompts import PromptParam
from tests.jaxprs import equations
from tests.small_models import T5_1_1, small_model

# Papers and model cards give these, rounded. mt5_80b and mt5_150b were never published.
PARAMETERS = {
    "t5_1_1_small": 76_961_152,
    "t5_1_1_base": 247_577_856,
    "t5_1_1_large": 783_150_080,
    "t5_1_1_xl": 2_849_757_184,
    "t5_1_1_xxl": 11_135_332_352,
    "mt5_small": 300_176_768,
    "mt5_base": 582_401_280,
    "mt5_large": 1_229_581_312,
    "mt5_xl": 3_742_619_648,
    "mt5_xxl": 12_921_057_280,
    "byt5_small": 299_637_760,
    "byt5_base": 581_653_248,
    "byt5_large": 1_228_183_552,
    "byt5_xl": 3_737_801_728,
    "byt5_xxl": 12_906_899_328,
    "t5_small": 60_506_624,
    "t5_base": 222_903_552,
    "t5_large": 737_668_096,
    "t5_3b": 2_851_598_336,
    "t5_11b": 11_307_321_344,
}


def by_formula(name):
    """Counts parameters from the size alone, as one would on paper."""
    c = t5_config(name)
    attention = 4 * c.embed_dim * c.num_heads * c.head_dim
    mlp = (1 + len(c.mlp_activations)) * c.embed_dim * c.mlp_dim
    encoder = c.encoder_layers * (attention + mlp + 2 * c.embed_dim)
    decoder = c.decoder_layers * (2 * attention + mlp + 3 * c.embed_dim)
    tables = (1 if c.tied_logits else 2) * c.vocab_size * c.embed_dim
    return encoder + decoder + tables + 2 * c.embed_dim + 2 * 32 * c.num_heads


def built(name):
    model = nnx.eval_shape(lambda: T5(t5_config(name), rngs=nnx.Rngs(0)))
    return count(nnx.state(model, BaseParam))


@pytest.mark.parametrize("name", SIZES)
def test_every_size_has_as_many_parameters_as_its_formula(name):
    assert built(name) == by_formula(name)


def test_published_sizes_have_as_many_parameters_as_published():
    assert {name: by_formula(name) for name in PARAMETERS} == PARAMETERS


def test_lm_adapted_sizes_are_those_of_t5_1_1():
    for size in ("small", "base", "large", "xl", "xxl"):
        assert SIZES[f"t5_1_1_lm100k_{size}"] == SIZES[f"t5_1_1_{size}"]


def test_families_differ_where_they_should():
    assert t5_config("t5_1_1_small").mlp_activations == ("gelu", "linear")
    assert t5_config("t5_small").mlp_activations == ("relu",)
    assert [name for name in SIZES if t5_config(name).tied_logits] == [
        "t5_small",
        "t5_base",
        "t5_large",
        "t5_3b",
        "t5_11b",
    ]
    assert t5_config("byt5_small").encoder_layers == 3 * t5_config("byt5_small").decoder_layers
    assert t5_config("mt5_150b").vocab_size == 250368


def test_fields_may_be_replaced():
    config = t5_config("ours_tiny", vocab_size=100, dtype="float32")
    assert config == dataclasses.replace(t5_config("ours_tiny"), vocab_size=100, dtype="float32")


def test_a_step_of_many_layers_is_as_long_as_that_of_few():
    def length(layers):
        graph, prompt, frozen = nnx.split(
            small_model(encoder_layers=layers, decoder_layers=layers), PromptParam, ...
        )
        batch = Batch(
            inputs=jnp.ones((2, 5), jnp.int32),
            targets=jnp.ones((2, 3), jnp.int32),
            weights=jnp.ones((2, 3)),
        )

        def loss(prompt, frozen):
            return Loss()(nnx.merge(graph, prompt, frozen)(batch), batch)[0]

        return sum(1 for _ in equations(jax.grad(loss), prompt, frozen))

    assert length(2) == length(12)


@pytest.mark.parametrize("field", ["dtype", "param_dtype"])
def test_float16_is_refused_with_the_reason(field):
    with pytest.raises(ConfigError) as error:
        t5_config("t5_1_1_small", **{field: "float16"})
    assert str(error.value) == (
        f"T5Config({field}='float16'): T5 was trained in bfloat16 and its activations exceed the "
        "largest float16 (65504), so that losses turn into NaN from size large on. Use "
        "'bfloat16', which costs the same, or 'float32'."
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"dtype": "bfloat"},
            "T5Config(dtype='bfloat'): expected one of ('float32', 'bfloat16'). Did you mean "
            "'bfloat16' or 'float32'?",
        ),
        (
            {"param_dtype": "int8"},
            "T5Config(param_dtype='int8'): expected one of ('float32', 'bfloat16').",
        ),
        (
            {"mlp_activations": ("gleu", "linear")},
            "T5Config(mlp_activations=('gleu', 'linear')): unknown activation 'gleu', known are "
            "['gelu', 'linear', 'relu', 'silu']. Did you mean 'gelu'?",
        ),
        ({"dropout_rate": 1.0}, "T5Config(dropout_rate=1.0): expected a rate in [0, 1)."),
        ({"dropout_rate": -0.1}, "T5Config(dropout_rate=-0.1): expected a rate in [0, 1)."),
        (
            {"remat": "minimum"},
            "T5Config(remat='minimum'): unknown rematerialisation policy, known are none, "
            "minimal, projections, full. Did you mean 'minimal'?",
        ),
    ],
)
def test_what_cannot_be_built_is_named(fields, message):
    with pytest.raises(ConfigError) as error:
        dataclasses.replace(T5_1_1, **fields)
    assert str(error.value) == message


def test_none_leaves_a_field_as_it_is():
    assert t5_config("ours_tiny", num_heads=None) == t5_config("ours_tiny")


def test_a_family_and_a_size_make_a_name():
    names = [model_name(family, size) for family in FAMILIES for size in FAMILIES[family]]
    assert names == list(SIZES)


@pytest.mark.parametrize(
    ("family", "size", "message"),
    [
        (
            "t5_1",
            "base",
            "MODEL_FAMILY is 't5_1', but the families are t5_1_1, t5_1_1_lm100k, mt5, byt5, t5, "
            "ours. Did you mean 't5_1_1' or 't5'? Load the file of one, such as "
            "models/t5_1_1.gin, or set MODEL_NAME.",
        ),
        (
            "t5",
            "11B",
            "MODEL_SIZE is '11B', but t5 comes in the sizes small, base, large, 3b, 11b. Did you "
            "mean '11b'? Choose one of their files models/sizes/SIZE.gin, or another family.",
        ),
        (
            "mt5",
            None,
            "MODEL_SIZE is None, but mt5 comes in the sizes small, base, large, xl, xxl, 80b, "
            "150b. Choose one of their files models/sizes/SIZE.gin, or another family.",
        ),
    ],
)
def test_a_family_says_which_sizes_it_has(family, size, message):
    with pytest.raises(ConfigError) as error:
        model_name(family, size)
    assert str(error.value) == message


def test_an_unknown_size_is_answered_with_the_nearest():
    with pytest.raises(ConfigError) as error:
        t5_config("t5_1_1_smal")
    assert str(error.value) == (
        f"Unknown model size 't5_1_1_smal', known are {', '.join(SIZES)}. Did you mean "
        "'t5_1_1_small' or 't5_1_1_xl' or 't5_1_1_xxl'?"
    )
