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
