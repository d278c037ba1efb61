import importlib
import pickle
import re

import gin
import pytest
from flax import nnx

import prompt_tuning
from prompt_tuning.__main__ import main
from prompt_tuning.cli import config
from prompt_tuning.cli.arguments import RunArguments
from prompt_tuning.errors import ConfigError

DYNAMIC = "from __gin__ import dynamic_registration\n"
IMPORTS = DYNAMIC + "import toy_methods as toy\n"
DIRECTORY = "--gin.MODEL_DIR='/tmp/run'"


def toy(name: str = "toy_methods"):
    return importlib.import_module(name)


def run(*bindings: str, file: str = "run.gin", **flags) -> dict:
    """Parses and calls as `toy --gin_file=FILE --gin.MODEL_DIR='/tmp/run' ...` does."""
    bindings = ("MODEL_DIR = '/tmp/run'", *bindings)
    config.parse(RunArguments(gin_file=(file,), gin_bindings=bindings, **flags))
    return config.call(toy().train)


# What a configuration does.


def test_the_command_gets_its_function_with_the_bindings_applied(folder):
    assert main(["toy", "--gin_file=run.gin", DIRECTORY, "--gin.STEPS=3", "--dry_run"]) == 0
    result = toy("toy_command").results[-1]
    assert (result["model_dir"], result["steps"], result["dry_run"]) == ("/tmp/run", 3, True)


def test_a_reference_is_a_partial_that_the_caller_completes(folder):
    prompt = run("PROMPT_LENGTH = 20")["prompt"]
    assert (prompt.length, prompt.embed_dim, prompt.scale) == (20, 4, 0.5)


def test_configured_objects_keep_their_class_and_direct_calls_are_unaffected(folder):
    (folder / "run.gin").write_text(
        (folder / "run.gin").read_text()
        + "toy.Optimizer.learning_rate = 0.1\ntoy.train.optimizer = @toy.Optimizer()\n"
    )
    result = run()
    assert type(result["prompt"]) is toy().Prompt
    assert type(result["optimizer"]) is toy().Optimizer
    assert result["optimizer"] == pickle.loads(pickle.dumps(result["optimizer"]))
    assert result["optimizer"].learning_rate == 0.1
    assert toy().Optimizer().learning_rate == 0.3


def test_an_nnx_module_is_configured_as_it_is(folder):
    (folder / "toy_nnx.gin").write_text(
        DYNAMIC + "from flax import nnx\n"
        "nnx.Linear:\n  in_features = 2\n  out_features = 3\n  use_bias = False\n"
    )
    config.parse(RunArguments(gin_file=("toy_nnx.gin",)))
    linear = config.call(nnx.Linear, rngs=nnx.Rngs(0))
    assert type(linear) is nnx.Linear
    assert linear.kernel.shape == (2, 3)
    assert linear.bias is None


def test_files_win_over_earlier_files_and_bindings_over_files(folder):
    (folder / "later.gin").write_text("STEPS = 20\n")
    both = ("run.gin", "later.gin")
    for files, bindings, steps in [
        (("run.gin",), (), 10),
        (both, (), 20),
        (both[::-1], (), 10),
        (both, ("STEPS = 30",), 30),
        (both, ("STEPS = 30", "STEPS = 40"), 40),
        (both, ("toy.train.steps = 50",), 50),
    ]:
        bindings = ("MODEL_DIR = '/tmp/run'", *bindings)
        config.parse(RunArguments(gin_file=files, gin_bindings=bindings))
        assert config.call(toy().train)["steps"] == steps


def test_an_include_is_read_in_its_place(folder):
    (folder / "before.gin").write_text('STEPS = 20\ninclude "run.gin"\n')
    (folder / "after.gin").write_text('include "run.gin"\nSTEPS = 20\n')
    assert run(file="before.gin")["steps"] == 10
    assert run(file="after.gin")["steps"] == 20


def test_files_and_includes_are_found_here_then_in_the_search_paths_then_in_the_package(
    folder, monkeypatch
):
    package = folder / "package"
    monkeypatch.setattr(config, "gin_root", lambda: package)
    places = [folder, folder / "first", folder / "second", package]
    (folder / "mine.gin").write_text(f'{IMPORTS}include "runs/steps.gin"\ninclude "run.gin"\n')
    for steps, place in reversed(list(enumerate(places))):
        (place / "runs").mkdir(parents=True)
        (place / "runs/steps.gin").write_text(f"{IMPORTS}toy.accepts_anything.steps = {steps}\n")
        run(file="mine.gin", gin_search_paths=("first", "second"))
        assert config.call(toy().accepts_anything) == {"steps": steps}


