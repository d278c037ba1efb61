import numpy as np
import pytest

from prompt_tuning.data.examples import Example
from prompt_tuning.errors import ConfigError
from prompt_tuning.evaluation.task_evaluations import task_evaluations
from prompt_tuning.losses import Loss
from prompt_tuning.vocabulary import ByteVocabulary
from tests.data.splits import split_of

EXAMPLES = [Example(np.array([5, 1], np.int32), np.array([6, 1], np.int32))]
FIRST, SECOND = (split_of(name, EXAMPLES, split="validation") for name in ("first", "second"))


def evaluations(split, **settings):
    return task_evaluations(split, vocabulary=ByteVocabulary(), batch_size=4, **settings)


def test_a_task_is_evaluated_teacher_forced_and_decoded():
    loss = Loss(z_loss=0.5)
    forced, decoded = evaluations(FIRST, teacher_forced_steps=7, loss=loss)
    assert (forced.name, forced.folder, forced.steps, forced.loss) == (
        "first",
        "training_eval",
        7,
        loss,
    )
    assert (decoded.name, decoded.folder, decoded.split) == ("first", "inference_eval", FIRST)


def test_every_task_of_a_mixture_is_evaluated_on_its_own():
    found = evaluations([(FIRST, 1.0), (SECOND, 3.0)])
    assert [(one.name, one.folder) for one in found] == [
        ("first", "training_eval"),
        ("first", "inference_eval"),
        ("second", "training_eval"),
        ("second", "inference_eval"),
    ]


def test_without_a_split_nothing_is_evaluated():
    assert evaluations(None) == ()


def test_a_stream_has_no_end_to_evaluate():
    class Stream:
        task = "endless"

    with pytest.raises(ConfigError, match=r"^There is no evaluation over a Stream: .* EVAL_SPLIT"):
        evaluations(Stream())
