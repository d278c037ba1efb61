import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prompt_tuning.data.buckets import Buckets, buckets_up_to, fixed
from prompt_tuning.data.lengths import describe, distribution, histogram, padding
from prompt_tuning.data.task_split import Lengths

SHORT = Lengths(counts={2: 3, 4: 1})
LONG = Lengths(counts={4: 1, 10: 1}, limit=12, truncated=1)


def test_a_task_counts_as_its_rate_however_many_examples_it_has():
    assert distribution([(SHORT, 3.0), (LONG, 1.0)]) == pytest.approx(
        {2: 0.75 * 0.75, 4: 0.75 * 0.25 + 0.25 * 0.5, 10: 0.25 * 0.5}
    )


def test_every_length_counts_for_the_smallest_bucket_that_holds_it():
    shares = distribution([(SHORT, 1.0), (LONG, 1.0)])
    assert histogram(shares, Buckets((2, 8, 16))) == pytest.approx([0.375, 0.375, 0.25])


def test_a_fixed_length_is_padded_by_what_the_examples_lack():
    assert padding(distribution([(SHORT, 1.0)]), fixed(10), 4) == pytest.approx(1 - 2.5 / 10)


@given(
    counts=st.dictionaries(st.integers(1, 60), st.integers(1, 20), min_size=1),
    batch_size=st.integers(1, 64),
)
def test_padding_is_what_drawn_batches_have(counts, batch_size):
    buckets = buckets_up_to(max(counts))
    shares = distribution([(Lengths(counts=counts), 1.0)])
    draws = np.random.default_rng(0).choice(
        list(shares), p=list(shares.values()), size=(4000, batch_size)
    )
    positions = [buckets.round_up(longest) for longest in draws.max(axis=1).tolist()]
    seen = 1 - draws.mean() / np.mean(positions)
    assert padding(shares, buckets, batch_size) == pytest.approx(seen, abs=0.05)


def test_a_description_says_how_much_is_padding_and_how_many_were_truncated():
    lines = describe("inputs", [(LONG, 1.0)], buckets=Buckets((4, 12)), batch_size=1)
    assert lines == [
        "inputs   up to      4     12",
        "         share  50.0%  50.0%",
        "         7.0 tokens on average; 1 of 2 examples truncated to 12",
        "         padding 12% of a batch, 42% at the fixed length 12",
    ]


@pytest.mark.parametrize(
    ("lengths", "said"),
    [
        (SHORT, "nothing truncated"),
        (Lengths(counts={2: 1}, limit=4), "longer ones truncated to 4, not counted"),
        (Lengths(counts={2: 1500}, limit=4, truncated=0), "0 of 1,500 examples truncated to 4"),
    ],
)
def test_what_is_known_of_truncation_is_said(lengths, said):
    lines = describe("targets", [(lengths, 1.0)], buckets=fixed(4), batch_size=1)
    assert lines[2].endswith(f"average; {said}")


def test_a_limit_of_512_is_what_the_original_would_have_padded_to():
    lengths = Lengths(counts={8: 1}, limit=512, truncated=0)
    (*_, last) = describe("inputs", [(lengths, 1.0)], buckets=fixed(8), batch_size=1)
    assert last.endswith("padding 0% of a batch, 98% at the fixed length 512")
