"""`prompt-tuning eval`: measures prompts and models by the metrics of their tasks."""

import dataclasses
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath
from flax import nnx

from prompt_tuning.checkpoints.containers import storage
from prompt_tuning.checkpoints.run_record import differences
from prompt_tuning.cli import config
from prompt_tuning.cli.arguments import RunArguments
from prompt_tuning.cli.environment import write_description
from prompt_tuning.cli.identity import identity
from prompt_tuning.cli.launch import launched, writing_explained
from prompt_tuning.cli.outputs import Evaluations
from prompt_tuning.cli.reports import closing, opening
from prompt_tuning.cli.reports.layout import many
from prompt_tuning.cli.subjects import Subject, Which, subjects
from prompt_tuning.decoding.ensemble import Combination, Vote
from prompt_tuning.errors import ConfigError, Preempted
from prompt_tuning.evaluation.evaluate import Evaluation
from prompt_tuning.evaluation.task_metrics import TaskMetrics
from prompt_tuning.model import T5, BaseParam
from prompt_tuning.partitioning import Partitioning, Placement, is_main
from prompt_tuning.prompts import PromptParam
from prompt_tuning.training.clock import Clock
from prompt_tuning.training.monitor import Monitor
from prompt_tuning.training.preemption import Preemption
from prompt_tuning.training.state import RunState
from prompt_tuning.vocabulary import Vocabulary

RECORD = "evaluated.json"
BEST = "best.json"

log = logging.getLogger("prompt_tuning")


def run(arguments: RunArguments) -> int:
    """Evaluates as the gin files and bindings say; returns the exit code."""
    with launched(arguments) as preemption:
        config.call(evaluate, preemption=preemption, dry_run=arguments.dry_run)
    return 0


def evaluate(
    *,
    output_dir: str,
    checkpoint: str,
    evaluations: Sequence[Evaluation],
    prompt: str | Sequence[str] | None = None,
    checkpoints: Which = "latest",
    ensemble: Combination | None = None,
    model: Callable[..., T5] | None = None,
    activation_dtype: str = "bfloat16",
    param_dtype: str = "float32",
    quantization: str | None = None,
    quantization_group: int | None = None,
    vocabulary: Vocabulary | None = None,
    monitor: Monitor | None = None,
    devices: int | None = None,
    partitioning: Partitioning | None = None,
    preemption: Preemption | None = None,
    dry_run: bool = False,
) -> dict[int, dict[str, float]]:
    """Evaluates a model, a prompt, or all prompts of a run; what was evaluated before is skipped.

    Args:
        output_dir: where everything goes (EVAL_OUTPUT_DIR).
        checkpoint: the base, or a model that was trained as a whole (CHECKPOINT_PATH).
        evaluations: what to measure.
        prompt: a prompt of any format, the folder of a run, or several for an ensemble
            (PROMPT_FILE); None evaluates the model in the checkpoint.
        checkpoints: which states of a run, see `subjects` (CHECKPOINTS).
        ensemble: how several prompts agree; None lets them vote (ENSEMBLE). Only the task's own
            metrics are measured then: a loss has no one answer.
        model: makes the model; None takes the architecture of the checkpoint (MODEL).
        activation_dtype: of activations, if the architecture is the checkpoint's.
        param_dtype: of parameters, likewise.
        quantization: how the layers' projections are stored, likewise; see `T5Config`.
        quantization_group: inputs that share a scale, likewise.
        vocabulary: what the data was tokenised with.
        monitor: which metric says what is best.
        devices: how many to use; None for all.
        partitioning: how the model is divided among them; None makes it whole on each.
        preemption: tells when to stop; None listens to no signals.
        dry_run: read data and models and measure nothing.

    Returns:
        All metrics by step, those of earlier calls included.

    Raises:
        Preempted: a signal asked to stop; what was measured is written.
    """
    preemption = preemption or Preemption()
    if not isinstance(prompt, str | None):
        evaluations = [
            dataclasses.replace(one, combination=ensemble or Vote())
            for one in evaluations
            if isinstance(one, TaskMetrics)
        ]
    if not evaluations:
        raise ConfigError("There is nothing to evaluate: set EVAL_SPLIT to a split of the task.")
    folder, placed = epath.Path(output_dir), (partitioning or Partitioning()).placement(devices)
    chosen = subjects(
        checkpoint,
        prompt=prompt,
        which=checkpoints,
        model=model,
        settings={
            "dtype": activation_dtype,
            "param_dtype": param_dtype,
            "quantization": quantization,
            "quantization_group": quantization_group,
        },
        vocabulary=vocabulary,
        placed=placed,
    )
    settings = identity(config.operative_values(), vocabulary=vocabulary, answers=True)
    data = {f"data of {one.folder}/{one.name}": one.fingerprint for one in evaluations}
    found: dict[int, dict[str, float]] = {}
    history: dict[str, dict[int, float]] = {}
    prepared: dict[nnx.GraphDef, Evaluations] = {}
    clock = Clock()
    with writing_explained(folder, "EVAL_OUTPUT_DIR"):
        for number, subject in enumerate(chosen):
            if is_main() and number == 0:
                block = opening.of_asking(
                    "Dry run of an evaluation" if dry_run else "Evaluation",
                    checkpoint=checkpoint,
                    learned=subject.title if subject.made_of.get("prompts") else None,
                    step=subject.step,
                    hashes=subject.made_of,
                    model=subject.model,
                    config=subject.model.config,
                    vocabulary=vocabulary,
                    about=opening.of_evaluations(evaluations, None, monitor),
                    placed=placed,
                    folder=folder,
                )
                log.info("%s", block)
            log.info("Evaluating %s, step %d.", subject.title, subject.step)
            # A model that was trained as a whole is itself what changes from one to the next.
            kind = PromptParam if subject.made_of.get("prompts") else BaseParam
            graph, learned, frozen = nnx.split(subject.model, kind, ...)
            if graph not in prepared:
                prepared[graph] = Evaluations(
                    evaluations,
                    graph,
                    placed.parameters(frozen),
                    place=placed.batch,
                    folder=folder,
                    last_step=None,
                    preemption=preemption,
                )
            if monitor is not None:
                monitor.check(prepared[graph].prefixes)
            if dry_run:
                continue
            preemption.defer()
            if _note(folder, subject, settings, data):
                _describe(folder, placed)
            if prepared[graph].has(subject.step):
                log.info("Step %d was measured before.", subject.step)
            state = RunState(placed.parameters(learned), None, subject.step)
            with clock.spent("evaluate"):
                metrics = None if preemption.stop() else prepared[graph](state)
            if metrics is None:
                raise Preempted(
                    f"Stopped on request before step {subject.step} was evaluated. Start the same "
                    "command again to go on."
                )
            found[subject.step] = metrics
            history |= prepared[graph].history()
        if monitor is not None and history:
            _write_best(folder, monitor, history)
    if found and is_main():
        block = closing.of_evaluation(
            found,
            {f"{one.folder}/{one.name}/": _measured(one) for one in evaluations},
            title=f"Evaluated {many(len(found), 'model')}.",
            seconds=clock.seconds().get("evaluate", 0.0),
            folder=folder,
        )
        log.info("%s", block)
    return found


