"""The power of scale in miniature: prompt tuning, model tuning and prompt design over three bases.

Figure 1 of Lester et al. (2021): with the size of the model prompt tuning closes in on model
tuning, and prompt design lies below both. Here over T5s of 0.6, 2.0 and 10.5 million parameters.
The two smaller ones are pretrained from scratch by the recipe of the third, which comes with the
package. Tasks are SST-2 (GLUE's train.tsv and validation.tsv) and the question types of TREC
(train.txt and test.txt with `CLASS:fine question` in each line). The answer is the likeliest of the
task's labels.

    python benchmarks/power_of_scale.py --corpus='books/*.txt.xz' --sst2=/data/sst2 \
        --trec=/data/trec --output=/tmp/scale [--quick] [--seeds=0,1,2] [--sizes=small,medium,mini]

Needs text to pretrain on (the base of the package has read 190 MB) and hours of two CPU cores; with
--quick minutes, whose accuracies mean nothing. Writes results.json and power_of_scale.png into
--output. The same command goes on where it was stopped; another one, or other files under the same
names, need another --output.
"""

import argparse
import collections
import dataclasses
import difflib
import json
import math
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath
from matplotlib.axes import Axes
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from prompt_tuning import shipped
from prompt_tuning.checkpoints import open_model
from prompt_tuning.checkpoints.containers import storage
from prompt_tuning.cli.arguments import gin_flag
from prompt_tuning.data.file_task import check_column
from prompt_tuning.data.tables import read_tsv
from prompt_tuning.errors import ConfigError, PromptTuningError, nearest
from prompt_tuning.reporting import plots, run_files

# Heads times their size are the width of the model, and the MLP is twice as wide, as in the mini.
SIZES: Mapping[str, Mapping[str, Any]] = {
    "small": {"MODEL_SIZE": "tiny"},
    "medium": {"MODEL_SIZE": "tiny", "EMBED_DIM": 96, "HEAD_DIM": 24, "MLP_DIM": 192},
    "mini": {},
}
PROMPT, MODEL, DESIGN = "prompt tuning", "model tuning", "prompt design"
METHODS = (MODEL, PROMPT, DESIGN)
VECTORS, BATCH = 20, 32
# One batch to evaluate, and few lengths: most of a short run is compiling.
QUICK_STEPS, QUICK_EXAMPLES, QUICK_LENGTH = 20, BATCH, 16


class Reference(str):
    """A value that gin reads as it stands, without quotes."""

    __repr__ = str.__str__


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """A task over TSV files.

    Attributes:
        title: of its panel.
        text: the column to read.
        label: the column of the classes.
        words: what to say for each class: a word that is one frequent piece, as small bases hardly
            know the rare ones. Those of TREC are of the kind that the untuned mini base goes on
            with after such training questions.
        inputs: what every method reads. It ends where the answer comes next, as the bases go on
            with texts.
        shots: what prompt design reads before it, one example of each class.
        split: the one to evaluate on.
    """

    title: str
    text: str
    label: str
    words: Mapping[str, str]
    inputs: str
    shots: str
    split: str


# The bases have read books, so that a task is told them as a story.
TASKS = {
    "sst2": Task(
        title="SST-2, sentiment",
        text="sentence",
        label="label",
        words={"0": "bad", "1": "good"},
        inputs='" {sentence} " It was a',
        shots='" The story is dull and long . " It was a bad one . '
        '" The music is sweet and full of life . " It was a good one . ',
        split="validation",
    ),
    "trec": Task(
        title="TREC, type of a question",
        text="question",
        label="type",
        words={
            "ABBR": "sign",
            "DESC": "reason",
            "ENTY": "nose",
            "HUM": "father",
            "LOC": "country",
            "NUM": "number",
        },
        inputs="{question} A",
        shots="What does M. stand for ? A sign . Why do we sleep ? A reason . "
        "What do dogs smell with ? A nose . Who raised the boy ? A father . "
        "Where does the king live ? A country . How many ships were lost ? A number . ",
        split="test",
    ),
}


# By which the mini base was made, each from where the one before it ended.
PHASES = tuple(f"examples/mini_base_{number}.gin" for number in range(1, 6))


