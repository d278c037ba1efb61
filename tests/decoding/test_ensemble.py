import functools
import itertools
import re

import gin
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from prompt_tuning.decoding.ensemble import (
    MeanLogProbability,
    Vote,
    answer_each,
    expand,
    make_ensemble,
    make_rank_each,
    rank_each,
    vote,
)
from prompt_tuning.decoding.generate import generate
from prompt_tuning.decoding.sampling import Greedy, Sample
from prompt_tuning.decoding.scoring import rank
from prompt_tuning.errors import ConfigError
from prompt_tuning.partitioning import placement
from prompt_tuning.prompts import Prompt, PromptBank, PromptParam, from_array
from tests.reference_models import QUICKLY
from tests.small_models import BATCH, small_model

# A new combination gets the laws with one line.
COMBINATIONS = {
    "vote": Vote(),
    "mean": MeanLogProbability(),
    "mean of a token": MeanLogProbability(normalize=True),
}
every_combination = pytest.mark.parametrize(
    "combination", COMBINATIONS.values(), ids=COMBINATIONS.keys()
)

# Of the small models; the second is shorter, the last is the first once more.
PROMPTS = [
    np.random.default_rng(k).normal(size=(length, 16)).astype(np.float32)
    for k, length in enumerate((3, 1, 3))
]
PROMPTS.append(PROMPTS[0])
LENGTH, EOS = 4, 30  # Of answers; a token that some prompts say and others do not.
CLOSE = functools.partial(np.testing.assert_allclose, rtol=2e-6, atol=2e-6)


# The decisions, by hand.


@pytest.mark.parametrize(
    ("answers", "scores", "expected"),
    [
        ("a", [-1], 0),
        ("aba", [-9, -1, -9], 0),
        ("baa", [-1, -9, -9], 1),
        # As many votes each: the higher sum of scores.
        ("ab", [-2, -1], 1),
        ("abba", [-3, -1, -2, -1], 1),
        ("abcc", [-1, -1, -9, -9], 2),
        # Equal sums: the first.
        ("ba", [-1, -1], 0),
        ("baab", [-1, -2, -1, -2], 0),
        ("abc", [-np.inf, -np.inf, -np.inf], 0),
    ],
)
def test_votes_decide_then_scores_then_the_order(answers, scores, expected):
    assert vote(list(answers), [float(score) for score in scores]) == expected
    assert Vote().choose(list(answers), np.float32(scores)) == expected


def test_the_order_of_votes_decides_nothing_else():
    # In float64, 0.1 + 0.2 + 0.3 depends on the order.
    votes = [("a", 0.1), ("a", 0.2), ("a", 0.3), ("b", 0.3), ("b", 0.2), ("b", 0.1 + 1e-16)]
    for order in itertools.permutations(votes):
        answers, scores = zip(*order, strict=True)
        assert answers[vote(answers, scores)] == "b"


@pytest.mark.parametrize(
    ("scores", "expected"),
    [([-3.0, -1.0, -2.0], 1), ([-1.0, -np.inf, -1.0], 0), ([-np.inf, -np.inf, -7.0], 2)],
)
def test_the_highest_mean_decides_then_the_order(scores, expected):
    assert MeanLogProbability().choose(["x", "y", "z"], np.float32(scores)) == expected


@pytest.mark.parametrize(
    ("log_probs", "by_vote", "by_mean"),
    [
        ([[-1, -2]], 0, 0),
        # Two prompts are a little for label 0, one is much for label 1.
        ([[-1, -2], [-1, -2], [-9, -1]], 0, 1),
        # One vote each: the surer one.
        ([[-2, -3, -9], [-9, -1, -9]], 1, 1),
        ([[-1, -2, -np.inf], [-2, -1, -np.inf]], 0, 0),
    ],
)
def test_labels_are_chosen_as_answers_are(log_probs, by_vote, by_mean):
    log_probs = np.float32(log_probs)
    assert Vote().choose_label(log_probs) == by_vote
    assert MeanLogProbability().choose_label(log_probs) == by_mean


def test_every_row_is_repeated_for_the_prompts():
    np.testing.assert_array_equal(expand(np.asarray([[1], [2]]), 3), [[1]] * 3 + [[2]] * 3)


# Answers of a model.


@functools.cache
def split_base():
    return nnx.split(small_model("T5 1.1"))


def with_prompts(prompts):
    model = nnx.merge(*split_base())
    model.encoder.prompt = PromptBank(prompts)
    return model


