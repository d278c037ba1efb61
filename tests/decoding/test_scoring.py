import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from prompt_tuning.batch import Batch
from prompt_tuning.decoding.scoring import make_rank, make_score, rank, score, token_log_probs
from prompt_tuning.errors import ConfigError
from prompt_tuning.partitioning import placement
from prompt_tuning.prompts import PromptParam
from tests.jaxprs import equations
from tests.reference_models import CONFIGS, QUICKLY, reference_batches, reference_model
from tests.small_models import BATCH, SOME_MODELS, small_model

every_model = pytest.mark.parametrize("name", SOME_MODELS)

# Five candidates for each of four rows: of every length, one absent in the first row.
CANDIDATES = jnp.asarray(np.random.default_rng(0).integers(2, 50, (4, 5, 4)), jnp.int32)
CANDIDATES = CANDIDATES.at[:, 1, 1:].set(0).at[:, 2, 2:].set(0).at[:, 3, 3].set(1).at[0, 4].set(0)
# The label set of all rows: `5`, `5 6`, `6 5 1` and `7 8 9 1`.
LABELS = jnp.asarray([[5, 0, 0, 0], [5, 6, 0, 0], [6, 5, 1, 0], [7, 8, 9, 1]])
# Float32 sums in another order; log-probabilities are about -10.
CLOSE = functools.partial(np.testing.assert_allclose, rtol=2e-6, atol=2e-6)


@functools.partial(jax.jit, static_argnums=0, compiler_options=QUICKLY)
def _score(graph, state, batch):
    return score(nnx.merge(graph, state), batch)


@functools.partial(jax.jit, static_argnums=(0, 4, 5), compiler_options=QUICKLY)
def _rank(graph, state, inputs, candidates, normalize, at_once):
    model = nnx.merge(graph, state)
    return rank(model, inputs, candidates, normalize=normalize, at_once=at_once)


def scored(model, batch):
    return np.asarray(_score(*nnx.split(model), batch))


def ranked(model, inputs, candidates, normalize=False, at_once=None):
    return np.asarray(_rank(*nnx.split(model), inputs, candidates, normalize, at_once))


def one_by_one(model, inputs, candidates):
    """Scores every candidate as the target of a batch of its own."""
    columns = np.asarray(jnp.broadcast_to(candidates, (len(inputs), *candidates.shape[-2:])))
    scores = [
        scored(model, Batch(inputs=inputs, targets=column, weights=np.int32(column != 0)))
        for column in columns.swapaxes(0, 1)
    ]
    return np.where(np.any(columns, axis=2), np.stack(scores, axis=1), -np.inf)


# Scores.


def test_a_token_is_as_likely_as_the_softmax_says():
    logits = jnp.log(jnp.asarray([[[1.0, 3.0, 0.0], [2.0, 2.0, 4.0]]]))
    found = token_log_probs(logits, jnp.asarray([[1, 2]]))
    np.testing.assert_allclose(found, np.log([[3 / 4, 1 / 2]]), rtol=1e-6)


@pytest.mark.parametrize("name", CONFIGS)
def test_scores_equal_the_original(golden, name):
    model, recorded = reference_model(name), golden(f"{name}/forward.npz")
    for batch_name, batch in reference_batches(name).items():
        found = scored(model, batch)
        np.testing.assert_allclose(found, recorded[f"{batch_name}/score_batch"], rtol=1e-6)


def test_weights_count_the_tokens():
    model = small_model()
    single = [
        scored(model, dataclasses.replace(BATCH, weights=np.eye(4, dtype=np.float32)[[i] * 4]))
        for i in range(4)
    ]
    weights = np.float32([[1, 0, 0.5, 2], [0, 0, 0, 0], [0, 3, 0, 0], [1, 0, 0, 0]])
    found = scored(model, dataclasses.replace(BATCH, weights=weights))
    CLOSE(found, np.sum(weights * np.stack(single, axis=1), axis=1))
    assert found[1] == 0.0


def test_scores_of_a_narrow_model_are_float32():
    model = small_model(dtype="bfloat16")
    assert scored(model, BATCH).dtype == ranked(model, BATCH.inputs, LABELS).dtype == np.float32


# Ranks.


@every_model
def test_a_candidate_scores_as_the_target_it_would_be(name):
    model = small_model(name)
    found = ranked(model, BATCH.inputs, CANDIDATES)
    CLOSE(found, one_by_one(model, BATCH.inputs, CANDIDATES))
    assert len(np.unique(found)) == 4 * 5  # Of which one is -inf.


