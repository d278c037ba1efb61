import itertools
import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prompt_tuning.data.objectives import PrefixLM, SpanCorruption, noise_mask, segment_lengths
from prompt_tuning.errors import ConfigError
from prompt_tuning.vocabulary import ByteVocabulary

# Ids 3 to 202 are text, 258 to 159 sentinels, 1 the end token.
VOCABULARY = ByteVocabulary()
SENTINELS = {VOCABULARY.sentinel_id(i) for i in range(VOCABULARY.sentinels)}

OBJECTIVES = {
    "span_corruption": SpanCorruption(),
    "span_corruption_half": SpanCorruption(noise_density=0.5, mean_span_length=8.0),
    "span_corruption_words": SpanCorruption(noise_density=0.3, mean_span_length=1.0),
    "span_corruption_most": SpanCorruption(noise_density=0.9, mean_span_length=1.0),
    "prefix_lm": PrefixLM(),
    "prefix_lm_short": PrefixLM(shortest=0.25, longest=0.5),
}
SPAN_CORRUPTIONS = [name for name in OBJECTIVES if name.startswith("span")]


def text(length, dtype=np.int32):
    return (3 + np.arange(length) % 150).astype(dtype)


def example(objective, tokens, seed=0):
    return objective(tokens, np.random.default_rng(seed), VOCABULARY)


def splice(example):
    """Puts what the targets say back into the inputs."""
    hidden = {}
    for token in example.targets[:-1]:
        if token in SENTINELS:
            said = hidden.setdefault(token, [])
        else:
            said.append(token)
    kept = ([token] if token not in SENTINELS else hidden[token] for token in example.inputs[:-1])
    return list(itertools.chain.from_iterable(kept))


@pytest.mark.parametrize("name", OBJECTIVES)
@settings(max_examples=30)
@given(length=st.integers(2, 120), seed=st.integers(0, 2**32))
def test_nothing_is_lost(name, length, seed):
    tokens = text(length)
    made = example(OBJECTIVES[name], tokens, seed)
    joined = [*made.inputs[:-1], *made.targets[:-1]]
    assert (joined if name.startswith("prefix") else splice(made)) == tokens.tolist()


@pytest.mark.parametrize("name", OBJECTIVES)
@settings(max_examples=30)
@given(length=st.integers(3, 120), seed=st.integers(0, 2**32))
def test_a_window_always_fits_and_both_sides_end(name, length, seed):
    objective = OBJECTIVES[name]
    try:
        window = objective.window(length)
    except ConfigError:
        return
    made = example(objective, text(window), seed)
    assert len(made.inputs) <= length
    assert len(made.targets) <= objective.target_length(length)
    assert (made.inputs[-1], made.targets[-1]) == (1, 1)
    assert (made.inputs.dtype, made.targets.dtype) == (np.int32, np.int32)


@pytest.mark.parametrize("name", SPAN_CORRUPTIONS)
@given(length=st.integers(8, 120))
def test_one_token_more_would_not_fit(name, length):
    objective = OBJECTIVES[name]
    made = example(objective, text(objective.window(length) + 1))
    assert len(made.inputs) > length


@pytest.mark.parametrize("name", SPAN_CORRUPTIONS)
def test_examples_of_one_window_length_have_one_shape(name):
    objective = OBJECTIVES[name]
    made = [example(objective, text(objective.window(64)), seed) for seed in range(20)]
    assert len({len(one.inputs) for one in made}) == 1
    assert {len(one.targets) for one in made} == {objective.target_length(64)}


def test_the_lengths_are_those_of_t5():
    """`random_spans_helper` of t5/data/preprocessors.py, for its defaults."""
    objective = SpanCorruption()
    lengths = {
        length: (objective.window(length), objective.target_length(length))
        for length in (128, 512, 1024)
    }
    assert lengths == {128: (141, 29), 512: (568, 114), 1024: (1137, 229)}


def test_the_targets_are_the_hidden_spans_after_their_sentinels():
    # With one span of half the window there is only one way to do it.
    objective = SpanCorruption(noise_density=0.5, mean_span_length=3.0)
    made = example(objective, np.array([11, 12, 13, 14, 15, 16]))
    assert made.inputs.tolist() == [11, 12, 13, 258, 1]
    assert made.targets.tolist() == [258, 14, 15, 16, 1]


@pytest.mark.parametrize("name", SPAN_CORRUPTIONS)
def test_sentinels_are_unique_and_descend_from_the_top_on_both_sides(name):
    made = example(OBJECTIVES[name], text(100))
    for side in made:
        sentinels = [token for token in side if token in SENTINELS]
        assert sentinels == [258 - i for i in range(len(sentinels))]
    assert SENTINELS & set(made.inputs) == SENTINELS & set(made.targets)