def test_the_gin_files_of_the_package_are_found_in_a_checkout_and_in_a_wheel(tmp_path, monkeypatch):
    package = tmp_path / "prompt_tuning"
    monkeypatch.setattr(prompt_tuning, "__file__", str(package / "__init__.py"))
    assert config.gin_root() == tmp_path / "gin"
    (package / "gin").mkdir(parents=True)
    assert config.gin_root() == package / "gin"


@pytest.mark.parametrize("name", ["train.steps", "toy.train.steps", "STEPS"])
def test_a_binding_of_the_command_line_may_use_a_short_name(folder, name):
    assert run(f"{name} = 7")["steps"] == 7


def test_a_binding_of_the_command_line_may_use_what_no_file_has_mentioned_yet(folder):
    result = run("toy.train.schedule = @toy.schedule()", "toy.schedule.base = 0.5")
    assert result["schedule"] == (0.5, 0)


def test_scopes_configure_one_function_twice(folder):
    lengths = "{'first': @first/toy.schedule(), 'second': [@toy.schedule()]}"
    result = run(f"train.lengths = {lengths}", "first/toy.schedule.base = 1", "schedule.base = 2")
    assert result["lengths"] == {"first": (1, 0), "second": [(2, 0)]}


def test_an_overridden_binding_needs_no_value_for_its_macro(folder):
    (folder / "a.gin").write_text(IMPORTS + "toy.train.lengths = %NEVER_SET\ninclude 'run.gin'\n")
    assert run("train.lengths = 5", file="a.gin")["lengths"] == 5


def test_a_macro_set_by_the_package_may_be_set_though_this_run_does_not_read_it(
    folder, monkeypatch
):
    monkeypatch.setattr(config, "gin_root", lambda: folder)
    (folder / "z_loss.gin").write_text("Z_LOSS = 1e-4\ninclude 'run.gin'\n")
    assert run("Z_LOSS = 0.0", file="z_loss.gin")["steps"] == 10


def test_constants_registered_by_a_module_can_be_read(folder):
    gin.constant("toy_methods.LARGE", 1000)
    try:
        assert run("STEPS = %toy_methods.LARGE")["steps"] == 1000
    finally:
        gin.clear_config(clear_constants=True)


def test_a_module_imported_after_the_configuration_may_register_with_gin(folder):
    run()
    assert gin.configurable("registered_late", module="toy")(lambda: 3)() == 3


def test_nothing_of_an_earlier_configuration_remains(folder):
    run("train.lengths = 5", "STEPS = 20")
    assert (run()["lengths"], run()["steps"]) == (None, 10)


def test_names_of_an_earlier_configuration_do_not_make_short_names_ambiguous(folder):
    (folder / "twin.gin").write_text(DYNAMIC + "import toy_twin\ntoy_twin.train.steps = 3\n")
    config.parse(RunArguments(gin_file=("twin.gin",)))
    assert run("train.steps = 7")["steps"] == 7
    with pytest.raises(ConfigError, match=r"Ambiguous selector 'train', matches \['toy.*twin"):
        (folder / "both.gin").write_text("include 'run.gin'\ninclude 'twin.gin'\n")
        run("train.steps = 7", file="both.gin")


def test_the_operative_config_is_a_gin_file_that_repeats_the_run(folder):
    bindings = ("train.schedule = @a/toy.schedule()", "a/toy.schedule.base = 2", "STEPS = 3")
    first = run(*bindings)
    operative = config.operative_config()
    assert "PROMPT_LENGTH = 100" in operative
    assert "toy.Prompt.scale = 0.5" in operative  # a default
    (folder / "config.gin").write_text(operative)

    config.parse(RunArguments(gin_file=("config.gin",)))
    second = config.call(toy().train)
    assert vars(first.pop("prompt")) == vars(second.pop("prompt"))
    assert first == second
    assert config.operative_config() == operative


