import itertools

import numpy as np
import pytest

from prompt_tuning.batch import PAD
from prompt_tuning.decoding import BeamSearch, Greedy
from prompt_tuning.errors import ConfigError
from tests.decoding.strategies import decode_table

EOS, A, B = 1, 2, 3
NONE = -1e7


def table_of(**rows):
    """Log-probabilities of PAD, EOS, A and B after each of them."""
    names = {"start": PAD, "end": EOS, "a": A, "b": B}
    table = np.full((4, 4), 0.25)
    for name, row in rows.items():
        table[names[name]] = row
    with np.errstate(divide="ignore"):
        return np.maximum(np.log(table), -1e9)


# An end is likely at once, but a little less so than going on.
#                         PAD  EOS    A    B
TEMPTING = table_of(start=(0, 0.40, 0.60, 0), a=(0, 0.05, 0.55, 0.40), b=(0, 0.1, 0.1, 0.8))


def test_one_beam_keeps_an_end_that_is_second_best():
    tokens, scores = decode_table(BeamSearch(), TEMPTING, length=4)
    np.testing.assert_array_equal(tokens, [[[EOS, PAD, PAD, PAD]]])
    np.testing.assert_allclose(scores, np.log([[0.4]]), rtol=1e-6)
    # The likeliest token at every step never ends.
    np.testing.assert_array_equal(decode_table(Greedy(), TEMPTING, length=4).tokens, [[[A] * 4]])


def test_a_later_end_wins_where_it_scores_better():
    # .6 * .9 is likelier than .4, and log p is divided by (7/6)^alpha besides.
    table = table_of(start=(0, 0.4, 0.6, 0), a=(0, 0.9, 0.1, 0))
    tokens, scores = decode_table(BeamSearch(), table, length=4)
    np.testing.assert_array_equal(tokens, [[[A, EOS, PAD, PAD]]])
    np.testing.assert_allclose(scores, [[np.log(0.54) / (7 / 6) ** 0.6]], rtol=1e-6)


def test_long_answers_are_favoured_by_alpha():
    table = table_of(start=(0, 0.5, 0.5, 0), a=(0, 0.9, 0.1, 0))
    for alpha, expected in ((0.0, [EOS, PAD, PAD]), (3.0, [A, EOS, PAD])):
        tokens, _ = decode_table(BeamSearch(alpha=alpha), table, length=3)
        assert tokens[0, 0].tolist() == expected


def test_without_any_end_the_answers_still_growing_are_returned_as_they_are():
    table = table_of(start=(0, 0, 0.7, 0.3), a=(0, 0, 0.9, 0.1), b=(0, 0, 0.2, 0.8))
    tokens, scores = decode_table(BeamSearch(beams=2), table, length=3)
    np.testing.assert_array_equal(tokens, [[[B, B, B], [A, A, A]]])
    np.testing.assert_allclose(scores, [np.log([0.3 * 0.8**2, 0.7 * 0.9**2])], rtol=1e-5)


def test_ends_stand_before_growing_answers_and_fillers_before_them():
    # Only one answer can end, the very first token; three are asked for.
    table = table_of(start=(0, 0.1, 0.9, 0), a=(0, 0, 0.5, 0.5), b=(0, 0, 0.5, 0.5))
    tokens, scores = decode_table(BeamSearch(beams=3), table, length=3)
    np.testing.assert_array_equal(tokens, [[[PAD] * 3, [PAD] * 3, [EOS, PAD, PAD]]])
    np.testing.assert_allclose(scores, [[NONE, NONE, np.log(0.1)]], rtol=1e-6)


def test_fewer_answers_than_beams_are_the_best_of_them():
    table = np.log(np.random.default_rng(3).dirichlet(np.ones(4), size=4))
    every = decode_table(BeamSearch(beams=4), table, length=5)
    best = decode_table(BeamSearch(beams=4, decodes=2), table, length=5)
    np.testing.assert_array_equal(best.tokens, every.tokens[:, -2:])
    np.testing.assert_array_equal(best.scores, every.scores[:, -2:])


def all_answers(table, length, alpha):
    """Scores every answer that ends, by brute force."""
    vocabulary = [token for token in range(len(table)) if token != EOS]
    scored = {}
    for n in range(1, length + 1):
        for beginning in itertools.product(vocabulary, repeat=n - 1):
            answer = (*beginning, EOS)
            steps = zip((PAD, *beginning), answer, strict=True)
            log_p = sum(table[before, token] for before, token in steps)
            scored[answer + (PAD,) * (length - n)] = log_p / ((5 + n) / 6) ** alpha
    return sorted(scored.items(), key=lambda one: one[1])


@pytest.mark.parametrize("alpha", [0.0, 0.6, 2.0])
def test_with_a_beam_for_every_beginning_it_finds_the_best_of_all(alpha):
    table = np.log(np.random.default_rng(7).dirichlet(np.ones(4), size=4))
    # Three tokens go on, so that 27 beginnings have four continuations each: twice 54. There are
    # 40 answers that end.
    tokens, scores = decode_table(BeamSearch(beams=54, alpha=alpha), table, length=4)
    answers, expected = zip(*all_answers(table, 4, alpha), strict=True)
    np.testing.assert_allclose(scores[0, -40:], expected, rtol=1e-5)
    assert np.all(scores[0, :-40] < -1e6)
    # Not in order: some answers are made of the same steps.
    assert sorted(map(tuple, np.asarray(tokens)[0, -40:].tolist())) == sorted(answers)


def test_more_beams_find_no_worse_answer():
    rng = np.random.default_rng(5)
    better = 0
    for _ in range(4):
        table = np.log(rng.dirichlet(np.full(12, 0.3), size=12) + 1e-6)
        scores = [
            float(decode_table(BeamSearch(beams=beams), table, length=6).scores[0, -1])
            for beams in (1, 60)
        ]
        assert scores[1] >= scores[0] - 1e-5
        better += scores[1] > scores[0] + 1e-3
    assert better


IMPOSSIBLE = {
    "no beams": ({"beams": 0}, "beams is 0; it must be 1 or more"),
    "alpha": ({"alpha": -0.5}, "alpha is -0.5; it must be 0 or more, or the search"),
    "decodes": ({"beams": 2, "decodes": 3}, "decodes is 3, but 2 beams give from 1 to 2 answers"),
    "no decodes": ({"decodes": 0}, "decodes is 0, but 1 beams"),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_impossible_settings_say_why(name):
    settings, message = IMPOSSIBLE[name]
    with pytest.raises(ConfigError, match=message):
        BeamSearch(**settings)