@pytest.mark.parametrize("density", [0.15, 0.3, 0.5])
def test_the_hidden_share_is_exact(density):
    objective = SpanCorruption(noise_density=density, mean_span_length=4.0)
    for seed in range(20):
        made = example(objective, text(200), seed)
        hidden = [token for token in made.targets[:-1] if token not in SENTINELS]
        assert len(hidden) == round(200 * density)
        assert len(made.targets) - 1 - len(hidden) == round(200 * density / 4)


def test_a_text_full_of_noise_has_no_more_spans_than_shown_tokens():
    made = example(SpanCorruption(noise_density=0.9, mean_span_length=1.0), text(20))
    assert sum(token in SENTINELS for token in made.inputs) == 2


def test_every_token_is_hidden_sometimes_except_the_first():
    hidden = np.sum([noise_mask(12, np.random.default_rng(i), 4, 2) for i in range(500)], axis=0)
    assert hidden[0] == 0 and (hidden[1:] > 0).all()
    assert hidden[-1] == 500


def test_every_segmentation_is_equally_likely():
    rng = np.random.default_rng(0)
    counts = Counter(tuple(segment_lengths(5, 3, rng).tolist()) for _ in range(6000))
    assert set(counts) == {(1, 1, 3), (1, 2, 2), (1, 3, 1), (2, 1, 2), (2, 2, 1), (3, 1, 1)}
    assert max(abs(count - 1000) for count in counts.values()) < 150


def test_every_split_of_a_prefix_is_equally_likely():
    counts = Counter(len(example(PrefixLM(), text(5), seed).inputs) - 1 for seed in range(4000))
    assert set(counts) == {1, 2, 3, 4}
    assert max(abs(count - 1000) for count in counts.values()) < 150


def test_a_prefix_keeps_to_its_bounds():
    objective = PrefixLM(shortest=0.25, longest=0.5)
    prefixes = {len(example(objective, text(16), seed).inputs) - 1 for seed in range(200)}
    assert prefixes == {4, 5, 6, 7, 8}
    assert (objective.window(64), objective.target_length(64)) == (126, 95)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_generator_decides_alone(name):
    objective, tokens = OBJECTIVES[name], text(90)
    once, again, other = (example(objective, tokens, seed) for seed in (1, 1, 2))
    assert once.inputs.tolist() == again.inputs.tolist()
    assert once.inputs.tolist() != other.inputs.tolist()
    assert tokens.tolist() == text(90).tolist()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_tokens_may_come_as_small_integers(name):
    """A corpus row is uint16, where sentinels and negative steps would wrap around."""
    small, wide = (example(OBJECTIVES[name], text(90, dtype)) for dtype in (np.uint16, np.int32))
    assert small.inputs.tolist() == wide.inputs.tolist()
    assert small.targets.tolist() == wide.targets.tolist()


def test_too_few_sentinels_are_reported():
    expected = (
        "Span corruption of 2000 tokens needs 300 sentinels, but the vocabulary has 100. "
        "Use shorter inputs, longer spans or more `extra_ids`."
    )
    with pytest.raises(ConfigError, match=f"^{re.escape(expected)}$"):
        example(SpanCorruption(mean_span_length=1.0), text(2000))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"noise_density": 0.0}, "SpanCorruption.noise_density is 0.0, but it is the hidden share"),
        ({"noise_density": 1.5}, "SpanCorruption.noise_density is 1.5, but it is the hidden share"),
        ({"mean_span_length": 0.5}, "SpanCorruption.mean_span_length is 0.5, but a span has at"),
    ],
)
def test_impossible_spans_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        SpanCorruption(**values)


@pytest.mark.parametrize(("shortest", "longest"), [(0.5, 0.4), (-0.1, 1.0), (0.0, 1.1), (0.0, 0.0)])
def test_impossible_bounds_of_a_prefix_are_refused(shortest, longest):
    with pytest.raises(
        ConfigError, match=rf"^PrefixLM\(shortest={shortest}, longest={longest}\): "
    ):
        PrefixLM(shortest=shortest, longest=longest)


def test_impossible_lengths_are_refused():
    with pytest.raises(
        ConfigError, match=r"^An input length of 2 is too short for span corruption"
    ):
        SpanCorruption().window(2)
    with pytest.raises(ConfigError, match=r"^An input length of 2 is too short to split a text"):
        PrefixLM().window(2)