def with_prompt(prompt):
    model, init = nnx.merge(*split_base()), from_array(prompt)
    model.encoder.prompt = Prompt(length=len(prompt), init=init, embed_dim=16, rngs=nnx.Rngs(0))
    return model


@functools.partial(jax.jit, static_argnums=(0, 1, 2), compiler_options=QUICKLY)
def _call(graph, function, options, state, *args, **kwargs):
    return function(nnx.merge(graph, state), *args, **kwargs, **dict(options))


def call(function, model, *args, options=(), **kwargs):
    graph, state = nnx.split(model)
    return _call(graph, function, options, state, *args, **kwargs)


ANSWERS = (("length", LENGTH), ("eos_id", EOS))


def opinions_of(prompts, combination, inputs=BATCH.inputs):
    model = with_prompts(prompts)
    found = call(answer_each, model, inputs, options=ANSWERS)
    return found._replace(scores=call(combination.scores, model, inputs, found))


def decisions(combination, opinions):
    """Returns the chosen answer to every row."""
    rows = zip(*map(np.asarray, opinions), strict=True)
    return [
        tokens[combination.choose([one.tobytes() for one in tokens], scores)].tolist()
        for tokens, scores in rows
    ]


ROWS = {
    "keys": jax.random.split(jax.random.key(3), 4),
    "prefix": jnp.asarray([[0, 0], [7, 0], [7, 8], [0, 0]]),
    "limits": jnp.asarray([4, 2, 1, 3]),
}


@pytest.mark.parametrize(
    ("strategy", "given"),
    [(Greedy(), {}), (Sample(temperature=1.0), ROWS)],
    ids=["greedy", "drawn"],
)
def test_every_prompt_answers_as_it_does_alone(strategy, given):
    options = ANSWERS if strategy == Greedy() else (*ANSWERS, ("strategy", strategy))
    found = call(answer_each, with_prompts(PROMPTS), BATCH.inputs, options=options, **given)
    assert found.tokens.shape == (4, 4, LENGTH)
    for k, prompt in enumerate(PROMPTS):
        alone = call(generate, with_prompt(prompt), BATCH.inputs, options=options, **given)
        np.testing.assert_array_equal(found.tokens[:, k], alone.tokens[:, -1])
        CLOSE(found.scores[:, k], alone.scores[:, -1])
    assert len({np.asarray(found.tokens[:, k]).tobytes() for k in range(4)}) == 3


def under_each(candidates):
    """Ranks candidates under every prompt alone."""
    each = [call(rank, with_prompt(prompt), BATCH.inputs, candidates) for prompt in PROMPTS]
    return np.stack(each, axis=1)


def test_the_mean_is_that_of_every_prompt_alone():
    found = opinions_of(PROMPTS, MeanLogProbability())
    mean = np.mean(under_each(found.tokens), axis=1)
    for row, scores, expected in zip(np.asarray(found.tokens), found.scores, mean, strict=True):
        first = [row.tolist().index(answer.tolist()) == k for k, answer in enumerate(row)]
        assert not first[3]  # The last prompt is the first.
        CLOSE(scores, np.where(first, expected, -np.inf))
    of_a_token = opinions_of(PROMPTS, MeanLogProbability(normalize=True)).scores
    CLOSE(of_a_token, found.scores / np.sum(found.tokens != 0, axis=2, dtype=np.float32))


@every_combination
def test_many_copies_of_a_prompt_are_that_prompt(combination):
    found = opinions_of([PROMPTS[0]] * 4, combination)
    alone = call(generate, with_prompt(PROMPTS[0]), BATCH.inputs, options=ANSWERS)
    assert decisions(combination, found) == alone.tokens[:, -1].tolist()
    for tokens, scores in zip(found.tokens, np.asarray(found.scores), strict=True):
        assert combination.choose([one.tobytes() for one in np.asarray(tokens)], scores) == 0


@every_combination
def test_an_ensemble_of_one_is_its_prompt(combination):
    found = opinions_of(PROMPTS[1:2], combination)
    alone = call(generate, with_prompt(PROMPTS[1]), BATCH.inputs, options=ANSWERS)
    assert decisions(combination, found) == alone.tokens[:, -1].tolist()


@every_combination
def test_the_order_of_the_prompts_changes_no_answer(combination):
    expected = decisions(combination, opinions_of(PROMPTS, combination))
    for order in ([3, 2, 1, 0], [1, 3, 0, 2]):
        again = opinions_of([PROMPTS[k] for k in order], combination)
        assert decisions(combination, again) == expected
    # It is no prompt's own answers.
    single = [decisions(combination, opinions_of([p] * 4, combination)) for p in PROMPTS[:3]]
    assert combination == Vote() or expected not in single


