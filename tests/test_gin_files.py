"""Every gin file of the package, built in every combination it is made for."""

import functools
import pathlib
import re
import shlex

import numpy as np
import pytest
from flax import nnx

from prompt_tuning.__main__ import COMMANDS, main
from prompt_tuning.cli import config
from prompt_tuning.cli.arguments import parse_run
from prompt_tuning.data import task_batches
from prompt_tuning.model import T5, parameters, t5_config
from prompt_tuning.prompts import Prompt, PromptParam
from tests.small_vocabulary import SENTENCES
from tests.tiny_runs import forget_tasks, make_place

GIN = config.gin_root()


def files(folder):
    return sorted(f"{folder}/{path.name}" for path in (GIN / folder).glob("*.gin"))


# `models/t5.gin` is what the others have in common and `data/task.gin` what the runs have;
# `examples/sst2_files.gin` is only a task, and `examples/sst2_seqio.gin` the same one by way of
# seqio. `models/from_checkpoint.gin` is for runs that train nothing.
PARTS = ["models/t5.gin", "data/task.gin"]
FROM_CHECKPOINT = "models/from_checkpoint.gin"
MODELS = [name for name in files("models") if name not in (*PARTS, FROM_CHECKPOINT)]
PROMPTS = files("prompts")
DECODING = files("decoding")
TASK = "examples/sst2_files.gin"
SEQIO_TASK = "examples/sst2_seqio.gin"
# `tests/cli/test_demo.py` runs the demo's.
DEMO = [name for name in files("examples") if name.startswith("examples/demo_")]
EXAMPLES = [name for name in files("examples") if name not in (TASK, SEQIO_TASK, *DEMO)]
ASKING = {
    f"runs/{prompt}{command}.gin": command
    for command in ("eval", "infer")
    for prompt in ("", "prompt_")
}
RUNS = [name for name in files("runs") if name not in ASKING]

every_model = pytest.mark.parametrize("model", MODELS)
every_prompt = pytest.mark.parametrize("prompt", [None, *PROMPTS])
every_asking_run = pytest.mark.parametrize("run", ASKING)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = make_place(tmp_path_factory.mktemp("place"))
    np.save(place.folder / "prompt.npy", np.zeros((100, 32), np.float32))
    (place.folder / "corpus.txt").write_text("\n".join(SENTENCES))
    return place


@pytest.fixture(autouse=True)
def nothing_configured():
    yield
    forget_tasks()
    config.clear()


def text_of(name):
    """Returns the text of a file and of all that it includes."""
    text = (GIN / name).read_text()
    included = re.findall(r'^include "(.+)"$', text, re.MULTILINE)
    return "\n".join([text, *map(text_of, included)])


def trains_on_text(run):
    """Tells whether a run reads a corpus, and so belongs to `prompt-tuning pretrain`."""
    return "\nCORPUS = " in text_of(run)


def combination(place, *names):
    """Returns the flags of files, with a value for each of their settings that the tests need."""
    values = {
        "MODEL_DIR": f"'{place.folder}/run'",
        "TSV_DIR": f"'{place.folder}'",
        "INITIAL_CHECKPOINT_PATH": f"'{place.folder}/base'",
        "CHECKPOINT_PATH": f"'{place.folder}/base'",
        "EVAL_OUTPUT_DIR": f"'{place.folder}/eval'",
        "INFER_OUTPUT_DIR": f"'{place.folder}/infer'",
        "INFER_SPLIT": "'validation'",
        "VOCABULARY_FILE": f"'{place.folder}/small.model'",
        "CLASS_LABELS": "['good', 'bad']",
        "PROMPT_FILE": f"'{place.folder}/prompt.npy'",
        "CORPUS": f"'{place.folder}/corpus.txt'",
        "CACHE_DIR": f"'{place.folder}/cache'",
        "TRAIN_STEPS": "25",
        "BATCH_SIZE": "2",
        "INPUT_LENGTH": "32",
    }
    defined = set(re.findall(r"^(\w+) =", "\n".join(map(text_of, names)), re.MULTILINE))
    return [
        *(f"--gin_file={name}" for name in names),
        *(f"--gin.{name}={value}" for name, value in values.items() if name in defined),
    ]


def parse(flags):
    config.parse(parse_run("prompt-tuning", "", flags))


def test_every_file_is_in_one_of_the_tables():
    tables = [*PARTS, *MODELS, FROM_CHECKPOINT, *PROMPTS, *DECODING, *RUNS, *ASKING]
    tables += [*EXAMPLES, *DEMO, TASK, SEQIO_TASK]
    assert sorted(tables) == sorted(str(path.relative_to(GIN)) for path in GIN.rglob("*.gin"))


