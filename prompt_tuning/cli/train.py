"""`prompt-tuning train`: builds what the configuration names and runs the loop."""

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import jax
from etils import epath
from flax import nnx

from prompt_tuning.checkpoints import base as base_model
from prompt_tuning.checkpoints.containers import storage
from prompt_tuning.checkpoints.run import RunCheckpoints
from prompt_tuning.checkpoints.run_lock import RunLock
from prompt_tuning.cli import config, horizon
from prompt_tuning.cli.arguments import RunArguments
from prompt_tuning.cli.base import check_vocabulary, open_base
from prompt_tuning.cli.bookkeeping import Bookkeeping
from prompt_tuning.cli.environment import write_description
from prompt_tuning.cli.identity import identity
from prompt_tuning.cli.launch import launched, writing_explained
from prompt_tuning.cli.outputs import Evaluations, Prompts
from prompt_tuning.cli.reports import closing, concerns, opening
from prompt_tuning.cli.reports.next_command import next_commands
from prompt_tuning.cli.reports.progress import Progress
from prompt_tuning.cli.source import Place, Source
from prompt_tuning.cli.tuning import TokenVectors, built, check_choice, tuned, with_vectors
from prompt_tuning.data.prefetch import prefetch
from prompt_tuning.errors import ConfigError, Preempted
from prompt_tuning.evaluation.evaluate import Evaluation
from prompt_tuning.losses import Loss
from prompt_tuning.model import T5, parameters
from prompt_tuning.partitioning import Partitioning, Placement, is_main
from prompt_tuning.prompts.combine import described
from prompt_tuning.training import loop
from prompt_tuning.training.clock import Clock, duration
from prompt_tuning.training.metrics import Console, JsonLines, TensorBoard, Writers
from prompt_tuning.training.monitor import Monitor
from prompt_tuning.training.optimizer import Optimizer
from prompt_tuning.training.preemption import Preemption
from prompt_tuning.training.state import RunState, laid_out, start
from prompt_tuning.training.watchdog import Watchdog
from prompt_tuning.vocabulary import Vocabulary

# Seconds that are left, below which nobody wants to know.
WORTH_SAYING = 10.0

log = logging.getLogger("prompt_tuning")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Saving:
    """How often to save and how many checkpoints to keep; numpy prompts are all kept."""

    period: int = 1000
    keep: int | None = 1

    def __post_init__(self):
        if self.keep is not None and self.keep < 1:
            raise ConfigError(
                f"Saving.keep is {self.keep}, expected 1 or more checkpoints, or None for all. Set "
                "KEEP_CHECKPOINTS."
            )


def run(arguments: RunArguments, **given: Any) -> int:
    """Trains as the gin files and bindings say; returns the exit code.

    Args:
        arguments: of the command line.
        **given: arguments of `train` that have precedence over gin's.
    """
    with launched(arguments) as preemption:
        config.call(train, preemption=preemption, dry_run=arguments.dry_run, **given)
    return 0


