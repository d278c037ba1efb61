"""Folders of Hugging Face's transformers: T5 1.0, T5 1.1, LM-adapted T5, mT5 and ByT5.

Whether a model reads its logits off the embedding table is decided by the tensors, whether it
scales them by `config.json`. Our `tied_logits` is both at once, as in T5 1.0. The other two are
turned into a head of its own: a table that is tied but not scaled becomes the head once more, and a
head that is scaled takes the factor D**-0.5 into its numbers, in float32 at least.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from prompt_tuning.checkpoints import hugging_face_weights, mapping
from prompt_tuning.checkpoints.containers import storage
from prompt_tuning.checkpoints.containers.json_file import read_json
from prompt_tuning.checkpoints.containers.safetensors_file import SafetensorsFile
from prompt_tuning.checkpoints.containers.stored import Stored
from prompt_tuning.checkpoints.contents import Contents, contents, widest_dtype
from prompt_tuning.checkpoints.hugging_face_config import (
    TOKENS,
    read_settings,
    scales_output,
    written_config,
)
from prompt_tuning.checkpoints.saving import check_parameters, dtype_named
from prompt_tuning.errors import CheckpointError, ConfigError
from prompt_tuning.model import T5Config

CONFIG = "config.json"
_SHARED = "shared.weight"
_COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
_HEAD = "lm_head.weight"
# Old versions made a table for cross-attention and never used it.
_UNUSED = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
# Bytes of a tensor that are compared at a time.
_BLOCK = 64_000_000


def looks_like_hugging_face(path: epath.Path) -> bool:
    """Whether a folder holds weights under Hugging Face's names, or their `config.json`."""
    return any((path / name).exists() for name in (CONFIG, *hugging_face_weights.FILES))


def open_hugging_face(where: epath.Path) -> Contents:
    """Opens a folder with `config.json` and weights as safetensors or `pytorch_model.bin`.

    Names, shapes and the configuration are read, and as much of the embedding table as it takes to
    see whether its copies are equal.

    Raises:
        CheckpointError: it is incomplete, damaged, of another architecture, contradicts itself, or
            is read differently by the versions of transformers.
    """
    config = read_json(where / CONFIG)
    settings = read_settings(config, str(where / CONFIG))
    files = hugging_face_weights.open_weights(where)
    tensors = {name: one for file in files for name, one in file.tensors.items()}
    tensors.pop(_UNUSED, None)
    _merge_copies(tensors, where)
    _decide_head(tensors, config, where)
    return contents(
        kind="huggingface",
        where=where,
        tensors=mapping.to_t5x_names(tensors, source="hugging_face", where=str(where)),
        step=_step(files, where),
        column="hugging_face",
        settings=settings,
    )


def _merge_copies(tensors: dict[str, Stored], where: epath.Path) -> None:
    """Leaves one of the names under which the embedding table is stored."""
    for name in _COPIES:
        copy = tensors.pop(name, None)
        if copy is None:
            continue
        if not _equal(tensors.setdefault(_SHARED, copy), copy):
            raise CheckpointError(
                f"{where!s}: {name!r} differs from {tensors[_SHARED].where}. Every T5 has one "
                "table for both stacks."
            )


def _decide_head(tensors: dict[str, Stored], config: Mapping[str, Any], where: epath.Path) -> None:
    """Leaves an `lm_head.weight` that needs no scaling, or none for a tied and scaled model."""
    if _SHARED not in tensors:
        return  # `contents` says what is missing.
    table, head = tensors[_SHARED], tensors.pop(_HEAD, None)
    same = head is None or _equal(table, head)
    scaled = scales_output(config, str(where / CONFIG), head=head is not None, same=same)
    if head is not None and not same:
        tensors[_HEAD] = _scaled(head) if scaled else head
    elif not scaled:
        tensors[_HEAD] = table


