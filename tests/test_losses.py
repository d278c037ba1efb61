import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning.batch import Batch
from prompt_tuning.errors import ConfigError
from prompt_tuning.losses import Loss, token_losses

MODELS = ["A", "C"]
ALL_BATCHES = [*(f"batch{i}" for i in range(5)), "long", "decode"]

# Every setting that the original recorded.
SETTINGS = {
    "default": Loss(),
    "no_z": Loss(z_loss=0.0),
    "label_smoothing_0p1": Loss(label_smoothing=0.1),
    "lnf_constant": Loss(normalizing_factor=233472),
    "lnf_small": Loss(normalizing_factor=7.0),
    "lnf_num_real": Loss(normalizing_factor="NUM_REAL_TARGET_TOKENS"),
    "lnf_num_total": Loss(normalizing_factor="NUM_TOTAL_TARGET_TOKENS"),
    "lnf_avg_seq": Loss(normalizing_factor="AVERAGE_PER_SEQUENCE"),
}
every_setting = pytest.mark.parametrize("loss", SETTINGS.values(), ids=SETTINGS.keys())
# One program for each setting and shape, instead of one for each operation.
compute = jax.jit(lambda loss, logits, batch: loss(logits, batch), static_argnums=0)
differentiate = jax.jit(
    lambda loss, logits, batch: jax.value_and_grad(lambda x: loss(x, batch)[0])(logits),
    static_argnums=0,
)
every_model = pytest.mark.parametrize("model", MODELS)


@pytest.fixture
def cases(golden):
    """Logits and batch of every recorded forward pass."""

    def read(model):
        arrays, logits = golden(f"{model}/batches.npz"), golden(f"{model}/forward.npz")
        for name in ALL_BATCHES:
            batch = Batch(
                inputs=jnp.asarray(arrays[f"{name}/encoder_input_tokens"]),
                targets=jnp.asarray(arrays[f"{name}/decoder_target_tokens"]),
                weights=jnp.asarray(arrays[f"{name}/decoder_loss_weights"]),
            )
            yield name, jnp.asarray(logits[f"{name}/logits"]), batch

    return read


@pytest.fixture
def case(cases):
    """Logits and batch of one forward pass: 4 rows, the second nothing but EOS."""
    _, logits, batch = next(cases("A"))
    return logits, batch


def with_weights(batch, weights):
    return Batch(inputs=batch.inputs, targets=batch.targets, weights=jnp.asarray(weights))


def normal(*shape):
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def rows(batch, start, stop):
    return jax.tree.map(lambda x: x[start:stop], batch)


@every_model
@pytest.mark.parametrize("setting", SETTINGS)
def test_loss_equals_the_original(golden, cases, model, setting):
    recorded = golden(f"{model}/loss.npz")
    for name, logits, batch in cases(model):
        if f"{name}/{setting}/loss" in recorded:
            value, _ = compute(SETTINGS[setting], logits, batch)
            expected = recorded[f"{name}/{setting}/loss"]
            np.testing.assert_allclose(value, expected, rtol=5e-7, err_msg=name)


@every_model
def test_fractional_weights_equal_the_original(golden, cases, model):
    recorded = golden(f"{model}/loss.npz")
    for name, logits, batch in [*cases(model)][:5]:
        fractional = with_weights(batch, recorded[f"{name}/frac_weights/weights"])
        value, _ = compute(Loss(), logits, fractional)
        expected = recorded[f"{name}/frac_weights/loss"]
        np.testing.assert_allclose(value, expected, rtol=5e-7, err_msg=name)


@every_model
def test_weights_of_one_equal_the_original_without_weights(golden, cases, model):
    # Padding counts there: a batch without weights is never what a user means.
    recorded = golden(f"{model}/loss.npz")
    for name, logits, batch in [*cases(model)][:5]:
        value, _ = compute(Loss(), logits, with_weights(batch, np.ones(batch.weights.shape)))
        expected = recorded[f"{name}/no_weights/loss"]
        np.testing.assert_allclose(value, expected, rtol=5e-7, err_msg=name)


@every_model
def test_token_losses_equal_the_original(golden, cases, model):
    recorded = golden(f"{model}/loss.npz")
    for name, logits, batch in cases(model):
        loss, z = jax.jit(token_losses)(logits, batch.targets)
        expected = recorded[f"{name}/token_loss_with_z"]
        np.testing.assert_allclose(loss, expected, rtol=5e-7, err_msg=name)
        np.testing.assert_allclose(z, recorded[f"{name}/token_z_loss"], rtol=5e-7, err_msg=name)


@every_model
def test_each_microbatch_has_its_own_factor_as_in_the_original(golden, cases, model):
    loss = SETTINGS["lnf_num_real"]
    _, logits, batch = next(cases(model))
    first, _ = compute(loss, logits[:2], rows(batch, 0, 2))
    second, _ = compute(loss, logits[2:], rows(batch, 2, 4))
    recorded = golden(f"{model}/trajectory_mb2_lnf_num_real.npz")
    np.testing.assert_allclose(first + second, recorded["metrics/loss"][0], rtol=5e-7)