def main() -> None:
    """Pretrains, tunes and evaluates whatever is not there yet; prints and draws what it found."""
    # Whoever stops this program stops the command that it waits for: subprocess.run ends it.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    arguments = parsed()
    try:
        check(arguments)
        folders = {"sst2": arguments.sst2, "trec": write_trec(arguments)}
        majorities = {
            name: majority(folders[name] / f"{task.split}.tsv", task, arguments)
            for name, task in TASKS.items()
        }
        rows = [
            row for size in arguments.sizes for row in measure(size, folders, majorities, arguments)
        ]
    except PromptTuningError as error:
        print(f"power_of_scale: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    (arguments.output / "power_of_scale.png").write_bytes(plots.drawn(plot(rows, majorities)).png)
    print_table(rows, majorities)
    found = ratios(rows)
    results = {
        "benchmark": "power_of_scale",
        "ratio": statistics.mean(one[arguments.sizes[-1]] for one in found.values()),
        "ratios": found,
        "quick": arguments.quick,
        "seeds": arguments.seeds,
        "rows": rows,
        "load": os.getloadavg(),
        "cores": os.cpu_count(),
    }
    write(arguments.output / "results.json", json.dumps(results, indent=1) + "\n")
    print(json.dumps(results))


def parsed() -> argparse.Namespace:
    """Returns what the command line says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    folder = {"required": True, "type": pathlib.Path}
    parser.add_argument("--corpus", required=True, help="text files, as in 'books/*.txt.xz'")
    parser.add_argument("--sst2", **folder, help="a folder with train.tsv and validation.tsv")
    parser.add_argument("--trec", **folder, help="a folder with train.txt and test.txt")
    parser.add_argument("--output", **folder, help="where everything goes, and is found again")
    parser.add_argument("--quick", action="store_true", help="a few steps of everything, one seed")
    parser.add_argument("--seeds", default=None, help="0,1,2 unless --quick")
    parser.add_argument("--sizes", default=",".join(SIZES), help=f"of {', '.join(SIZES)}")
    parser.add_argument("--base", default=shipped.mini_base(), help="the mini base")
    parser.add_argument("--vocabulary", default=shipped.mini_vocabulary(), help="of all bases")
    parser.add_argument("--cache", type=pathlib.Path, help="of tokens; --output/cache by default")
    parser.add_argument("--prompt_steps", type=int, default=4000, help="of prompt tuning")
    parser.add_argument("--model_steps", type=int, default=600, help="of model tuning")
    parser.add_argument("--prompt_rate", type=float, default=0.1, help="its learning rate")
    parser.add_argument("--model_rate", type=float, default=0.01, help="its learning rate")
    arguments = parser.parse_args()
    arguments.cache = arguments.cache or arguments.output / "cache"
    arguments.sizes = arguments.sizes.split(",")
    if arguments.quick:
        arguments.prompt_steps = arguments.model_steps = QUICK_STEPS
    seeds = (arguments.seeds or ("0" if arguments.quick else "0,1,2")).split(",")
    if not all(seed.isdecimal() for seed in seeds) or len({*seeds}) < len(seeds):
        parser.error(f"--seeds is {arguments.seeds!r}, but should be different numbers, as in 0,1")
    arguments.seeds = [int(seed) for seed in seeds]
    return arguments


def check(arguments: argparse.Namespace) -> None:
    """Finds out before the first hour what would fail after it."""
    for size in arguments.sizes:
        if size not in SIZES:
            raise ConfigError(
                f"--sizes has {size!r}, but the sizes are {', '.join(SIZES)}.{nearest(size, SIZES)}"
            )
    files = {
        # One that is not there would be trained, and be another one than that of the mini base.
        "--vocabulary": [arguments.vocabulary],
        "--base": [arguments.base] if "mini" in arguments.sizes else [],
        "--sst2": [arguments.sst2 / f"{split}.tsv" for split in ("train", "validation")],
        "--trec": [arguments.trec / f"{split}.txt" for split in ("train", "test")],
    }
    for flag, paths in files.items():
        for path in paths:
            if not os.path.exists(path):
                raise ConfigError(f"There is no {path}. Let {flag} say where it lies.")


def write_trec(arguments: argparse.Namespace) -> pathlib.Path:
    """Writes the splits of TREC as TSV files and returns their folder."""
    folder, task = arguments.output / "trec", TASKS["trec"]
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        path = arguments.trec / f"{split}.txt"
        lines = [f"{task.text}\t{task.label}"]
        for number, line in enumerate(path.read_text("latin-1").splitlines(), 1):
            labels, _, question = line.partition(" ")
            coarse, colon, _ = labels.partition(":")
            if not colon or coarse not in task.words or not question or "\t" in question:
                raise ConfigError(
                    f"{path}, line {number} is {line[:40]!r}, but should be like 'HUM:ind Who ?', "
                    f"with one of {', '.join(task.words)} and no tab. Let --trec say where the "
                    "files of TREC lie."
                )
            lines.append(f"{question}\t{coarse}")
        write(folder / f"{split}.tsv", "\n".join(lines) + "\n")
    return folder


def majority(path: pathlib.Path, task: Task, arguments: argparse.Namespace) -> float:
    """Returns the accuracy in percent of the best answer that is always the same."""
    rows = list(read_tsv(os.fspath(path)))
    for column in (task.text, task.label):
        check_column(os.fspath(path), column, rows[0].fields, "this benchmark")
    labels = [row.fields[task.label] for row in rows[: QUICK_EXAMPLES if arguments.quick else None]]
    return 100 * max(collections.Counter(labels).values()) / len(labels)


def measure(
    size: str,
    folders: Mapping[str, pathlib.Path],
    majorities: Mapping[str, float],
    arguments: argparse.Namespace,
) -> Iterator[dict[str, Any]]:
    """Yields what each method comes to over a base, task by task."""
    base = arguments.base if size == "mini" else pretrain(size, arguments)
    for name, task in TASKS.items():
        data = of_task(name, task, folders[name], arguments)
        parameters = 0
        for method in METHODS:
            seeds = [None] if method == DESIGN else arguments.seeds
            found = []
            for seed in seeds:
                folder = ask(size, base, name, method, seed, data, arguments)
                files = run_files.read_run(folder)
                (log,) = (log for log in files.logs if log.folder == run_files.TASKS)
                found.append(log.metrics[max(log.metrics)]["accuracy"])
                if method == MODEL:
                    parameters = sum(files.parameters.values())
            yield {
                "size": size,
                "parameters": parameters,
                "task": name,
                "method": method,
                "accuracies": found,
                "median": statistics.median(found),
                "least": min(found),
                "most": max(found),
                "majority": majorities[name],
            }


def pretrain(size: str, arguments: argparse.Namespace) -> str:
    """Pretrains a base phase by phase and returns the folder of the last."""
    before, first_step = None, 0
    for number, phase in enumerate(PHASES, 1):
        folder = arguments.output / size / "base" / str(number)
        settings = {
            "MODEL_DIR": os.fspath(folder),
            "VOCABULARY_FILE": arguments.vocabulary,
            "CORPUS": arguments.corpus,
            "CACHE_DIR": os.fspath(arguments.cache),
            **SIZES[size],
        }
        if before is not None:
            settings["INITIAL_CHECKPOINT_PATH"] = before
        if arguments.quick:
            last_step = number * QUICK_STEPS
            settings |= {"STEP_OFFSET": first_step, "TRAIN_STEPS": last_step}
            first_step = last_step
        run(folder, "pretrain", [phase], settings)
        before = os.fspath(folder)
    assert before is not None
    return before


def of_task(
    name: str, task: Task, folder: pathlib.Path, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Returns the settings that all methods share."""
    return {
        "VOCABULARY_FILE": arguments.vocabulary,
        "CACHE_DIR": os.fspath(arguments.cache),
        "MIXTURE_OR_TASK_NAME": os.fspath(folder / "{split}.tsv"),
        "EVAL_SPLIT": task.split,
        "EVALUATOR_NUM_EXAMPLES": QUICK_EXAMPLES if arguments.quick else None,
        "TASK_FEATURE_LENGTHS": {
            "inputs": QUICK_LENGTH if arguments.quick else 128,
            "targets": 8,
        },
        "BATCH_SIZE": BATCH,
        "ANSWERING": Reference("@answering.ChooseLabel()"),
        "FILE_TASK": Reference("@file_task.FileTask()"),
        "file_task.FileTask.name": name,
        "file_task.FileTask.targets": f"{{{task.label}}}",
        "file_task.FileTask.names": {task.label: dict(task.words)},
    }


def ask(
    size: str,
    base: str,
    name: str,
    method: str,
    seed: int | None,
    data: Mapping[str, Any],
    arguments: argparse.Namespace,
) -> pathlib.Path:
    """Tunes and evaluates over a base by one of the methods; returns the folder of the run."""
    task = TASKS[name]
    place = arguments.output / size / name
    if method == DESIGN:
        folder = place / "prompt_design"
        settings = {
            "EVAL_OUTPUT_DIR": os.fspath(folder),
            "CHECKPOINT_PATH": base,
            **data,
            # Nothing of the text may be cut off.
            "TASK_FEATURE_LENGTHS": None,
            "file_task.FileTask.inputs": task.shots + task.inputs,
        }
        run(folder, "eval", ["models/from_checkpoint.gin", "runs/eval.gin"], settings)
        return folder
    if method == PROMPT:
        steps, rate = arguments.prompt_steps, arguments.prompt_rate
        files = ["prompts/from_class_labels.gin", "runs/prompt_finetune.gin"]
        prompt = {
            "PROMPT_LENGTH": VECTORS,
            "CLASS_LABELS": [*task.words.values()],
            # As examples/sst2_mini.gin has it.
            "optimizer.adafactor.momentum": 0.9,
            "schedules.learning_rate.factors": "linear_decay",
            "schedules.learning_rate.warmup_steps": 1,
            "schedules.learning_rate.step_offset": open_model(base).step,
            "schedules.learning_rate.decay_factor": 1 / steps,
        }
    else:
        steps, rate = arguments.model_steps, arguments.model_rate
        files, prompt = ["runs/finetune.gin"], {}
    folder = place / f"{method.replace(' ', '_')}_{steps}_at_{rate}" / f"seed_{seed}"
    settings = {
        "MODEL_DIR": os.fspath(folder),
        "INITIAL_CHECKPOINT_PATH": base,
        **SIZES[size],
        **data,
        "file_task.FileTask.inputs": task.inputs,
        **prompt,
        "TRAIN_STEPS_RELATIVE": steps,
        # Once, at the end: no method chooses its best step by what it is judged on.
        "EVAL_PERIOD": steps,
        "SAVE_PERIOD": 500,
        "LEARNING_RATE": rate,
        "DROPOUT_RATE": 0.0,
        "RANDOM_SEED": seed,
    }
    run(folder, "train", ["models/ours_mini.gin", *files], settings)
    return folder


def run(folder: pathlib.Path, verb: str, files: Sequence[str], settings: Mapping[str, Any]) -> None:
    """Runs a command of ours that writes into a folder, unless it has finished there before."""
    loaded = [f"--gin_file={file}" for file in files]
    options = [*loaded, *(f"--gin.{name}={value!r}" for name, value in settings.items())]
    shown = [*loaded, *(gin_flag(name, repr(value)) for name, value in settings.items())]
    command = " \\\n  ".join([f"python -m prompt_tuning {verb}", *shown])
    begun, finished = folder / "command.txt", folder / "finished.txt"
    if begun.exists() and (was := begun.read_text("utf-8")) != command + "\n":
        lines = difflib.ndiff(was.splitlines(), command.splitlines())
        changes = "\n".join(line.removesuffix(" \\") for line in lines if line[0] in "-+")
        raise ConfigError(
            f"{folder} was written by another command (-) than is asked for now (+):\n{changes}\n"
            "Choose another --output, or remove this folder and what was made over it."
        )
    if finished.exists():
        return
    print(command, flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    write(begun, command + "\n")
    log = folder / "log.txt"
    began = time.perf_counter()
    with log.open("a") as said:
        done = subprocess.run(
            [sys.executable, "-m", "prompt_tuning", verb, *options],
            stdout=said,
            stderr=said,
            check=False,
        )
    if done.returncode:
        print("\n".join(log.read_text("utf-8").splitlines()[-20:]), file=sys.stderr)
        print(f"power_of_scale: this command has failed, see {log}", file=sys.stderr)
        sys.exit(done.returncode)
    write(finished, "")
    print(f"# {time.perf_counter() - began:.0f} s", flush=True)


def write(path: pathlib.Path, text: str) -> None:
    """Writes a file that is never there by half."""
    storage.write_whole(epath.Path(path), text.encode())


def ratios(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Returns how much of model tuning's median prompt tuning reaches, by task and size."""
    medians = {(row["task"], row["size"], row["method"]): row["median"] for row in rows}
    found: dict[str, dict[str, float]] = {name: {} for name in TASKS}
    for task, size, method in medians:
        if method == PROMPT:
            found[task][size] = medians[task, size, PROMPT] / medians[task, size, MODEL]
    return found


def print_table(rows: Sequence[Mapping[str, Any]], majorities: Mapping[str, float]) -> None:
    """Prints a line for each method, task and size."""
    print(f"{'size':8} {'parameters':>11} {'task':6} {'method':14} {'median':>7}  least to most")
    for row in rows:
        print(
            f"{row['size']:8} {row['parameters']:11,} {row['task']:6} {row['method']:14} "
            f"{row['median']:7.1f} {row['least']:6.1f} to {row['most']:.1f}"
        )
    for name, accuracy in majorities.items():
        print(f"{'':8} {'':11} {name:6} {'majority class':14} {accuracy:7.1f}")


def plot(rows: Sequence[Mapping[str, Any]], majorities: Mapping[str, float]) -> plots.Plot:
    """Returns the figure: a panel for each task, a line for each method."""

    def draw(axes: Axes, colours: plots.Colours) -> None:
        axes.set_axis_off()
        panels = [axes.inset_axes((left, 0, 0.46, 0.94)) for left in (0, 0.54)]
        for panel, (name, task) in zip(panels, TASKS.items(), strict=True):
            panel.set_title(task.title, fontsize=10, fontweight="normal", color=colours.quiet)
            draw_panel(panel, colours, [row for row in rows if row["task"] == name])
            panel.axhline(
                majorities[name],
                color=colours.quiet,
                linewidth=1,
                linestyle=(0, (4, 3)),
                label="majority class",
            )
        axes.legend(
            *panels[0].get_legend_handles_labels(),
            loc="upper center",
            bbox_to_anchor=(0.5, -0.2),
            ncols=len(METHODS) + 1,
            frameon=False,
        )

    said = [
        f"{row['method']} of {row['task']} over {row['size']}: {row['median']:.1f}" for row in rows
    ]
    return plots.Plot(
        name="power_of_scale",
        title="The power of scale, in miniature",
        alt=f"Accuracy by parameters of the base. {'; '.join(said)}",
        draw=draw,
        inches=(8.4, 3.9),
    )


def draw_panel(axes: Axes, colours: plots.Colours, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draws the medians of each method and, shaded, how far the seeds lie apart."""
    looks = {
        MODEL: (colours.second, "s"),
        PROMPT: (colours.accent, "o"),
        DESIGN: (colours.ink, "^"),
    }
    for method, (colour, marker) in looks.items():
        points = sorted(
            (row["parameters"], row["median"], row["least"], row["most"])
            for row in rows
            if row["method"] == method
        )
        sizes, medians, least, most = zip(*points, strict=True)
        axes.fill_between(sizes, least, most, color=colour, alpha=0.16, linewidth=0)
        axes.vlines(sizes, least, most, color=colour, linewidth=1.4)
        axes.plot(sizes, medians, color=colour, marker=marker, markersize=5, label=method)
    sizes = sorted({row["parameters"] for row in rows})
    axes.set_xscale("log")
    axes.set_xlim(sizes[0] / 1.35, sizes[-1] * 1.35)
    axes.xaxis.set_major_locator(FixedLocator(sizes))
    axes.xaxis.set_major_formatter(FixedFormatter([f"{size / 1e6:.1f} M" for size in sizes]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("parameters of the base")
    axes.set_ylabel("accuracy in %")
    floor = min(row["majority"] for row in rows)
    lowest = min([floor, *(row["least"] for row in rows)])
    axes.set_ylim(max(0, 10 * math.floor((lowest - 4) / 10)), 100)
    axes.grid(axis="y", linewidth=0.8)
    axes.spines["left"].set_visible(False)


if __name__ == "__main__":
    main()
