import logging
import re
import threading
import time

import pytest

from prompt_tuning.errors import ConfigError
from prompt_tuning.training.watchdog import Watchdog

QUICK = 0.002  # seconds of a step that is as long as the others
LONG = 1.0
AT_LEAST = 0.3


@pytest.fixture(autouse=True)
def heard(monkeypatch):
    """Lets pytest hear the log also after the command line has claimed it in this process."""
    monkeypatch.setattr(logging.getLogger("prompt_tuning"), "propagate", True)


def stand_still(seconds):
    """Is where the program is found; its name is looked for."""
    time.sleep(seconds)


def walk(dog, steps=20, first=1):
    for step in range(first, first + steps):
        dog.begin(step)
        time.sleep(QUICK)


@pytest.fixture
def dog(tmp_path):
    with Watchdog(tmp_path / "run", factor=10, at_least=AT_LEAST) as dog:
        yield dog


def test_a_step_far_longer_than_the_others_dumps_all_stacks(dog, capfd, caplog):
    other = threading.Thread(target=stand_still, args=(LONG,), name="bystander")
    walk(dog)
    other.start()
    stand_still(LONG)
    walk(dog, 1, first=21)
    other.join()
    stacks = dog.path.read_text()
    assert re.search(r"^20\d\d-\d\d-\d\d \d\d:\d\d:\d\d step 20$", stacks, re.MULTILINE)
    assert stacks.count("in stand_still") == 2
    assert "is bystander" in stacks and "is MainThread" in stacks
    assert "in stand_still" in capfd.readouterr().err
    said, ended = (record.getMessage() for record in caplog.records)
    assert re.match(r"Step 20 has been running for 0\.\d+ s \(usually 0\.\d+ s\)", said)
    assert str(dog.path) in said
    assert ended.startswith("Step 20 ended after 1")


def test_every_long_step_is_reported_once(dog, caplog):
    walk(dog)
    stand_still(4 * AT_LEAST)
    walk(dog, first=21)
    stand_still(4 * AT_LEAST)
    walk(dog, 1, first=41)
    assert [r.getMessage()[:10] for r in caplog.records if "stuck" in r.getMessage()] == [
        "Step 20 ha",
        "Step 40 ha",
    ]
    assert len(re.findall(r" step \d+$", dog.path.read_text(), re.MULTILINE)) == 2


def test_the_file_is_named_after_host_and_process(tmp_path, monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: "somewhere")
    monkeypatch.setattr("os.getpid", lambda: 123)
    assert Watchdog(tmp_path).path == tmp_path / "stacks-somewhere-123.txt"


def test_what_takes_its_time_is_paused(dog, caplog):
    walk(dog)
    with dog.paused():
        stand_still(LONG)
    walk(dog, 1, first=21)
    assert not dog.path.exists()
    assert dog.limit() == AT_LEAST  # nor is it among the times of the steps
    assert caplog.records == []


def test_the_time_of_a_step_is_what_it_is_not_paused(tmp_path, monkeypatch):
    dog, now = Watchdog(tmp_path, factor=10, at_least=60), 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    for step in range(20):
        dog.begin(step)
        now += 3
        with dog.paused():
            now += 100
        now += 4
    assert dog.limit() == 10 * 7


def test_a_paused_step_is_watched_again_afterwards(dog):
    walk(dog)
    with dog.paused():
        stand_still(0.01)
    stand_still(LONG)
    assert " step 20\n" in dog.path.read_text()


def test_the_first_steps_have_more_time(dog):
    walk(dog, 9)
    assert dog.limit() == 10 * AT_LEAST
    walk(dog, 3, first=10)
    assert dog.limit() == AT_LEAST


def test_the_limit_follows_the_median_of_the_last_steps(tmp_path, monkeypatch):
    dog, now = Watchdog(tmp_path, factor=10, at_least=60), 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    limits = []
    for step, seconds in enumerate([1] * 100 + [20] * 52):
        dog.begin(step)
        limits.append(dog.limit())
        now += seconds
    # The first ten; then 10 medians of 1 s are below the 60 s; then half of 100 steps took 20 s.
    assert limits[:10] == [600] * 10
    assert limits[10:150] == [60] * 140
    assert limits[150:] == [105, 200]


def test_what_it_cannot_write_is_said_and_the_watch_goes_on(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    with Watchdog(tmp_path / "file" / "run", at_least=AT_LEAST) as dog:
        walk(dog)
        stand_still(LONG)
        walk(dog, first=21)
        stand_still(LONG)
    said = [record.getMessage() for record in caplog.records if "stuck" in record.getMessage()]
    assert len(said) == 2
    assert "could not be written: [Errno 20] Not a directory" in said[0]


def test_its_thread_ends_with_it(tmp_path):
    with Watchdog(tmp_path, at_least=60):
        assert "watchdog" in [thread.name for thread in threading.enumerate()]
    assert "watchdog" not in [thread.name for thread in threading.enumerate()]


@pytest.mark.parametrize("settings", [{"factor": 0}, {"at_least": 0}, {"factor": -1.0}])
def test_settings_that_find_fault_with_every_step_are_refused(tmp_path, settings):
    with pytest.raises(ConfigError, match="find fault with every step"):
        Watchdog(tmp_path, **settings)
