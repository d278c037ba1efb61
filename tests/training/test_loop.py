import dataclasses
import itertools
import json
import logging
import re
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning.errors import ConfigError, DivergedError
from prompt_tuning.model import parameters
from prompt_tuning.partitioning import placement
from prompt_tuning.prompts import PromptParam
from prompt_tuning.training import loop
from prompt_tuning.training.clock import Clock
from prompt_tuning.training.optimizer import adafactor
from prompt_tuning.training.schedules import learning_rate
from prompt_tuning.training.state import RunState, laid_out, split_model, start
from prompt_tuning.training.step import make_train_step
from prompt_tuning.training.watchdog import Watchdog
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


def fresh_step(placement=None):
    """Returns a step over the same model that nothing has compiled yet."""
    graph, *_ = split_model(reference_model("A"), PromptParam)
    return make_train_step(graph, adafactor(SCHEDULE), placement=placement)


@pytest.fixture
def train(split):
    """Trains from a step to another, and returns the final state and all that was written."""
    prompt, frozen, step = split

    def run(first, last, *, state=None, batches=None, seed=0, step=step, **settings):
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
    arrays = jax.device_get((state.trainable, state.opt_state))
    return RunState(*arrays, state.step, state.pending)


def reloaded(state):
    """Returns a state as if it had been saved and restored."""
    state = copied(state)
    return state._replace(pending=json.loads(json.dumps(state.pending)))


def assert_identical(ours, theirs):
    assert ours.step == theirs.step
    assert ours.pending == theirs.pending
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
        assert_identical(state._replace(pending=None), copied(alone))


def test_a_resumed_loop_is_the_uninterrupted_one(train):
    whole, all_metrics = train(2, 9, log_every=1)
    first, early = train(2, 5, log_every=1)
    resumed, late = train(5, 9, state=first, log_every=1)
    assert_identical(copied(resumed), copied(whole))
    for (step, ours), (same_step, theirs) in zip(early + late, all_metrics, strict=True):
        assert step == same_step
        assert numbers(ours) == numbers(theirs)


def stopping_at(step, *, first):
    """Returns what stops a loop before it goes on from `step`."""
    asked = itertools.count(first)
    return lambda: next(asked) == step


@pytest.mark.parametrize("stopped", [2, 3, 5, 6, 7, 10])
def test_a_run_stopped_anywhere_and_resumed_writes_the_same_lines(train, stopped):
    whole, lines = train(2, 11, log_every=3)
    assert [step for step, _ in lines] == [3, 6, 9, 11]
    first, early = train(2, 11, log_every=3, stop=stopping_at(stopped, first=2))
    assert first.step == stopped
    assert (first.pending is None) == (stopped in (2, 3, 6))
    resumed, late = train(stopped, 11, state=reloaded(first), log_every=3)
    assert_identical(copied(resumed), copied(whole))
    assert [step for step, _ in early + late] == [3, 6, 9, 11]
    for (_, ours), (_, theirs) in zip(early + late, lines, strict=True):
        assert numbers(ours) == numbers(theirs)


def test_a_run_killed_after_any_save_and_resumed_writes_the_same_lines(train):
    saved = []
    saving = loop.Every(steps=1, action=lambda state: saved.append(reloaded(state)))
    whole, lines = train(0, 8, log_every=5, actions=[saving])
    assert [state.step for state in saved] == list(range(1, 9))
    for state in saved[:-1]:
        resumed, late = train(state.step, 8, state=copied(state), log_every=5)
        assert_identical(copied(resumed), copied(whole))
        expected = [line for line in lines if line[0] > state.step]
        assert [(step, numbers(x)) for step, x in late] == [
            (step, numbers(x)) for step, x in expected
        ]


def test_what_is_pending_is_the_sum_of_the_steps_since_the_last_line(train):
    seen = {}
    saving = loop.Every(steps=1, action=lambda state: seen.update({state.step: state.pending}))
    _, each = train(1, 8, log_every=1)
    train(1, 8, log_every=3, actions=[saving])
    assert seen[3] is None and seen[6] is None and seen[8] is None
    assert [seen[step]["steps"] for step in (2, 4, 5, 7)] == [1, 1, 2, 1]
    losses = {step: values["loss"] for step, values in each}
    assert seen[4]["loss"] == losses[4]
    assert seen[5]["loss"] == losses[4] + losses[5]
    assert all(type(value) is float for value in seen[5].values())


def test_the_speed_of_a_resumed_interval_is_that_of_its_own_steps(train):
    first, _ = train(0, 6, log_every=6, stop=stopping_at(4, first=0))
    assert first.pending["encoder_input_tokens/sequences"] == 16
    _, ((_, metrics), (_, later)) = train(4, 12, state=first, log_every=6)
    assert metrics["effective_batch_size/encoder_input_tokens"] == 4
    assert metrics["timing/seqs"] == 8
    assert metrics["timing/steps_per_second"] == pytest.approx(2 / metrics["timing/seconds"])
    assert later["timing/seqs"] == 24


