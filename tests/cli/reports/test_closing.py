"""What a run says at its end, and leaves in summary.json."""

import json
import math
import os
import re
import shlex
import signal

import numpy as np
import pytest
from etils import epath

from prompt_tuning.__main__ import main
from prompt_tuning.checkpoints import load_vectors
from prompt_tuning.cli import config
from prompt_tuning.cli.reports import closing
from prompt_tuning.cli.reports.next_command import next_commands
from prompt_tuning.cli.reports.progress import Progress
from prompt_tuning.training.clock import Clock
from tests.run_processes import BASE_STEP, FLAGS, ONE_SHAPE, concluded, make_world

LAST = BASE_STEP + 8
PREEMPTED = 75
SHORT = [
    *FLAGS,
    *ONE_SHAPE,
    "--gin.train.devices=1",
    f"--gin.TRAIN_STEPS={LAST}",
    "--gin.EVAL_PERIOD=4",
    "--gin.file_task.FileTask.name='films'",
]
CHOOSING = ["--gin.ANSWERING=@answering.ChooseLabel()"]
MONITOR = ["--gin.MONITOR=@monitor.Monitor()", "--gin.monitor.Monitor.metric='films/accuracy'"]


@pytest.fixture(scope="module")
def world(programs, tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def train(world, tmp_path, capsys):
    """Runs `prompt-tuning train` here; returns the exit code and what it said."""

    def run(*more, folder=tmp_path / "run"):
        capsys.readouterr()
        code = main(["train", *world.flags(folder, world.folder / "cache"), *SHORT, *more])
        return code, capsys.readouterr().err

    yield run
    config.clear()


def written(folder):
    return json.loads((folder / "summary.json").read_text())


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_summary_is_what_the_run_has_done(train, world, tmp_path):
    run = tmp_path / "run"
    code, said = train(*CHOOSING)
    assert code == 0
    found = written(run)
    assert found["status"] == "finished"
    assert (found["first_step"], found["step"], found["last_step"]) == (BASE_STEP, LAST, LAST)
    assert found["examples"] == 8 * 8
    log = lines(run / "train/metrics.jsonl")
    assert found["train"]["loss"] == {
        "first": {"step": 25, "value": log[0]["loss"]},
        "last": {"step": LAST, "value": log[-1]["loss"]},
    }
    # A loss over all steps is the sum of what each line says of its own.
    tokens = [
        row["loss"] * steps / row["loss_per_nonpadding_target_token"]
        for row, steps in zip(log, [5, 3], strict=True)
    ]
    assert found["target_tokens"] == round(sum(tokens))
    measured = lines(run / "inference_eval/films-metrics.jsonl")
    accuracy = found["metrics"]["inference_eval/films/accuracy"]
    assert accuracy["last"] == {"step": LAST, "value": measured[-1]["accuracy"]}
    start = load_vectors(run / f"numpy_checkpoints/checkpoint_{BASE_STEP}")
    moved = np.linalg.norm(load_vectors(run) - start, axis=1).mean()
    assert found["prompt"]["distance"] == pytest.approx(moved, rel=1e-5)
    assert found["timing"]["steps_of_this_process"] == 8
    spent = found["timing"]["seconds"]
    assert list(spent) == ["compile", "train", "evaluate", "save", "other"]
    assert all(spent[name] > 0.0 for name in ("compile", "train", "evaluate", "save"))
    assert f"\nFinished at step {LAST}.\n" in said
    assert re.search(rf"\n  steps +{BASE_STEP} to {LAST} of {LAST}: 8 steps\n", said)
    assert re.search(r"\n +inference_eval/films/accuracy +[\d.]+ +28 +[\d.]+ +\d+\n", said)
    assert re.search(rf"\n  base +hash {found['base']['hash'][:12]} ", said)
    for path in found["files"].values():
        assert (run / path).exists()


@pytest.mark.slow
def test_a_run_that_was_stopped_comes_to_what_it_would_have(train, tmp_path, monkeypatch):
    assert train(folder=tmp_path / "whole")[0] == 0
    add, steps = Progress.add, []

    def interrupted(self, sums):
        add(self, sums)
        steps.append(sums)
        if len(steps) == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Progress, "add", interrupted)
    code, said = train()
    assert code == PREEMPTED
    stopped = written(tmp_path / "run")
    assert stopped["status"] == "stopped on request"
    assert BASE_STEP < stopped["step"] < LAST
    assert stopped["examples"] == 8 * (stopped["step"] - BASE_STEP)
    assert f"\nStopped on request, and saved, at step {stopped['step']}.\n" in said
    assert "Next, for example" not in said
    code, said = train()
    assert code == 0
    assert concluded(tmp_path / "run") == concluded(tmp_path / "whole")
    timing = written(tmp_path / "run")["timing"]
    assert timing["processes"] == 2
    assert timing["steps_of_this_process"] == LAST - stopped["step"]
    assert timing["seconds"]["train"] > stopped["timing"]["seconds"]["train"]
    assert re.search(rf"\n  steps +goes on from {stopped['step']} to {LAST}: ", said)


