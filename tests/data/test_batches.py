import dataclasses
import itertools
import re
import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prompt_tuning.data.batches import (
    CorpusBatches,
    ExampleBatches,
    MixtureBatches,
    OnePassBatches,
    assemble,
)
from prompt_tuning.data.buckets import Buckets, buckets_up_to, fixed
from prompt_tuning.data.examples import Example
from prompt_tuning.data.objectives import PrefixLM, SpanCorruption
from prompt_tuning.data.prefetch import prefetch
from prompt_tuning.errors import ConfigError, DataError
from prompt_tuning.vocabulary import ByteVocabulary
from tests.data.splits import split_of

BUCKETS = Buckets((4, 8))


def ragged(inputs, targets):
    return Example(np.array(inputs, np.int32), np.array(targets, np.int32))


# Ten examples that say their number, with inputs of 1 to 5 tokens.
EXAMPLES = [ragged([number + 100] * (1 + number % 5), [number + 100, 1]) for number in range(10)]


SPLIT = split_of("ten", EXAMPLES)
# Another task of a mixture: four examples that cannot be taken for one of the ten.
OTHER = split_of("four", [ragged([number + 150] * 8, [150, 1]) for number in range(4)])


def example_batches(split=SPLIT, **values):
    values = {"batch_size": 4, "seed": 0, "inputs": BUCKETS, "targets": fixed(4)} | values
    return ExampleBatches(split=split, **values)


def mixture_batches(rates=(3.0, 1.0), **values):
    values = {"batch_size": 4, "seed": 0} | values
    return MixtureBatches(parts=list(zip((SPLIT, OTHER), rates, strict=True)), **values)


def corpus_batches(objective=None, length=16, **values):
    values = {"tokens": 3 + np.arange(500) % 150, "batch_size": 4, "seed": 0} | values
    return CorpusBatches(
        vocabulary=ByteVocabulary(),
        objective=objective or SpanCorruption(),
        input_length=length,
        **values,
    )


# Every endless source of batches, as a function of its batch size and seed.
SOURCES = {
    "examples": example_batches,
    "mixture": mixture_batches,
    "span_corruption": corpus_batches,
    "prefix_lm": lambda **values: corpus_batches(PrefixLM(), inputs=BUCKETS_16, **values),
}
BUCKETS_16 = Buckets((4, 8, 16))
every_source = pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)


def rows(batches):
    """Returns the examples of some batches without their padding."""
    return [
        (inputs[inputs != 0].tolist(), targets[targets != 0].tolist())
        for batch in batches
        for inputs, targets in zip(batch.inputs, batch.targets, strict=True)
    ]


def take(source, start, count):
    return list(itertools.islice(source.batches(start), count))


def test_a_batch_is_padded_on_the_right_and_weighs_what_is_not_padding():
    batch = assemble(
        [ragged([5, 6, 1], [7, 1]), ragged([5, 1], [8, 9, 1])], inputs=BUCKETS, targets=fixed(3)
    )
    assert batch.inputs.tolist() == [[5, 6, 1, 0], [5, 1, 0, 0]]
    assert batch.targets.tolist() == [[7, 1, 0], [8, 9, 1]]
    assert batch.weights.tolist() == [[1, 1, 0], [1, 1, 1]]
    assert [array.dtype for array in (batch.inputs, batch.targets, batch.weights)] == [
        np.int32,
        np.int32,
        np.float32,
    ]


@given(lengths=st.lists(st.integers(1, 8), min_size=1, max_size=6))
def test_a_batch_is_cut_to_the_bucket_of_its_longest_example(lengths):
    examples = [ragged([3] * length, [3]) for length in lengths]
    batch = assemble(examples, inputs=BUCKETS, targets=fixed(1))
    assert batch.inputs.shape == (len(lengths), 4 if max(lengths) <= 4 else 8)


def test_an_example_longer_than_every_bucket_is_refused():
    message = (
        "An example has 9 tokens, but the longest bucket holds 8. Trim the examples with "
        "TASK_FEATURE_LENGTHS or add a longer bucket."
    )
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        assemble([ragged([3] * 9, [1])], inputs=BUCKETS, targets=fixed(1))


