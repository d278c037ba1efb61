"""What `prompt-tuning eval` measures, writes, skips and refuses."""

import json
import os
import re
import shutil
import signal

import numpy as np
import pytest
import seqio
import tensorflow as tf
from etils import epath

from prompt_tuning.__main__ import main
from prompt_tuning.checkpoints import PromptFile, formats, load_vectors, open_model
from prompt_tuning.checkpoints.containers.stored import Stored
from prompt_tuning.cli import config
from prompt_tuning.evaluation import TaskMetrics, TeacherForced
from prompt_tuning.tasks.features import t5_features
from prompt_tuning.vocabulary import SentencePieceVocabulary
from tests.asked_models import (
    BASE_STEP,
    CHOOSING,
    LABELS,
    LAST,
    LENGTHS,
    PROMPT_TUNING,
    STEPS,
    error_in,
    lines,
    make_base,
    make_world,
    settings_in,
)
from tests.full_disk import room
from tests.tiny_runs import binding, forget_tasks

ALL = "--gin.CHECKPOINTS='all'"
ONE_DEVICE = "--gin.evaluate.devices=1"
MONITOR = ["--gin.MONITOR=@monitor.Monitor()", "--gin.monitor.Monitor.metric='films/accuracy'"]
FOLDERS = ("training_eval", "inference_eval")


@pytest.fixture(scope="module")
def world(programs, tmp_path_factory):
    """A base, a run that tuned a prompt and chose labels, and two checkpoints of another model."""
    world = make_world(tmp_path_factory.mktemp("world"))
    assert main(["train", *PROMPT_TUNING, *world.train("run"), *CHOOSING]) == 0
    for seed, step in [(1, 20), (2, 25)]:
        make_base(world.folder / "tuned", seed=seed, step=step)
    config.clear()
    return world


@pytest.fixture(scope="module")
def done(world):
    """Where all prompts of the run were evaluated, as they were while it trained."""
    out = world.folder / "done"
    flags = [*world.ask("eval", out, prompt=world.folder / "run"), *world.films, *CHOOSING]
    assert main(["eval", *flags, ALL, ONE_DEVICE]) == 0
    config.clear()
    return out


@pytest.fixture
def evaluate(world, tmp_path, capsys):
    """Runs `prompt-tuning eval` of the films here; returns the exit code and what it said."""

    def run(*more, prompt=world.folder / "run", out=tmp_path / "out", films=True):
        task = [*world.films, *CHOOSING] if films else []
        capsys.readouterr()
        flags = [*world.ask("eval", out, prompt=prompt), *task, ONE_DEVICE]
        code = main(["eval", *flags, *more])
        return code, capsys.readouterr().err

    yield run
    config.clear()
    forget_tasks()


@pytest.fixture
def calls(monkeypatch):
    """Lists what is really evaluated: the kind and the task, once for each state."""
    made = []

    def counted(kind):
        prepare = kind.prepare

        def prepared(self, graph, place=None):
            evaluate = prepare(self, graph, place)

            def noted(trainable, frozen):
                made.append((self.folder, self.name))
                return evaluate(trainable, frozen)

            return noted

        monkeypatch.setattr(kind, "prepare", prepared)

    counted(TeacherForced)
    counted(TaskMetrics)
    return made


def measured(out, task="films"):
    """Returns the metrics of every step, by folder."""
    return {
        folder: {row["step"]: row for row in lines(out / folder / f"{task}-metrics.jsonl")}
        for folder in FOLDERS
    }