def test_gradient_equals_the_formula_in_float64():
    logits = normal(2, 3, 7) * 3
    targets = jnp.asarray([[1, 2, 3], [4, 5, 6]])

    def total(logits):
        return jnp.sum(token_losses(logits, targets, z_loss=0.01)[0])

    gradient = jax.jit(jax.grad(total))(logits)

    exact = np.asarray(logits, np.float64)
    log_z = np.log(np.exp(exact).sum(axis=-1, keepdims=True))
    softmax = np.exp(exact - log_z)
    expected = softmax * (1 + 2 * 0.01 * log_z) - np.eye(7)[np.asarray(targets)]
    np.testing.assert_allclose(gradient, expected, atol=2e-6)


def test_label_smoothing_equals_soft_targets_in_float64():
    logits = normal(2, 3, 5)
    targets = jnp.asarray([[0, 1, 2], [3, 4, 0]])
    loss, _ = token_losses(logits, targets, z_loss=0.0, label_smoothing=0.2)

    exact = np.asarray(logits, np.float64)
    log_probabilities = exact - np.log(np.exp(exact).sum(axis=-1, keepdims=True))
    soft = np.where(np.eye(5)[np.asarray(targets)] == 1, 0.8, 0.2 / 4)
    expected = -(soft * log_probabilities).sum(axis=-1) + (soft * np.log(soft)).sum(axis=-1)
    np.testing.assert_allclose(loss, expected, atol=1e-6)


def test_a_model_that_predicts_the_smoothed_targets_has_no_loss():
    logits = jnp.log(jnp.asarray([[[0.1 / 3, 0.9, 0.1 / 3, 0.1 / 3]]]))
    loss, _ = token_losses(logits, jnp.asarray([[1]]), z_loss=0.0, label_smoothing=0.1)
    np.testing.assert_allclose(loss, [[0.0]], atol=1e-6)


@every_setting
def test_bfloat16_logits_lose_nothing_after_the_cast(case, loss):
    logits, batch = case
    narrow = logits.astype(jnp.bfloat16)
    value, sums = compute(loss, narrow, batch)
    expected, _ = compute(loss, narrow.astype(jnp.float32), batch)
    assert value == expected
    assert {x.dtype for x in sums.values()} == {value.dtype} == {jnp.dtype("float32")}


@pytest.mark.parametrize("size", [1e3, 1e15])
@every_setting
def test_huge_logits_give_finite_losses_and_gradients(case, loss, size):
    logits, batch = case
    value, gradient = differentiate(loss, logits * size, batch)
    assert np.isfinite(value)
    assert np.all(np.isfinite(gradient))


def test_a_constant_added_to_all_logits_changes_only_the_z_loss():
    logits, targets = jnp.asarray([[[1.0, 2.0, 4.0]]]), jnp.asarray([[1]])
    far, z = token_losses(logits + 1000.0, targets)
    np.testing.assert_allclose(z, [[1e-4 * 1004.169846**2]], rtol=1e-6)
    # 2.169846 in float32, minus what 103.0 loses.
    np.testing.assert_allclose(far - z, [[2.169846]], atol=1e-5)
    near, _ = token_losses(logits, targets, z_loss=0.0)
    far, _ = token_losses(logits + 1000.0, targets, z_loss=0.0)
    assert near == far


def test_average_per_sequence_counts_every_sequence_the_same():
    logits = normal(2, 4, 8)
    batch = Batch(
        inputs=jnp.ones((2, 3), jnp.int32),
        targets=jnp.asarray([[2, 3, 4, 1], [1, 0, 0, 0]]),
        weights=jnp.asarray([[1, 1, 1, 1], [1, 0, 0, 0]]),
    )
    tokens = np.asarray(jax.jit(token_losses)(logits, batch.targets)[0])
    value, _ = compute(SETTINGS["lnf_avg_seq"], logits, batch)
    np.testing.assert_allclose(value, (np.mean(tokens[0]) + tokens[1, 0]) / 2, rtol=1e-6)


@every_setting
def test_the_sums_hold_the_loss_as_it_is_differentiated_and_its_part_of_z(case, loss):
    logits, batch = case
    value, sums = compute(loss, logits, batch)
    without_z, _ = compute(dataclasses.replace(loss, z_loss=0.0), logits, batch)
    assert sums["loss"] == value
    # A difference of two losses of about 1000 times its size.
    np.testing.assert_allclose(sums["z_loss"], value - without_z, rtol=1e-3, atol=0)


def test_sums_of_microbatches_are_the_sums_of_the_batch(case):
    logits, batch = case
    _, whole = compute(Loss(), logits, batch)
    parts = [compute(Loss(), logits[i : i + 2], rows(batch, i, i + 2))[1] for i in (0, 2)]
    added = jax.tree.map(jnp.add, *parts)
    assert added.keys() == whole.keys()
    for name, value in whole.items():
        np.testing.assert_allclose(added[name], value, rtol=1e-6, err_msg=name)