@given(longest=st.integers(1, 5000))
def test_buckets_are_few_and_end_at_the_longest(longest):
    buckets = buckets_up_to(longest)
    assert buckets.lengths[-1] == longest
    assert len(buckets.lengths) <= 20
    for shorter, longer in itertools.pairwise(buckets.lengths):
        assert shorter <= 16 or longer <= 1.5 * shorter


def test_bucket_lengths_are_the_named_ones():
    assert buckets_up_to(128).lengths == (8, 16, 24, 32, 48, 64, 96, 128)
    assert fixed(512).lengths == (512,)


@pytest.mark.parametrize("lengths", [(), (8, 4), (4, 4), (0, 4)])
def test_buckets_must_ascend(lengths):
    with pytest.raises(
        ConfigError, match=re.escape(f"Bucket lengths are {lengths}, but they must")
    ):
        Buckets(lengths)


@every_source
@pytest.mark.parametrize("start", [1, 7, 40])
def test_a_source_continues_at_any_step(source, start):
    whole = take(source(batch_size=4, seed=3), 0, start + 3)
    resumed = take(source(batch_size=4, seed=3), start, 3)
    for one, other in zip(whole[start:], resumed, strict=True):
        assert one.inputs.tolist() == other.inputs.tolist()
        assert one.targets.tolist() == other.targets.tolist()
        assert one.weights.tolist() == other.weights.tolist()


@every_source
def test_the_examples_do_not_depend_on_the_batch_size(source):
    small = rows(take(source(batch_size=2, seed=3), 0, 12))
    large = rows(take(source(batch_size=8, seed=3), 0, 3))
    assert small == large


@every_source
def test_the_seed_decides_the_examples(source):
    first, again, other = (rows(take(source(batch_size=4, seed=s), 0, 5)) for s in (1, 1, 2))
    assert first == again != other


@every_source
def test_batches_are_full_and_of_few_shapes(source):
    shapes = {(b.inputs.shape, b.targets.shape) for b in take(source(batch_size=4, seed=0), 0, 40)}
    assert {inputs[0] for inputs, _ in shapes} == {4}
    assert len(shapes) <= 3


def test_an_epoch_has_every_example_once():
    epochs = rows(take(example_batches(), 0, 5))
    for epoch in (epochs[:10], epochs[10:]):
        assert sorted(inputs[0] for inputs, _ in epoch) == list(range(100, 110))


def test_few_examples_fill_a_large_batch():
    (batch,) = take(example_batches(split_of("three", EXAMPLES[:3]), batch_size=6), 5, 1)
    assert sorted(batch.inputs[:, 0].tolist()) == [100, 100, 101, 101, 102, 102]


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_of_nothing_is_refused(batch_size):
    with pytest.raises(ConfigError, match=f"^BATCH_SIZE is {batch_size}, expected 1 or more"):
        example_batches(batch_size=batch_size)


def test_buckets_that_do_not_hold_the_longest_example_are_refused_at_once():
    with pytest.raises(DataError, match=r"^An example has 5 tokens, but the longest bucket holds"):
        example_batches(inputs=Buckets((2, 4)))


def test_the_buckets_of_a_mixture_hold_the_longest_of_all_tasks():
    shapes = {batch.inputs.shape for batch in take(mixture_batches(), 0, 20)}
    assert shapes == {(4, 8)}
    assert mixture_batches(rates=(1.0, 1e-9)).buckets["inputs"].lengths == (8,)


def test_examples_are_read_when_they_are_asked_for():
    class Reader(list):
        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    read = []
    split = dataclasses.replace(SPLIT, examples=Reader(EXAMPLES * 100))
    source = example_batches(split)
    assert source.fingerprint and source.summary() and source.example_ids(3)
    take(source, 7, 1)
    # Four are trained on; the rest is the type check of the tests, which looks at some.
    assert 4 <= len(read) < 20