def test_a_label_set_is_the_candidates_of_every_row():
    model = small_model()
    CLOSE(ranked(model, BATCH.inputs, LABELS), one_by_one(model, BATCH.inputs, LABELS))


@pytest.mark.parametrize("at_once", [1, 2, 7])
def test_candidates_score_the_same_however_many_at_once(at_once):
    model = small_model()
    found = ranked(model, BATCH.inputs, CANDIDATES, at_once=at_once)
    CLOSE(found, ranked(model, BATCH.inputs, CANDIDATES))


def test_normalized_scores_are_those_of_a_token():
    model = small_model()
    total = ranked(model, BATCH.inputs, LABELS)
    found = ranked(model, BATCH.inputs, LABELS, normalize=True)
    CLOSE(found, total / np.float32([1, 2, 3, 4]))


@pytest.mark.parametrize("normalize", [False, True])
def test_an_absent_candidate_is_never_the_best(normalize):
    model = small_model()
    without = LABELS.at[2].set(0)
    found = ranked(model, BATCH.inputs, without, normalize)
    expected = ranked(model, BATCH.inputs, LABELS, normalize)
    np.testing.assert_array_equal(found[:, 2], -np.inf)
    CLOSE(found[:, [0, 1, 3]], expected[:, [0, 1, 3]])


@every_model
def test_neither_other_rows_nor_padding_change_a_score(name):
    model = small_model(name)
    expected = ranked(model, BATCH.inputs, CANDIDATES)
    CLOSE(ranked(model, BATCH.inputs[::-1], CANDIDATES[::-1])[::-1], expected)
    inputs = jnp.pad(BATCH.inputs, ((0, 2), (0, 3)))
    candidates = jnp.pad(CANDIDATES, ((0, 2), (0, 1), (0, 2)))
    wider = ranked(model, inputs, candidates)
    CLOSE(wider[:4, :5], expected)
    assert not np.any(np.isnan(wider))
    np.testing.assert_array_equal(wider[:, 5], -np.inf)


@pytest.mark.parametrize("candidates", [LABELS[:3], CANDIDATES[:, :3]], ids=["shared", "each"])
def test_what_was_encoded_is_not_repeated_for_the_candidates(candidates):
    # Nothing else has 11 of anything: 3 prompt vectors and 8 tokens.
    model = small_model(encoder_layers=1, decoder_layers=1)
    inputs = jnp.pad(BATCH.inputs, ((0, 0), (0, 3)))
    sizes = [
        math.prod(variable.aval.shape)
        for equation in equations(lambda: rank(model, inputs, candidates))
        for variable in equation.outvars
        if 11 in variable.aval.shape
    ]
    keys, scores = 4 * 11 * 2 * 6, 4 * 2 * 4 * 11  # B S N H and B N U S
    assert keys in sizes and 3 * scores in sizes
    assert max(sizes) < 3 * keys


def test_another_prompt_and_other_candidates_compile_nothing():
    model = small_model()
    graph, prompt, frozen = nnx.split(model, PromptParam, ...)
    compiled = make_rank(graph, normalize=True, at_once=2)
    found = compiled(prompt, frozen, BATCH.inputs, LABELS)
    CLOSE(found, ranked(model, BATCH.inputs, LABELS, normalize=True))
    other = jax.tree.map(lambda leaf: -leaf, prompt)
    assert np.all(compiled(other, frozen, BATCH.inputs, LABELS[::-1]) != found)
    assert compiled._cache_size() == 1


def test_eight_devices_score_as_one():
    model = small_model()
    graph, prompt, frozen = nnx.split(model, PromptParam, ...)
    here = placement()
    batch = here.batch(BATCH)
    placed = here.replicated((prompt, frozen))
    assert len(batch.inputs.sharding.device_set) == 8
    scores = make_score(graph)(*placed, batch)
    ranks = make_rank(graph)(*placed, batch.inputs, here.replicated(LABELS))
    for found, expected in (
        (scores, scored(model, BATCH)),
        (ranks, ranked(model, BATCH.inputs, LABELS)),
    ):
        assert len(found.sharding.device_set) == 8
        CLOSE(found[:4], expected)


@pytest.mark.parametrize("at_once", [0, -1])
def test_no_candidates_at_once_are_refused(at_once):
    message = f"at_once is {at_once}, expected 1 or more, or None for all candidates."
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        rank(small_model(), BATCH.inputs, LABELS, at_once=at_once)
