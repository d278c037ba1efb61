"""Our own file of a model: safetensors with the architecture as metadata, in a quarter if wanted.

Arrays lie under our parameter names, all layers of a stack in one. In int8 an array is
`integers * scale`, both in the file. A kernel has a scale for each output, as `model.quantization`
has it, and `quantization='int8'` changes nothing of such a file. The token table has a scale for
each row. Norms and relative positions, which are small, stay float32.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from prompt_tuning.checkpoints import packed
from prompt_tuning.checkpoints.containers.json_file import parse_json, shown
from prompt_tuning.checkpoints.containers.safetensors_file import (
    SafetensorsFile,
    open_safetensors,
    write_safetensors,
)
from prompt_tuning.checkpoints.containers.stored import Stored, total_bytes
from prompt_tuning.checkpoints.contents import SHAPE_FIELDS, Contents, contents
from prompt_tuning.checkpoints.saving import check_parameters, dtype_named
from prompt_tuning.checkpoints.t5x_layers import MOST_LAYERS
from prompt_tuning.errors import CheckpointError
from prompt_tuning.model import T5Config, parameters
from prompt_tuning.model.layers import ACTIVATIONS

SUFFIX = ".safetensors"
# What else T5Config has is the choice of a run.
ARCHITECTURE = (*SHAPE_FIELDS, "mlp_activations", "relative_max_distance")

_MODEL = "prompt-tuning model"
_FORMAT = f"{_MODEL} 1"
_LAYER = re.compile(r"(encoder|decoder)/layers_(\d+)/(.+)")


def looks_like_model_file(path: epath.Path) -> bool:
    """Whether a file is one that `save_model_file` wrote, of whatever version."""
    if path.suffix != SUFFIX or not path.exists() or path.is_dir():
        return False
    return open_safetensors(path).metadata.get("format", "").startswith(_MODEL)


def open_model_file(where: epath.Path) -> Contents:
    """Opens a file; names and shapes are read. What is int8 there is float32 here.

    Raises:
        CheckpointError: it is damaged, incomplete, of a later version, or contradicts itself.
    """
    file = open_safetensors(where)
    metadata = file.metadata
    if metadata.get("format") != _FORMAT:
        raise CheckpointError(
            f"{where!s} is not a model file of this version: its metadata says format "
            f"{shown(metadata.get('format'))}, expected {_FORMAT!r}. Read it with the version of "
            "this program that wrote it."
        )
    arrays = packed.unpack(file.tensors)
    return contents(
        kind="safetensors",
        where=where,
        tensors=_one_per_layer(arrays, where),
        step=_step(metadata, where),
        settings=_architecture(metadata, where),
        digest=metadata.get("hash"),
        stored_as=_about(file) if len(arrays) < len(file.tensors) else None,
    )


def _about(file: SafetensorsFile) -> str:
    return f"{packed.INT8} with scales, {total_bytes(file.tensors.values()):,} bytes"


def _one_per_layer(arrays: Mapping[str, Stored], where: epath.Path) -> dict[str, Stored]:
    """Returns the arrays under t5x's names, as every reader does."""
    found = {}
    for name, one in arrays.items():
        stack, stacked, rest = name.partition("/layers/")
        if _LAYER.fullmatch(name) or (stacked and not 0 < (one.shape or (0,))[0] <= MOST_LAYERS):
            raise CheckpointError(
                f"{where!s}: {name!r} has shape {one.shape}; expected all layers of a stack, at "
                f"most {MOST_LAYERS}, in one array."
            )
        if stacked:
            found |= {f"{stack}/layers_{i}/{rest}": one.layer(i) for i in range(one.shape[0])}
        else:
            found[name] = one
    return found


def _step(metadata: Mapping[str, str], where: epath.Path) -> int | None:
    text = metadata.get("step")
    if text is not None and not re.fullmatch(r"[0-9]{1,18}", text):
        raise CheckpointError(
            f"The metadata 'step' of {where!s} is {shown(text)}, expected a whole number."
        )
    return None if text is None else int(text)


def _architecture(metadata: Mapping[str, str], where: epath.Path) -> dict[str, Any]:
    found = parse_json(metadata.get("config", "{}").encode(), f"The metadata 'config' of {where!s}")
    parameters.check_names(
        found=found, wanted=ARCHITECTURE, where=f"the metadata 'config' of {where!s}"
    )
    for name, value in found.items():
        if name == "mlp_activations":
            fits = isinstance(value, list) and all(
                isinstance(one, str) and one in ACTIVATIONS for one in value
            )
        else:
            fits = type(value) is (bool if name == "tied_logits" else int)
        if not fits:
            raise CheckpointError(
                f"The metadata 'config' of {where!s} says {name} is {shown(value)}, which is no "
                "value of it."
            )
    return found | {"mlp_activations": tuple(found["mlp_activations"])}


def save_model_file(
    tensors: Mapping[str, Stored],
    config: T5Config,
    step: int | None,
    path: epath.Path,
    *,
    dtype: str | None = None,
) -> None:
    """Writes a file; the same model in the same `dtype` gives the same bytes on every machine.

    All arrays are read twice: the header, which comes first, has the hash of their values.

    Args:
        tensors: the base parameters under t5x's names, one array a layer; read one by one.
        config: their architecture.
        step: noted in the metadata.
        path: a file that is not there yet.
        dtype: `float32`, `bfloat16` or `int8`; None keeps the dtype of every array.

    Raises:
        CheckpointError: the path exists, the arrays are not those of `config`, or are not finite
            and int8 is wanted.
        ConfigError: a wrong dtype.
    """
    to = np.dtype(np.float32) if dtype == packed.INT8 else dtype_named(dtype)
    check_parameters(tensors, config)
    dtypes = _dtypes(tensors)
    layers: dict[str, Stored] = {}
    digest = parameters.Fingerprint()
    for name, one in tensors.items():
        one = one.cast(to or dtypes[_our_name(name)])
        values = one.load()
        if dtype == packed.INT8 and packed.has_scales(name):
            scale = packed.scales(values, name)
            kept = packed.settled(scale)
            values = packed.values_of(packed.rounded(values, scale, name), kept, name)
            layers[f"{name}{packed.SCALE}"] = Stored.of(kept, f"the scales of {one.where}")
            one = packed.pack(one, scale, name)
        layers[name] = one
        digest.add(name, values)
    metadata = {
        "format": _FORMAT,
        "config": json.dumps({field: getattr(config, field) for field in ARCHITECTURE}),
        "hash": digest.hexdigest(),
        **({} if step is None else {"step": str(step)}),
    }
    write_safetensors(path, _stacked(layers), metadata)


def _dtypes(tensors: Mapping[str, Stored]) -> dict[str, np.dtype]:
    """Returns the dtype that holds the numbers of all layers of a stack, by our name."""
    found: dict[str, np.dtype] = {}
    for name, one in tensors.items():
        ours = _our_name(name)
        found[ours] = np.promote_types(found.get(ours, one.dtype), one.dtype)
    return found


def _stacked(layers: Mapping[str, Stored]) -> dict[str, Stored]:
    """Returns the arrays under our names: those of all layers of a stack are one."""
    found: dict[str, dict[int, Stored]] = {}
    for name, one in layers.items():
        match = _LAYER.fullmatch(name)
        found.setdefault(_our_name(name), {})[int(match[2]) if match else 0] = one
    return {
        name: Stored.stack([of[i] for i in sorted(of)]) if "/layers/" in name else of[0]
        for name, of in found.items()
    }


def _our_name(name: str) -> str:
    return _LAYER.sub(r"\1/layers/\3", name)