def files(folder):
    """Returns what was found out, by name; not how and with what."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not re.search(r"tfevents|^config\.gin$|^environment", path.name)
    }


def answers(path):
    return [(row["id"], row["prediction"]) for row in lines(path)]


def test_few_examples_are_evaluated_and_fewer_written(evaluate, tmp_path):
    few, found = "--gin.EVALUATOR_NUM_EXAMPLES=4", {}
    for rows in (None, 3, 0):
        out = tmp_path / str(rows)
        assert evaluate(few, f"--gin.JSON_WRITE_N_RESULTS={rows}", out=out)[0] == 0
        path = out / "inference_eval" / f"films-{LAST:06}.jsonl"
        ids = [row["id"] for row in lines(path)] if path.exists() else []
        found[rows] = ids, measured(out)
    every = [f"validation/{i}" for i in range(4)]
    metrics = found[None][1]
    assert found == {None: (every, metrics), 3: (every[:3], metrics), 0: ([], metrics)}


def test_how_and_with_what_it_was_evaluated_is_written_down(world, evaluate, done, tmp_path):
    assert f"EVAL_OUTPUT_DIR = '{done}'" in (done / "config.gin").read_text()
    assert json.loads((done / "environment.json").read_text())["jax"]
    run = shutil.copytree(world.folder / "run", tmp_path / "run")
    before = (run / "config.gin").read_bytes()
    assert evaluate(out=run)[0] == 0
    assert (run / "config.gin").read_bytes() == before


def test_the_numbers_are_those_that_training_logged(world, done):
    found, logged = measured(done), measured(world.folder / "run")
    assert sorted(found["training_eval"]) == [BASE_STEP, *STEPS]
    for folder in FOLDERS:
        assert {step: found[folder][step] for step in STEPS} == logged[folder]
    for step in STEPS:
        for ending in (".jsonl", "-confusion.json"):
            path = f"inference_eval/films-{step:06}{ending}"
            assert (done / path).read_bytes() == (world.folder / "run" / path).read_bytes()
    # The steps differ, and so do the answers to the examples of one: nothing was mixed up.
    losses = {row["loss"] for row in found["training_eval"].values()}
    assert len(losses) == len(STEPS) + 1
    assert {said for _, said in answers(done / f"inference_eval/films-{LAST:06}.jsonl")} == {
        *LABELS
    }


def test_eight_devices_measure_what_one_does(evaluate, done, tmp_path):
    assert evaluate("--gin.evaluate.devices=8")[0] == 0
    found, expected = measured(tmp_path / "out"), measured(done)
    assert found["inference_eval"][LAST] == expected["inference_eval"][LAST]
    loss = found["training_eval"][LAST]
    assert loss == pytest.approx(expected["training_eval"][LAST], rel=1e-5)
    path = f"inference_eval/films-{LAST:06}.jsonl"
    assert answers(tmp_path / "out" / path) == answers(done / path)


def test_what_was_measured_is_not_measured_again(evaluate, calls, tmp_path):
    out = tmp_path / "out"
    assert evaluate(f"--gin.CHECKPOINTS={LAST}")[0] == 0
    assert calls == [("training_eval", "films"), ("inference_eval", "films")]
    calls.clear()
    code, said = evaluate(f"--gin.CHECKPOINTS=[{BASE_STEP}, {LAST}]")
    assert code == 0
    assert calls == [("training_eval", "films"), ("inference_eval", "films")]
    assert re.findall(r"Step (\d+) was measured before", said) == [str(LAST)]
    assert sorted(measured(out)["inference_eval"]) == [BASE_STEP, LAST]
    calls.clear()
    before = files(out)
    assert evaluate(f"--gin.CHECKPOINTS=[{BASE_STEP}, {LAST}]", *MONITOR)[0] == 0
    assert calls == []
    after = files(out)
    best = json.loads(after.pop("best.json"))
    assert after == before
    accuracy = {step: row["accuracy"] for step, row in measured(out)["inference_eval"].items()}
    assert best == {
        "step": max(accuracy, key=accuracy.get),
        "metric": "inference_eval/films/accuracy",
        "value": max(accuracy.values()),
    }


def test_the_best_is_the_best_of_all(evaluate, done, tmp_path):
    out = shutil.copytree(done, tmp_path / "out")
    low = ["--gin.monitor.Monitor.metric='training_eval/films/loss'"]
    code, said = evaluate(ALL, *MONITOR, *low, "--gin.monitor.Monitor.mode='min'")
    assert code == 0, said
    losses = {step: row["loss"] for step, row in measured(out)["training_eval"].items()}
    best = min(losses, key=losses.get)
    assert json.loads((out / "best.json").read_text())["step"] == best
    assert f"Best: step {best} with training_eval/films/loss" in said


def test_a_metric_that_nobody_measures_is_known_before(evaluate, calls, tmp_path):
    code, said = evaluate(*MONITOR, "--gin.monitor.Monitor.metric='film/accuracy'")
    assert code == 2
    assert "Monitor.metric is 'film/accuracy', but the tasks that are evaluated are: films." in said
    assert calls == []
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def other_prompt(world):
    """A prompt of the run's last step with other vectors."""
    path = world.folder / "other.safetensors"
    PromptFile.of(load_vectors(world.folder / "run") + 1, step=LAST).save(path)
    return path


