import functools
import re

import jax
import numpy as np
import pytest

from prompt_tuning.batch import Batch
from prompt_tuning.losses import Loss
from prompt_tuning.model.parameters import named
from prompt_tuning.partitioning import on_host, placement
from prompt_tuning.prompts import PromptParam
from prompt_tuning.training.optimizer import adafactor
from prompt_tuning.training.state import split_model
from prompt_tuning.training.step import make_train_step
from tests.small_models import BATCH, small_model

OTHER_FACTORS = [None, "NUM_REAL_TARGET_TOKENS", "NUM_TOTAL_TARGET_TOKENS"]


def numbered(rows):
    """A batch whose rows say their number."""
    column = np.arange(1, rows + 1, dtype=np.int32)[:, None]
    return Batch(inputs=np.tile(column, 3), targets=column, weights=np.ones((rows, 1), np.float32))


def rows_of(array):
    return np.asarray(array)[:, 0].tolist()


def test_the_rows_are_divided_in_their_order_and_filled_with_empty_ones():
    batch = placement(4).batch(numbered(6))
    assert rows_of(batch.inputs) == rows_of(batch.targets) == [1, 2, 3, 4, 5, 6, 0, 0]
    assert rows_of(batch.weights) == [1, 1, 1, 1, 1, 1, 0, 0]
    assert [rows_of(shard.data) for shard in batch.inputs.addressable_shards] == [
        [1, 2],
        [3, 4],
        [5, 6],
        [0, 0],
    ]


def test_every_device_has_rows_of_every_microbatch():
    batch = placement(2).batch(numbered(6), microbatches=2)
    assert [rows_of(shard.data) for shard in batch.inputs.addressable_shards] == [
        [1, 2, 4, 5],
        [3, 0, 6, 0],
    ]


@pytest.mark.parametrize("microbatches", [1, 2, 3])
def test_on_one_device_a_batch_is_what_it_was(microbatches):
    placed = placement(1).batch(numbered(6), microbatches=microbatches)
    for array, expected in zip(*map(jax.tree.leaves, (placed, numbered(6))), strict=True):
        np.testing.assert_array_equal(array, expected)
        assert array.dtype == expected.dtype


def test_replicated_arrays_are_whole_everywhere():
    here = placement()
    key = jax.random.key(3)
    tree = here.replicated({"a": np.arange(3.0), "key": key, "step": 7, "pending": None})
    assert len(tree["a"].addressable_shards) == 8
    assert all(shard.data.shape == (3,) for shard in tree["a"].addressable_shards)
    assert jax.random.key_data(tree["key"]).tolist() == jax.random.key_data(key).tolist()
    assert tree["key"].sharding.is_fully_replicated
    assert tree["step"] == 7 and tree["pending"] is None
    assert here.replicated(tree)["a"] is tree["a"]


def test_an_array_comes_back_whole():
    here = placement()
    np.testing.assert_array_equal(on_host(here.batch(numbered(8)).inputs), numbered(8).inputs)


# A step on several devices is the step on one.


@functools.cache
def split():
    return split_model(small_model(dropout_rate=0.3), PromptParam)


def one_step(*, devices=None, microbatches=1, factor=None, key=None, batch=BATCH):
    """Returns the prompt, its second moment and the sums of one step, on the host.

    Without a number of devices nothing is placed: the step as a plain function.
    """
    graph, prompt, frozen = split()
    prompt = jax.tree.map(jax.numpy.copy, prompt)
    here = None if devices is None else placement(devices)
    optimizer = adafactor()
    state = prompt, optimizer.init(prompt, step=0), frozen, key
    if here is not None:
        state = here.replicated(state)
        batch = here.batch(batch, microbatches=microbatches)
    loss = Loss(normalizing_factor=factor)
    step = make_train_step(graph, optimizer, loss=loss, microbatches=microbatches, placement=here)
    prompt, opt_state, frozen, key = state
    prompt, opt_state, sums = step(prompt, opt_state, frozen, batch, key)
    if here is not None:
        for leaf in jax.tree.leaves((prompt, opt_state, sums)):
            assert leaf.sharding.is_fully_replicated
    (name,) = named(prompt)
    return jax.device_get((named(prompt)[name], opt_state[name][0].v, sums))


def close(found, expected):
    (prompt, moment, sums), (prompt_1, moment_1, sums_1) = found, expected
    for name, value in sums_1.items():
        np.testing.assert_allclose(sums[name], value, rtol=1e-6, err_msg=name)
    # The second moment of the first step is the squared gradient. Its smallest numbers are
    # differences of large ones.
    np.testing.assert_allclose(np.sqrt(moment), np.sqrt(moment_1), rtol=2e-4, atol=1e-5)
    np.testing.assert_allclose(prompt, prompt_1, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("devices", "microbatches", "factor"),
    [
        pytest.param(3, 1, None, marks=pytest.mark.slow),
        pytest.param(8, 2, "AVERAGE_PER_SEQUENCE", marks=pytest.mark.slow),
        *(pytest.param(8, 2, factor, marks=pytest.mark.slow) for factor in OTHER_FACTORS),
    ],
)
def test_a_step_on_several_devices_is_the_step_on_one(devices, microbatches, factor):
    key = jax.random.key(5)
    settings = {"microbatches": microbatches, "factor": factor, "key": key}
    close(one_step(devices=devices, **settings), one_step(**settings))


@pytest.mark.slow
def test_placed_on_one_device_a_step_has_the_same_bits():
    settings = {"microbatches": 2, "key": jax.random.key(5)}
    found, expected = one_step(devices=1, **settings), one_step(**settings)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for array, other in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_array_equal(array, other)


@pytest.mark.slow
def test_a_batch_need_not_divide_into_microbatches_when_it_is_placed():
    three = jax.tree.map(lambda rows: rows[:3], BATCH)
    close(one_step(devices=2, microbatches=2, batch=three), one_step(batch=three))


@pytest.mark.parametrize("microbatches", [1, 2])
def test_devices_exchange_one_gradient_and_no_weights(microbatches):
    """In the compiled program: no all-gather, one sum of the prompt's size."""
    graph, prompt, frozen = split()
    here, optimizer = placement(8), adafactor()
    state = here.replicated((prompt, optimizer.init(prompt, step=0), frozen))
    batch = here.batch(BATCH, microbatches=microbatches)
    step = make_train_step(graph, optimizer, microbatches=microbatches, placement=here)
    program = step.lower(*state, batch, None).compile().as_text()
    for exchange in ("all-gather", "all-to-all", "collective-permute", "reduce-scatter"):
        assert f" {exchange}(" not in program, exchange
    sums = re.findall(r"= (.*?) all-reduce\(", program)
    size = r"f32\[3,16\]"
    assert sum(len(re.findall(size, one)) for one in sums) == 1
    numbers = [
        int(np.prod([int(n) for n in dims.split(",") if n]))
        for one in sums
        for dims in re.findall(r"\w\[([\d,]*)\]", re.sub(size, "", one, count=1))
    ]
    assert all(number == 1 for number in numbers), sums