def test_the_operative_values_are_those_of_the_operative_config_by_name(folder):
    lengths = "{'inputs': 512, 'of': (@a/toy.schedule(), %STEPS)}"
    run("train.lengths = " + lengths, "train.schedule = @toy.schedule", "a/toy.schedule.base = 2")
    values = config.operative_values()
    assert values == {
        "MODEL_DIR": "'/tmp/run'",
        "PROMPT": "@toy.Prompt",
        "PROMPT_LENGTH": "100",
        "STEPS": "10",
        "toy.Prompt.length": "%PROMPT_LENGTH",
        "toy.Prompt.scale": "0.5",
        "a/toy.schedule.base": "2",
        "a/toy.schedule.warmup": "0",
        "toy.train.dry_run": "False",
        "toy.train.fault": "None",
        "toy.train.lengths": lengths,
        "toy.train.model_dir": "%MODEL_DIR",
        "toy.train.optimizer": "None",
        "toy.train.prompt": "%PROMPT",
        "toy.train.schedule": "@toy.schedule",
        "toy.train.steps": "%STEPS",
    }


def test_the_operative_values_of_two_runs_differ_where_their_settings_do(folder):
    run("STEPS = 20")
    first = config.operative_values()
    run("PROMPT_LENGTH = 7")
    second = config.operative_values()
    changed = {name for name in first | second if first.get(name) != second.get(name)}
    assert changed == {"STEPS", "PROMPT_LENGTH"}


def test_nothing_is_logged_while_a_file_is_looked_for(folder, caplog):
    run(gin_search_paths=("nowhere",))
    assert caplog.records == []


def test_settings_without_a_value_are_all_listed_before_anything_is_imported(folder, capsys):
    (folder / "heavy.gin").write_text(
        f"{DYNAMIC}import toy_never_imported\n"
        "TASK = %gin.REQUIRED\n"
        "LENGTHS = {'inputs': %gin.REQUIRED}  # e.g. {'inputs': 512}\n"
        'include "run.gin"\n'
        "STEPS = %STEPS_FROM_OUTSIDE\n"
        "toy_never_imported.f.x = (%TASK, %LENGTHS)\n"
    )
    assert main(["toy", "--gin_file=heavy.gin"]) == 2
    assert capsys.readouterr().err == (
        "error: Required settings without a value:\n"
        "  TASK (heavy.gin:3): --gin.TASK=VALUE\n"
        """  LENGTHS (heavy.gin:4): --gin.LENGTHS="{'inputs': 512}"\n"""
        """  MODEL_DIR (run.gin:5): --gin.MODEL_DIR="'/tmp/run'"\n"""
        "  STEPS_FROM_OUTSIDE (read at heavy.gin:6): --gin.STEPS_FROM_OUTSIDE=VALUE\n"
    )


# What is wrong, where, and what to write instead. Each row: the flags after
# `toy --gin_file=run.gin --gin.MODEL_DIR='/tmp/run'`, the text of `mine.gin`, the message.

