import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from prompt_tuning.batch import PAD
from prompt_tuning.decoding import (
    BeamSearch,
    Decoder,
    Greedy,
    Sample,
    Terms,
    generate,
    greedy,
    make_generate,
)
from prompt_tuning.decoding.generate import t5_decoder
from prompt_tuning.errors import ConfigError
from prompt_tuning.model import T5
from prompt_tuning.prompts import PromptParam
from tests import small_models
from tests.decoding.strategies import (
    EOS,
    KEYS,
    LENGTH,
    STRATEGIES,
    Unpadded,
    answers,
    unpadded,
)
from tests.reference_models import QUICKLY
from tests.small_models import BATCH, SOME_MODELS, small_model

# The package's function of the same name hides it.
module = sys.modules[t5_decoder.__module__]
every_strategy = pytest.mark.parametrize("name", STRATEGIES)


def assert_same(found, expected):
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_allclose(found.scores, expected.scores, atol=2e-5)


def row_of(several, row):
    return jax.tree.map(lambda one: one[row : row + 1], several)


def forgetful(model, inputs, length):
    """Runs the whole decoder once for every token; all it remembers is what was said."""
    encoded = model.encode(inputs)

    def start(answers):
        # Positions still to come hold any token, so that the mask counts them; nothing else does.
        return jnp.full((len(inputs) * answers, length + 1), 2)

    def extend(tokens, position, past):
        past = past.at[:, position].set(tokens)
        each = len(tokens) // len(inputs)
        repeated = jax.tree.map(lambda one: jnp.repeat(one, each, axis=0), encoded)
        return model.decode(repeated, past[:, 1:])[:, position], past

    def reorder(past, sources):
        by_input = past.reshape(*sources.shape, -1)
        return jnp.take_along_axis(by_input, sources[..., None], axis=1).reshape(past.shape)

    return Decoder(start, extend, reorder)


@functools.partial(jax.jit, static_argnums=(0, 2), compiler_options=QUICKLY)
def without_memory(graph, state, strategy):
    decoder = forgetful(nnx.merge(graph, state), BATCH.inputs, LENGTH)
    terms = Terms(jnp.full((4, LENGTH), PAD), jnp.full(4, LENGTH), EOS)
    return strategy(decoder, terms, KEYS)


@every_strategy
def test_remembering_changes_no_answer(name):
    expected = without_memory(*nnx.split(small_model()), Unpadded(STRATEGIES[name]))
    assert_same(answers(name), expected)


@functools.partial(jax.jit, static_argnums=(0, 2), compiler_options=QUICKLY)
def taken_apart(graph, state, strategy):
    decoder = t5_decoder(nnx.merge(graph, state), BATCH.inputs, LENGTH, apart=True)
    terms = Terms(jnp.full((4, LENGTH), PAD), jnp.full(4, LENGTH), EOS)
    return strategy(decoder, terms, KEYS)


@pytest.mark.parametrize("model", SOME_MODELS)
def test_remembering_in_parts_changes_no_answer_of_any_model(model):
    # What models differ in is how they keep the past, of which beams ask more than all others.
    arguments = (*nnx.split(small_model(model)), Unpadded(STRATEGIES["beams"]))
    assert_same(taken_apart(*arguments), without_memory(*arguments))


def test_only_small_decoders_are_taken_apart_and_only_for_many_steps(monkeypatch):
    def takes_apart(length):
        model = nnx.eval_shape(lambda: small_model("T5 1.1"))
        graph, state = nnx.split(model)

        def past(state):
            return t5_decoder(nnx.merge(graph, state), BATCH.inputs, length).start(1)

        return isinstance(jax.eval_shape(past, state), list)

    assert [takes_apart(length) for length in (15, 16)] == [False, True]
    monkeypatch.setattr(module, "SMALL_DECODER", 1000)
    assert not takes_apart(16)


def test_some_answers_end_early_and_some_do_not():
    lengths = np.concatenate(
        [np.sum(np.asarray(answers(name).tokens) != PAD, axis=2).ravel() for name in STRATEGIES]
    )
    assert {2, 3, 4, 5, LENGTH} <= set(lengths.tolist())


@every_strategy
def test_answers_stand_in_ascending_order_and_end_with_their_end_token(name):
    tokens, scores = answers(name)
    assert np.all(np.diff(scores, axis=1) >= 0)
    for answer in np.asarray(tokens).reshape(-1, LENGTH):
        [ends] = np.nonzero(answer == EOS)
        assert len(ends) <= 1
        assert not np.any(answer[ends[0] + 1 :] if len(ends) else [])


@every_strategy
def test_an_answer_depends_on_no_other_row(name):
    together = answers(name)
    # The same row four times, or among others in another place: it brings its key along.
    for rows in ([0] * 4, [1, 1, 0, 0], [3, 2, 1, 0]):
        found = answers(name, rows=np.asarray(rows))
        assert_same(found, jax.tree.map(lambda one, rows=rows: one[np.asarray(rows)], together))


