"""Command lines and gin files written for t5x and for the original."""

import dataclasses
import importlib
import json
import logging
import pathlib
import re

import gin
import pytest
import seqio

from prompt_tuning.__main__ import main
from prompt_tuning.cli import config
from prompt_tuning.cli.arguments import RunArguments, parse_run
from prompt_tuning.cli.configuration import gin_binder, t5x_files, t5x_names
from prompt_tuning.cli.configuration.t5x_names import Ours
from prompt_tuning.data import original_modules
from prompt_tuning.errors import ConfigError
from prompt_tuning.model import T5Config
from tests.tasks import tfds_data
from tests.tiny_runs import forget_tasks, make_place

GIN = config.gin_root()
MODEL = "--gin_file=prompt_tuning/configs/models/t5_1_1_base_prompt.gin"
TRAIN = "--gin_file=prompt_tuning/configs/runs/prompt_finetune.gin"
EVAL = "--gin_file=prompt_tuning/configs/runs/prompt_eval.gin"
INFER = "--gin_file=prompt_tuning/configs/runs/prompt_infer.gin"

# The original's sst2-demo.sh and sst2-demo-eval.sh, without what a user gives them.
DEMO = [
    MODEL,
    "--gin_file=prompt_tuning/configs/prompts/from_class_labels.gin",
    TRAIN,
    "--gin.CLASS_LABELS=['positive', 'negative']",
    "--gin.MIXTURE_OR_TASK_NAME='taskless_glue_sst2_v200_examples'",
    "--gin.MIXTURE_OR_TASK_MODULE='prompt_tuning.data.glue'",
    "--gin.TASK_FEATURE_LENGTHS={'inputs': 512, 'targets': 8}",
    "--gin.TRAIN_STEPS=1_150_000",
    "--gin.USE_CACHED_TASKS=False",
]
DEMO_EVAL = [
    MODEL,
    EVAL,
    "--gin.MIXTURE_OR_TASK_NAME='taskless_glue_sst2_v200_examples'",
    "--gin.MIXTURE_OR_TASK_MODULE='prompt_tuning.data.glue'",
    "--gin.TASK_FEATURE_LENGTHS={'inputs': 512, 'targets': 8}",
    "--gin.utils.DatasetConfig.split='validation'",
    "--gin.utils.DatasetConfig.batch_size=128",
    "--gin.USE_CACHED_TASKS=False",
]
REQUIRED = [
    "--gin.MODEL_DIR='/run'",
    "--gin.INITIAL_CHECKPOINT_PATH='/base'",
    "--gin.MIXTURE_OR_TASK_NAME='task'",
    "--gin.TASK_FEATURE_LENGTHS={'inputs': 8, 'targets': 8}",
]
ASKED = [
    "--gin.CHECKPOINT_PATH='/base'",
    "--gin.PROMPT_FILE='/prompt.npy'",
    "--gin.EVAL_OUTPUT_DIR='/eval'",
    "--gin.MIXTURE_OR_TASK_NAME='task'",
]


@pytest.fixture(autouse=True)
def nothing_configured():
    yield
    config.clear()


def parse(*flags):
    config.parse(parse_run("prompt-tuning", "", flags))


def value(name):
    """Returns what gin would give a parameter, or a macro."""
    return gin.query_parameter(name if "." in name else f"{name}/gin.macro.value")


def targets():
    tables = (*t5x_names.DATA.values(), t5x_names.SETTINGS, t5x_names.MACROS)
    return sorted(
        {one.target for table in tables for one in table.values() if isinstance(one, Ours)} - {""}
    )


