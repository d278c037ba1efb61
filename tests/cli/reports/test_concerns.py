import numpy as np
import pytest

from prompt_tuning.cli.reports import concerns
from prompt_tuning.training.optimizer import adafactor
from prompt_tuning.training.schedules import learning_rate

START = np.ones((2, 4), np.float32)  # each vector is 2 long


def rate(value, **settings):
    return adafactor(learning_rate("constant", base_learning_rate=value), **settings)


def test_a_learning_rate_for_models_is_too_low_for_a_prompt():
    said = concerns.slow_learning_rate(rate(1e-3), 20, 1020)
    assert said is not None
    assert "The learning rate is at most 0.001" in said
    assert "about 1 in all 1,000 steps" in said
    assert said.endswith("--gin.LEARNING_RATE=0.3.")


@pytest.mark.parametrize(
    "optimizer",
    [
        rate(0.3),
        rate(1e-2),
        # A fraction of the prompt's own size.
        rate(1e-3, multiply_by_parameter_scale=True),
        # It rises to the method's.
        adafactor(learning_rate("constant * linear_warmup", 0.3, warmup_steps=50, step_offset=20)),
    ],
)
def test_other_learning_rates_give_no_warning(optimizer):
    assert concerns.slow_learning_rate(optimizer, 20, 120) is None


def test_nothing_is_said_of_a_rate_that_is_never_used():
    assert concerns.slow_learning_rate(rate(1e-3), 20, 20) is None


def decaying(factors, *, step_offset, **settings):
    settings |= {"warmup_steps": 20, "step_offset": step_offset}
    return adafactor(learning_rate(f"{factors} * linear_warmup", 0.3, **settings))


def test_a_schedule_that_ended_before_the_base_needs_an_offset():
    early = decaying("linear_decay", step_offset=0, decay_factor=0.98 / 980)
    said = concerns.slow_learning_rate(early, 13_500, 14_500)
    assert said is not None and said.startswith("The learning rate is at most 1e-08")
    assert "Before step 13,500, where the base stands, the schedule reached 0.3" in said
    assert said.endswith("with step_offset = 13500 of schedules.learning_rate.")
    mended = decaying("linear_decay", step_offset=13_500, decay_factor=0.98 / 980)
    assert concerns.slow_learning_rate(mended, 13_500, 14_500) is None


def test_a_run_longer_than_its_decay_is_known_at_once():
    optimizer = decaying("linear_decay", step_offset=100, decay_factor=1 / 980)
    assert concerns.faded_learning_rate(optimizer, 100, 600) is None
    assert concerns.faded_learning_rate(optimizer, 100, 1_100) is None
    said = concerns.faded_learning_rate(optimizer, 100, 2_100)
    assert said is not None
    assert said.startswith("From step 1,100 on the learning rate is below 0.001 of its highest")
    assert "in the last 1,000 of 2,000 steps" in said


def test_half_a_cosine_is_no_early_end():
    optimizer = decaying("constant * cosine_decay", step_offset=100, steps_per_cycle=980)
    assert concerns.faded_learning_rate(optimizer, 100, 1_100) is None


@pytest.mark.parametrize("steps", [0, 1, 5, 1_000])
def test_a_constant_rate_does_not_fade(steps):
    assert concerns.faded_learning_rate(rate(0.3), 20, 20 + steps) is None


def test_a_prompt_that_does_not_move_is_known_at_once():
    assert concerns.still_prompt(START, START, 0) is None
    said = concerns.still_prompt(START, START, 1)
    assert said is not None and said.startswith("After 1 steps the prompt has not moved.")


def test_a_prompt_that_hardly_moves_is_known_after_some_steps():
    near = START + 1e-4
    assert concerns.still_prompt(near, START, 99) is None
    said = concerns.still_prompt(near, START, 100)
    assert said is not None and "moved by only 0.0002, being 2 long" in said
    assert concerns.still_prompt(START + 0.1, START, 100) is None


def test_a_loss_that_does_not_fall_is_seen_over_the_noise_of_single_lines():
    falling = {100 * i: 3.0 - 0.1 * i for i in range(1, 9)}
    assert concerns.steady_loss(falling, 800) is None
    said = concerns.steady_loss({step: -value for step, value in falling.items()}, 800)
    assert said is not None and said.startswith("The loss did not fall: -2.85 a target token")
    noisy = falling | {100: 1.0, 800: 2.6}
    assert concerns.steady_loss(noisy, 800) is not None
    # Too little to tell.
    assert concerns.steady_loss({1: 1.0, 2: 1.0, 3: 2.0}, 800) is None
    assert concerns.steady_loss(dict.fromkeys(range(8), 1.0), 80) is None


def test_the_same_answer_to_everything_counts_only_if_it_is_the_last():
    alarms = {"sst2": {10: True, 20: False}, "rte": {10: False, 20: True, 30: True}, "new": {}}
    assert concerns.constant_answers(alarms) == [
        "rte: at step 30 all answers were the same though the right ones differ (so at 2 of 3 "
        "evaluations)."
    ]
