"""C4's objectives: what they make of tokens, drawn by seqio's seeds."""

import functools

import numpy as np
import pytest
import seqio
import tensorflow as tf

from prompt_tuning.data.objectives import SpanCorruption
from prompt_tuning.data.seqio_tasks import with_vocabulary
from prompt_tuning.errors import ConfigError
from prompt_tuning.tasks import c4, c4_objectives, noise, recycling

SIZE = 1000
VOCABULARY = seqio.PassThroughVocabulary(SIZE, eos_id=1)
FEATURES = {
    name: seqio.Feature(VOCABULARY, add_eos=True, required=False) for name in ("inputs", "targets")
}
DOCUMENTS = (range(10, 30), [], range(40, 45), [50])
LENGTHS = {"inputs": 13, "targets": 13}

# What the original makes of these documents, by t5/data/preprocessors.py at e081111 and seed 3.
# fmt: off
ORIGINAL = {
    "span_corruption": [
        ([10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 999], [999, 21, 22]),
        ([23, 24, 25, 26, 27, 28, 29, 40, 41, 42, 43, 999], [999, 44, 50]),
    ],
    "iid_denoising": [
        ([10, 11, 12, 13, 14, 15, 999, 17, 18, 998, 21], [999, 16, 998, 19, 20, 997]),
        ([22, 23, 999, 25, 26, 27, 28, 29, 40, 41, 42, 43], [999, 24, 998]),
        ([999, 50], [44, 999]),
    ],
    "prefix_lm": [
        ([10, 11, 12, 13, 14, 15, 16, 17], [18, 19, 20, 21]),
        ([22], [23, 24, 25, 26, 27, 28, 29]),
        ([40], [41, 42, 43, 44]),
        ([], [50]),
    ],
    "full_lm": [
        (None, [10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22]),
        (None, [23, 24, 25, 26, 27, 28, 29, 1, 40, 41, 42, 43, 44]),
        (None, [1, 50, 1]),
    ],
    "text_infilling": [
        ([10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 999], list(range(10, 22))),
        ([22, 23, 24, 25, 26, 27, 28, 999], list(range(22, 30))),
        ([40, 41, 42, 43, 999], [40, 41, 42, 43, 44]),
        ([50], [50]),
    ],
    "token_deletion": [
        ([10, 11, 12, 13, 14, 15, 17, 18, 21], list(range(10, 22))),
        ([22, 23, 25, 26, 27, 28, 29], list(range(22, 30))),
        ([41, 42, 43, 44], [40, 41, 42, 43, 44]),
        ([50], [50]),
    ],
}
# fmt: on


def dataset(documents=DOCUMENTS):
    return tf.data.Dataset.from_generator(
        lambda: ({"targets": np.array(list(one), np.int32)} for one in documents),
        output_signature={"targets": tf.TensorSpec([None], tf.int32)},
    )


def made(objective, documents=DOCUMENTS, lengths=LENGTHS, features=FEATURES, seed=3):
    """Returns the inputs and targets that an objective makes of documents."""
    with seqio.map_seed_manager(initial_seed=seed):
        result = objective(dataset(documents), lengths, features)
    return [
        tuple(row[name].tolist() if name in row else None for name in ("inputs", "targets"))
        for row in result.as_numpy_iterator()
    ]


def row(count):
    return [range(10, 10 + count)]


@pytest.mark.parametrize("name", ORIGINAL)
def test_the_original_makes_the_same_with_the_same_seed(name):
    assert made(getattr(c4_objectives, name)) == ORIGINAL[name]


@pytest.mark.parametrize("name", ["span_corruption", "prefix_lm"])
def test_the_same_seed_draws_the_same_and_another_does_not(name):
    draw = functools.partial(
        made, getattr(c4_objectives, name), row(600), {"inputs": 64, "targets": 64}
    )
    assert draw(seed=1) == draw(seed=1) != draw(seed=2)


