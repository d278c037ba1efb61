import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from prompt_tuning.batch import PAD, Batch, shift_right
from prompt_tuning.model import T5, BaseParam
from prompt_tuning.model.parameters import fingerprint, named
from prompt_tuning.prompts import KeyValuePrefix, Prompt, PromptParam, Scale, uniform
from tests.reference_models import QUICKLY, filled
from tests.small_models import BATCH, MODELS, T5_1_1, compiled, small_model

every_model = pytest.mark.parametrize("name", MODELS)


class Dependencies(NamedTuple):
    """What depends on what: any gradient from an output position to an input position.

    The decoder's own input at position u is the token before it, at position 0 the start.
    """

    encoder_on_text: np.ndarray  # [B S B T]
    encoder_on_prompt: np.ndarray  # [B S P]
    decoder_on_text: np.ndarray  # [B U B T]
    decoder_on_prompt: np.ndarray  # [B U P]
    decoder_on_spoken: np.ndarray  # [B U B U]
    encoder_real: np.ndarray  # [B S]


@functools.partial(jax.jit, static_argnums=0, compiler_options=QUICKLY)
def jacobians(graph, prompt, frozen):
    model = nnx.merge(graph, prompt, frozen)
    inputs = shift_right(BATCH.targets)
    weights = jnp.asarray(np.random.default_rng(0).normal(size=T5_1_1.embed_dim), jnp.float32)

    def outputs(prompt, text, spoken):
        model = nnx.merge(graph, prompt, frozen)
        encoded = model.encoder(text, BATCH.inputs, key=None)
        hidden = model.decoder(spoken, inputs, BATCH.targets, encoded, None, key=None)
        return (encoded.hidden @ weights, hidden @ weights), encoded.real

    text, spoken = model.token_embedder(BATCH.inputs), model.token_embedder(inputs)
    return jax.jacrev(outputs, argnums=(0, 1, 2), has_aux=True)(prompt, text, spoken)


@functools.cache
def dependencies(name):
    ((encoder, decoder), real) = jacobians(*nnx.split(small_model(name), PromptParam, ...))

    def on(jacobian):
        return np.any(np.asarray(jacobian) != 0, axis=-1)

    def on_prompt(jacobian):
        return on(named(jacobian).get("encoder/prompt/prompt", np.zeros((*real.shape, 0, 1))))

    return Dependencies(
        on(encoder[1]),
        on_prompt(encoder[0]),
        on(decoder[1]),
        on_prompt(decoder[0]),
        on(decoder[2]),
        np.asarray(real),
    )


TEXT = np.asarray(BATCH.inputs != PAD)
# The decoder's positions count as long as there is a token to read, and the first always.
SPOKEN = np.asarray(shift_right(BATCH.targets) != PAD) | (np.arange(4) == 0)


def in_the_same_row(outputs, inputs):
    """Every real output on every real input of its own row: `[B S B T]`."""
    rows = np.eye(len(outputs), dtype=bool)[:, None, :, None]
    return outputs[:, :, None, None] & inputs[None, None, :, :] & rows


@every_model
def test_every_token_reaches_every_output_of_its_row_and_no_other_row(name):
    found = dependencies(name)
    expected = in_the_same_row(found.encoder_real, TEXT)
    np.testing.assert_array_equal(found.encoder_on_text, expected)
    np.testing.assert_array_equal(found.decoder_on_text, in_the_same_row(SPOKEN, TEXT))


@pytest.mark.parametrize("name", [name for name in MODELS if "prompt" in MODELS[name][1]])
def test_every_prompt_vector_reaches_every_output_of_every_row(name):
    found = dependencies(name)
    for outputs, reached in (
        (found.encoder_real, found.encoder_on_prompt),
        (SPOKEN, found.decoder_on_prompt),
    ):
        assert reached.shape == (*outputs.shape, 3)
        np.testing.assert_array_equal(reached, np.broadcast_to(outputs[:, :, None], reached.shape))


@pytest.mark.parametrize("name", [name for name in MODELS if MODELS[name][1]])
def test_all_that_a_method_learned_reaches_the_logits(name):
    graph, learned, frozen = nnx.split(small_model(name), PromptParam, ...)

    @functools.partial(jax.jit, compiler_options=QUICKLY)
    def gradient(learned, frozen):
        def size(learned):
            return jnp.sum(jnp.square(nnx.merge(graph, learned, frozen)(BATCH)))

        return jax.grad(size)(learned)

    for key, array in named(gradient(learned, frozen)).items():
        assert np.all(np.asarray(array) != 0), key


def test_scales_of_one_change_nothing():
    plain = small_model("T5 1.1")
    scaled = dict(named(nnx.state(small_model("T5 1.1 with scales"))))
    ones = {name: jnp.ones_like(a) for name, a in scaled.items() if name.endswith("ia3_scaling")}
    assert len(ones) == 3 + 5
    model = filled(T5_1_1, scaled | ones, scales=Scale)
    np.testing.assert_array_equal(
        compiled(model, "__call__", BATCH), compiled(plain, "__call__", BATCH)
    )


@every_model
def test_the_decoder_depends_on_all_that_was_said_before_and_nothing_later(name):
    before = np.tri(4, dtype=bool)[None, :, None, :]
    expected = in_the_same_row(SPOKEN, SPOKEN) & before
    np.testing.assert_array_equal(dependencies(name).decoder_on_spoken, expected)


@every_model
@pytest.mark.parametrize("position", range(4))
def test_the_logits_of_a_token_do_not_depend_on_it(name, position):
    model = small_model(name)
    changed = dataclasses.replace(BATCH, targets=BATCH.targets.at[:, position].set(20))
    full = np.asarray(BATCH.targets[:, -1] != PAD)
    before = np.asarray(compiled(model, "__call__", BATCH))[full]
    after = np.asarray(compiled(model, "__call__", changed))[full]
    assert len(before) == 2
    np.testing.assert_array_equal(after[:, : position + 1], before[:, : position + 1])
    assert np.all(np.any(after[:, position + 1 :] != before[:, position + 1 :], axis=-1))


