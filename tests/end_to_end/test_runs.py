"""What a run leaves behind, says and refuses, by the command line."""

import json
import re
import subprocess
import sys
import threading

import numpy as np
import pytest
import seqio
import tensorflow as tf

from prompt_tuning.__main__ import main
from prompt_tuning.checkpoints import PromptFile, load_vectors
from prompt_tuning.cli import config
from prompt_tuning.cli import train as train_script
from prompt_tuning.tasks.features import t5_features
from prompt_tuning.training import loop
from prompt_tuning.vocabulary import SentencePieceVocabulary
from tests.full_disk import room
from tests.run_processes import BASE_STEP, FLAGS, ONE_SHAPE, ROOT, make_world
from tests.small_vocabulary import SENTENCES
from tests.tiny_runs import binding

LAST = BASE_STEP + 8
SHORT = [
    *FLAGS,
    *ONE_SHAPE,
    "--gin.train.devices=1",
    f"--gin.TRAIN_STEPS={LAST}",
    "--gin.EVAL_PERIOD=2",
    "--gin.EVAL_STEPS=1",
]
MONITOR = [
    "--gin.MONITOR=@monitor.Monitor()",
    "--gin.monitor.Monitor.metric='training_eval/films/loss'",
    "--gin.monitor.Monitor.mode='min'",
]