@every_source
def test_every_row_of_a_step_has_a_name(source):
    endless = source(batch_size=4, seed=3)
    for step in (0, 7):
        (batch,) = take(endless, step, 1)
        assert len(endless.example_ids(step)) == batch.size
    assert endless.example_ids(1) == source(batch_size=2, seed=3).example_ids(2) + source(
        batch_size=2, seed=3
    ).example_ids(3)


def test_a_name_says_which_example_of_which_task_a_row_is():
    source = mixture_batches()
    for step, batch in enumerate(take(source, 0, 10)):
        for name, inputs in zip(source.example_ids(step), batch.inputs, strict=True):
            task, index = name.split(" ")
            first = {"ten/train": 100, "four/train": 150}[task]
            assert inputs[0] == first + int(index)


def test_the_name_of_a_window_says_where_its_text_begins():
    source = corpus_batches(PrefixLM(), tokens=np.arange(100, 700), batch_size=3)
    for step in (0, 30):
        (batch,) = take(source, step, 1)
        starts = [int(name.removeprefix("corpus token ")) for name in source.example_ids(step)]
        assert batch.inputs[:, 0].tolist() == [start + 100 for start in starts]


@every_source
def test_a_fingerprint_says_whether_the_same_batches_come(source):
    prints = [source(**settings).fingerprint for settings in SETTINGS]
    assert len(set(prints)) == len(prints)
    assert [source(**settings).fingerprint for settings in SETTINGS] == prints
    assert source(**SETTINGS[0], targets=fixed(64)).fingerprint == prints[0]


SETTINGS = [
    {"batch_size": 4, "seed": 3},
    {"batch_size": 8, "seed": 3},
    {"batch_size": 4, "seed": 4},
]


def test_other_examples_or_rates_have_another_fingerprint():
    prints = [
        example_batches().fingerprint,
        example_batches(dataclasses.replace(SPLIT, fingerprint="other")).fingerprint,
        mixture_batches().fingerprint,
        mixture_batches(rates=(3.0, 1.1)).fingerprint,
        corpus_batches().fingerprint,
        corpus_batches(tokens=3 + np.arange(500) % 151).fingerprint,
        corpus_batches(PrefixLM()).fingerprint,
        corpus_batches(length=17).fingerprint,
    ]
    assert len(set(prints)) == len(prints)


def test_a_summary_says_what_is_trained_on():
    assert mixture_batches(inputs=Buckets((4, 8)), targets=fixed(4)).summary().split("\n") == [
        "Batches of 4 examples from",
        "  ten/train: 10 examples, 75.00% of every batch",
        "  four/train: 4 examples, 25.00% of every batch",
        "  inputs   up to      4      8",
        "           share  60.0%  40.0%",
        "           4.2 tokens on average; nothing truncated",
        "           padding 43% of a batch, 47% at the fixed length 8",
        "  targets  up to       4",
        "           share  100.0%",
        "           2.0 tokens on average; nothing truncated",
        "           padding 50% of a batch, 50% at the fixed length 4",
    ]
    assert corpus_batches().summary() == (
        "Batches of 4 windows of 17 tokens from a corpus of 500 tokens, which make 28 windows an "
        "epoch."
    )


@pytest.mark.parametrize("batch_size", [1, 3, 5, 10, 16])
def test_one_pass_has_every_example_once_and_in_order(batch_size):
    source = OnePassBatches(
        examples=EXAMPLES, batch_size=batch_size, inputs=BUCKETS, targets=BUCKETS
    )
    batches = list(source.batches())
    assert len(batches) == len(source)
    assert {batch.size for batch in batches} == {batch_size}
    real = [
        batch.inputs[row, 0]
        for step, batch in enumerate(batches)
        for row in range(source.rows(step))
    ]
    assert real == list(range(100, 110))


def test_the_last_batch_is_filled_with_rows_that_weigh_nothing():
    source = OnePassBatches(examples=EXAMPLES, batch_size=4, inputs=BUCKETS, targets=fixed(2))
    last = list(source.batches(2))[-1]
    assert source.rows(2) == 2
    assert not last.inputs[2:].any() and not last.targets[2:].any()
    assert last.weights.tolist() == [[1, 1], [1, 1], [0, 0], [0, 0]]


