"""`prompt-tuning config explain`: what is in effect, who says so, and how to change it."""

import ast
import importlib
import json
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

from prompt_tuning.__main__ import main
from prompt_tuning.cli.arguments import RunArguments
from prompt_tuning.cli.configuration.explanation import explain, explain_macros
from tests.cli.conftest import TOY

RUN = "--gin_file=run.gin"
IMPORTS = "from __gin__ import dynamic_registration\nimport toy_methods as toy\n"
TUNING = RunArguments(
    gin_file=(
        "models/ours_tiny.gin",
        "prompts/from_class_labels.gin",
        "decoding/beam_search.gin",
        "runs/prompt_finetune.gin",
    )
)


def explained(capsys, *flags):
    """Returns what is printed."""
    capsys.readouterr()
    assert main(["config", "explain", *flags]) == 0
    return capsys.readouterr().out


def cells(text):
    """Returns the lines as lists of their columns."""
    return [re.split(r" {2,}", line.strip()) for line in text.splitlines()]


def as_json(capsys, *flags):
    return json.loads(explained(capsys, "--json", *flags))


def refused(capsys, *flags):
    """Returns the message with which a name is refused."""
    capsys.readouterr()
    assert main(["config", "explain", *flags]) == 2
    return capsys.readouterr().err


# What is printed.


def test_a_macro_overridden_three_times_shows_all_who_set_it_and_who_reads_it(folder, capsys):
    (folder / "mine.gin").write_text("include 'run.gin'\n\nSTEPS = 20\n")
    flags = ["--gin_file=mine.gin", "--gin.STEPS=30", "--gin.STEPS=40"]
    assert explained(capsys, "STEPS", *flags) == (
        "STEPS = 40\n"
        "  set        --gin.STEPS  STEPS = 40\n"
        "  overrides  run.gin:7    STEPS = 10\n"
        "  overrides  mine.gin:3   STEPS = 20\n"
        "  overrides  --gin.STEPS  STEPS = 30\n"
        "  read       run.gin:14   toy.train.steps = %STEPS\n"
        "  change     --gin.STEPS=40\n"
    )


def test_an_include_counts_at_its_place(folder, capsys):
    (folder / "mine.gin").write_text("STEPS = 20\ninclude 'run.gin'\n")
    text = explained(capsys, "STEPS", "--gin_file=mine.gin")
    assert cells(text)[1:3] == [
        ["set", "run.gin:7", "STEPS = 10"],
        ["overrides", "mine.gin:1", "STEPS = 20"],
    ]


def test_a_parameter_is_followed_down_to_its_value(folder, capsys):
    (folder / "mine.gin").write_text("include 'run.gin'\nSTEPS = %MANY\nMANY = %MORE\nMORE = 7\n")
    text = explained(capsys, "train.steps", "--gin_file=mine.gin", "--gin.MORE=70")
    source = (TOY / "toy_methods.py").read_text().splitlines()
    line = 1 + source.index("def train(")
    assert cells(text) == [
        ["toy.train.steps = %STEPS = %MANY = %MORE = 70"],
        ["set", "run.gin:14", "toy.train.steps = %STEPS"],
        ["set", "mine.gin:2", "STEPS = %MANY"],
        ["overrides", "run.gin:7", "STEPS = 10"],
        ["set", "mine.gin:3", "MANY = %MORE"],
        ["set", "--gin.MORE", "MORE = 70"],
        ["overrides", "mine.gin:4", "MORE = 7"],
        ["default", f"{TOY}/toy_methods.py:{line}", "10, of toy_methods.train"],
        ["change", "--gin.MORE=70"],
    ]