@pytest.mark.slow
def test_nothing_is_written_again_of_a_run_that_is_finished(train, tmp_path):
    assert train()[0] == 0
    before = (tmp_path / "run/summary.json").read_bytes()
    code, said = train()
    assert code == 0
    assert said.endswith(f"there is nothing to do. It stands at step {LAST}.\n")
    assert re.search(rf"\n  steps +stands at {LAST} of {LAST}: none left of 8 steps", said)
    assert (tmp_path / "run/summary.json").read_bytes() == before
    # A run that was killed before it could write one makes up for it.
    (tmp_path / "run/summary.json").unlink()
    assert train()[0] == 0
    again, first = concluded(tmp_path / "run"), json.loads(before)
    assert again == {name: x for name, x in first.items() if name not in ("timing", "next")}


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], [*MONITOR, *CHOOSING]], ids=["the last", "the best"])
def test_the_next_commands_work_as_they_are_written(train, tmp_path, more):
    code, said = train(*more)
    assert code == 0
    found = written(tmp_path / "run")
    watched = found["metrics"]["inference_eval/films/accuracy"]
    step = watched["best" if more else "last"]["step"]
    assert watched["watched"] == bool(more)
    commands = [shlex.split(one.replace("\\\n", "")) for one in found["next"]]
    assert all(one in said for one in found["next"])
    assert [command[:2] for command in commands] == [
        ["prompt-tuning", "eval"],
        ["prompt-tuning", "infer"],
    ]
    for command in commands:
        config.clear()
        assert main(command[1:]) == 0
    evaluated = lines(tmp_path / "run/eval/inference_eval/films-metrics.jsonl")
    trained = lines(tmp_path / "run/inference_eval/films-metrics.jsonl")
    assert evaluated[-1]["step"] == step
    assert evaluated[-1] in trained
    assert len(lines(tmp_path / "run/infer/films-predict.jsonl-00000-of-00001")) == 16


@pytest.mark.slow
def test_what_is_wrong_with_a_run_is_said_again_at_its_end(train, tmp_path):
    code, said = train("--gin.LEARNING_RATE=1e-4")
    assert code == 0
    [slow] = [one for one in written(tmp_path / "run")["warnings"] if "learning rate" in one]
    assert slow.startswith("The learning rate is at most 0.0001: ")
    assert "--gin.LEARNING_RATE=0.3" in slow
    assert said.index(slow) < said.index("step 25")
    [cut] = [one for one in written(tmp_path / "run")["warnings"] if "TASK_FEATURE_LENGTHS" in one]
    assert re.match(r"\d+ of 200 examples of films/train \(\d%\) lost the end of their inputs", cut)


