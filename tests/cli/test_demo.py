"""The demo, over a tiny base and a few sentences; what it finds over the shipped ones is slow."""

import json
import os
import pathlib
import re
import shlex
import statistics
import subprocess
import sys

import gin
import pytest
from etils import epath

from prompt_tuning import shipped
from prompt_tuning.__main__ import COMMANDS, main
from prompt_tuning.checkpoints import formats
from prompt_tuning.checkpoints.model_file import save_model_file
from prompt_tuning.cli import config, demo
from prompt_tuning.cli.arguments import RunArguments
from prompt_tuning.data import tables
from tests import small_vocabulary
from tests.tiny_runs import make_base

ROOT = pathlib.Path(__file__).parent.parent.parent
ASPECTS = ["price", "quality", "people", "time", "comfort"]
SENTENCES = ["The boats came home.", "She read the letter.", "Rain fell all night."]
# `time` is the most frequent label of the training data, and of no other split.
SPLITS = {
    "train": [*ASPECTS * 6, "time", "time"],
    "validation": ["price", "price", "price", "time", "comfort"],
    "held_out": ["people", "people", "time", "time"],
}
MAJORITY = {"trained": 0, "validation": 20.0, "held_out": 50.0}
SEED = 4
STEPS = 2

DEMO = """
import pathlib, sys
from prompt_tuning import shipped
from prompt_tuning.__main__ import main
shipped._FOLDER = pathlib.Path("shipped").resolve()
assert main(sys.argv[1:]) == 0
found = {"tensorflow", "seqio"} & set(sys.modules)
assert not found, found
"""


def on_one_device():
    """Returns the environment of whoever types the demo, which tests do not have."""
    return os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}


