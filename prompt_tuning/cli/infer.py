"""`prompt-tuning infer`: answers to the examples of a task, or to plain text, as JSON lines."""

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from flax import nnx
from jax.experimental import multihost_utils

from prompt_tuning.batch import Batch
from prompt_tuning.cli import config
from prompt_tuning.cli.arguments import RunArguments
from prompt_tuning.cli.identity import identity
from prompt_tuning.cli.launch import launched, writing_explained
from prompt_tuning.cli.reports import opening
from prompt_tuning.cli.reports.layout import Row, block, many
from prompt_tuning.cli.subjects import subjects
from prompt_tuning.data.task_split import TaskSplit
from prompt_tuning.decoding.ensemble import Combination, Vote
from prompt_tuning.errors import ConfigError, DataError, Preempted, nearest
from prompt_tuning.evaluation.answering import Answer, Answering, score_targets
from prompt_tuning.evaluation.examination import Examination, Examine
from prompt_tuning.evaluation.predictions import InputFields, as_lines, example_id, prediction
from prompt_tuning.evaluation.shard_file import ShardFile
from prompt_tuning.evaluation.task_evaluations import splits_of
from prompt_tuning.model import T5
from prompt_tuning.partitioning import Partitioning, is_main
from prompt_tuning.prompts import PromptParam
from prompt_tuning.training.clock import Clock, duration
from prompt_tuning.training.preemption import Preemption
from prompt_tuning.vocabulary import Vocabulary

MODES = ("predict", "predict_with_aux", "score")

log = logging.getLogger("prompt_tuning")


def run(arguments: RunArguments) -> int:
    """Answers as the gin files and bindings say; returns the exit code."""
    with launched(arguments) as preemption:
        config.call(infer, preemption=preemption, dry_run=arguments.dry_run)
    return 0


