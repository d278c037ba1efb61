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
from prompt_tuning.checkpoints.contents import Contents
from prompt_tuning.checkpoints.run import RunCheckpoints
from prompt_tuning.checkpoints.run_lock import RunLock
from prompt_tuning.cli import config
from prompt_tuning.cli.arguments import RunArguments
from prompt_tuning.cli.base import check_vocabulary, open_base
from prompt_tuning.cli.bookkeeping import Bookkeeping
from prompt_tuning.cli.identity import identity
from prompt_tuning.cli.launch import launched, writing_explained
from prompt_tuning.cli.outputs import Evaluations, Prompts
from prompt_tuning.cli.source import Place, Source
from prompt_tuning.data.prefetch import prefetch
from prompt_tuning.errors import ConfigError, Preempted, nearest
from prompt_tuning.evaluation.evaluate import Evaluation
from prompt_tuning.losses import Loss
from prompt_tuning.model import T5, BaseParam, parameters
from prompt_tuning.partitioning import is_main, placement
from prompt_tuning.prompts import PromptParam
from prompt_tuning.prompts.combine import described
from prompt_tuning.training import loop
from prompt_tuning.training.metrics import Console, JsonLines, TensorBoard, Writers
from prompt_tuning.training.monitor import Monitor
from prompt_tuning.training.optimizer import Optimizer
from prompt_tuning.training.preemption import Preemption
from prompt_tuning.training.state import RunState, split_model, start
from prompt_tuning.training.step import make_train_step
from prompt_tuning.training.watchdog import Watchdog
from prompt_tuning.vocabulary import Vocabulary

