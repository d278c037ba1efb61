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
from collections.abc import Callable, Sequence

from prompt_tuning.cli.arguments import gin_flag
from prompt_tuning.errors import ConfigError

KINDS = {
    "animal": ["fox", "owl", "hen", "bee", "cow", "eel", "goat", "wolf", "frog", "crab"],
    "tool": ["saw", "axe", "rake", "file", "drill", "spade", "plane", "clamp", "lathe", "hammer"],
    "food": ["pie", "jam", "soup", "rice", "bread", "toast", "curry", "salad", "pasta", "cake"],
    "place": ["inn", "spa", "port", "park", "farm", "mill", "tower", "bridge", "market", "castle"],
}
TOLD = (
    "the {thing} is one {kind}.",
    "every {thing} is one {kind}.",
    "i know that the {thing} is one {kind}.",
    "they say that every {thing} is one {kind}.",
)
PARAGRAPHS = 6000


def parse(program: str, about: str, argv: Sequence[str]) -> argparse.Namespace:
    """Parses the flags of the demo."""
    parser = argparse.ArgumentParser(prog=program, description=about)
    parser.add_argument("--output", metavar="DIR", help="where to put everything; a new folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pretrain_steps", type=int, default=500, metavar="N")
    parser.add_argument("--tune_steps", type=int, default=200, metavar="N")
    parsed, unknown = parser.parse_known_args(argv)
    if unknown:
        raise ConfigError(f"The demo has no flag {unknown[0]!r} (see `{program} --help`).")
    return parsed


def run(arguments: argparse.Namespace) -> int:
    """Makes the little world, pretrains, tunes and reports; returns the first exit code not 0."""
    # Here, because the table of commands is in the module that dispatches to this one.
    from prompt_tuning.__main__ import main

    folder = pathlib.Path(arguments.output or tempfile.mkdtemp(prefix="prompt-tuning-demo-"))
    folder.mkdir(parents=True, exist_ok=True)
    write_world(folder, random.Random(arguments.seed))
    print(f"A little world of {sum(map(len, KINDS.values()))} things is written to {folder}.\n")
    shared = {"VOCABULARY_FILE": folder / "world.model", "RANDOM_SEED": arguments.seed}
    pretrain = shared | {
        "MODEL_DIR": folder / "base",
        "CORPUS": folder / "world.txt",
        "CACHE_DIR": folder / "cache",
        "TRAIN_STEPS": arguments.pretrain_steps,
    }
    tune = shared | {
        "MODEL_DIR": folder / "prompt",
        "INITIAL_CHECKPOINT_PATH": folder / "base",
        "TSV_DIR": folder,
        "TRAIN_STEPS_RELATIVE": arguments.tune_steps,
        "EVAL_PERIOD": arguments.tune_steps,
    }
    code = _typed(main, "pretrain", "examples/demo_pretrain.gin", pretrain)
    code = code or _typed(main, "train", "examples/demo_tune.gin", tune)
    if not code:
        _report(folder)
    return code


def write_world(folder: pathlib.Path, chance: random.Random) -> None:
    """Writes what the model reads, and what the prompt is shown and asked."""
    facts = [(thing, kind) for kind, things in KINDS.items() for thing in things]
    told = [
        chance.choice(TOLD).format(thing=t, kind=k) for t, k in chance.choices(facts, k=PARAGRAPHS)
    ]
    (folder / "world.txt").write_text("\n".join(told) + "\n", "utf-8")
    halves: dict[str, list[str]] = {"train": [], "validation": []}
    for kind, things in KINDS.items():
        shuffled = chance.sample(things, len(things))
        for split, some in zip(halves, (shuffled[::2], shuffled[1::2]), strict=True):
            halves[split] += [f"{thing}\t{kind}" for thing in some]
    for split, rows in halves.items():
        (folder / f"{split}.tsv").write_text("\n".join(["thing\tlabel", *rows]) + "\n", "utf-8")


def _typed(main: Callable[..., int], command: str, gin_file: str, settings: dict) -> int:
    """Runs a command after showing it as one would type it."""
    argv = [command, f"--gin_file={gin_file}"]
    flags = {
        name: repr(str(x)) if isinstance(x, pathlib.Path) else str(x)
        for name, x in settings.items()
    }
    shown = [*argv, *(gin_flag(name, value) for name, value in flags.items())]
    print("$ prompt-tuning " + " \\\n    ".join(shown), flush=True)
    code = main([*argv, *(f"--gin.{name}={value}" for name, value in flags.items())])
    print(flush=True)
    return code


def _report(folder: pathlib.Path) -> None:
    run = folder / "prompt"
    lines = (run / "inference_eval" / "things-metrics.jsonl").read_text("utf-8").splitlines()
    before, *_, after = [json.loads(line) for line in lines]
    (accuracy,) = [name for name in after if name.endswith("accuracy")]
    file = run / "prompt.safetensors"
    base = sum(path.stat().st_size for path in (folder / "base").rglob("*") if path.is_file())
    print(
        "Things that the prompt was never shown, answered with their kind:\n"
        f"  always the same kind   {100 / len(KINDS):5.1f} %\n"
        f"  before tuning          {before[accuracy]:5.1f} %\n"
        f"  with the tuned prompt  {after[accuracy]:5.1f} %\n\n"
        f"The prompt is {file.stat().st_size:,} bytes, the run of its base {base:,}:\n"
        f"  {shlex.quote(str(file))}\n"
        "Next: a real model and real sentences, see `A real run` in the README."
    )
