"""What a run says before its first step."""

import re

import jax
import numpy as np
import pytest
from flax import nnx

from prompt_tuning.__main__ import main
from prompt_tuning.checkpoints import PromptFile
from prompt_tuning.cli import config
from prompt_tuning.cli.reports import opening
from prompt_tuning.cli.train import WORTH_SAYING, _tell_pace
from prompt_tuning.model import parameters
from prompt_tuning.prompts import PromptParam
from prompt_tuning.training.loop import Every
from prompt_tuning.training.optimizer import adafactor
from prompt_tuning.training.schedules import learning_rate
from prompt_tuning.training.state import split_model
from tests.asked_models import FILMS, LENGTHS, make_world
from tests.reference_models import reference_model
from tests.tiny_runs import BASE_STEP, binding

ROWS = 40


@pytest.fixture(scope="module")
def world(programs, tmp_path_factory):
    world = make_world(tmp_path_factory.mktemp("world"), rows=ROWS)
    vectors = np.ones((3, 32), np.float32)
    PromptFile.of(vectors, step=30).save(world.folder / "prompt.safetensors")
    return world


@pytest.fixture
def said(capsys):
    """Runs a command and returns what stands beside each label of its block."""

    def run(*command):
        capsys.readouterr()
        code = main([*command])
        error = capsys.readouterr().err
        assert code == 0, error
        return beside(error)

    yield run
    config.clear()


def beside(text):
    """Returns what stands beside each label, the first time that it comes up."""
    found, label = {}, None
    for line in text.splitlines():
        if match := re.fullmatch(r"  (\w+) +(\S.*)", line):
            label = None if match[1] in found else match[1]
            if label:
                found[label] = [match[2]]
        elif label and line.startswith("     "):
            found[label].append(line.strip())
        else:
            label = None
    return {label: "\n".join(lines) for label, lines in found.items()}


def training(world, tmp_path, *more):
    return [
        "train",
        "--gin_file=models/ours_tiny.gin",
        "--gin_file=prompts/from_class_labels.gin",
        "--gin_file=runs/prompt_finetune.gin",
        *world.train(tmp_path / "run"),
        LENGTHS,
        "--gin.CLASS_LABELS=['every', 'twice']",
        "--gin.PROMPT_LENGTH=5",
        "--gin.BATCH_SIZE=8",
        "--gin.MICROBATCHES=2",
        "--gin.train.devices=1",
        "--gin.RANDOM_SEED=7",
        *more,
    ]


@pytest.mark.slow
def test_a_run_says_what_it_will_do(said, world, tmp_path):
    found = said(*training(world, tmp_path, "--gin.EPOCHS=0.4", "--gin.SAVE_PERIOD=1"))
    assert found["trains"].startswith("1 tensor, 160 of 574,240 parameters (0.03%): ")
    assert found["trains"].endswith("encoder/prompt/prompt [5, 32]")
    assert found["frozen"] == "574,080 parameters, 2.2 MiB as float32"
    hashed = PromptFile.load(tmp_path / "run/prompt.safetensors").base[:12]
    base = world.folder / "base"
    assert found["base"].replace("\n", " ") == f"{base} (run), step {BASE_STEP}, hash {hashed}"
    assert found["prompt"].startswith(
        "5 vectors of 32 numbers; starts from the embeddings of the labels ['every', 'twice'], "
    )
    assert found["vocabulary"].startswith(f"{world.folder}/small.model, ")
    assert found["task"].split("\n")[0] == "films"
    assert f"films/train: {ROWS} examples" in found["data"]
    assert found["batch"] == "8 rows in 2 microbatches, at most 8 on a device"
    assert re.fullmatch(r"inputs [\d ]+; targets \d: .* to compile", found["buckets"])
    assert found["steps"].startswith("20 to 22: 2 steps = 0.4 epochs of 40 examples")
    assert "1 cpu device in 1 process" in found["devices"]
    assert found["numbers"] == "activations bfloat16, the base's parameters float32"
    assert found["optimizer"].endswith("weight decay 1e-05; learning rate 0.3")
    assert found["evaluates"].split("\n") == [
        "at the end",
        "films/validation: the loss of up to 20 batches, 13 examples",
        "films/validation: the task's metrics, 13 examples",
    ]
    assert found["saves"] == "every 1 step and at the end; the last kept"
    assert found["seed"] == "7"
    assert found["outputs"] == f"{tmp_path}/run"
    assert PromptFile.load(tmp_path / "run/prompt.safetensors").step == BASE_STEP + 2
    found = said(*training(world, tmp_path, "--gin.TRAIN_STEPS_RELATIVE=3", "--dry_run"))
    assert found["base"].endswith(f"step {BASE_STEP}"), "nothing was hashed"
    # EPOCHS is no part of what a run is.
    found = said(*training(world, tmp_path, "--gin.TRAIN_STEPS_RELATIVE=3"))
    assert found["steps"].startswith("goes on from 22 to 23: 1 left of 3 steps")


