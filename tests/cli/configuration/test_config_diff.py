"""`prompt-tuning config diff`: what two runs do not share, from whatever is left of them."""

import importlib
import json
import os
import pathlib
import re
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from prompt_tuning.__main__ import main
from prompt_tuning.checkpoints.prompt_file import PromptFile
from prompt_tuning.checkpoints.run import RunCheckpoints
from prompt_tuning.cli import config
from prompt_tuning.cli.arguments import RunArguments
from prompt_tuning.cli.identity import identity
from prompt_tuning.prompts import PromptParam
from prompt_tuning.training.optimizer import adafactor
from prompt_tuning.training.state import start
from tests.fake_bucket import fake_bucket

ROOT = pathlib.Path(__file__).parent.parent.parent

SAME = (0, "No differences.\n")


def operative(*bindings, file="run.gin"):
    """Returns what a run of the toy notes down."""
    bindings = ("MODEL_DIR = '/tmp/run'", *(one.replace("=", " = ", 1) for one in bindings))
    config.parse(RunArguments(gin_file=(file,), gin_bindings=bindings))
    config.call(importlib.import_module("toy_methods").train)
    return config.operative_config()


def write_run(folder, *bindings, file="run.gin"):
    """Leaves what a run leaves of its configuration."""
    folder.mkdir()
    (folder / "config.gin").write_text(operative(*bindings, file=file))
    return folder


def write_checkpoint(folder, step, *, base="b" * 32, **identity):
    vectors = nnx.State({"prompt": PromptParam(jnp.zeros((2, 3)), axes=("prompt", "embed"))})
    with RunCheckpoints(folder, base=base, identity=identity, keep=None) as checkpoints:
        checkpoints.save(start(vectors, adafactor(), step=step))


def diff(capsys, *flags):
    """Returns the exit code and what is printed."""
    capsys.readouterr()
    code = main(["config", "diff", *map(str, flags)])
    printed = capsys.readouterr()
    return code, printed.out or printed.err


# What is a difference.


def test_runs_of_one_configuration_do_not_differ_wherever_they_lie(folder, capsys):
    one, two = write_run(folder / "one"), write_run(folder / "two", "MODEL_DIR='/tmp/other'")
    assert (one / "config.gin").read_text() != (two / "config.gin").read_text()
    assert diff(capsys, one, two) == SAME
    assert diff(capsys, one, one / "config.gin") == SAME


def test_a_macro_that_differs_is_said_once_with_what_it_decides(folder, capsys):
    one = write_run(folder / "one", "train.lengths={'all': %STEPS}")
    two = write_run(
        folder / "two", "STEPS=20", "train.lengths={'all': %STEPS}", "train.dry_run=True"
    )
    assert diff(capsys, one, two) == (
        1,
        "What decides the numbers of a run:\n"
        "  STEPS: 10 -> 20\n"
        "What does not:\n"
        "  toy.train.dry_run: False -> True\n"
        "2 differences, 1 in what decides the numbers.\n",
    )
    code, text = diff(capsys, two, one, "--json")
    assert code == 1
    assert json.loads(text) == {
        "a": str(two),
        "b": str(one),
        "decides": {"STEPS": {"a": "20", "b": "10"}},
        "other": {"toy.train.dry_run": {"a": "True", "b": "False"}},
    }


def test_the_same_value_by_another_way_is_no_difference(folder, capsys):
    (folder / "mine.gin").write_text("include 'run.gin'\nSTEPS = %MANY\nMANY = 20\n")
    chain = write_run(folder / "chain", file="mine.gin")
    macro = write_run(folder / "macro", "STEPS=20")
    direct = write_run(folder / "direct", "train.steps=20")
    for a in (chain, macro, direct):
        for b in (chain, macro, direct):
            assert diff(capsys, a, b) == SAME


def test_the_end_of_a_chain_that_differs_is_said(folder, capsys):
    (folder / "mine.gin").write_text("include 'run.gin'\nSTEPS = %MANY\nMANY = 20\n")
    one = write_run(folder / "one", file="mine.gin")
    two = write_run(folder / "two", "MANY=30", file="mine.gin")
    three = write_run(folder / "three", "train.steps=40", file="mine.gin")
    assert "  MANY: 20 -> 30\n1 difference, 1 in" in diff(capsys, one, two)[1]
    # Not the macros that one of the two has no use for.
    assert "  toy.train.steps: 30 -> 40\n1 difference, 1 in" in diff(capsys, two, three)[1]