def infer(
    *,
    output_dir: str,
    checkpoint: str,
    split: TaskSplit | Sequence[tuple[TaskSplit, float]] | Any,
    answering: Answering,
    batch_size: int = 32,
    mode: str = "predict",
    prompt: str | Sequence[str] | None = None,
    checkpoints: str = "latest",
    ensemble: Combination | None = None,
    model: Callable[..., T5] | None = None,
    activation_dtype: str = "bfloat16",
    param_dtype: str = "float32",
    quantization: str | None = None,
    quantization_group: int | None = None,
    vocabulary: Vocabulary | None = None,
    checkpoint_period: int = 100,
    shard_id: int = 0,
    num_shards: int = 1,
    merge_chunked_results: bool = True,
    inputs: InputFields | None = None,
    output_ids: bool = False,
    all_decodes: bool = False,
    devices: int | None = None,
    partitioning: Partitioning | None = None,
    preemption: Preemption | None = None,
    dry_run: bool = False,
) -> None:
    """Writes what a model says to every example, in their order; goes on where it was killed.

    Args:
        output_dir: where everything goes (INFER_OUTPUT_DIR).
        checkpoint: the base, or a model that was trained as a whole (CHECKPOINT_PATH).
        split: the examples. Of a mixture every task gets a file of its own.
        answering: how the model answers.
        batch_size: rows of a batch (BATCH_SIZE).
        mode: `predict` for texts, `predict_with_aux` for texts with their scores, `score` for the
            log-probabilities of the targets (t5x).
        prompt: a prompt of any format, the folder of a run, or several for an ensemble
            (PROMPT_FILE); None asks the model in the checkpoint.
        checkpoints: `latest` or `best` of a run (CHECKPOINTS).
        ensemble: how several prompts agree; None lets them vote (ENSEMBLE).
        model: makes the model; None takes the architecture of the checkpoint (MODEL).
        activation_dtype: of activations, if the architecture is the checkpoint's.
        param_dtype: of parameters, likewise.
        quantization: how the layers' projections are stored, likewise; see `T5Config`.
        quantization_group: inputs that share a scale, likewise.
        vocabulary: what the data was tokenised with.
        checkpoint_period: batches between two writes; a killed process loses no more.
        shard_id: which shard of the split this process answers, from 0.
        num_shards: into how many the split is divided: example i is in shard i modulo this.
        merge_chunked_results: whether to put the chunks into one file at the end.
        inputs: which features of an example are written beside its answer.
        output_ids: writes the tokens of answers too.
        all_decodes: writes all answers that the strategy found, the best last.
        devices: how many to use; None for all.
        partitioning: how the model is divided among them; None makes it whole on each.
        preemption: tells when to stop; None listens to no signals.
        dry_run: read data and model and write nothing.

    Raises:
        Preempted: a signal asked to stop; what was answered is written.
    """
    preemption = preemption or Preemption()
    _check(mode, shard_id, num_shards, checkpoint_period, batch_size)
    if checkpoints not in ("latest", "best"):
        raise ConfigError(
            f"CHECKPOINTS is {checkpoints!r}, but there is one file for the answers of one model: "
            "expected 'latest' or 'best'."
        )
    splits, placed = splits_of(split), (partitioning or Partitioning()).placement(devices)
    if not splits:
        raise ConfigError("There is nothing to answer: set INFER_SPLIT to a split of the task.")
    folder = epath.Path(output_dir)
    [subject] = subjects(
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
    made_of = settings | {name: str(value) for name, value in subject.made_of.items()}
    graph, learned, frozen = nnx.split(subject.model, PromptParam, ...)
    learned, frozen = placed.parameters(learned), placed.parameters(frozen)
    fields = inputs or InputFields()
    combination = (ensemble or Vote()) if subject.prompts > 1 else None

    for one in splits:
        if mode == "score" and not _has_targets(one):
            raise DataError(
                f"There are no targets to score in {one.task!r}, split {one.split!r}. Give the "
                "file a column `targets`, or a FILE_TASK that says what they are; or set MODE to "
                "'predict'."
            )

    def lines_of(one: TaskSplit) -> Callable[[Sequence[int]], list[dict[str, Any]]]:
        """Returns what makes the lines of examples of a task."""
        fields.of(one.record(0))
        examine = Examination(
            examples=one.examples, longest=one.longest, batch_size=batch_size, place=placed.batch
        )
        if mode == "score":
            said = _scoring(score_targets(graph, together=combination is not None))
        else:
            said = _answering(
                answering.prepare(
                    graph,
                    length=one.answer_length,
                    label_names=one.judge.label_names,
                    combination=combination,
                ),
                functools.partial(
                    prediction, mode=mode, output_ids=output_ids, all_decodes=all_decodes
                ),
            )

        def lines(ids: Sequence[int]) -> list[dict[str, Any]]:
            return [
                {"id": example_id(one.split, i), "inputs": fields.of(one.record(i)), **found}
                for i, found in zip(ids, examine(said, learned, frozen, ids), strict=True)
            ]

        return lines

    ids_of = [range(shard_id, len(one.examples), num_shards) for one in splits]
    if is_main():
        asked = [
            f"{one.task}/{one.split}: {many(len(ids), 'example')}"
            + (f", shard {shard_id} of {num_shards}" if num_shards > 1 else "")
            for one, ids in zip(splits, ids_of, strict=True)
        ]
        said = opening.of_asking(
            "Dry run of an inference" if dry_run else "Inference",
            checkpoint=checkpoint,
            learned=subject.title if subject.made_of.get("prompts") else None,
            step=subject.step,
            hashes=subject.made_of,
            model=subject.model,
            config=subject.model.config,
            vocabulary=vocabulary,
            about=[
                ("answers", asked),
                ("mode", f"{mode}, {many(batch_size, 'row')} in a batch"),
                ("saves", f"every {many(checkpoint_period, 'batch')}"),
            ],
            placed=placed,
            folder=folder,
        )
        log.info("%s", said)
    log.info("Asking %s, step %d.", subject.title, subject.step)
    clock, answered = Clock(), []
    with writing_explained(folder, "INFER_OUTPUT_DIR"):
        for one, ids in zip(splits, ids_of, strict=True):
            file = ShardFile(
                folder=folder,
                task=one.task,
                mode=mode,
                shard=shard_id,
                shards=num_shards,
                made_of={
                    **made_of,
                    "data": one.fingerprint,
                    "examples of a chunk": str(checkpoint_period * batch_size),
                },
            )
            # Also in a dry run, which says what is wrong with them.
            lines = lines_of(one)
            if not dry_run:
                with clock.spent("answer"):
                    made = _write(
                        file,
                        ids,
                        checkpoint_period * batch_size,
                        lines,
                        merge=merge_chunked_results,
                        preemption=preemption,
                    )
                if made:
                    before = "" if made == len(ids) else f", {len(ids) - made:,} of them before"
                    where = f"{many(len(ids), 'example')}{before}: {file.path!s}"
                    answered.append((one.task, where))
    if answered and is_main():
        rows: list[Row] = [*answered, ("time", duration(clock.seconds()["answer"]))]
        log.info("%s", block("Answered.", rows))


def _write(
    file: ShardFile,
    ids: Sequence[int],
    chunk_size: int,
    lines: Callable[[Sequence[int]], list[dict[str, Any]]],
    *,
    merge: bool,
    preemption: Preemption,
) -> int:
    """Writes the chunks of a shard that are not there yet, and puts them together.

    Returns how many examples were answered for that.

    Raises:
        Preempted: a signal asked to stop; the chunks that were finished are written.
    """
    chunks = range(-(-len(ids) // chunk_size))
    if _agreed(file.is_complete()):
        log.info("%s is complete.", file.path)
        if is_main() and merge:
            # It may have been left in chunks, by whoever wanted them or by a signal.
            if not file.path.exists():
                file.finish(len(chunks))
            file.clean()
        return 0
    missing = [chunk for chunk in chunks if not _agreed(file.has_chunk(chunk))]
    log.info("%d of %d chunks of %s are to be made.", len(missing), len(chunks), file.path)
    if is_main():
        file.begin()
    preemption.defer()
    for chunk in missing:
        mine = ids[chunk * chunk_size : (chunk + 1) * chunk_size]
        work = functools.partial(lines, mine)
        found = None if preemption.stop() else preemption.unless_requested(work)
        if found is None:
            raise Preempted(
                f"Stopped on request before chunk {chunk} of {len(chunks)} of {file.path!s}. Start "
                "the same command again to go on."
            )
        if is_main():
            file.write_chunk(chunk, as_lines(found))
        log.info("Answered %d of %d examples.", min((chunk + 1) * chunk_size, len(ids)), len(ids))
    if is_main():
        file.finish(len(chunks), merge=merge)
        log.info("Results written to %s.", file.path)
    # No process ends before all that was asked of it together is written.
    _agreed(True)
    return sum(len(ids[chunk * chunk_size : (chunk + 1) * chunk_size]) for chunk in missing)


def _answering(
    answer: Examine[Answer], written: Callable[[Answer], dict[str, Any]]
) -> Examine[dict[str, Any]]:
    def said(trainable: nnx.State, frozen: nnx.State, batch: Batch, ids: Sequence[int]):
        return [written(one) for one in answer(trainable, frozen, batch, ids)]

    return said


def _scoring(score: Examine[float]) -> Examine[dict[str, Any]]:
    def said(trainable: nnx.State, frozen: nnx.State, batch: Batch, ids: Sequence[int]):
        return [{"score": one} for one in score(trainable, frozen, batch, ids)]

    return said


def _has_targets(split: TaskSplit) -> bool:
    # Without targets there are only end tokens.
    return "targets_pretokenized" in split.columns or split.lengths["targets"].longest > 1


def _agreed(value: bool) -> bool:
    """Returns what the first process sees, in all of them."""
    if jax.process_count() == 1:
        return value
    return bool(multihost_utils.broadcast_one_to_all(np.asarray(value)))


def _check(
    mode: str, shard_id: int, num_shards: int, checkpoint_period: int, batch_size: int
) -> None:
    if mode not in MODES:
        raise ConfigError(
            f"infer.mode is {mode!r}, expected one of {', '.join(MODES)}.{nearest(mode, MODES)}"
        )
    if not 0 <= shard_id < num_shards:
        raise ConfigError(
            f"infer.shard_id is {shard_id}, expected 0 to {num_shards - 1} (infer.num_shards is "
            f"{num_shards})."
        )
    if checkpoint_period < 1:
        raise ConfigError(
            f"infer.checkpoint_period is {checkpoint_period}, expected 1 or more batches."
        )
    if batch_size < 1:
        raise ConfigError(f"BATCH_SIZE is {batch_size}, expected 1 or more.")
