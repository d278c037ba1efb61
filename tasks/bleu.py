"""How close translations are to others: BLEU, as T5 reports it."""

from collections.abc import Sequence


def bleu(
    targets: Sequence[str] | Sequence[Sequence[str]],
    predictions: Sequence[str],
    *,
    tokenizer: str = "intl",
) -> dict[str, float]:
    """Returns the BLEU of a corpus (0 to 100), by sacrebleu with exponential smoothing.

    Args:
        targets: one reference for each prediction, or a list of them, equally many for each.
        predictions: the translations.
        tokenizer: one of sacrebleu's.
    """
    import sacrebleu

    several = [[target] if isinstance(target, str) else list(target) for target in targets]
    # sacrebleu wants the first references of all examples, then the second ones ...
    streams = [list(stream) for stream in zip(*several, strict=True)]
    score = sacrebleu.corpus_bleu(
        list(predictions), streams, smooth_method="exp", tokenize=tokenizer
    )
    return {"bleu": score.score}