@pytest.mark.parametrize("inputs", [32, 100, 512])
def test_span_corruption_fills_its_lengths_to_the_last_token(inputs):
    shape = SpanCorruption()
    window, targets = shape.window(inputs), shape.target_length(inputs)
    examples = made(
        c4_objectives.span_corruption, row(3 * window), {"inputs": inputs, "targets": targets}
    )
    # End tokens are added later.
    assert {(len(i), len(t)) for i, t in examples} == {(inputs - 1, targets - 1)}
    assert len(examples) == 3


def test_512_inputs_are_568_tokens_and_114_targets():
    assert (SpanCorruption().window(512), SpanCorruption().target_length(512)) == (568, 114)


@pytest.mark.parametrize("name", ["span_corruption", "iid_denoising"])
def test_inputs_and_targets_together_are_the_text(name):
    for inputs, targets in made(
        getattr(c4_objectives, name), row(300), {"inputs": 100, "targets": 100}
    ):
        text = sorted(i for i in (*inputs, *targets) if i < SIZE - 100)
        assert text == list(range(text[0], text[0] + len(text)))
        sentinels = [i for i in inputs if i >= SIZE - 100]
        assert sentinels == list(range(SIZE - 1, SIZE - 1 - len(sentinels), -1))


def test_infilling_keeps_the_whole_text_as_targets():
    lengths = {"inputs": 41, "targets": 41}
    for inputs, targets in made(c4_objectives.text_infilling, row(80), lengths):
        assert len(targets) == 40
        assert [i for i in inputs if i < SIZE - 100] == [i for i in targets if i in set(inputs)]
        assert len(inputs) == 40 - 6 + 2  # 15 % of 40 tokens, in spans of three


def test_deletion_deletes_its_share():
    ((inputs, targets),) = made(
        c4_objectives.token_deletion, row(900), {"inputs": 901, "targets": 901}
    )
    assert targets == list(range(10, 910))
    assert set(inputs) < set(targets) and inputs == sorted(inputs)
    assert 0.1 < 1 - len(inputs) / 900 < 0.2


def test_prefixes_of_every_length_but_none_and_all_are_drawn():
    lengths = {"inputs": 6, "targets": 6}
    examples = made(c4_objectives.prefix_lm, row(5) * 200, lengths)
    assert all(inputs + targets == list(range(10, 15)) for inputs, targets in examples)
    counts = np.bincount([len(inputs) for inputs, _ in examples], minlength=6)
    assert counts[0] == counts[5] == 0
    assert all(counts[1:5] > 30)  # 50 of each are expected


def test_one_piece_of_a_long_document_is_drawn():
    with seqio.map_seed_manager(initial_seed=0):
        chosen = c4_objectives.select_random_chunk(dataset(row(25) * 20), length=10)
    pieces = {tuple(one["targets"]) for one in chosen.as_numpy_iterator()}
    assert pieces == {tuple(range(10, 20)), tuple(range(20, 30)), tuple(range(30, 35))}


@pytest.mark.parametrize(("length", "spans"), [(1, 0), (2, 1), (7, 1), (20, 1), (40, 2), (568, 28)])
def test_as_many_spans_are_hidden_as_the_length_says(length, spans):
    for seed in range(5):
        mask = noise.random_spans(tf.constant(length), tf.constant([[seed, 1], [seed, 2]])).numpy()
        starts = np.diff(mask.astype(int), prepend=0) == 1
        assert (mask.shape, starts.sum()) == ((length,), spans)
        assert mask.sum() == (max(1, round(0.15 * length)) if spans else 0)
        assert not mask[0] and (mask[-1] or not spans)


# tokens     10  11  12  13  14  15  16
MASK = np.array([0, 1, 1, 0, 0, 1, 0], bool)
WRITTEN = {
    "noise_to_sentinels": [10, 999, 13, 14, 998, 16],
    "rest_to_sentinels": [999, 11, 12, 998, 15, 997],
    "drop_noise": [10, 13, 14, 16],
    "drop_rest": [11, 12, 15],
    "everything": [10, 11, 12, 13, 14, 15, 16],
}


