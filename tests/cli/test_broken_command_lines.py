"""What a newcomer types wrong: the exit code, and a message with the name, its place and the fix.

Each row is a real command over files of this package; no message may be a traceback, and nothing is
left behind where the run would have gone.
"""

import dataclasses
import shlex

import numpy as np
import pytest

from prompt_tuning.__main__ import main
from prompt_tuning.cli import config
from tests.tiny_runs import forget_tasks, make_place

USAGE, DATA, CHECKPOINT, DEVICE = 2, 3, 4, 5

# {place} has a base, a vocabulary and the files of a task; {out} is empty.
TRAIN = (
    "train --gin_file=models/ours_tiny.gin --gin_file=runs/prompt_finetune.gin "
    "--gin_file=examples/sst2_files.gin --gin.TSV_DIR=\"'{place}'\" --gin.BATCH_SIZE=4 "
    "--gin.INITIAL_CHECKPOINT_PATH=\"'{place}/base'\" --gin.TRAIN_STEPS=22 --gin.PROMPT_LENGTH=5 "
    "--gin.VOCABULARY_FILE=\"'{place}/small.model'\" --gin.MODEL_DIR=\"'{out}'\" "
)
ASK = (
    "--gin_file=models/from_checkpoint.gin --gin_file=runs/prompt_{0}.gin "
    "--gin.CHECKPOINT_PATH=\"'{{place}}/base'\" --gin.PROMPT_FILE=\"'{{place}}/prompt.npy'\" "
    "--gin.VOCABULARY_FILE=\"'{{place}}/small.model'\" --gin.{1}_OUTPUT_DIR=\"'{{out}}'\" "
    "--gin.MIXTURE_OR_TASK_NAME=\"'{{place}}/train.tsv'\" "
)
EVAL = (
    "eval "
    + ASK.format("eval", "EVAL")
    + (
        "--gin.FILE_TASK=@file_task.FileTask() --gin.file_task.FileTask.inputs=\"'{{sentence}}'\" "
        "--gin.file_task.FileTask.targets=\"'{{label}}'\" "
    )
)
INFER = (
    "infer "
    + ASK.format("infer", "INFER")
    + (
        "--gin.TASK_FEATURE_LENGTHS=\"{{'inputs': 16, 'targets': 4}}\" "
        "--gin.FILE_TASK=@file_task.FileTask() --gin.file_task.FileTask.inputs=\"'{{sentence}}'\" "
        "--gin.file_task.FileTask.targets=None --gin.INFER_SPLIT=\"'validation'\" "
    )
)


@dataclasses.dataclass(frozen=True)
class Broken:
    """A command line, its exit code, and what the message must hold."""

    name: str
    command: str
    code: int
    holds: tuple[str, ...]


def row(name, command, code, *holds):
    return Broken(name, command, code, holds)