def test_what_is_no_summary_and_what_is_no_number_is_replaced(tmp_path):
    folder = epath.Path(tmp_path)
    (folder / "summary.json").write_text("{")
    found = closing.summary(
        status="finished",
        first_step=0,
        step=1,
        last_step=1,
        here=1,
        progress=Progress(Clock(), 0, {}),
        folder=folder,
        history={"inference_eval/films/f1": {1: math.nan}, "training_eval/films/loss": {1: 2.0}},
        monitor=None,
        prompt=None,
        base={"hash": None},
        warnings=[],
        following=[],
    )
    assert list(found["metrics"]) == ["training_eval/films/loss"]
    found["metrics"]["training_eval/films/loss"]["last"]["value"] = math.nan
    closing.conclude(found, "Finished.", folder, short=True)
    assert written(tmp_path)["metrics"]["training_eval/films/loss"]["last"]["value"] is None


def test_a_checkpoint_without_totals_counts_from_where_it_stands():
    progress = Progress(Clock(), 30, {"steps": 10})
    progress.add({"encoder_input_tokens/sequences": 4.0, "decoder_target_tokens/real": 9.0})
    assert progress.since == 30
    again = Progress(Clock(), 31, progress.saved())
    assert (again.since, again.examples, again.target_tokens) == (30, 4, 9)
    assert again.processes == 2


def test_model_tuning_says_how_to_evaluate_the_model():
    values = {
        "MODEL_DIR": "'/tmp/run'",
        "MIXTURE_OR_TASK_NAME": "'a task'",
        "VOCABULARY_FILE": "None",
        "VOCABULARY": "@vocabulary.ByteVocabulary()",
        "MODEL_FAMILY": "'byt5'",
        "MODEL_SIZE": "'base'",
    }
    [evaluated, _] = next_commands(values, trained="model", best=True)
    assert shlex.split(evaluated.replace("\\\n", "")) == [
        "prompt-tuning",
        "eval",
        "--gin_file=models/byt5_base.gin",
        "--gin_file=runs/eval.gin",
        "--gin.CHECKPOINT_PATH='/tmp/run'",
        "--gin.EVAL_OUTPUT_DIR='/tmp/run/eval'",
        "--gin.MIXTURE_OR_TASK_NAME='a task'",
    ]


def test_nothing_is_said_of_a_task_that_only_another_file_knows():
    values = {
        "MODEL_DIR": "'/tmp/run'",
        "INITIAL_CHECKPOINT_PATH": "'/tmp/base'",
        "MIXTURE_OR_TASK_NAME": "'sst2'",
        "VOCABULARY_FILE": "'/tmp/x.model'",
    }
    assert next_commands(values, trained="prompt", best=False)
    values["MIXTURE_OR_TASK_MODULE"] = "@sst2.register_sst2_tsv()"
    assert next_commands(values, trained="prompt", best=False) == []


def test_a_folder_of_files_and_what_macros_stand_for_are_written_out():
    values = {
        "MODEL_DIR": "'/tmp/run'",
        "INITIAL_CHECKPOINT_PATH": "'/tmp/base'",
        "VOCABULARY_FILE": "'/tmp/x.model'",
        "MIXTURE_OR_TASK_NAME": "@split_files.in_folder()",
        "MIXTURE_OR_TASK_NAME/split_files.in_folder.file": "'{split}.tsv'",
        "MIXTURE_OR_TASK_NAME/split_files.in_folder.folder": "%TSV_DIR",
        "TSV_DIR": "'/data/sst2'",
        "LABEL_NAMES": "['bad', 'good']",
        "FILE_TASK": "@file_task.FileTask()",
        "FILE_TASK/file_task.FileTask.inputs": "'100 % of {sentence}'",
        "FILE_TASK/file_task.FileTask.names": "{'label': %LABEL_NAMES}",
    }
    command, _ = next_commands(values, trained="prompt", best=False)
    typed = shlex.split(command.replace("\\\n", ""))
    assert "--gin.MIXTURE_OR_TASK_NAME='/data/sst2/{split}.tsv'" in typed
    assert "--gin.file_task.FileTask.inputs='100 % of {sentence}'" in typed
    assert "--gin.file_task.FileTask.names={'label': ['bad', 'good']}" in typed
    values["LABEL_NAMES"] = "@my.names()"
    assert next_commands(values, trained="prompt", best=False) == []
