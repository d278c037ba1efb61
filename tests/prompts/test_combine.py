import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning.prompts import Suffix, after_bos, prefix
from prompt_tuning.prompts.combine import described, from_description

# Every combination, with its name in the original. A new one gets the laws with one line.
COMBINATIONS = {
    "prefix": (prefix, "prefix_prompt"),
    "after_bos": (after_bos, "prefix_prompt_after_bos"),
    "Suffix": (Suffix(), "suffix_prompt/before_eos=True"),
    "Suffix(before_eos=False)": (Suffix(before_eos=False), "suffix_prompt/before_eos=False"),
}
# Compiled once per shape: a law costs one program instead of one per operation.
every_combination = pytest.mark.parametrize(
    "combine", [jax.jit(combine) for combine, _ in COMBINATIONS.values()], ids=COMBINATIONS.keys()
)
every_length = pytest.mark.parametrize("length", [0, 1, 3])

TOKENS = jnp.asarray(
    [
        [5, 6, 7, 8, 9, 1],  # full
        [5, 6, 1, 0, 0, 0],
        [1, 0, 0, 0, 0, 0],  # nothing but the end
        [5, 6, 7, 8, 9, 4],  # truncated
        [5, 1, 7, 1, 0, 0],  # an end within
    ]
)


def text_and_prompt(length, dtype=jnp.float32):
    """Text rows 1, 2, 3 .. and prompt rows -1, -2 .., different in every example and feature."""
    embedded = np.arange(1, TOKENS.size * 2 + 1).reshape(*TOKENS.shape, 2)
    prompt = -np.arange(1, len(TOKENS) * length * 2 + 1).reshape(len(TOKENS), length, 2)
    return jnp.asarray(prompt, dtype), jnp.asarray(embedded, dtype)


def picture(combine, tokens, length=2):
    """Where everything goes: token ids, `p` for a prompt vector, brackets for what is hidden."""
    tokens = jnp.asarray([tokens])
    prompt = jnp.full((1, length, 1), -1.0)
    [rows], [mask] = jax.jit(combine)(prompt, tokens[:, :, None].astype(jnp.float32), tokens)
    names = ["p" if row == -1 else str(int(row)) for row in rows[:, 0].tolist()]
    return " ".join(
        name if seen else f"[{name}]" for name, seen in zip(names, mask.tolist(), strict=True)
    )


@pytest.mark.parametrize("name", COMBINATIONS)
def test_combination_equals_the_original(golden, name):
    combine, original = COMBINATIONS[name]
    recorded = {key: jnp.asarray(value) for key, value in golden("misc/combine.npz").items()}
    embedded, _ = combine(recorded["prompt"], recorded["x_embed"], recorded["tokens"])
    np.testing.assert_array_equal(embedded, recorded[original])


@every_combination
@pytest.mark.parametrize("length", [1, 2, 5])
def test_pairs_of_visible_positions_are_the_original_encoder_mask(golden, combine, length):
    recorded = golden("misc/masks.npz")
    tokens = jnp.asarray(recorded["encoder_input_tokens"])
    batch = tokens.shape[0]
    _, mask = combine(jnp.zeros((batch, length, 2)), jnp.zeros((*tokens.shape, 2)), tokens)
    pairs = mask[:, None, :, None] & mask[:, None, None, :]
    np.testing.assert_array_equal(pairs, recorded[f"encoder_mask/P{length}"])


@every_combination
@every_length
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_result_is_longer_by_the_prompt_and_keeps_the_dtype(combine, length, dtype):
    prompt, embedded = text_and_prompt(length, dtype)
    rows, mask = combine(prompt, embedded, TOKENS)
    assert rows.shape == (len(TOKENS), length + 6, 2)
    assert mask.shape == (len(TOKENS), length + 6)
    assert (rows.dtype, mask.dtype) == (dtype, bool)


@every_combination
@every_length
def test_text_and_prompt_are_all_there_each_in_its_order(combine, length):
    prompt, embedded = text_and_prompt(length)
    rows, _ = combine(prompt, embedded, TOKENS)
    for row, text, vectors in zip(*map(np.asarray, (rows, embedded, prompt)), strict=True):
        np.testing.assert_array_equal(row[row[:, 0] > 0], text)
        np.testing.assert_array_equal(row[row[:, 0] < 0], vectors)


@every_combination
@every_length
def test_prompt_and_tokens_are_visible_and_padding_is_not(combine, length):
    prompt, embedded = text_and_prompt(length)
    rows, mask = combine(prompt, embedded, TOKENS)
    for row, seen, tokens in zip(*map(np.asarray, (rows, mask, TOKENS)), strict=True):
        assert np.all(seen[row[:, 0] < 0])
        np.testing.assert_array_equal(seen[row[:, 0] > 0], tokens != 0)


