import random
import subprocess
import sys

import pytest

from prompt_tuning.__main__ import main
from prompt_tuning.cli import demo
from prompt_tuning.errors import ConfigError


def rows(path):
    return {tuple(line.split("\t")) for line in path.read_text("utf-8").splitlines()[1:]}


def test_the_prompt_is_never_shown_what_it_is_asked(tmp_path):
    demo.write_world(tmp_path, random.Random(0))
    shown, asked = rows(tmp_path / "train.tsv"), rows(tmp_path / "validation.tsv")
    assert not shown & asked
    assert shown | asked == {
        (thing, kind) for kind, things in demo.KINDS.items() for thing in things
    }
    assert {kind for _, kind in shown} == {kind for _, kind in asked} == set(demo.KINDS)


def test_the_same_seed_makes_the_same_world(tmp_path):
    texts = []
    for number, seed in enumerate((0, 0, 1)):
        folder = tmp_path / str(number)
        folder.mkdir()
        demo.write_world(folder, random.Random(seed))
        texts.append((folder / "world.txt").read_text("utf-8"))
    assert texts[0] == texts[1] != texts[2]


def test_a_folder_keeps_the_world_of_its_seed(tmp_path):
    demo.write_world(tmp_path, random.Random(0))
    demo.write_world(tmp_path, random.Random(0))
    with pytest.raises(ConfigError, match=r"world\.txt holds the world of another --seed"):
        demo.write_world(tmp_path, random.Random(1))


def test_a_misspelt_flag_of_the_demo_is_named(capsys):
    assert main(["demo", "--otput=/tmp/x"]) == 2
    assert "The demo has no flag '--otput=/tmp/x'" in capsys.readouterr().err


WITHOUT_TENSORFLOW = """
import sys
from prompt_tuning.__main__ import main
assert main(sys.argv[1:]) == 0
found = {"tensorflow", "seqio"} & set(sys.modules)
assert not found, found
"""


def test_the_demo_shows_what_came_of_its_commands_and_needs_no_tensorflow(tmp_path):
    flags = ["demo", f"--output={tmp_path}", "--pretrain_steps=3", "--tune_steps=2"]
    command = [sys.executable, "-c", WITHOUT_TENSORFLOW, *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    shown = done.stdout
    assert "$ prompt-tuning pretrain \\\n    --gin_file=examples/demo_pretrain.gin" in shown
    assert "$ prompt-tuning train \\\n    --gin_file=examples/demo_tune.gin" in shown
    assert f"--gin.MODEL_DIR=\"'{tmp_path}/prompt'\"" in shown
    assert "before tuning            0.0 %" in shown
    assert f"  {tmp_path}/prompt/prompt.safetensors\n" in shown


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_prompt_finds_what_only_the_model_knows(tmp_path, capsys, seed):
    assert main(["demo", f"--output={tmp_path}", f"--seed={seed}"]) == 0
    (line,) = [x for x in capsys.readouterr().out.splitlines() if "with the tuned prompt" in x]
    assert float(line.split()[-2]) > 80