def run_demo(folder):
    """Runs the demo where a tiny base is shipped, in a process without what tests import."""
    flags = ["demo", "--output=out", f"--seed={SEED}", f"--tune_steps={STEPS}"]
    command = [sys.executable, "-c", DEMO, *flags]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=folder, env=on_one_device()
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder in which the package brings along something tiny."""
    folder = tmp_path_factory.mktemp("demo")
    data = folder / "shipped" / "everyday"
    data.mkdir(parents=True)
    for split, labels in SPLITS.items():
        rows = [f"{SENTENCES[i % 3]}\t{label}\tnegative\n" for i, label in enumerate(labels)]
        (data / f"{split}.tsv").write_text("".join(["sentence\taspect\tsentiment\n", *rows]))
    small_vocabulary.train(folder / "shipped" / "mini.model")
    # The examples count from the step of the base that is really shipped.
    make_base(folder / "base", step=13_500)
    held = formats.open_model(folder / "base")
    path = epath.Path(folder / "shipped" / "mini.safetensors")
    save_model_file(held.tensors, held.config, held.step, path, dtype="int8")
    # The current folder is looked in before the package.
    (folder / "models").mkdir()
    (folder / "models" / "ours_mini.gin").write_text("include 'models/ours_tiny.gin'\n")
    return folder


@pytest.fixture(scope="module")
def shown(place):
    """What the demo prints, without TensorFlow and seqio."""
    return run_demo(place).stdout


@pytest.fixture(scope="module")
def figures(place, shown):
    return json.loads((place / "out" / "accuracies.json").read_text("utf-8"))


def shown_commands(text):
    """Returns the words of every command that the demo shows."""
    lines = text.replace("\\\n", " ").splitlines()
    return [shlex.split(line)[2:] for line in lines if line.startswith("$ prompt-tuning ")]


def test_every_command_is_shown_as_it_can_be_typed(shown):
    commands = shown_commands(shown)
    assert [name for name, *_ in commands] == ["train"] * 4 + ["eval"] * 14 + ["report"]
    parsed = [COMMANDS[name].parse(f"prompt-tuning {name}", "", flags) for name, *flags in commands]
    *runs, report = parsed
    assert report.path == "out/prompt_0"
    assert {file for one in runs for file in one.gin_file} == {
        "examples/everyday_mini.gin",
        "examples/everyday_mini_model_tuning.gin",
        "examples/everyday_mini_eval.gin",
        "examples/everyday_mini_text_prompt.gin",
    }
    seeds = [re.findall(r"RANDOM_SEED = (\d+)", " ".join(one.gin_bindings)) for one in runs[:4]]
    assert seeds == [["4"], ["5"], ["6"], ["4"]]


def measured(folder):
    """Returns the accuracy that an evaluation has written."""
    (file,) = folder.glob("inference_eval/*-metrics.jsonl")
    (line,) = file.read_text("utf-8").splitlines()
    return json.loads(line)["accuracy"]


# By row of the table, the folder of its evaluations and how many numbers were trained.
ROWS = {
    "untuned base": ("base", 0),
    "text prompt": ("text_prompt", 0),
    "prompt tuning, seed 4": ("prompt_0", 20 * 32),
    "prompt tuning, seed 5": ("prompt_1", 20 * 32),
    "prompt tuning, seed 6": ("prompt_2", 20 * 32),
    "ensemble of the prompts": ("ensemble", 3 * 20 * 32),
    "model tuning": ("model", 574_080),
}


def test_every_figure_is_one_that_a_run_has_written(place, figures):
    assert set(figures) == {*ROWS, "majority class", "prompt tuning, mean"}
    for title, (name, trained) in ROWS.items():
        found = {
            split: measured(place / "out" / "eval" / f"{name}_{split}") for split in demo.SPLITS
        }
        assert figures[title] == {"trained": trained, **found}
    for title in [title for title in ROWS if re.search("seed|model", title)]:
        name = ROWS[title][0]
        assert figures[title]["validation"] == measured(place / "out" / name)
    tuned = [one for title, one in figures.items() if "seed" in title]
    for split in demo.SPLITS:
        expected = statistics.fmean(one[split] for one in tuned)
        assert figures["prompt tuning, mean"][split] == expected


def test_the_majority_class_is_that_of_the_training_data(figures):
    assert figures["majority class"] == MAJORITY


def test_the_table_says_what_the_file_says(place, shown, figures):
    rows = re.findall(r"^(\w.+?) +(\d+\.\d) +(\d+\.\d) +([\d,]+)$", shown, re.M)
    assert len(rows) == len(figures)
    for title, validation, held_out, trained in rows:
        one = figures[title]
        assert (validation, held_out) == (f"{one['validation']:.1f}", f"{one['held_out']:.1f}")
        assert trained == f"{one['trained']:,.0f}"
    assert (place / "out/prompt_0/report/report.html").exists()
    for name in ("accuracies.json", "prompt_0/report/report.html", "prompt_0/prompt.safetensors"):
        assert f" out/{name}\n" in shown
    sizes = [place / "out/prompt_0/prompt.safetensors", place / "shipped/mini.safetensors"]
    prompt, base = (f"{path.stat().st_size:,}" for path in sizes)
    assert f"{prompt} bytes over a base of {base}\n" in shown


@pytest.mark.slow
def test_a_second_start_does_nothing_again(place, figures):
    again = run_demo(place)
    assert json.loads((place / "out" / "accuracies.json").read_text("utf-8")) == figures
    assert again.stderr.count("was measured before.") == 14
    assert again.stderr.count("there is nothing to do") == 4


def test_the_next_command_is_that_of_the_readme(shown):
    assert demo.NEXT in (ROOT / "README.md").read_text("utf-8")
    assert shown.endswith(f"\n{demo.NEXT}\n")


def test_a_misspelt_flag_of_the_demo_is_named(capsys):
    assert main(["demo", "--otput=/tmp/x"]) == 2
    message = capsys.readouterr().err
    assert "The demo has no flag '--otput=/tmp/x'" in message
    assert "Did you mean '--output'?" in message


def test_a_wrong_value_of_a_flag_is_named(capsys):
    assert main(["demo", "--seed=first"]) == 2
    assert "argument --seed: invalid int value: 'first'" in capsys.readouterr().err


# What the examples say.


@pytest.fixture
def bound():
    """Returns what a setting has in an example."""

    def ask(name, setting, required):
        bindings = (f"{required} = '/tmp/run'",)
        config.parse(RunArguments(gin_file=(f"examples/{name}.gin",), gin_bindings=bindings))
        return gin.query_parameter(setting)

    yield ask
    config.clear()


def words(text):
    return re.findall(r"[a-z]+", text.lower())


def runs_of_words(text, length):
    found = words(text)
    return {tuple(found[i : i + length]) for i in range(len(found) - length + 1)}


def data_set():
    """Yields every row that is shipped."""
    for split in ("train", "validation", "test", "held_out"):
        for row in tables.read_tsv(f"{shipped.everyday()}/{split}.tsv"):
            yield row.fields


def test_the_text_prompt_solves_one_example_of_every_label_and_none_of_the_data(bound):
    template = bound("everyday_mini_text_prompt", "FileTask.inputs", "EVAL_OUTPUT_DIR")
    examples = dict(re.findall(r"(\S[^.]+\.) It speaks of (\w+)\. ", template))
    solved = "".join(f"{sentence} It speaks of {word}. " for sentence, word in examples.items())
    assert template == f"{solved}{{sentence}} It speaks of"
    said = bound("everyday_mini_text_prompt", "FileTask.names", "EVAL_OUTPUT_DIR")["aspect"]
    assert list(said) == ASPECTS
    assert sorted(examples.values()) == sorted(said.values())
    known = set().union(*(runs_of_words(row["sentence"], 5) for row in data_set()))
    for sentence in examples:
        assert runs_of_words(sentence, 5)
        assert not runs_of_words(sentence, 5) & known, sentence


def test_a_prompt_starts_from_the_words_that_it_is_to_say(bound):
    said = bound("everyday_mini", "FileTask.names", "MODEL_DIR")["aspect"]
    assert bound("everyday_mini", "%CLASS_LABELS", "MODEL_DIR") == list(said.values())


# Over what is shipped.


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 3])
def test_prompts_beat_the_majority_class_and_the_untuned_base_by_far(tmp_path, seed):
    command = [sys.executable, "-m", "prompt_tuning", "demo", f"--output={tmp_path}"]
    subprocess.run([*command, f"--seed={seed}"], check=True, env=on_one_device())
    figures = json.loads((tmp_path / "accuracies.json").read_text("utf-8"))
    found = {title: one["validation"] for title, one in figures.items()}
    assert found["majority class"] == 20
    assert found["prompt tuning, mean"] > found["majority class"] + 20
    assert found["prompt tuning, mean"] > found["untuned base"] + 20