def test_a_stop_is_asked_for_before_every_step_and_reads_no_further_batch(train):
    asked, batches = [], iter(BATCHES)

    def stop():
        asked.append(len(asked))
        return len(asked) == 4

    state, _ = train(10, 15, batches=batches, stop=stop)
    assert state.step == 13
    assert len(asked) == 4
    assert len(list(batches)) == 2


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


@pytest.mark.parametrize("bad", range(11, 16))
def test_the_first_step_that_diverged_is_named_with_its_batch(train, bad):
    # What it does to the prompt makes every later loss NaN, too.
    batches = [BATCHES[i] if 11 + i < bad else spoilt(BATCHES[i]) for i in range(5)]
    message = f"The loss of step {bad} is nan. Its batch: examples of {bad}. Lower the learning"
    with pytest.raises(DivergedError, match=f"^{re.escape(message)}"):
        train(10, 15, batches=iter(batches), name_batch="examples of {}".format)


def test_at_most_two_steps_are_under_way_when_a_bad_one_is_noticed(train):
    read = []

    def batches():
        for number in range(1, 1000):
            read.append(number)
            yield spoilt(BATCHES[0]) if number == 5 else BATCHES[0]

    with pytest.raises(DivergedError, match=r"^The loss of step 5 is nan"):
        train(0, 1000, batches=batches(), log_every=1000)
    assert read[-1] == 7


def test_a_run_that_has_diverged_raises_when_it_is_stopped(train):
    batches = iter([BATCHES[0], spoilt(BATCHES[1])])
    with pytest.raises(DivergedError, match=r"^The loss of step 2 is nan"):
        train(0, 15, batches=batches, stop=stopping_at(2, first=0))


def test_no_action_sees_a_state_that_has_diverged(train):
    seen = []
    saving = loop.Every(steps=2, action=lambda state: seen.append(state.step))
    batches = iter([*BATCHES[:2], spoilt(BATCHES[2]), *BATCHES[3:]])
    with pytest.raises(DivergedError, match=r"^The loss of step 13 is nan"):
        train(10, 15, batches=batches, log_every=100, actions=[saving])
    assert seen == [12]


@pytest.mark.parametrize("how", ["saved", "stopped"])
def test_parameters_that_diverged_under_a_finite_loss_are_found(train, split, how):
    # A gradient can overflow where its loss does not.
    prompt, *_ = split
    lost = start(jax.tree.map(jnp.copy, prompt), adafactor(SCHEDULE), step=10)
    lost = lost._replace(opt_state=jax.tree.map(_lost, lost.opt_state))
    seen = []
    settings = {
        "saved": {"actions": [loop.Every(steps=1, action=seen.append)]},
        "stopped": {"stop": stopping_at(11, first=10)},
    }
    message = (
        "The update of step 11 left values in the parameters that are not finite, though its loss "
        "was. Its batch: some. Lower the learning rate, look at the batch of that step, or use "
        "float32 activations to see whether it is the arithmetic."
    )
    with pytest.raises(DivergedError, match=f"^{re.escape(message)}$"):
        train(10, 15, state=lost, name_batch=lambda step: "some", **settings[how])
    assert seen == []


def _lost(slot):
    return jnp.full_like(slot, jnp.nan) if jnp.issubdtype(slot.dtype, jnp.floating) else slot


def test_checking_for_an_action_leaves_the_logged_interval_whole(train):
    action = loop.Every(steps=1, action=lambda state: None)
    _, checked = train(0, 5, log_every=5, actions=[action])
    _, plain = train(0, 5, log_every=5)
    assert numbers(checked[0][1]) == numbers(plain[0][1])


@pytest.mark.slow
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


def shortened(batch):
    return dataclasses.replace(batch, targets=batch.targets[:, :4], weights=batch.weights[:, :4])


def test_a_run_compiles_once_for_each_bucket_whatever_is_done_in_between(train, split, caplog):
    caplog.set_level(logging.WARNING, "prompt_tuning")
    _, frozen, _ = split
    evaluated = jax.jit(lambda trainable, frozen: jax.tree.leaves(trainable)[0].sum())
    actions = [loop.Every(steps=2, action=lambda state: evaluated(state.trainable, frozen))]
    kinds = [BATCHES[0], shortened(BATCHES[1])]
    batches = [kinds[number] for number in (0, 0, 1, 0, 1, 1)]
    again = fresh_step()
    state, written = train(
        0, 6, step=again, batches=iter(batches), log_every=1, actions=actions, seed=None
    )
    made = [metrics["timing/compilations"] for _, metrics in written]
    assert made == [1, 1, 2, 2, 2, 2]
    # What a run saved and another one restored is no other program.
    state = reloaded(state)
    _, written = train(6, 9, step=again, state=state, batches=iter(batches), log_every=1, seed=None)
    assert [metrics["timing/compilations"] for _, metrics in written] == [0] * 3
    assert not caplog.messages
    # One of fewer rows is none that a source gives away.
    fewer = jax.tree.map(lambda rows: rows[:3], BATCHES[1])
    _, written = train(0, 2, step=again, batches=iter([BATCHES[0], fewer]), log_every=1, seed=None)
    seconds = [metrics["timing/compilation_seconds"] for _, metrics in written]
    assert [metrics["timing/compilations"] for _, metrics in written] == [0, 1]
    assert seconds[0] < seconds[1]
    (message,) = caplog.messages
    assert message.startswith("The training step was compiled again for a bucket that it knew")


