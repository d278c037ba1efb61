"""Summaries: what XSum and CNN/DailyMail read and write, and ROUGE and BLEU of what is said."""

import numpy as np
import pytest
import sacrebleu
import seqio
from rouge_score import rouge_scorer, scoring

from prompt_tuning.data.task_batches import task_split
from prompt_tuning.tasks import bleu, rouge, summarization
from tests.tasks import small_data_sets
from tests.tasks.written_tasks import Written, judged, texts

ARTICLE = "The boats came home .  All of them.\nNobody knew why"
OTHER = "Rain fell – all night."
SUMMARIES = ("Boats are home . All boats .", "It rained.")

XSUM = Written(
    records=[
        {"document": ARTICLE, "summary": SUMMARIES[0]},
        {"document": OTHER, "summary": SUMMARIES[1]},
    ],
    texts=[(f"summarize: {ARTICLE}", SUMMARIES[0]), (f"summarize: {OTHER}", SUMMARIES[1])],
)
NEWS = Written(
    records=[
        {"article": article, "highlights": summary, "publisher": "dailymail", "id": "3f"}
        for article, summary in zip((ARTICLE, OTHER), SUMMARIES, strict=True)
    ],
    texts=XSUM.texts,
)
CASES = [
    *((f"{model}xsum_v110_examples", XSUM) for model in ("", "mt5_", "byt5_")),
    *((f"{model}cnn_dailymail_v310_examples", NEWS) for model in ("", "mt5_", "byt5_")),
    ("cnn_dailymail_v002", NEWS),
]
ANSWERS = {
    "right": (list(SUMMARIES), 100.0),
    "wrong": (["She baked bread.", "He slept."], 0.0),
    "empty": (["", ""], 0.0),
    "garbage": (["<extra_id_0> ☃", ". . ."], 0.0),
}


def test_the_table_has_every_task():
    assert sorted(summarization.NAMES) == sorted(name for name, _ in CASES)


@pytest.mark.parametrize(("name", "written"), CASES, ids=[name for name, _ in CASES])
def test_articles_become_text_and_summaries_are_judged(name, written):
    assert texts(name, written) == list(written.texts)
    for kind, (answers, worth) in ANSWERS.items():
        targets, said, values = judged(name, written, answers)
        shown = {key: values.pop(key) for key in list(values) if key.endswith(" samples")}
        assert targets == list(SUMMARIES)
        assert values == pytest.approx(dict.fromkeys(rouge.KEYS, worth)), kind
        if not name.endswith("_examples"):
            assert (said, shown) == (answers, {})
            continue
        assert [one["prediction"] for one in said] == answers
        ((title, text),) = shown.items()
        assert title in ("xsum samples", "cnn_dailymail samples")
        assert f"example: summarize: {ARTICLE}\n\ntarget: {SUMMARIES[0]}" in text.textdata


REFERENCES = [
    "The boats came home . All of them were late .",
    "It rained all night .",
    "Nobody asked the teacher why .",
]
SAID = ["The boats came late . They were home .", "All night it rained .", "The teacher asked"]


def directly(aggregate):
    """Returns what rouge-score says itself of summaries with a sentence on each line."""
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeLsum"])
    scores = [
        scorer.score(*(text.replace(" . ", " .\n") for text in pair))
        for pair in zip(REFERENCES, SAID, strict=True)
    ]
    return {key: 100 * aggregate([score[key] for score in scores]) for key in scores[0]}


def test_rouge_is_that_of_rouge_score():
    aggregator = scoring.BootstrapAggregator()
    state = np.random.get_state()
    np.random.seed(7)
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeLsum"])
    for pair in zip(REFERENCES, SAID, strict=True):
        aggregator.add_scores(scorer.score(*(text.replace(" . ", " .\n") for text in pair)))
    expected = {key: 100 * one.mid.fmeasure for key, one in aggregator.aggregate().items()}
    np.random.set_state(state)
    assert rouge.rouge(REFERENCES, SAID, seed=7) == pytest.approx(expected, rel=1e-12)


def test_rouge_without_bootstrap_is_the_mean():
    expected = directly(lambda scores: sum(one.fmeasure for one in scores) / len(scores))
    assert rouge.rouge_mean(REFERENCES, SAID) == pytest.approx(expected, rel=1e-12)
    assert 0 < expected["rouge2"] < expected["rougeLsum"] < expected["rouge1"] < 100


def test_rouge_is_the_same_on_every_call_and_leaves_the_random_numbers_alone():
    before = np.random.get_state()[1].tolist()
    assert rouge.rouge(REFERENCES, SAID) == rouge.rouge(REFERENCES, SAID)
    assert np.random.get_state()[1].tolist() == before
    whole, parts = ["a b c d e f g h"] * 8, ["a b c d e f g h"[: 2 * n + 1] for n in range(8)]
    assert rouge.rouge(whole, parts, seed=1) != rouge.rouge(whole, parts, seed=2)


def test_sentences_are_told_apart_by_the_full_stop_between_spaces():
    # Line by line, the words of "b c" stand in one sentence and those of "a d" in the other.
    one = rouge.rouge_mean(["a b . c d"], ["c d . a b"], score_keys=["rougeLsum"])
    assert one == {"rougeLsum": pytest.approx(100.0)}
    other = rouge.rouge_mean(["a b, c d"], ["c d, a b"], score_keys=["rougeLsum"])
    assert other == {"rougeLsum": pytest.approx(50.0)}


def test_bleu_is_that_of_sacrebleu():
    expected = sacrebleu.corpus_bleu(
        SAID, [REFERENCES], smooth_method="exp", tokenize="intl", lowercase=False
    ).score
    assert bleu.bleu(REFERENCES, SAID) == {"bleu": pytest.approx(expected, rel=1e-12)}
    assert 0 < expected < 100
    assert bleu.bleu(REFERENCES, REFERENCES) == {"bleu": pytest.approx(100.0)}
    assert bleu.bleu(REFERENCES, [""] * 3) == {"bleu": 0.0}


def test_bleu_takes_the_best_of_several_references():
    several = [[one, "something else ."] for one in REFERENCES]
    others = [list(one) for one in zip(*several, strict=True)]
    expected = sacrebleu.corpus_bleu(SAID, others, smooth_method="exp", tokenize="intl").score
    assert bleu.bleu(several, SAID) == {"bleu": pytest.approx(expected, rel=1e-12)}


def test_the_data_set_of_tfds_is_read(tmp_path, monkeypatch, vocabulary):
    small_data_sets.build(tmp_path)
    source = seqio.TaskRegistry.get("xsum_v110_examples").source
    monkeypatch.setattr(source.tfds_dataset, "_data_dir", str(tmp_path))
    loaded = task_split(
        "xsum_v110_examples",
        split="validation",
        vocabulary=vocabulary,
        lengths={"inputs": 64, "targets": 16},
        modules=["prompt_tuning.tasks.summarization"],
        cache_dir=tmp_path / "cache",
    )
    pairs = [
        (f"summarize: {document}", summary)
        for document, summary in small_data_sets.XSUM["validation"]
    ]
    for example, pair in zip(loaded.examples, pairs, strict=True):
        for ids, text in zip(example, pair, strict=True):
            assert ids.tolist() == [*vocabulary.encode(text), 1]
    values = loaded.metrics([summary for _, summary in pairs])
    assert {key: values[key] for key in rouge.KEYS} == pytest.approx(
        dict.fromkeys(rouge.KEYS, 100.0)
    )
