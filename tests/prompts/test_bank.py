import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from prompt_tuning.batch import PAD
from prompt_tuning.decoding import BeamSearch, Greedy, generate
from prompt_tuning.errors import ConfigError
from prompt_tuning.model import T5
from prompt_tuning.partitioning import placement
from prompt_tuning.prompts import (
    Choice,
    Prompt,
    PromptBank,
    PromptLengths,
    PromptParam,
    Suffix,
    after_bos,
    chosen,
    from_array,
    prefix,
)
from tests.reference_models import QUICKLY
from tests.small_models import BATCH, SOME_MODELS, T5_1_1, compiled, small_model

# A new one gets the laws with one line.
COMBINATIONS = {
    "prefix": prefix,
    "after_bos": after_bos,
    "Suffix": Suffix(),
    "Suffix(before_eos=False)": Suffix(before_eos=False),
}
every_combination = pytest.mark.parametrize(
    "combine", COMBINATIONS.values(), ids=COMBINATIONS.keys()
)
every_dtype = pytest.mark.parametrize(
    "dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)]
)

# Three prompts of the small models, of which two are as long as each other.
PROMPTS = [
    np.random.default_rng(k).normal(size=(length, 16)).astype(np.float32)
    for k, length in enumerate((3, 1, 3))
]
CHOICE = np.asarray([1, 0, 2, 1])  # Of the rows of BATCH.
TOKENS = jnp.asarray([[5, 6, 1, 0], [5, 6, 1, 0], [7, 1, 0, 0]])


def alone(k, combine=prefix):
    """Returns the module of one prompt."""
    init = from_array(PROMPTS[k])
    length = len(PROMPTS[k])
    return Prompt(length=length, init=init, combine=combine, embed_dim=16, rngs=nnx.Rngs(0))


def bank_of(prompts, choice, **settings):
    bank = PromptBank(prompts, **settings)
    bank.choice.set_value(jnp.asarray(choice, jnp.int32))
    return bank


@functools.cache
def split_base(name, dtype):
    return nnx.split(small_model(name, dtype=dtype))


def with_prompt(prompt, name="T5 1.1", dtype="float32"):
    model = nnx.merge(*split_base(name, dtype))
    model.encoder.prompt = prompt
    return model


@functools.partial(jax.jit, static_argnums=0, compiler_options=QUICKLY)
def _put(graph, state, embedded, tokens):
    return nnx.merge(graph, state)(embedded, tokens)


def put(prompt, embedded, tokens):
    """Calls a prompt or a bank, compiled."""
    return _put(*nnx.split(prompt), embedded, tokens)


def raises(message):
    return pytest.raises(ConfigError, match=f"^{re.escape(message)}$")


# Where everything goes.


def picture(combine, lengths, tokens):
    """One row for each prompt: token ids, `p` for a prompt vector, brackets for what is hidden."""
    tokens = jnp.asarray([tokens] * len(lengths))
    prompts = [np.full((length, 1), -1.0) for length in lengths]
    bank = bank_of(prompts, range(len(lengths)), combine=combine)
    rows, mask = put(bank, tokens[:, :, None].astype(jnp.float32), tokens)
    names = {-1: "p", 0: "."}
    return [
        " ".join(
            name if seen else f"[{name}]"
            for name, seen in zip([names.get(x, str(x)) for x in row], hidden, strict=True)
        )
        for row, hidden in zip(rows[:, :, 0].astype(int).tolist(), mask.tolist(), strict=True)
    ]


@pytest.mark.parametrize(
    ("combine", "expected"),
    [
        (prefix, ["p p 5 6 1 [.]", "p 5 6 1 [.] [.]"]),
        (after_bos, ["5 p p 6 1 [.]", "5 p 6 1 [.] [.]"]),
        (Suffix(), ["5 6 p p 1 [.]", "5 6 p 1 [.] [.]"]),
        (Suffix(before_eos=False), ["5 6 1 p p [.]", "5 6 1 p [.] [.]"]),
    ],
    ids=COMBINATIONS.keys(),
)
def test_a_text_moves_up_to_a_shorter_prompt(combine, expected):
    assert picture(combine, [2, 1], [5, 6, 1, 0]) == expected


@every_combination
@every_dtype
def test_every_row_is_what_it_would_be_alone_with_hidden_positions_behind(combine, dtype):
    text = jnp.asarray(np.random.default_rng(9).normal(size=(3, 4, 16)), dtype)
    rows, mask = put(bank_of(PROMPTS, [1, 2, 0], combine=combine), text, TOKENS)
    assert (rows.shape, rows.dtype, mask.shape) == ((3, 7, 16), dtype, (3, 7))
    for i, k in enumerate([1, 2, 0]):
        expected, seen = put(alone(k, combine), text[i][None], TOKENS[i][None])
        length = expected.shape[1]
        np.testing.assert_array_equal(rows[i, :length], expected[0])
        np.testing.assert_array_equal(mask[i, :length], seen[0])
        assert not np.any(mask[i, length:]) and not np.any(rows[i, length:])


