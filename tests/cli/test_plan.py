"""`prompt-tuning plan`: no data, no weights, and only the settings that decide about shapes."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest
from flax import nnx

from prompt_tuning.__main__ import main
from prompt_tuning.checkpoints import PromptFile
from prompt_tuning.checkpoints.numpy_file import save_numpy
from prompt_tuning.cli import config
from prompt_tuning.cli.plan_arguments import parse_plan
from prompt_tuning.errors import ConfigError
from prompt_tuning.model import T5, BaseParam, t5_config
from prompt_tuning.planning import topologies
from tests.asked_models import make_base

VECTORS = np.random.default_rng(1).normal(size=(3, 32)).astype(np.float32)
TINY = [
    "--gin_file=models/ours_tiny.gin",
    "--gin_file=runs/prompt_finetune.gin",
    "--gin.TASK_FEATURE_LENGTHS={'inputs': 12, 'targets': 4}",
    "--gin.PROMPT_LENGTH=4",
    "--gin.BATCH_SIZE=8",
    "--gin.DROPOUT_RATE=0.0",
    "--gin.ATTENTION='plain'",
]


@pytest.fixture(autouse=True)
def no_configuration_is_left():
    yield
    config.clear()


def parse(*flags):
    return parse_plan("prompt-tuning plan", "", flags)


def said(capsys, *flags, code=0):
    assert main(["plan", *flags]) == code
    found = capsys.readouterr()
    return found.err if code else found.out


def test_nothing_but_shapes_must_be_set(capsys, tmp_path):
    # The prompt starts from embeddings of a checkpoint that nobody has named.
    flags = [*TINY[:1], "--gin_file=prompts/from_class_labels.gin", *TINY[1:]]
    file = tmp_path / "plan.json"
    out = said(capsys, *flags, "--topology=cpu:2", "--what=train", f"--json={file}")
    (found,) = json.loads(file.read_text())
    assert (found["batch"], found["inputs"], found["targets"]) == (8, 12, 4)
    assert found["collectives"] == [
        {"kind": "all-reduce", "dtype": "f32", "count": 1, "bytes": pytest.approx(512, abs=64)}
    ]
    assert "1 of 5" in out
    assert max(map(len, out.splitlines())) <= 110


def test_json_alone_is_all_that_stdout_gets(capsys):
    flags = [*TINY, "--gin.INPUT_BUCKETS=@inputs/batches.fixed()"]
    flags += ["--gin.inputs/batches.fixed.length=20", "--topology=cpu:1", "--what=eval", "--json"]
    (found,) = json.loads(said(capsys, *flags))
    # An evaluation is not cut to the buckets of training, but its examples may be as long.
    assert (found["program"], found["inputs"]) == ("eval", 20)


def test_what_decides_about_shapes_is_demanded(capsys):
    flags = ["--gin_file=models/t5_1_1.gin", "--gin_file=runs/prompt_finetune.gin"]
    error = said(capsys, *flags, "--topology=cpu:1", code=2)
    assert "Required settings without a value" in error
    assert "--gin.MODEL_SIZE='base'" in error.replace('"', "") or "MODEL_SIZE" in error
    assert "MODEL_DIR" not in error


def test_a_macro_that_nothing_reads_is_still_an_error(capsys):
    assert "BATCHSIZE" in said(capsys, *TINY, "--gin.BATCHSIZE=3", "--topology=cpu:1", code=2)


def test_a_program_that_the_configuration_lacks_is_named(capsys):
    flags = [*TINY, "--gin.EVAL_SPLIT=None", "--topology=cpu:1", "--what=decode"]
    assert "has no decode; it has train" in said(capsys, *flags, code=2)


@pytest.mark.slow
def test_pretraining_is_planned_by_its_objective(capsys):
    flags = [
        "--gin_file=models/ours_tiny.gin",
        "--gin_file=runs/pretrain.gin",
        "--gin.BATCH_SIZE=2",
    ]
    flags += ["--gin.INPUT_LENGTH=16", "--gin.ATTENTION='plain'", "--topology=cpu:1", "--json"]
    (found,) = json.loads(said(capsys, *flags))
    assert (found["program"], found["inputs"], found["targets"]) == ("train", 16, 5)
    # All weights have a gradient: at least three forward passes.
    assert found["flops_over_minimum"] == pytest.approx(1.0, abs=0.1)


@pytest.fixture(scope="module")
def base(programs, tmp_path_factory):
    """A checkpoint, a prompt of 3 vectors in a file, and the folder of a run that made one."""
    folder = tmp_path_factory.mktemp("asked")
    make_base(folder / "base")
    PromptFile.of(VECTORS).save(folder / "prompt.safetensors")
    save_numpy(folder / "run", 40, VECTORS)
    PromptFile.of(VECTORS, step=40).save(folder / "run/prompt.safetensors")
    return folder


def asking(base, command, *flags):
    return [
        "--gin_file=models/from_checkpoint.gin",
        f"--gin_file=runs/{command}.gin",
        f"--gin.CHECKPOINT_PATH='{base}/base'",
        "--gin.TASK_FEATURE_LENGTHS={'inputs': 12, 'targets': 4}",
        "--gin.BATCH_SIZE=8",
        *flags,
        "--topology=cpu:1",
        "--json",
    ]


@pytest.mark.parametrize(
    "prompt", ["run", pytest.param("prompt.safetensors", marks=pytest.mark.slow)]
)
def test_an_evaluation_is_planned_with_the_prompt_that_is_named(capsys, base, prompt):
    flags = asking(base, "prompt_eval", f"--gin.PROMPT_FILE='{base}/{prompt}'")
    found = json.loads(said(capsys, *flags))
    assert [plan["program"] for plan in found] == ["eval", "decode"]
    bare = json.loads(said(capsys, *asking(base, "eval")))
    for plan, without in zip(found, bare, strict=True):
        assert plan["minimum_flops"] > without["minimum_flops"]
        assert plan["flops_over_minimum"] == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize(("mode", "program"), [("predict", "decode"), ("score", "eval")])
def test_an_inference_is_planned_by_what_it_does(capsys, base, mode, program):
    flags = asking(base, "infer", f"--gin.MODE='{mode}'", "--gin.QUANTIZATION='int8'")
    (found,) = json.loads(said(capsys, *flags))
    assert (found["program"], found["batch"]) == (program, 8)
    (plain,) = json.loads(said(capsys, *asking(base, "infer", f"--gin.MODE='{mode}'")))
    # Exactly the projections are integers then, which are little of a model as small as this.
    saved = plain["memory_bytes"]["argument"] - found["memory_bytes"]["argument"]
    assert saved == weight_bytes() - weight_bytes(quantization="int8") > 0


def weight_bytes(**settings):
    model = nnx.eval_shape(lambda: T5(t5_config("ours_tiny", **settings), rngs=nnx.Rngs(0)))
    return sum(
        leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(nnx.state(model, BaseParam))
    )


def test_an_ensemble_is_planned_one_prompt_at_a_time(capsys, base):
    flags = asking(base, "prompt_eval", f"--gin.PROMPT_FILE=['{base}/run', '{base}/run']")
    assert "names 2 prompts" in said(capsys, *flags, code=2)


def test_a_checkpoint_that_is_not_there_is_named(capsys, base):
    flags = asking(base, "eval", "--gin.CHECKPOINT_PATH='/nowhere/base'")
    assert "/nowhere/base" in said(capsys, *flags, code=4)


@pytest.mark.slow
def test_the_search_for_a_slice_takes_the_fewest_devices_that_hold_the_model(capsys, monkeypatch):
    small = dataclasses.replace(topologies.GPUS["h100"], memory=2_000_000)
    monkeypatch.setitem(topologies.CHIPS, "h100", small)
    monkeypatch.setitem(topologies.GPUS, "h100", small)
    flags = [*TINY, "--gin.BATCH_SIZE=4", "--topology=h100:4", "--what=train", "--search=slice"]
    out = said(capsys, *flags)
    # Of two devices that share the rows each has the whole model; half of it fits.
    assert [line.split()[0] for line in out.splitlines() if line.endswith(("yes", "no"))] == [
        "h100:1",
        "h100:2",
        "h100:2",
    ]
    assert "The smallest that fits: h100:2 with NUM_PARTITIONS=2." in out


@pytest.mark.slow
def test_the_search_for_a_slice_ends_with_the_devices_that_were_named(capsys, monkeypatch):
    monkeypatch.setattr(topologies, "_memory_of_host", lambda: 1_000_000)
    out = said(capsys, *TINY, "--topology=cpu:2", "--what=train", "--search=slice")
    assert "None of them fits." in out
    assert "cpu:2 train" in out


@pytest.mark.slow
def test_the_search_for_a_batch_ends_where_more_rows_do_not_fit(capsys, monkeypatch):
    monkeypatch.setattr(topologies, "_memory_of_host", lambda: 8_000_000)
    flags = [*TINY, "--gin.BATCH_SIZE=32", "--topology=cpu:1", "--what=train", "--search=batch"]
    out = said(capsys, *flags)
    most = int(re.search(r"The most at a time: (\d+) examples", out)[1])
    found = {
        int(words[5]): words[-1]
        for line in out.splitlines()
        if (words := line.split()) and words[-1] in ("yes", "no")
    }
    assert found[most] == "yes"
    assert all((rows <= most) == (fits == "yes") for rows, fits in found.items())
    assert min(rows for rows in found if rows > most) - most <= max(1, most // 8)
    # The fewest parts of equal size.
    parts = next(parts for parts in (1, 2, 4, 8, 16, 32) if 32 / parts <= most)
    assert f"BATCH_SIZE=32 takes MICROBATCHES={parts}." in out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], r"No --topology was given"),
        (["--topology=cpu:1", "--what=trian"], r"no program 'trian'.*Did you mean 'train'"),
        (["--topology=cpu:1", "--what="], r"--what is empty"),
        (["--topology=cpu:1", "--search=all"], r"invalid choice: 'all'"),
        (["--topologie=cpu:1"], r"no flag --topologie.*Did you mean '--topology'"),
    ],
)
def test_a_wrong_flag_is_told_what_was_expected(flags, message):
    with pytest.raises(ConfigError, match=message):
        parse("--gin_file=run.gin", *flags)
