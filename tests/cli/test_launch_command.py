"""`prompt-tuning launch`: what is shown, written and run."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from prompt_tuning.__main__ import main
from prompt_tuning.cli.launch_command_arguments import parse_launch
from prompt_tuning.cli.launch_command_hosts import run_on_hosts
from prompt_tuning.cli.launch_command_scripts import script, ssh_commands

ROOT = pathlib.Path(__file__).parent.parent.parent
RUN = ["train", "--gin_file=models/ours_tiny.gin", "--gin_file=runs/pretrain.gin"]
NASTY = [
    "--gin.MODEL_DIR='/tmp/x'",
    "--gin.A=\"two  spaces and 'quotes'\"",
    "--gin.B='$HOME `date` $(date) !! \\\\ * ? ~ # ; & | < > ( ) { }'",
    "--gin.C={'a': [1, 2], 'b': 'é\"'}",
    "--gin.D='%s\\n'",
    "--gin.E=-1",
]
# Stands for ssh, gcloud, srun and prompt-tuning: notes its arguments.
RECORDER = """#!{python}
import json, os, pathlib, subprocess, sys
name = pathlib.Path(sys.argv[0]).name
if name in ("prompt-tuning", "sbatch"):
    said = sys.stdin.read() if name == "sbatch" else ""
    with open({log!r}, "a") as file:
        file.write(json.dumps([os.getcwd(), sys.argv[1:], said]) + chr(10))
    raise SystemExit(int(os.environ.get("CODE", "0")))
words = sys.argv[1:]
if name == "gcloud":
    words = [words[-1].removeprefix("--command=")]
