"""What a run has come to: a block at its end, and the same as `MODEL_DIR/summary.json`."""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float

from prompt_tuning.checkpoints.containers import storage
from prompt_tuning.cli.reports.layout import Row, block, many, table
from prompt_tuning.cli.reports.progress import Progress
from prompt_tuning.prompts import neighbours
from prompt_tuning.training.clock import duration
from prompt_tuning.training.metrics import read_lines
from prompt_tuning.training.monitor import Monitor

log = logging.getLogger("prompt_tuning")

FILE = "summary.json"
# Losses of the log: what the step reduces, and what can be compared between tasks.
LOSSES = ("loss", "loss_per_nonpadding_target_token")
# Of teacher-forced evaluations, which have many more.
_SHOWN = ("loss", "loss_per_nonpadding_target_token", "accuracy")
_SPENT = ("compile", "train", "evaluate", "save")

Summary = dict[str, Any]
History = Mapping[str, Mapping[int, float]]


def summary(
    *,
    status: str,
    first_step: int,
    step: int,
    last_step: int,
    here: int,
    progress: Progress,
    folder: epath.Path,
    history: History,
    monitor: Monitor | None,
    prompt: tuple[Float[np.ndarray, "P D"], Float[np.ndarray, "P D"]] | None,
    base: Mapping[str, Any],
    warnings: Sequence[str],
    following: Sequence[str],
) -> Summary:
    """Returns what is known of a run; all but `timing` is the same however often it was resumed.

    Args:
        status: how it ended: `finished`, `stopped early`, `stopped on request`.
        first_step: of the base.
        step: where it stands.
        last_step: where it was to end.
        here: how many steps this process made.
        progress: of all processes.
        folder: the run's, with the log of its metrics.
        history: of the evaluations: name, step, value.
        monitor: what says which is the best.
        prompt: the vectors at first and now; None if a model was trained.
        base: its hash, path and step.
        warnings: what a person should read.
        following: commands to type next.
    """
    lines = read_lines(folder / "train" / "metrics.jsonl", last_step=step)
    found = {
        "status": status,
        "first_step": first_step,
        "step": step,
        "last_step": last_step,
        "counted_from_step": progress.since,
        "examples": progress.examples,
        "target_tokens": progress.target_tokens,
        "train": {
            name: _ends({at: line[name] for at, line in lines.items() if name in line})
            for name in LOSSES
        },
        "metrics": _metrics(history, monitor),
        "prompt": None if prompt is None else moved(*prompt),
        "base": dict(base),
        "warnings": list(warnings),
        "files": _files(folder),
        "next": list(following),
    }
    seconds = progress.seconds()
    stepping = seconds.get("train", 0.0)
    found["timing"] = {
        "processes": progress.processes,
        "steps_of_this_process": here,
        "seconds": {name: seconds.get(name, 0.0) for name in _SPENT}
        | {"other": sum(x for name, x in seconds.items() if name not in _SPENT)},
        "steps_per_second": _rate(step - progress.since, stepping),
        "examples_per_second": _rate(progress.examples, stepping),
        "target_tokens_per_second": _rate(progress.target_tokens, stepping),
    }
    return found


def encoded(found: Summary) -> bytes:
    """Returns a summary as JSON, in which what is not a number is null."""
    return (json.dumps(_finite(found), indent=1) + "\n").encode()


def _plain(found: Summary) -> Summary:
    return json.loads(encoded(found))


def _read(path: epath.Path) -> Summary:
    try:
        return json.loads(path.read_text()) if path.exists() else {}
    except ValueError:  # Somebody else's; it is replaced.
        return {}


def _lasting(found: Summary) -> Summary:
    """A summary without what differs from one process to the next."""
    return {name: value for name, value in found.items() if name != "timing"}


