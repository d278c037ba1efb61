import pytest

from prompt_tuning.training.clock import Clock, duration


class Time:
    """Seconds that pass when they are told to."""

    def __init__(self):
        self.seconds = 100.0

    def __call__(self):
        return self.seconds


def test_every_second_belongs_to_what_was_begun_last():
    time = Time()
    clock = Clock(time)
    time.seconds += 64.0  # of nothing
    with clock.spent("train"):
        time.seconds += 1.0
        with clock.spent("evaluate"):
            time.seconds += 2.0
            with clock.spent("save"):
                time.seconds += 4.0
        time.seconds += 8.0
        assert clock.seconds() == {"train": 9.0, "evaluate": 2.0, "save": 4.0}
        time.seconds += 16.0
    assert clock.seconds() == {"train": 25.0, "evaluate": 2.0, "save": 4.0}


def test_time_is_counted_when_the_block_fails():
    time = Time()
    clock = Clock(time)
    with clock.spent("train"):
        with pytest.raises(OSError, match="full"), clock.spent("save"):
            time.seconds += 1.0
            raise OSError("full")
        time.seconds += 2.0
    assert clock.seconds() == {"train": 2.0, "save": 1.0}


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.0, "0 s"),
        (0.2412, "0.24 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (200, "3 min 20 s"),
        (3599.7, "1 h 0 min"),
        (12_000, "3 h 20 min"),
        (86_380, "1 d 0 h"),
        (200_000, "2 d 8 h"),
    ],
)
def test_a_time_is_said_in_its_two_largest_units(seconds, said):
    assert duration(seconds) == said