@pytest.fixture(scope="module")
def world(programs, tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def flags(world, tmp_path):
    named = "--gin.file_task.FileTask.name='films'"
    return [*world.flags(tmp_path / "run", world.folder / "cache"), *SHORT, named]


@pytest.fixture
def train(flags, capsys):
    """Runs `prompt-tuning train` here; returns the exit code and what it said."""

    def run(*more):
        code = main(["train", *flags, *more])
        return code, capsys.readouterr().err

    yield run
    config.clear()


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def saved_steps(run):
    return {int(path.name) for path in (run / "checkpoints").iterdir()}


def test_the_best_prompt_and_its_checkpoint_are_kept(train, tmp_path):
    run = tmp_path / "run"
    # The loss only falls: the best of the wrong mode is not the last.
    assert train(*MONITOR, "--gin.monitor.Monitor.mode='max'")[0] == 0
    losses = {row["step"]: row["loss"] for row in lines(run / "training_eval/films-metrics.jsonl")}
    best = max(losses, key=losses.get)
    assert len(losses) == 4
    assert best < LAST
    file = PromptFile.load(run / "best/prompt.safetensors")
    assert file.step == best
    assert file.metrics["training_eval/films/loss"] == losses[best]
    assert saved_steps(run) == {best, LAST}
    assert PromptFile.load(run / "prompt.safetensors").step == LAST
    np.testing.assert_array_equal(
        file.vectors, load_vectors(run / f"numpy_checkpoints/checkpoint_{best}")
    )


@pytest.mark.slow
def test_without_improvement_a_run_ends_early_and_stays_ended(train, tmp_path):
    run = tmp_path / "run"
    patient = [*MONITOR, "--gin.monitor.Monitor.patience=2", "--gin.monitor.Monitor.atol=1e9"]
    code, said = train(*patient)
    assert code == 0
    assert f"\nNo improvement for 2 evaluations. Finished at step {BASE_STEP + 4}.\n" in said
    assert PromptFile.load(run / "prompt.safetensors").step == BASE_STEP + 4
    code, said = train(*patient)
    assert code == 0
    assert said.endswith(f"nothing to do. It stands at step {BASE_STEP + 4}.\n")
    # Who asks for more patience gets it.
    assert train(*MONITOR)[0] == 0
    assert PromptFile.load(run / "prompt.safetensors").step == LAST


@pytest.mark.slow
def test_a_metric_that_nothing_measures_is_refused(train, tmp_path):
    code, said = train(*MONITOR, "--gin.monitor.Monitor.metric='films/los'")
    assert code == 2
    assert "Monitor.metric is 'films/los', but no evaluation measures that. Did you mean" in said
    # What can be known before anything is trained is said before.
    for metric, evaluated in [("film/loss", "films. Did you mean 'films'?"), ("loss", "films.")]:
        new = binding("MODEL_DIR", tmp_path / "new")
        code, said = train(*MONITOR, f"--gin.monitor.Monitor.metric='{metric}'", new)
        assert code == 2
        assert f"is '{metric}', but the tasks that are evaluated are: {evaluated}" in said
        assert not (tmp_path / "new/train").exists()


def test_a_folder_that_cannot_be_is_refused(train, tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file/run"):
        code, said = train(binding("MODEL_DIR", path))
        assert code == 4, said
        assert "Set MODEL_DIR to a folder that can be written." in said
    code, said = train("--gin.KEEP_CHECKPOINTS=0")
    assert code == 2
    assert "Saving.keep is 0, expected 1 or more checkpoints, or None for all." in said


def test_a_file_that_is_no_table_is_refused(train, tmp_path):
    (tmp_path / "train.doc").write_text("a film\n")
    code, said = train(binding("MIXTURE_OR_TASK_NAME", tmp_path / "train.doc"))
    assert code == 3
    assert "Its name should end with one of: .tsv, .csv, .jsonl, .txt, .parquet" in said


@pytest.mark.slow
def test_the_same_answer_to_everything_raises_an_alarm(train, tmp_path):
    # To the same question everybody answers the same.
    (tmp_path / "films.tsv").write_text("sentence\tlabel\n" + "a film\t0\na film\t1\n" * 4)
    code, said = train(f"--gin.FileTask.splits={{'validation': '{tmp_path}/films.tsv'}}")
    assert code == 0
    rows = lines(tmp_path / "run/inference_eval/films-metrics.jsonl")
    alarms = [row["alarm"] for row in rows if "alarm" in row]
    assert alarms and all(alarm in said for alarm in alarms)


def test_another_configuration_is_refused_with_the_difference(train, tmp_path):
    assert train()[0] == 0
    before = (tmp_path / "run/prompt.safetensors").read_bytes()
    more = ["--gin.LEARNING_RATE=0.1", "--gin.RANDOM_SEED=1", f"--gin.TRAIN_STEPS={LAST + 1}"]
    code, said = train(*more)
    assert code == 4
    assert "\n  schedules.learning_rate.base_learning_rate: was 0.3, is 0.1\n" in said
    assert re.search(r"\n  data: was [0-9a-f]+, is [0-9a-f]+\n", said)
    assert "\n  train_script.train.random_seed: was 0, is 1\n" in said
    assert "TRAIN_STEPS" not in said and "total_steps" not in said
    assert "--gin.train.accept_changes=True" in said
    assert (tmp_path / "run/prompt.safetensors").read_bytes() == before
    code, said = train(*more, "--gin.train.accept_changes=True")
    assert code == 0
    assert f"Changed since step {LAST}: train_script.train.random_seed: was 0, is 1." in said
    assert PromptFile.load(tmp_path / "run/prompt.safetensors").step == LAST + 1


@pytest.mark.slow
def test_where_things_lie_and_what_is_measured_may_change(train, tmp_path):
    assert train()[0] == 0
    (tmp_path / "run").rename(tmp_path / "moved")
    code, said = train(
        binding("MODEL_DIR", tmp_path / "moved"),
        binding("CACHE_DIR", tmp_path / "another_cache"),
        f"--gin.TRAIN_STEPS={LAST + 1}",
        "--gin.SAVE_PERIOD=7",
        "--gin.STATS_PERIOD=2",
        "--gin.EVAL_PERIOD=3",
        "--gin.KEEP_CHECKPOINTS=2",
        "--gin.EVAL_SPLIT=None",
    )
    assert code == 0, said


# Bad files, by the command: the code, and nothing left half done.


def cut_last_field(text):
    return text.rstrip("\n").rpartition("\t")[0] + "\n"


BAD_FILES = {
    "empty": (b"", r"train\.tsv is empty or has only the names of its columns"),
    "a header alone": (b"sentence\tlabel\n", r"train\.tsv is empty or has only the names"),
    "a row that is short": (
        b"sentence\tlabel\na film\t1\nboats\n",
        r"train\.tsv, line 3 has 1 fields, but the first line names 2 columns: sentence, label",
    ),
    "a column that is missing": (
        b"sentense\tlabel\na film\t1\n",
        r"has no column 'sentence', which FileTask\.inputs .* asks for\. Did you mean 'sentense'\?",
    ),
    "not UTF-8": (
        b"sentence\tlabel\nun caf\xe9\t1\n",
        r"train\.tsv, line 2 is not UTF-8 text: byte 7 of the line is 0xe9",
    ),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_exits_with_3_and_leaves_nothing(train, world, tmp_path, case):
    content, message = BAD_FILES[case]
    (tmp_path / "train.tsv").write_bytes(content)
    (tmp_path / "validation.tsv").write_bytes((world.folder / "validation.tsv").read_bytes())
    cache = tmp_path / "cache"
    code, said = train(
        binding("MIXTURE_OR_TASK_NAME", tmp_path / "train.tsv"), binding("CACHE_DIR", cache)
    )
    assert code == 3
    assert re.search(message, said), said
    assert not (tmp_path / "run").exists()
    assert not list(cache.rglob("split.json"))


def test_a_task_without_a_validation_split_says_what_to_set(train, world, tmp_path):
    (tmp_path / "train.tsv").write_bytes((world.folder / "train.tsv").read_bytes())
    only = binding("MIXTURE_OR_TASK_NAME", tmp_path / "train.tsv")
    code, said = train(only)
    assert code == 3
    assert "has no split 'validation'" in said and "EVAL_SPLIT" in said
    assert train(only, "--gin.EVAL_SPLIT=None")[0] == 0


@pytest.mark.slow
def test_a_damaged_cache_exits_with_3_and_a_new_one_mends_it(train, tmp_path):
    cache = tmp_path / "cache"
    assert train(binding("CACHE_DIR", cache))[0] == 0
    before = (tmp_path / "run/prompt.safetensors").read_bytes()
    file = next(cache.glob("films/train-*/examples.arrow"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    code, said = train(binding("CACHE_DIR", cache), f"--gin.TRAIN_STEPS={LAST + 1}")
    assert code == 3
    assert "is damaged: the checksum of examples.arrow is wrong. Delete the folder" in said
    assert (tmp_path / "run/prompt.safetensors").read_bytes() == before
    for path in file.parent.iterdir():
        path.unlink()
    file.parent.rmdir()
    assert train(binding("CACHE_DIR", cache), f"--gin.TRAIN_STEPS={LAST + 1}")[0] == 0


@pytest.mark.parametrize(
    "size", [0, *(pytest.param(size, marks=pytest.mark.slow) for size in (100, 600, 3000))]
)
def test_without_room_a_run_exits_with_4_and_goes_on_when_there_is_some(
    train, whole, tmp_path, size
):
    assert train(f"--gin.TRAIN_STEPS={BASE_STEP + 4}")[0] == 0
    with room(size):
        code, said = train()
    assert code == 4, said
    assert "What was saved before is whole." in said
    assert re.search(r"(?i)no space left|file too large|make room", said)
    code, said = train()
    assert code == 0, said
    np.testing.assert_array_equal(load_vectors(tmp_path / "run"), whole)


def test_without_room_for_the_cache_a_run_exits_with_3(train, tmp_path):
    with room(3000):
        code, said = train(binding("CACHE_DIR", tmp_path / "cache"))
    assert code == 3
    assert "There is no room for the tokenised split 'train' of 'films'" in said
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def whole(world):
    """The last prompt of the run that everybody else makes in pieces."""
    run = world.folder / "whole"
    assert main(["train", *world.flags(run, world.folder / "cache"), *SHORT]) == 0
    config.clear()
    return load_vectors(run)


# Where examples come from: seqio's tasks, mixtures and streams, and cached folders.


def numbered(split, shuffle_files, seed=None):
    """An endless source."""
    texts = tf.constant(SENTENCES)
    return tf.data.Dataset.range(10**9).map(
        lambda i: {
            "inputs": tf.strings.join([tf.strings.as_string(i), texts[i % len(SENTENCES)]], " "),
            "targets": tf.gather(tf.constant(["bad", "good"]), i % 2),
        }
    )


def few(split, shuffle_files, seed=None):
    return numbered(split, shuffle_files).take(30 if split == "train" else 4)


@pytest.fixture(scope="module")
def seqio_tasks(world):
    """Registers tasks with few and with endless examples, and a mixture."""
    vocabulary = SentencePieceVocabulary(str(world.folder / "small.model"))
    features = t5_features(vocabulary)
    steps = [seqio.preprocessors.tokenize, seqio.preprocessors.append_eos_after_trim]
    names = ["few_one", "few_two", "endless"]
    for name in names:
        source = seqio.FunctionDataSource(
            numbered if name == "endless" else few,
            splits=["train"] if name == "endless" else ["train", "validation"],
            num_input_examples=None if name == "endless" else {"train": 30, "validation": 4},
        )
        seqio.TaskRegistry.add(
            name,
            source=source,
            preprocessors=steps,
            output_features=features,
            metric_fns=[seqio_accuracy],
        )
    seqio.MixtureRegistry.add("few_both", [("few_one", 1), ("few_two", 3)])
    yield
    seqio.MixtureRegistry.remove("few_both")
    for name in names:
        seqio.TaskRegistry.remove(name)


def seqio_accuracy(targets, predictions):
    return {
        "accuracy": 100.0 * np.mean([a == b for a, b in zip(targets, predictions, strict=True)])
    }


def named(task):
    return [f"--gin.MIXTURE_OR_TASK_NAME='{task}'", "--gin.FILE_TASK=None"]


def without_file_task(flags):
    return [flag for flag in flags if not re.search(r"file_task|FILE_TASK", flag)]


@pytest.fixture
def train_task(flags, seqio_tasks, capsys):
    """Runs `prompt-tuning train` of a registered task, or of a folder."""

    def run(task, *more):
        own = f"--gin.MIXTURE_OR_TASK_NAME='{task}'"
        code = main(["train", *without_file_task(flags), own, *more])
        return code, capsys.readouterr().err

    yield run
    config.clear()


@pytest.mark.slow
def test_every_task_of_a_mixture_is_evaluated(train_task, tmp_path):
    code, said = train_task("few_both")
    assert code == 0, said
    assert "few_one/train: 30 examples, 25.00% of every batch" in said
    assert "few_two/train: 30 examples, 75.00% of every batch" in said
    for task in ("few_one", "few_two"):
        for kind in ("training_eval", "inference_eval"):
            rows = lines(tmp_path / f"run/{kind}/{task}-metrics.jsonl")
            assert [row["step"] for row in rows] == [22, 24, 26, LAST]
    assert PromptFile.load(tmp_path / "run/prompt.safetensors").task == "few_both"


@pytest.mark.slow
def test_a_stream_goes_on_where_it_was(train_task, tmp_path):
    end = "--gin.EVAL_SPLIT=None"
    assert train_task("endless", end, binding("MODEL_DIR", tmp_path / "whole"))[0] == 0
    code, said = train_task("endless", end, "--gin.TRAIN_STEPS=23")
    assert code == 0, said
    assert "from the stream endless/train" in said
    assert train_task("endless", end)[0] == 0
    np.testing.assert_array_equal(load_vectors(tmp_path / "run"), load_vectors(tmp_path / "whole"))
    code, said = train_task("endless", f"--gin.TRAIN_STEPS={LAST + 1}")
    assert code == 3 and "EVAL_SPLIT" in said


def test_the_loop_calls_nothing_of_tensorflows(train_task, tmp_path, monkeypatch):
    """Of a seqio task whose cache is there; measured over all functions of all threads."""
    assert train_task("few_one")[0] == 0
    called, steps = set(), []

    def note(frame, event, argument):
        module = frame.f_globals.get("__name__", "")
        if event == "call" and module.partition(".")[0] in ("tensorflow", "seqio", "t5"):
            called.add(f"{module}.{frame.f_code.co_qualname}")

    def watched(*arguments, **options):
        threading.setprofile(note)
        sys.setprofile(note)
        try:
            state = loop_train(*arguments, **options)
            steps.append(state.step)
            return state
        finally:
            sys.setprofile(None)
            threading.setprofile(None)

    loop_train = loop.train
    monkeypatch.setattr(train_script.loop, "train", watched)
    again = [binding("MODEL_DIR", tmp_path / "again"), "--gin.EVAL_SPLIT=None"]
    assert train_task("few_one", *again)[0] == 0
    assert steps == [LAST]
    assert not called


WITHOUT_TENSORFLOW = """
import sys
from prompt_tuning.__main__ import main
code = main(sys.argv[1:])
found = {"tensorflow", "seqio", "t5", "tensorflow_datasets"} & set(sys.modules)
sys.exit(code or (f"imported {found}" if found else 0))
"""


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=pytest.mark.slow)
        for kind in ("a file", "a folder of cached splits")
    ],
)
def test_neither_a_file_nor_a_cached_split_imports_tensorflow(
    train_task, flags, world, tmp_path, kind
):
    if kind == "a file":
        arguments = flags
    else:
        cache = binding("CACHE_DIR", tmp_path / "cache")
        assert train_task("few_one", cache)[0] == 0
        folder = tmp_path / "cache/few_one"
        arguments = [
            *without_file_task(flags),
            binding("MIXTURE_OR_TASK_NAME", folder),
            binding("MODEL_DIR", tmp_path / "by_path"),
        ]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TENSORFLOW, "train", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    if kind != "a file":
        found, expected = (load_vectors(tmp_path / name) for name in ("by_path", "run"))
        np.testing.assert_array_equal(found, expected)
