import itertools

import numpy as np
import pytest

from prompt_tuning.data import cooccurrence
from prompt_tuning.data.cooccurrence import CooccurrenceVectors
from prompt_tuning.errors import ConfigError, DataError

# Classes of words that can stand for each other, in the order in which a sentence has them.
CLASSES = np.arange(3, 33).reshape(10, 3)
# Fewer than there are classes: what tells words of one class apart is chance.
WIDTH = 8
END = 1
ROWS = 40


@pytest.fixture(scope="module")
def text():
    """Sentences of some of the classes each, with a word of each class and an end."""
    rng = np.random.default_rng(0)
    said = []
    for _ in range(4000):
        classes = np.sort(rng.choice(len(CLASSES), 6, replace=False))
        said += [*(rng.choice(CLASSES[one]) for one in classes), END]
    return np.array(said, np.uint16)


@pytest.fixture(scope="module")
def vectors(text):
    return CooccurrenceVectors(tokens=text)(ROWS, WIDTH)


def alike(vectors):
    """Returns the cosines between the vectors of all tokens of the classes."""
    return vectors[3:33] @ vectors[3:33].T / WIDTH


def test_tokens_with_the_same_neighbours_have_nearly_the_same_vector(vectors):
    cosines = alike(vectors).reshape(10, 3, 10, 3)
    same = [cosines[i, j, i, k] for i in range(10) for j, k in [(0, 1), (0, 2), (1, 2)]]
    others = [cosines[i, :, k].max() for i, k in itertools.combinations(range(10), 2)]
    assert min(same) > 0.9 > 0.7 > np.median(others)


def test_vectors_are_as_large_as_initial_embeddings(vectors):
    assert vectors.dtype == np.float32 and vectors.shape == (ROWS, WIDTH)
    np.testing.assert_allclose(np.square(vectors[3:33]).mean(axis=1), 1, rtol=1e-5)


def test_tokens_that_the_text_lacks_and_control_tokens_have_none(vectors):
    assert not vectors[:3].any() and not vectors[33:].any()


def test_the_same_text_gives_the_same_vectors(text, vectors):
    np.testing.assert_array_equal(CooccurrenceVectors(tokens=text)(ROWS, WIDTH), vectors)


@pytest.mark.parametrize("chunk", [2, 7, 1 << 20])
@pytest.mark.parametrize("window", [1, 3])
def test_neighbours_are_counted_once_wherever_the_text_is_cut(text, monkeypatch, chunk, window):
    monkeypatch.setattr(cooccurrence, "_CHUNK", chunk)
    tokens = text[:50]
    expected = np.zeros((ROWS, ROWS))
    for i, j in itertools.combinations(range(50), 2):
        if j - i <= window and min(tokens[i], tokens[j]) >= 3:
            expected[tokens[i], tokens[j]] += 1
            expected[tokens[j], tokens[i]] += 1
    found = CooccurrenceVectors(tokens=tokens, window=window)._counts(ROWS).toarray()
    np.testing.assert_array_equal(found, expected)


def test_a_window_without_neighbours_is_refused(text):
    with pytest.raises(ConfigError, match=r"CooccurrenceVectors\.window is 0"):
        CooccurrenceVectors(tokens=text, window=0)


def test_a_text_of_another_vocabulary_is_refused(text):
    with pytest.raises(DataError, match="has token 32, but the model has rows for ids below 20"):
        CooccurrenceVectors(tokens=text)(20, WIDTH)


def test_a_text_of_few_words_is_refused(text):
    with pytest.raises(DataError, match=r"30 different tokens with neighbours.* at least 34"):
        CooccurrenceVectors(tokens=text)(ROWS, 32)