@every_model
def test_a_model_file_makes_the_model_of_its_header(place, model):
    parse(combination(place, model, "runs/prompt_finetune.gin", TASK))
    prompt = functools.partial(config.call, Prompt)
    built = nnx.eval_shape(lambda: config.call(T5, prompt=prompt, rngs=nnx.Rngs(0)))
    _, prompts, base = nnx.split(built, PromptParam, ...)
    width = built.config.embed_dim
    assert [leaf.shape for leaf in parameters.named(prompts).values()] == [(100, width)]
    name = pathlib.Path(model).stem
    assert built.config == t5_config(name, dropout_rate=0.1)
    header = (GIN / model).read_text().partition("\n\n")[0]
    for millions in re.findall(r"([\d.]+) M parameters", header):
        assert float(millions) == pytest.approx(parameters.count(base) / 1e6, rel=0.01)


@every_model
@every_prompt
@pytest.mark.parametrize("run", [name for name in RUNS if not trains_on_text(name)])
def test_every_model_goes_with_every_prompt_and_tuning_run(place, model, prompt, run):
    parse(combination(place, model, *([prompt] if prompt else []), run, TASK))


@pytest.mark.parametrize("model", [*MODELS, FROM_CHECKPOINT])
@pytest.mark.parametrize("decoding", [None, *DECODING])
@every_asking_run
def test_every_model_and_decoding_goes_with_every_run_that_asks(place, model, decoding, run):
    parse(combination(place, model, *([decoding] if decoding else []), run, TASK))


@pytest.mark.parametrize("model", ["models/ours_tiny.gin", FROM_CHECKPOINT])
@every_asking_run
def test_every_run_that_asks_has_all_that_it_needs(place, capsys, model, run):
    flags = combination(place, model, run, TASK)
    name = "prompt.npy" if "prompt" in run else "base"
    if name == "base":
        flags.append("--gin.PROMPT_FILE=None")
    assert main([ASKING[run], *flags, "--dry_run"]) == 0
    assert f" {place.folder}/{name}, step 20.\n" in capsys.readouterr().err


@every_model
@pytest.mark.parametrize("run", [name for name in RUNS if trains_on_text(name)])
def test_every_model_goes_with_every_run_on_text(place, model, run):
    parse(combination(place, model, run))


@every_model
def test_every_model_can_be_pretrained(place, model):
    # From scratch, so that nothing but shapes is made of the large ones.
    flags = combination(place, model, "runs/pretrain.gin")
    assert main(["pretrain", *flags, "--gin.INITIAL_CHECKPOINT_PATH=None", "--dry_run"]) == 0


def test_a_pretrained_model_can_be_trained_on_text_further(place, capsys):
    flags = combination(place, "models/ours_tiny.gin", "runs/lm_adapt.gin")
    assert main(["pretrain", *flags, "--dry_run"]) == 0
    assert "Training 29 tensors, 574,080 of 574,080 parameters." in capsys.readouterr().err


@every_prompt
def test_every_prompt_is_trained_by_the_step_it_was_made_for(place, capsys, prompt):
    names = ["models/ours_tiny.gin", *([prompt] if prompt else []), "runs/prompt_finetune.gin"]
    assert main(["train", *combination(place, *names, TASK), "--dry_run"]) == 0
    assert "Training 1 tensors, 3,200 of 577,280 parameters." in capsys.readouterr().err


def test_a_whole_model_is_trained_by_the_step_it_was_made_for(place, capsys):
    names = ["models/ours_tiny.gin", "runs/finetune.gin", TASK]
    assert main(["train", *combination(place, *names), "--dry_run"]) == 0
    assert "Training 29 tensors, 574,080 of 574,080 parameters." in capsys.readouterr().err


def test_seqio_makes_the_examples_that_are_read_without_it(place):
    loaded = []
    for task in (TASK, SEQIO_TASK):
        parse(combination(place, "models/ours_tiny.gin", "runs/prompt_finetune.gin", task))
        loaded.append(config.call(task_batches.task_split, split="train"))
        config.clear()
    ours, theirs = loaded
    assert (ours.task, ours.targets()) == (theirs.task, theirs.targets())
    assert str(list(ours.examples)) == str(list(theirs.examples))


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_example_is_complete(place, example):
    flags = [*combination(place, example), "--gin.MODEL_NAME='ours_tiny'"]
    assert main(["train", *flags, "--dry_run"]) == 0


@pytest.mark.parametrize("demo", DEMO)
def test_every_setting_of_the_demo_has_a_value(place, demo):
    parse(combination(place, demo))


def commands():
    """Yields every command that the header of a file shows, in one line each."""
    for path in sorted(GIN.rglob("*.gin")):
        comments = re.findall(r"^#(.*)$", path.read_text(), re.MULTILINE)
        text = "\n".join(comments).replace("\\\n", " ")
        for command in re.findall(r"prompt-tuning \w+ --.*", text):
            yield pytest.param(command, id=str(path.relative_to(GIN)))


@pytest.mark.parametrize("command", list(commands()))
def test_the_command_in_a_header_sets_all_that_is_needed(command):
    _, name, *flags = shlex.split(command)
    assert name in COMMANDS
    parse(flags)
