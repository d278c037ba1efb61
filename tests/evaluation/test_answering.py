import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning.batch import PAD, Batch
from prompt_tuning.data.batches import assemble, fixed
from prompt_tuning.data.examples import Example
from prompt_tuning.decoding import BeamSearch, Greedy, Sample, make_generate
from prompt_tuning.errors import ConfigError
from prompt_tuning.evaluation import Answering, ChooseLabel, Decode
from prompt_tuning.evaluation.answering import label_tokens
from tests.evaluation.questions import EXAMPLES, SaysTerms
from tests.small_models import compiled

pytestmark = pytest.mark.usefixtures("programs")

LENGTH = 6
# Of several tokens each, and none the likeliest for all examples.
LABELS = ("is", "one", "for", "us")

# A new strategy gets the laws below with one line.
STRATEGIES = {
    "greedy": Greedy(),
    "one beam": BeamSearch(),
    "three beams": BeamSearch(beams=3),
    "drawn twice": Sample(temperature=2.0, top_k=50, decodes=2),
}


@pytest.fixture(scope="module")
def ways(vocabulary):
    """All ways to answer, by name."""
    decoded = {
        name: Decode(vocabulary=vocabulary, strategy=strategy)
        for name, strategy in STRATEGIES.items()
    }
    chosen = {
        "chosen": ChooseLabel(vocabulary=vocabulary, labels=LABELS),
        "chosen per token": ChooseLabel(vocabulary=vocabulary, labels=LABELS, normalize=True),
    }
    return decoded | chosen


@pytest.fixture(scope="module")
def prepared(ways, split_states):
    """Returns what answers in the way of this name, compiled once."""
    graph, *_ = split_states
    return functools.cache(lambda name: ways[name].prepare(graph, length=LENGTH, label_names=None))


WAYS = [*STRATEGIES, "chosen", "chosen per token"]


def batch_of(ids, rows):
    empty = Example(np.zeros(0, np.int32), np.zeros(0, np.int32))
    chosen = [EXAMPLES[i] for i in ids] + [empty] * (rows - len(ids))
    return assemble(chosen, inputs=fixed(10), targets=fixed(4))


def ask(answer, split_states, ids, rows=4):
    _, prompt, frozen = split_states
    return answer(prompt, frozen, batch_of(ids, rows), ids)


def every(answer):
    """The answers to one example, the worst first."""
    return (*answer.others, answer)


