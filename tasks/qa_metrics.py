"""What answers to questions are worth: exact match and F1 of words, the best over all right ones.

As in the evaluation scripts of SQuAD 1.1 and of TriviaQA (t5/evaluation/qa_utils.py).
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from prompt_tuning.errors import DataError

_PUNCTUATION = dict.fromkeys(map(ord, string.punctuation))
_TRIVIA_PUNCTUATION = dict.fromkeys(map(ord, string.punctuation + "‘’´`_"), " ")
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalize_squad(answer: str) -> str:
    """Returns an answer in lower case, without punctuation, articles and superfluous spaces."""
    return _bare(answer.lower().translate(_PUNCTUATION))


def normalize_trivia_qa(answer: str) -> str:
    """Returns an answer as `normalize_squad` does, with a space for each punctuation mark."""
    return _bare(answer.lower().translate(_TRIVIA_PUNCTUATION))


def squad(targets: Sequence[Sequence[str]], predictions: Sequence[str]) -> dict[str, float]:
    """Returns `em` and `f1` in percent; a target is the list of all right answers."""
    return _best(targets, predictions, normalize_squad)


def trivia_qa(targets: Sequence[Sequence[str]], predictions: Sequence[str]) -> dict[str, float]:
    """Returns `em` and `f1` in percent; a target is the list of all right answers."""
    return _best(targets, predictions, normalize_trivia_qa)


def span_squad(
    targets: Sequence[Mapping[str, Any]], predictions: Sequence[str]
) -> dict[str, float]:
    """Returns `em` and `f1` in percent of the words that `start: 3 end: 6` points to.

    A target has the `context` and the right `answers`. Words are counted as `qa_text.squad_span`
    does; what is no pair of numbers is the empty answer.
    """
    said = [_pointed(t["context"], p) for t, p in zip(targets, predictions, strict=True)]
    return squad([target["answers"] for target in targets], said)


def all_answers(text: str, *, example: Mapping[str, Any] | None = None, is_target: bool = False):
    """Returns all right answers of the example for a target, and a prediction as it is."""
    if not is_target:
        return text
    assert example is not None
    return [_text(answer) for answer in example["answers"]]


def only_answer(text: str, *, is_target: bool = False, **_: Any) -> str | list[str]:
    """Returns a target as the list of the one answer that counts, and a prediction as it is."""
    return [text] if is_target else text


def answers_in_context(
    text: str, *, example: Mapping[str, Any] | None = None, is_target: bool = False
):
    """Returns the right answers and the context for a target, and a prediction as it is."""
    if not is_target:
        return text
    assert example is not None
    return {
        "answers": [_text(answer) for answer in example["answers"]],
        "context": _text(example["context"]),
    }


def _best(
    targets: Sequence[Sequence[str]], predictions: Sequence[str], normalize: Callable[[str], str]
) -> dict[str, float]:
    exact, overlap = [], []
    for index, (answers, text) in enumerate(zip(targets, predictions, strict=True)):
        if not len(answers):
            raise DataError(
                f"The question {index} has no right answer, so no prediction can be judged. Leave "
                "such questions out of the split, or give an empty text as the answer."
            )
        said = normalize(text)
        golds = [normalize(answer) for answer in answers]
        exact.append(said in golds)
        overlap.append(max(_word_f1(gold, said) for gold in golds))
    return {"em": 100.0 * float(np.mean(exact)), "f1": 100.0 * float(np.mean(overlap))}


def _word_f1(gold: str, said: str) -> float:
    wanted, given = gold.split(), said.split()
    same = (Counter(wanted) & Counter(given)).total()
    if not same:
        return 0.0
    precision, recall = same / len(given), same / len(wanted)
    return 2 * precision * recall / (precision + recall)


def _bare(text: str) -> str:
    return " ".join(_ARTICLES.sub(" ", text).split())


def _pointed(context: str, said: str) -> str:
    # [^\W] of both is ASCII, as in the regular expressions of TensorFlow that made the targets.
    words = re.sub(r"\W", " ", context, flags=re.ASCII).split(" ")
    pieces = re.sub(r"\W", " ", said, flags=re.ASCII).split()
    try:
        first, last = int(pieces[1]), int(pieces[3])
    except (IndexError, ValueError):  # What a model says in its first steps is anything.
        return ""
    return " ".join(words[first : last + 1])


def _text(value: str | bytes) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else value