@pytest.mark.parametrize("name", WRITTEN)
def test_what_stands_in_the_place_of_hidden_tokens(name):
    tokens, mask = tf.range(10, 17), tf.constant(MASK)
    assert getattr(noise, name)(tokens, mask, VOCABULARY).numpy().tolist() == WRITTEN[name]


def test_words_never_stand_in_for_sentinels():
    few = seqio.ByteVocabulary(extra_ids=1)
    with pytest.raises(tf.errors.InvalidArgumentError, match="more hidden spans than the vocab"):
        noise.noise_to_sentinels(tf.range(10, 17), tf.constant(MASK), few)
    assert noise.noise_to_sentinels(tf.range(10, 13), tf.constant(MASK[:3]), few)[-1] == 259


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        (None, "needs the length of its 'inputs'"),
        ({"targets": 64}, "needs the length of its 'inputs'"),
        ({"inputs": 512}, "needs the length of its 'targets'"),
        (
            {"inputs": 512, "targets": 113},
            "has targets of 114 tokens, .* allows 113. Set 'targets'",
        ),
    ],
)
def test_lengths_that_cannot_work_are_refused(lengths, message):
    with pytest.raises(ConfigError, match=message):
        made(c4_objectives.span_corruption, lengths=lengths)


# The registered tasks, from the text of a page.

PAGES = [
    "The harbour was quiet before the boats came home.",
    "Rain fell on the roof all night, and the children slept through it.",
]


def examples_of(name, vocabulary, lengths, seed=0):
    """Returns the examples of a registered task over the pages."""
    source = seqio.FunctionDataSource(
        lambda split, shuffle_files, seed=None: tf.data.Dataset.from_tensor_slices(
            {"text": PAGES, "url": ["a", "b"]}
        ),
        splits=["train"],
    )
    task = with_vocabulary(seqio.TaskRegistry.get(name), vocabulary).replace(source=source)
    records = task.get_dataset(lengths, "train", shuffle=False, seed=seed)
    return list(records.as_numpy_iterator())


NAMES = [*c4.NAMES, "c4_v220_random_positive_negative_targets"]


@pytest.mark.parametrize("name", NAMES)
def test_pages_become_examples_that_end(name, vocabulary):
    assert name in [*c4.NAMES, *recycling.NAMES]
    examples = examples_of(name, vocabulary, {"inputs": 24, "targets": 24})
    assert examples
    for one in examples:
        for feature in ("targets",) if name.endswith("full_lm") else ("inputs", "targets"):
            assert 0 < len(one[feature]) <= 24
            assert name.endswith("full_lm") or one[feature][-1] == vocabulary.eos_id
        assert name.endswith("full_lm") == ("inputs" not in one)


def test_prefixes_and_their_continuations_are_the_pages(vocabulary):
    lengths = {"inputs": 200, "targets": 200}
    texts = [
        vocabulary.decode([*one["inputs"][:-1], *one["targets"]])
        for one in examples_of("c4_v220_prefix_lm", vocabulary, lengths)
    ]
    assert texts == PAGES


def test_pieces_of_language_modelling_are_the_pages_one_after_the_other(vocabulary):
    pieces = examples_of("c4_v220_full_lm", vocabulary, {"targets": 10})
    joined = [token for one in pieces for token in one["targets"]]
    assert joined == [token for page in PAGES for token in [*vocabulary.encode(page), 1]]
    assert [len(one["targets"]) for one in pieces[:-1]] == [10] * (len(pieces) - 1)


def test_targets_are_drawn_whatever_the_inputs_are(vocabulary):
    lengths = {"inputs": 8, "targets": 8}
    random = examples_of("c4_v220_random_positive_negative_targets", vocabulary, lengths)
    again = examples_of("c4_v220_random_positive_negative_targets", vocabulary, lengths)
    prefixes = examples_of("c4_v220_prefix_lm", vocabulary, lengths)
    assert [one["inputs"].tolist() for one in random] == [
        one["inputs"].tolist() for one in prefixes
    ]
    drawn = [vocabulary.decode(one["targets"]) for one in random]
    assert set(drawn) == {"positive", "negative"}
    assert drawn == [vocabulary.decode(one["targets"]) for one in again]