@pytest.mark.parametrize("target", targets())
def test_every_setting_of_theirs_leads_to_one_of_ours(target):
    module, colon, path = target.partition(":")
    if not colon:
        files = [*GIN.glob("runs/*.gin"), *GIN.glob("data/*.gin"), *GIN.glob("models/*.gin")]
        files += GIN.glob("prompts/*.gin")
        assert any(re.search(rf"^{target} =", file.read_text(), re.M) for file in files)
        return
    function, _, parameter = path.rpartition(".")
    owner = importlib.import_module(module)
    accepted = gin_binder.parameters(getattr(owner, function))
    names = {one.name for one in accepted}
    if any(one.kind is one.VAR_KEYWORD for one in accepted):
        names |= {field.name for field in dataclasses.fields(T5Config)}
    assert parameter in names


@pytest.mark.parametrize("name", t5x_names.REFERENCES)
def test_every_function_of_theirs_leads_to_one_of_ours(name):
    module, _, function = t5x_names.REFERENCES[name].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


@pytest.mark.parametrize("module", original_modules.OURS)
def test_every_module_of_tasks_leads_to_ours(module):
    for name in original_modules.ours(module):
        assert name.startswith("prompt_tuning.tasks.")
        assert importlib.util.find_spec(name)


ORIGINAL_FILES = [
    *(f"prompt_tuning/configs/models/t5_1_1_{size}_prompt.gin" for size in ("small", "xxl")),
    "prompt_tuning/configs/models/t5_1_1_prompt.gin",
    *(f"prompt_tuning/configs/models/mt5_{size}prompt.gin" for size in ("", "base_", "150b_")),
    *(f"prompt_tuning/configs/models/sizes/{size}.gin" for size in ("base", "80b")),
    "prompt_tuning/configs/models/decoding/beam_search.gin",
    "prompt_tuning/configs/models/decoding/nucleus_sampling.gin",
    *(
        f"prompt_tuning/configs/prompts/from_{kind}.gin"
        for kind in (
            "class_labels",
            "class_labels_numpy",
            "file",
            "sampled_vocab",
            "sampled_vocab_numpy",
        )
    ),
    *(f"prompt_tuning/configs/runs/prompt_{run}.gin" for run in ("finetune", "eval", "infer")),
    *(f"t5x/configs/runs/{run}.gin" for run in ("pretrain", "finetune", "eval", "infer")),
    "t5x/examples/t5/t5_1_1/large.gin",
    "t5x/examples/scalable_t5/mt5/xl.gin",
    "t5x/examples/t5/byt5/small.gin",
    "t5x/examples/t5/t5_1_0/11B.gin",
    "flaxformer/t5x/configs/t5/models/t5_1_1_base.gin",
    "flaxformer/t5x/configs/t5/models/t5_3B.gin",
    "prompt_tuning/gin/runs/eval.gin",
]


@pytest.mark.parametrize("name", ORIGINAL_FILES)
def test_every_file_of_theirs_leads_to_one_of_ours(name):
    assert (GIN / t5x_files.ours(name)).is_file()


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("t5x/configs/runs/export.gin", "`prompt-tuning convert`"),
        ("prompt_tuning/configs/test/t5_1_1_tiny_prompt.gin", "models/ours_tiny.gin"),
        ("prompt_tuning/configs/extended/models/ia3_t5_1_1.gin", "no configuration for `train`"),
        ("prompt_tuning/configs/architectures/t5_1_1_flaxformer.gin", "MODEL_NAME"),
        ("prompt_tuning/configs/runs/prompt_finetunes.gin", "Looked in"),
    ],
)
def test_a_file_that_nothing_stands_for_is_an_error_that_says_what_to_do(name, advice):
    with pytest.raises(ConfigError, match=f"no gin file '{name}'.*{advice}"):
        parse(f"--gin_file={name}")


def test_the_file_of_the_original_is_not_read_where_it_lies(tmp_path, caplog):
    theirs = tmp_path / "prompt_tuning/configs/models/t5_1_1_base_prompt.gin"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("from t5x import models\nmodels.EncoderDecoderModel.no_such = 1\n")
    caplog.set_level(logging.INFO, "prompt_tuning")
    parse(f"--gin_search_paths={tmp_path}", MODEL, TRAIN, *REQUIRED)
    assert "t5_1_1_base_prompt.gin is models/t5_1_1_base.gin here" in caplog.text