# As sshd: one string, for a shell of the user's.
raise SystemExit(subprocess.call(words[1:] if name == "srun" else ["bash", "-c", words[-1]]))
"""


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """Puts the recorder on the path; returns what was recorded, sorted."""
    log, folder = tmp_path / "log", tmp_path / "bin"
    folder.mkdir()
    for name in ("ssh", "gcloud", "srun", "sbatch", "prompt-tuning"):
        path = folder / name
        path.write_text(RECORDER.format(python=sys.executable, log=str(log)))
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return lambda: sorted(map(json.loads, log.read_text().splitlines()))


def launch(*flags, command=(*RUN, *NASTY)):
    return parse_launch("prompt-tuning launch", "", [*flags, "--", *command])


PLACES = {
    "ssh": ["--on=ssh", "--hosts=a,b@c"],
    "tpu-vm": ["--on=tpu-vm", "--name=t", "--zone=z"],
    "slurm": ["--on=slurm", "--nodes=2"],
}


@pytest.mark.parametrize("place", PLACES)
def test_every_word_passes_all_shells_as_it_was_typed(place, recorded, tmp_path):
    here = tmp_path / "two words"
    here.mkdir()
    text = script(launch(*PLACES[place], f"--directory={here}", "--setup=set -e"))
    subprocess.run(["bash", "-c", text], check=True)
    found = recorded()
    for index, (folder, words, _) in enumerate(found):
        assert folder == str(here)
        assert words[: -4 if place == "ssh" else -1] == [*RUN, *NASTY]
        if place == "ssh":
            assert words[-4:] == [
                "--multiprocess_gpu",
                "--coordinator_address=a:8476",
                "--process_count=2",
                f"--process_index={index}",
            ]
    assert len(found) == (2 if place == "ssh" else 1)


def test_a_batch_script_asks_for_what_was_said_and_for_time_to_save():
    flags = ["--on=slurm", "--nodes=3", "--gpus_per_node=8", "--sbatch=--partition=gpu"]
    lines = script(launch(*flags, "--restart_preempted")).splitlines()
    assert lines[0] == "#!/bin/bash"
    asked = {line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")}
    assert asked >= {
        "--nodes=3",
        "--ntasks-per-node=8",
        "--gpus-per-node=8",
        "--signal=TERM@120",
        "--requeue",
        "--partition=gpu",
    }
    assert any(line.startswith("srun --kill-on-bad-exit=1 prompt-tuning train") for line in lines)
    assert 'if [ "$code" -eq 75 ]; then scontrol requeue "$SLURM_JOB_ID"; fi' in lines


def test_run_gives_the_script_to_sbatch(recorded, capfd):
    flags = ["launch", "--on=slurm", "--run", "--nodes=2", "--", *RUN, *complete()]
    assert main(flags) == 0
    [(_, words, said)] = recorded()
    assert words == [] and "#SBATCH --nodes=2" in said


@pytest.mark.parametrize("code", [0, 5])
def test_run_over_ssh_returns_what_the_processes_return(code, recorded, capfd, monkeypatch):
    monkeypatch.setenv("CODE", str(code))
    flags = ["launch", "--on=ssh", "--hosts=a,b", "--run", "--", *RUN, *complete()]
    assert main(flags) == code
    assert len(recorded()) == 2
    assert (f"[a] ended with exit code {code}" in capfd.readouterr().err) is bool(code)


def test_without_run_the_script_is_shown_or_written(tmp_path, capsys):
    flags = ["launch", "--on=ssh", "--hosts=a,b"]
    assert main([*flags, "--", *RUN, *complete()]) == 0
    shown = capsys.readouterr().out
    path = tmp_path / "start.sh"
    assert main([*flags, f"--script={path}", "--", *RUN, *complete()]) == 0
    assert path.read_text() == shown
    assert os.access(path, os.X_OK)


def complete():
    return [
        "--gin.MODEL_DIR='/tmp/x'",
        "--gin.CORPUS='/tmp/*.txt'",
        "--gin.VOCABULARY_FILE='/tmp/v'",
        "--gin.TRAIN_STEPS=1",
        "--gin.INPUT_LENGTH=32",
        "--gin.CACHE_DIR='/tmp/cache'",
    ]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--on=ssh", "--", *RUN], "--on=ssh needs --hosts"),
        (["--on=tpu-vm", "--name=t", "--", *RUN], "--on=tpu-vm needs --zone"),
        (["--on=slurm", "--hosts=a", "--", *RUN], "--hosts is for --on=ssh"),
        (["--on=ssh", "--hosts=a,a", "--", *RUN], "--hosts names a twice"),
        (["--on=ssh", "--hosts=-oProxyCommand=x", "--", *RUN], "expected names of hosts"),
        (["--on=ssh", "--hosts=a", "--"], "No command was given"),
        (["--on=ssh", "--hosts=a", "--", "tran"], "Did you mean 'train'"),
        (["--on=ssh", "--hosts=a", "train"], "Write -- before train"),
        (["--on=ssh", "--hosts=a", "--", *RUN, "--process_index=0"], "is for `launch` to say"),
        (["--on=ssh", "--hosts=a", "--", *RUN, "--gin_fil=x"], "There is no flag --gin_fil"),
        (["--on=ssh", "--hosts=a", "--", *RUN, "--gin.NO_SUCH_MACRO=1"], "NO_SUCH_MACRO"),
        (["--on=ssh", "--hosts=a", "--", "train", "--gin_file=no.gin"], "'no.gin'"),
        (["--on=tpu-vm", "--name=t", "--zone=z", "--restart_preempted", "--", *RUN], "slurm and"),
    ],
)
def test_what_is_wrong_is_said_here_and_not_on_every_host(flags, said, capsys):
    assert main(["launch", *flags]) == 2
    assert said in capsys.readouterr().err


def test_one_that_fails_does_not_leave_the_others_alone(capfd, monkeypatch):
    monkeypatch.setattr("prompt_tuning.cli.launch_command_hosts._NOTICE", 0.5)
    commands = {
        "good": [sys.executable, "-c", "import time; print('here', flush=True); time.sleep(600)"],
        "bad": [sys.executable, "-c", "raise SystemExit(4)"],
    }
    assert run_on_hosts(commands) == 4
    assert "[bad] ended with exit code 4" in capfd.readouterr().err


def test_the_first_host_is_the_coordinator_without_its_user():
    words = ssh_commands(launch("--on=ssh", "--hosts=me@a,b", "--port=99"))
    assert list(words) == ["me@a", "b"]
    assert all("--coordinator_address=a:99" in command[-1] for command in words.values())
