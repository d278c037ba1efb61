import dataclasses
import itertools
import re
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning.errors import ConfigError, DivergedError
from prompt_tuning.model import parameters
from prompt_tuning.prompts import PromptParam
from prompt_tuning.training import loop
from prompt_tuning.training.optimizer import adafactor
from prompt_tuning.training.schedules import learning_rate
from prompt_tuning.training.state import RunState, split_model, start
from prompt_tuning.training.step import make_train_step
from tests.reference_models import CONFIGS, reference_batches, reference_model

# Small enough that the prompt moves by more than rounding only, and different at every step.
SCHEDULE = learning_rate("linear_warmup", warmup_steps=100)
BATCHES = [
    dataclasses.replace(batch, weights=batch.weights.astype(jnp.float32))
    for name, batch in reference_batches("A").items()
    if name in ("batch0", "batch1", "batch2", "batch3", "batch4")
]


@pytest.fixture(scope="module")
def split():
    """Model A with dropout, and its step, compiled once for this module."""
    config = dataclasses.replace(CONFIGS["A"], dropout_rate=0.2)
    graph, prompt, frozen = split_model(reference_model("A", config=config), PromptParam)
    return prompt, frozen, make_train_step(graph, adafactor(SCHEDULE))


@pytest.fixture
def train(split):
    """Trains from a step to another, and returns the final state and all that was written."""
    prompt, frozen, step = split

    def run(first, last, *, state=None, batches=None, seed=0, **settings):
        if state is None:
            state = start(jax.tree.map(jnp.copy, prompt), adafactor(SCHEDULE), step=first)
        written = []
        key = None if seed is None else jax.random.key(seed)
        state = loop.train(
            state,
            frozen,
            step,
            batches or (BATCHES[number % 5] for number in itertools.count(first)),
            total_steps=last,
            key=key,
            learning_rate=SCHEDULE,
            write=lambda step, values: written.append((step, values)),
            **settings,
        )
        return state, written

    return run


def fingerprint(state):
    return parameters.fingerprint(parameters.named(state))


def copied(state):
    return RunState(*jax.device_get((state.trainable, state.opt_state)), state.step)


def assert_identical(ours, theirs):
    assert ours.step == theirs.step
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(a, b)


def numbers(metrics):
    """Returns what does not depend on the clock."""
    return {name: x for name, x in metrics.items() if not name.startswith("timing/")}


@pytest.mark.parametrize(
    ("period", "first", "last", "expected"),
    [
        (1, 0, 3, [1, 2, 3]),
        (2, 0, 6, [2, 4, 6]),
        (4, 0, 6, [4, 6]),
        (100, 0, 6, [6]),
        (4, 1_100_003, 1_100_010, [1_100_004, 1_100_008, 1_100_010]),
    ],
)
def test_an_action_is_due_at_multiples_of_the_global_step_and_after_the_last(
    period, first, last, expected
):
    every = loop.Every(steps=period, action=print)
    assert [step for step in range(first + 1, last + 1) if every.due(step, last)] == expected


@pytest.mark.parametrize("steps", [0, -1])
def test_a_period_below_one_step_is_refused(steps):
    message = f"A period of {steps} steps was asked for, expected 1 or more."
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        loop.Every(steps=steps, action=print)


def test_an_action_sees_the_state_after_its_step(train):
    seen = []
    action = loop.Every(steps=2, action=lambda state: seen.append(copied(state)))
    final, _ = train(1, 5, actions=[action])
    assert [state.step for state in seen] == [2, 4, 5]
    assert_identical(seen[-1], copied(final))
    for state in seen:
        alone, _ = train(1, state.step)
        assert_identical(state, copied(alone))


def test_a_resumed_loop_is_the_uninterrupted_one(train):
    whole, all_metrics = train(2, 9, log_every=1)
    first, early = train(2, 5, log_every=1)
    resumed, late = train(5, 9, state=first, log_every=1)
    assert_identical(copied(resumed), copied(whole))
    for (step, ours), (same_step, theirs) in zip(early + late, all_metrics, strict=True):
        assert step == same_step
        assert numbers(ours) == numbers(theirs)


def test_dropout_follows_from_the_seed_and_the_step_alone(train):
    # A second batch that equals the first one is dropped out elsewhere.
    losses = {}
    for seed in (0, 1):
        _, written = train(3, 5, seed=seed, batches=iter([BATCHES[0]] * 2), log_every=1)
        _, again = train(3, 5, seed=seed, batches=iter([BATCHES[0]] * 2), log_every=1)
        losses[seed] = [metrics["loss"] for _, metrics in written]
        assert losses[seed] == [metrics["loss"] for _, metrics in again]
    assert losses[0][0] != losses[1][0]
    _, elsewhere = train(4, 5, batches=iter(BATCHES[:1]), log_every=1)
    assert elsewhere[0][1]["loss"] != losses[0][0]


