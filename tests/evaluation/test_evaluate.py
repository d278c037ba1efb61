import jax
import numpy as np
import pytest

from prompt_tuning.data.batches import OnePassBatches, assemble, fixed
from prompt_tuning.errors import ConfigError
from prompt_tuning.evaluation import Evaluation, TeacherForced
from prompt_tuning.losses import Loss
from prompt_tuning.partitioning import placement
from prompt_tuning.training.metrics import finish
from prompt_tuning.training.step import make_eval_step
from tests.evaluation.questions import EXAMPLES as SHORT
from tests.evaluation.questions import example, found_by, questions
from tests.small_models import compiled

pytestmark = pytest.mark.usefixtures("programs")

# Batches of 8, 10 and 8 input tokens, the last one with two empty rows.
EXAMPLES = [*SHORT[:4], example(range(100, 109), [12, 13, 14]), *SHORT[5:]]


@pytest.fixture(scope="module")
def direct(model):
    """The loss over every example alone, without a position of padding."""
    total = None
    for one in EXAMPLES:
        batch = assemble([one], inputs=fixed(len(one.inputs)), targets=fixed(len(one.targets)))
        _, sums = Loss()(compiled(model, "__call__", batch), batch)
        sums = jax.device_get(sums)
        total = sums if total is None else jax.tree.map(np.add, total, sums)
    return total


def evaluate(states, *, where=None, **settings):
    """Returns what is found, with batches and states on the devices of a placement."""
    evaluation = TeacherForced(name="tiny", split=questions(EXAMPLES), batch_size=3, **settings)
    return found_by(evaluation, states, where)


@pytest.fixture(scope="module")
def whole(split_states):
    """What is found of all examples on one device."""
    return evaluate(split_states)


SAME_WHATEVER_THE_PADDING = ("loss", "z_loss", "correct", "predicted", "weights")


def test_the_teacher_forced_loss_is_the_one_over_the_unpadded_split(whole, direct):
    metrics, *others = whole
    assert others == [[], [], {}, None]
    expected = finish(direct | {"steps": 3})
    assert metrics.keys() == expected.keys()
    for name in ("loss", "z_loss", "loss_per_nonpadding_target_token", "accuracy"):
        assert metrics[name] == pytest.approx(expected[name], rel=1e-6), name
    assert metrics["effective_batch_size/encoder_input_tokens"] == pytest.approx(7 / 3)


def test_the_loss_is_the_same_with_fixed_lengths_as_with_buckets(split_states, direct):
    source = OnePassBatches(examples=EXAMPLES, batch_size=3, inputs=fixed(16), targets=fixed(8))
    graph, prompt, frozen = split_states
    step = make_eval_step(graph)
    sums = [jax.device_get(step(prompt, frozen, batch)) for batch in source.batches()]
    for name in SAME_WHATEVER_THE_PADDING:
        total = sum(float(one[name]) for one in sums)
        assert total == pytest.approx(float(direct[name]), rel=1e-6), name


def test_an_evaluation_stops_after_as_many_batches_as_asked_for(split_states):
    metrics = evaluate(split_states, steps=1).metrics
    assert metrics["effective_batch_size/encoder_input_tokens"] == 3
    first = [len(example.targets) for example in EXAMPLES[:3]]
    assert metrics["non_padding_fraction/decoder_target_tokens"] == sum(first) / (3 * 4)


@pytest.mark.parametrize("devices", [1, 8])
def test_the_teacher_forced_metrics_are_the_same_on_any_number_of_devices(
    split_states, whole, devices
):
    expected = whole.metrics
    found = evaluate(split_states, where=placement(devices)).metrics
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == (value if devices == 1 else pytest.approx(value, rel=1e-6)), name


def test_it_knows_its_data_and_where_its_metrics_go():
    split = questions()
    evaluation = TeacherForced(name="tiny", split=split, batch_size=3)
    assert isinstance(evaluation, Evaluation)
    assert evaluation.fingerprint == split.fingerprint
    assert (evaluation.folder, evaluation.tag_prefix) == ("training_eval", "")


@pytest.mark.parametrize("steps", [0, -1])
def test_an_evaluation_of_no_batches_is_refused(steps):
    with pytest.raises(ConfigError) as caught:
        TeacherForced(name="tiny", split=questions(), batch_size=3, steps=steps)
    assert str(caught.value) == (
        f"EVAL_STEPS is {steps}, expected 1 or more batches, or None for all."
    )
