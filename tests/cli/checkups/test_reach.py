import http.server
import socket
import threading
import time

import pytest

from prompt_tuning.cli.arguments import parse_run
from prompt_tuning.cli.checkups import reach
from prompt_tuning.cli.checkups.configuration import Settings
from prompt_tuning.cli.checkups.distributions import Distributions
from tests.cli.checkups.installations import install


class Store(http.server.BaseHTTPRequestHandler):
    """Answers with the status that the bucket is named after."""

    def do_HEAD(self):
        self.server.asked.append(self.path)
        self.send_response(int(self.path.split("/")[1].removeprefix("status")))
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def store():
    """The address of a store on this machine, and what it was asked for."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Store) as server:
        server.asked = []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        server.url = f"http://127.0.0.1:{server.server_port}"
        yield server
        server.shutdown()


@pytest.fixture
def home(tmp_path):
    return {"HOME": str(tmp_path)}


def look(values, environment, *flags, folders=()):
    run = parse_run("doctor", "", flags)
    installed = Distributions([str(folder) for folder in folders])
    found = reach.check(Settings(values), run, installed, environment)
    return {one.name: one for one in found}


def test_without_a_remote_path_no_network_is_touched(monkeypatch, home, tmp_path):
    def refuse(*_):
        raise AssertionError("somebody asks the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    local = {"MODEL_DIR": "/tmp/run", "BATCH_SIZE": 128, "PROMPT_FILE": ["a.npy"]}
    assert look(local, home, f"--tfds_data_dir={tmp_path}") == {}


def test_a_bucket_that_answers_is_in_order_and_asked_once(store, home):
    home["STORAGE_EMULATOR_HOST"] = store.url
    found = look({"INITIAL_CHECKPOINT_PATH": "gs://status200/t5/checkpoint_1"}, home)
    assert found["INITIAL_CHECKPOINT_PATH"].state == "ok"
    # A folder is no object, so the bucket is asked for.
    assert store.asked == ["/status200"]


def test_a_file_is_asked_for_by_its_name(store, home):
    home["STORAGE_EMULATOR_HOST"] = store.url
    found = look({"VOCABULARY_FILE": "gs://status404/vocabs/sentencepiece.model"}, home)
    assert store.asked == ["/status404/vocabs/sentencepiece.model"]
    assert found["VOCABULARY_FILE"].exit_code == 2
    assert "is not there" in found["VOCABULARY_FILE"].found


def test_a_private_bucket_is_a_warning_without_credentials(store, home, tmp_path):
    home["STORAGE_EMULATOR_HOST"] = store.url
    private = {"INITIAL_CHECKPOINT_PATH": "gs://status403/t5"}
    (warning,) = look(private, home).values()
    assert warning.state == "warning"
    assert "gcloud auth application-default login" in warning.advice
    (tmp_path / "key.json").touch()
    home["GOOGLE_APPLICATION_CREDENTIALS"] = str(tmp_path / "key.json")
    assert look(private, home)["INITIAL_CHECKPOINT_PATH"].state == "ok"


@pytest.mark.parametrize(
    ("name", "code"), [("MODEL_DIR", 4), ("CHECKPOINT_PATH", 4), ("TSV_DIR", 3), ("CLASS", 2)]
)
def test_a_store_that_cannot_be_reached_is_a_fault_of_its_class(name, code, home):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # nobody listens there
        home["STORAGE_EMULATOR_HOST"] = f"http://127.0.0.1:{free.getsockname()[1]}"
        fault = look({name: "gs://bucket/x"}, home)[name]
    assert fault.exit_code == code
    assert "gs://bucket/x cannot be reached: " in fault.found
    assert f"set {name} to a copy on this machine" in fault.advice


def test_a_store_that_never_answers_is_given_up_soon(home, monkeypatch):
    monkeypatch.setattr(reach, "PATIENCE", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        home["STORAGE_EMULATOR_HOST"] = f"http://127.0.0.1:{silent.getsockname()[1]}"
        start = time.monotonic()
        fault = look({"CHECKPOINT_PATH": "gs://bucket/x"}, home)["CHECKPOINT_PATH"]
        assert time.monotonic() - start < 10
    assert fault.exit_code == 4
    assert "cannot be reached" in fault.found


@pytest.mark.parametrize(
    ("path", "variable", "asked"),
    [
        ("s3://status200/run", "AWS_ENDPOINT_URL", "/status200"),
        ("gs://status200/run", "STORAGE_EMULATOR_HOST", "/status200"),
    ],
)
def test_every_store_has_its_address(store, home, path, variable, asked):
    found = look({"MODEL": path}, {**home, variable: store.url})
    assert found["MODEL"].state == "ok"
    assert store.asked == [asked]


def test_a_hub_that_is_switched_off_is_a_warning(store, home):
    hub = {"HF_ENDPOINT": f"{store.url}/status200", "HF_HUB_OFFLINE": "1"}
    assert look({"MODEL": "hf://google/t5"}, {**home, **hub})["MODEL"].state == "warning"
    hub["HF_HUB_OFFLINE"] = "0"
    assert look({"MODEL": "hf://google/t5"}, {**home, **hub})["MODEL"].state == "ok"


def test_flags_name_stores_as_well(store, home):
    home["STORAGE_EMULATOR_HOST"] = store.url
    found = look({}, home, "--tfds_data_dir=gs://status200/tfds", "--gin_file=gs://status200/a.gin")
    assert set(found) == {"--tfds_data_dir", "--gin_file"}


def test_a_run_in_a_bucket_needs_gcsfs(store, home, tmp_path):
    home["STORAGE_EMULATOR_HOST"] = store.url
    run = {"MODEL_DIR": "gs://status200/run"}
    assert look(run, home)["gcsfs"].state == "warning"
    install(tmp_path / "site", "gcsfs", "2026.10")
    assert look(run, home, folders=[tmp_path / "site"])["gcsfs"].state == "ok"
    assert "gcsfs" not in look({"CHECKPOINT_PATH": "gs://status200/run"}, home)