def test_a_setting_of_one_side_only_is_said(folder, capsys):
    one = write_run(folder / "one")
    two = write_run(folder / "two", "train.schedule=@a/toy.schedule()", "a/schedule.base=2")
    assert diff(capsys, one, two) == (
        1,
        "What decides the numbers of a run:\n"
        "  a/toy.schedule.base: not set -> 2\n"
        "  a/toy.schedule.warmup: not set -> 0\n"
        "  toy.train.schedule: None -> @a/toy.schedule()\n"
        "3 differences, 3 in what decides the numbers.\n",
    )


def test_a_module_under_another_name_is_no_difference(folder, capsys):
    (folder / "mine.gin").write_text((folder / "run.gin").read_text().replace("toy.", "methods."))
    text = (folder / "mine.gin").read_text().replace("as toy", "as methods")
    (folder / "mine.gin").write_text(text)
    one, two = write_run(folder / "one"), write_run(folder / "two", file="mine.gin")
    assert "methods.train" in (two / "config.gin").read_text()
    assert diff(capsys, one, two) == SAME


# Where a configuration is recorded.


def test_files_count_by_their_hashes(folder, capsys):
    one, two = write_run(folder / "one"), write_run(folder / "two")
    write_checkpoint(one, 5, data="c" * 32, vocabulary="d" * 32)
    write_checkpoint(one, 20, data="1" * 32, vocabulary="d" * 32)  # the newest one counts
    assert diff(capsys, one, two) == SAME  # of two nothing is known
    write_checkpoint(two, 20, base="2" * 32, data="3" * 32, vocabulary="d" * 32)
    assert diff(capsys, one, two) == (
        1,
        "What decides the numbers of a run:\n"
        "  base: bbbbbbbbbbbb -> 222222222222\n"
        "  data: 111111111111 -> 333333333333\n"
        "2 differences, 2 in what decides the numbers.\n",
    )
    assert json.loads(diff(capsys, one, two, "--json")[1])["decides"]["base"]["a"] == "b" * 32


def test_a_checkpoint_knows_what_decides_the_numbers(folder, capsys):
    one, two = (
        write_run(folder / "one"),
        write_run(folder / "two", "STEPS=20", "train.dry_run=True"),
    )
    settings = identity(config.operative_values(), vocabulary=None)
    write_checkpoint(folder / "bare", 7, **settings)
    checkpoint = folder / "bare/checkpoints/7"
    for path in (folder / "bare", folder / "bare/checkpoints", checkpoint):
        code, text = diff(capsys, two, path)
        assert code == 0 and text.startswith("No differences.\nOnly what decides the numbers was")
        code, text = diff(capsys, one, path)
        assert code == 1 and "  toy.train.steps: 10 -> 20\n1 difference, 1 in" in text


def test_a_prompt_knows_its_configuration(folder, capsys):
    vectors = np.ones((3, 4), np.float32)
    one = write_run(folder / "one")
    file = PromptFile.of(vectors, base="b" * 32, config=operative("STEPS=20"))
    file.save(folder / "best/prompt.safetensors")
    for path in (folder / "best", folder / "best/prompt.safetensors"):
        code, text = diff(capsys, one, path)
        assert code == 1 and "  STEPS: 10 -> 20\n" in text
    write_checkpoint(one, 5, base="2" * 32)
    assert "  base: 222222222222 -> bbbbbbbbbbbb\n" in diff(capsys, one, folder / "best")[1]
    PromptFile.of(vectors).save(folder / "bare.safetensors")
    code, text = diff(capsys, one, folder / "bare.safetensors")
    assert code == 4 and "bare.safetensors does not say how it was trained" in text


def test_an_evaluation_knows_what_its_numbers_are_of(folder, capsys):
    known = {"toy.evaluate.batch": "3", "ANSWERING/toy.Decode.beams": "1"}
    for name, beams, prompt in (("one", "1", "p"), ("two", "4", "q")):
        (folder / name).mkdir()
        record = {
            "settings": {**known, "ANSWERING/toy.Decode.beams": beams},
            "data": {"data of inference_eval/sst2": "5" * 32},
            "steps": {"9": {"prompts": ["old"]}, "10": {"prompts": [prompt]}},
        }
        (folder / name / "evaluated.json").write_text(json.dumps(record))
    code, text = diff(capsys, folder / "one", folder / "two")
    assert code == 1
    assert "  ANSWERING/toy.Decode.beams: 1 -> 4\n  prompts: ['p'] -> ['q']\n2 diff" in text
    (folder / "two/evaluated.json").write_text("{}")
    code, text = diff(capsys, folder / "one", folder / "two")
    assert code == 4 and "evaluated.json is not what was written" in text


