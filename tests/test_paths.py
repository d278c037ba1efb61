import socket
import threading
import time

import pytest

from prompt_tuning import paths


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server(monkeypatch):
    """Stands for Google: a port of this machine that listens until it is closed."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        monkeypatch.setattr(paths, "_GOOGLE", listening.getsockname())
        yield listening


def test_what_lies_in_an_object_store_is_not_local():
    assert paths.is_local("/tmp/run")
    assert not paths.is_local("gs://bucket/run")


def test_a_store_that_answers_is_reachable(server):
    assert paths.unreachable("gs://bucket/file") is None


def test_a_store_that_refuses_is_not(server):
    server.close()
    assert paths.unreachable("gs://bucket/file").startswith("127.0.0.1 cannot be reached: ")


def test_a_lookup_without_an_end_is_given_up(server, monkeypatch):
    awake = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: awake.wait(60) and [])
    began = time.monotonic()
    answer = paths.unreachable("gs://bucket/file", seconds=0.1)
    assert answer == "127.0.0.1 did not answer within 0.1 seconds"
    assert time.monotonic() - began < 30
    awake.set()


@pytest.mark.parametrize("path", ["/tmp/file", "s3://bucket/file", "memory://file"])
def test_only_google_is_asked_for(server, path):
    server.close()
    assert paths.unreachable(path) is None


@pytest.mark.parametrize("name", ["https_proxy", "STORAGE_EMULATOR_HOST"])
def test_who_answers_in_place_of_google_is_left_to_find_out(server, monkeypatch, name):
    server.close()
    monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert paths.unreachable("gs://bucket/file") is None