def train(
    *,
    model_dir: str,
    model: Callable[..., T5],
    train_data: Source,
    optimizer: Optimizer,
    total_steps: int | None = None,
    relative_steps: int | None = None,
    epochs: float | int | None = None,
    trainable: str = "prompt",
    prompt: Callable[..., nnx.Module] | None = None,
    initial_checkpoint: str | None = None,
    initial_step: int | None = None,
    token_vectors: TokenVectors | None = None,
    vocabulary: Vocabulary | None = None,
    task: str | None = None,
    loss: Loss | None = None,
    microbatches: int = 1,
    evaluations: Sequence[Evaluation] = (),
    eval_period: int = 1000,
    run_eval_before_training: bool = False,
    monitor: Monitor | None = None,
    saving: Saving | None = None,
    accept_changes: bool = False,
    stats_period: int = 100,
    stuck_after: float = 60.0,
    devices: int | None = None,
    partitioning: Partitioning | None = None,
    random_seed: int = 0,
    preemption: Preemption | None = None,
    dry_run: bool = False,
) -> RunState | None:
    """Trains a prompt, or a whole model, and resumes where an earlier call was stopped.

    Args:
        model_dir: where everything goes (MODEL_DIR).
        model: makes the base model; called with `rngs`.
        train_data: batches of the run's steps, counted from 0.
        optimizer: see `training.optimizer`.
        total_steps: the global step to end at, the base's own steps included (TRAIN_STEPS, t5x).
        relative_steps: instead, how many steps to train (TRAIN_STEPS_RELATIVE, t5x).
        epochs: instead, how often to see every training example (EPOCHS).
        trainable: `prompt`, or `model` for model tuning and pretraining.
        prompt: makes the prompt; called with `embed_dim` and `rngs` (PROMPT).
        initial_checkpoint: the base model (INITIAL_CHECKPOINT_PATH). None starts a model from
            scratch, which only a run that trains the model may.
        initial_step: the step at which the base stands, for one whose format does not say, such as
            Hugging Face's. LM-adapted T5 1.1 stands at 1,100,000.
        token_vectors: what the embeddings of a model from scratch start from, such as
            `data.cooccurrence.CooccurrenceVectors` (TOKEN_VECTORS); None draws them.
        vocabulary: what the data was tokenised with, to check that the model has a row for every
            id.
        task: its name, to note in the prompt's file.
        microbatches: parts of a batch whose gradients are added up, to save memory.
        evaluations: what to evaluate every `eval_period` steps and at the end.
        monitor: which of their metrics says what is best, and when to stop early.
        saving: how often to save.
        accept_changes: goes on in a folder of another configuration (ACCEPT_CHANGES).
        stats_period: steps between two lines of metrics.
        stuck_after: seconds that a step may always take before the stacks of all threads are
            written down; see `training.watchdog`.
        devices: how many to use; None for all.
        partitioning: how the model is divided among them (NUM_PARTITIONS, MODEL_PARALLEL_SUBMESH);
            None makes it whole on each.
        random_seed: of initial values and dropout (RANDOM_SEED).
        preemption: tells when the run is asked to stop; None listens to no signals.
        dry_run: trace one step on shapes and write nothing to `model_dir`. The data is read as for
            a run, caches included.

    Returns:
        The final state; None after a dry run.

    Raises:
        Preempted: a signal asked to stop, and the state is saved.
    """
    preemption, saving = preemption or Preemption(), saving or Saving()
    _check_periods(EVAL_PERIOD=eval_period, STATS_PERIOD=stats_period, SAVE_PERIOD=saving.period)
    if monitor is not None:
        monitor.check([f"{one.folder}/{one.name}/" for one in evaluations])
    placed = (partitioning or Partitioning()).placement(devices)
    place = functools.partial(placed.batch, microbatches=microbatches)
    base = (
        None
        if initial_checkpoint is None
        else open_base(initial_checkpoint, "INITIAL_CHECKPOINT_PATH")
    )
    digest = parameters.Fingerprint()
    check_choice(trainable)
    if base is None and trainable == "prompt":
        raise ConfigError(
            "A prompt is trained over a pretrained model, but none is named. Set "
            "--gin.INITIAL_CHECKPOINT_PATH=\"'...'\" to its checkpoint."
        )
    if base is not None and token_vectors is not None:
        raise ConfigError(
            f"The base {initial_checkpoint!r} brings its embeddings along, and TOKEN_VECTORS would "
            "replace them. Set TOKEN_VECTORS = None, or INITIAL_CHECKPOINT_PATH = None to start "
            "from scratch."
        )
    module = built(model, prompt, base, trainable, random_seed, digest, placed, shapes_only=dry_run)
    if vocabulary is not None:
        check_vocabulary(vocabulary, module.config)
    split, train_step = tuned(
        module, trainable, optimizer, loss=loss, microbatches=microbatches, placed=placed
    )
    graph, chosen, frozen = split.graph, split.chosen, split.frozen
    first_step = horizon.first_step(base, initial_step)
    length = horizon.Length(total_steps=total_steps, relative_steps=relative_steps, epochs=epochs)
    last_step = length.last_step(first_step, train_data)
    key = jax.random.key(random_seed) if module.config.dropout_rate else None
    folder, clock = epath.Path(model_dir), Clock()
    combine = getattr(getattr(module.encoder, "prompt", None), "combine", None)
    announced = functools.partial(
        opening.of_training,
        chosen=chosen,
        frozen=frozen,
        trainable=trainable,
        config=module.config,
        combine=combine and described(combine)["name"],
        base=base,
        path=initial_checkpoint,
        values=config.operative_values(),
        vocabulary=vocabulary,
        data=train_data,
        task=task,
        placed=placed,
        microbatches=microbatches,
        first_step=first_step,
        last_step=last_step,
        optimizer=optimizer,
        evaluations=evaluations,
        eval_period=eval_period,
        monitor=monitor,
        save_period=saving.period,
        keep=saving.keep,
        folder=folder,
        seed=random_seed,
    )
    warnings = [concerns.faded_learning_rate(optimizer, first_step, last_step)]
    if trainable == "prompt":
        warnings.append(horizon.unlikely_step(base, module.config))
        warnings.append(concerns.slow_learning_rate(optimizer, first_step, last_step))
    if dry_run:
        state = jax.eval_shape(lambda chosen: start(chosen, optimizer, step=first_step), chosen)
        batch = next(train_data.batches(0))
        train_step.lower(state.trainable, state.opt_state, frozen, place(batch), key)
        _say(announced(step=first_step, resumed=False, digest=None), warnings)
        log.info("Dry run: the step compiles on shapes. %s", opening.counts(chosen, frozen))
        return None

    # Of the parameters as they are stored, whatever dtype this run keeps them in.
    base_hash = digest.hexdigest()
    fresh = start(chosen, optimizer, step=first_step)
    if base and trainable == "model":
        fresh = base_model.with_slots(base, fresh)
    with contextlib.ExitStack() as stack:
        stack.enter_context(writing_explained(folder, "MODEL_DIR"))
        if is_main():
            stack.enter_context(RunLock(folder))
            storage.remove_partial(folder)
        checkpoints = stack.enter_context(
            RunCheckpoints(
                folder,
                base=base_hash,
                keep=saving.keep,
                identity=identity(
                    config.operative_values(),
                    data=train_data.fingerprint,
                    vocabulary=vocabulary,
                ),
                accept_changes=accept_changes,
            )
        )
        prompts = None
        if trainable == "prompt":
            prompts = Prompts(
                folder,
                initial=fresh,
                base=base_hash,
                base_name=initial_checkpoint,
                task=task,
                config=config.operative_config(),
                details={} if combine is None else {"combine": described(combine)},
            )
        restored = checkpoints.restore(fresh)
        if restored is None and token_vectors is not None:
            fresh = fresh._replace(trainable=with_vectors(fresh.trainable, token_vectors))
        state = laid_out(restored or fresh, placed)
        frozen = placed.parameters(frozen)
        data = Place(
            train_data, first_step, checkpoints.restored_details(), checkpoints.restored_data()
        )
        began = state.step
        progress = Progress(clock, began, checkpoints.restored_details())
        _say(announced(step=began, resumed=restored is not None, digest=base_hash), warnings)
        preemption.defer()
        measured = Evaluations(
            evaluations,
            graph,
            frozen,
            place=placed.batch,
            folder=folder,
            last_step=began,
            preemption=preemption,
        )
        books = Bookkeeping(
            checkpoints=checkpoints,
            prompts=prompts,
            evaluations=measured,
            monitor=monitor,
            data=data,
            progress=progress,
            clock=clock,
            restored=restored,
        )
        evaluating = loop.Every(steps=eval_period, action=books.evaluate)
        # A run may have been stopped between saving a step and evaluating it.
        resumed = restored is not None and evaluating.due(state.step, last_step)
        if resumed or (run_eval_before_training and state.step == first_step):
            books.evaluate(state)
        if state.step < last_step and not (books.exhausted or preemption.requested):
            _describe(folder, module, placed)
            batches = stack.enter_context(
                contextlib.closing(prefetch(data.batches(state.step), place=place))
            )
            state = loop.train(
                state,
                frozen,
                train_step,
                batches,
                total_steps=last_step,
                key=key,
                learning_rate=optimizer.learning_rate,
                write=_writers(folder, state.step).write,
                log_every=stats_period,
                actions=[
                    loop.Every(steps=saving.period, action=books.save),
                    # After saving, so that an evaluation never costs what was learned before it.
                    evaluating,
                ],
                stop=lambda: preemption.stop() or books.exhausted,
                watchdog=Watchdog(folder, at_least=stuck_after),
                name_batch=data.names,
                clock=clock,
                seen=progress.add,
                pace=functools.partial(_tell_pace, last_step),
            )
            status, finished = "finished", "Finished"
        else:
            status = "finished"
            finished = "The run is finished: there is nothing to do. It stands"
        if preemption.requested:
            status, finished = "stopped on request", "Stopped on request, and saved,"
            books.save(state, wait=True)
        elif books.exhausted and state.step < last_step:
            books.save(state, wait=True)
            status = "stopped early"
            finished = f"No improvement for {monitor.patience} evaluations. {finished}"
        checkpoints.wait()
        moved = None if prompts is None else prompts.moved(state)
        if is_main():
            done = state.step - first_step
            if moved is not None:
                warnings.append(concerns.still_prompt(moved[1], moved[0], done))
            warnings.append(concerns.steady_loss(closing.losses(folder, state.step), done))
            warnings += concerns.cut_texts(train_data)
            warnings += concerns.constant_answers(measured.alarms())
            found = closing.summary(
                status=status,
                first_step=first_step,
                step=state.step,
                last_step=last_step,
                here=state.step - began,
                progress=progress,
                folder=folder,
                history=measured.history(),
                monitor=monitor,
                prompt=moved,
                base={"path": initial_checkpoint, "hash": base_hash if base else None},
                warnings=[one for one in warnings if one],
                following=next_commands(
                    config.operative_values(), trained=trainable, best=monitor is not None
                ),
            )
            title = f"{finished} at step {state.step}."
            closing.conclude(found, title, folder, short=preemption.requested)
        if preemption.requested:
            raise Preempted(
                f"Stopped on request at step {state.step} of {last_step}, and saved to {folder!s}: "
                "start the same command again to go on."
            )
    return state