SETTINGS = [
    ("train/utils.DatasetConfig.batch_size=7", "task_batches.task_batches.batch_size", 7),
    ("train/utils.DatasetConfig.split='dev'", "train/task_batches.task_split.split", "dev"),
    ("infer_eval/utils.DatasetConfig.split='dev'", "eval/task_batches.task_split.split", "dev"),
    ("train_eval/DatasetConfig.batch_size=3", "task_evaluations.task_evaluations.batch_size", 3),
    ("train/t5x.utils.DatasetConfig.seed=5", "task_batches.task_batches.seed", 5),
    ("train_script.train.eval_steps=2", "EVAL_STEPS", 2),
    ("utils.SaveCheckpointConfig.keep=20", "KEEP_CHECKPOINTS", 20),
    ("utils.SaveCheckpointConfig.period=50", "SAVE_PERIOD", 50),
    ("utils.RestoreCheckpointConfig.dtype='bfloat16'", "PARAM_DTYPE", "bfloat16"),
    ("trainer.Trainer.num_microbatches=4", "MICROBATCHES", 4),
    ("trainer.Trainer.num_microbatches=None", "MICROBATCHES", 1),
    (
        "utils.create_learning_rate_scheduler.warmup_steps=9",
        "schedules.learning_rate.warmup_steps",
        9,
    ),
    ("adafactor.Adafactor.decay_rate=0.5", "optimizer.adafactor.decay_rate", 0.5),
    ("partitioning.PjitPartitioner.num_partitions=2", "NUM_PARTITIONS", 2),
    (
        "partitioning.PjitPartitioner.model_parallel_submesh=(4, 4, 1, 2)",
        "MODEL_PARALLEL_SUBMESH",
        (4, 4, 1, 2),
    ),
    (
        "partitioning.standard_logical_axis_rules.parameter_partitioning_dims=2",
        "partitioning.Partitioning.parameter_partitioning_dims",
        2,
    ),
    ("models.EncoderDecoderModel.z_loss=0.5", "losses.Loss.z_loss", 0.5),
    ("network.T5Config.num_heads=3", "model.t5_config.num_heads", 3),
    ("seqio.SentencePieceVocabulary.sentencepiece_model_file='/v'", "VOCABULARY_FILE", "/v"),
    ("seqio.Evaluator.num_examples=10", "EVALUATOR_NUM_EXAMPLES", 10),
    ("LABELS=['a', 'b']", "CLASS_LABELS", ["a", "b"]),
]


@pytest.mark.parametrize(("binding", "ours", "wanted"), SETTINGS)
def test_a_setting_of_theirs_is_ours_under_another_name(binding, ours, wanted):
    labels = "--gin_file=prompts/from_class_labels.gin"
    given = REQUIRED if "LABELS" in binding else [*REQUIRED, "--gin.CLASS_LABELS=[]"]
    parse(MODEL, labels, TRAIN, *given, f"--gin.{binding}")
    assert value(ours) == wanted


@pytest.mark.parametrize(
    ("binding", "ours", "wanted"),
    [
        ("utils.DatasetConfig.split='test'", "task_batches.task_split.split", "test"),
        ("utils.DatasetConfig.batch_size=3", "task_evaluations.task_evaluations.batch_size", 3),
        ("utils.DatasetConfig.use_cached=True", "task_batches.task_split.use_cached", True),
        ("utils.RestoreCheckpointConfig.mode='specific'", "CHECKPOINTS", "latest"),
        ("utils.RestoreCheckpointConfig.mode='all'", "CHECKPOINTS", "all"),
        (
            "models.EncoderDecoderModel.predict_batch_with_aux.num_decodes=4",
            "beam_search.BeamSearch.beams",
            4,
        ),
    ],
)
def test_a_setting_of_their_evaluation_is_one_of_ours(binding, ours, wanted):
    parse(MODEL, EVAL, *ASKED, f"--gin.{binding}")
    assert value(ours) == wanted