def test_macros_inside_a_value_are_replaced_too(folder, capsys):
    value = "--gin.train.lengths={'of': (%STEPS, [%PROMPT, @a/toy.schedule()]), 'x': 'y'}"
    text = explained(capsys, "toy.train.lengths", RUN, value)
    assert cells(text)[0] == [
        "toy.train.lengths = {'of': (%STEPS, [%PROMPT, @a/toy.schedule()]), 'x': 'y'}"
        " = {'of': (10, [@toy.Prompt, @a/toy.schedule()]), 'x': 'y'}"
    ]
    assert [row[2] for row in cells(text) if row[0] == "set"][1:] == [
        "STEPS = 10",
        "PROMPT = @toy.Prompt",
    ]


def test_of_a_parameter_that_nothing_sets_the_default_is_shown(folder, capsys):
    line = 1 + (TOY / "toy_methods.py").read_text().splitlines().index(
        "class Prompt(metaclass=HidesTheSignature):"
    )
    assert cells(explained(capsys, "toy.Prompt.scale", RUN)) == [
        ["toy.Prompt.scale = 0.5"],
        ["default", f"{TOY}/toy_methods.py:{line}", "0.5, of toy_methods.Prompt"],
        ["change", "--gin.toy.Prompt.scale=0.5"],
    ]


def test_of_a_parameter_without_value_and_default_the_caller_is_reminded(folder, capsys):
    assert cells(explained(capsys, "Prompt.embed_dim", RUN)) == [
        ["toy.Prompt.embed_dim is not set and has no default: its caller must give it"],
        ["change", "--gin.toy.Prompt.embed_dim=VALUE"],
    ]


def test_a_scope_hears_the_settings_around_it_unless_it_has_its_own(folder, capsys):
    (folder / "mine.gin").write_text(
        f"{IMPORTS}include 'run.gin'\n"
        "a/toy.schedule.base = 2\n"
        "toy.schedule.base = 1\n"
        "toy.schedule.warmup = 5\n"
    )
    flags = ["--gin_file=mine.gin", "--gin.a/b/schedule.base=3"]
    found = {
        name: cells(explained(capsys, name, *flags))
        for name in (
            "schedule.base",
            "a/schedule.base",
            "a/b/toy.schedule.base",
            "a/schedule.warmup",
        )
    }
    assert found["schedule.base"] == [
        ["toy.schedule.base = 1"],
        ["set", "mine.gin:5", "toy.schedule.base = 1"],
        ["in a scope", "mine.gin:4", "a/toy.schedule.base = 2"],
        ["in a scope", "--gin.a/b/schedule.base", "a/b/schedule.base = 3"],
        ["change", "--gin.toy.schedule.base=1"],
    ]
    assert found["a/schedule.base"][:3] == [
        ["a/toy.schedule.base = 2"],
        ["set", "mine.gin:4", "a/toy.schedule.base = 2"],
        ["overrides", "mine.gin:5", "toy.schedule.base = 1"],
    ]
    assert found["a/b/toy.schedule.base"][:4] == [
        ["a/b/toy.schedule.base = 3"],
        ["set", "--gin.a/b/schedule.base", "a/b/schedule.base = 3"],
        ["overrides", "mine.gin:5", "toy.schedule.base = 1"],
        ["overrides", "mine.gin:4", "a/toy.schedule.base = 2"],
    ]
    assert found["a/schedule.warmup"][0] == ["a/toy.schedule.warmup = 5"]


def test_a_parameter_that_is_set_in_scopes_only_says_so(folder, capsys):
    text = explained(capsys, "toy.schedule.base", RUN, "--gin.a/toy.schedule.base=2")
    assert text.startswith("toy.schedule.base is set in scopes only\n  in a scope  --gin.a/toy.sch")


def test_who_reads_a_macro_without_effect_is_marked(folder, capsys):
    text = explained(capsys, "STEPS", RUN, "--gin.train.steps=3")
    assert ["read", "run.gin:14", "toy.train.steps = %STEPS", "(overridden)"] in cells(text)


def test_a_function_is_explained_with_all_its_parameters(folder, capsys):
    text = explained(capsys, "Prompt", RUN)
    assert [part.splitlines()[0] for part in text.split("\n\n")] == [
        "toy.Prompt.length = %PROMPT_LENGTH = 100",
        "toy.Prompt.embed_dim is not set and has no default: its caller must give it",
        "toy.Prompt.scale = 0.5",
    ]