TRAINABLE = {"prompt": PromptParam, "model": BaseParam}

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
    trainable: str = "prompt",
    prompt: Callable[..., nnx.Module] | None = None,
    initial_checkpoint: str | None = None,
    initial_step: int | None = None,
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
        trainable: `prompt`, or `model` for model tuning and pretraining.
        prompt: makes the prompt; called with `embed_dim` and `rngs` (PROMPT).
        initial_checkpoint: the base model (INITIAL_CHECKPOINT_PATH). None starts a model from
            scratch, which only a run that trains the model may.
        initial_step: the step at which the base stands, for one whose format does not say, such as
            Hugging Face's. LM-adapted T5 1.1 stands at 1,100,000.
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
        devices: how many to share each batch among; None for all.
        random_seed: of initial values and dropout (RANDOM_SEED).
        preemption: tells when the run is asked to stop; None listens to no signals.
        dry_run: trace one step on shapes and write nothing to `model_dir`. The data is read as for
            a run, caches included.

    Returns:
        The final state; None after a dry run.

    Raises:
        Preempted: a signal asked to stop, and the state is saved.
    """
    preemption = preemption or Preemption()
    placed = placement(devices)
    place = functools.partial(placed.batch, microbatches=microbatches)
    base = (
        None
        if initial_checkpoint is None
        else open_base(initial_checkpoint, "INITIAL_CHECKPOINT_PATH")
    )
    digest = parameters.Fingerprint()
    module = _build(model, prompt, base, trainable, random_seed, digest, shapes_only=dry_run)
    if vocabulary is not None:
        check_vocabulary(vocabulary, module.config)
    graph, chosen, frozen = split_model(module, TRAINABLE[trainable])
    first_step = _first_step(base, initial_step)
    last_step = _last_step(total_steps, relative_steps, first_step)
    train_step = make_train_step(
        graph, optimizer, loss=loss, microbatches=microbatches, placement=placed
    )
    key = jax.random.key(random_seed) if module.config.dropout_rate else None
    if dry_run:
        state = jax.eval_shape(lambda chosen: start(chosen, optimizer, step=first_step), chosen)
        batch = next(train_data.batches(0))
        train_step.lower(state.trainable, state.opt_state, frozen, place(batch), key)
        log.info("Dry run: the step compiles on shapes. %s", _counts(chosen, frozen))
        return None

    folder = epath.Path(model_dir)
    saving = saving or Saving()
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
            combine = getattr(module.encoder.prompt, "combine", None)
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
        state = placed.replicated(restored or fresh)
        frozen = placed.replicated(frozen)
        data = Place(
            train_data, first_step, checkpoints.restored_details(), checkpoints.restored_data()
        )
        log.info("%s Base %s.", _counts(chosen, frozen), base_hash[:12])
        log.info("Step %d of %d; everything goes to %s.", state.step, last_step, folder)
        preemption.defer()
        books = Bookkeeping(
            checkpoints=checkpoints,
            prompts=prompts,
            evaluations=Evaluations(
                evaluations,
                graph,
                frozen,
                place=placed.batch,
                folder=folder,
                last_step=state.step,
                preemption=preemption,
            ),
            monitor=monitor,
            data=data,
            restored=restored,
        )
        evaluating = loop.Every(steps=eval_period, action=books.evaluate)
        # A run may have been stopped between saving a step and evaluating it.
        resumed = restored is not None and evaluating.due(state.step, last_step)
        if resumed or (run_eval_before_training and state.step == first_step):
            books.evaluate(state)
        if state.step < last_step and not (books.exhausted or preemption.requested):
            log.info("%s", data.summary())
            _describe(folder, module)
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
            )
            finished = "Finished"
        else:
            finished = "The run is finished: there is nothing to do. It stands"
        if preemption.requested:
            books.save(state, wait=True)
            raise Preempted(
                f"Stopped on request at step {state.step} of {last_step}, and saved to {folder!s}: "
                "start the same command again to go on."
            )
        if books.exhausted and state.step < last_step:
            books.save(state, wait=True)
            finished = f"No improvement for {monitor.patience} evaluations. {finished}"
    log.info("%s at step %d.", finished, state.step)
    return state


def _build(
    model: Callable[..., T5],
    prompt: Callable[..., nnx.Module] | None,
    base: Contents | None,
    trainable: str,
    seed: int,
    digest: parameters.Fingerprint,
    *,
    shapes_only: bool,
) -> T5:
    if trainable not in TRAINABLE:
        raise ConfigError(
            f"train.trainable is {trainable!r}, expected one of {', '.join(TRAINABLE)}."
            f"{nearest(str(trainable), TRAINABLE)}"
        )
    if base is None and trainable == "prompt":
        raise ConfigError(
            "A prompt is trained over a pretrained model, but none is named. Set "
            "--gin.INITIAL_CHECKPOINT_PATH=\"'...'\" to its checkpoint."
        )
    base_key, prompt_key = jax.random.split(jax.random.key(seed))

    def make() -> T5:
        return model(rngs=nnx.Rngs(params=base_key))

    # Only shapes are needed of a base that is read from a file.
    module = nnx.eval_shape(make) if shapes_only or base is not None else make()
    if base is not None:
        base_model.check_architecture(module.config, base)
        if not shapes_only:
            module = base_model.fill(module, base, digest=digest)
    if prompt is not None and trainable == "prompt":
        rngs = nnx.Rngs(params=prompt_key)
        module.encoder.prompt = prompt(embed_dim=module.config.embed_dim, rngs=rngs)
    return module


def _first_step(base: Contents | None, given: int | None) -> int:
    if base is None or base.step is not None:
        known = base.step if base else 0
        if given not in (None, known):
            raise ConfigError(
                f"train.initial_step is {given}, but the base stands at step {known}. Leave it out."
            )
        return known
    if given is None:
        log.warning(
            "%s does not say at which step it stands: counting from 0. The optimizer counts the "
            "base's steps too; for LM-adapted T5 1.1 set --gin.train.initial_step=1_100_000.",
            base.where,
        )
    return given or 0


def _last_step(total_steps: int | None, relative_steps: int | None, first_step: int) -> int:
    if relative_steps is not None:
        return first_step + relative_steps
    if total_steps is None:
        raise ConfigError(
            "How long to train is not set. Set --gin.TRAIN_STEPS (the base's own steps included) "
            "or --gin.TRAIN_STEPS_RELATIVE."
        )
    if total_steps < first_step:
        raise ConfigError(
            f"TRAIN_STEPS is {total_steps}, but the base model already stands at step "
            f"{first_step}, and TRAIN_STEPS counts those too (as in t5x). For {total_steps} more "
            f"steps set --gin.TRAIN_STEPS={first_step + total_steps}."
        )
    return total_steps


def _counts(chosen: nnx.State, frozen: nnx.State) -> str:
    trained, kept = parameters.count(chosen), parameters.count(frozen)
    tensors = len(parameters.named(chosen))
    return f"Training {tensors} tensors, {trained:,} of {trained + kept:,} parameters."


def _writers(folder: epath.Path, step: int) -> Writers:
    """Returns where the metrics of training go; on all processes but the first nowhere."""
    if not is_main():
        return Writers()
    return Writers(
        Console(),
        JsonLines(folder / "train" / "metrics.jsonl", last_step=step),
        TensorBoard(folder / "train", last_step=step),
    )


def _describe(folder: epath.Path, module: T5) -> None:
    """Writes the configuration that is in effect and the list of parameters."""
    if is_main():
        table = parameters.table(nnx.state(module))
        storage.write_whole(folder / "config.gin", config.operative_config().encode())
        storage.write_whole(folder / "model-info.txt", table.encode())