# what is different -> flags, what the message says.
SOMETHING_ELSE = {
    "prompt": (["PROMPT"], r"prompts: was \['[0-9a-f]{64}'\], is \['[0-9a-f]{64}'\]"),
    "base": (["PROMPT", "BASE"], r"base: was [0-9a-f]{64}, is [0-9a-f]{64}"),
    "way to answer": (
        ["--gin.answering.ChooseLabel.normalize=True"],
        r"\S*ChooseLabel\.normalize: was not set, is True",
    ),
    "arithmetic": (
        ["--gin.ACTIVATION_DTYPE='bfloat16'"],
        r"\S*evaluate\.activation_dtype: was 'float32', is 'bfloat16'",
    ),
    "data": (
        ["--gin.FileTask.splits={'validation': '{folder}/train.tsv'}"],
        r"data of inference_eval/films: was [0-9a-f]+, is [0-9a-f]+",
    ),
    "number of examples": (
        ["--gin.EVAL_STEPS=1"],
        r"data of training_eval/films: was [0-9a-f]+, is [0-9a-f]+, the first 8",
    ),
    "loss": (["--gin.losses.Loss.z_loss=0.5"], r"\S*Loss\.z_loss: was not set, is 0\.5"),
}


@pytest.mark.parametrize("case", SOMETHING_ELSE)
def test_numbers_of_something_else_are_not_mixed_in(
    world, evaluate, calls, done, other_prompt, tmp_path, case
):
    flags, message = SOMETHING_ELSE[case]
    out = shutil.copytree(done, tmp_path / "out")
    before = files(out)
    given = [flag.replace("{folder}", str(world.folder)) for flag in flags if "--" in flag]
    if "BASE" in flags:
        given.append(binding("CHECKPOINT_PATH", world.folder / "tuned"))
    prompt = other_prompt if "PROMPT" in flags else world.folder / "run"
    code, said = evaluate(*given, prompt=prompt)
    assert code == 2
    assert f"EVAL_OUTPUT_DIR {out} has numbers of something else:\n" in said
    assert re.search(f"^  {message}$", said, re.MULTILINE), said
    assert said.endswith("Choose another EVAL_OUTPUT_DIR, or remove what is in this one.\n")
    assert calls == []
    assert files(out) == before


def test_another_task_may_go_to_the_same_folder(evaluate, calls, done, tmp_path):
    moved = shutil.copytree(done, tmp_path / "moved")
    before = measured(moved)
    code, said = evaluate("--gin.file_task.FileTask.name='more'", out=moved)
    assert code == 0, said
    assert {name for _, name in calls} == {"more"}
    assert measured(moved) == before
    assert list(measured(moved, "more")["inference_eval"]) == [LAST]


def test_a_prompt_of_any_format_gives_the_same_numbers(world, evaluate, done, tmp_path):
    vectors = load_vectors(world.folder / "run")
    np.save(tmp_path / "prompt.npy", vectors)
    peft = epath.Path(tmp_path / "peft")
    formats.PROMPT_FORMATS["peft"].save(PromptFile.of(vectors), peft)
    base = open_model(world.folder / "base")
    prompt = {"encoder/prompt/prompt/prompt": Stored.of(vectors, "the run's")}
    formats.MODEL_FORMATS["t5x"].save(
        base.tensors, base.config, LAST, epath.Path(tmp_path / "t5x"), methods=prompt
    )
    expected = measured(done)
    for name, step in [("prompt.npy", BASE_STEP), ("peft", BASE_STEP), ("t5x", LAST)]:
        out = tmp_path / f"out_{name}"
        code, said = evaluate(prompt=tmp_path / name, out=out)
        assert code == 0, said
        for folder, found in measured(out).items():
            assert found == {step: {**expected[folder][LAST], "step": step}}