def test_one_function_under_two_names_is_one(folder, capsys):
    (folder / "mine.gin").write_text(
        "from __gin__ import dynamic_registration\nimport toy_methods\n"
        "include 'run.gin'\ntoy_methods.train.steps = 33\n"
    )
    text = explained(capsys, "toy.train.steps", "--gin_file=mine.gin")
    assert cells(text)[1:3] == [
        ["set", "mine.gin:4", "toy_methods.train.steps = 33"],
        ["overrides", "run.gin:14", "toy.train.steps = %STEPS"],
    ]


def test_a_configuration_without_names_is_a_table_with_what_is_to_be_set(folder, capsys):
    (folder / "mine.gin").write_text("STEPS = %MANY\nMANY = 7\nMISSPELT = 1\nLONG = 'abc'\n")
    flags = [RUN, "--gin_file=mine.gin", "--gin.train.lengths=%NEVER_SET"]
    assert explained(capsys, *flags) == (
        "macro          value        set at\n"
        "LONG           'abc'        mine.gin:4  read by nothing\n"
        "MANY           7            mine.gin:2\n"
        "MISSPELT       1            mine.gin:3  read by nothing\n"
        "MODEL_DIR      REQUIRED     run.gin:5\n"
        "NEVER_SET      REQUIRED     read at --gin.train.lengths\n"
        "PROMPT         @toy.Prompt  run.gin:8\n"
        "PROMPT_LENGTH  100          run.gin:6\n"
        "STEPS          7            mine.gin:2\n"
        "\n"
        "To be set:\n"
        "  --gin.MODEL_DIR=\"'/tmp/run'\"\n"
        "  --gin.NEVER_SET=VALUE\n"
    )


def test_a_long_value_is_cut_in_the_table_only(folder, capsys):
    flags = [RUN, f"--gin.STEPS='{'x' * 100}'"]
    assert f"STEPS          '{'x' * 55} ...  --gin.STEPS\n" in explained(capsys, *flags)
    assert f"STEPS = '{'x' * 100}'\n" in explained(capsys, "STEPS", *flags)


def test_a_required_setting_says_where_it_is_declared_and_what_a_value_looks_like(folder, capsys):
    expected = [
        ["required", "run.gin:5", "MODEL_DIR = %gin.REQUIRED"],
        ["change", "--gin.MODEL_DIR=\"'/tmp/run'\""],
    ]
    for name in ("MODEL_DIR", "train.model_dir"):
        rows = cells(explained(capsys, name, RUN))
        assert rows[0][0].endswith(f"{name} has no value yet")
        assert [row for row in rows if row in expected] == expected


def test_a_value_that_is_defined_by_itself_is_no_value(folder, capsys):
    flags = [RUN, "--gin.STEPS=[%MANY, %MANY]", "--gin.MANY=[%STEPS, %STEPS]"]
    assert cells(explained(capsys, "STEPS", *flags)) == [
        ["STEPS has no value yet"],
        ["set", "--gin.STEPS", "STEPS = [%MANY, %MANY]"],
        ["overrides", "run.gin:7", "STEPS = 10"],
        ["set", "--gin.MANY", "MANY = [%STEPS, %STEPS]"],
        ["read", "run.gin:14", "toy.train.steps = %STEPS"],
        ["read", "--gin.MANY", "MANY = [%STEPS, %STEPS]"],
        ["change", "--gin.MANY=VALUE"],
    ]


# For machines.


def test_json_says_the_same(folder, capsys):
    [found] = as_json(capsys, "train.steps", RUN, "--gin.STEPS=30")
    assert (found["name"], found["value"], found["kind"]) == ("toy.train.steps", "30", "parameter")
    assert found["state"] == "set"
    assert found["values"] == ["%STEPS", "30"]
    assert [(one["name"], one["place"]) for one in found["said"]] == [
        ("toy.train.steps", "run.gin:14"),
        ("STEPS", "--gin.STEPS"),
    ]
    assert [one["place"] for one in found["said"][1]["overrides"]] == ["run.gin:7"]
    assert found["default"]["value"] == "10"
    assert found["change"] == "--gin.STEPS=30"