# A model with a bank. Hidden positions are exact zeros in every sum, but a longer sum may be taken
# in another order: that is 3e-6 on values of size 5. Bfloat16 has 16 bits less.
TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}


@functools.cache
def alone_in(name, method, argument, k, *, combine=prefix, dtype="float32"):
    model = with_prompt(alone(k, combine), name, dtype)
    return compiled(model, method, getattr(BATCH, argument) if argument else BATCH)


@pytest.mark.parametrize("name", SOME_MODELS)
def test_rows_of_different_prompts_are_each_alone_in_every_model(name):
    found = np.asarray(compiled(with_prompt(bank_of(PROMPTS, CHOICE), name), "__call__", BATCH))
    for i, k in enumerate(CHOICE):
        # The original's decoder sees hidden positions too where its target is padding.
        said = np.asarray(BATCH.targets[i] != PAD)
        each = [np.asarray(alone_in(name, "__call__", None, other))[i, said] for other in range(3)]
        np.testing.assert_allclose(found[i, said], each[k], atol=1e-5, rtol=0)
        assert np.max(np.abs(each[k - 1] - each[k])) > 0.1


@every_combination
@every_dtype
def test_rows_of_different_prompts_are_encoded_alone_in_every_place(combine, dtype):
    model = with_prompt(bank_of(PROMPTS, CHOICE, combine=combine), dtype=dtype)
    hidden, real = compiled(model, "encode", BATCH.inputs)
    for i, k in enumerate(CHOICE):
        settings = {"combine": combine, "dtype": dtype}
        expected, seen = alone_in("T5 1.1", "encode", "inputs", int(k), **settings)
        length = expected.shape[1]
        np.testing.assert_array_equal(real[i, :length], seen[i])
        np.testing.assert_allclose(
            hidden[i, :length].astype(jnp.float32),
            expected[i].astype(jnp.float32),
            atol=TOLERANCE[dtype],
            rtol=0,
        )
        assert not np.any(real[i, length:]) and not np.any(hidden[i, length:])


@functools.partial(jax.jit, static_argnums=(0, 3), compiler_options=QUICKLY)
def _generate(graph, state, inputs, strategy):
    return generate(nnx.merge(graph, state), inputs, strategy=strategy, length=6, eos_id=30)


@pytest.mark.parametrize("strategy", [Greedy(), BeamSearch(beams=2)], ids=["greedy", "beams"])
def test_answers_to_rows_of_different_prompts_are_each_alone(strategy):
    found = _generate(*nnx.split(with_prompt(bank_of(PROMPTS, CHOICE))), BATCH.inputs, strategy)
    each = [_generate(*nnx.split(with_prompt(alone(k))), BATCH.inputs, strategy) for k in range(3)]
    assert len({np.asarray(answers.tokens).tobytes() for answers in each}) == 3
    for i, k in enumerate(CHOICE):
        np.testing.assert_array_equal(found.tokens[i], each[k].tokens[i])
        np.testing.assert_allclose(found.scores[i], each[k].scores[i], atol=1e-5)


def test_a_new_bank_has_its_first_prompt_in_every_row():
    found = compiled(with_prompt(PromptBank(PROMPTS)), "__call__", BATCH)
    expected = alone_in("T5 1.1", "__call__", None, 0)  # No other is longer.
    np.testing.assert_allclose(found, expected, atol=TOLERANCE["float32"], rtol=0)


def test_rows_of_padding_and_other_rows_change_nothing():
    model = with_prompt(bank_of(PROMPTS, [*CHOICE, 0, 2]))
    inputs = jnp.pad(BATCH.inputs, ((0, 2), (0, 0)), constant_values=PAD)
    found = compiled(model, "encode", inputs).hidden
    assert np.all(np.isfinite(found))
    model = with_prompt(bank_of(PROMPTS, CHOICE))
    expected = compiled(model, "encode", BATCH.inputs).hidden
    np.testing.assert_allclose(found[:4], expected, atol=1e-5)


# Prompts and choices as arguments.


def split_bank():
    return nnx.split(with_prompt(bank_of(PROMPTS, CHOICE)), PromptParam, Choice, ...)


def test_another_choice_and_other_prompts_compile_nothing():
    graph, prompts, choice, frozen = split_bank()

    @jax.jit
    def encode(prompts, choice, frozen):
        return nnx.merge(graph, prompts, choice, frozen).encode(BATCH.inputs).hidden

    found = encode(prompts, choice, frozen)
    again = encode(prompts, chosen(choice, CHOICE[::-1].copy()), frozen)
    back = encode(prompts, chosen(choice, CHOICE), frozen)
    assert np.all(np.any(found != again, axis=(1, 2)) == (CHOICE[::-1] != CHOICE))
    np.testing.assert_array_equal(found, back)
    # Of other lengths as well: what was prompt k is now k + 2 of 3.
    model = with_prompt(PromptBank(PROMPTS[1:] + PROMPTS[:1]))
    _, others, _, base = nnx.split(model, PromptParam, Choice, ...)
    turned = encode(others, chosen(choice, (CHOICE + 2) % 3), base)
    np.testing.assert_array_equal(turned, found)
    assert encode._cache_size() == 1