def _check_periods(**periods: int) -> None:
    for setting, steps in periods.items():
        if steps < 1:
            raise ConfigError(f"{setting} is {steps}, expected 1 or more steps.")


def _say(block: str, warnings: Sequence[str | None]) -> None:
    """Logs what a run is about to do, once for all processes."""
    if is_main():
        log.info("%s", block)
        for warning in filter(None, warnings):
            log.warning("%s", warning)


def _tell_pace(last_step: int, step: int, seconds: float) -> None:
    """Says how long the rest will take, if that is worth saying."""
    left = (last_step - step) * seconds
    if is_main() and left >= WORTH_SAYING:
        log.info(
            "About %s left: %s a step, %s to go (evaluations not counted).",
            duration(left),
            duration(seconds),
            f"{last_step - step:,}",
        )


def _writers(folder: epath.Path, step: int) -> Writers:
    """Returns where the metrics of training go; on all processes but the first nowhere."""
    if not is_main():
        return Writers()
    return Writers(
        Console(),
        JsonLines(folder / "train" / "metrics.jsonl", last_step=step),
        TensorBoard(folder / "train", last_step=step),
    )


def _describe(folder: epath.Path, module: T5, placed: Placement) -> None:
    """Writes the configuration that is in effect, the list of parameters and what made the run."""
    if is_main():
        table = parameters.table(nnx.state(module))
        write_description(folder, placed)
        storage.write_whole(folder / "model-info.txt", table.encode())
