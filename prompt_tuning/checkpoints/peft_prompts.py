"""Prompts of PEFT: PROMPT_TUNING, P_TUNING and MULTITASK_PROMPT_TUNING.

All are vectors in front of the encoder's input. By default there are as many again for the decoder,
which PEFT stores and never uses.
"""

import warnings
from typing import Any

import numpy as np
from jaxtyping import Float

from prompt_tuning.checkpoints.peft_adapter import EMBEDDINGS, Adapter
from prompt_tuning.errors import CheckpointError, ConfigError

_COLUMNS, _ROWS = "prefix_task_cols", "prefix_task_rows"
_NOTE = (
    "PEFT trains this adapter with vectors in front of the decoder's input as well, but leaves "
    "them out when it generates (num_transformer_submodules is 2). What is read here is what it "
    "generates with."
)


def read_prompt(adapter: Adapter) -> tuple[Float[np.ndarray, "P D"], dict[str, Any]]:
    """Returns the vectors that PEFT uses, and what else there is to know.

    P-tuning stores the vectors that its network made, and not the network.
    """
    adapter.check_names(EMBEDDINGS)
    length, rows, width = _sizes(adapter)
    vectors = adapter.array(EMBEDDINGS, (rows, width))[:length]
    return np.ascontiguousarray(vectors), {"unused_rows": rows - length} if rows > length else {}


def read_multitask(
    adapter: Adapter, task: int | None
) -> tuple[Float[np.ndarray, "P D"], dict[str, Any]]:
    """Returns the vectors of one task: what all share times a matrix of low rank for each.

    Raises:
        ConfigError: there are several tasks and none is chosen, or it is out of range.
    """
    adapter.check_names(EMBEDDINGS, _COLUMNS, _ROWS)
    length, rows, width = _sizes(adapter)
    tasks, ranks = adapter.number("num_tasks", default=1), adapter.number("num_ranks", default=1)
    task = 0 if task is None and tasks == 1 else task
    if task is None or not 0 <= task < tasks:
        asked = "none was chosen" if task is None else f"{task} was asked for"
        raise ConfigError(
            f"{adapter.where!s} holds the prompts of {tasks} tasks, 0 to {tasks - 1}, but {asked}."
        )
    factors = (
        adapter.array(_COLUMNS, (tasks, rows, ranks))[task]
        @ adapter.array(_ROWS, (tasks, ranks, width))[task]
    )
    details: dict[str, Any] = {"task_id": task}
    if rows > length:
        details["note"] = _NOTE
        warnings.warn(f"{adapter.where!s}: {_NOTE}", stacklevel=3)
    return (adapter.array(EMBEDDINGS, (rows, width)) * factors)[:length], details


def _sizes(adapter: Adapter) -> tuple[int, int, int]:
    """Returns P, the number of rows that are stored, and D."""
    length, submodules = adapter.number("num_virtual_tokens"), adapter.submodules
    tensor = adapter.tensors[EMBEDDINGS]
    if len(tensor.shape) != 2 or tensor.shape[0] not in (length, submodules * length):
        raise CheckpointError(
            f"{tensor.where} has shape {tensor.shape}, but num_virtual_tokens is {length} and "
            f"num_transformer_submodules {submodules}: expected ({submodules * length}, width)."
        )
    return length, tensor.shape[0], adapter.number("token_dim", default=tensor.shape[1])


def write_prompt(
    vectors: Float[np.ndarray, "P D"],
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Returns the settings and tensors of a PROMPT_TUNING without rows that are never used."""
    length, width = vectors.shape
    return {
        "peft_type": "PROMPT_TUNING",
        "num_transformer_submodules": 1,
        "num_virtual_tokens": length,
        "prompt_tuning_init": "RANDOM",
        "prompt_tuning_init_text": None,
        "token_dim": width,
        "tokenizer_name_or_path": None,
    }, {EMBEDDINGS: np.ascontiguousarray(vectors, np.float32)}
