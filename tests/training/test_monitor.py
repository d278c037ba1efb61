import math

import pytest

from prompt_tuning.errors import ConfigError
from prompt_tuning.training.monitor import Monitor


def history(*values):
    return {100 * (i + 1): value for i, value in enumerate(values)}


NAN = math.nan
BEST = [
    # mode, values, step of the best
    ("max", [], None),
    ("max", [1.0], 100),
    ("max", [1.0, 3.0, 2.0], 200),
    ("min", [3.0, 1.0, 2.0], 200),
    ("max", [1.0, 2.0, 2.0], 200),  # the first of equals
    ("max", [NAN, 1.0, NAN], 200),
    ("max", [NAN, NAN], None),
    ("min", [math.inf, 5.0], 200),
    ("max", [-math.inf], 100),
]


@pytest.mark.parametrize(("mode", "values", "step"), BEST)
def test_the_best_step_has_the_best_value(mode, values, step):
    assert Monitor(metric="m", mode=mode).best(history(*values)) == step


def test_the_order_of_a_history_is_that_of_its_steps():
    monitor = Monitor(metric="m", patience=2)
    assert monitor.best({300: 1.0, 100: 1.0}) == 100
    assert monitor.exhausted({300: 1.0, 100: 2.0})
    assert not monitor.exhausted({300: 2.0, 100: 1.0})


EXHAUSTED = [
    # mode, patience, atol, rtol, values, stops
    ("max", 3, 0.0, 0.0, [1.0, 1.0], False),  # too few
    ("max", 3, 0.0, 0.0, [1.0, 1.0, 1.0], True),
    ("max", 3, 0.0, 0.0, [3.0, 2.0, 1.0], True),
    ("max", 3, 0.0, 0.0, [1.0, 2.0, 2.0], False),
    ("max", 3, 0.0, 0.0, [1.0, 2.0, 2.0, 2.0], True),
    ("max", 2, 0.0, 0.0, [9.0, 1.0, 2.0], False),  # the one before counts, not the best
    ("min", 3, 0.0, 0.0, [1.0, 2.0, 3.0], True),
    ("min", 3, 0.0, 0.0, [3.0, 2.0, 2.0], False),
    ("max", 2, 0.5, 0.0, [1.0, 1.5], True),  # exactly the tolerance is no improvement
    ("max", 2, 0.5, 0.0, [1.0, 1.5625], False),
    ("min", 2, 0.5, 0.0, [2.0, 1.5], True),
    ("min", 2, 0.5, 0.0, [2.0, 1.4375], False),
    ("max", 2, 0.0, 0.5, [-2.0, -1.0], True),  # relative to the size of the previous value
    ("max", 2, 0.0, 0.5, [-2.0, -0.5], False),
    ("min", 2, 0.25, 0.125, [2.0, 1.5], True),
    ("min", 2, 0.25, 0.125, [2.0, 1.25], False),
    ("max", None, 0.0, 0.0, [3.0, 2.0, 1.0, 0.0], False),
    ("max", 3, 0.0, 0.0, [1.0, NAN, NAN], True),
    ("max", 2, 0.0, 0.0, [NAN, 1.0], False),
]


@pytest.mark.parametrize(("mode", "patience", "atol", "rtol", "values", "stops"), EXHAUSTED)
def test_a_run_stops_as_in_t5x(mode, patience, atol, rtol, values, stops):
    monitor = Monitor(metric="m", mode=mode, patience=patience, atol=atol, rtol=rtol)
    assert monitor.exhausted(history(*values)) == stops


NAMES = [
    "inference_eval/sst2/accuracy",
    "inference_eval/glue/mean/f1",
    "training_eval/sst2/accuracy",
    "training_eval/sst2/loss",
]


@pytest.mark.parametrize(
    ("metric", "name"),
    [
        ("sst2/accuracy", "inference_eval/sst2/accuracy"),
        ("inference_eval/sst2/accuracy", "inference_eval/sst2/accuracy"),
        ("training_eval/sst2/accuracy", "training_eval/sst2/accuracy"),
        ("sst2/loss", "training_eval/sst2/loss"),
        ("glue/mean/f1", "inference_eval/glue/mean/f1"),
    ],
)
def test_a_metric_is_named_with_or_without_its_folder(metric, name):
    assert Monitor(metric=metric).resolve(NAMES) == name


def test_an_unknown_metric_is_told_the_nearest():
    with pytest.raises(ConfigError) as error:
        Monitor(metric="sst2/acuracy").resolve(NAMES)
    assert str(error.value) == (
        "Monitor.metric is 'sst2/acuracy', but no evaluation measures that. Did you mean "
        "'sst2/accuracy'? Known are: inference_eval/glue/mean/f1, inference_eval/sst2/accuracy, "
        "training_eval/sst2/accuracy, training_eval/sst2/loss."
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "maxx"}, "Monitor.mode is 'maxx', expected 'max' or 'min'. Did you mean 'max'?"),
        ({"patience": 1}, "Monitor.patience is 1, expected 2 or more: it counts evaluations"),
        ({"atol": -0.5}, "Monitor.atol is -0.5, expected a number from 0."),
        ({"rtol": NAN}, "Monitor.rtol is nan, expected a number from 0."),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ConfigError) as error:
        Monitor(metric="m", **settings)
    assert str(error.value).startswith(message)
