import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning.errors import ConfigError
from prompt_tuning.training.schedules import learning_rate

ORIGINAL = {
    "prompt_finetune": learning_rate("constant", base_learning_rate=0.3, warmup_steps=1000),
    "t5x_pretrain": learning_rate(
        "constant * rsqrt_decay", base_learning_rate=1.0, warmup_steps=10_000
    ),
    "warmup": learning_rate("constant * linear_warmup * rsqrt_decay"),
}

# factors -> what they mean, in float64 Python, with the settings below.
SETTINGS = {
    "base_learning_rate": 0.3,
    "warmup_steps": 100,
    "decay_factor": 0.001,
    "steps_per_decay": 50,
    "steps_per_cycle": 400,
    "min_learning_rate": 0.0,
}
MEANING = {
    "constant": lambda s: 0.3,
    "linear_warmup": lambda s: min(1, s / 100),
    "linear_decay": lambda s: max(0, 0.3 * min(s / 100, 1 + 0.001 * (100 - s))),
    "rsqrt_decay": lambda s: max(s, 100) ** -0.5,
    "rsqrt_normalized_decay": lambda s: (100 / max(s, 100)) ** 0.5,
    "decay_every": lambda s: 0.001 ** (s // 50),
    "cosine_decay": lambda s: (1 + np.cos(np.pi * (max(0, s - 100) / 400 % 1))) / 2,
    "constant * linear_warmup": lambda s: 0.3 * min(1, s / 100),
    "constant*linear_warmup*rsqrt_decay": lambda s: 0.3 * min(1, s / 100) * max(s, 100) ** -0.5,
}
every_factor = pytest.mark.parametrize("factors", MEANING)
STEPS = [0, 1, 49, 50, 99, 100, 101, 300, 499, 501, 2000]


@pytest.mark.parametrize("name", ORIGINAL)
def test_schedule_equals_the_original(golden, name):
    recorded = golden("misc/learning_rate.npz")
    rates = [ORIGINAL[name](int(step)) for step in recorded["steps"]]
    np.testing.assert_allclose(rates, recorded[name], rtol=2e-7)


@every_factor
def test_factor_means_what_its_formula_says(factors):
    schedule = learning_rate(factors, **SETTINGS)
    expected = [MEANING[factors](step) for step in STEPS]
    np.testing.assert_allclose([schedule(step) for step in STEPS], expected, rtol=1e-6, atol=1e-7)


@every_factor
def test_a_traced_step_gives_what_a_python_step_gives(factors):
    schedule = learning_rate(factors, **SETTINGS)
    traced = jax.vmap(schedule)(jnp.asarray(STEPS))
    assert traced.dtype == schedule(3).dtype == jnp.float32
    np.testing.assert_allclose(traced, [schedule(step) for step in STEPS], rtol=1e-6, atol=1e-7)


@every_factor
def test_step_offset_moves_the_beginning(factors):
    late = learning_rate(factors, **SETTINGS, step_offset=1_100_000)
    now = learning_rate(factors, **SETTINGS)
    assert [late(1_100_000 + step) for step in STEPS] == [now(step) for step in STEPS]
    assert late(7) == now(0)


@every_factor
def test_rate_is_never_below_the_minimum(factors):
    schedule = learning_rate(factors, **(SETTINGS | {"min_learning_rate": 0.05}))
    assert min(float(schedule(step)) for step in STEPS) >= 0.05 - 1e-9


KNOWN = (
    "constant, linear_warmup, linear_decay, rsqrt_decay, rsqrt_normalized_decay, decay_every, "
    "cosine_decay"
)


def test_unknown_factor_is_named_with_its_nearest():
    with pytest.raises(ConfigError) as error:
        learning_rate("constant * linear_warmpu")
    assert str(error.value) == (
        "Unknown learning-rate factor 'linear_warmpu' in factors='constant * linear_warmpu', "
        f"expected {KNOWN}, separated by '*'. Did you mean 'linear_warmup' or 'linear_decay'?"
    )


@pytest.mark.parametrize(
    ("factor", "setting"),
    [
        ("linear_warmup", "warmup_steps"),
        ("linear_decay", "warmup_steps"),
        ("rsqrt_decay", "warmup_steps"),
        ("rsqrt_normalized_decay", "warmup_steps"),
        ("decay_every", "steps_per_decay"),
        ("cosine_decay", "steps_per_cycle"),
    ],
)
def test_division_by_zero_is_refused(factor, setting):
    with pytest.raises(ConfigError) as error:
        learning_rate(factor, **{setting: 0})
    assert str(error.value) == (
        f"Learning-rate factor '{factor}' divides by {setting}, which is 0. Set {setting} above 0 "
        f"or remove '{factor}' from factors='{factor}'."
    )
    learning_rate("constant", **{setting: 0})