def test_windows_lie_side_by_side_and_move_from_epoch_to_epoch():
    source = corpus_batches(PrefixLM(), tokens=np.arange(100, 700), batch_size=1)
    size, count = source.window, source.windows
    windows = [inputs[:-1] + targets[:-1] for inputs, targets in rows(take(source, 0, 3 * count))]
    assert all(window == list(range(window[0], window[0] + size)) for window in windows)
    starts = [
        sorted(window[0] for window in windows[e * count : (e + 1) * count]) for e in range(3)
    ]
    assert all((np.diff(epoch) == size).all() for epoch in starts)
    assert len({epoch[0] for epoch in starts}) == 3
    assert all(epoch[-1] + size > 700 - 2 * size for epoch in starts)


@pytest.mark.parametrize("length", [15, 16, 29, 30, 31, 45])
def test_a_short_corpus_is_read_within_its_bounds(length):
    tokens = np.arange(100, 100 + length)
    for inputs, targets in rows(take(corpus_batches(PrefixLM(), tokens=tokens), 0, 20)):
        window = inputs[:-1] + targets[:-1]
        assert len(window) == 15 and set(window) <= set(tokens.tolist())


def test_a_window_of_an_epoch_is_hidden_differently_in_the_next():
    source = corpus_batches(PrefixLM(), tokens=np.arange(100, 115), batch_size=1)
    splits = {len(inputs) for inputs, _ in rows(take(source, 0, 40))}
    assert len(splits) > 5


def test_a_corpus_shorter_than_a_window_is_refused():
    message = (
        "The corpus has 10 tokens, but an input length of 16 takes windows of 15. Give more text "
        "or choose shorter inputs."
    )
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        corpus_batches(PrefixLM(), tokens=np.arange(3, 13))


def test_prefetched_batches_are_the_same():
    source = corpus_batches()
    ahead = prefetch(source.batches(3))
    assert rows(itertools.islice(ahead, 5)) == rows(take(source, 3, 5))
    ahead.close()


def test_batches_are_placed_before_they_are_asked_for():
    threads = []

    def place(batch):
        threads.append(threading.current_thread().name)
        return dataclasses.replace(batch, inputs=-batch.inputs)

    ahead = prefetch(corpus_batches().batches(), place=place)
    first, expected = next(ahead), take(corpus_batches(), 0, 1)[0]
    ahead.close()
    assert np.array_equal(first.inputs, -expected.inputs)
    assert set(threads) == {"prefetch"}


def test_prefetching_ends_with_the_batches():
    source = OnePassBatches(examples=EXAMPLES, batch_size=4, inputs=BUCKETS, targets=BUCKETS)
    assert rows(prefetch(source.batches())) == rows(source.batches())


def broken(good):
    yield from good
    raise DataError("the fourth record is broken")


def test_an_error_is_raised_at_its_place():
    batches = take(corpus_batches(), 0, 3)
    received = []
    with pytest.raises(DataError, match=r"^the fourth record is broken$"):
        for batch in prefetch(broken(batches)):
            received.append(batch)
    assert received == batches


@pytest.mark.parametrize("use", ["close", "exhaust", "fail", "drop"])
def test_the_thread_ends(use):
    before = threading.active_count()
    ahead = prefetch(corpus_batches().batches() if use != "fail" else broken([]))
    if use == "fail":
        with pytest.raises(DataError):
            next(ahead)
    else:
        next(ahead)
        assert threading.active_count() == before + 1
    if use == "close":
        ahead.close()
    if use == "exhaust":
        ahead = prefetch(iter([]))
        assert list(ahead) == []
    del ahead
    assert threading.active_count() == before


def test_no_more_batches_are_made_than_fit():
    made = []

    def count():
        for batch in corpus_batches().batches():
            made.append(batch)
            yield batch

    ahead = prefetch(count(), depth=2)
    next(ahead)
    deadline = time.monotonic() + 10
    while len(made) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)
    # One in use, two ready, one waiting for its place.
    ahead.close()
    assert len(made) == 4
