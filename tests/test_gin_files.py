"""Every gin file of the package, built in every combination it is made for."""

import functools
import pathlib
import re
import shlex
import socket

import gin
import numpy as np
import pytest
from flax import nnx

from prompt_tuning.__main__ import COMMANDS, main
from prompt_tuning.cli import config
from prompt_tuning.cli.arguments import parse_run
from prompt_tuning.data import seqio_tasks, task_batches
from prompt_tuning.errors import ConfigError
from prompt_tuning.evaluation import task_evaluations
from prompt_tuning.model import SIZES, T5, parameters, t5_config
from prompt_tuning.model.config import FAMILIES
from prompt_tuning.prompts import Prompt, PromptParam
from prompt_tuning.tasks.qa import OUT_OF_DOMAIN
from prompt_tuning.vocabulary import ByteVocabulary, SentencePieceVocabulary
from tests import tfds_folder
from tests.small_vocabulary import SENTENCES
from tests.tiny_runs import forget_tasks, make_place

GIN = config.gin_root()


def files(folder):
    return sorted(f"{folder}/{path.name}" for path in (GIN / folder).glob("*.gin"))


# Included by others: those of the models by every family, `data/task.gin` by the runs, the examples
# by those that say the rest.
PARTS = [
    "models/architecture.gin",
    "models/sentencepiece.gin",
    "models/t5.gin",
    "data/task.gin",
]
TASK = "examples/sst2_files.gin"
SEQIO_TASK = "examples/sst2_seqio.gin"
# Held to each other by `tests/tasks/test_everyday.py`.
EVERYDAY = [f"examples/everyday_{name}.gin" for name in ("sentiment", "aspect", "seqio")]
EXAMPLE_PARTS = [
    TASK,
    SEQIO_TASK,
    *EVERYDAY,
    "examples/everyday_mini_task.gin",
    "examples/super_glue.gin",
]
# The file of each family, which one of `models/sizes/` completes.
FAMILY_FILES = {
    "models/t5_1_1.gin": "t5_1_1",
    "models/mt5.gin": "mt5",
    "models/byt5.gin": "byt5",
    "models/t5_1_0.gin": "t5",
    "models/ours.gin": "ours",
}
SIZE_FILES = files("models/sizes")
# For runs that train nothing.
FROM_CHECKPOINT = "models/from_checkpoint.gin"
MODELS = [name for name in files("models") if name not in (*PARTS, *FAMILY_FILES, FROM_CHECKPOINT)]
SMALLEST = [
    "models/ours_tiny.gin",
    *(f"models/{family}_small.gin" for family in FAMILY_FILES.values() if family != "ours"),
]
PROMPTS = files("prompts")
DECODING = files("decoding")
PARTITIONING = files("partitioning")
EXAMPLES = [name for name in files("examples") if name not in EXAMPLE_PARTS]
ASKING = {
    f"runs/{prompt}{command}.gin": command
    for command in ("eval", "infer")
    for prompt in ("", "prompt_")
}
RUNS = [name for name in files("runs") if name not in ASKING]
SUPER_GLUE = ("boolq", "cb", "copa", "multirc", "record", "rte", "wic", "wsc.fixed")
# What the tasks of the examples read.
DATA_SETS = {
    "glue/sst2:2.0.0": ("train", "validation"),
    "glue/rte:2.0.0": ("train", "validation"),
    "glue/qqp:2.0.0": ("train", "validation"),
    "glue/mrpc:2.0.0": ("train", "validation"),
    "squad/v1.1:3.0.0": ("train", "validation"),
    **{f"super_glue/{name}:1.0.2": ("train", "validation") for name in SUPER_GLUE},
    **{f"mrqa/{name}:1.0.0": ("test",) for name in OUT_OF_DOMAIN},
}

