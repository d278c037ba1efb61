import concurrent.futures
import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning.batch import Batch
from prompt_tuning.training.compilations import Compilations


def batch(rows=4, inputs=8, targets=4, dtype=np.float32):
    return Batch(
        inputs=np.ones((rows, inputs), np.int32),
        targets=np.ones((rows, targets), np.int32),
        weights=np.ones((rows, targets), dtype),
    )


@pytest.fixture
def step():
    """Something compiled, and what calls it and counts."""
    compilations = Compilations("The step")
    function = jax.jit(lambda batch, more: batch.inputs.sum() + batch.targets.sum() + more)

    def call(batch, more=0):
        with compilations.counted(batch):
            return function(batch, more)

    return compilations, call


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.WARNING, "prompt_tuning")
    return caplog


def test_a_step_is_compiled_once_for_every_bucket(step, said):
    compilations, call = step
    seen = []
    for lengths in [(8, 4), (8, 4), (16, 4), (8, 4), (16, 8), (16, 4), (16, 8)]:
        call(batch(inputs=lengths[0], targets=lengths[1]))
        seen.append(compilations.programs)
    assert seen == [1, 1, 2, 2, 3, 3, 3]
    assert not said.messages


def test_lengths_are_known_once_they_were_called_with(step):
    compilations, call = step
    assert not compilations.known(batch())
    call(batch())
    assert compilations.known(batch()) and not compilations.known(batch(inputs=16))


def test_a_batch_of_fewer_rows_is_a_surplus_compilation_that_names_both_shapes(step, said):
    compilations, call = step
    call(batch())
    call(batch(rows=3))
    assert compilations.programs == 2
    assert said.messages == [
        "The step was compiled again for a bucket that it knew, which costs time at every such "
        "batch: the batch has inputs int32[3, 8], targets int32[3, 4], weights float32[3, 4], the "
        "first one had inputs int32[4, 8], targets int32[4, 4], weights float32[4, 4]."
    ]
    call(batch(rows=3))
    assert compilations.programs == 2 and len(said.messages) == 1


def test_another_dtype_of_what_is_no_batch_is_a_surplus_compilation_too(step, said):
    compilations, call = step
    call(batch(), jnp.int32(1))
    call(batch(), jnp.asarray([1]))
    assert compilations.programs == 2
    assert said.messages[0].endswith(
        "shapes and dtypes are those of the first batch (inputs int32[4, 8], targets int32[4, 4], "
        "weights float32[4, 4]), so something else that it reads has changed its dtype or its "
        "device."
    )


def test_what_another_thread_compiles_meanwhile_is_not_counted(step):
    compilations, _ = step
    elsewhere = jax.jit(lambda x: x * 3)
    with concurrent.futures.ThreadPoolExecutor(1) as pool, compilations.counted(batch()):
        pool.submit(elsewhere, np.ones(5, np.float32)).result()
    assert compilations.programs == 0


def test_a_program_that_is_read_from_disk_counts_as_one(step, programs):
    make = functools.partial(jax.jit, lambda x: jnp.sin(x) @ x)
    x = np.ones((6, 6), np.float32)
    make()(x)
    jax.clear_caches()
    compilations, _ = step
    with compilations.counted(batch()):
        make()(x)
    assert compilations.programs == 1