def test_their_function_for_decoding_becomes_our_strategy():
    parse(
        *(MODEL, EVAL, *ASKED),
        "--gin.models.EncoderDecoderModel.decode_fn=@decoding.temperature_sample",
        "--gin.decoding.temperature_sample.topk=0",
        "--gin.decoding.temperature_sample.topp=0.9",
    )
    reference = value("DECODING")
    strategy = reference.scoped_configurable_fn()
    assert (type(strategy).__name__, strategy.top_k, strategy.top_p) == ("Sample", 0, 0.9)


# Written by somebody for the original: its wiring, its prompt, other numbers, their own module.
THEIRS = """
from __gin__ import dynamic_registration
import __main__ as train_script
from t5x import partitioning
from t5x import trainer
from t5x import utils
from prompt_tuning import prompts
from prompt_tuning.data import glue
from prompt_tuning.train import prompts as train_prompts
import toy_methods as toy

include "prompt_tuning/configs/models/t5_1_1_small_prompt.gin"
include "prompt_tuning/configs/runs/prompt_finetune.gin"

PROMPT = @train_prompts.Prompt
train_prompts.Prompt.prompt = @prompts.Prompt()
prompts.Prompt:
  length = 20
  prompt_init = @prompt_init/prompts.from_sample_of_embeddings()
prompt_init/prompts.from_sample_of_embeddings:
  embeddings = @prompt_init/prompts.t5x_load()
  population_size = 77
prompt_init/prompts.t5x_load:
  checkpoint_path = %INITIAL_CHECKPOINT_PATH
  variable_path = "token_embedder/embedding"

train_script.train:
  partitioner = @partitioning.PjitPartitioner()
  trainer_cls = @trainer.Trainer
  eval_period = 7
train/utils.DatasetConfig:
  pack = False
  batch_size = 16
utils.SaveCheckpointConfig:
  period = 7
  save_dataset = True
trainer.Trainer.learning_rate_fn = @utils.create_learning_rate_scheduler()
toy.schedule.base = 3
"""


def test_a_gin_file_written_for_the_original_configures_the_same_run(folder, caplog):
    caplog.set_level(logging.INFO, "prompt_tuning")
    (folder / "theirs.gin").write_text(THEIRS)
    parse("--gin_file=theirs.gin", *REQUIRED)
    assert value("MODEL_SIZE") == "small"
    assert value("prompts.Prompt.length") == 20
    assert value("train.eval_period") == 7
    assert value("SAVE_PERIOD") == 7
    assert value("task_batches.task_batches.batch_size") == 16
    assert value("prompt_init/from_sampled_vocabulary.population_size") == 77
    assert repr(value("prompts.Prompt.init")).startswith("@prompt_init/")
    assert "glue_sst2_v200" in seqio.TaskRegistry.names()
    assert re.findall(
        r"theirs\.gin:\d+: `utils\.SaveCheckpointConfig\.save_dataset` has no effect "
        r"here: the place in the data",
        caplog.text,
    )