every_model = pytest.mark.parametrize("model", MODELS)
every_asking_run = pytest.mark.parametrize("run", ASKING)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = make_place(tmp_path_factory.mktemp("place"))
    np.save(place.folder / "prompt.npy", np.zeros((100, 32), np.float32))
    np.save(place.folder / "embeddings.npy", np.zeros((8192, 32), np.float32))
    for split in ("train", "validation"):
        (place.folder / f"pairs.{split}.tsv").write_text(
            "sentence1\tsentence2\tlabel\nthe boats came home\tthey are home\t1\na\tb\t0\n"
        )
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


def values_for(place):
    """Returns a value for each setting of which the tests have a small one."""
    folder = place.folder
    return {
        "MODEL_DIR": f"'{folder}/run'",
        "TSV_DIR": f"'{folder}'",
        "TRAIN_FILE": f"'{folder}/pairs.train.tsv'",
        "EVAL_FILE": f"'{folder}/pairs.validation.tsv'",
        "INITIAL_CHECKPOINT_PATH": f"'{folder}/base'",
        "CHECKPOINT_PATH": f"'{folder}/base'",
        "EVAL_OUTPUT_DIR": f"'{folder}/eval'",
        "INFER_OUTPUT_DIR": f"'{folder}/infer'",
        "VOCABULARY_FILE": f"'{folder}/small.model'",
        "CLASS_LABELS": "['good', 'bad']",
        "PROMPT_FILE": f"'{folder}/prompt.npy'",
        "EMBEDDING_FILE": f"'{folder}/embeddings.npy'",
        "CORPUS": f"'{folder}/corpus.txt'",
        "CACHE_DIR": f"'{folder}/cache'",
        "BASE_STEP": "0",
    }


def combination(place, *names):
    """Returns the flags of files, with a value for each of their settings that the tests need."""
    values = values_for(place) | {
        "INFER_SPLIT": "'validation'",
        "TRAIN_STEPS": "25",
        "BATCH_SIZE": "2",
        "INPUT_LENGTH": "32",
    }
    return [*(f"--gin_file={name}" for name in names), *bindings(values, names)]


def bindings(values, names):
    """Returns the flags that set those of the values that the files know."""
    defined = set(re.findall(r"^(\w+) =", "\n".join(map(text_of, names)), re.MULTILINE))
    return [f"--gin.{name}={value}" for name, value in values.items() if name in defined]


def parse(flags):
    config.parse(parse_run("prompt-tuning", "", flags))


def test_every_file_is_in_one_of_the_tables():
    tables = [*PARTS, *FAMILY_FILES, *SIZE_FILES, *MODELS, FROM_CHECKPOINT, *PROMPTS, *DECODING]
    tables += [*PARTITIONING, *RUNS, *ASKING, *EXAMPLES, *EXAMPLE_PARTS]
    assert sorted(tables) == sorted(str(path.relative_to(GIN)) for path in GIN.rglob("*.gin"))


def test_every_size_has_a_file():
    # LM adaptation trains the model of T5 1.1 further: their files are the same.
    names = [name for name in SIZES if "lm100k" not in name]
    assert sorted(MODELS) == sorted(f"models/{name}.gin" for name in names)


@every_model
def test_a_model_file_makes_the_model_of_its_header(place, model):
    parse(combination(place, model, "runs/prompt_finetune.gin", TASK))
    prompt = functools.partial(config.call, Prompt)
    built = nnx.eval_shape(lambda: config.call(T5, prompt=prompt, rngs=nnx.Rngs(0)))
    _, prompts, base = nnx.split(built, PromptParam, ...)
    width = built.config.embed_dim
    assert [leaf.shape for leaf in parameters.named(prompts).values()] == [(100, width)]
    name = pathlib.Path(model).stem
    remat = "full" if name in ("mt5_80b", "mt5_150b") else "none"
    assert built.config == t5_config(name, dropout_rate=0.1, remat=remat)
    header = (GIN / model).read_text().partition("\n\n")[0]
    ((number, unit),) = re.findall(r"([\d.]+) ([MB]) parameters", header)
    count = parameters.count(base) / {"M": 1e6, "B": 1e9}[unit]
    assert float(number) == pytest.approx(count, rel=0.01)