def _equal(one: Stored, other: Stored) -> bool:
    """Compares bits until the first that differs, a few rows at a time."""
    if one is other:
        return True
    if one.shape != other.shape or one.dtype != other.dtype or not one.shape:
        return False
    rows = max(1, _BLOCK * one.shape[0] // max(one.nbytes, 1))
    rest = (slice(None),) * (len(one.shape) - 1)
    blocks = ((slice(i, i + rows), *rest) for i in range(0, one.shape[0], rows))
    return all(one[block].tobytes() == other[block].tobytes() for block in blocks)


def _scaled(head: Stored) -> Stored:
    """Returns a head `[V, D]` with the scaling of the decoder's output in it."""
    dtype = np.dtype("float64" if head.dtype == np.float64 else "float32")
    factor = dtype.type(head.shape[-1] ** -0.5)
    return dataclasses.replace(
        head, dtype=dtype, read=lambda index: head.read(index).astype(dtype) * factor
    )


def _step(files: list[SafetensorsFile], where: epath.Path) -> int | None:
    """Returns the step that our own export noted; nobody else does."""
    steps = hugging_face_weights.steps(files)
    if len(steps) > 1:
        shown = sorted(str(step)[:20] for step in steps)
        raise CheckpointError(f"The files of {where!s} are of different steps, {shown}.")
    step = steps.pop() or ""
    return int(step) if step.isdecimal() and len(step) < 16 else None


def save_hugging_face(
    tensors: Mapping[str, Stored],
    config: T5Config,
    step: int | None,
    path: epath.Path,
    *,
    dtype: str | None = None,
    shard_bytes: int = 5_000_000_000,
    family: str | None = None,
) -> None:
    """Writes a folder that transformers 4 and 5 load as the same model.

    The tokenizer is not in it; put that of the base model beside it.

    Args:
        tensors: the base parameters under t5x's names, one array a layer; read one by one.
        config: their architecture.
        step: noted in the weights' metadata.
        path: a folder that is not there yet.
        dtype: `float32` or `bfloat16` to cast to; None keeps every array as it is stored.
        shard_bytes: a file is not larger, unless one tensor is.
        family: `t5`, the default, or `mt5`.

    Raises:
        CheckpointError: the path exists, or Hugging Face cannot represent the model.
        ConfigError: a wrong option.
    """
    to = dtype_named(dtype)
    if shard_bytes < 1:
        raise ConfigError(f"shard_bytes is {shard_bytes}, expected a positive number.")
    theirs = _to_hugging_face(tensors, config)
    if to is not None:
        theirs = {name: one.cast(to) for name, one in theirs.items()}
    kept = widest_dtype(theirs).name
    written = written_config(config, family=family or "t5", dtype=kept)
    metadata = {"format": "pt"} | ({} if step is None else {"step": str(step)})
    with storage.new_folder(path) as folder:
        index = hugging_face_weights.write_weights(
            folder, theirs, metadata, shard_bytes=shard_bytes
        )
        if index is not None:
            _write_json(folder / hugging_face_weights.INDEX, index)
        _write_json(folder / CONFIG, written)
        _write_json(folder / "generation_config.json", TOKENS)


def _to_hugging_face(tensors: Mapping[str, Stored], config: T5Config) -> dict[str, Stored]:
    """Renames and turns the arrays, in the order of their new names."""
    strangers = [
        name
        for name in tensors
        if mapping.translated(name, source="t5x", target="hugging_face") is None
    ]
    if strangers:
        raise CheckpointError(
            f"A folder of Hugging Face holds a T5 and nothing else, these arrays have no place in "
            f"it: {', '.join(strangers[:5])}. Save a prompt as an adapter of PEFT."
        )
    check_parameters(tensors, config)
    theirs = {}
    for name, one in tensors.items():
        there, rule = mapping.translated(name, source="t5x", target="hugging_face")  # pyright: ignore[reportGeneralTypeIssues]
        theirs[there] = one.transposed() if rule.transposed else one
    return dict(sorted(theirs.items()))


def _write_json(path: epath.Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
