import dataclasses
import logging
import re

import numpy as np
import pytest
from etils import epath

from prompt_tuning.checkpoints.contents import Contents
from prompt_tuning.cli.horizon import Length, first_step, unlikely_step
from prompt_tuning.data.batches import CorpusBatches, ExampleBatches, MixtureBatches
from prompt_tuning.data.examples import Example
from prompt_tuning.data.objectives import PrefixLM
from prompt_tuning.errors import ConfigError
from prompt_tuning.model import t5_config
from prompt_tuning.vocabulary import ByteVocabulary
from tests.data.splits import split_of

FIRST = 1_100_000


def batches(sizes=(10,), rows=4):
    example = Example(np.array([5, 1]), np.array([6, 1]))
    splits = [split_of(f"task{i}", [example] * size) for i, size in enumerate(sizes)]
    if len(splits) == 1:
        return ExampleBatches(split=splits[0], batch_size=rows, seed=0)
    return MixtureBatches(parts=[(split, 1.0) for split in splits], batch_size=rows, seed=0)


def last(data=None, **length):
    return Length(**length).last_step(FIRST, data or batches())


@pytest.mark.parametrize(
    ("epochs", "sizes", "rows", "steps"),
    [
        (1, (10,), 4, 3),  # the last batch begins another epoch
        (2, (10,), 4, 5),
        (1, (8,), 4, 2),
        (0.5, (10,), 1, 5),
        (0.7, (10,), 1, 7),  # 0.7 * 10 is more than 7 in binary
        (1.1, (10,), 1, 11),
        (3, (10, 6), 4, 12),
    ],
)
def test_epochs_are_passes_over_all_examples(epochs, sizes, rows, steps):
    assert last(batches(sizes, rows), epochs=epochs) == FIRST + steps


def test_an_epoch_of_running_text_is_its_windows():
    data = CorpusBatches(
        tokens=3 + np.arange(500) % 150,
        vocabulary=ByteVocabulary(),
        objective=PrefixLM(),
        batch_size=4,
        seed=0,
        input_length=16,
    )
    assert data.windows > 4
    assert last(data, epochs=2) == FIRST + -(-2 * data.windows // data.batch_size)


def test_the_other_two_count_with_and_without_the_base():
    assert last(total_steps=FIRST + 5) == FIRST + 5
    assert last(relative_steps=5) == FIRST + 5


def test_steps_of_the_run_win_over_all_steps_and_it_is_said(caplog):
    caplog.set_level(logging.INFO, "prompt_tuning")
    assert last(relative_steps=5, total_steps=30_000) == FIRST + 5
    assert caplog.messages == [
        "TRAIN_STEPS_RELATIVE is 5 and wins over TRAIN_STEPS, which is 30000 (as in t5x): the run "
        "ends at step 1100005."
    ]


class Stream:
    """A source of batches that nobody knows the size of."""

    batch_size = 4
    fingerprint = "endless"

    def batches(self, start_step):
        raise NotImplementedError

    def example_ids(self, step):
        return [f"row {step}"]

    def summary(self):
        return "endless"


REFUSED = {
    "TRAIN_STEPS is 1000, but the base model already stands at step 1100000, and TRAIN_STEPS "
    "counts those too (as in t5x). For 1000 more steps set --gin.TRAIN_STEPS=1101000 or "
    "--gin.TRAIN_STEPS_RELATIVE=1000.": {"total_steps": 1000},
    "How long to train is not set. Set one of --gin.TRAIN_STEPS (the base's own steps included), "
    "--gin.TRAIN_STEPS_RELATIVE (steps of this run) and --gin.EPOCHS (passes over the training "
    "examples).": {},
    "TRAIN_STEPS_RELATIVE is 10 and EPOCHS is 0.5, but a run ends only once. Keep one of them and "
    "unset the rest: --gin.TRAIN_STEPS_RELATIVE=None or --gin.EPOCHS=None.": {
        "relative_steps": 10,
        "epochs": 0.5,
    },
    "EPOCHS is 3, but the training data is read as a stream, of which nobody knows the number of "
    "examples. Set --gin.TRAIN_STEPS_RELATIVE to a number of steps, and --gin.EPOCHS=None.": {
        "epochs": 3,
        "data": Stream(),
    },
    "EPOCHS is 0, expected a number above 0, such as 3 or 0.5.": {"epochs": 0},
    "EPOCHS is nan, expected a number above 0, such as 3 or 0.5.": {"epochs": float("nan")},
    "EPOCHS is inf, expected a number above 0, such as 3 or 0.5.": {"epochs": float("inf")},
    "TRAIN_STEPS_RELATIVE is -5, expected 0 or more steps beyond the base's.": {
        "relative_steps": -5
    },
}


@pytest.mark.parametrize("message", REFUSED)
def test_a_length_that_makes_no_sense_is_refused(message):
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        last(**REFUSED[message])


@pytest.mark.parametrize(
    ("length", "why"),
    [
        ({"total_steps": FIRST}, "TRAIN_STEPS is 1100000, which counts the base's own steps"),
        ({"relative_steps": 0}, "TRAIN_STEPS_RELATIVE is 0, and"),
    ],
)
def test_it_is_said_why_nothing_is_trained(caplog, length, why):
    assert last(**length) == FIRST
    assert caplog.messages[0].startswith(f"Nothing is trained: {why}")


def base(step, name="t5_1_1_base"):
    config = t5_config(name)
    return Contents(kind="t5x", where=epath.Path("lm"), config=config, tensors={}, step=step)


def test_the_step_of_a_base_is_its_own_or_given(caplog):
    assert first_step(None, None) == 0
    assert first_step(base(7), None) == 7
    assert first_step(base(7), 7) == 7
    assert first_step(base(None), 9) == 9
    assert not caplog.messages
    assert first_step(base(None), None) == 0
    assert "--gin.train.initial_step=1_100_000" in caplog.messages[0]
    with pytest.raises(ConfigError, match=r"is 9, but the base stands at step 7\. Leave it out\."):
        first_step(base(7), 9)


def test_a_released_model_does_not_stand_at_step_0():
    said = unlikely_step(base(0), t5_config("t5_1_1_base"))
    assert said is not None
    assert said.startswith("lm says that it stands at step 0, but")
    assert "LM-adapted T5 1.1 at 1,100,000" in said and "--step=1100000" in said
    assert unlikely_step(base(0), t5_config("mt5_small")) is not None
    assert unlikely_step(base(1_000_000), t5_config("t5_1_1_base")) is None
    assert unlikely_step(base(None), t5_config("t5_1_1_base")) is None
    assert unlikely_step(base(0, "ours_tiny"), t5_config("ours_tiny")) is None
    other = dataclasses.replace(t5_config("t5_1_1_base"), mlp_dim=1000)
    assert unlikely_step(base(0), other) is None