def configured(place, *names):
    parse(combination(place, *names, "runs/prompt_finetune.gin", TASK))
    return config.call(t5_config)


@pytest.mark.parametrize("family", FAMILY_FILES)
def test_a_family_and_a_size_are_the_size_s_own_file(place, family):
    name = FAMILY_FILES[family]
    first, *others = FAMILIES[name]
    for size in others:
        alone = configured(place, f"models/{name}_{size}.gin")
        assert configured(place, family, f"models/sizes/{size}.gin") == alone
    # The later file wins, over another size as well.
    again = configured(place, f"models/{name}_{first}.gin", f"models/sizes/{size}.gin")
    assert again == alone


def test_a_size_that_a_family_lacks_is_answered_with_those_it_has(place):
    with pytest.raises(ConfigError) as caught:
        configured(place, "models/byt5.gin", "models/sizes/80b.gin")
    message = (
        "MODEL_SIZE is '80b', but byt5 comes in the sizes small, base, large, xl, xxl. Choose one "
        "of their files models/sizes/SIZE.gin, or another family."
    )
    assert str(caught.value).startswith(message)


def test_a_family_without_a_size_asks_for_one(place):
    with pytest.raises(ConfigError, match=r"MODEL_SIZE .*--gin.MODEL_SIZE=\"'base'\""):
        configured(place, "models/mt5.gin")


BUCKET = "gs://t5-data/vocabs"
VOCABULARIES = {
    "models/t5_1_1.gin": f"{BUCKET}/cc_all.32000.100extra/sentencepiece.model",
    "models/t5_1_0.gin": f"{BUCKET}/cc_all.32000.100extra/sentencepiece.model",
    "models/mt5.gin": f"{BUCKET}/mc4.250000.100extra/sentencepiece.model",
}


@pytest.mark.parametrize(("family", "path"), VOCABULARIES.items())
def test_a_family_brings_its_vocabulary(place, family, path):
    run = combination(place, "runs/prompt_finetune.gin", TASK)
    parse([f"--gin_file={family}", "--gin.MODEL_SIZE='small'", *run])
    assert config.call(SentencePieceVocabulary).path == path


def test_bytes_have_no_file(place):
    run = [
        "--gin_file=models/byt5_small.gin",
        *combination(place, "runs/prompt_finetune.gin", TASK),
    ]
    parse(run)
    assert gin.query_parameter("%VOCABULARY").configurable.wrapped is ByteVocabulary
    with pytest.raises(ConfigError, match="nothing reads the macro VOCABULARY_FILE"):
        parse([*run, "--gin.VOCABULARY_FILE='spiece.model'"])


def test_a_file_of_one_s_own_may_name_the_model(place, tmp_path):
    file = tmp_path / "mine.gin"
    file.write_text("include 'models/t5.gin'\nMODEL_NAME = 't5_1_1_xl'\n")
    flags = combination(place, "models/t5.gin", "runs/prompt_finetune.gin", TASK)[1:]
    parse([f"--gin_file={file}", *flags])
    assert config.call(t5_config) == t5_config("t5_1_1_xl", dropout_rate=0.1)


@pytest.mark.parametrize("model", ["models/ours_tiny.gin", FROM_CHECKPOINT])
def test_a_model_of_one_s_own_needs_its_vocabulary(place, model):
    run = "runs/eval.gin" if model == FROM_CHECKPOINT else "runs/finetune.gin"
    flags = [f for f in combination(place, model, run, TASK) if "VOCABULARY_FILE" not in f]
    with pytest.raises(ConfigError, match=r"VOCABULARY_FILE .*: --gin.VOCABULARY_FILE="):
        parse(flags)