def _measured(one: Evaluation) -> int | None:
    """Returns how many examples an evaluation looks at, if it is known."""
    split: Any = getattr(one, "split", None)
    if split is None:
        return None
    steps = getattr(one, "steps", None)
    count = len(split.examples)
    return count if steps is None else min(count, steps * getattr(one, "batch_size", count))


def _note(
    folder: epath.Path, subject: Subject, settings: Mapping[str, str], data: Mapping[str, str]
) -> bool:
    """Notes what a step's numbers are of, before there are any; returns whether that is new.

    Raises:
        ConfigError: the folder has numbers of the same step, but of something else.
    """
    path = folder / RECORD
    before = json.loads(path.read_text()) if path.exists() else {}
    known = {part: before.get(part, {}) for part in ("settings", "data", "steps")}
    same_step = known["steps"].get(str(subject.step), subject.made_of)
    changes = [
        *differences(known["settings"] or settings, settings),
        # Other tasks may be evaluated in the same folder.
        *differences(
            *(
                {name: one[name] for name in known["data"].keys() & data.keys()}
                for one in (known["data"], data)
            )
        ),
        *differences(_flat(same_step), _flat(subject.made_of)),
    ]
    now = {
        "settings": dict(settings),
        "data": {**known["data"], **data},
        "steps": {**known["steps"], str(subject.step): subject.made_of},
    }
    if changes:
        lines = "\n  ".join(changes)
        raise ConfigError(
            f"EVAL_OUTPUT_DIR {folder!s} has numbers of something else:\n  {lines}\nChoose another "
            "EVAL_OUTPUT_DIR, or remove what is in this one."
        )
    if is_main() and now != before:
        storage.write_whole(path, json.dumps(now, indent=1).encode())
    return now != before


def _describe(folder: epath.Path, placed: Placement) -> None:
    """Writes down how and with what is evaluated, unless a run has done so for itself there."""
    if is_main() and not (folder / "model-info.txt").exists():
        write_description(folder, placed)


def _flat(made_of: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in made_of.items()}


def _write_best(
    folder: epath.Path, monitor: Monitor, history: Mapping[str, Mapping[int, float]]
) -> None:
    """Says which step is the best of all that were measured."""
    name = monitor.resolve(history)
    step = monitor.best(history[name])
    if step is None:
        return
    value = history[name][step]
    log.info("Best: step %d with %s %.6g.", step, name, value)
    if is_main():
        best = {"step": step, "metric": name, "value": value}
        storage.write_whole(folder / BEST, json.dumps(best).encode())
