"""Questions about a text: what SQuAD and MRQA read and write, and what answers are worth."""

import pytest
import seqio
import tensorflow as tf

from prompt_tuning.errors import DataError
from prompt_tuning.tasks import qa, qa_metrics, qa_text
from tests.tasks.written_tasks import Written, as_example, close, examples, judged, texts

CONTEXT = "In 1831 Faraday (born 1791)  found\nit. Others didn't."
PADDED = "In 1831 Faraday ( born 1791 ) found it . Others didn ' t . "

SQUAD = Written(
    records=[
        {
            "id": "a1",
            "title": "Induction",
            "context": CONTEXT,
            "question": "Who found it?",
            "answers": {"text": ["Faraday", "Faraday (born 1791)"]},
        },
        {
            "id": "a2",
            "title": "Induction",
            "context": "Über  allem: die “Ruhe”.",
            "question": "What is über allem?",
            "answers": {"text": ["die “Ruhe”."]},
        },
    ],
    texts=[
        (f"question: Who found it ? context: {PADDED}", "Faraday"),
        # Only ASCII punctuation is padded.
        ("question: What is über allem ? context: Über allem : die “Ruhe” . ", "die “Ruhe” . "),
    ],
    targets=[["Faraday", "Faraday ( born 1791 ) "], ["die “Ruhe” . "]],
    answers={
        "right": (
            ["the faraday", "die “Ruhe”"],
            ["the faraday", "die “Ruhe”"],
            {"em": 100.0, "f1": 100.0},
        ),
        # The longer answer shares two of its three words with "born Faraday".
        "close": (["born Faraday", "“Ruhe”"], ["born Faraday", "“Ruhe”"], {"em": 0.0}),
        "wrong": (["Ampère", "der Lärm"], ["Ampère", "der Lärm"], {"em": 0.0, "f1": 0.0}),
        "empty": (["", ""], ["", ""], {"em": 0.0, "f1": 0.0}),
        "garbage": (["<extra_id_0>", ". , ;"], ["<extra_id_0>", ". , ;"], {"em": 0.0, "f1": 0.0}),
    },
)
SQUAD.answers["close"][2]["f1"] = 100 * (0.8 + 2 / 3) / 2

MRQA = Written(
    records=[
        {
            "subset": "DROP",
            "qid": record["id"],
            "context": record["context"],
            "question": record["question"],
            "answers": record["answers"]["text"],
        }
        for record in SQUAD.records
    ],
    texts=SQUAD.texts,
    targets=SQUAD.targets,
    answers=SQUAD.answers,
)

SQUAD_NAMES = [
    "squad_v010_allanswers",
    *(f"{model}squad_v010_allanswers_examples" for model in ("", "mt5_", "byt5_")),
]
MRQA_NAMES = [
    f"{model}mrqa_{name}_v100_examples"
    for model in ("", "mt5_", "byt5_")
    for name in (*qa.OUT_OF_DOMAIN, *qa.IN_DOMAIN)
]
CASES = [*((name, SQUAD) for name in SQUAD_NAMES), *((name, MRQA) for name in MRQA_NAMES)]


def test_the_table_has_every_task():
    others = ["squad_v010", "squad_v010_context_free", "squad_v010_allanswers_span"]
    assert sorted(qa.NAMES) == sorted([name for name, _ in CASES] + others)


@pytest.mark.parametrize(("name", "written"), CASES, ids=[name for name, _ in CASES])
def test_records_become_questions_and_answers_are_judged(name, written):
    assert texts(name, written) == list(written.texts)
    for kind, (answers, meanings, worth) in written.answers.items():
        targets, said, values = judged(name, written, answers)
        shown = {key: values.pop(key) for key in list(values) if key.endswith(" samples")}
        assert (targets, values) == (list(written.targets), close(worth)), kind
        if not name.endswith("_examples"):
            assert (said, shown) == (list(meanings), {})
            continue
        assert [one["prediction"] for one in said] == list(meanings)
        assert set(said[0]) - {"prediction", "prediction_pretokenized"} == set(qa.KEPT)
        ((title, text),) = shown.items()
        assert title.removesuffix(" samples") in name or title == "squad samples"
        assert text.textdata.splitlines()[:4] == [
            f"context: {PADDED}",
            "question: Who found it ? ",
            "answers: Faraday; Faraday ( born 1791 ) ",
            f"prediction: {answers[0]}",
        ]


@pytest.mark.parametrize("written", [SQUAD, MRQA], ids=["squad", "mrqa"])
def test_the_name_of_the_question_stays(written):
    name = SQUAD_NAMES[0] if written is SQUAD else MRQA_NAMES[0]
    key = "id" if written is SQUAD else "idx"
    assert [one[key] for one in examples(name, written)] == ["a1", "a2"]


def test_without_its_context_a_question_is_trivia():
    assert texts("squad_v010_context_free", SQUAD) == [
        ("squad trivia question: Who found it ? ", "Faraday"),
        ("squad trivia question: What is über allem ? ", "die “Ruhe” . "),
    ]
    targets, _, values = judged("squad_v010_context_free", SQUAD, ["Faraday", "Lärm"])
    assert (targets, values) == (list(SQUAD.targets), {"em": 50.0, "f1": 50.0})


