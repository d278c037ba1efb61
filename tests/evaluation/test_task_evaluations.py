import dataclasses

import numpy as np
import pytest

from prompt_tuning.data.examples import Example
from prompt_tuning.data.file_task import Unjudged
from prompt_tuning.errors import ConfigError
from prompt_tuning.evaluation import Decode
from prompt_tuning.evaluation.task_evaluations import splits_of, task_evaluations
from prompt_tuning.losses import Loss
from prompt_tuning.vocabulary import ByteVocabulary
from tests.data.splits import split_of
from tests.evaluation.questions import Told

EXAMPLES = [Example(np.array([5, 1], np.int32), np.array([6, 1], np.int32))]
FIRST, SECOND = (split_of(name, EXAMPLES, split="validation") for name in ("first", "second"))


ANSWERING = Decode(vocabulary=ByteVocabulary())


def evaluations(split, **settings):
    return task_evaluations(split, answering=ANSWERING, batch_size=4, **settings)


def test_a_task_is_evaluated_teacher_forced_and_by_its_metrics():
    loss = Loss(z_loss=0.5)
    forced, judged = evaluations(FIRST, teacher_forced_steps=7, loss=loss, write_rows=5)
    assert (forced.name, forced.folder, forced.steps, forced.loss) == (
        "first",
        "training_eval",
        7,
        loss,
    )
    assert (judged.name, judged.folder, judged.split) == ("first", "inference_eval", FIRST)
    assert (judged.answering, judged.batch_size, forced.batch_size) == (ANSWERING, 4, 4)
    assert judged.write_rows == 5


def test_every_task_of_a_mixture_is_evaluated_on_its_own():
    found = evaluations([(FIRST, 1.0), (SECOND, 3.0)])
    assert [(one.name, one.folder) for one in found] == [
        ("first", "training_eval"),
        ("first", "inference_eval"),
        ("second", "training_eval"),
        ("second", "inference_eval"),
    ]


@pytest.mark.parametrize(
    ("judge", "teacher_forced", "folders"),
    [
        (FIRST.judge, False, ["inference_eval"]),
        (Unjudged(), True, ["training_eval"]),
        (Unjudged(), False, []),
        (Told(modes=frozenset({"score"})), True, ["training_eval", "inference_eval"]),
    ],
    ids=["no loss", "no metrics", "nothing", "scored"],
)
def test_only_what_is_asked_for_is_evaluated(judge, teacher_forced, folders):
    split = dataclasses.replace(FIRST, judge=judge)
    found = evaluations(split, teacher_forced=teacher_forced)
    assert [one.folder for one in found] == folders


def test_the_splits_of_a_mixture_are_found_in_their_order():
    assert splits_of(FIRST) == [FIRST]
    assert splits_of([(SECOND, 1.0), (FIRST, 2.0)]) == [SECOND, FIRST]
    assert splits_of(None) == []


def test_without_a_split_nothing_is_evaluated():
    assert evaluations(None) == ()


def test_a_stream_has_no_end_to_evaluate():
    class Stream:
        task = "endless"

    with pytest.raises(ConfigError, match=r"^There is no evaluation over a Stream: .* EVAL_SPLIT"):
        evaluations(Stream())