def test_how_answers_are_made_counts_where_there_are_answers(folder, capsys):
    settings = {"toy.evaluate.batch": "3", "ANSWERING/toy.Decode.beams": "1"}
    for name, beams in (("one", 1), ("two", 4)):
        (folder / name).mkdir()
        (folder / name / "config.gin").write_text(
            f"toy.evaluate.batch = 3\ntoy.evaluate.output_dir = '{name}'\n"
            f"ANSWERING/toy.Decode.beams = {beams}\n"
        )
    (folder / "old").mkdir()
    record = {"settings": settings, "data": {}, "steps": {}}
    (folder / "old/evaluated.json").write_text(json.dumps(record))
    assert diff(capsys, folder / "one", folder / "old")[0] == 0
    found = "What decides the numbers of a run:\n  ANSWERING/toy.Decode.beams: 4 -> 1\n1 diff"
    for other in ("one", "old"):
        code, text = diff(capsys, folder / "two", folder / other)
        assert code == 1 and text.startswith(found)


def test_of_a_gin_file_what_it_sets_is_compared(folder, capsys):
    one = write_run(folder / "one", "STEPS=20")
    code, text = diff(capsys, one, "run.gin")
    assert code == 1
    assert "  STEPS: 20 -> 10\n1 difference, 1 in" in text
    assert "Only what the gin file sets was compared" in text
    (folder / "mine.gin").write_text(
        "include 'run.gin'\nSTEPS = 20\nPROMPT_LENGTH = %gin.REQUIRED\n"
    )
    assert diff(capsys, one, "mine.gin")[0] == 0
    (folder / "mine.gin").write_text("include 'run.gin'\nSTEPS = 20\n")
    assert "  STEPS: 10 -> 20\n1 difference, 1 in" in diff(capsys, "run.gin", "mine.gin")[1]


def test_the_package_s_own_files_can_be_compared(folder, capsys):
    code, text = diff(capsys, "runs/finetune.gin", "runs/prompt_finetune.gin", "--json")
    assert code == 1
    found = json.loads(text)
    assert found["decides"]["LEARNING_RATE"] == {"a": "0.001", "b": "0.3"}
    assert found["other"]["SAVE_PERIOD"] == {"a": "5000", "b": "1000"}
    trainable = {"a": "'model'", "b": "'prompt'"}
    assert found["decides"]["train_script.train.trainable"] == trainable


def test_runs_may_lie_in_an_object_store(folder):
    for name, base in (("one", "1" * 32), ("two", "2" * 32)):
        write_checkpoint(write_run(folder / name), 5, base=base)
    with fake_bucket() as bucket:
        for name in ("one", "two"):
            for file in (folder / name).rglob("*"):
                if file.is_file():
                    bucket.put(f"runs/{file.relative_to(folder)}", file.read_bytes())
            # What says in an object store that a checkpoint is whole.
            bucket.put(f"runs/{name}/checkpoints/5/commit_success.txt", b"")
        command = ["-m", "prompt_tuning", "config", "diff", "gs://runs/one", "gs://runs/two"]
        done = subprocess.run(
            [sys.executable, *command],
            cwd=ROOT,
            env=os.environ | bucket.environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert (done.returncode, done.stderr) == (1, "")
    assert "  base: 111111111111 -> 222222222222\n1 difference, 1 in" in done.stdout


# Faults.


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["one", "onw"], 4, r"There is nothing at onw\. Did you mean '\.?/?one'\?"),
        (["one", "empty"], 4, r"empty is not the folder of a run: there is no config\.gin in it"),
        (["one", "."], 4, r"\. is not the folder of a run: .* Runs in it: one\."),
        (["one", "rum.gin"], 2, r"there is no gin file 'rum\.gin'\. Did you mean 'run\.gin'"),
        (["one"], 2, r"the following arguments are required: B"),
        (["one", "one", "one"], 2, r"Unexpected argument one"),
        (["one", "one", "--jsom"], 2, r"There is no flag --jsom .* Did you mean '--json'"),
        (["one", "text"], 4, r"text is not a safetensors file"),
    ],
)
def test_what_cannot_be_compared_is_named(folder, capsys, flags, code, message):
    write_run(folder / "one")
    (folder / "empty").mkdir()
    (folder / "text").write_text("?")
    found, text = diff(capsys, *flags)
    assert found == code
    assert re.search(message, text), text
