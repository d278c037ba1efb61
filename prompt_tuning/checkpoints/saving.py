"""What every writer of models checks before it writes."""

from collections.abc import Mapping

import ml_dtypes
import numpy as np

from prompt_tuning.checkpoints.containers.stored import Stored
from prompt_tuning.checkpoints.contents import expected_shapes
from prompt_tuning.errors import CheckpointError, ConfigError, nearest
from prompt_tuning.model import T5Config
from prompt_tuning.model.parameters import check_names

DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


def check_parameters(tensors: Mapping[str, Stored], config: T5Config) -> None:
    """Raises CheckpointError if arrays under t5x's names are not the base of `config`."""
    wanted = expected_shapes(config)
    check_names(found=tensors, wanted=wanted, where="the arrays to save")
    for name, one in tensors.items():
        if one.shape != wanted[name]:
            raise CheckpointError(
                f"{one.where} has shape {one.shape}, but {name!r} of this model has {wanted[name]}."
            )


def dtype_named(name: str | None) -> np.dtype | None:
    """Returns the dtype to cast to; None casts nothing.

    Raises:
        ConfigError: a name that is not in DTYPES.
    """
    if name is not None and name not in DTYPES:
        hint = " Only a model in the format 'safetensors' can be int8." if name == "int8" else ""
        raise ConfigError(
            f"Cannot save as {name!r}, expected {' or '.join(DTYPES)}.{nearest(name, DTYPES)}{hint}"
        )
    return None if name is None else DTYPES[name]