def conclude(found: Summary, title: str, folder: epath.Path, *, short: bool = False) -> None:
    """Says what a run has come to, and writes it if that is not what the folder says already.

    Args:
        found: see `summary`. Nothing is written of a run without a step.
        title: how it ended, in a sentence.
        folder: the run's.
        short: says only how far it has come.
    """
    path = folder / FILE
    if found["step"] == found["first_step"] or _lasting(_read(path)) == _lasting(_plain(found)):
        log.info("%s", title)
        return
    storage.write_whole(path, encoded(found))
    log.info("%s", shown(found, title, folder, short=short))


def shown(found: Summary, title: str, folder: epath.Path, *, short: bool = False) -> str:
    """Returns a summary as a block for people, see `conclude`."""
    timing = found["timing"]
    steps = found["step"] - found["first_step"]
    rows: list[Row] = [
        (
            "steps",
            f"{found['first_step']:,} to {found['step']:,} of {found['last_step']:,}: "
            f"{many(steps, 'step')}" + _of_processes(timing),
        ),
        ("time", _time(timing["seconds"])),
        (
            "seen",
            f"{many(found['examples'], 'example')}, {found['target_tokens']:,} target tokens"
            + _since(found)
            + _speeds(timing),
        ),
    ]
    if short:
        return block(title, rows)
    if any(found["train"].values()):
        rows.append(("loss", _losses(found["train"])))
    if found["metrics"]:
        rows.append(("metrics", _table(found["metrics"])))
    if (prompt := found["prompt"]) is not None:
        rows.append(
            (
                "prompt",
                f"its vectors are {prompt['norm']:.4g} long, {prompt['first_norm']:.4g} at first; "
                f"they moved by {prompt['distance']:.4g} (cosine with the start "
                f"{prompt['cosine']:.3f})",
            )
        )
    base = found["base"]
    if base.get("hash"):
        rows.append(("base", f"hash {base['hash'][:12]} as it was read; nothing writes to it"))
    if found["warnings"]:
        rows.append(("warnings", found["warnings"]))
    rows.append(("files", [str(folder), *(f"  {name}" for name in found["files"].values())]))
    text = block(title, rows)
    if not found["next"]:
        return text
    commands = "\n".join(found["next"])
    return f"{text}\nNext, for example:\n{commands}"


def of_evaluation(
    found: Mapping[int, Mapping[str, float]],
    examples: Mapping[str, int | None],
    *,
    title: str,
    seconds: float,
    folder: epath.Path,
) -> str:
    """Returns the block at the end of an evaluation.

    Args:
        found: metrics by step, named as in `inference_eval/sst2/accuracy`.
        examples: how many were measured, by the beginnings of those names.
        title: the first line.
        seconds: that it took.
        folder: where it was written.
    """
    rows = [
        [name, f"{step:,}", f"{value:.6g}", _examples(name, examples)]
        for step, metrics in sorted(found.items())
        for name, value in metrics.items()
        if _is_shown(name)
    ]
    return block(
        title,
        [
            ("metrics", table(["", "step", "value", "examples"], rows)),
            ("time", duration(seconds)),
            ("outputs", str(folder)),
        ],
    )


def _examples(name: str, examples: Mapping[str, int | None]) -> str:
    for prefix, count in examples.items():
        if name.startswith(prefix) and count is not None:
            return f"{count:,}"
    return ""


def _is_shown(name: str) -> bool:
    """Whether a metric is worth a line: a teacher-forced evaluation has many that are not."""
    return not name.startswith("training_eval/") or name.rpartition("/")[2] in _SHOWN


def moved(start: Float[np.ndarray, "P D"], now: Float[np.ndarray, "P D"]) -> dict[str, float]:
    """Returns how long a prompt's vectors are, were at first, and how far they have come."""
    drift = neighbours.drift(now, start)
    return {
        "norm": float(np.mean(np.linalg.norm(now, axis=1))),
        "first_norm": float(np.mean(np.linalg.norm(start, axis=1))),
        "distance": float(np.mean(drift.distance)),
        "cosine": float(np.mean(drift.cosine)),
    }