@pytest.mark.slow
def test_every_checkpoint_of_a_tuned_model_is_evaluated(world, evaluate, tmp_path):
    tuned = world.folder / "tuned"
    code, said = evaluate(binding("CHECKPOINT_PATH", tuned), ALL, prompt=None)
    assert code == 0, said
    every = measured(tmp_path / "out")
    for step in (20, 25):
        alone = tmp_path / str(step)
        path = binding("CHECKPOINT_PATH", tuned / "checkpoints" / str(step))
        assert evaluate(path, prompt=None, out=alone)[0] == 0
        for folder, found in measured(alone).items():
            assert found == {step: every[folder][step]}
    losses = {row["loss"] for row in every["training_eval"].values()}
    assert len(losses) == 2


def test_a_request_to_stop_ends_with_75_and_the_same_command_goes_on(
    evaluate, calls, done, tmp_path, monkeypatch
):
    def stopping(self, graph, place=None):
        evaluate = prepare(self, graph, place)

        def asked(trainable, frozen):
            if len(calls) == 4:
                os.kill(os.getpid(), signal.SIGTERM)
            return evaluate(trainable, frozen)

        return asked

    prepare = TeacherForced.prepare
    with monkeypatch.context() as patch:
        patch.setattr(TeacherForced, "prepare", stopping)
        code, said = evaluate(ALL)
    assert code == 75
    assert f"Stopped on request before step {STEPS[1]} was evaluated. Start the same" in said
    assert sorted(measured(tmp_path / "out")["inference_eval"]) == [BASE_STEP, STEPS[0]]
    calls.clear()
    assert evaluate(ALL)[0] == 0
    assert len(calls) == 2 * (len(STEPS) - 1)
    assert files(tmp_path / "out") == files(done)


def test_a_dry_run_writes_nothing(evaluate, calls, tmp_path):
    code, said = evaluate("--dry_run", ALL)
    assert code == 0, said
    assert [f"step {step}." in said for step in [BASE_STEP, *STEPS]]
    assert calls == []
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_what_is_asked_is_what_is_counted(world, evaluate, capsys, tmp_path):
    """The right answers are made of what the model says: every second one is."""
    flags = [*world.ask("infer", tmp_path / "said", prompt=world.folder / "run"), *world.films]
    assert main(["infer", *flags, LENGTHS, "--gin.INFER_SPLIT='validation'"]) == 0
    said = lines(tmp_path / "said/films-predict.jsonl-00000-of-00001")
    rows = [
        (row["inputs"]["inputs_pretokenized"], row["prediction"] if i % 2 else "another")
        for i, row in enumerate(said)
    ]
    (tmp_path / "echo.tsv").write_text(
        "\n".join(["question\tanswer", *("\t".join(row) for row in rows)]) + "\n"
    )
    code, error = evaluate(
        *world.assets,
        LENGTHS,
        binding("MIXTURE_OR_TASK_NAME", tmp_path / "echo.train.tsv"),
        "--gin.FILE_TASK=@file_task.FileTask()",
        "--gin.FileTask.inputs='{question}'",
        "--gin.FileTask.targets='{answer}'",
        f"--gin.FileTask.splits={{'validation': '{tmp_path}/echo.tsv'}}",
        films=False,
    )
    assert code == 0, error
    right = sum(
        answer.strip() == row["prediction"].strip()
        for (_, answer), row in zip(rows, said, strict=True)
    )
    assert 0 < right < len(rows)
    found = measured(tmp_path / "out", "echo")["inference_eval"][LAST]
    assert found["accuracy"] == 100.0 * right / len(rows)
    path = tmp_path / f"out/inference_eval/echo-{LAST:06}.jsonl"
    assert answers(path) == [(row["id"], row["prediction"]) for row in said]


@pytest.mark.parametrize(
    "answering", ["ChooseLabel", pytest.param("Decode", marks=pytest.mark.slow)]
)
def test_seqio_and_a_file_give_the_same_accuracy_to_the_last_digit(
    world, evaluate, tmp_path, answering
):
    found = []
    for name, more in [("file", []), ("seqio", ["--gin_file=examples/sst2_seqio.gin"])]:
        code, said = evaluate(
            "--gin_file=examples/sst2_files.gin",
            *more,
            binding("TSV_DIR", world.folder),
            f"--gin.LABEL_NAMES={LABELS}",
            f"--gin.ANSWERING=@answering.{answering}()",
            out=tmp_path / name,
            films=False,
        )
        assert code == 0, said
        rows = lines(tmp_path / name / f"inference_eval/taskless_sst2_tsv-{LAST:06}.jsonl")
        found.append((measured(tmp_path / name, "taskless_sst2_tsv"), said_of(rows)))
    assert found[0] == found[1]
    if answering == "ChooseLabel":
        [row] = found[0][0]["inference_eval"].values()
        assert 0 < row["accuracy"] < 100