@pytest.mark.parametrize("name", ["warm", "beams"])
def test_a_row_alone_gets_the_answer_it_gets_in_a_batch(name):
    together = answers(name)
    for row in range(4):
        assert_same(answers(name, rows=slice(row, row + 1)), row_of(together, row))


@every_strategy
def test_a_limit_is_a_length_of_one_row(name):
    limits = [3, 1, LENGTH, 3]
    mixed = answers(name, limits=limits)
    for row, limit in enumerate(limits):
        alike = answers(name, limits=[limit] * 4)
        assert_same(row_of(mixed, row), row_of(alike, row))
        assert not np.any(alike.tokens[:, :, limit:])
    if name in ("top p", "beams"):
        limited = answers(name, limits=[3] * 4)
        assert_same(answers(name, length=3), limited._replace(tokens=limited.tokens[:, :, :3]))


@every_strategy
def test_a_prefix_is_said_first_and_not_limited(name):
    # An end token that is given ends nothing; no token given is one to be found.
    prefix = np.asarray([[7, 9], [EOS, 3], [8, PAD], [PAD, PAD]])
    given = np.sum(prefix != PAD, axis=1)
    padded = np.pad(prefix, ((0, 0), (0, LENGTH - 2)))
    free = answers(name)
    for limit in (LENGTH, 1, 0):
        tokens, scores = map(np.asarray, answers(name, prefix=padded, limits=[limit] * 4))
        for row in range(4):
            # A beam search fills rows up with answers that are none.
            real = tokens[row][scores[row] > -1e6]
            assert len(real) and np.all(real[:, : given[row]] == prefix[row, : given[row]])
            assert not np.any(real[:, given[row] + limit :])
            if limit and row == 1:
                assert np.all(real[:, 2] != PAD)
        if limit == LENGTH:
            np.testing.assert_array_equal(tokens[3], free.tokens[3])


@pytest.mark.parametrize("name", ["greedy", "top k"])
def test_going_on_from_what_was_said_says_the_rest(name):
    whole = answers(name)
    prefix = np.where(np.arange(LENGTH) < 2, whole.tokens[:, -1], PAD)
    unended = np.all(prefix != EOS, axis=1)
    assert np.any(unended)
    found = answers(name, prefix=prefix)
    np.testing.assert_array_equal(found.tokens[unended], whole.tokens[unended])
    if name == "greedy":  # The prefix costs nothing.
        assert np.all(found.scores[unended] > whole.scores[unended])


@pytest.mark.parametrize(
    ("name", "alpha"), [("greedy", 0), ("top k", 0), ("one beam", 0.6), ("best of beams", 0)]
)
def test_scores_are_log_probabilities(name, alpha):
    tokens, scores = map(np.asarray, answers(name))
    model = small_model()
    encoded = small_models.compiled(model, "encode", BATCH.inputs)
    for answer in range(tokens.shape[1]):
        said = tokens[:, answer]
        real = said != PAD
        # What the decoder hides after the end does not count here.
        logits = small_models.compiled(model, "decode", encoded, jnp.where(real, said, 2))
        log_p = np.take_along_axis(
            np.asarray(jax.nn.log_softmax(unpadded(logits))), said[:, :, None], 2
        )
        length = np.sum(real, axis=1)
        ended = np.any(said == EOS, axis=1)
        penalty = np.where(ended, ((5 + length) / 6) ** alpha, 1)
        expected = np.sum(log_p[:, :, 0] * real, axis=1) / penalty
        real = scores[:, answer] > -1e6
        assert np.any(real)
        np.testing.assert_allclose(scores[real, answer], expected[real], atol=2e-5)


def test_more_answers_are_drawn_beside_the_first():
    def drawn(decodes):
        model = small_model()
        strategy = Sample(decodes=decodes)
        return generate(model, BATCH.inputs, strategy=strategy, length=2, keys=KEYS)

    quickly = jax.jit(drawn, static_argnums=0, compiler_options=QUICKLY)
    one, three = quickly(1), quickly(3)
    for row in range(4):
        [first] = np.asarray(one.tokens[row])
        assert first.tolist() in np.asarray(three.tokens[row]).tolist()
        assert len({tuple(answer) for answer in np.asarray(three.tokens[row]).tolist()}) > 1


