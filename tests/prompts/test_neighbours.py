"""The tokens nearest to a prompt, and how far it has come."""

import numpy as np
import pytest

from prompt_tuning.errors import CheckpointError
from prompt_tuning.prompts.neighbours import (
    CHUNK,
    drift,
    nearest_by_cosine,
    nearest_by_distance,
)

METRICS = {"cosine": nearest_by_cosine, "distance": nearest_by_distance}
TABLE = np.asarray(
    [
        [1.0, 0.0],  # 0
        [10.0, 0.0],  # 1: as 0, and longer
        [0.0, 1.0],  # 2
        [-1.0, 0.0],  # 3
        [0.0, 0.0],  # 4: points nowhere
    ],
    np.float32,
)


def test_the_cosine_looks_at_directions_and_the_distance_at_places():
    vectors = np.asarray([[8.0, 1.0]], np.float32)
    by_cosine = nearest_by_cosine(vectors, TABLE, 5)
    by_distance = nearest_by_distance(vectors, TABLE, 5)
    np.testing.assert_array_equal(by_cosine.ids, [[0, 1, 2, 4, 3]])
    np.testing.assert_array_equal(by_distance.ids, [[1, 0, 2, 4, 3]])
    expected = np.asarray([[8, 8, 1, 0, -8]]) / np.sqrt(65)
    np.testing.assert_allclose(by_cosine.values, expected, atol=1e-6)
    np.testing.assert_allclose(by_distance.values, np.sqrt([[5, 50, 64, 65, 82]]), rtol=1e-6)


@pytest.mark.parametrize("metric", METRICS)
def test_a_token_s_own_embedding_is_nearest_to_it(metric):
    rng = np.random.default_rng(0)
    table = rng.normal(size=(CHUNK + 100, 8)).astype(np.float32)
    chosen = np.asarray([0, CHUNK - 1, CHUNK, CHUNK + 99])
    found = METRICS[metric](table[chosen], table, 3)
    np.testing.assert_array_equal(found.ids[:, 0], chosen)
    assert found.ids.shape == found.values.shape == (4, 3)


@pytest.mark.parametrize("metric", METRICS)
def test_equally_near_tokens_come_in_the_order_of_their_ids(metric):
    table = np.ones((6, 2), np.float32)
    found = METRICS[metric](np.ones((1, 2), np.float32), table, 6)
    np.testing.assert_array_equal(found.ids, [[0, 1, 2, 3, 4, 5]])


@pytest.mark.parametrize("metric", METRICS)
def test_no_more_tokens_are_named_than_there_are(metric):
    assert METRICS[metric](TABLE[:2], TABLE, 99).ids.shape == (2, 5)


@pytest.mark.parametrize("metric", METRICS)
def test_a_table_of_another_width_is_refused(metric):
    with pytest.raises(CheckpointError, match="width 3, the base's embeddings have width 2"):
        METRICS[metric](np.ones((1, 3), np.float32), TABLE, 1)


def test_drift_is_the_way_from_the_start():
    start = np.asarray([[3.0, 4.0], [1.0, 0.0], [0.0, 0.0]], np.float32)
    vectors = np.asarray([[3.0, 4.0], [0.0, 2.0], [0.0, 1.0]], np.float32)
    found = drift(vectors, start)
    np.testing.assert_allclose(found.distance, [0.0, 5**0.5, 1.0], rtol=1e-6)
    np.testing.assert_allclose(found.cosine, [1.0, 0.0, 0.0], atol=1e-6)


def test_a_start_of_another_length_is_refused():
    with pytest.raises(CheckpointError, match=r"shape \(2, 2\) and the one .* \(1, 2\)"):
        drift(np.ones((2, 2), np.float32), np.ones((1, 2), np.float32))
