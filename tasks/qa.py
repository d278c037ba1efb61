"""Questions about a text: SQuAD, MRQA's sets in and out of its domain, and zero-shot transfer.

    {"", "mt5_", "byt5_"} {squad_v010_allanswers | mrqa_X_v100} _examples
    {"", "mt5_", "byt5_"} squad_to_{X | mrqa} _examples     trained on SQuAD, evaluated on X

(prompt_tuning/data/qa.py), and T5's plain forms of SQuAD (t5/data/tasks.py).
"""

import functools

import seqio

from . import postprocessors, qa_metrics, qa_text, samples
from .registration import MODELS, TextTask, register, register_mixture

OUT_OF_DOMAIN = ("bio_asq", "drop", "duo_rc", "race", "relation_extraction", "textbook_qa")
IN_DOMAIN = ("news_qa", "trivia_qa", "search_qa", "hotpot_qa", "natural_questions")

SQUAD = "squad/v1.1:3.0.0"
_TRAINED = "squad_v010_allanswers_examples"
KEPT = (postprocessors.TARGET_TEXT, "context", "question", "answers")


def shown(answer: samples.Answer) -> str:
    """Returns the lines of a context, a question, its right answers and the one given."""
    known = sorted({_text(one) for one in answer["answers"]})
    return "\n".join(
        [
            f"context: {_text(answer['context'])}",
            f"question: {_text(answer['question'])}",
            f"answers: {'; '.join(known)}",
            f"prediction: {_text(answer[postprocessors.PREDICTION_TEXT])}",
        ]
    )


def _text(value: str | bytes) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else value


_squad = functools.partial(
    TextTask,
    source=SQUAD,
    splits=("train", "validation"),
    text=(seqio.map_over_dataset(qa_text.squad),),
    postprocess=qa_metrics.all_answers,
    metrics=(qa_metrics.squad,),
    models=("",),
    forms=("",),
    examples=(False,),
)
_with_examples = functools.partial(_squad, models=MODELS, examples=(True,), kept=KEPT)
_mrqa = functools.partial(_with_examples, text=(seqio.map_over_dataset(qa_text.mrqa),))

TASKS = (
    _with_examples(
        name="squad_v010_allanswers",
        # An answer never equals the list of all right ones, so all would count as wrong.
        samples=samples.Samples(title="squad", wrong=False, show=shown),
    ),
    *(
        _mrqa(
            name=f"mrqa_{name}_v100",
            source=f"mrqa/{name}:1.0.0",
            splits={"validation": "test"} if name in OUT_OF_DOMAIN else ("train", "validation"),
            samples=samples.Samples(title=name, wrong=False, show=shown),
        )
        for name in (*OUT_OF_DOMAIN, *IN_DOMAIN)
    ),
    _squad(name="squad_v010_allanswers"),
    _squad(
        name="squad_v010_context_free",
        text=(seqio.map_over_dataset(functools.partial(qa_text.squad, with_context=False)),),
    ),
    _squad(
        name="squad_v010_allanswers_span",
        text=(qa_text.squad_span,),
        postprocess=qa_metrics.answers_in_context,
        metrics=(qa_metrics.span_squad,),
    ),
    # Judged by the first answer alone; `squad_v010_allanswers` took its place.
    _squad(name="squad_v010", postprocess=qa_metrics.only_answer),
)

NAMES = register(*TASKS)
MIXTURES = [
    register_mixture(
        f"{model}squad_to_{name}_examples",
        [f"{model}{_TRAINED}", *(f"{model}mrqa_{one}_v100_examples" for one in evaluated)],
    )
    for model in MODELS
    for name, evaluated in [*((one, [one]) for one in OUT_OF_DOMAIN), ("mrqa", OUT_OF_DOMAIN)]
]
