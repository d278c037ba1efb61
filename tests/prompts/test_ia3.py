import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from prompt_tuning.checkpoints.mapping import from_t5x
from prompt_tuning.losses import Loss
from prompt_tuning.model import parameters
from prompt_tuning.prompts import PromptParam, Scale
from prompt_tuning.training.optimizer import adafactor
from prompt_tuning.training.schedules import learning_rate
from prompt_tuning.training.state import split_model
from prompt_tuning.training.step import make_train_step
from tests.reference_models import CONFIGS, QUICKLY, filled, forward, read, reference_batches

RECORDED = read("A/ia3.npz")


def recorded(prefix, suffix=""):
    """Returns the recorded arrays below a name, as ours."""
    found = {
        name.removeprefix(prefix).removesuffix(suffix): array
        for name, array in RECORDED.items()
        if name.startswith(prefix) and name.endswith(f"ia3_scaling{suffix}")
    }
    assert len(found) == 16
    return from_t5x(found)


@functools.cache
def model():
    """Model A without a prompt, with the factors that the original drew around 1."""
    base = from_t5x(read("A/params.npz"))
    del base["encoder/prompt/prompt"]
    return filled(CONFIGS["A"], base | recorded("params/"), scales=Scale)


def test_scales_begin_at_one_in_float32():
    made = Scale(shape=(2, 3), axes=("layers", "mlp"))
    _, found, rest = nnx.split(made, PromptParam, ...)
    assert parameters.axes(found) == {"ia3_scaling": ("layers", "mlp")}
    np.testing.assert_array_equal(made.ia3_scaling[...], np.ones((2, 3), np.float32))
    assert not jax.tree.leaves(rest)


def test_every_feature_has_its_own_factor():
    made = Scale(shape=(2, 3), axes=("heads", "kv"))
    made.ia3_scaling[...] = jnp.arange(6.0).reshape(2, 3)
    scaled = made(jnp.full((4, 5, 2, 3), 2.0))
    expected = np.broadcast_to([[0, 2, 4], [6, 8, 10]], (4, 5, 2, 3))
    np.testing.assert_array_equal(scaled, expected)


def test_the_gradient_of_the_factors_is_summed_in_float32():
    # 257 needs 9 bits, bfloat16 has 8.
    graph, state = nnx.split(Scale(shape=(2,), axes=("mlp",)))

    def total(state):
        scaled = nnx.merge(graph, state)(jnp.ones((257, 1, 2), jnp.bfloat16))
        assert scaled.dtype == jnp.bfloat16
        return jnp.sum(scaled.astype(jnp.float32))

    gradient = jax.jit(jax.grad(total))(state)["ia3_scaling"][...]
    np.testing.assert_array_equal(gradient, [257.0, 257.0])


@pytest.mark.parametrize("name", ["batch0", "batch1"])
def test_outputs_with_scales_equal_the_original(name):
    hidden, logits = forward(model(), reference_batches("A")[name])
    np.testing.assert_allclose(hidden, RECORDED[f"{name}/encoder_outputs"], atol=2e-5)
    np.testing.assert_allclose(logits, RECORDED[f"{name}/logits"], atol=2e-5)


@functools.cache
def gradient():
    graph, scales, frozen = split_model(model(), PromptParam)

    def loss(scales, frozen, batch):
        return Loss()(nnx.merge(graph, scales, frozen)(batch), batch)[0]

    compiled = jax.jit(jax.value_and_grad(loss), compiler_options=QUICKLY)
    return lambda batch: compiled(scales, frozen, batch)


@pytest.mark.parametrize("name", [f"batch{i}" for i in range(5)])
def test_the_loss_and_the_gradient_of_all_scales_equal_the_original(name):
    loss, gradients = gradient()(reference_batches("A")[name])
    np.testing.assert_allclose(loss, RECORDED[f"{name}/loss"], rtol=1e-6)
    found, expected = parameters.named(gradients), recorded(f"{name}/grad/")
    assert found.keys() == expected.keys()
    for key, array in expected.items():
        error = np.linalg.norm(found[key] - array) / np.linalg.norm(array)
        assert error <= 1e-5, key


def test_five_steps_of_training_are_the_originals():
    optimizer = adafactor(
        learning_rate("constant", base_learning_rate=float(RECORDED["train/lr"])),
        multiply_by_parameter_scale=True,
        weight_decay_rate=None,
    )
    graph, scales, frozen = split_model(model(), PromptParam)
    scales, before = (
        jax.tree.map(jnp.copy, scales),
        parameters.fingerprint(parameters.named(frozen)),
    )
    step, state = make_train_step(graph, optimizer), optimizer.init(scales, step=0)
    for i in range(5):
        batch = reference_batches("A")[f"batch{i}"]
        scales, state, sums = step(scales, state, frozen, batch, None)
        np.testing.assert_allclose(sums["loss"], RECORDED["train/loss"][i], rtol=3e-6)
        if i + 1 not in (1, 2, 5):
            continue
        expected = recorded(f"train/params/{i + 1}/")
        for name, array in parameters.named(scales).items():
            np.testing.assert_allclose(array, expected[name], rtol=1e-4, err_msg=name)
        expected = recorded(f"train/opt/{i + 1}/", "/v")
        for name, slots in state.items():
            error = np.linalg.norm(slots[0].v - expected[name]) / np.linalg.norm(expected[name])
            assert error < 1e-4, name
    assert parameters.fingerprint(parameters.named(frozen)) == before