@pytest.mark.parametrize("name", ["warm", "beams"])
def test_eight_devices_answer_as_one(name):
    graph, state = nnx.split(small_model())
    made = make_generate(graph, strategy=STRATEGIES[name], length=LENGTH, eos_id=EOS)
    run = jax.jit(lambda *arguments: made(*arguments), compiler_options=QUICKLY)
    inputs = jnp.concatenate([BATCH.inputs, jnp.flip(BATCH.inputs, axis=0)])
    keys = jax.random.split(jax.random.key(1), 8)
    limits = jnp.asarray([6, 6, 3, 6, 0, 6, 2, 6])
    expected = run(state, nnx.State({}), inputs, keys, None, limits)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    by_row = jax.NamedSharding(mesh, jax.P("data"))
    everywhere = jax.NamedSharding(mesh, jax.P())
    found = run(
        jax.device_put(state, everywhere),
        nnx.State({}),
        *jax.device_put((inputs, keys), by_row),
        None,
        jax.device_put(limits, by_row),
    )
    assert_same(found, expected)


class Counted(T5):
    """A model that notes every position it is asked to continue at."""

    def decode_next(self, token, position, *args):
        jax.debug.callback(lambda position: POSITIONS.append(int(position)), position)
        return super().decode_next(token, position, *args)


POSITIONS = []


@functools.partial(jax.jit, static_argnums=(0, 2, 3), compiler_options=QUICKLY)
def counting(graph, state, name, eos_id):
    strategy = STRATEGIES[name]
    inputs = BATCH.inputs[:1]
    return generate(
        nnx.merge(graph, state), inputs, strategy=strategy, length=LENGTH, eos_id=eos_id
    ).tokens


@pytest.mark.parametrize("name", ["greedy", "one beam"])
def test_the_loop_ends_when_every_row_has(name):
    model = nnx.split(small_model(kind=Counted))
    never = np.asarray(counting(*model, name, -1))[0, 0]
    steps = []
    for eos_id in (-1, int(never[2])):
        jax.effects_barrier()
        POSITIONS.clear()
        found = np.asarray(counting(*model, name, eos_id))
        jax.effects_barrier()
        assert sorted(POSITIONS) == list(range(len(POSITIONS)))
        if name == "greedy":
            assert len(POSITIONS) == np.sum(found != PAD)
        steps.append(len(POSITIONS))
    assert steps[0] == LENGTH > steps[1]


def test_a_compiled_generate_takes_another_prompt_without_compiling():
    model = small_model()
    graph, prompt, frozen = nnx.split(model, PromptParam, ...)
    compiled_once = make_generate(graph, length=LENGTH)
    found = compiled_once(prompt, frozen, BATCH.inputs).tokens[:, -1]
    assert found.shape == (4, LENGTH)
    np.testing.assert_array_equal(
        found,
        jax.jit(
            lambda prompt: greedy(nnx.merge(graph, prompt, frozen), BATCH.inputs, length=LENGTH),
            compiler_options=QUICKLY,
        )(prompt),
    )
    # Another prompt is another argument, not another program.
    other = jax.tree.map(lambda leaf: -leaf, prompt)
    assert np.any(compiled_once(other, frozen, BATCH.inputs).tokens[:, -1] != found)
    assert compiled_once._cache_size() == 1


def test_answers_of_a_row_share_the_keys_of_its_input():
    model = nnx.eval_shape(lambda: small_model("T5 1.1"))

    def sizes(strategy):
        run = functools.partial(generate, strategy=strategy, length=LENGTH, keys=KEYS)
        graph, state = nnx.split(model)
        traced = jax.make_jaxpr(lambda state: run(nnx.merge(graph, state), BATCH.inputs))(state)
        [loop] = [one for one in traced.eqns if one.primitive.name == "while"]
        # [L B N H S]: keys and values over five input tokens, in three layers.
        return [x.aval.shape for x in loop.invars if x.aval.shape[2:] == (2, 6, 5)]

    assert sizes(Greedy()) == sizes(BeamSearch(beams=4)) == [(3, 4, 2, 6, 5)] * 2


IMPOSSIBLE = {
    "length 0": ({"length": 0}, "length of answers is 0; it must be 1 or more"),
    "prefix": (
        {"prefix": np.ones((4, 7), int)},
        "7 tokens, but answers have only 6. Raise `length",
    ),
    "no keys": ({"strategy": Sample()}, r"temperature=1.0\) draws at random: give `keys`, one"),
    "one key": ({"keys": jax.random.key(0)}, r"`keys` has shape \(\), but there are 4 rows"),
    "rows": ({"limits": np.ones(3, int)}, r"`limits` has shape \(3,\), but there are 4 rows"),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_what_cannot_be_decoded_says_why(name):
    changes, message = IMPOSSIBLE[name]
    with pytest.raises(ConfigError, match=message):
        settings = {"length": LENGTH} | changes
        jax.eval_shape(lambda: generate(small_model(), BATCH.inputs, **settings))


def test_an_impossible_length_is_refused_before_anything_is_compiled():
    with pytest.raises(ConfigError, match="length of answers is -1"):
        make_generate(nnx.split(small_model())[0], length=-1)
