"""How much of a summary is in another: ROUGE-1, ROUGE-2 and ROUGE-Lsum, F-measures in percent.

rouge-score is imported when a metric is computed: its tokeniser's library takes seconds to load.
"""

from collections.abc import Sequence

import numpy as np

KEYS = ("rouge1", "rouge2", "rougeLsum")
_RESAMPLES = 1000


def rouge(
    targets: Sequence[str],
    predictions: Sequence[str],
    *,
    score_keys: Sequence[str] = KEYS,
    seed: int = 0,
) -> dict[str, float]:
    """Returns the median of the means of 1000 bootstrap samples of the summaries.

    The number that T5's results were reported with. The original draws anew on every call; here
    the same summaries and seed give the same numbers, those of rouge-score's
    `BootstrapAggregator` after `np.random.seed(seed)`.
    """
    random = np.random.RandomState(seed)
    values = {}
    for key, scores in _f_measures(targets, predictions, score_keys).items():
        draws = (random.randint(len(scores), size=len(scores)) for _ in range(_RESAMPLES))
        values[key] = float(np.median([scores[draw].mean() for draw in draws]))
    return values


def rouge_mean(
    targets: Sequence[str], predictions: Sequence[str], *, score_keys: Sequence[str] = KEYS
) -> dict[str, float]:
    """Returns the mean over the summaries."""
    scores = _f_measures(targets, predictions, score_keys)
    return {key: float(one.mean()) for key, one in scores.items()}


def _f_measures(
    targets: Sequence[str], predictions: Sequence[str], keys: Sequence[str]
) -> dict[str, np.ndarray]:
    from rouge_score import rouge_scorer

    scorer = rouge_scorer.RougeScorer(list(keys))
    pairs = zip(targets, predictions, strict=True)
    scores = [scorer.score(_by_sentence(target), _by_sentence(said)) for target, said in pairs]
    return {key: 100 * np.array([score[key].fmeasure for score in scores]) for key in keys}


def _by_sentence(summary: str) -> str:
    # rougeLsum compares line with line.
    return summary.replace(" . ", " .\n")