MINE = "--gin_file=mine.gin"
BROKEN = {
    "no such file": (
        ["--gin_file=rum.gin"],
        "",
        r"--gin_file: there is no gin file 'rum\.gin'\. Did you mean 'run\.gin'.* Looked in: \., ",
    ),
    "no such included file": (
        [MINE],
        '\ninclude "runs.gin"',
        r"mine\.gin:2: there is no gin file 'runs\.gin'\. Did you mean 'run\.gin'",
    ),
    "a file that includes itself": (
        [MINE],
        'include "mine.gin"',
        r"mine\.gin includes mine\.gin: a file cannot include itself",
    ),
    "text without its inner quotes": (
        ["--gin.MODEL_DIR=/tmp/x"],
        "",
        r"--gin\.MODEL_DIR=/tmp/x: this is not gin syntax: .*"
        r"""Did you mean --gin\.MODEL_DIR="'/tmp/x'"\?""",
    ),
    "a word without its inner quotes": (
        ["--gin.TASK=sst2"],
        "",
        r"""Did you mean --gin\.TASK="'sst2'"\?""",
    ),
    "a URL without its inner quotes": (
        ["--gin.MODEL_DIR=gs://bucket/run-1"],
        "",
        r"""Did you mean --gin\.MODEL_DIR="'gs://bucket/run-1'"\?""",
    ),
    "true for True": (["--gin.CACHED=false"], "", r"Did you mean --gin\.CACHED=False\?"),
    "a dictionary that lost its quotes": (
        ["--gin.LENGTHS={inputs: 512, targets: 8}"],
        "",
        r"""Did you mean --gin\.LENGTHS="{'inputs': 512, 'targets': 8}"\?""",
    ),
    "a bracket that is not closed": (
        ["--gin.STEPS=(1, 2"],
        "",
        r"--gin\.STEPS=\(1, 2: this is not",
    ),
    "nothing after the equals sign": (["--gin.STEPS="], "", r"--gin\.STEPS=: this is not gin"),
    "text without quotes in a file": (
        [MINE],
        "\n\nTASK = sst2  # the task",
        r"mine\.gin:3: this is not gin syntax: .*Did you mean `TASK = 'sst2'`\?\n    TASK = sst2",
    ),
    "a file that is not gin": (
        [MINE],
        "STEPS: 3",
        r"mine\.gin:1: this is not gin syntax: .*newline",
    ),
    "a bracket that is not closed in a file": ([MINE], "STEPS = (3,\n\n", r"mine\.gin:\d: .*EOF"),
    "a misspelt macro on the command line": (
        ["--gin.PROMT_LENGTH=20"],
        "",
        r"--gin\.PROMT_LENGTH: nothing reads the macro PROMT_LENGTH\. Did you mean 'PROMPT_LENGTH'",
    ),
    "a misspelt macro in a file": (
        [MINE],
        "STEP = 20",
        r"mine\.gin:1: nothing reads the macro STEP\. Did you mean 'STEPS'",
    ),
    "a misspelt macro in a value": (
        ["--gin.train.lengths=%PROMT_LENGTH"],
        "",
        r"PROMT_LENGTH \(read at --gin\.train\.lengths\).* Did you mean 'PROMPT_LENGTH'",
    ),
    "a macro without a value in one of two functions of one name": (
        [MINE],
        IMPORTS + "import toy_twin\ntoy.train.steps = %NEVER_SET\ntoy_twin.train.steps = 3",
        r"No bindings specified for 'NEVER_SET/gin\.macro'$",
    ),
    "an unknown constant": (
        ["--gin.STEPS=%gin.REQIRED"],
        "",
        r"--gin\.STEPS: there is no constant %gin\.REQIRED\. Did you mean 'gin\.REQUIRED'",
    ),
    "a required argument of a function": (
        ["--gin.toy.train.lengths=%gin.REQUIRED"],
        "",
        r"train\.lengths set to `%gin\.REQUIRED` but not subsequently overridden",
    ),
    "a macro defined by itself": (["--gin.STEPS=%STEPS"], "", r"%STEPS is defined by itself"),
    "a misspelt parameter": (
        [MINE],
        IMPORTS + "toy.Prompt.lenght = 20",
        r"mine\.gin:3: `toy\.Prompt` has no parameter `lenght`\. Did you mean 'length'\? "
        r"It has: length, embed_dim, scale\.",
    ),
    "a misspelt parameter in a block": (
        [MINE],
        IMPORTS + "toy.Optimizer:\n  factored = True\n  learning_rat = 0.1",
        r"mine\.gin:5: `toy\.Optimizer` has no parameter `learning_rat`.*'learning_rate'",
    ),
    "a misspelt parameter on the command line": (
        ["--gin.train.stesp=20"],
        "",
        r"--gin\.train\.stesp: `train` has no parameter `stesp`\. Did you mean 'steps'",
    ),
    "a misspelt class": (
        [MINE],
        IMPORTS + "toy.Promt.length = 20",
        r"mine\.gin:3: `toy` has no `Promt`\. Did you mean 'Prompt'",
    ),
    "a misspelt class in a block": (
        [MINE],
        IMPORTS + "toy.Promt:\n  length = 20",
        r"mine\.gin:3: `toy` has no `Promt`\. Did you mean 'Prompt'",
    ),
    "a misspelt class in a value": (
        [MINE],
        IMPORTS + "toy.train.lengths = [\n  @toy.Promt,\n]",
        r"mine\.gin:3: `toy` has no `Promt`\. Did you mean 'Prompt'",
    ),
    "a misspelt name on the command line": (
        ["--gin.trian.steps=20"],
        "",
        r"--gin\.trian\.steps: `trian` in `trian` is not imported\. Did you mean 'train'",
    ),
    "a name that is not imported in this file": (
        [MINE],
        IMPORTS + "methods.Prompt.length = 20",
        r"mine\.gin:3: `methods` in `methods\.Prompt` is not imported\. Imported are: toy\.",
    ),
    "a file without dynamic registration": (
        [MINE],
        "import toy_methods\ntoy_methods.Optimiser.factored = True",
        r"mine\.gin:2: nothing called `toy_methods\.Optimiser` is registered\..*"
        r"begin the file with `from __gin__ import dynamic_registration`",
    ),
    "dynamic registration after an import": (
        [MINE],
        "import toy_methods\n" + DYNAMIC,
        r"mine\.gin:2: Dynamic registration should be enabled before",
    ),
    "a number where a function should be": (
        [MINE],
        IMPORTS + "toy.train.prompt = @toy.DEFAULT_LENGTH",
        r"mine\.gin:3: `toy\.DEFAULT_LENGTH` is not a function or a class",
    ),
    "a module where a function should be": (
        [MINE],
        IMPORTS + "toy.train.prompt = @toy",
        r"mine\.gin:3: `toy` is not a function or a class",
    ),
    "a misspelt module": (
        [MINE],
        DYNAMIC + "from prompt_tuning import batsh",
        r"mine\.gin:2: there is no module prompt_tuning\.batsh\. Did you mean 'batch'",
    ),
    "a class imported as a module": (
        [MINE],
        DYNAMIC + "from toy_methods import Prompt",
        r"mine\.gin:2: there is no module toy_methods\.Prompt\. `Prompt` is a name in toy_methods, "
        r"and gin imports modules only: import toy_methods and write `toy_methods\.Prompt`",
    ),
    "a module whose dependency is missing": (
        [MINE],
        DYNAMIC + "import toy_broken",
        r"mine\.gin:2: importing toy_broken failed: No module named 'a_package_nobody_has'",
    ),
    "a module under gin's own name": (
        [MINE],
        DYNAMIC + "import gin.config",
        r"mine\.gin:2: `import gin\.config`: gin keeps the name `gin`; add `as ANOTHER`",
    ),
    "two modules under one name": (
        [MINE],
        DYNAMIC + "import toy_twin as toy\ntoy.train.steps = 3",
        r"mine\.gin:3: A different configurable matching 'toy\.train' already exists\. "
        r"Import one of the two modules under another name",
    ),
    "arguments that a called function misses": (
        ["--gin.toy.train.schedule=@toy.schedule()", "--gin.train.prompt=@toy.Prompt()"],
        "",
        r"(?s)Arguments without a value:\n  toy\.Prompt\.embed_dim = \.\.\.\n"
        r"  toy\.schedule\.base = \.\.\.",
    ),
}