@every_combination
def test_a_prompt_of_no_vectors_changes_nothing(combine):
    prompt, embedded = text_and_prompt(0)
    rows, mask = combine(prompt, embedded, TOKENS)
    np.testing.assert_array_equal(rows, embedded)
    np.testing.assert_array_equal(mask, TOKENS != 0)


@every_combination
@every_length
def test_gradient_reaches_every_vector_once(combine, length):
    prompt, embedded = text_and_prompt(length)
    shape = (len(TOKENS), length + 6, 2)
    upstream = jnp.asarray(np.arange(np.prod(shape), dtype=np.float32).reshape(shape))
    rows, pullback = jax.vjp(lambda p, e: combine(p, e, TOKENS)[0], prompt, embedded)
    of_prompt, of_text = pullback(upstream)
    # Whatever moved a row forwards must move its gradient back.
    again, _ = combine(of_prompt, of_text, TOKENS)
    np.testing.assert_array_equal(again, upstream)
    assert rows.shape == upstream.shape


@pytest.mark.parametrize("name", COMBINATIONS)
def test_tracing_changes_nothing(name):
    combine, _ = COMBINATIONS[name]
    prompt, embedded = text_and_prompt(3)
    for ours, traced in zip(
        combine(prompt, embedded, TOKENS),
        jax.jit(combine)(prompt, embedded, TOKENS),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, traced)


@every_combination
def test_rows_of_padding_still_see_the_prompt(combine):
    prompt = jnp.ones((1, 2, 1))
    _, mask = combine(prompt, jnp.zeros((1, 3, 1)), jnp.zeros((1, 3), jnp.int32))
    assert jnp.sum(mask) in (2, 3)  # after_bos takes the first 0 for a start token


@pytest.mark.parametrize(
    ("combine", "tokens", "expected"),
    [
        (prefix, [5, 6, 1, 0], "p p 5 6 1 [0]"),
        (after_bos, [5, 6, 1, 0], "5 p p 6 1 [0]"),
        (after_bos, [0, 6, 1, 0], "0 p p 6 1 [0]"),
        (Suffix(), [5, 6, 1, 0], "5 6 p p 1 [0]"),
        (Suffix(), [5, 6, 7, 1], "5 6 7 p p 1"),
        (Suffix(), [1, 0, 0, 0], "p p 1 [0] [0] [0]"),
        # Only a last token that is EOS stays last: in a truncated text there is none.
        (Suffix(), [5, 6, 7, 8], "5 6 7 8 p p"),
        (Suffix(), [5, 1, 7, 0], "5 1 7 p p [0]"),
        (Suffix(eos_id=7), [5, 1, 7, 0], "5 1 p p 7 [0]"),
        (Suffix(before_eos=False), [5, 6, 1, 0], "5 6 1 p p [0]"),
        (Suffix(before_eos=False), [5, 6, 7, 8], "5 6 7 8 p p"),
    ],
)
def test_prompt_goes_where_the_name_says(combine, tokens, expected):
    assert picture(combine, tokens) == expected


@pytest.mark.parametrize("before_eos", [True, False])
def test_suffix_of_a_text_with_a_start_token_equals_the_original(golden, before_eos):
    recorded = {key: jnp.asarray(value) for key, value in golden("misc/combine.npz").items()}
    embedded, _ = Suffix(before_eos=before_eos)(
        recorded["prompt"], recorded["x_embed"], recorded["tokens_decoder"]
    )
    expected = recorded[f"suffix_prompt_decoder_only/before_eos={before_eos}"]
    np.testing.assert_array_equal(embedded[:2], expected[:2])
    # The third text lost its EOS to the shift: the original then puts the prompt before its last
    # token, we put it after.
    after_the_last = recorded["suffix_prompt_decoder_only/before_eos=False"]
    np.testing.assert_array_equal(embedded[2], after_the_last[2])


@pytest.mark.parametrize("name", COMBINATIONS)
def test_a_place_is_what_its_description_says(name):
    combine, _ = COMBINATIONS[name]
    description = json.loads(json.dumps(described(combine)))
    assert from_description(description) == combine


@pytest.mark.parametrize(
    "description",
    [{}, {"name": "middle"}, {"name": "Suffix", "eos": 3}, {"name": "prefix", "x": 1}],
)
def test_a_description_of_no_place_of_ours_is_none(description):
    assert from_description(description) is None
