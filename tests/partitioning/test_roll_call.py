"""Processes that come together, played by threads: who is missing, and who is different."""

import contextlib
import socket
import subprocess
import sys
import threading

import pytest

from prompt_tuning.errors import ConfigError, DeviceError
from prompt_tuning.partitioning.clusters import Seat
from prompt_tuning.partitioning.roll_call import Facts, answer


def free_port():
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return one.getsockname()[1]


def gather(indices, *, count, seconds=20.0, facts=None, counts=None):
    """Returns what each of some processes gets, a company or an error, in the order given."""
    address, got = f"localhost:{free_port()}", [None] * len(indices)

    def come(place, index):
        told = (counts or {}).get(index, count)
        seat = Seat(address=address, count=told, index=index)
        try:
            got[place] = answer(seat, (facts or {}).get(index, Facts()), seconds)
        except (ConfigError, DeviceError) as error:
            got[place] = error

    threads = [threading.Thread(target=come, args=pair) for pair in enumerate(indices)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one in got:
        for line in getattr(one, "lines", {}).values():
            line.close()
    return got


@pytest.mark.parametrize("count", [1, 2, 5])
def test_all_that_come_know_each_other(count):
    found = gather(range(count), count=count)
    assert len({one.names for one in found}) == 1
    assert [name.split(" on ")[0] for name in found[0].names] == [
        f"process {index}" for index in range(count)
    ]
    assert set(found[0].lines) == set(range(1, count))
    assert all(set(one.lines) == {0} for one in found[1:])


@pytest.mark.parametrize(
    ("present", "missing"),
    [([0, 2], "processes 1, 3 did not"), ([0, 1, 2], "process 3 did not"), ([1], "process 0 did")],
)
def test_those_who_do_not_come_are_named_to_all_that_did(present, missing):
    for error in gather(present, count=4, seconds=1.0):
        assert isinstance(error, DeviceError)
        assert missing in str(error)
        assert "--initialization_timeout" in str(error)


def test_settings_that_differ_are_named_to_all():
    same, other = {"A": "1", "B": "2", "C": "3"}, {"A": "1", "B": "5", "D": "3"}
    facts = {0: Facts(settings=same), 1: Facts(settings=same), 2: Facts(settings=other)}
    found = gather([0, 1, 2], count=3, facts=facts)
    assert len({str(error) for error in found}) == 1
    assert isinstance(found[0], ConfigError)
    assert "process 2 on" in str(found[0]) and "process 1 on" not in str(found[0])
    for difference in ("B 5; process 0: B 2", "no C; process 0: C 3", "D 3; process 0: no D"):
        assert difference in str(found[0])


def test_software_that_differs_is_named_before_settings():
    mine = Facts(software={"jax": "0.10.2"}, settings={"A": "1"})
    facts = {0: mine, 1: Facts(software={"jax": "0.10.1"}, settings={"A": "2"})}
    for error in gather([0, 1], count=2, facts=facts):
        assert isinstance(error, DeviceError)
        assert "jax 0.10.1; process 0: jax 0.10.2" in str(error)


def test_a_wrong_count_is_said_at_once():
    for error in gather([0, 1], count=3, counts={1: 2}):
        assert "was told of 2 processes" in str(error)


def test_an_index_given_twice_is_said_at_once():
    address = f"localhost:{free_port()}"
    code = (
        "from prompt_tuning.partitioning.clusters import Seat\n"
        "from prompt_tuning.partitioning.roll_call import Facts, answer\n"
        f"answer(Seat(address={address!r}, count=3, index=1), Facts(), 20.0)"
    )
    others = [
        subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    with pytest.raises(DeviceError, match=r"Two processes have the index 1: .*--process_index"):
        answer(Seat(address=address, count=3, index=0), Facts(), 20.0)
    assert all("Two processes have the index 1" in one.communicate()[1] for one in others)


def test_a_taken_port_is_named():
    with socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(DeviceError, match=f"cannot listen on port {port} .*free port"):
            answer(Seat(address=f"localhost:{port}", count=2, index=0), Facts(), 1.0)


def test_strangers_and_those_who_leave_again_are_not_counted():
    port = free_port()
    seat = Seat(address=f"localhost:{port}", count=2, index=0)
    found = []

    def listen():
        try:
            answer(seat, Facts(), 2.0)
        except DeviceError as error:
            found.append(str(error))

    # Half a greeting, and another protocol.
    thread = threading.Thread(target=listen)
    thread.start()
    for said in (b"GET / HTTP/1.1\r\n\r\n", b'{"index": 1, "count"', b"[]\n"):
        for _ in range(50):
            with contextlib.suppress(OSError):
                with socket.create_connection(("localhost", port)) as stranger:
                    stranger.sendall(said)
                break
            threading.Event().wait(0.02)
    thread.join()
    assert "process 1 did not" in found[0]
