"""What a run is about to do, in one block, before the first step."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
from etils import epath
from flax import nnx

from prompt_tuning.checkpoints.contents import Contents
from prompt_tuning.cli.reports.concerns import rates
from prompt_tuning.cli.reports.layout import Row, block, many, size
from prompt_tuning.cli.source import Source
from prompt_tuning.evaluation import TaskMetrics, TeacherForced
from prompt_tuning.evaluation.evaluate import Evaluation
from prompt_tuning.model import T5Config, parameters
from prompt_tuning.partitioning import Placement
from prompt_tuning.training.monitor import Monitor
from prompt_tuning.training.optimizer import Optimizer
from prompt_tuning.vocabulary import Vocabulary

# Nobody can know it before the first steps have been made.
TIME = ("time", "is estimated when the first steps have been measured")
# A few tensors can be named; a whole model's cannot.
_NAMED = 4


def of_training(
    *,
    chosen: nnx.State,
    frozen: nnx.State,
    trainable: str,
    config: T5Config,
    combine: str | None,
    base: Contents | None,
    path: str | None,
    digest: str | None,
    values: Mapping[str, str],
    vocabulary: Vocabulary | None,
    data: Source,
    task: str | None,
    placed: Placement,
    microbatches: int,
    first_step: int,
    step: int,
    last_step: int,
    resumed: bool,
    optimizer: Optimizer,
    evaluations: Sequence[Evaluation],
    eval_period: int,
    monitor: Monitor | None,
    save_period: int,
    keep: int | None,
    folder: epath.Path,
    seed: int,
) -> str:
    """Returns the block of a training run.

    Args:
        chosen: what is trained.
        frozen: what is not.
        trainable: `prompt` or `model`.
        config: of the model.
        combine: where the prompt goes; None for the usual place.
        base: what is trained over.
        path: where it was named.
        digest: its hash, if it was read.
        values: of the configuration, see `config.operative_values`.
        vocabulary: of the data.
        data: what is trained on.
        task: its name.
        placed: the devices.
        microbatches: parts of a batch.
        first_step: of the base.
        step: where the run stands.
        last_step: where it ends.
        resumed: whether the run goes on from a checkpoint.
        optimizer: of what is trained.
        evaluations: what is measured.
        eval_period: how often.
        monitor: what is best.
        save_period: how often the run is saved.
        keep: how many checkpoints are kept.
        folder: where everything goes.
        seed: of the run.
    """
    prompt = trainable == "prompt"
    return block(
        "Prompt tuning" if prompt else "Training a whole model",
        [
            *of_parameters(chosen, frozen),
            of_base(base, path, digest, first_step, values),
            *([of_prompt(chosen, values, combine)] if prompt else []),
            *of_vocabulary(vocabulary),
            *of_data(data, task, placed, microbatches),
            of_steps(first_step, step, last_step, data, resumed=resumed),
            *of_devices(placed, config),
            of_optimizer(optimizer, first_step, last_step),
            *of_evaluations(evaluations, when(eval_period, step, last_step), monitor),
            of_saving(when(save_period, step, last_step), keep),
            *of_outputs(folder, seed),
            *([TIME] if step < last_step else []),
        ],
    )


def of_asking(
    title: str,
    *,
    checkpoint: str,
    learned: str | None,
    step: int,
    hashes: Mapping[str, Any],
    model: nnx.Module,
    config: T5Config,
    vocabulary: Vocabulary | None,
    about: Sequence[Row],
    placed: Placement,
    folder: epath.Path,
) -> str:
    """Returns the block of an evaluation or an inference.

    Args:
        title: what is done.
        checkpoint: of the base, or of a model that was trained as a whole.
        learned: what was put on it, in words; None for nothing.
        step: of the (first) model.
        hashes: see `Subject.made_of`.
        model: as it is asked.
        config: of the model.
        vocabulary: of the data.
        about: what is asked.
        placed: the devices.
        folder: where everything goes.
    """
    return block(
        title,
        [
            ("model", f"{checkpoint}, hash {str(hashes.get('base', ''))[:12]}"),
            ("prompt", f"{learned or 'none'}, step {step:,}"),
            ("holds", _stored(nnx.state(model))),
            *of_vocabulary(vocabulary),
            *about,
            *of_devices(placed, config),
            *of_outputs(folder),
        ],
    )


def counts(chosen: nnx.State, frozen: nnx.State) -> str:
    """Returns how much is trained, in one sentence."""
    trained, kept = parameters.count(chosen), parameters.count(frozen)
    tensors = len(parameters.named(chosen))
    return f"Training {tensors} tensors, {trained:,} of {trained + kept:,} parameters."


def of_parameters(chosen: nnx.State, frozen: nnx.State) -> list[Row]:
    """Says what is trained and what is not."""
    trained, kept = parameters.count(chosen), parameters.count(frozen)
    arrays = parameters.named(chosen)
    names = [f"{name} {list(one.shape)}" for name, one in arrays.items()]
    share = trained / (trained + kept)
    said = f"{many(len(arrays), 'tensor')}, {trained:,} of {trained + kept:,} parameters"
    if kept:
        said += f" ({share:.2g})" if share < 1e-4 else f" ({share:.2%})"
    named = f": {', '.join(names)}" if len(names) <= _NAMED else ""
    return [("trains", said + named), ("frozen", _stored(frozen))]


def _stored(frozen: nnx.State) -> str:
    arrays = parameters.named(frozen)
    if not arrays:
        return "nothing"
    dtypes = {
        str(array.dtype) for name, array in arrays.items() if not name.endswith(parameters.SCALE)
    }
    stored = f"{size(parameters.nbytes(frozen))} as {' and '.join(sorted(dtypes))}"
    return f"{parameters.count(frozen):,} parameters, {stored}"


def of_base(
    base: Contents | None,
    path: str | None,
    digest: str | None,
    step: int,
    values: Mapping[str, str],
) -> Row:
    """Says what is trained over, by its path, its step and the beginning of its hash."""
    if base is None:
        vectors = setting_of(values, "train.token_vectors") or "None"
        embeddings = "" if vectors == "None" else f", its embeddings from {_last_name(vectors)}"
        return "base", f"none: the model starts from random values{embeddings}"
    hashed = "" if digest is None else f", hash {digest[:12]}"
    return "base", f"{path} ({base.kind}), step {step:,}{hashed}"


def of_prompt(chosen: nnx.State, values: Mapping[str, str], combine: str | None) -> Row:
    """Says how a prompt starts, as far as the configuration tells.

    Args:
        chosen: what is trained.
        values: see `config.operative_values`.
        combine: where the prompt goes.
    """
    shapes = [one.shape for one in parameters.named(chosen).values()]
    length = f"{shapes[0][0]:,} vectors of {shapes[0][1]:,} numbers" if len(shapes) == 1 else ""
    place = "" if combine in (None, "prefix") else f", {combine}"
    return "prompt", f"{length}{place}; starts from {initial_values(values)}".lstrip("; ")


def initial_values(values: Mapping[str, str]) -> str:
    """Returns in words what a prompt starts from.

    >>> initial_values({"prompts.Prompt.init": "@initializers.uniform()"})
    'random numbers'
    """
    given = next((value for name, value in values.items() if name.endswith("Prompt.init")), None)
    if given is None:
        return "what its own initialiser makes"
    name = _last_name(given)

    def setting(argument: str, default: str = "") -> str:
        return setting_of(values, f"{name}.{argument}") or default

    match name:
        case "uniform":
            scale = setting("scale")
            return f"random numbers from 0 to {scale}" if scale else "random numbers"
        case "symmetric_uniform":
            limit = setting("limit")
            return f"random numbers from -{limit} to {limit}" if limit else "random numbers"
        case "from_sampled_vocabulary":
            population = setting("population_size")
            among = f"the {population} most frequent" if population not in ("", "None") else "all"
            return f"the embeddings of tokens drawn from {among}"
        case "from_class_labels":
            return f"the embeddings of the labels {setting('labels')}, the rest from drawn tokens"
        case "from_embedded_string":
            return f"the embeddings of the text {setting('text')}, the rest from drawn tokens"
        case "from_array":
            path = setting_of(values, "load_vectors.path")
            return f"the prompt in {path}" if path else "a given prompt"
        case _:
            return given


def _last_name(reference: str) -> str:
    return reference.strip("@()").rpartition(".")[2]


def setting_of(values: Mapping[str, str], name: str) -> str | None:
    """Returns the value of an argument, of whatever scope and module, with its macro resolved."""
    for full, value in values.items():
        if full.endswith((f".{name}", f"/{name}")) or full == name:
            for _ in range(len(values)):
                if not value.startswith("%"):
                    break
                value = values.get(value[1:], "")
            return value or None
    return None


def of_vocabulary(vocabulary: Vocabulary | None) -> list[Row]:
    """Says which vocabulary the data was tokenised with."""
    if vocabulary is None:
        return []
    path = getattr(vocabulary, "path", type(vocabulary).__name__)
    return [("vocabulary", f"{path}, {vocabulary.size:,} ids")]


def of_data(data: Source, task: str | None, placed: Placement, microbatches: int) -> list[Row]:
    """Says what is trained on, in batches of which sizes."""
    rows: list[Row] = [("data", data.summary().split("\n"))]
    if task is not None:
        rows.insert(0, ("task", task))
    if (batch := getattr(data, "batch_size", None)) is not None:
        parts = "" if microbatches == 1 else f" in {microbatches} microbatches"
        each = -(-batch // placed.rows)
        rows.append(("batch", f"{many(batch, 'row')}{parts}, at most {each:,} on a device"))
    if buckets := getattr(data, "buckets", None):
        lengths = [
            f"{feature} {' '.join(str(n) for n in one.lengths)}" for feature, one in buckets.items()
        ]
        programs = 1
        for one in buckets.values():
            programs *= len(one.lengths)
        compiled = "one program" if programs == 1 else f"at most {programs} programs"
        rows.append(("buckets", f"{'; '.join(lengths)}: {compiled} to compile"))
    return rows


def of_steps(first: int, at: int, last: int, data: Source, *, resumed: bool) -> Row:
    """Says which steps are to be made.

    Args:
        first: the base's.
        at: where the run stands.
        last: where it ends.
        data: what is trained on.
        resumed: whether the run goes on from a checkpoint.
    """
    size, rows = getattr(data, "epoch_size", None), getattr(data, "batch_size", None)
    epochs = ""
    if size and rows:
        epochs = f" = {(last - first) * rows / size:.3g} epochs of {many(size, 'example')}"
    whole = f"{many(last - first, 'step')}{epochs}"
    if resumed and at < last:
        return "steps", f"goes on from {at:,} to {last:,}: {last - at:,} left of {whole}"
    if resumed:
        return "steps", f"stands at {at:,} of {last:,}: none left of {whole}"
    return "steps", f"{first:,} to {last:,}: {whole}"


def of_devices(placed: Placement, config: T5Config) -> list[Row]:
    """Says where and in which arithmetic it is computed."""
    every = len(jax.devices())
    unused = "" if every == placed.mesh.size else f", {every - placed.mesh.size} unused"
    return [
        ("devices", f"{placed.describe()}{unused}"),
        ("numbers", f"activations {config.dtype}, the base's parameters {_kept(config)}"),
    ]


def _kept(config: T5Config) -> str:
    how = config.quantized
    return config.param_dtype if how is None else f"{config.param_dtype}, projections {how}"


def of_optimizer(optimizer: Optimizer, first: int, last: int) -> Row:
    """Says how what is trained changes."""
    found = rates(optimizer, first, last)
    highest = found.max()
    if highest - found.min() <= 1e-6 * highest:
        rate = f"learning rate {found[0]:.4g}"
    else:
        rate = f"learning rate {found[0]:.4g} to {found[-1]:.4g}, at most {highest:.4g}"
    return "optimizer", f"{optimizer.about}; {rate}"


def when(period: int, step: int, last: int) -> str:
    """Says after which of the steps from `step` to `last` a `loop.Every` of that period acts."""
    last_multiple = (last - 1) // period * period
    return f"every {many(period, 'step')} and at the end" if last_multiple > step else "at the end"


def of_evaluations(
    evaluations: Sequence[Evaluation], often: str | None, monitor: Monitor | None
) -> list[Row]:
    """Says what is measured, when (see `when`), and what follows from it."""
    if not evaluations:
        return [("evaluates", "nothing")]
    said = [] if often is None else [often]
    rows: list[Row] = [("evaluates", [*said, *map(_evaluation, evaluations)])]
    if monitor is not None:
        stops = "" if monitor.patience is None else f"; stops after {monitor.patience} without gain"
        rows.append(("watches", f"{monitor.metric} ({monitor.mode}){stops}"))
    return rows


def _evaluation(one: Evaluation) -> str:
    split: Any = getattr(one, "split", None)
    name = one.name if split is None else f"{one.name}/{split.split}"
    every = "" if split is None else f", {many(len(split.examples), 'example')}"
    match one:
        case TeacherForced(steps=None):
            return f"{name}: the loss{every}"
        case TeacherForced():
            return f"{name}: the loss of up to {many(one.steps or 0, 'batch')}{every}"
        case TaskMetrics():
            return f"{name}: the task's metrics{every}"
    return f"{one.folder}/{name}{every}"


def of_saving(often: str, keep: int | None) -> Row:
    """Says when the run is saved (see `when`) and what of it is kept."""
    kept = "all are kept" if keep is None else f"the last {'' if keep == 1 else f'{keep} '}kept"
    return "saves", f"{often}; {kept}"


def of_outputs(folder: epath.Path, seed: int | None = None) -> list[Row]:
    """Says where everything goes."""
    rows: list[Row] = [("outputs", str(folder))]
    return rows if seed is None else [("seed", str(seed)), *rows]