def test_json_of_all_macros_has_no_value_for_what_is_to_be_set(folder, capsys):
    found = {one["name"]: one["value"] for one in as_json(capsys, RUN)}
    assert found == {
        "MODEL_DIR": None,
        "PROMPT": "@toy.Prompt",
        "PROMPT_LENGTH": "100",
        "STEPS": "10",
    }


# Names.


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("STEP", r"'STEP' means nothing in this configuration\. Did you mean 'STEPS'\?"),
        ("steps", r"'steps' means nothing .*\. Did you mean 'toy\.train\.steps'\?"),
        (
            "train.stesp",
            r"There is no setting 'train\.stesp': `train` has no parameter `stesp`\. "
            r"Did you mean 'steps'",
        ),
        ("trian.steps", r"There is no setting 'trian\.steps': .*Did you mean 'train'"),
        ("toy.Promt.scale", r"There is no setting 'toy\.Promt\.scale': `toy` has no `Promt`"),
        ("CLASS_LABELS", r"none of which is loaded .*: prompts/from_class_labels\.gin"),
        ("STEPS=3", r"'STEPS=3' is not a name\. To set it, write --gin\.STEPS=VALUE\."),
        ("3}", r"'3}' is not the name of a setting .* the shell has cut that value at a space"),
        ("--jsn", r"There is no flag --jsn .*Did you mean '--json'"),
    ],
)
def test_a_name_that_means_nothing_is_answered_with_the_nearest(folder, capsys, name, message):
    assert re.search(message, refused(capsys, RUN, name))


def test_a_name_of_two_functions_is_answered_with_both(folder, capsys):
    (folder / "mine.gin").write_text(
        f"{IMPORTS}import toy_twin\ninclude 'run.gin'\ntoy_twin.train.steps = 3\n"
    )
    mine = "--gin_file=mine.gin"
    assert "'train' may be toy.train or toy_twin.train: say which." in refused(
        capsys, "train", mine
    )
    error = refused(capsys, "train.steps", mine)
    assert "There is no setting 'train.steps': Ambiguous selector 'train'" in error
    assert cells(explained(capsys, "toy_twin.train.steps", mine))[0] == ["toy_twin.train.steps = 3"]


def test_names_and_flags_stand_in_any_order(folder, capsys):
    wanted = explained(capsys, "STEPS", "PROMPT", RUN)
    assert explained(capsys, RUN, "STEPS", "PROMPT") == wanted
    assert explained(capsys, "STEPS", "--gin_file", "run.gin", "PROMPT") == wanted
    assert [one["name"] for one in as_json(capsys, "STEPS", RUN, "PROMPT")] == ["STEPS", "PROMPT"]


def test_what_is_wrong_elsewhere_is_said_if_the_functions_are_needed(folder, capsys):
    flags = [RUN, "--gin.toy.Promt.scale=1"]
    assert "STEPS = 10" in explained(capsys, "STEPS", *flags)
    assert "--gin.toy.Promt.scale: `toy` has no `Promt`" in refused(capsys, "train.steps", *flags)


def test_an_action_that_there_is_not_is_answered_with_the_nearest(capsys):
    assert main(["config", "explian"]) == 2
    assert "has no action 'explian'. Did you mean 'explain'?" in capsys.readouterr().err


# Laws, over this package's own files.


def test_every_macro_stands_where_it_is_said_to(capsys):
    for one in explain_macros(TUNING):
        for said in (*one.said, *one.readers):
            file, _, line = said.place.rpartition(":")
            text = pathlib.Path(file).read_text().splitlines()[int(line) - 1]
            assert re.search(rf"{re.escape(said.name.rpartition('.')[2])} *=", text), said


