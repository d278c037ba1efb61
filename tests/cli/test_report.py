"""`prompt-tuning report` of real runs: what it finds by itself, and what it must be told."""

import os
import shutil
import subprocess
import sys

import pytest

from prompt_tuning.__main__ import main
from prompt_tuning.cli import config
from tests.asked_models import (
    CHOOSING,
    MODEL_TUNING,
    PROMPT_TUNING,
    error_in,
    make_base,
    make_world,
)
from tests.reporting.pages import Page

MONITOR = ["--gin.MONITOR=@monitor.Monitor()", "--gin.monitor.Monitor.metric='films/accuracy'"]


@pytest.fixture(scope="module")
def world(programs, tmp_path_factory):
    """A base, and a run that tuned a prompt over it."""
    world = make_world(tmp_path_factory.mktemp("world"))
    assert main(["train", *PROMPT_TUNING, *world.train("run"), *CHOOSING, *MONITOR]) == 0
    config.clear()
    return world


@pytest.fixture
def say(capsys):
    """Runs `prompt-tuning report`; returns the exit code and what it said."""

    def run(*arguments):
        capsys.readouterr()
        code = main(["report", *map(str, arguments)])
        said = capsys.readouterr()
        return code, said.out + said.err

    return run


def page_in(folder):
    return Page((folder / "report.html").read_text("utf-8"))


def test_everything_of_a_prompt_is_found_in_its_folder(world, tmp_path, say):
    code, said = say(world.folder / "run", f"--output={tmp_path}")
    assert code == 0
    assert said.startswith(f"{tmp_path}/report.html\n")
    assert "Left out" not in said
    page = page_in(tmp_path)
    assert "left-out" not in page.ids
    assert "5 vectors of 32 numbers, at 4 saved steps" in page.text["prompt"]
    assert "whose hash was not compared" not in page.text["tokens"]
    named = {row[0] for table in page.tables for row in table}
    assert {"devices", "jax", "Python", "frozen base", "BATCH_SIZE"} <= named
    assert "train_script.train.total_steps = %TRAIN_STEPS" in page.text["configuration"]
    assert {path.suffix for path in tmp_path.iterdir()} == {".html", ".png"}


@pytest.mark.slow
def test_a_run_that_tuned_a_model_has_no_prompt_to_show(world, tmp_path, say):
    assert main(["train", *MODEL_TUNING, *world.train("tuned"), *CHOOSING]) == 0
    config.clear()
    code, said = say(world.folder / "tuned", f"--output={tmp_path}")
    assert code == 0
    assert "Left out: Nearest tokens. This run trains the model itself" in said
    page = page_in(tmp_path)
    assert "Model tuning, finished" in page.text[""]
    assert "the whole model" in page.text[""]
    assert "films" in page.text["metrics"]


@pytest.mark.slow
def test_another_process_writes_the_same_bytes(world, tmp_path, say):
    """Without a home, where warnings are errors, and with another order of sets."""
    assert say(world.folder / "run", f"--output={tmp_path / 'here'}")[0] == 0
    flags = [str(world.folder / "run"), f"--output={tmp_path / 'there'}"]
    (tmp_path / "home").mkdir()
    environment = {**os.environ, "PYTHONHASHSEED": "7", "HOME": str(tmp_path / "home")}
    subprocess.run(
        [sys.executable, "-W", "error", "-m", "prompt_tuning", "report", *flags],
        env=environment,
        capture_output=True,
        check=True,
    )
    files = {path.name: path.read_bytes() for path in (tmp_path / "here").iterdir()}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "there").iterdir()}


def test_a_report_lies_in_the_folder_of_its_run_in_place_of_an_older_one(world, tmp_path, say):
    run = shutil.copytree(world.folder / "run", tmp_path / "run")
    (run / "report").mkdir()
    (run / "report/report.html").write_text("of yesterday")
    assert say(run)[0] == 0
    assert "curves" in page_in(run / "report").ids


def test_a_base_that_is_gone_leaves_out_the_tokens_and_a_flag_says_where_it_is(
    world, tmp_path, say
):
    run = shutil.copytree(world.folder / "run", tmp_path / "run")
    settings = (run / "config.gin").read_text()
    assert str(world.folder) in settings
    (run / "config.gin").write_text(settings.replace(str(world.folder), str(tmp_path / "gone")))
    code, said = say(run)
    assert code == 0
    assert "Left out: Nearest tokens. The base is no longer at" in said

    code, said = say(run, f"--base={world.folder / 'base'}")
    assert (code, "Left out" in said) == (0, False)
    assert "tokens are numbers: There is no SentencePiece model" in page_in(run / "report").text[
        "tokens"
    ]  # fmt: skip


def test_what_the_package_brings_along_is_looked_for_where_it_is_now(world, tmp_path, say):
    run = shutil.copytree(world.folder / "run", tmp_path / "run")
    settings, base = (run / "config.gin").read_text(), f"'{world.folder / 'base'}'"
    assert base in settings
    (run / "config.gin").write_text(settings.replace(base, "@shipped.mini_base()"))
    _, said = say(run)
    (reason,) = [line for line in said.splitlines() if "Nearest tokens" in line]
    # Not there yet, or another base than that of this prompt.
    assert "shipped/mini.safetensors" in reason or "another base model" in reason


def test_another_base_or_vocabulary_than_the_flag_should_name_is_refused(world, tmp_path, say):
    make_base(tmp_path / "other", seed=1)
    run, out = world.folder / "run", f"--output={tmp_path / 'out'}"
    code, said = say(run, out, f"--base={tmp_path / 'other'}")
    assert code == 4
    assert error_in(said).startswith("--base: The prompt was trained over another base model")
    code, said = say(run, out, f"--base={tmp_path / 'nothing'}")
    assert (code, "--base: There is nothing at" in said) == (4, True)
    code, said = say(run, out, f"--vocabulary={tmp_path / 'nothing'}")
    assert (code, "--vocabulary: There is no SentencePiece model at" in said) == (2, True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--ouput=x", "`report` has no flag --ouput. Did you mean '--output'?"),
        ("more", "Unexpected argument 'more': `report` takes one folder."),
    ],
)
def test_a_wrong_flag_is_named(say, flag, said):
    code, answer = say("run", flag)
    assert code == 2
    assert said in answer