@pytest.mark.parametrize(
    ("binding", "message"),
    [
        (
            "utils.DatasetConfig.batch_size=8",
            "there is no `utils.DatasetConfig.batch_size` here.*train/utils.DatasetConfig",
        ),
        (
            "train/utils.DatasetConfig.pack=True",
            "`train/utils.DatasetConfig.pack` cannot be True "
            "here: examples are never packed.*set it to False",
        ),
        (
            "train/utils.DatasetConfig.batchsize=8",
            "`train/utils.DatasetConfig.batchsize` is a name "
            "of t5x that means nothing here.*'batch_size'",
        ),
        ("utils.SaveCheckpointConfig.checkpoint_steps=[5]", "there is no .*Set SAVE_PERIOD"),
        ("train.actions={}", "there is no `train.actions` here.*MONITOR"),
        ("train.infer_eval_dataset_cfg=None", "cannot be None here.*EVAL_SPLIT = None"),
        ("USE_HARDWARE_RNG=True", "`USE_HARDWARE_RNG` cannot be True here"),
        ("PROMPT_REGEX=['.*/bias']", "what is trained is the prompt"),
        ("NUM_LAYERS=4", "there is no `NUM_LAYERS` here.*NUM_ENCODER_LAYERS"),
        (
            "EncoderDecoderModel.module=@prompts.uniform",
            "`EncoderDecoderModel.module` is how t5x puts|cannot be",
        ),
    ],
)
def test_what_has_no_counterpart_is_an_error_that_says_what_to_do(capsys, binding, message):
    assert main(["train", MODEL, TRAIN, *REQUIRED, f"--gin.{binding}"]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error)
    assert f"--gin.{binding.partition('=')[0]}" in error


def test_an_unknown_name_of_an_imported_module_of_theirs_is_named_with_its_place(folder):
    (folder / "theirs.gin").write_text(
        "from __gin__ import dynamic_registration\nfrom t5x import utils\n"
        "utils.Nothing.batch_size = 3\n"
    )
    with pytest.raises(ConfigError, match=r"theirs\.gin:3: `utils\.Nothing\.batch_size` is a name"):
        config.parse(RunArguments(gin_file=("theirs.gin",)))


def test_gin_files_of_an_installed_package_are_found_by_its_name(folder, monkeypatch):
    package = folder / "elsewhere/my_package"
    (package / "gin").mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('nobody has to import it')")
    (package / "gin/steps.gin").write_text("STEPS = 31\n")
    monkeypatch.syspath_prepend(folder / "elsewhere")
    parse("--gin_file=run.gin", "--gin_file=my_package/gin/steps.gin", "--gin.MODEL_DIR='/run'")
    assert value("STEPS") == 31


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = make_place(tmp_path_factory.mktemp("place"))
    tfds_data.build(place.folder / "tfds")
    yield place
    forget_tasks()
    seqio.set_tfds_data_dir_override(None)


@pytest.mark.slow
def test_the_original_s_demo_trains_and_evaluates(place, tmp_path):
    tiny = [
        "--gin.MODEL_NAME='ours_tiny'",
        f"--gin.VOCABULARY_FILE='{place.folder}/small.model'",
        f"--tfds_data_dir={place.folder}/tfds",
        "--gin_search_paths=/nowhere/t5x/..,/nowhere/prompt_tuning/..",
    ]
    run = tmp_path / "run"
    train = [
        *(*DEMO, *tiny),
        f"--gin.MODEL_DIR='{run}'",
        f"--gin.INITIAL_CHECKPOINT_PATH='{place.folder}/base'",
        "--gin.TRAIN_STEPS=22",
        "--gin.BATCH_SIZE=2",
        f"--gin.CACHE_DIR='{tmp_path}/cache'",
    ]
    assert main(["train", *train]) == 0
    evaluate = [
        *(*DEMO_EVAL, *tiny),
        f"--gin.CHECKPOINT_PATH='{place.folder}/base'",
        f"--gin.EVAL_OUTPUT_DIR='{tmp_path}/eval'",
        f"--gin.PROMPT_FILE='{run}/numpy_checkpoints/checkpoint_22/encoder.prompt.prompt.prompt'",
        f"--gin.CACHE_DIR='{tmp_path}/cache'",
    ]
    assert main(["eval", *evaluate]) == 0
    name = "inference_eval/taskless_glue_sst2_v200_examples-metrics.jsonl"
    trained, evaluated = (
        json.loads((pathlib.Path(folder) / name).read_text().splitlines()[-1])
        for folder in (run, tmp_path / "eval")
    )
    assert trained["accuracy"] == evaluated["accuracy"]