def said_of(rows):
    keys = ("inputs_pretokenized", "targets_pretokenized", "inputs", "targets")
    return [
        (row["id"], row["prediction"], row["target"], *(row["input"][key] for key in keys))
        for row in rows
    ]


def few(texts):
    def dataset(split, shuffle_files, seed=None):
        records = {"inputs": texts, "targets": [LABELS[i % 2] for i in range(len(texts))]}
        return tf.data.Dataset.from_tensor_slices(records)

    return dataset


@pytest.fixture
def mixture(world):
    """Two registered tasks and the mixture of both."""
    features = t5_features(SentencePieceVocabulary(str(world.folder / "small.model")))
    for name, texts in [("few_one", ["a film", "the boats"]), ("few_two", ["it is", "rain", "on"])]:
        seqio.TaskRegistry.add(
            name,
            source=seqio.FunctionDataSource(
                few(texts), splits=["validation"], num_input_examples={"validation": len(texts)}
            ),
            preprocessors=[
                seqio.preprocessors.tokenize,
                seqio.preprocessors.append_eos_after_trim,
            ],
            output_features=features,
            metric_fns=[share],
        )
    seqio.MixtureRegistry.add("few_both", [("few_one", 1), ("few_two", 3)])
    yield
    seqio.MixtureRegistry.remove("few_both")
    for name in ("few_one", "few_two"):
        seqio.TaskRegistry.remove(name)


def share(targets, predictions):
    return {"right": sum(map(str.__eq__, targets, predictions)) / len(targets)}


@pytest.mark.slow
def test_every_task_of_a_mixture_is_evaluated(world, evaluate, mixture, tmp_path):
    code, said = evaluate(
        "--gin.MIXTURE_OR_TASK_NAME='few_both'",
        *CHOOSING,
        f"--gin.answering.ChooseLabel.labels={LABELS}",
        films=False,
    )
    assert code == 0, said
    for task, count in [("few_one", 2), ("few_two", 3)]:
        rows = lines(tmp_path / f"out/inference_eval/{task}-{LAST:06}.jsonl")
        assert len(rows) == count
        [metrics] = measured(tmp_path / "out", task)["inference_eval"].values()
        right = sum(row["prediction"] == row["target"] for row in rows)
        assert (metrics["step"], metrics["right"]) == (LAST, right / count)