def same(found, expected):
    assert len(every(found)) == len(every(expected))
    for one, other in zip(every(found), every(expected), strict=True):
        assert (one.text, one.tokens.tolist()) == (other.text, other.tokens.tolist())
        assert one.score == pytest.approx(other.score, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("name", WAYS)
def test_an_answer_does_not_depend_on_the_batch_it_is_in(prepared, split_states, name):
    answer = prepared(name)
    together = dict(zip(range(4), ask(answer, split_states, [0, 1, 2, 3]), strict=True))
    for ids in ([3, 5, 0], [2], [6, 4, 1, 3]):
        for number, found in zip(ids, ask(answer, split_states, ids), strict=True):
            if number in together:
                same(found, together[number])
    assert len({one.tokens.tobytes() for one in together.values()}) > 1


@pytest.mark.parametrize("name", WAYS)
def test_answers_come_best_last_and_say_what_their_tokens_do(
    prepared, split_states, vocabulary, name
):
    answers = ask(prepared(name), split_states, [4, 1, 5])
    for answer in answers:
        scores = [one.score for one in every(answer)]
        assert scores == sorted(scores)
        assert all(one.text == vocabulary.decode(one.tokens) for one in every(answer))
        assert all(one.others == () for one in answer.others)
        assert all(type(one.score) is float for one in every(answer))
    number = {"three beams": 3, "drawn twice": 2}.get(name, 4 if "chosen" in name else 1)
    assert {len(every(answer)) for answer in answers} == {number}


def test_what_is_decoded_is_what_the_strategy_answers(prepared, split_states, vocabulary):
    graph, prompt, frozen = split_states
    generate = make_generate(graph, strategy=STRATEGIES["three beams"], length=LENGTH)
    expected = generate(prompt, frozen, batch_of([1, 4, 6], 4).inputs)
    found = ask(prepared("three beams"), split_states, [1, 4, 6])
    for row, answer in enumerate(found):
        tokens = [one.tokens.tolist() for one in every(answer)]
        assert tokens == np.asarray(expected.tokens)[row].tolist()
        np.testing.assert_allclose(
            [one.score for one in every(answer)], expected.scores[row], rtol=1e-6
        )


def test_rows_that_fill_up_a_batch_may_say_nothing_and_are_not_answered(vocabulary, split_states):
    graph, prompt, frozen = split_states
    seen = []

    class Seen(SaysTerms):
        def __call__(self, decoder, terms, keys):
            jax.debug.callback(lambda ends: seen.append(ends.tolist()), terms.ends)
            return super().__call__(decoder, terms, keys)

    decode = Decode(vocabulary=vocabulary, strategy=Seen())
    answer = decode.prepare(graph, length=LENGTH)
    answers = answer(prompt, frozen, batch_of([2, 0, 3], 5), [2, 0, 3])
    jax.effects_barrier()
    assert seen == [[LENGTH, LENGTH, LENGTH, 0, 0]]
    assert [one.score for one in answers] == [LENGTH] * 3


def test_an_example_without_a_token_is_answered_too(vocabulary, split_states):
    graph, prompt, frozen = split_states
    nothing = Example(np.zeros(0, np.int32), np.zeros(0, np.int32))
    batch = assemble([nothing, nothing], inputs=fixed(4), targets=fixed(4))
    answer = Decode(vocabulary=vocabulary, strategy=SaysTerms()).prepare(graph, length=LENGTH)
    assert [one.score for one in answer(prompt, frozen, batch, [0])] == [LENGTH]


def test_the_end_token_of_the_vocabulary_ends_an_answer(vocabulary, split_states):
    graph, prompt, frozen = split_states
    ends = []

    class Seen(SaysTerms):
        def __call__(self, decoder, terms, keys):
            ends.append(terms.eos_id)
            return super().__call__(decoder, terms, keys)

    answer = Decode(vocabulary=vocabulary, strategy=Seen()).prepare(graph, length=3)
    answer(prompt, frozen, batch_of([0], 1), [0])
    assert ends == [vocabulary.eos_id]


def test_examples_draw_by_their_number_and_the_seed(prepared, vocabulary, split_states):
    graph, prompt, frozen = split_states
    other = Decode(vocabulary=vocabulary, strategy=STRATEGIES["drawn twice"], seed=1)

    def drawn(answer, ids):
        batch = assemble([EXAMPLES[0]] * len(ids), inputs=fixed(10), targets=fixed(4))
        return [one.tokens.tolist() for one in answer(prompt, frozen, batch, ids)]

    first = drawn(prepared("drawn twice"), [0, 1, 7, 7])
    assert first[2] == first[3]
    assert len(set(map(tuple, first))) == 3
    again = drawn(prepared("drawn twice"), [7, 0, 0, 1])
    assert again == [first[2], first[0], first[0], first[1]]
    under_another = drawn(other.prepare(graph, length=LENGTH), [0, 1, 7, 7])
    assert all(one != another for one, another in zip(first, under_another, strict=True))


@pytest.fixture(scope="module")
def log_probabilities(model, vocabulary):
    """Returns the log-probability of each label for each example, from the logits alone."""

    def one(inputs, label):
        tokens = [*vocabulary.encode(label), vocabulary.eos_id]
        padded = np.full((1, 8), PAD, np.int32)
        padded[0, : len(tokens)] = tokens
        batch = Batch(
            inputs=jnp.asarray(inputs[None]),
            targets=jnp.asarray(padded),
            weights=jnp.asarray((padded != PAD).astype(np.int32)),
        )
        logits = np.asarray(compiled(model, "__call__", batch), np.float64)[0]
        log_p = logits - np.log(np.sum(np.exp(logits), axis=1, keepdims=True))
        return sum(log_p[position, token] for position, token in enumerate(tokens)), len(tokens)

    return [[one(each.inputs, label) for label in LABELS] for each in EXAMPLES]


@pytest.mark.parametrize("name", ["chosen", "chosen per token"])
def test_the_likeliest_label_is_chosen(prepared, split_states, log_probabilities, name):
    ids = range(len(EXAMPLES))
    found = ask(prepared(name), split_states, ids, rows=8)
    chosen = set()
    for answer, worth in zip(found, log_probabilities, strict=True):
        expected = [total / (tokens if "per" in name else 1) for total, tokens in worth]
        assert answer.text == LABELS[int(np.argmax(expected))]
        scores = {one.text: one.score for one in every(answer)}
        assert [scores[label] for label in LABELS] == pytest.approx(expected, rel=1e-5)
        chosen.add(answer.text)
    # Otherwise the label of a row could be taken for that of another.
    assert len(chosen) >= 3


def test_the_labels_of_the_task_are_chosen_from_unless_others_are_given(vocabulary, split_states):
    graph, *_ = split_states
    of_task = ChooseLabel(vocabulary=vocabulary)
    answer = of_task.prepare(graph, length=LENGTH, label_names=("for", "us"))
    [one] = ask(answer, split_states, [2])
    assert {each.text for each in every(one)} == {"for", "us"}
    # Others may be allowed as well, which are never right.
    more = ChooseLabel(vocabulary=vocabulary, labels=["us", "is", "for"])
    answer = more.prepare(graph, length=LENGTH, label_names=("for", "us"))
    [one] = ask(answer, split_states, [2])
    assert {each.text for each in every(one)} == {"for", "us", "is"}


REFUSED = {
    "no labels at all": (
        {},
        None,
        "ChooseLabel has no labels to choose from, and the task does not say its own. Set "
        "ChooseLabel.labels = ['negative', 'positive'], or whatever the answers are.",
    ),
    "an empty list": (
        {"labels": []},
        ("dull",),
        "ChooseLabel has no labels to choose from, and the task does not say its own. Set "
        "ChooseLabel.labels = ['negative', 'positive'], or whatever the answers are.",
    ),
    "a label that is never right": (
        {"labels": ["dul", "moving"]},
        ("moving", "dull"),
        "ChooseLabel.labels is ['dul', 'moving'], but the task has the label 'dull', which could "
        "never be chosen. Did you mean 'dul'?",
    ),
    "the same tokens": (
        {"labels": ["dull", "是", "否"]},
        None,
        "The labels '是' and '否' are the same tokens, so that no answer could tell them apart. "
        "Choose other words, or the VOCABULARY of the model.",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_labels_that_cannot_be_chosen_are_refused(vocabulary, split_states, case):
    graph, *_ = split_states
    settings, label_names, message = REFUSED[case]
    with pytest.raises(ConfigError) as caught:
        ChooseLabel(vocabulary=vocabulary, **settings).prepare(
            graph, length=LENGTH, label_names=label_names
        )
    assert str(caught.value) == message


def test_a_label_may_be_as_long_as_an_answer_and_no_longer(vocabulary):
    label = "moving and honest"
    length = len(vocabulary.encode(label)) + 1
    assert label_tokens(["dull", label], vocabulary, length).shape == (2, length)
    with pytest.raises(ConfigError) as caught:
        label_tokens(["dull", label], vocabulary, length - 1)
    assert str(caught.value) == (
        f"The label 'moving and honest' has {length} tokens with its end token, but answers may "
        f"have {length - 1}. Set TASK_FEATURE_LENGTHS['targets'] to at least {length}, or choose a "
        "shorter label."
    )


def test_labels_end_with_an_end_token_and_padding(vocabulary):
    short, long = vocabulary.encode("it"), vocabulary.encode("the film is slow")
    assert label_tokens(["it", "the film is slow"], vocabulary, 20).tolist() == [
        [*short, 1, *[PAD] * (len(long) - len(short))],
        [*long, 1],
    ]


def test_both_ways_to_answer_are_known_as_such(ways):
    assert all(isinstance(way, Answering) for way in ways.values())