TABLE = [
    # Commands and flags.
    row("no command", "", USAGE, "No command was given", "train, pretrain"),
    row("a misspelt command", "trian", USAGE, "'trian'", "Did you mean 'train'"),
    row("a misspelt flag", TRAIN + "--gin_fil=a.gin", USAGE, "--gin_fil", "'--gin_file'"),
    row("a flag without its value", TRAIN + "--gin_file", USAGE, "--gin_file", "expected one"),
    row("a binding without =", TRAIN + "--gin.BATCH_SIZE 8", USAGE, "--gin.BATCH_SIZE=8"),
    row(
        "a value cut at a space by the shell",
        TRAIN + "--gin.TASK_FEATURE_LENGTHS={{'inputs': 8}}",
        USAGE,
        "8}",
        "--gin.TASK_FEATURE_LENGTHS",
        "double quotes",
    ),
    row("an address without processes", TRAIN + "--process_count=2", USAGE, "--multiprocess_gpu"),
    row(
        "a process index out of range",
        TRAIN + "--multiprocess_gpu --process_count=2 --process_index=2",
        USAGE,
        "--process_index=2",
        "0 to 2 - 1",
    ),
    row("true or false as a flag", TRAIN + "--dry_run=maybe", USAGE, "dry_run", "'maybe'"),
    row("no gin file", "train", USAGE, "No --gin_file", "runs/prompt_finetune.gin"),
    # Files.
    row(
        "a misspelt file",
        "train --gin_file=models/t5_1_1_bse.gin",
        USAGE,
        "'models/t5_1_1_bse.gin'",
        "'models/t5_1_1_base.gin'",
        "--gin_file",
    ),
    row(
        "a misspelt file of the original",
        "train --gin_file=prompt_tuning/configs/runs/prompt_finetun.gin",
        USAGE,
        "'prompt_tuning/configs/runs/prompt_finetun.gin'",
        "Looked in",
    ),
    row(
        "prompts before models",
        "train --gin_file=prompts/from_class_labels.gin --gin_file=models/t5_1_1_base.gin "
        "--gin_file=runs/prompt_finetune.gin",
        USAGE,
        "prompts.Prompt.init",
        "from_class_labels.gin:",
        "architecture.gin:",
        "--gin_file=models/t5_1_1_base.gin --gin_file=prompts/from_class_labels.gin "
        "--gin_file=runs/prompt_finetune.gin",
    ),
    row(
        "runs before models",
        "train --gin_file=runs/prompt_finetune.gin --gin_file=models/t5_1_1_base.gin",
        USAGE,
        "DROPOUT_RATE",
        "finetune.gin:",
        "--gin_file=models/t5_1_1_base.gin --gin_file=runs/prompt_finetune.gin",
    ),
    row(
        "the run file is missing",
        "train --gin_file=models/t5_1_1_base.gin",
        USAGE,
        "prompt_tuning.cli.train.train",
        "runs/",
    ),
    row(
        "the model file is missing",
        "train --gin_file=runs/prompt_finetune.gin --gin.MODEL_DIR=\"'{out}'\"",
        USAGE,
        "MODEL (read at",
        "runs/finetune.gin:",
        "INITIAL_CHECKPOINT_PATH",
        "TASK_FEATURE_LENGTHS",
    ),
    # Names and values.
    row(
        "required settings",
        "train --gin_file=models/ours_tiny.gin --gin_file=runs/prompt_finetune.gin",
        USAGE,
        "  MODEL_DIR (",
        "--gin.MODEL_DIR=\"'/tmp/run'\"",
        "  VOCABULARY_FILE (",
        "  INITIAL_CHECKPOINT_PATH (",
        "  MIXTURE_OR_TASK_NAME (",
        "  TASK_FEATURE_LENGTHS (",
    ),
    row(
        "a misspelt macro",
        TRAIN + "--gin.BATCHSIZE=4",
        USAGE,
        "--gin.BATCHSIZE",
        "Did you mean 'BATCH_SIZE'",
    ),
    row(
        "a misspelt parameter",
        TRAIN + "--gin.train.eval_perod=4",
        USAGE,
        "--gin.train.eval_perod",
        "'eval_period'",
    ),
    row(
        "a misspelt function",
        TRAIN + "--gin.PROMPT=@prompts.Promt",
        USAGE,
        "--gin.PROMPT",
        "`Promt`",
        "'Prompt'",
    ),
    row(
        "text without its inner quotes",
        TRAIN + "--gin.MODEL_DIR={out}",
        USAGE,
        "--gin.MODEL_DIR={out}",
        "--gin.MODEL_DIR=\"'{out}'\"",
    ),
    row(
        "a number as text",
        TRAIN + "--gin.BATCH_SIZE=\"'32'\"",
        USAGE,
        "BATCH_SIZE",
        "'32'",
        "--gin.BATCH_SIZE=32",
    ),
    row(
        "an empty batch",
        TRAIN + "--gin.BATCH_SIZE=0",
        USAGE,
        "BATCH_SIZE is 0",
        "expected 1 or more",
    ),
    row("no steps", TRAIN + "--gin.TRAIN_STEPS=None", USAGE, "TRAIN_STEPS_RELATIVE", "EPOCHS"),
    row("steps and epochs", TRAIN + "--gin.EPOCHS=2", USAGE, "EPOCHS", "TRAIN_STEPS", "None"),
    row(
        "steps before the base's own",
        TRAIN + "--gin.TRAIN_STEPS=10",
        USAGE,
        "TRAIN_STEPS is 10",
        "step 20",
        "--gin.TRAIN_STEPS=30",
        "TRAIN_STEPS_RELATIVE",
    ),
    row("no seed", TRAIN + "--gin.RANDOM_SEED=None", USAGE, "RANDOM_SEED is None", "integer"),
    row(
        "half precision",
        TRAIN + "--gin.ACTIVATION_DTYPE=\"'float16'\"",
        USAGE,
        "float16",
        "'bfloat16'",
    ),
    row(
        "a size that there is not",
        TRAIN + "--gin.MODEL_NAME=\"'t5_1_1_bas'\"",
        USAGE,
        "'t5_1_1_bas'",
        "'t5_1_1_base'",
    ),
    row(
        "a period that is no number of steps",
        TRAIN + "--gin.EVAL_PERIOD=0",
        USAGE,
        "EVAL_PERIOD",
        "1 or more",
    ),
    row(
        "a metric that is not measured",
        TRAIN + "--gin.MONITOR=@monitor.Monitor() --gin.monitor.Monitor.metric=\"'accurcy'\"",
        USAGE,
        "'accurcy'",
        "accuracy",
    ),
    row(
        "labels as one text",
        TRAIN + "--gin_file=prompts/from_class_labels.gin --gin.CLASS_LABELS=\"'good'\"",
        USAGE,
        "'good'",
        "['good']",
    ),
    row(
        "packing",
        TRAIN + "--gin.train/utils.DatasetConfig.pack=True",
        USAGE,
        "train/utils.DatasetConfig.pack",
        "never packed",
    ),
    # Tasks and data.
    row(
        "a misspelt module",
        TRAIN + "--gin.MIXTURE_OR_TASK_MODULE=\"'prompt_tuning.tasks.gleu'\" "
        "--gin.MIXTURE_OR_TASK_NAME=\"'glue_sst2_v002'\"",
        USAGE,
        "'prompt_tuning.tasks.gleu'",
        "MIXTURE_OR_TASK_MODULE",
        "Did you mean 'glue'",
    ),
    row(
        "a misspelt task",
        TRAIN + "--gin.MIXTURE_OR_TASK_MODULE=\"'prompt_tuning.tasks.glue'\" "
        "--gin.MIXTURE_OR_TASK_NAME=\"'glue_sst_v002'\"",
        DATA,
        "'glue_sst_v002'",
        "'glue_sst2_v002'",
        "prompt_tuning.tasks.glue",
    ),
    row(
        "a file that is not there",
        TRAIN + "--gin.MIXTURE_OR_TASK_NAME=\"'{place}/trian.tsv'\"",
        DATA,
        "{place}/trian.tsv",
        "MIXTURE_OR_TASK_NAME",
        "train.tsv",
    ),
    row(
        "a split that is not there",
        TRAIN + "--gin.EVAL_SPLIT=\"'test'\"",
        DATA,
        "test.tsv",
        "EVAL_SPLIT",
        "validation",
    ),
    row(
        "a column that is not there",
        TRAIN + "--gin.file_task.FileTask.inputs=\"'{{sentense}}'\"",
        DATA,
        "sentense",
        "'sentence'",
        "train.tsv",
    ),
    row(
        "lengths without targets",
        TRAIN + "--gin.TASK_FEATURE_LENGTHS=\"{{'inputs': 8, 'target': 8}}\"",
        USAGE,
        "TASK_FEATURE_LENGTHS",
        "'target'",
        "targets",
    ),
    # Vocabularies, checkpoints, prompts.
    row(
        "a vocabulary that is not there",
        TRAIN + "--gin.VOCABULARY_FILE=\"'{place}/smal.model'\"",
        USAGE,
        "{place}/smal.model",
        "VOCABULARY_FILE",
    ),
    row(
        "a base that is not there",
        TRAIN + "--gin.INITIAL_CHECKPOINT_PATH=\"'{place}/bas'\"",
        CHECKPOINT,
        "{place}/bas",
        "INITIAL_CHECKPOINT_PATH",
    ),
    row(
        "a base of another size",
        TRAIN + "--gin.MODEL_NAME=\"'ours_mini'\"",
        CHECKPOINT,
        "{place}/base",
        "ours_tiny",
    ),
    row(
        "a prompt of another length",
        TRAIN + "--gin_file=prompts/from_file.gin --gin.PROMPT_FILE=\"'{place}/prompt.npy'\"",
        CHECKPOINT,
        "(7, 32)",
        "length",
        "7",
    ),
    row(
        "a prompt of another width",
        EVAL + "--gin.PROMPT_FILE=\"'{place}/wide.npy'\"",
        CHECKPOINT,
        "{place}/wide.npy",
        "48",
        "32",
    ),
    row(
        "a prompt that is not there",
        EVAL + "--gin.PROMPT_FILE=\"'{place}/promt.npy'\"",
        CHECKPOINT,
        "{place}/promt.npy",
        "prompt.npy",
        "PROMPT_FILE",
    ),
    row(
        "a step that was not saved",
        EVAL + "--gin.PROMPT_FILE=None --gin.CHECKPOINTS=21",
        CHECKPOINT,
        "21",
        "20",
        "CHECKPOINTS",
    ),
    # Evaluation, inference, devices.
    row(
        "a mode that there is not",
        INFER + "--gin.MODE=\"'predcit'\"",
        USAGE,
        "'predcit'",
        "'predict'",
    ),
    row("a shard out of range", INFER + "--shard_id=3", USAGE, "shard_id is 3", "num_shards"),
    row("a shard of training", TRAIN + "--shard_id=0", USAGE, "--shard_id", "no flag"),
    row(
        "more devices than there are",
        TRAIN + "--gin.train.devices=99",
        DEVICE,
        "99 devices",
        "there are 8",
        "1 to 8",
    ),
    row(
        "partitions that do not divide the devices",
        TRAIN + "--gin.partitioning.PjitPartitioner.num_partitions=3",
        DEVICE,
        "3",
        "8",
        "NUM_PARTITIONS",
    ),
    row(
        "a place that cannot be written",
        TRAIN + "--gin.MODEL_DIR=\"'{place}/train.tsv/run'\"",
        CHECKPOINT,
        "{place}/train.tsv/run",
        "MODEL_DIR",
    ),
    # Looking at a configuration.
    row(
        "explaining a misspelt name",
        "config explain BATCHSIZE --gin_file=models/ours_tiny.gin --gin_file=runs/finetune.gin",
        USAGE,
        "BATCHSIZE",
        "BATCH_SIZE",
    ),
    row(
        "comparing what is no run", "config diff {place} {out}", CHECKPOINT, "{place}", "config.gin"
    ),
    row(
        "a report of what is no run", "report {place}", CHECKPOINT, "{place}", "train/metrics.jsonl"
    ),
    row("a shell that there is not", "completion tcsh", USAGE, "tcsh", "bash"),
    row(
        "a module that there is not",
        "find-module prompt_tunin",
        USAGE,
        "prompt_tunin",
        "'prompt_tuning'",
    ),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = make_place(tmp_path_factory.mktemp("place"))
    np.save(place.folder / "prompt.npy", np.zeros((7, 32), np.float32))
    np.save(place.folder / "wide.npy", np.zeros((7, 48), np.float32))
    return place.folder


@pytest.fixture(autouse=True)
def nothing_remains(place, tmp_path, monkeypatch):
    # Where there is nothing to be found by accident.
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("PROMPT_TUNING_CACHE", str(place / "cache"))
    yield
    forget_tasks()
    config.clear()


def test_there_are_at_least_forty():
    assert len({one.command for one in TABLE}) == len({one.name for one in TABLE}) >= 40


@pytest.mark.parametrize("broken", TABLE, ids=lambda one: one.name)
def test_a_broken_command_line_ends_with_its_code_and_says_what_to_do(
    place, tmp_path, capsys, broken
):
    names = {"place": place, "out": tmp_path / "out"}
    assert main(shlex.split(broken.command.format(**names))) == broken.code
    message = capsys.readouterr().err.partition("error: ")[2]
    missing = [
        text
        for text in (one.format(**names) if "{" in one else one for one in broken.holds)
        if text not in message
    ]
    assert not missing, message
    assert "Traceback" not in message
    assert not (tmp_path / "out").exists()
