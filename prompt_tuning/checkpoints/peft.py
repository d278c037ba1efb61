"""Adapters of Hugging Face's PEFT on a T5.

PROMPT_TUNING, P_TUNING and MULTITASK_PROMPT_TUNING are prompts here, PREFIX_TUNING is a prefix of
keys and values in the decoder's self-attention, IA3 is scales.
"""

import json
from typing import Any

import numpy as np
from etils import epath

from prompt_tuning.checkpoints import peft_card
from prompt_tuning.checkpoints.containers import safetensors_file, storage
from prompt_tuning.checkpoints.containers.stored import Stored
from prompt_tuning.checkpoints.mapping import PROMPT
from prompt_tuning.checkpoints.methods import place
from prompt_tuning.checkpoints.peft_adapter import (
    CONFIG,
    SEQ_2_SEQ_LM,
    WEIGHTS,
    Adapter,
    open_adapter,
)
from prompt_tuning.checkpoints.peft_prefix import read_prefix, write_prefix
from prompt_tuning.checkpoints.peft_prompts import read_multitask, read_prompt, write_prompt
from prompt_tuning.checkpoints.peft_scales import read_scales, write_scales
from prompt_tuning.checkpoints.prompt_file import PromptFile, refuse_task
from prompt_tuning.errors import CheckpointError
from prompt_tuning.model import T5Config
from prompt_tuning.prompts import prefix


def looks_like_peft(path: epath.Path) -> bool:
    """Whether a folder holds an adapter, complete or not."""
    return (path / CONFIG).exists()


def open_peft(path: epath.PathLike, *, task: int | None = None) -> PromptFile:
    """Reads an adapter. PEFT does not say over which weights it was trained: `base` is None.

    IA3 comes with heads joined, as PEFT stores it; `methods.attach` and `methods.fitted` part them.

    Args:
        path: the adapter's folder.
        task: which task's prompt of a MULTITASK_PROMPT_TUNING.

    Raises:
        CheckpointError: damaged, contradictory, or something that cannot be represented here.
        ConfigError: a task is needed, out of range, or given where there are none.
    """
    adapter = open_adapter(epath.Path(path))
    arrays, details = _read(adapter, task)
    version = adapter.text("peft_version")
    return PromptFile(
        arrays=arrays,
        base_name=adapter.text("base_model_name_or_path"),
        details={"peft_type": adapter.kind, "peft_version": version, **details},
    )


def _read(adapter: Adapter, task: int | None) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    if adapter.kind == "MULTITASK_PROMPT_TUNING":
        vectors, details = read_multitask(adapter, task)
        return {PROMPT: vectors}, details
    refuse_task(task, adapter.where)
    if adapter.kind == "PREFIX_TUNING":
        return read_prefix(adapter), {}
    if adapter.kind == "IA3":
        return read_scales(adapter), {}
    vectors, details = read_prompt(adapter)
    return {PROMPT: vectors}, details


def save_peft(
    file: PromptFile,
    path: epath.PathLike,
    *,
    base_name: str | None = None,
    config: T5Config | None = None,
) -> None:
    """Writes an adapter that PEFT loads, with a card that says where it belongs.

    A prompt becomes PROMPT_TUNING with num_transformer_submodules 1, which does what our prompts
    do and has no row that is never used. Settings that only new versions know are left out.

    Args:
        file: what was learned.
        path: the folder to make.
        base_name: name or folder of the base model; that of the file if not given.
        config: of the base model, to note its depth and heads; PEFT finds them itself if not given.

    Raises:
        CheckpointError: there is something at `path` already, a prompt that does not go in front of
            the text, or a prefix of which layers do not share what they share in PEFT.
    """
    if file.method == "prompt" and place(file) is not prefix:
        raise CheckpointError(
            f"The prompt goes to {file.details['combine']!r}; PEFT puts every prompt in front of "
            "the text, where this one was not trained to be."
        )
    settings, tensors = _written(file)
    name = base_name or file.base_name
    adapter = {
        "auto_mapping": None,
        "base_model_name_or_path": name,
        "inference_mode": True,
        "revision": None,
        "task_type": SEQ_2_SEQ_LM,
        **settings,
    }
    if config is not None and file.method == "prompt":
        adapter |= {"num_attention_heads": config.num_heads, "num_layers": config.encoder_layers}
    with storage.new_folder(epath.Path(path)) as folder:
        stored = {key: Stored.of(array, key) for key, array in tensors.items()}
        # transformers insists on this note of the format in files of weights.
        safetensors_file.write_into(folder / WEIGHTS, stored, {"format": "pt"})
        (folder / CONFIG).write_text(json.dumps(adapter, indent=2, sort_keys=True) + "\n")
        (folder / peft_card.README).write_text(peft_card.readme(file, name))
        (folder / peft_card.PROVENANCE).write_text(peft_card.provenance(file, name))


def _written(file: PromptFile) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    if file.method == "prefix":
        return write_prefix(file.arrays)
    if file.method == "ia3":
        return write_scales(file.arrays)
    return write_prompt(file.vectors)
