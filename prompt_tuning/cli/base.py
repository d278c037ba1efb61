"""The base model that a command names, checked before anything expensive."""

from collections.abc import Callable, Mapping
from typing import Any

from flax import nnx

from prompt_tuning.checkpoints import base as base_model
from prompt_tuning.checkpoints.contents import Contents
from prompt_tuning.checkpoints.formats import open_model
from prompt_tuning.errors import CheckpointError, ConfigError
from prompt_tuning.model import T5, BaseParam, T5Config, parameters
from prompt_tuning.partitioning import Placement
from prompt_tuning.vocabulary import Vocabulary


def open_base(path: str, setting: str) -> Contents:
    """Opens a model checkpoint; what is wrong with it names the setting as well."""
    try:
        return open_model(path)
    except CheckpointError as error:
        raise CheckpointError(f"{setting}: {error}") from error


def load_base(
    contents: Contents,
    model: Callable[..., T5] | None,
    settings: Mapping[str, Any],
    placed: Placement | None = None,
) -> tuple[T5, str]:
    """Returns the model in a checkpoint and the hash of its parameters as they are stored.

    Args:
        contents: of the checkpoint.
        model: makes the model; None for the architecture of the checkpoint.
        settings: fields of T5Config that no checkpoint decides, if the architecture is the
            checkpoint's.
        placed: where the parameters go; None for the default device.

    Raises:
        CheckpointError: the checkpoint is of another architecture than `model`.
        DeviceError: the model does not divide among the devices.
    """
    if model is None:
        shapes = base_model.shapes(contents, **settings)
    else:
        shapes = nnx.eval_shape(lambda: model(rngs=nnx.Rngs(0)))
    digest = parameters.Fingerprint()
    if placed is None:
        return base_model.fill(shapes, contents, digest=digest), digest.hexdigest()
    module = fill_base(shapes, contents, digest, placed)
    module.hold(placed.layout)
    return module, digest.hexdigest()


def fill_base(
    shapes: T5, contents: Contents, digest: parameters.Fingerprint, placed: Placement
) -> T5:
    """Returns a model filled from a checkpoint, each array read onto the devices that share it."""
    shardings = placed.shardings(nnx.state(shapes, BaseParam))
    return base_model.fill(shapes, contents, shardings=shardings, digest=digest)


def check_vocabulary(vocabulary: Vocabulary, shape: T5Config) -> None:
    """Raises ConfigError if the vocabulary has ids that the model has no row for."""
    # JAX reads a row that a table does not have as NaN, without a word.
    if vocabulary.size > shape.vocab_size:
        raise ConfigError(
            f"The vocabulary has {vocabulary.size} ids, but the model's embedding table has only "
            f"{shape.vocab_size} rows. Set VOCABULARY_FILE to the vocabulary this model was made "
            f"for, or choose a model whose T5Config.vocab_size is at least {vocabulary.size}."
        )