def test_sums_count_what_is_there():
    batch = Batch(
        inputs=jnp.asarray([[5, 6, 1, 0], [7, 1, 0, 0], [0, 0, 0, 0]]),
        targets=jnp.asarray([[3, 1], [2, 0], [0, 0]]),
        weights=jnp.asarray([[0.5, 1.0], [1.0, 0.0], [0.0, 0.0]]),
    )
    logits = jnp.asarray(np.eye(4, dtype=np.float32)[[[3, 0], [2, 0], [0, 0]]])
    _, sums = compute(Loss(), logits, batch)
    counts = {name: float(x) for name, x in sums.items() if name not in ("loss", "z_loss")}
    assert counts == {
        "correct": 2,
        "predicted": 3,
        "weights": 2.5,
        "decoder_target_tokens/real": 3,
        "decoder_target_tokens/all": 4,
        "decoder_target_tokens/sequences": 2,
        "encoder_input_tokens/real": 5,
        "encoder_input_tokens/all": 8,
        "encoder_input_tokens/sequences": 2,
    }


@every_setting
def test_more_padding_changes_neither_loss_nor_counts_of_real_tokens(case, loss):
    logits, batch = case
    wider = Batch(
        inputs=jnp.pad(batch.inputs, ((0, 0), (0, 3))),
        targets=jnp.pad(batch.targets, ((0, 0), (0, 2))),
        weights=jnp.pad(batch.weights, ((0, 0), (0, 2))),
    )
    value, sums = compute(loss, logits, batch)
    padded_value, padded = compute(loss, jnp.pad(logits, ((0, 0), (0, 2), (0, 0))), wider)
    # The one factor that counts padding, by its definition: 6 columns became 8.
    grown = 8 / 6 if loss.normalizing_factor == "NUM_TOTAL_TARGET_TOKENS" else 1.0
    np.testing.assert_allclose(padded_value * grown, value, rtol=1e-6)
    for name in sums:
        if not name.endswith(("/all", "loss")):
            assert padded[name] == sums[name], name


@every_setting
def test_a_row_without_a_token_is_counted_nowhere(case, loss):
    logits, batch = case
    filled = jax.tree.map(lambda rows: jnp.pad(rows, ((0, 3), (0, 0))), batch)
    value, sums = compute(loss, logits, batch)
    filled_value, filled_sums = compute(loss, jnp.pad(logits, ((0, 3), (0, 0), (0, 0))), filled)
    np.testing.assert_allclose(filled_value, value, rtol=1e-6)
    for name in sums:
        np.testing.assert_allclose(filled_sums[name], sums[name], rtol=1e-6, err_msg=name)


@every_setting
def test_a_batch_of_nothing_but_padding_has_loss_and_gradient_zero(loss):
    batch = Batch(
        inputs=jnp.zeros((2, 4), jnp.int32),
        targets=jnp.zeros((2, 3), jnp.int32),
        weights=jnp.zeros((2, 3), jnp.int32),
    )
    value, gradient = differentiate(loss, jnp.ones((2, 3, 5)), batch)
    assert value == 0
    assert not np.any(gradient)


def test_arrays_of_the_host_are_taken_as_they_are(case):
    logits, batch = case
    on_host = jax.tree.map(np.asarray, batch)
    assert compute(Loss(), logits, on_host)[0] == compute(Loss(), logits, batch)[0]


FACTORS = "NUM_REAL_TARGET_TOKENS, NUM_TOTAL_TARGET_TOKENS, AVERAGE_PER_SEQUENCE"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"normalizing_factor": "NUM_REAL_TOKENS"},
            "Loss.normalizing_factor is 'NUM_REAL_TOKENS', expected None, a positive number or "
            f"one of {FACTORS}. Did you mean 'NUM_REAL_TARGET_TOKENS' or "
            "'NUM_TOTAL_TARGET_TOKENS'?",
        ),
        (
            {"normalizing_factor": 0},
            "Loss.normalizing_factor is 0, but the loss is divided by it: give a positive number, "
            "or None to keep the sum over tokens.",
        ),
        (
            {"normalizing_factor": float("nan")},
            "Loss.normalizing_factor is nan, but the loss is divided by it: give a positive "
            "number, or None to keep the sum over tokens.",
        ),
        ({"z_loss": -1.0}, "Loss.z_loss is -1.0, expected 0 or more (usually 1e-4)."),
        (
            {"label_smoothing": 1.0},
            "Loss.label_smoothing is 1.0, expected 0 <= label_smoothing < 1: it is the "
            "probability taken away from the target.",
        ),
    ],
)
def test_settings_that_cannot_be_used_are_named(settings, message):
    with pytest.raises(ConfigError) as error:
        Loss(**settings)
    assert str(error.value) == message


def test_names_of_factors_may_be_written_in_lower_case_as_in_t5x(case):
    lower = Loss(normalizing_factor="average_per_sequence")
    assert compute(lower, *case)[0] == compute(SETTINGS["lnf_avg_seq"], *case)[0]