def guard(level):
    jax.config.update("jax_transfer_guard_host_to_device", level)
    jax.config.update("jax_transfer_guard_device_to_host", level)


@pytest.mark.parametrize("devices", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_no_step_after_the_first_gives_the_device_more_than_its_batch(split, devices):
    prompt, frozen, step = split
    placed = placement(devices)
    if devices > 1:
        step, frozen = fresh_step(placed), placed.parameters(frozen)

    def train(put):
        def batches():
            """Guards all but what is done for the first step and after the last."""
            for number in range(6):
                batch = put(jax.device_get(BATCHES[number % 5]))
                guard("disallow" if 0 < number < 5 else "allow")
                yield batch

        state = start(jax.tree.map(jnp.copy, prompt), adafactor(SCHEDULE), step=0)
        return loop.train(
            laid_out(state, placed) if devices > 1 else state,
            frozen,
            step,
            batches(),
            total_steps=6,
            key=jax.random.key(0) if devices == 1 else None,
            learning_rate=SCHEDULE,
            write=lambda step, values: None,
        )

    try:
        assert train(placed.batch if devices > 1 else jax.device_put).step == 6
        with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
            train(lambda batch: batch)  # left to the step
    finally:
        guard("allow")


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


def still(seconds, values):
    """Yields values, and takes its time over the 20th."""
    for number, value in enumerate(values):
        if number == 20:
            time.sleep(seconds)
        yield value


@pytest.mark.parametrize(
    "slow", ["input", "action", pytest.param("compilation", marks=pytest.mark.slow)]
)
def test_a_watchdog_sees_slow_steps_but_not_actions_or_compilation(train, split, tmp_path, slow):
    train(0, 1)  # compiled from here on
    dog = Watchdog(tmp_path, at_least=0.5)
    pause = loop.Every(steps=20, action=lambda state: time.sleep(2.0 * (slow == "action")))
    batches = still(2.0 * (slow == "input"), [BATCHES[0]] * 25)
    if slow == "compilation":
        _, _, step = split
        step.clear_cache()
        short = dataclasses.replace(BATCHES[0], inputs=BATCHES[0].inputs[:, :5])
        batches = iter([*[BATCHES[0]] * 20, *[short] * 5])
    train(0, 25, batches=batches, actions=[pause], watchdog=dog)
    assert [path.name for path in tmp_path.iterdir()] == (
        [dog.path.name] if slow == "input" else []
    )
    if slow == "input":
        assert " step 21\n" in dog.path.read_text()
        assert "in still" in dog.path.read_text()


def test_an_observer_gets_every_step_once_and_before_the_actions(train):
    seen, at_actions = [], []
    action = loop.Every(steps=2, action=lambda state: at_actions.append((state.step, len(seen))))
    _, written = train(1, 6, log_every=10, actions=[action], seen=seen.append)
    assert at_actions == [(2, 1), (4, 3), (6, 5)]
    assert sum(sums["loss"] for sums in seen) / 5 == pytest.approx(written[0][1]["loss"])


class Time:
    """Seconds that pass when they are told to."""

    def __init__(self):
        self.seconds = 0.0

    def __call__(self):
        return self.seconds


def test_time_goes_to_what_it_is_spent_on(train):
    now = Time()
    clock = Clock(now)

    def slow(state):
        with clock.spent("save"):
            now.seconds += 5.0
        now.seconds += 0.5

    def each(sums):
        now.seconds += 1.0

    action = loop.Every(steps=3, action=slow)
    train(0, 6, actions=[action], clock=clock, seen=each)
    spent = clock.seconds()
    assert spent == {"train": 6.0, "compile": 0.0, "actions": 1.0, "save": 10.0}


def test_the_time_of_a_step_is_told_once_without_what_comes_between(train):
    now, told = Time(), []
    clock = Clock(now)

    def slow(state):
        now.seconds += 1000.0

    def each(sums):
        now.seconds += 2.0

    settings = {"clock": clock, "seen": each, "pace": lambda *said: told.append(said)}
    train(0, 30, actions=[loop.Every(steps=5, action=slow)], **settings)
    assert told == [(13, 2.0)]
    told.clear()
    # Nothing is said that is not known.
    train(0, 12, **settings)
    assert told == []


def test_a_line_of_the_log_says_how_long_the_rest_takes(train):
    _, written = train(0, 6, log_every=2)
    for step, metrics in written:
        left = (6 - step) / metrics["timing/steps_per_second"]
        assert metrics["timing/seconds_left"] == pytest.approx(left)
