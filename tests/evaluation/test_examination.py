import hypothesis
import numpy as np
import pytest
from flax import nnx
from hypothesis import strategies as st

from prompt_tuning.batch import PAD
from prompt_tuning.data.examples import Example
from prompt_tuning.evaluation.examination import Examination

NOTHING = nnx.State({})


def examples_of(lengths):
    """Examples that say in every token which one they are."""
    return [
        Example(np.full(length, number + 1, np.int32), np.full(2, number + 1, np.int32))
        for number, length in enumerate(lengths)
    ]


def longest(examples):
    return max(len(one.inputs) for one in examples), 2


def first_tokens(trainable, frozen, batch, ids):
    """What is found of an example: its number, read from the batch and as it is given."""
    assert np.all(np.asarray(batch.inputs)[len(ids) :] == PAD)
    return [(int(row[0]) - 1, number) for row, number in zip(batch.inputs, ids, strict=False)]


@hypothesis.given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=17),
    batch_size=st.integers(1, 6),
    data=st.data(),
)
@hypothesis.settings(max_examples=60)
def test_what_is_found_comes_in_the_order_that_is_asked_for(lengths, batch_size, data):
    examples = examples_of(lengths)
    examine = Examination(examples=examples, longest=longest(examples), batch_size=batch_size)
    every = examine(first_tokens, NOTHING, NOTHING)
    assert every == [(number, number) for number in range(len(examples))]
    ids = data.draw(st.lists(st.integers(0, len(examples) - 1), max_size=9))
    assert examine(first_tokens, NOTHING, NOTHING, ids) == [(number, number) for number in ids]


def batches_of(lengths, batch_size, **settings):
    examples = examples_of(lengths)
    seen = []

    def look(trainable, frozen, batch, ids):
        seen.append((batch, list(ids)))
        return ids

    examine = Examination(
        examples=examples, longest=longest(examples), batch_size=batch_size, **settings
    )
    examine(look, NOTHING, NOTHING)
    return seen


def test_the_longest_examples_come_first_and_with_others_of_their_length():
    seen = batches_of([3, 30, 9, 2, 33, 8, 20], 3)
    assert [ids for _, ids in seen] == [[4, 1, 6], [2, 5, 0], [3]]
    assert [batch.inputs.shape for batch, _ in seen] == [(3, 33), (3, 16), (3, 8)]


def test_examples_of_the_same_length_keep_their_order():
    assert [ids for _, ids in batches_of([5] * 5, 2)] == [[0, 1], [2, 3], [4]]


def test_every_batch_is_put_where_the_model_is():
    placed = []

    def place(batch):
        placed.append(batch)
        return batch

    seen = batches_of([3, 4, 5, 6, 7], 2, place=place)
    assert len(placed) == 3
    assert all(one is batch for one, (batch, _) in zip(placed, seen, strict=True))


def test_the_states_are_handed_on():
    trainable, frozen = nnx.State({"a": 1}), nnx.State({"b": 2})
    examine = Examination(examples=examples_of([4]), longest=(4, 2), batch_size=2)
    [found] = examine(lambda *given: [given[:2]], trainable, frozen)
    assert found[0] is trainable and found[1] is frozen


def test_of_no_examples_nothing_is_found():
    examine = Examination(examples=examples_of([4]), longest=(4, 2), batch_size=2)
    assert examine(first_tokens, NOTHING, NOTHING, []) == []


@pytest.mark.parametrize("found", [[], [1, 2, 3]], ids=["too few", "too many"])
def test_an_answer_that_is_missing_is_never_passed_over(found):
    examine = Examination(examples=examples_of([4, 5]), longest=(5, 2), batch_size=2)
    with pytest.raises(ValueError, match="zip"):
        examine(lambda *_: found, NOTHING, NOTHING)