def test_only_the_vectors_are_trainable():
    _, prompts, lengths, choice, rest = nnx.split(
        PromptBank(PROMPTS), PromptParam, PromptLengths, Choice, ...
    )
    [vectors], [counts], [number] = map(jax.tree.leaves, (prompts, lengths, choice))
    assert (vectors.shape, vectors.dtype, int(number)) == ((3, 3, 16), jnp.float32, 0)
    np.testing.assert_array_equal(counts, [3, 1, 3])
    np.testing.assert_array_equal(vectors[1], np.pad(PROMPTS[1], ((0, 2), (0, 0))))
    assert not jax.tree.leaves(rest)


@every_combination
def test_a_prompt_gets_the_gradient_of_its_rows_summed_in_float32(combine):
    # 257 needs 9 bits, bfloat16 has 8: a sum of 257 ones in bfloat16 is 256.
    graph, prompts, rest = nnx.split(PromptBank(PROMPTS, combine=combine), PromptParam, ...)
    rest = chosen(rest, np.asarray([1] * 257 + [2]))
    tokens = jnp.tile(TOKENS[:1], (258, 1))

    def total(prompts):
        bank = nnx.merge(graph, prompts, rest)
        rows, mask = bank(jnp.ones((258, 4, 16), "bfloat16"), tokens)
        return jnp.sum(jnp.where(mask[:, :, None], rows, 0).astype(jnp.float32))

    [gradient] = jax.tree.leaves(jax.jit(jax.grad(total))(prompts))
    assert gradient.dtype == jnp.float32
    expected = np.asarray([[0, 0, 0], [257, 0, 0], [1, 1, 1]], np.float32)
    np.testing.assert_array_equal(gradient[:, :, 0], expected)


def test_the_constructor_of_a_model_may_make_a_bank():
    bank = functools.partial(PromptBank, PROMPTS, combine=Suffix())
    model = nnx.eval_shape(lambda: T5(T5_1_1, prompt=bank, rngs=nnx.Rngs(0)))
    assert model.encoder.prompt.prompts.shape == (3, 3, 16)
    assert (model.encoder.prompt.size, model.encoder.prompt.combine) == (3, Suffix())


def test_eight_devices_are_as_one():
    graph, prompts, choice, frozen = split_bank()
    here = placement()

    def encode(prompts, choice, frozen, inputs):
        return nnx.merge(graph, prompts, choice, frozen).encode(inputs).hidden

    placed = here.replicated((prompts, frozen))
    rows = jax.device_put(np.pad(CHOICE, (0, 4)), here.by_rows)
    inputs = here.batch(BATCH).inputs
    found = jax.jit(encode)(placed[0], chosen(choice, rows), placed[1], inputs)
    assert len(found.sharding.device_set) == 8
    model = with_prompt(bank_of(PROMPTS, CHOICE))
    expected = compiled(model, "encode", BATCH.inputs).hidden
    np.testing.assert_allclose(found[:4], expected, atol=1e-5)


# What is refused.


@pytest.mark.parametrize("wrong", [3, -1])
def test_the_number_of_no_prompt_gives_no_numbers(wrong):
    bank = PromptBank(PROMPTS)
    bank.choice.set_value(jnp.asarray([0, wrong, 1]))
    rows, _ = bank(jnp.ones((3, 4, 16)), TOKENS)
    np.testing.assert_array_equal(np.any(np.isnan(rows), axis=(1, 2)), [False, True, False])


def test_a_choice_for_another_batch_is_refused():
    message = (
        "The choice of a prompt has shape (2,), but the batch has 3 rows: expected (3,), a prompt "
        "for each, or one number for all."
    )
    bank = PromptBank(PROMPTS)
    bank.choice.set_value(jnp.asarray([0, 1]))
    with raises(message):
        bank(jnp.ones((3, 4, 16)), TOKENS)


def test_a_choice_without_a_bank_is_refused():
    message = (
        "There is no choice to make in this state: the model has no `PromptBank`, or `Choice` went "
        "to another part of the split. Split with `nnx.split(model, PromptParam, Choice, ...)`."
    )
    _, prompts, _ = nnx.split(PromptBank(PROMPTS), PromptParam, ...)
    with raises(message):
        chosen(prompts, CHOICE)


def test_a_bank_without_prompts_is_refused():
    with raises("PromptBank got no prompts, expected at least one array [P, D]."):
        PromptBank([])


@pytest.mark.parametrize("shape", [(3, 8), (0, 16), (16,), (1, 3, 16)])
def test_a_prompt_of_another_model_is_refused(shape):
    message = (
        f"Prompt 1 of the bank has shape {shape}, expected [P, 16] with a P of 1 or more. The "
        "prompts of a bank belong to one model."
    )
    with raises(message):
        PromptBank([PROMPTS[0], np.zeros(shape, np.float32)])


def test_prompts_of_another_width_than_the_model_are_refused():
    with pytest.raises(ConfigError, match=r"^Prompt 0 of the bank has shape \(3, 16\), expected"):
        PromptBank(PROMPTS, embed_dim=32)