# what is wrong -> flags, exit code, message; {} is a folder with a copy of the films.
BAD = {
    "no such split": (
        ["--gin.EVAL_SPLIT='test'"],
        3,
        r"The file task '\S+/train\.tsv' has no split 'test': .* There are: train, validation\. .*",
    ),
    "no such task": (
        [
            "--gin.MIXTURE_OR_TASK_NAME='sst2_tvs'",
            "--gin_file=examples/sst2_seqio.gin",
            "--gin.TSV_DIR='{}'",
        ],
        3,
        r"There is no task named 'sst2_tvs'\. Did you mean 'sst2_tsv'( or '\S+')*\? .*",
    ),
    "no split at all": (
        ["--gin.EVAL_SPLIT=None"],
        2,
        r"There is nothing to evaluate: set EVAL_SPLIT to a split of the task\.",
    ),
    "a label that is none": (
        ["--gin.FileTask.splits={'validation': '{}/unlabelled.tsv'}"],
        3,
        r"\S+/unlabelled\.tsv, line 2 has the label 'rigth', but it should be one of: "
        r"-1, 0, 1, every, twice\.( Did you mean '\w+'\?)?",
    ),
    "a label that nobody may choose": (
        ["--gin.ChooseLabel.labels=['every', 'twise']"],
        2,
        r"ChooseLabel\.labels is \['every', 'twise'\], but the task has the label 'twice', which "
        r"could never be chosen\. Did you mean 'twise'\?",
    ),
    "a label that is too long": (
        ["--gin.ChooseLabel.labels=['every', 'twice', 'a very long and winding road']", LENGTHS],
        2,
        r"The label 'a very long and winding road' has \d\d tokens with its end token, but answers "
        r"may have 8\. Set TASK_FEATURE_LENGTHS\['targets'\] to at least \d\d, or choose a shorter "
        r"label\.",
    ),
    "a file without rows": (
        ["--gin.FileTask.splits={'validation': '{}/empty.tsv'}"],
        3,
        r"\S+/empty\.tsv is empty or has only the names of its columns: there are no examples in "
        r"it\.",
    ),
    "an unknown choice": (
        ["--gin.CHECKPOINTS='al'"],
        2,
        r"CHECKPOINTS is 'al', expected one of latest, best, all, a step or a list of steps\. Did "
        r"you mean 'all'\?",
    ),
    "no such prompt": (
        ["--gin.PROMPT_FILE='{}/nowhere'"],
        4,
        r"PROMPT_FILE: There is nothing at \S+/nowhere\. (.|\n)*",
    ),
    "a prompt of another base": (
        ["--gin.CHECKPOINT_PATH='{}/../tuned'"],
        4,
        r"PROMPT_FILE '\S+/run': The prompt was trained over another base model: its base has hash "
        r"[0-9a-f]{12}, this one [0-9a-f]{12}\. .*",
    ),
    "a prompt of another width": (
        ["--gin.PROMPT_FILE='{}/wide.npy'"],
        4,
        r"PROMPT_FILE '\S+/wide\.npy': .* has shape \(3, 64\), this model needs \(3, 32\)\. .*",
    ),
    "no such base": (
        ["--gin.CHECKPOINT_PATH='{}/nowhere'"],
        4,
        r"CHECKPOINT_PATH: There is nothing at \S+/nowhere\. (.|\n)*",
    ),
    "a folder in a file": (
        ["--gin.EVAL_OUTPUT_DIR='{}/empty.tsv/out'"],
        4,
        r"\S+ could not be written \(Not a directory\)\. Set EVAL_OUTPUT_DIR to a folder that can "
        r"be written\.",
    ),
    "an empty batch": (["--gin.BATCH_SIZE=0"], 2, r"BATCH_SIZE is 0, expected 1 or more\."),
    "no batches": (
        ["--gin.EVAL_STEPS=0"],
        2,
        r"EVAL_STEPS is 0, expected 1 or more batches, or None for all\.",
    ),
    "half precision": (
        ["--gin.ACTIVATION_DTYPE='float16'"],
        2,
        r"T5Config\(dtype='float16'\): .*",
    ),
}


@pytest.fixture(scope="module")
def faults(world):
    folder = world.folder / "faults"
    folder.mkdir()
    for split in ("train", "validation"):
        shutil.copy(world.folder / f"{split}.tsv", folder)
    (folder / "unlabelled.tsv").write_text("sentence\tlabel\na film\trigth\n")
    (folder / "empty.tsv").write_text("sentence\tlabel\n")
    np.save(folder / "wide.npy", np.zeros((3, 64), np.float32))
    return folder


@pytest.mark.parametrize("case", BAD)
def test_bad_input_exits_with_its_code_and_says_what_is_wrong(
    evaluate, calls, faults, tmp_path, case
):
    flags, code, message = BAD[case]
    returned, said = evaluate(*(flag.replace("{}", str(faults)) for flag in flags))
    assert re.fullmatch(message, error_in(said)), said
    assert returned == code
    assert calls == []
    assert not (tmp_path / "out").exists()


def test_all_settings_without_a_value_are_listed_at_once(capsys):
    files = ["--gin_file=models/from_checkpoint.gin", "--gin_file=runs/prompt_eval.gin"]
    assert main(["eval", *files]) == 2
    assert settings_in(capsys.readouterr().err) == [
        "CHECKPOINT_PATH",
        "EVAL_OUTPUT_DIR",
        "MIXTURE_OR_TASK_NAME",
        "PROMPT_FILE",
        "VOCABULARY_FILE",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("size", [0, 700])
def test_without_room_an_evaluation_exits_with_4_and_goes_on_when_there_is_some(
    evaluate, done, tmp_path, size
):
    with room(size):
        code, said = evaluate(ALL)
    assert code == 4, said
    assert "What was saved before is whole. Make room and start the same command again." in said
    code, said = evaluate(ALL)
    assert code == 0, said
    assert files(tmp_path / "out") == files(done)