def losses(folder: epath.Path, step: int) -> dict[int, float]:
    """Returns the loss of a target token at every line of a run's log."""
    lines = read_lines(folder / "train" / "metrics.jsonl", last_step=step)
    return {at: line[LOSSES[1]] for at, line in lines.items() if LOSSES[1] in line}


def _metrics(history: History, monitor: Monitor | None) -> dict[str, Any]:
    watched = monitor.resolve(history) if monitor is not None and history else None
    found = {}
    for name in sorted(history, key=lambda name: (name != watched, name)):
        if not _is_shown(name) and name != watched:
            continue
        values = {step: x for step, x in history[name].items() if not math.isnan(x)}
        if not values:
            continue
        falling = monitor.mode == "min" if name == watched and monitor else "loss" in name
        choose = min if falling else max
        best = choose(sorted(values), key=lambda step: values[step])
        found[name] = {
            **_at("last", values, max(values)),
            **_at("best", values, best),
            "best_is": "lowest" if falling else "highest",
            "watched": name == watched,
        }
    return found


def _at(which: str, values: Mapping[int, float], step: int) -> dict[str, Any]:
    return {which: {"step": step, "value": values[step]}}


def _ends(values: Mapping[int, float]) -> dict[str, Any]:
    return (
        {} if not values else _at("first", values, min(values)) | _at("last", values, max(values))
    )


def _files(folder: epath.Path) -> dict[str, str]:
    """Names what is there, relative to the run's folder."""
    known = {
        "prompt": "prompt.safetensors",
        "best_prompt": "best/prompt.safetensors",
        "every_prompt": "numpy_checkpoints",
        "checkpoints": "checkpoints",
        "log": "train/metrics.jsonl",
        "evaluations": "inference_eval",
        "configuration": "config.gin",
    }
    there = {name: path for name, path in known.items() if (folder / path).exists()}
    return there | {"summary": FILE}


def _rate(count: int, seconds: float) -> float | None:
    return count / seconds if seconds > 0.0 and count > 0 else None


def _of_processes(timing: Mapping[str, Any]) -> str:
    if timing["processes"] == 1:
        return ""
    return f", {timing['steps_of_this_process']:,} of them by this process, the last of " + str(
        timing["processes"]
    )


def _time(seconds: Mapping[str, float]) -> str:
    parts = [f"{name} {duration(x)}" for name, x in seconds.items() if x >= 0.005]
    return f"{duration(sum(seconds.values()))}: {', '.join(parts)}"


def _since(found: Summary) -> str:
    if found["counted_from_step"] == found["first_step"]:
        return ""
    return f" since step {found['counted_from_step']:,}, before which nobody counted"


def _speeds(timing: Mapping[str, Any]) -> str:
    examples, tokens = timing["examples_per_second"], timing["target_tokens_per_second"]
    if examples is None or tokens is None:
        return ""
    return f"; {_speed(examples)} and {_speed(tokens)} a second of training"


def _speed(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100.0 else f"{rate:.3g}"


def _losses(ends: Mapping[str, Mapping[str, Any]]) -> str:
    def line(which: str) -> str:
        step, token = (ends[name][which] for name in LOSSES)
        return f"{step['value']:.4g} a step, {token['value']:.4g} a target token"

    first, last = (ends[LOSSES[0]][which]["step"] for which in ("first", "last"))
    if first == last:
        return f"{line('last')} in all steps to {last:,}"
    return f"{line('first')} up to step {first:,}; at last (step {last:,}) {line('last')}"


def _table(metrics: Mapping[str, Any]) -> list[str]:
    rows = [
        [
            f"{name} (watched)" if one["watched"] else name,
            f"{one['last']['value']:.4g}",
            f"{one['last']['step']:,}",
            f"{one['best']['value']:.4g}",
            f"{one['best']['step']:,}",
        ]
        for name, one in metrics.items()
    ]
    return table(["", "last", "at step", "best", "at step"], rows)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
