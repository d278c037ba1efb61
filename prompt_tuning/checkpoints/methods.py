"""What a method learned, put on a model: from prompt files and from checkpoints of the original."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from prompt_tuning.checkpoints import mapping
from prompt_tuning.checkpoints.containers.stored import Stored
from prompt_tuning.checkpoints.contents import Contents
from prompt_tuning.checkpoints.prompt_file import PromptFile, as_float32
from prompt_tuning.errors import CheckpointError
from prompt_tuning.model import T5, BaseParam, T5Config, parameters
from prompt_tuning.prompts import (
    Combine,
    KeyValuePrefix,
    Prompt,
    PromptBank,
    PromptParam,
    Scale,
    prefix,
)
from prompt_tuning.prompts.combine import described, from_description


def attach(model: T5, file: PromptFile, *, combine: Combine | None = None) -> T5:
    """Returns the model with what a file holds, in place of any method that it has.

    The base parameters are shared with the model that is given, which stays as it is; they may be
    shapes only.

    Args:
        combine: where a prompt goes. None asks the file; one that does not say it, such as every
            file of other software, holds a prefix.

    Raises:
        CheckpointError: the file belongs to a model of another size, or says that its prompt goes
            to a place that we do not know.
    """
    combine = combine or place(file)
    arrays = fitted(file, model.config).arrays
    graph, method, _ = nnx.split(_model_with(file, model.config, combine), PromptParam, ...)
    _, base, _ = nnx.split(model, BaseParam, ...)
    whole = nnx.merge(graph, parameters.replaced(method, arrays), base)
    whole.hold(model.layout)
    return whole


def attach_bank(
    model: T5,
    files: Sequence[PromptFile],
    *,
    combine: Combine | None = None,
    names: Sequence[str] | None = None,
) -> T5:
    """Returns the model with the prompts of several files, of which each row chooses one.

    The prompts may have different lengths, see `PromptBank`. The base parameters are shared with
    the model that is given, as in `attach`.

    Args:
        combine: where all prompts go. None asks the files.
        names: of the files, for messages.

    Raises:
        CheckpointError: there are no files, or one holds another method than a prompt, a prompt
            over another base or for a model of another size, or one that goes to another place
            than the first.
    """
    if not files:
        raise CheckpointError("A bank of prompts needs at least one prompt file, got none.")
    called = names or [f"Prompt {k} of the bank" for k in range(len(files))]
    where = _shared_place(list(zip(called, files, strict=True)), model.config, combine)
    graph, _ = nnx.split(nnx.eval_shape(lambda: T5(model.config, rngs=nnx.Rngs(0))))
    _, base, _ = nnx.split(model, BaseParam, ...)
    bare = nnx.merge(graph, base)
    bare.hold(model.layout)
    bare.encoder.prompt = PromptBank([file.vectors for file in files], combine=where)
    return bare


def _shared_place(
    files: Sequence[tuple[str, PromptFile]], config: T5Config, combine: Combine | None
) -> Combine:
    """Returns where the prompts of a bank go, once it is sure that they may be in one."""
    places: dict[Combine, str] = {}
    bases: dict[str, str] = {}
    for name, file in files:
        if file.method != "prompt":
            raise CheckpointError(
                f"{name}: a bank holds prompts, this file {file.method}, among which rows cannot "
                "choose. Leave it out, and attach it by itself."
            )
        try:
            fitted(file, config)
            places.setdefault(combine or place(file), name)
        except CheckpointError as error:
            raise CheckpointError(f"{name}: {error}") from error
        if file.base is not None:
            bases.setdefault(file.base, name)
        if len(bases) > 1:
            (first, theirs), (second, _) = bases.items()
            raise CheckpointError(
                f"{name}: this prompt was trained over the base with hash {second[:12]}, but "
                f"{theirs} over {first[:12]}. A bank has one base: make one bank for each."
            )
        if len(places) > 1:
            (first, theirs), (second, _) = places.items()
            raise CheckpointError(
                f"{name}: this prompt goes to {described(second)}, but {theirs} to "
                f"{described(first)}. A bank has one place: make one bank for each, or say "
                "`combine`."
            )
    return next(iter(places))


def place(file: PromptFile) -> Combine:
    """Returns where the prompt of a file goes.

    Raises:
        CheckpointError: a place that is not one of ours.
    """
    description = file.details.get("combine", {"name": "prefix"})
    found = from_description(description) if isinstance(description, Mapping) else None
    if found is None:
        raise CheckpointError(
            f"The prompt file says that its prompt goes to {description!r}, which is none of ours. "
            "Pass the function that puts it there as `combine`."
        )
    return found


def fitted(file: PromptFile, config: T5Config) -> PromptFile:
    """Returns the file with all arrays that its method has on a model, each in its shape there.

    A file of scales may lack some, which are 1 then, and may join heads: PEFT's do not tell them
    apart.

    Raises:
        CheckpointError: the file belongs to a model of another size.
    """
    _, method, _ = nnx.split(_model_with(file, config, prefix), PromptParam, ...)
    wanted = {name: leaf.shape for name, leaf in parameters.named(method).items()}
    arrays = dict(file.arrays)
    if file.method == "ia3":
        arrays = {name: np.ones(shape, np.float32) for name, shape in wanted.items()} | arrays
    parameters.check_names(found=arrays, wanted=wanted, where="the prompt file")
    for name, shape in wanted.items():
        found = arrays[name].shape
        if found != shape and found != (shape[0], math.prod(shape[1:])):
            raise CheckpointError(
                f"The {file.method} was trained on a model of another size: {name!r} has shape "
                f"{found}, this model needs {shape}. Choose the one that was trained over this "
                "base, or the base that it was trained over."
            )
        arrays[name] = arrays[name].reshape(shape)
    return dataclasses.replace(file, arrays=arrays)


def of_t5x(arrays: Mapping[str, np.ndarray], contents: Contents) -> PromptFile:
    """Returns what was trained beside the base parameters of a checkpoint.

    Args:
        arrays: the parameters of one method, under t5x's names.
        contents: the checkpoint they are from.

    Raises:
        CheckpointError: a method of the original that we do not have.
    """
    where = str(contents.where)
    ours = mapping.from_t5x({name: as_float32(one, name) for name, one in arrays.items()})
    return PromptFile(arrays=ours, base_name=where, step=contents.step)


def to_t5x_names(file: PromptFile) -> dict[str, Stored]:
    """Returns a method's parameters under t5x's names, as the original would hold them.

    Raises:
        CheckpointError: the original does not have this method, or heads are joined, see `fitted`.
    """
    if file.method == "prefix":
        raise CheckpointError(
            "A prefix of keys and values has no place in a t5x checkpoint: the original has no "
            "such method. Keep it as a prompt file."
        )
    for name, array in file.arrays.items():
        if name.endswith("_conv/ia3_scaling") and "/mlp/" not in name and array.ndim < 3:
            raise CheckpointError(
                f"{name!r} has shape {array.shape}, which does not say how many heads there are. "
                "Name the base model it belongs to."
            )
    named = mapping.to_t5x({name: np.asarray(array) for name, array in file.arrays.items()})
    return {name: Stored.of(array, f"the {file.method}: {name}") for name, array in named.items()}


def _model_with(file: PromptFile, config: T5Config, combine: Combine) -> T5:
    """Returns shapes of a model with the method of a file."""
    methods = _arguments(file, combine)
    return nnx.eval_shape(lambda: T5(config, **methods, rngs=nnx.Rngs(0)))


def _arguments(file: PromptFile, combine: Combine) -> dict[str, Callable[..., nnx.Module]]:
    """Returns the arguments of T5 for the method of a file."""
    if file.length is None:
        return {"scales": Scale}
    if file.method == "prefix":
        return {"prefix": functools.partial(KeyValuePrefix, length=file.length, init=_blank)}
    prompt = functools.partial(Prompt, length=file.length, init=_blank, combine=combine)
    return {"prompt": prompt}


def _blank(key: PRNGKeyArray, shape: tuple[int, int]) -> Float[Array, "P D"]:
    return jnp.zeros(shape)