def test_logged_metrics_are_means_over_the_steps_since_the_last_ones(train):
    _, each = train(1, 8, log_every=1)
    _, some = train(1, 8, log_every=3)
    assert [step for step, _ in some] == [3, 6, 8]
    for last, metrics in some:
        steps = [values for step, values in each if last - 3 < step <= last]
        steps = steps[-2:] if last in (3, 8) else steps
        for name in ("loss", "z_loss", "effective_batch_size/encoder_input_tokens"):
            expected = np.mean([values[name] for values in steps])
            assert metrics[name] == pytest.approx(expected, rel=1e-6)
        # A ratio of sums: every token counts the same.
        tokens = [v["loss"] / v["loss_per_nonpadding_target_token"] for v in steps]
        expected = sum(v["loss"] for v in steps) / sum(tokens)
        assert metrics["loss_per_nonpadding_target_token"] == pytest.approx(expected, rel=1e-6)


def test_the_learning_rate_in_the_log_is_that_of_the_last_update(train):
    _, written = train(10, 14, log_every=2)
    rates = [(step, metrics["learning_rate"]) for step, metrics in written]
    assert rates == [(12, pytest.approx(0.11)), (14, pytest.approx(0.13))]


def test_a_run_that_is_finished_reads_no_batch(train, split):
    batches = iter(BATCHES)
    state, written = train(3, 3, batches=batches)
    assert (state.step, written, len(list(batches))) == (3, [], 5)


def spoilt(batch):
    return dataclasses.replace(batch, weights=np.full(batch.targets.shape, np.nan, np.float32))


def test_a_loss_that_is_not_finite_stops_the_run_and_names_its_step(train):
    batches = [*BATCHES[:2], spoilt(BATCHES[2]), *BATCHES[3:]]
    message = (
        "The loss of step 13 is nan. Lower the learning rate, look at the batch of that step, or "
        "use float32 activations to see whether it is the arithmetic."
    )
    with pytest.raises(DivergedError, match=f"^{re.escape(message)}$") as error:
        train(10, 15, batches=iter(batches), log_every=100)
    assert error.value.exit_code == 7


def test_no_action_sees_a_state_that_has_diverged(train):
    seen = []
    saving = loop.Every(steps=2, action=lambda state: seen.append(state.step))
    batches = iter([*BATCHES[:2], spoilt(BATCHES[2]), *BATCHES[3:]])
    with pytest.raises(DivergedError, match=r"^The loss of step 13 is nan"):
        train(10, 15, batches=batches, log_every=100, actions=[saving])
    assert seen == [12]


def test_checking_for_an_action_leaves_the_logged_interval_whole(train):
    action = loop.Every(steps=1, action=lambda state: None)
    _, checked = train(0, 5, log_every=5, actions=[action])
    _, plain = train(0, 5, log_every=5)
    assert numbers(checked[0][1]) == numbers(plain[0][1])


def test_the_seconds_of_compilation_grow_with_every_new_shape_and_only_then(train):
    short = [
        dataclasses.replace(batch, targets=batch.targets[:, :4], weights=batch.weights[:, :4])
        for batch in BATCHES[:1]
    ]
    batches = iter([*BATCHES[:2], *short, *BATCHES[2:4], *short])
    _, written = train(0, 6, batches=batches, log_every=1)
    seconds = [metrics["timing/compilation_seconds"] for _, metrics in written]
    assert 0 < seconds[0] < seconds[2]
    assert seconds == [seconds[0]] * 2 + [seconds[2]] * 4


def test_the_speed_leaves_out_what_actions_take(train):
    train(0, 1)  # compiled from here on
    action = loop.Every(steps=1, action=lambda state: time.sleep(0.5))
    began = time.monotonic()
    _, written = train(0, 4, log_every=2, actions=[action])
    elapsed = time.monotonic() - began
    metrics = [values for _, values in written]
    # Three of the four pauses come before the last line.
    assert 1.5 < metrics[-1]["timing/uptime"] < elapsed - 0.5
    assert sum(values["timing/seconds"] for values in metrics) < elapsed - 2.0
    for values in metrics:
        seconds = values["timing/seconds"]
        assert values["timing/seqs"] == 8
        assert values["timing/steps_per_second"] == pytest.approx(2 / seconds)
        assert values["timing/seqs_per_second"] == pytest.approx(8 / seconds)
        per_core = 8 / seconds / jax.device_count()
        assert values["timing/seqs_per_second_per_core"] == pytest.approx(per_core)


def test_training_changes_the_prompt_and_not_the_base(train, split):
    prompt, frozen, _ = split
    before = fingerprint(frozen)
    state, _ = train(5, 8)
    assert fingerprint(frozen) == before
    assert fingerprint(state.trainable) != fingerprint(prompt)
