"""`prompt-tuning demo`: the whole of prompt tuning in a minute, on a little world made up here.

The world has things of four kinds. A tiny T5 reads about all of them; then, over the frozen model,
a prompt learns to answer with a thing's kind. It is shown half of the things and asked about the
other half: what it answers there can only come from the model.
"""

import argparse
import json
import pathlib
import random
import shlex
import tempfile
from collections.abc import Callable, Mapping, Sequence

from prompt_tuning.cli.arguments import RunArguments, gin_flag
from prompt_tuning.errors import ConfigError

KINDS = {
    "animal": ["fox", "owl", "hen", "bee", "cow", "eel", "goat", "wolf", "frog", "crab"],
    "tool": ["saw", "axe", "rake", "file", "drill", "spade", "plane", "clamp", "lathe", "hammer"],
    "food": ["pie", "jam", "soup", "rice", "bread", "toast", "curry", "salad", "pasta", "cake"],
    "place": ["inn", "spa", "port", "park", "farm", "mill", "tower", "bridge", "market", "castle"],
}
# A word becomes a piece of the vocabulary when different characters follow it.
TOLD = (
    "the {thing} is one {kind}.",
    "one {kind} is the {thing}.",
    "they say that every {thing} is one {kind}.",
    "what is the {thing}? one {kind}.",
)
PARAGRAPHS = 6000


def parse(program: str, about: str, argv: Sequence[str]) -> argparse.Namespace:
    """Parses the flags of the demo."""
    parser = argparse.ArgumentParser(prog=program, description=about, allow_abbrev=False)
    parser.add_argument("--output", metavar="DIR", help="where to put everything; a new folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pretrain_steps", type=int, default=600, metavar="N")
    parser.add_argument("--tune_steps", type=int, default=200, metavar="N")
    parsed, unknown = parser.parse_known_args(argv)
    if unknown:
        raise ConfigError(f"The demo has no flag {unknown[0]!r} (see `{program} --help`).")
    return parsed


def run(arguments: argparse.Namespace) -> int:
    """Makes the little world, pretrains, tunes and reports; returns the exit code."""
    # Here, because `--help` of every command comes past this module.
    from prompt_tuning.cli import pretrain as pretrain_command
    from prompt_tuning.cli import train as train_command

    folder = pathlib.Path(arguments.output or tempfile.mkdtemp(prefix="prompt-tuning-demo-"))
    folder.mkdir(parents=True, exist_ok=True)
    write_world(folder, random.Random(arguments.seed))
    print(f"A little world of {sum(map(len, KINDS.values()))} things is written to {folder}.\n")
    shared = {
        "VOCABULARY_FILE": folder / "world.model",
        "CACHE_DIR": folder / "cache",
        "RANDOM_SEED": arguments.seed,
    }
    pretrain = shared | {
        "MODEL_DIR": folder / "base",
        "CORPUS": folder / "world.txt",
        "TRAIN_STEPS": arguments.pretrain_steps,
    }
    tune = shared | {
        "MODEL_DIR": folder / "prompt",
        "INITIAL_CHECKPOINT_PATH": folder / "base",
        "TSV_DIR": folder,
        "TRAIN_STEPS_RELATIVE": arguments.tune_steps,
        "EVAL_PERIOD": arguments.tune_steps,
    }
    _typed(pretrain_command.run, "pretrain", "examples/demo_pretrain.gin", pretrain)
    _typed(train_command.run, "train", "examples/demo_tune.gin", tune)
    _report(folder)
    return 0


def write_world(folder: pathlib.Path, chance: random.Random) -> None:
    """Writes what the model reads, and what the prompt is shown and asked."""
    facts = [(thing, kind) for kind, things in KINDS.items() for thing in things]
    told = [
        chance.choice(TOLD).format(thing=t, kind=k) for t, k in chance.choices(facts, k=PARAGRAPHS)
    ]
    text, world = "\n".join(told) + "\n", folder / "world.txt"
    if world.exists() and world.read_text("utf-8") != text:
        raise ConfigError(
            f"{world} holds the world of another --seed, and its runs are beside it. "
            "Choose another --output."
        )
    world.write_text(text, "utf-8")
    halves: dict[str, list[str]] = {"train": [], "validation": []}
    for kind, things in KINDS.items():
        shuffled = chance.sample(things, len(things))
        for split, some in zip(halves, (shuffled[::2], shuffled[1::2]), strict=True):
            halves[split] += [f"{thing}\t{kind}" for thing in some]
    for split, rows in halves.items():
        (folder / f"{split}.tsv").write_text("\n".join(["thing\tlabel", *rows]) + "\n", "utf-8")


def _typed(
    command: Callable[[RunArguments], int], name: str, gin_file: str, settings: Mapping[str, object]
) -> None:
    """Runs a command after showing it as one would type it."""
    values = {
        setting: repr(str(value)) if isinstance(value, pathlib.Path) else str(value)
        for setting, value in settings.items()
    }
    shown = [name, f"--gin_file={gin_file}", *(gin_flag(*pair) for pair in values.items())]
    print("$ prompt-tuning " + " \\\n    ".join(shown), flush=True)
    bindings = tuple(f"{setting} = {value}" for setting, value in values.items())
    command(RunArguments(gin_file=(gin_file,), gin_bindings=bindings))
    print(flush=True)


def _report(folder: pathlib.Path) -> None:
    run = folder / "prompt"
    lines = (run / "inference_eval" / "things-metrics.jsonl").read_text("utf-8").splitlines()
    before, *_, after = [json.loads(line) for line in lines]
    (accuracy,) = [name for name in after if name.endswith("accuracy")]
    file = run / "prompt.safetensors"
    base = int((folder / "base" / "model-info.txt").read_text("utf-8").split()[-1])
    print(
        "Things that the prompt was never shown, answered with their kind:\n"
        f"  always the same kind   {100 / len(KINDS):5.1f} %\n"
        f"  before tuning          {before[accuracy]:5.1f} %\n"
        f"  with the tuned prompt  {after[accuracy]:5.1f} %\n\n"
        f"The prompt is {file.stat().st_size:,} bytes over a base of {base:,} parameters:\n"
        f"  {shlex.quote(str(file))}\n"
        "Next: a real model and real sentences, see `A real run` in the README."
    )