def test_the_combinations_are_not_all_one():
    chosen = [decisions(one, opinions_of(PROMPTS, one)) for one in COMBINATIONS.values()]
    assert len({str(one) for one in chosen}) == 3


LABELS = jnp.asarray([[5, 0, 0, 0], [5, 6, 1, 0], [7, 8, 0, 0], [0, 0, 0, 0]])


def test_labels_are_ranked_under_every_prompt():
    found = call(rank_each, with_prompts(PROMPTS), BATCH.inputs, LABELS)
    CLOSE(found, under_each(jnp.stack([LABELS] * 4)))
    candidates = jnp.stack([LABELS, LABELS[::-1], LABELS, LABELS[::-1]])
    of_each_row = call(rank_each, with_prompts(PROMPTS), BATCH.inputs, candidates)
    turned = [row if i % 2 == 0 else row[:, ::-1] for i, row in enumerate(found)]
    CLOSE(of_each_row, np.stack(turned))


@every_combination
def test_rows_of_padding_change_no_answer(combination):
    padded = jnp.pad(BATCH.inputs, ((0, 2), (0, 3)))
    found = opinions_of(PROMPTS, combination, padded)
    assert not np.any(np.isnan(found.scores))
    expected = opinions_of(PROMPTS, combination)
    np.testing.assert_array_equal(found.tokens[:4], expected.tokens)
    CLOSE(found.scores[:4], expected.scores)


# Compiled.


def test_eight_devices_answer_as_one_and_other_prompts_compile_nothing():
    combination = MeanLogProbability()
    graph, prompts, frozen = nnx.split(with_prompts(PROMPTS), PromptParam, ...)
    ensemble = make_ensemble(graph, combination=combination, length=LENGTH, eos_id=EOS)
    here = placement()
    prompts, frozen = here.replicated((prompts, frozen))
    inputs = here.batch(BATCH).inputs
    found = ensemble(prompts, frozen, inputs)
    assert len(found.tokens.sharding.device_set) == len(found.scores.sharding.device_set) == 8
    expected = opinions_of(PROMPTS, combination)
    np.testing.assert_array_equal(found.tokens[:4], expected.tokens)
    CLOSE(found.scores[:4], expected.scores)
    others = jax.tree.map(lambda leaf: -leaf, prompts)
    assert np.any(ensemble(others, frozen, inputs).tokens != found.tokens)
    assert ensemble._cache_size() == 1


def test_a_compiled_rank_is_that_of_every_prompt():
    model = with_prompts(PROMPTS)
    graph, prompts, frozen = nnx.split(model, PromptParam, ...)
    found = make_rank_each(graph, normalize=True)(prompts, frozen, BATCH.inputs, LABELS)
    total = np.asarray(call(rank_each, model, BATCH.inputs, LABELS))
    CLOSE(found, total / np.float32([1, 3, 2, 1]))


def test_inputs_are_encoded_once_for_answers_and_their_scores():
    graph, prompts, frozen = nnx.split(with_prompts(PROMPTS), PromptParam, ...)

    def loops(combination):
        ensemble = make_ensemble(graph, combination=combination, length=LENGTH, eos_id=EOS)
        text = ensemble.lower(prompts, frozen, BATCH.inputs).compile(QUICKLY).as_text()
        return len(re.findall(r" while\(", text))

    # One more: over the layers of the decoder that scores. The encoder's are not gone over again.
    assert loops(MeanLogProbability()) == loops(Vote()) + 1


def test_a_model_without_a_bank_is_refused():
    message = (
        "An ensemble needs a model with a `PromptBank`, this one has Prompt. Make it with "
        "`attach_bank(model, files)`."
    )
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        answer_each(with_prompt(PROMPTS[0]), BATCH.inputs, length=LENGTH)
    with pytest.raises(ConfigError, match="this one has NoneType"):
        rank_each(small_model("T5 1.1"), BATCH.inputs, LABELS)


def test_a_gin_file_may_name_a_combination():
    lines = (
        "from __gin__ import dynamic_registration",
        "from prompt_tuning.decoding import ensemble",
        "ensemble.MeanLogProbability.normalize = True",
        "ENSEMBLE = @ensemble.MeanLogProbability()",
    )
    try:
        gin.parse_config(lines)
        make = gin.query_parameter("%ENSEMBLE").scoped_configurable_fn
        assert make() == MeanLogProbability(normalize=True)
    finally:
        gin.clear_config(clear_constants=True)
