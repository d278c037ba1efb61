"""`prompt-tuning demo`: prompt tuning against every baseline, with what the package brings along.

Over the shipped base and the data set `everyday`: what is a sentence about? Three prompts and the
whole model are tuned, by the commands that one would type. Then all that can answer are asked about
sentences of the domains that were trained on, and of one that was not.
"""

import argparse
import collections
import importlib
import json
import pathlib
import shlex
import statistics
import tempfile
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from prompt_tuning import shipped
from prompt_tuning.cli.arguments import Parser, gin_flag, parse_run
from prompt_tuning.cli.report_arguments import parse_report
from prompt_tuning.errors import ConfigError, nearest

PROMPTS = 3
SPLITS = ("validation", "held_out")
NEXT = r"""prompt-tuning train --gin_file=examples/sst2_base.gin --gin.MODEL_DIR="'/tmp/sst2'" \
  --gin.INITIAL_CHECKPOINT_PATH="'gs://t5-data/pretrained_models/t5x/t5_1_1_lm100k_base/checkpoint_1100000'" \
  --tfds_data_dir=/data/tfds"""  # noqa: E501 - a path is not broken

# Of one that answers: its accuracy by split, and how many numbers were `trained`.
Figures = dict[str, float | int]


def parse(program: str, about: str, argv: Sequence[str]) -> argparse.Namespace:
    """Parses the flags of the demo."""
    parser = Parser(prog=program, description=about, allow_abbrev=False)
    add = parser.add_argument
    add("--output", metavar="DIR", help="where to put everything; a new folder without it")
    add("--seed", type=int, default=0, metavar="N", help="the first of three; 0 without it")
    add("--tune_steps", type=int, metavar="N", help="how long to tune; as the examples without it")
    parsed, unknown = parser.parse_known_args(argv)
    if unknown:
        known = [flag for action in parser._actions for flag in action.option_strings]
        raise ConfigError(
            f"The demo has no flag {unknown[0]!r} (see `{program} --help`)."
            f"{nearest(unknown[0].partition('=')[0], known)}"
        )
    return parsed


def run(arguments: argparse.Namespace) -> int:
    """Tunes, evaluates, reports and compares; returns the exit code."""
    folder = pathlib.Path(arguments.output or tempfile.mkdtemp(prefix="prompt-tuning-demo-"))
    seeds = {folder / f"prompt_{n}": arguments.seed + n for n in range(PROMPTS)}
    prompts, model = list(seeds), folder / "model"
    steps = {} if arguments.tune_steps is None else {"TRAIN_STEPS_RELATIVE": arguments.tune_steps}
    for path, seed in seeds.items():
        _typed("train", "everyday_mini", {"MODEL_DIR": path, "RANDOM_SEED": seed} | steps)
    settings = {"MODEL_DIR": model, "RANDOM_SEED": arguments.seed}
    _typed("train", "everyday_mini_model_tuning", settings | steps)

    def asked(
        name: str, gin_file: str = "everyday_mini_eval", *, trained: int = 0, **settings: Any
    ) -> Figures:
        found: Figures = {"trained": trained}
        for split in SPLITS:
            output = folder / "eval" / f"{name}_{split}"
            _typed("eval", gin_file, settings | {"EVAL_OUTPUT_DIR": output, "EVAL_SPLIT": split})
            found[split] = _accuracy(output)
        return found

    size = _prompt_size(prompts[0])
    tuned = {
        f"prompt tuning, seed {seed}": asked(path.name, trained=size, PROMPT_FILE=path)
        for path, seed in seeds.items()
    }
    figures = {
        "majority class": _majority_class(),
        "untuned base": asked("base"),
        "text prompt": asked("text_prompt", "everyday_mini_text_prompt"),
        **tuned,
        "prompt tuning, mean": {"trained": size} | _mean(tuned.values()),
        "ensemble of the prompts": asked("ensemble", trained=PROMPTS * size, PROMPT_FILE=prompts),
        "model tuning": asked("model", trained=_model_size(model), CHECKPOINT_PATH=model),
    }
    _shown("report", shlex.quote(str(prompts[0])))
    path = folder / "accuracies.json"
    path.write_text(json.dumps(figures, indent=1, sort_keys=True) + "\n", "utf-8")
    _say(figures, path, prompts[0])
    return 0


def _typed(command: str, gin_file: str, settings: Mapping[str, Any]) -> None:
    """Runs a command over an example, with settings of its own."""
    flags = [gin_flag(name, repr(_plain(value))) for name, value in settings.items()]
    _shown(command, f"--gin_file=examples/{gin_file}.gin", *flags)


def _plain(value: Any) -> Any:
    """Returns a value as gin writes it: paths as texts."""
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, pathlib.Path) else value


def _shown(command: str, *words: str) -> None:
    """Runs a command as it is typed in a shell, after showing it."""
    print(" \\\n    ".join([f"$ prompt-tuning {command}", *words]), flush=True)
    parse = parse_report if command == "report" else parse_run
    parsed = parse(f"prompt-tuning {command}", "", shlex.split(" ".join(words)))
    # Not before: `--help` of every command comes past this module.
    importlib.import_module(f"prompt_tuning.cli.{command}").run(parsed)
    print(flush=True)


def _accuracy(output: pathlib.Path) -> float:
    """Returns what an evaluation measured last."""
    (file,) = (output / "inference_eval").glob("*-metrics.jsonl")
    return json.loads(file.read_text("utf-8").splitlines()[-1])["accuracy"]


def _majority_class() -> Figures:
    """Returns how often the most frequent label of the training data is right."""
    from prompt_tuning.data import tables  # as above

    def labels(split: str) -> list[str | None]:
        rows = tables.read_tsv(str(pathlib.Path(shipped.everyday(), f"{split}.tsv")))
        return [row.fields["aspect"] for row in rows]

    ((most_frequent, _),) = collections.Counter(labels("train")).most_common(1)
    shares = {
        split: 100 * statistics.fmean(label == most_frequent for label in labels(split))
        for split in SPLITS
    }
    return {"trained": 0} | shares


def _mean(found: Collection[Figures]) -> Figures:
    return {split: statistics.fmean(one[split] for one in found) for split in SPLITS}


def _prompt_size(folder: pathlib.Path) -> int:
    from prompt_tuning.checkpoints.prompt_file import FILE, PromptFile  # as above

    return PromptFile.load(folder / FILE).vectors.size


def _model_size(folder: pathlib.Path) -> int:
    return int((folder / "model-info.txt").read_text("utf-8").split()[-1])


def _say(figures: Mapping[str, Figures], path: pathlib.Path, tuned: pathlib.Path) -> None:
    """Prints what came of it all, and where it lies."""
    width = max(map(len, figures))
    file, base = tuned / "prompt.safetensors", pathlib.Path(shipped.mini_base())
    print(
        "What is an everyday sentence about: price, quality, people, time or comfort? Right\n"
        "answers in per cent, in the domains that were trained on and in one that was not.\n\n"
        f"{'':{width}}  validation  held_out  trained numbers",
        *(
            f"{title:{width}}  {one['validation']:10.1f}  {one['held_out']:8.1f}"
            f"  {one['trained']:15,.0f}"
            for title, one in figures.items()
        ),
        "",
        f"The same figures  {path}",
        f"Plots             {tuned / 'report' / 'report.html'}",
        f"A prompt          {file}",
        f"                  {file.stat().st_size:,} bytes over a base of {base.stat().st_size:,}",
        f"\nNext, a real model: `A real run` in the README.\n\n{NEXT}",
        sep="\n",
    )