ARCHITECTURE = {
    "NUM_EMBEDDINGS": "vocab_size",
    "NUM_ENCODER_LAYERS": "encoder_layers",
    "NUM_DECODER_LAYERS": "decoder_layers",
    "NUM_HEADS": "num_heads",
    "HEAD_DIM": "head_dim",
    "EMBED_DIM": "embed_dim",
    "MLP_DIM": "mlp_dim",
}


def test_the_architecture_may_be_changed_by_the_original_s_macros(place):
    flags = combination(place, "models/t5_1_1_small.gin", "runs/prompt_finetune.gin", TASK)
    for macro, field in ARCHITECTURE.items():
        parse([*flags, f"--gin.{macro}=3", "--gin.PARAM_DTYPE='bfloat16'"])
        expected = {field: 3, "param_dtype": "bfloat16", "dropout_rate": 0.1}
        assert config.call(t5_config) == t5_config("t5_1_1_small", **expected)


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("run", [name for name in RUNS if not trains_on_text(name)])
def test_every_prompt_goes_with_every_tuning_run(place, prompt, run):
    for model in SMALLEST:
        parse(combination(place, model, prompt, run, TASK))


@pytest.mark.parametrize("decoding", [None, *DECODING])
@every_asking_run
def test_every_decoding_goes_with_every_run_that_asks(place, decoding, run):
    for model in (*SMALLEST, FROM_CHECKPOINT):
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


@pytest.mark.parametrize("model", SMALLEST)
def test_every_family_can_be_pretrained(place, model):
    # From scratch, so that nothing but shapes is made of the model.
    flags = combination(place, model, "runs/pretrain.gin")
    assert main(["pretrain", *flags, "--gin.INITIAL_CHECKPOINT_PATH=None", "--dry_run"]) == 0


def test_a_pretrained_model_can_be_trained_on_text_further(place, capsys):
    flags = combination(place, "models/ours_tiny.gin", "runs/lm_adapt.gin")
    assert main(["pretrain", *flags, "--dry_run"]) == 0
    assert "Training 29 tensors, 574,080 of 574,080 parameters." in capsys.readouterr().err


@pytest.mark.parametrize("prompt", [None, *PROMPTS])
def test_every_prompt_is_trained_by_the_step_it_was_made_for(place, capsys, prompt):
    names = ["models/ours_tiny.gin", *([prompt] if prompt else []), "runs/prompt_finetune.gin"]
    assert main(["train", *combination(place, *names, TASK), "--dry_run"]) == 0
    assert "Training 1 tensors, 3,200 of 577,280 parameters." in capsys.readouterr().err


def test_a_whole_model_is_trained_by_the_step_it_was_made_for(place, capsys):
    names = ["models/ours_tiny.gin", "runs/finetune.gin", TASK]
    assert main(["train", *combination(place, *names), "--dry_run"]) == 0
    assert "Training 29 tensors, 574,080 of 574,080 parameters." in capsys.readouterr().err


@pytest.mark.parametrize("run", ["runs/prompt_finetune.gin", "runs/eval.gin"])
def test_evaluations_may_be_of_few_examples_and_written_in_part(place, run):
    flags = combination(place, "models/ours_tiny.gin", run, TASK)
    few = ["--gin.EVALUATOR_NUM_EXAMPLES=3", "--gin.JSON_WRITE_N_RESULTS=2"]
    parse([*flags, *few])
    _, judged = config.call(task_evaluations.task_evaluations)
    assert (len(judged.split.examples), judged.write_rows) == (3, 2)
    config.clear()
    parse(flags)
    _, judged = config.call(task_evaluations.task_evaluations)
    assert (len(judged.split.examples), judged.write_rows) == (4, None)


def test_another_split_may_be_trained_on(place):
    flags = combination(place, "models/ours_tiny.gin", "runs/prompt_finetune.gin", TASK)
    sizes = {}
    for split in ("train", "validation"):
        parse([*flags, f"--gin.TRAIN_SPLIT='{split}'"])
        sizes[split] = len(config.call(task_batches.task_batches).split.examples)
    assert sizes == {"train": 16, "validation": 4}