def test_proposed_flags_change_nothing_but_who_has_set_the_value():
    names = [
        *(one.name for one in explain_macros(TUNING)),
        *(one.name for one in explain(TUNING, ["train_script.train", "Prompt", "Loss"])),
        "eval/task_split.split",
    ]
    found = [one for one in explain(TUNING, names) if one.state == "set"]
    flags = [flag for one in found for flag in shlex.split(one.change)]
    assert len(flags) == len(found) > 50
    bindings = [flag.removeprefix("--gin.").replace("=", " = ", 1) for flag in flags]
    again = RunArguments(gin_file=TUNING.gin_file, gin_bindings=tuple(bindings))
    others = explain(again, [one.name for one in found])
    for one, flag, other in zip(found, flags, others, strict=True):
        assert (other.name, other.value) == (one.name, one.value)
        assert flag.partition("=")[0] in [said.place for said in other.said]


def test_the_explained_values_are_those_that_a_run_gets(folder, capsys):
    (folder / "later.gin").write_text("STEPS = 20\ninclude 'run.gin'\nPROMPT_LENGTH = 5\n")
    flags = [RUN, "--gin_file=later.gin", "--gin.MODEL_DIR='/tmp/x'", "--gin.train.lengths=%STEPS"]
    assert main(["toy", *flags]) == 0
    result = importlib.import_module("toy_command").results[-1]
    found = {one["name"]: one["value"] for one in as_json(capsys, "train", "Prompt", *flags)}
    for name in ("model_dir", "steps", "lengths", "optimizer", "schedule"):
        assert ast.literal_eval(found[f"toy.train.{name}"]) == result[name]
    assert int(found["toy.Prompt.length"]) == result["prompt"].length == 5
    assert float(found["toy.Prompt.scale"]) == result["prompt"].scale


def test_a_name_of_t5x_leads_to_ours(folder, capsys):
    flags = [f"--gin_file={name}" for name in TUNING.gin_file]
    theirs = "train/utils.DatasetConfig.batch_size"
    rows = cells(explained(capsys, theirs, *flags, f"--gin.{theirs}=7"))
    assert rows[0][0].endswith("task_batches.batch_size = 7")
    assert rows[1][:2] == ["set", f"--gin.{theirs}"]
    assert rows[2][0] == "overrides" and rows[2][2].endswith("batch_size = %BATCH_SIZE")
    period = explained(capsys, "utils.SaveCheckpointConfig.period", *flags)
    assert period.startswith("SAVE_PERIOD = 1000\n")
    error = refused(capsys, "USE_HARDWARE_RNG", *flags)
    assert "'USE_HARDWARE_RNG' is a setting of t5x that has no effect here." in error


# What it costs.


def test_help_and_macros_need_neither_jax_nor_tensorflow(tmp_path):
    files = [f"--gin_file={name}" for name in TUNING.gin_file]
    for flags, heavy in (
        (["--help"], {"jax", "gin", "numpy"}),
        (["explain", "--help"], {"jax", "gin", "numpy"}),
        (["diff", "--help"], {"jax", "gin", "numpy"}),
        (["explain", *files], {"jax", "tensorflow"}),
        (["explain", "BATCH_SIZE", *files], {"jax", "tensorflow"}),
    ):
        code = (
            "import sys\nfrom prompt_tuning.__main__ import main\n"
            f"code = main(['config', *{flags}])\n"
            f"sys.exit(code or ', '.join({heavy} & sys.modules.keys()) or 0)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout


def test_a_parameter_is_explained_without_a_device(tmp_path):
    flags = [f"--gin_file={name}" for name in TUNING.gin_file]
    code = (
        "import sys\nfrom prompt_tuning.__main__ import main\n"
        f"main(['config', 'explain', 'train.eval_period', *{flags}])\n"
        "from jax._src import xla_bridge\n"
        "sys.exit(xla_bridge.backends_are_initialized())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("train_script.train.eval_period = %EVAL_PERIOD = 1000\n")
