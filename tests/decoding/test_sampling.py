import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning.batch import PAD
from prompt_tuning.decoding import Greedy, Sample
from prompt_tuning.decoding.sampling import likeliest
from prompt_tuning.errors import ConfigError
from tests.decoding.strategies import decode_table

# After anything: the logits of 8 tokens. Two are equally likely.
LOGITS = np.asarray([-1.0, 0.0, 2.0, 1.0, 1.0, -2.0, 0.5, -6.0])
TABLE = np.tile(LOGITS, (8, 1))
DRAWS = 20_000


def probabilities(kept, temperature=1.0):
    weights = np.where(np.isin(np.arange(8), kept), np.exp(LOGITS / temperature), 0)
    return weights / weights.sum()


# p: 2 has .475, 3 and 4 .175 each, 6 .106, 1 .064, 0 .024, 5 .009
ALL = list(range(8))
DRAWN = {
    "all": (Sample(), probabilities(ALL)),
    "hot": (Sample(temperature=3.0), probabilities(ALL, 3.0)),
    "cool": (Sample(temperature=0.4), probabilities(ALL, 0.4)),
    "top 1": (Sample(top_k=1), probabilities([2])),
    "top 2, with the equal of the second": (Sample(top_k=2), probabilities([2, 3, 4])),
    "top 4": (Sample(top_k=4, temperature=2.0), probabilities([2, 3, 4, 6], 2.0)),
    "top k of more than there are": (Sample(top_k=100), probabilities(ALL)),
    "top p within the first": (Sample(top_p=0.4), probabilities([2])),
    "top p": (Sample(top_p=0.9), probabilities([2, 3, 4, 6])),
    "top p with the equal of the last": (Sample(top_p=0.6), probabilities([2, 3, 4])),
    "top p after the temperature": (
        Sample(top_p=0.9, temperature=0.4),
        probabilities([2, 3, 4], 0.4),
    ),
    "top p of all": (Sample(top_p=1.0), probabilities(ALL)),
}


@pytest.mark.parametrize("name", DRAWN)
def test_tokens_are_as_frequent_as_they_are_likely(name):
    strategy, expected = DRAWN[name]
    # A token that ends nothing, so that `PAD` counts as a token like the others.
    tokens, scores = decode_table(strategy, TABLE, length=1, rows=DRAWS, eos_id=-1)
    tokens = np.asarray(tokens)[:, 0, 0]
    found = np.bincount(tokens, minlength=8) / DRAWS
    assert not np.any(found[expected == 0])
    # Five standard deviations.
    bound = 5 * np.sqrt(expected * (1 - expected) / DRAWS)
    assert np.all(np.abs(found - expected) <= bound)
    np.testing.assert_allclose(np.asarray(scores)[:, 0], np.log(expected[tokens]), atol=1e-5)


def test_draws_of_one_row_do_not_depend_on_each_other():
    strategy = Sample(decodes=2, top_k=3)  # Three tokens, because two are equal.
    tokens, _ = decode_table(strategy, TABLE, length=2, rows=DRAWS, eos_id=-1)
    pairs = np.asarray(tokens)
    p = probabilities([2, 3, 4])[2]
    bound = 5 * np.sqrt(p * p * (1 - p * p) / DRAWS)
    both = pairs == 2
    # Of the two places of an answer, and of the same place of two answers. Those stand in order
    # of score, which does not change how often both are 2.
    assert (
        abs(
            np.mean(both[:, 0, 0] & both[:, 0, 1]) / 2
            + np.mean(both[:, 1, 0] & both[:, 1, 1]) / 2
            - p * p
        )
        < bound
    )
    every = np.mean(np.all(both, axis=(1, 2)))
    assert abs(every - p**4) < 5 * np.sqrt(p**4 / DRAWS)


def test_other_keys_draw_other_answers():
    one, other = (decode_table(Sample(), TABLE, length=8, seed=seed).tokens for seed in (0, 1))
    assert np.any(one != other)
    np.testing.assert_array_equal(one, decode_table(Sample(), TABLE, length=8, seed=0).tokens)


@pytest.mark.parametrize("temperature", [0.0, 1e-4])
def test_without_temperature_the_likeliest_is_certain(temperature):
    # After a 2 comes a 1, the end.
    table = [[0, 0, 2], [9, 9, 9], [0, 1, 0]]
    own = np.log(np.exp(2) / (2 + np.exp(2))) + np.log(np.e / (2 + np.e))
    for strategy, score in (
        (Sample(temperature=temperature), 0),
        (Sample(temperature=temperature, rescale_log_probs=False), own),
        (Greedy(), own),
    ):
        tokens, scores = decode_table(strategy, table, length=4)
        np.testing.assert_array_equal(tokens, [[[2, 1, PAD, PAD]]])
        np.testing.assert_allclose(scores, [[score]], atol=1e-6)


def test_scores_may_be_those_of_the_model_itself():
    strategy = Sample(top_k=2, temperature=0.5, rescale_log_probs=False)
    tokens, scores = decode_table(strategy, TABLE, length=1, rows=50, eos_id=-1)
    expected = np.log(probabilities(ALL))[np.asarray(tokens)[:, 0, 0]]
    np.testing.assert_allclose(np.asarray(scores)[:, 0], expected, atol=1e-5)


def test_the_first_of_equals_is_the_likeliest():
    logits = np.random.default_rng(0).integers(0, 4, (200, 10)).astype(np.float32)
    np.testing.assert_array_equal(likeliest(jnp.asarray(logits)), np.argmax(logits, axis=1))
    assert int(likeliest(jnp.full((1, 5), jnp.nan))[0]) == 4


IMPOSSIBLE = {
    "both": ({"top_k": 3, "top_p": 0.5}, "both top_k=3 and top_p=0.5. Choose one"),
    "temperature": ({"temperature": -1.0}, "temperature is -1.0; it must be 0 or more"),
    "top k": ({"top_k": -1}, "top_k is -1; it must be 1 or more, or 0 for all"),
    "top p": ({"top_p": 1.5}, r"top_p is 1.5; it must lie between 0 \(all\) and 1"),
    "decodes": ({"decodes": 0}, "decodes is 0; it must be 1 or more"),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_impossible_settings_say_why(name):
    settings, message = IMPOSSIBLE[name]
    with pytest.raises(ConfigError, match=message):
        Sample(**settings)
