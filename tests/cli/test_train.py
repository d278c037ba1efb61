import re

import numpy as np
import pytest
import seqio

from prompt_tuning.__main__ import main
from prompt_tuning.checkpoints.run import RunCheckpoints
from prompt_tuning.cli import config
from prompt_tuning.data import seqio_tasks
from prompt_tuning.prompts import PromptParam
from prompt_tuning.training.optimizer import adafactor
from prompt_tuning.training.state import split_model, start
from tests.reference_models import reference_model
from tests.tiny_runs import BASE_STEP, binding, forget_tasks, make_place

FILES = [
    "--gin_file=models/ours_tiny.gin",
    "--gin_file=runs/prompt_finetune.gin",
    "--gin_file=examples/sst2_files.gin",
]
SETTINGS = [
    "--gin.PROMPT_LENGTH=5",
    "--gin.BATCH_SIZE=4",
    "--gin.TRAIN_STEPS=22",
    "--gin.ACTIVATION_DTYPE='float32'",
    "--gin.DROPOUT_RATE=0.0",
]
FROM_FILE = "--gin_file=prompts/from_file.gin"
# The same task by seqio.
SEQIO = "--gin_file=examples/sst2_seqio.gin"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return make_place(tmp_path_factory.mktemp("place"))


@pytest.fixture
def train(place, tmp_path, monkeypatch, capsys):
    """Runs `prompt-tuning train` with flags after the good ones; returns exit code and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PROMPT_TUNING_CACHE", str(tmp_path.parent / "cache"))
    model_dir = binding("MODEL_DIR", tmp_path / "run")

    def run(*flags):
        files = [flag for flag in flags if flag.startswith("--gin_file")]
        others = [flag for flag in flags if not flag.startswith("--gin_file")]
        code = main(["train", *FILES, *files, *place.flags, *SETTINGS, model_dir, *others])
        return code, capsys.readouterr().err

    yield run
    forget_tasks()
    config.clear()


def prompt_file(name, shape):
    def write(folder):
        np.save(folder / name, np.zeros(shape, np.float32))

    return write


def run_over_another_base(folder):
    """Leaves the checkpoint of a prompt that was trained over some other model."""
    _, prompt, _ = split_model(reference_model("A"), PromptParam)
    with RunCheckpoints(folder / "run", base="ab" * 32) as checkpoints:
        checkpoints.save(start(prompt, adafactor(), step=21))


def lines_removed(name):
    def write(folder):
        (folder / name).write_text("sentence\tlabel\n")

    return write


# what is wrong -> what is made in the current folder, flags, exit code, message
BAD = {
    "a prompt file of another length": (
        prompt_file("prompt.npy", (5, 32)),
        [FROM_FILE, "--gin.PROMPT_FILE='prompt.npy'", "--gin.PROMPT_LENGTH=7"],
        4,
        "The given prompt has shape (5, 32), but Prompt(length=7) on this model needs (7, 32). "
        "Set `length` to 5.",
    ),
    "a prompt file of another width": (
        prompt_file("prompt.npy", (5, 64)),
        [FROM_FILE, "--gin.PROMPT_FILE='prompt.npy'"],
        4,
        "The given prompt has shape (5, 64), but Prompt(length=5) on this model needs (5, 32). "
        "It was trained for a model of width 64: choose the prompt of this model's size, width 32.",
    ),
    "a prompt file that is not there": (
        None,
        [FROM_FILE, "--gin.PROMPT_FILE='prompt.npy'"],
        4,
        "No prompt file at prompt.npy (PROMPT_FILE).",
    ),
    "float16": (
        None,
        ["--gin.ACTIVATION_DTYPE='float16'"],
        2,
        "T5Config(dtype='float16'): T5 was trained in bfloat16 and its activations exceed the "
        "largest float16 (65504), so that losses turn into NaN from size large on. Use 'bfloat16', "
        "which costs the same, or 'float32'.",
    ),
    "an unknown remat policy": (
        None,
        ["--gin.REMAT='minimum'"],
        2,
        "T5Config(remat='minimum'): unknown rematerialisation policy, known are none, minimal, "
        "projections, full. Did you mean 'minimal'?",
    ),
    "an unknown model": (
        None,
        ["--gin.MODEL_NAME='t5_1_1_bse'"],
        2,
        re.compile(
            r"Unknown model size 't5_1_1_bse', known are .*\. Did you mean 't5_1_1_base' .*"
        ),
    ),
    "the base of another model": (
        None,
        ["--gin.MODEL_NAME='ours_mini'"],
        4,
        re.compile(
            r"\S+ is not a checkpoint of the configured model: embed_dim is 256 in the "
            r"configuration and 32 in the checkpoint; .*\. The checkpoint has the size ours_tiny: "
            r"set MODEL_NAME to 'ours_tiny', or choose the checkpoint of the configured size\."
        ),
    ),
    "no microbatches": (
        None,
        ["--gin.MICROBATCHES=0"],
        2,
        "microbatches is 0, expected 1 or more.",
    ),
    "an empty batch": (
        None,
        ["--gin.BATCH_SIZE=0"],
        2,
        "BATCH_SIZE is 0, expected 1 or more.",
    ),
    "no base": (
        None,
        ["--gin.INITIAL_CHECKPOINT_PATH=None"],
        2,
        "A prompt is trained over a pretrained model, but none is named. Set "
        "--gin.INITIAL_CHECKPOINT_PATH=\"'...'\" to its checkpoint.",
    ),
    "a base that is not there": (
        None,
        ["--gin.INITIAL_CHECKPOINT_PATH='base'"],
        4,
        re.compile(r"INITIAL_CHECKPOINT_PATH: There is nothing at base\. Expected one of\n(.|\n)*"),
    ),
    "a last step before the base's": (
        None,
        ["--gin.TRAIN_STEPS=10"],
        2,
        "TRAIN_STEPS is 10, but the base model already stands at step 20, and TRAIN_STEPS counts "
        "those too (as in t5x). For 10 more steps set --gin.TRAIN_STEPS=30 or "
        "--gin.TRAIN_STEPS_RELATIVE=10.",
    ),
    "no last step": (
        None,
        ["--gin.TRAIN_STEPS=None"],
        2,
        "How long to train is not set. Set one of --gin.TRAIN_STEPS (the base's own steps "
        "included), --gin.TRAIN_STEPS_RELATIVE (steps of this run) and --gin.EPOCHS (passes over "
        "the training examples).",
    ),
    "steps and epochs": (
        None,
        ["--gin.EPOCHS=3"],
        2,
        "TRAIN_STEPS is 22 and EPOCHS is 3, but a run ends only once. Keep one of them and unset "
        "the rest: --gin.TRAIN_STEPS=None or --gin.EPOCHS=None.",
    ),
    "an unknown task": (
        None,
        [SEQIO, "--gin.MIXTURE_OR_TASK_NAME='sst2_tvs'"],
        3,
        "There is no task named 'sst2_tvs'. Did you mean 'sst2_tsv'? Task modules "
        "imported: prompt_tuning.tasks.sst2; set `MIXTURE_OR_TASK_MODULE` to the module "
        "that registers it.",
    ),
    "a split that the task does not have": (
        None,
        [SEQIO, "--gin.EVAL_SPLIT='test'"],
        3,
        "The task 'taskless_sst2_tsv' has no split 'test'. It has: train, validation. "
        "EVAL_SPLIT names the one to evaluate on; None evaluates nothing.",
    ),
    "a split without examples": (
        lines_removed("validation.tsv"),
        [SEQIO, "--gin.sst2.register_sst2_tsv.validation='{folder}/validation.tsv'"],
        3,
        re.compile(r"\S+/validation\.tsv is empty or has only the names of its columns: .*"),
    ),
    "a file without the split": (
        None,
        ["--gin.EVAL_SPLIT='test'"],
        3,
        re.compile(
            r"The file task '\S+/\{split\}\.tsv' has no split 'test': there is no file "
            r"'\S+/test\.tsv'\. .*"
        ),
    ),
    "a file of no rows": (
        lines_removed("validation.tsv"),
        ["--gin.FileTask.splits={'validation': '{folder}/validation.tsv'}"],
        3,
        re.compile(r"\S+/validation\.tsv .*"),
    ),
    "a task file that is not there": (
        None,
        ["--gin.TSV_DIR='nowhere'"],
        3,
        re.compile(
            r"The file task 'nowhere/\{split\}\.tsv' has no split 'train': there is no file "
            r"'nowhere/train\.tsv'\. .*"
        ),
    ),
    "a module that is not there": (
        None,
        [SEQIO, "--gin.MIXTURE_OR_TASK_MODULE='my_tasks'"],
        2,
        "MIXTURE_OR_TASK_MODULE names 'my_tasks', but there is no module 'my_tasks'. Install its "
        "package or put its folder on PYTHONPATH.",
    ),
    "a vocabulary larger than the model's table": (
        None,
        ["--gin.SentencePieceVocabulary.extra_ids=8033"],
        2,
        "The vocabulary has 8193 ids, but the model's embedding table has only 8192 rows. Set "
        "VOCABULARY_FILE to the vocabulary this model was made for, or choose a model whose "
        "T5Config.vocab_size is at least 8193.",
    ),
    "a run over another base": (
        run_over_another_base,
        [],
        4,
        re.compile(
            r"The run in \S+/run/checkpoints/21 is another one than is configured now:\n"
            r"  base model: was abababababab, is [0-9a-f]{12}\n"
            r"Choose another MODEL_DIR, or go back to what it began with; to go on with these "
            r"changes set --gin\.train\.accept_changes=True\."
        ),
    ),
    "something else to train": (
        None,
        ["--gin.train.trainable='promt'"],
        2,
        "train.trainable is 'promt', expected one of prompt, model. Did you mean 'prompt'?",
    ),
    "a period of no steps": (
        None,
        ["--gin.SAVE_PERIOD=0"],
        2,
        "SAVE_PERIOD is 0, expected 1 or more steps.",
    ),
}


@pytest.mark.parametrize(("make", "flags", "code", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input_exits_with_its_code_and_says_what_is_wrong(
    train, tmp_path, make, flags, code, message
):
    if make is not None:
        make(tmp_path)
    returned, error = train(*(flag.replace("{folder}", str(tmp_path)) for flag in flags))
    said = error[error.index("error: ") :].removesuffix("\n")
    pattern = message.pattern if isinstance(message, re.Pattern) else re.escape(message)
    assert re.fullmatch(f"error: {pattern}", said)
    assert returned == code
    assert not list(tmp_path.glob("run/numpy_checkpoints")), "nothing was trained"


def test_all_settings_without_a_value_are_listed_at_once(capsys):
    assert main(["train", *FILES, "--gin_file=prompts/from_class_labels.gin"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: Required settings without a value:\n")
    settings = re.findall(r"^  (\w+) \(\S+:\d+\): (\S.*)$", error, re.MULTILINE)
    assert sorted(settings) == [
        ("CLASS_LABELS", "--gin.CLASS_LABELS=\"['positive', 'negative']\""),
        ("INITIAL_CHECKPOINT_PATH", "--gin.INITIAL_CHECKPOINT_PATH=\"'/tmp/mini'\""),
        ("MODEL_DIR", "--gin.MODEL_DIR=\"'/tmp/run'\""),
        ("TSV_DIR", "--gin.TSV_DIR=\"'/data/sst2'\""),
        ("VOCABULARY_FILE", "--gin.VOCABULARY_FILE=\"'/tmp/mini.model'\""),
    ]


def test_a_dry_run_counts_what_would_be_trained_and_writes_nothing(train, tmp_path):
    code, error = train("--dry_run")
    assert code == 0
    assert "\nPrompt tuning\n" in f"\n{error}"
    assert re.search(r"\n  base +\S+/base \(run\), step 20\n", error), "nothing was hashed"
    assert re.search(r"\n  steps +20 to 22: 2 steps = [\d.]+ epochs of \d+ examples\n", error)
    assert error.endswith(
        "Dry run: the step compiles on shapes. Training 1 tensors, 160 of 574,240 parameters.\n"
    )
    assert not list(tmp_path.iterdir())


def test_a_loss_that_is_not_finite_exits_with_7_and_saves_nothing(train, tmp_path):
    code, error = train("--gin.Z_LOSS=1e38", "--gin.SAVE_PERIOD=1")
    message = (
        r"error: The loss of step 21 is (inf|nan)\. Its batch: (\S+/train \d+, ){3}\S+/train \d+\. "
        r"Lower the learning rate, look at the batch of that step, or use float32 "
        r"activations to see whether it is the arithmetic\.\n"
    )
    assert code == 7
    assert re.search(f"{message}$", error)
    assert not (tmp_path / "run/checkpoints").exists()
    assert not (tmp_path / "run/prompt.safetensors").exists()


def test_a_finished_run_says_so(train, tmp_path):
    code, error = train(f"--gin.TRAIN_STEPS={BASE_STEP}")
    assert code == 0
    assert error.startswith(
        "Nothing is trained: TRAIN_STEPS is 20, which counts the base's own steps (as in t5x), and "
        "the base model stands at step 20."
    )
    assert error.endswith("The run is finished: there is nothing to do. It stands at step 20.\n")
    assert not (tmp_path / "run/summary.json").exists()
    assert not (tmp_path / "run/config.gin").exists()


def test_the_folders_of_tfds_and_of_cached_tasks_reach_seqio(train, tmp_path):
    folders = [str(tmp_path / name) for name in ("tfds", "cache1", "cache2")]
    known = list(seqio.get_global_cache_dirs())
    loader = seqio.LazyTfdsLoader(name="tiny:1.0.0")
    try:
        flags = [
            f"--tfds_data_dir={folders[0]}",
            f"--seqio_additional_cache_dirs={folders[1]},{folders[2]}",
        ]
        assert train(*flags, "--dry_run")[0] == 0
        assert seqio.get_global_cache_dirs() == [*known, *folders[1:]]
        assert loader.data_dir == folders[0]
    finally:
        seqio.set_global_cache_dirs(known)
        seqio_tasks.use_folders()
        seqio.set_tfds_data_dir_override(None)
