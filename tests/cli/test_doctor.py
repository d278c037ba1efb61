"""`prompt-tuning doctor` as a whole; what each group looks at is tested in checkups/."""

import json
import os
import subprocess
import sys
import textwrap

import pytest

from prompt_tuning import __main__
from prompt_tuning.cli import doctor
from prompt_tuning.cli.checkups.finding import Finding
from prompt_tuning.cli.checkups.machine import Machine
from prompt_tuning.cli.doctor_arguments import DoctorArguments, parse_doctor
from prompt_tuning.errors import CheckpointError, ConfigError, DeviceError

# Ends whoever opens a socket, in every Python process.
NO_NETWORK = """
import os, sys
def audit(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        print("somebody asks the network:", event, arguments, file=sys.stderr, flush=True)
        os._exit(99)
sys.addaudithook(audit)
"""

OK = Finding(group="a", name="fine", state="ok", found="1.0")
WARNING = Finding(group="a", name="odd", state="warning", found="is odd", advice="mend it")
FAULTS = [
    Finding(group="b", name=kind.__name__, state="fault", found="is bad", kind=kind)
    for kind in (ConfigError, DeviceError, CheckpointError)
]


def run(*flags, path=(), **environment):
    """Runs the command in a fresh interpreter, without a network."""
    command = [sys.executable, "-m", "prompt_tuning", "doctor", *map(str, flags)]
    paths = os.pathsep.join([*map(str, path), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        command,
        env={**os.environ, "XLA_FLAGS": "", "PYTHONPATH": paths, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def no_network(tmp_path):
    folder = tmp_path / "no_network"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(NO_NETWORK)
    return folder


def test_the_audit_hook_of_these_tests_sees_the_network(no_network):
    code = "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9', timeout=1)"
    environment = {**os.environ, "PYTHONPATH": str(no_network)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert done.returncode == 99


def test_this_installation_is_in_order_and_no_network_is_touched(no_network, tmp_path):
    vocabulary = tmp_path / "small.model"
    vocabulary.touch()
    done = run(
        "--gin_file=models/ours_tiny.gin",
        "--gin_file=runs/pretrain.gin",
        f"--gin.MODEL_DIR='{tmp_path}/run'",
        f"--gin.CACHE_DIR='{tmp_path}/cache'",
        f"--gin.CORPUS='{vocabulary}'",
        f"--gin.VOCABULARY_FILE='{vocabulary}'",
        "--gin.TRAIN_STEPS=1",
        path=[no_network],
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    lines = done.stdout.splitlines()
    groups = [line for line in lines[:-2] if not line.startswith(" ")]
    assert groups == [
        "versions",
        "conflicts",
        "environment",
        "locks",
        "devices",
        "configuration",
        "folders",
    ]
    assert len(lines) < 60, "more than a page"
    # A path is not broken, however long: that of a folder of this test is.
    assert [one for one in lines if len(one) > doctor.WIDEST and str(tmp_path) not in one] == []
    assert not (tmp_path / "run").exists()


def test_a_fault_of_the_configuration_stops_no_other_check(tmp_path):
    done = run(
        "--json", "--gin_file=runs/prompt_finetune.gin", "--gin.INITIAL_CHECKPOINT_PATH='/x'"
    )
    report = json.loads(done.stdout)
    assert done.returncode == report["exit_code"] == 4
    states = {(row["group"], row["name"]): row["state"] for row in report["rows"]}
    assert states["configuration", "gin"] == "fault"
    assert states["folders", "INITIAL_CHECKPOINT_PATH"] == "fault"
    assert states["devices", "mesh"] == "ok"
    assert {len(row) for row in report["rows"]} == {6}


def test_a_library_that_is_missing_stops_no_other_check(tmp_path):
    broken = tmp_path / "gin"
    broken.mkdir()
    (broken / "__init__.py").write_text("")
    done = run("--json", path=[tmp_path])
    states = {(row["group"], row["name"]): row for row in json.loads(done.stdout)["rows"]}
    assert done.returncode == 2
    assert states["configuration", "gin"]["state"] == "fault"
    assert "which is not gin-config" in states["conflicts", "gin"]["found"]
    assert states["devices", "mesh"]["state"] == "ok"


def test_kill_is_only_asked_for_with_its_flag():
    assert not parse_doctor("doctor", "", []).kill
    assert parse_doctor("doctor", "", ["--kill"]).kill
    assert not parse_doctor("doctor", "", ["--kill=false"]).kill


@pytest.mark.parametrize("seconds", ["0", "-1", "soon", "nan"])
def test_a_timeout_is_a_number_of_seconds(seconds):
    with pytest.raises(ConfigError, match="expected seconds"):
        parse_doctor("doctor", "", [f"--timeout={seconds}"])


def test_a_misspelt_flag_names_the_nearest(capsys):
    assert __main__.main(["doctor", "--jsn"]) == 2
    assert "There is no flag --jsn" in (said := capsys.readouterr().err)
    assert "'--json'" in said


def test_the_help_shows_the_flags_of_a_run_and_its_own(capsys):
    assert __main__.main(["doctor", "--help"]) == 0
    said = capsys.readouterr().out
    assert all(flag in said for flag in ("--gin_file", "--kill", "--json", "--timeout"))


@pytest.mark.parametrize(
    ("findings", "code"),
    [([], 0), ([OK], 0), ([OK, WARNING], 0), (FAULTS[:1], 2), (FAULTS, 5), ([FAULTS[2], OK], 4)],
)
def test_the_exit_code_is_that_of_the_worst_fault(findings, code):
    assert doctor.worst(findings) == code


def test_the_report_is_aligned():
    long = Finding(
        group="b", name="long", state="fault", found="first " + "word " * 12, advice="do\n  a\n  b"
    )
    text = "\n".join(doctor.report([OK, WARNING, long], 60))
    assert text == textwrap.dedent("""\
        a
          ok       fine  1.0
          warning  odd   is odd
                         -> mend it
        b
          fault    long  first word word word word word word word
                         word word word word word
                         -> do
                              a
                              b

        1 fault and 1 warning.""")


def test_a_report_without_faults_says_so():
    assert list(doctor.report([OK], 60))[-1] == "Everything is in order."


def test_what_python_imports_from_is_what_is_looked_at(tmp_path):
    findings = doctor.examined(DoctorArguments(), Machine(), {}, [str(tmp_path)])
    assert next(one for one in findings if one.name == "prompt-tuning").state == "fault"