def test_seqio_makes_the_examples_that_are_read_without_it(place):
    loaded = []
    for task in (TASK, SEQIO_TASK):
        parse(combination(place, "models/ours_tiny.gin", "runs/prompt_finetune.gin", task))
        loaded.append(config.call(task_batches.task_split, split="train"))
        config.clear()
    ours, theirs = loaded
    assert (ours.task, ours.targets()) == (theirs.task, theirs.targets())
    assert str(list(ours.examples)) == str(list(theirs.examples))


@pytest.fixture(scope="module")
def tfds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    for name, splits in DATA_SETS.items():
        tfds_folder.write(folder, name, splits=splits)
    yield folder
    seqio_tasks.use_folders(tfds_data_dir="")


@pytest.fixture
def no_network(monkeypatch):
    """A data set that is missing is answered at once, as TFDS would look for it for minutes."""

    def fail(*_, **__):
        raise AssertionError("somebody asks the network")

    monkeypatch.setattr(socket.socket, "connect", fail)
    monkeypatch.setattr(socket, "getaddrinfo", fail)


def header(example):
    return (GIN / example).read_text().partition("\n\n")[0]


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_says_what_it_takes_and_what_comes_out(example):
    labels = re.findall(r"^# (Trains|Asks|Needs|Command|Cost|Result)  ", header(example), re.M)
    assert labels in (
        ["Trains", "Needs", "Command", "Cost", "Result"],
        ["Asks", "Needs", "Command", "Cost", "Result"],
    )


@pytest.mark.parametrize(
    "example",
    [
        # Others are one file with other words: all tasks of SuperGLUE, all transfers.
        pytest.param(name, marks=pytest.mark.slow)
        if re.search("super_glue_(?!boolq)|qqp_to|squad|xxl_pod|t5_1_0|byt5", name)
        else name
        for name in EXAMPLES
    ],
)
@pytest.mark.usefixtures("no_network")
def test_the_command_of_an_example_runs(place, tfds, capsys, example):
    """All that is not made here, the base, the vocabulary and the data, is put in its place."""
    (command,) = shown_commands(header(example))
    _, name, *flags = shlex.split(command)
    values = values_for(place)
    # What the model is to say belongs to the task.
    del values["CLASS_LABELS"]
    if FROM_CHECKPOINT not in text_of(example):
        values["MODEL_NAME"] = "'ours_tiny'"
    if "TOKEN_VECTORS = @" in text_of(example):  # one that starts from scratch
        del values["INITIAL_CHECKPOINT_PATH"]
    if example == "examples/sst2_infer.gin":
        values["MIXTURE_OR_TASK_NAME"] = f"'{place.folder}/validation.tsv'"
    if "ensemble" in example:
        values["PROMPT_FILE"] = str([f"{place.folder}/prompt.npy"] * 2)
    flags += [*bindings(values, [example]), f"--tfds_data_dir={tfds}"]
    assert main([name, *flags, "--dry_run"]) == 0, capsys.readouterr().err


def shown_commands(text):
    """Returns the commands in comments, each in one line."""
    comments = re.findall(r"^#(.*)$", text, re.MULTILINE)
    return re.findall(r"prompt-tuning \w+ --gin.*", "\n".join(comments).replace("\\\n", " "))


def commands():
    """Yields every command that the header of a file shows."""
    for path in sorted(GIN.rglob("*.gin")):
        for command in shown_commands(path.read_text()):
            yield pytest.param(command, id=str(path.relative_to(GIN)))


@pytest.mark.parametrize("command", list(commands()))
def test_the_command_in_a_header_sets_all_that_is_needed(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_task.gin").write_text(f"include '{TASK}'\nTSV_DIR = '/data'\nEPOCHS = 1\n")
    _, name, *flags = shlex.split(command)
    assert name in COMMANDS
    parse(flags)