@pytest.mark.parametrize("command", ["eval", "infer"])
def test_whoever_asks_says_what_is_asked(said, world, tmp_path, command):
    prompt = world.folder / "prompt.safetensors"
    flags = [*world.ask(command, tmp_path / "out", prompt=prompt), *FILMS, LENGTHS]
    split = "INFER_SPLIT" if command == "infer" else "EVAL_SPLIT"
    task = binding("MIXTURE_OR_TASK_NAME", world.folder / "train.tsv")
    found = said(command, *flags, task, f"--gin.{split}='validation'")
    assert re.fullmatch(rf"{world.folder}/base, hash [0-9a-f]{{12}}", found["model"])
    assert found["prompt"] == f"{prompt}, step 30"
    assert found["holds"] == "574,176 parameters, 2.2 MiB as float32"
    assert found["outputs"].split("\n")[0] == f"{tmp_path}/out"
    asked = found["evaluates" if command == "eval" else "answers"]
    assert "films/validation" in asked and "13 examples" in asked
    # And at the end, what came of it.
    assert re.fullmatch(r"[\d.]+ s|\d+ s", found["time"])
    if command == "eval":
        assert re.search(r"inference_eval/films/accuracy +30 +[\d.]+ +13", found["metrics"])
    else:
        assert found["films"].startswith("13 examples:")
        assert found["films"].endswith("films-predict.jsonl-00000-of-00001")


PROMPTS = sorted(file.name for file in (config.gin_root() / "prompts").glob("*.gin"))


@pytest.mark.parametrize("name", PROMPTS)
def test_every_start_of_a_prompt_is_said_in_words(name):
    values = {"PROMPT_LENGTH": "5"}
    text = (config.gin_root() / "prompts" / name).read_text()
    given = re.search(r"^prompts\.Prompt\.init = (@\S+)$", text, re.M)
    assert given, name
    words = opening.initial_values(values | {"prompts.Prompt.init": given[1]})
    assert "@" not in words


def test_settings_of_the_start_are_in_the_words():
    values = {
        "POPULATION": "77",
        "PROMPT_FILE": "'/tmp/x.npy'",
        "a/initializers.from_sampled_vocabulary.population_size": "%POPULATION",
        "formats.load_vectors.path": "%PROMPT_FILE",
    }
    for init, words in [
        ("from_sampled_vocabulary", "the embeddings of tokens drawn from the 77 most frequent"),
        ("from_array", "the prompt in '/tmp/x.npy'"),
    ]:
        given = {"prompts.Prompt.init": f"@initializers.{init}()"}
        assert opening.initial_values(values | given) == words
    assert opening.initial_values({"Prompt.init": "@mine.my_init()"}) == "@mine.my_init()"
    assert opening.initial_values({}) == "what its own initialiser makes"


def test_a_learning_rate_that_changes_is_said_from_end_to_end():
    warm = learning_rate("constant * linear_warmup", 0.3, warmup_steps=100)
    label, words = opening.of_optimizer(adafactor(warm), 50, 200)
    assert label == "optimizer"
    assert words.endswith("; learning rate 0.15 to 0.3, at most 0.3")


def test_the_highest_learning_rate_is_found_wherever_it_stands():
    peak = learning_rate("linear_decay", 0.3, warmup_steps=20, decay_factor=0.001)
    _, words = opening.of_optimizer(adafactor(peak), 0, 1000)
    assert words.endswith("at most 0.3")


@pytest.mark.parametrize(
    ("period", "said"),
    [
        (1, "every 1 step and at the end"),
        (7, "every 7 steps and at the end"),
        (20, "at the end"),
        (22, "at the end"),
        (1_000, "at the end"),
    ],
)
def test_a_period_is_said_if_it_ends_before_the_run(period, said):
    assert opening.when(period, 20, 22) == said
    acts = [step for step in (21, 22) if Every(steps=period, action=print).due(step, 22)]
    assert (acts == [22]) == (said == "at the end")


def test_what_is_frozen_is_said_in_bytes():
    graph, chosen, frozen = split_model(reference_model("A"), PromptParam)
    del graph
    [(_, trains), (_, kept)] = opening.of_parameters(chosen, frozen)
    total = parameters.count(chosen) + parameters.count(frozen)
    assert f" of {total:,} parameters" in trains
    narrow = jax.tree.map(lambda leaf: leaf.astype("bfloat16"), frozen)
    [_, (_, half)] = opening.of_parameters(chosen, narrow)
    assert kept.endswith(" as float32") and half.endswith(" as bfloat16")
    [_, (_, nothing)] = opening.of_parameters(chosen, nnx.State({}))
    assert nothing == "nothing"


def test_how_long_is_left_is_said_if_it_is_worth_it(caplog):
    caplog.set_level("INFO", "prompt_tuning")
    _tell_pace(50_000, 20, 0.24)
    assert caplog.messages == [
        "About 3 h 20 min left: 0.24 s a step, 49,980 to go (evaluations not counted)."
    ]
    caplog.clear()
    _tell_pace(120, 20, 0.9 * WORTH_SAYING / 100)
    assert not caplog.messages