@pytest.mark.parametrize(("flags", "mine", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_configuration_exits_with_2_and_says_what_and_where(
    folder, capsys, flags, mine, message
):
    (folder / "mine.gin").write_text(mine)
    assert main(["toy", "--gin_file=run.gin", DIRECTORY, *flags]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert error.startswith("error: ")
    assert "In call to configurable" not in error


def test_a_run_without_a_gin_file_is_told_which_there_are(folder, capsys, monkeypatch):
    (folder / "runs").mkdir()
    (folder / "runs/finetune.gin").touch()
    monkeypatch.setattr(config, "gin_root", lambda: folder)
    assert main(["toy", DIRECTORY]) == 2
    assert "No --gin_file was given. " in (error := capsys.readouterr().err)
    assert "runs/finetune.gin" in error


def test_a_file_that_is_a_folder_away_is_proposed(folder, capsys):
    (folder / "mine/runs").mkdir(parents=True)
    (folder / "mine/runs/finetune.gin").touch()
    flags = ["--gin_file=finetune.gin", "--gin_search_paths=mine", DIRECTORY]
    assert main(["toy", *flags]) == 2
    assert "no gin file 'finetune.gin'. Did you mean 'runs/finetune.gin'" in capsys.readouterr().err


def test_what_the_caller_gives_is_not_taken_for_an_argument_of_an_inner_function(folder):
    config.parse(
        RunArguments(
            gin_file=("run.gin",),
            gin_bindings=("MODEL_DIR = '/tmp/run'", "train.schedule = @toy.schedule()"),
        )
    )
    with pytest.raises(ConfigError, match=r"without a value:\n  toy\.schedule\.base = \.\.\.$"):
        config.call(toy().train, base=1)


def test_a_command_whose_function_no_file_configures_is_told_so(folder):
    def train_something_else() -> None: ...

    config.parse(RunArguments(gin_file=("run.gin",), gin_bindings=("MODEL_DIR = '/tmp/run'",)))
    with pytest.raises(ConfigError, match=r"None of the gin files configures `.*\.train_something"):
        config.call(train_something_else)


@pytest.mark.parametrize(
    ("fault", "code", "message"),
    [
        ("diverged", 7, r"^error: The loss is not finite at step 3\.$"),
        (
            "device out of memory",
            6,
            r"^error: out of memory: RESOURCE_EXHAUSTED: .* 9 bytes\.\nUse more",
        ),
        ("host out of memory", 6, r"^error: out of memory: the host has none left\nUse more micro"),
        ("interrupted", 130, r"^interrupted$"),
    ],
)
def test_a_failed_run_exits_with_the_code_of_its_fault(folder, capsys, fault, code, message):
    flags = ["--gin_file=run.gin", DIRECTORY, f"--gin.toy.train.fault='{fault}'"]
    assert main(["toy", *flags]) == code
    assert re.search(message, capsys.readouterr().err.strip())


def test_a_bug_keeps_its_traceback(folder):
    with pytest.raises(RuntimeError, match="a bug of ours"):
        main(["toy", "--gin_file=run.gin", DIRECTORY, "--gin.toy.train.fault='bug'"])


# The order of files.

ORDERED = {
    "models/base.gin": "PROMPT_START = 'anywhere'\nDROPOUT = 0.0\nSTEPS = 1\n",
    "models/sizes/large.gin": "LAYERS = 24\n",
    "prompts/labels.gin": "PROMPT_START = 'labels'\n",
    "runs/tune.gin": f"{IMPORTS}DROPOUT = 0.1\nSTEPS = 1\ntoy.train.steps = %STEPS\n"
    "toy.train.lengths = (%PROMPT_START, %DROPOUT)\n",
}


@pytest.fixture
def ordered(folder, monkeypatch):
    """Parses files of a package that has a value for everything in models/."""
    package = folder / "package"
    monkeypatch.setattr(config, "gin_root", lambda: package)
    for name, text in ORDERED.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)

    def parse(*files, bindings=()):
        config.parse(RunArguments(gin_file=files, gin_bindings=bindings))
        return gin.query_parameter("PROMPT_START/gin.macro.value")

    return parse


def test_files_in_their_order_are_accepted(ordered):
    assert ordered("models/base.gin", "prompts/labels.gin", "runs/tune.gin") == "labels"
    assert ordered("models/base.gin", "runs/tune.gin", "prompts/labels.gin") == "labels"


@pytest.mark.parametrize(
    ("files", "taken_back"),
    [
        (["prompts/labels.gin", "models/base.gin", "runs/tune.gin"], ["PROMPT_START"]),
        (["runs/tune.gin", "models/base.gin"], ["DROPOUT"]),
        (["runs/tune.gin", "prompts/labels.gin", "models/base.gin"], ["DROPOUT", "PROMPT_START"]),
    ],
)
def test_a_file_that_takes_back_what_a_later_one_has_set_is_an_error(ordered, files, taken_back):
    with pytest.raises(ConfigError) as error:
        ordered(*files)
    _, *lines, order = str(error.value).splitlines()
    assert sorted(line.split()[0] for line in lines) == taken_back
    assert all(
        re.search(r" of .*\.gin:\d+ is taken back at .*models/base\.gin:\d$", x) for x in lines
    )
    # The order that is proposed is one that works.
    ordered(*re.findall(r"--gin_file=(\S+)", order))


def test_files_and_bindings_of_others_may_take_back_anything(ordered, folder):
    right = ("models/base.gin", "prompts/labels.gin", "runs/tune.gin")
    (folder / "mine.gin").write_text("PROMPT_START = 'mine'\n")
    assert ordered(*right, "mine.gin") == "mine"
    assert ordered("mine.gin", *right) == "labels"
    assert ordered(*right, bindings=("PROMPT_START = 'typed'",)) == "typed"
    # What is set in the end by others was taken back from nobody.
    assert ordered(right[1], right[0], right[2], "mine.gin") == "mine"