@every_model
def test_more_padding_changes_nothing(name):
    model = small_model(name)
    wider = Batch(
        inputs=jnp.pad(BATCH.inputs, ((0, 0), (0, 3))),
        targets=jnp.pad(BATCH.targets, ((0, 0), (0, 2))),
        weights=jnp.pad(BATCH.weights, ((0, 0), (0, 2))),
    )
    logits = np.asarray(compiled(model, "__call__", BATCH))
    padded = np.asarray(compiled(model, "__call__", wider))
    # The position after a target has nothing to see and attends to all keys alike, however many
    # there are. It has no weight.
    real = np.asarray(BATCH.targets != PAD)
    np.testing.assert_allclose(padded[:, :4][real], logits[real], atol=1e-5)


@every_model
def test_logits_are_float32_whatever_the_model_computes_in(name):
    model = nnx.eval_shape(lambda: small_model(name, dtype="bfloat16", param_dtype="bfloat16"))
    graph, state = nnx.split(model)
    arrays = named(nnx.state(model, BaseParam))
    kept = [
        array.dtype
        for name, array in arrays.items()
        if f"{name}_scale" not in arrays and not name.endswith("_scale")
    ]
    assert set(kept) == {jnp.dtype("bfloat16")}
    logits = jax.eval_shape(lambda state: nnx.merge(graph, state)(BATCH), state)
    assert (logits.shape, logits.dtype) == ((4, 4, 50), jnp.float32)


LARGE = dataclasses.replace(T5_1_1, vocab_size=512, embed_dim=64, mlp_dim=256, head_dim=16)


@functools.cache
def drawn(config, **methods):
    """Returns the first parameters of a model drawn from seed 0."""
    make = jax.jit(
        lambda: named(nnx.state(T5(config, **methods, rngs=nnx.Rngs(0)))),
        compiler_options=QUICKLY,
    )
    return {name: np.asarray(array) for name, array in make().items()}


# Of the original's initialisers; D 64, N 2, H 16, F 256 (kernels: 1 / sqrt of what goes in).
DEVIATIONS = {
    "query/kernel": 64**-0.5 / 16**0.5,  # Instead of dividing scores by the root of H.
    "key/kernel": 64**-0.5,
    "value/kernel": 64**-0.5,
    "out/kernel": 32**-0.5,
    "mlp/wi_0/kernel": 64**-0.5,
    "mlp/wi_1/kernel": 64**-0.5,
    "mlp/wo/kernel": 256**-0.5,
    "logits_dense/kernel": 64**-0.5,
    "token_embedder/embedding": 1.0,
    "relpos_bias/rel_embedding": ((2 + 8) / 2) ** -0.5,
}


def test_parameters_start_as_spread_as_in_the_original():
    for name, array in drawn(LARGE).items():
        if name.endswith("scale"):
            np.testing.assert_array_equal(array, np.ones_like(array))
            continue
        [deviation] = [value for end, value in DEVIATIONS.items() if name.endswith(end)]
        # Four standard deviations of the estimate.
        tolerance = 4 / np.sqrt(2 * array.size)
        np.testing.assert_allclose(np.std(array), deviation, rtol=tolerance, err_msg=name)
        assert abs(np.mean(array)) < 4 * deviation / np.sqrt(array.size), name


def test_every_parameter_of_every_layer_is_drawn_by_itself():
    kernels = {name: array for name, array in drawn(LARGE).items() if "kernel" in name}
    assert len(kernels) == 7 + 11 + 1
    assert len({array.tobytes() for array in kernels.values()}) == len(kernels)
    for name, array in kernels.items():
        if "/layers/" in name:
            assert len(np.unique(array[:, 0, 0])) == len(array), name


def test_a_seed_gives_the_same_base_with_and_without_methods():
    arrays = drawn(
        LARGE,
        prompt=functools.partial(Prompt, length=3, init=uniform()),
        prefix=functools.partial(KeyValuePrefix, length=2, init=uniform()),
        scales=Scale,
    )
    base = drawn(LARGE)
    learned = arrays.keys() - base.keys()
    assert len(learned) == 1 + 2 + 8
    assert arrays["encoder/prompt/prompt"].shape == (3, 64)
    assert fingerprint({name: arrays[name] for name in base}) == fingerprint(base)


def counted(targets):
    """Which positions have logits, that is, are not taken for padding."""
    model = small_model("T5 1.1")
    encoded = compiled(model, "encode", BATCH.inputs[:3])
    logits = compiled(model, "decode", encoded, jnp.asarray(targets))
    return np.any(np.asarray(logits) != 0, axis=-1)


def test_decoder_positions_count_as_in_the_original(golden):
    recorded = golden("misc/masks.npz")
    found = counted(recorded["encoder_input_tokens"])
    np.testing.assert_array_equal(found, recorded["decoder_logit_mask"][:, :, 0] == 1)
    np.testing.assert_array_equal(
        found, [[1, 1, 1, 1, 1, 0], [1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1]]
    )


def test_the_start_counts_always_and_its_id_before_another_token():
    targets = [[0, 0, 0, 0, 0, 0], [5, 0, 7, 1, 0, 0], [5, 0, 0, 7, 1, 0]]
    #  inputs   0  0  0  0  0  0    0  5  0  7  1  0    0  5  0  0  7  1
    np.testing.assert_array_equal(
        counted(targets), [[1, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 0], [1, 1, 0, 1, 1, 1]]
    )