def test_the_older_squad_is_judged_by_the_first_answer_alone():
    assert texts("squad_v010", SQUAD) == list(SQUAD.texts)
    targets, _, values = judged("squad_v010", SQUAD, ["Faraday (born 1791)", "die “Ruhe”"])
    assert targets == [["Faraday"], ["die “Ruhe” . "]]
    assert values == {"em": 50.0, "f1": pytest.approx(75.0)}


SPANS = Written(
    records=[
        {
            "id": str(number),
            "title": "",
            "context": CONTEXT,
            "question": "Who?",
            "answers": {"text": [answer]},
        }
        for number, answer in enumerate(["1831 Faraday", "(born 1791)", "Others didn't.", "Volta"])
    ],
    # In |1831|Faraday|||born|1791|||found|it|||Others|didn||| t: single spaces part the words.
    texts=[
        (f"question: Who ? context: {PADDED}", "start: 1 end: 2"),
        (f"question: Who ? context: {PADDED}", "start: 5 end: 8"),
        (f"question: Who ? context: {PADDED}", "start: 13 end: 19"),
    ],
)


def test_spans_count_words_and_are_judged_as_what_they_point_to():
    name = "squad_v010_allanswers_span"
    made = texts(name, SPANS)
    assert [inputs for inputs, _ in made] == [inputs for inputs, _ in SPANS.texts]
    targets, _, values = judged(name, SPANS, [span for _, span in made])
    # What the targets say is right, wherever punctuation stands.
    assert values == {"em": 100.0, "f1": 100.0}
    assert made[0][1] == "start: 1 end: 2"
    for garbage in ("", "start: a end: b", "start: 7", "start: 900 end: 901", "end"):
        assert judged(name, SPANS, [garbage] * 3)[2] == {"em": 0.0, "f1": 0.0}
    assert targets[0] == {"answers": ["1831 Faraday"], "context": PADDED}


# The metric: right answers, what is said, exact match and F1 by the scripts of SQuAD and TriviaQA.
@pytest.mark.parametrize(
    ("golds", "said", "exact", "f1"),
    [
        (["The Cat!"], "a cat", 100, 100),
        (["cat"], "cats", 0, 0),
        (["x", "a b c d"], "b c", 0, 80),  # "a" is an article: b c d against b c
        (["b b c"], "b", 0, 50),
        (["theatre an1"], "THEATRE, an1.", 100, 100),
        (["an"], "the", 100, 0),  # nothing is left of either, and nothing is shared
        (["half-life"], "halflife", 100, 100),
    ],
)
def test_squad_takes_the_best_of_the_right_answers(golds, said, exact, f1):
    assert qa_metrics.squad([golds], [said]) == {"em": exact, "f1": pytest.approx(f1)}


def test_trivia_puts_a_space_for_punctuation():
    assert qa_metrics.trivia_qa([["half-life"]], ["half life"]) == {"em": 100.0, "f1": 100.0}
    assert qa_metrics.trivia_qa([["half-life"]], ["halflife"]) == {"em": 0.0, "f1": 0.0}
    assert qa_metrics.trivia_qa([["‘so’"]], ["so"]) == {"em": 100.0, "f1": 100.0}
    assert qa_metrics.normalize_squad("‘so’") == "‘so’"


def test_a_question_without_a_right_answer_cannot_be_judged():
    with pytest.raises(DataError, match="The question 1 has no right answer"):
        qa_metrics.squad([["a b"], []], ["b", "c"])


def test_lines_of_a_table_become_questions():
    line = tf.constant('7\tA "b".\tWho?\tx\tx|||y z.')
    made = {name: value.numpy() for name, value in qa_text.tsv_to_qa(line).items()}
    assert made.pop("answers").tolist() == [b"x", b"y z . "]
    assert made == {
        "id": b"7",
        "context": b'A " b " . ',
        "question": b"Who ? ",
        "answer": b"x",
        "inputs": b'question: Who ? context: A " b " . ',
        "targets": b"x",
    }


@pytest.mark.parametrize("model", ["", "mt5_", "byt5_"])
def test_transfer_trains_on_squad_and_evaluates_elsewhere(model):
    squad = f"{model}squad_v010_allanswers_examples"
    elsewhere = [f"{model}mrqa_{name}_v100_examples" for name in qa.OUT_OF_DOMAIN]
    assert rates(f"{model}squad_to_mrqa_examples") == dict.fromkeys([squad, *elsewhere], 1.0)
    for name, task in zip(qa.OUT_OF_DOMAIN, elsewhere, strict=True):
        assert rates(f"{model}squad_to_{name}_examples") == {squad: 1.0, task: 1.0}
        assert list(seqio.TaskRegistry.get(task).splits) == ["validation"]
        assert seqio.TaskRegistry.get(task).source.tfds_dataset._map_split("validation") == "test"


def rates(name):
    mixture = seqio.MixtureRegistry.get(name)
    return {task.name: mixture.get_rate(task) for task in mixture.tasks}


def test_examples_keep_their_bytes():
    made = as_example(examples(SQUAD_NAMES[0], SQUAD)[1])
    assert made["answers"] == ["die “Ruhe” . ".encode()]
