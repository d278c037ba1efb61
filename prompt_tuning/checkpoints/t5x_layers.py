"""The parameters of t5x with one array for each layer, and matrices for kernels.

The names that every reader hands out are those of a T5 whose layers are not scanned,
`encoder/layers_3/attention/query/kernel`. Two more ways to store the same are understood:

-   scanned layers, `encoder/encoder/attention/query/kernel` `[D, L, N*H]` (flaxformer's
    t5_architecture.py and t5x's examples/scalable_t5 with `scan_layers`; original: mt5_80b and
    mt5_150b). All parameters of the stack have the layers in dimension 1, norms and biases too.
-   kernels of attention that keep heads apart, `[D, N, H]` and for `out` `[N, H, D]`
    (t5x's examples/scalable_t5, flaxformer's `DenseGeneral` with `reshape_kernel=False`).
"""

import dataclasses
import re
from collections.abc import Mapping

import numpy as np

from prompt_tuning.checkpoints.containers.stored import Index, Stored
from prompt_tuning.errors import CheckpointError

LAYERS_AXIS = 1
# More than any T5 has; a damaged header may say anything.
MOST_LAYERS = 1024
_SCANNED = re.compile(r"(encoder|decoder)/\1/(.+)")
_RELATIVE = re.compile(r"(encoder|decoder)/layers_\d+/relpos_bias/.+")
_KERNEL = re.compile(r".+/(attention|self_attention|encoder_decoder_attention)/(\w+)/kernel")
# The first of the two dimensions that are made one.
_HEADS = {"query": 1, "key": 1, "value": 1, "out": 0}


def one_per_layer(
    tensors: Mapping[str, Stored], slots: Mapping[str, Stored]
) -> tuple[dict[str, Stored], dict[str, Stored]]:
    """Returns parameters and the optimizer's slots, `<parameter>/<slot>`, in one form.

    A slot that is shaped like its parameter is treated as it, and one that stands for none, of
    shape `(1,)`, belongs to every layer. Others keep their name and shape.

    Raises:
        CheckpointError: the stacks are not equally deep, or each layer has its own relative
            positions, where the T5 of this program has one table for all.
    """
    _check_depths(tensors)
    turned = {}
    for name, tensor in tensors.items():
        turned |= _layers(name, "", tensor)
    for name, tensor in turned.items():
        if _RELATIVE.fullmatch(name):
            raise CheckpointError(
                f"{tensor.where} ({name}) is a table of relative positions of one layer. This "
                "program has the T5 that shares one table among all layers of a stack."
            )
    turned_slots = {}
    for name, slot in slots.items():
        parameter, _, kind = name.rpartition("/")
        like = tensors.get(parameter)
        if like is not None and slot.shape == like.shape:
            turned_slots |= _layers(parameter, f"/{kind}", slot)
        elif like is not None and slot.shape == (1,):
            turned_slots |= {f"{one}/{kind}": slot for one in _layers(parameter, "", like)}
        else:
            turned_slots[name] = slot
    return turned, turned_slots


def _check_depths(tensors: Mapping[str, Stored]) -> None:
    depths: dict[str, dict[int, str]] = {}
    for name, tensor in tensors.items():
        if not (match := _SCANNED.fullmatch(name)):
            continue
        if len(tensor.shape) <= LAYERS_AXIS or tensor.shape[LAYERS_AXIS] > MOST_LAYERS:
            raise CheckpointError(
                f"{tensor.where} ({name}) has shape {tensor.shape}; expected the layers of a "
                f"scanned stack, at most {MOST_LAYERS}, in dimension {LAYERS_AXIS}."
            )
        depths.setdefault(match[1], {})[tensor.shape[LAYERS_AXIS]] = tensor.where
    for stack, found in depths.items():
        if len(found) > 1:
            raise CheckpointError(
                f"The scanned layers of the {stack} are {' and '.join(map(str, found))} deep in "
                f"{' and '.join(found.values())}. They do not belong together."
            )


def _layers(name: str, suffix: str, tensor: Stored) -> dict[str, Stored]:
    match = _SCANNED.fullmatch(name)
    if match is None:
        return {f"{name}{suffix}": _matrix(name, tensor)}
    stack, rest = match.groups()
    layers = {
        f"{stack}/layers_{i}/{rest}": tensor.layer(i, axis=LAYERS_AXIS)
        for i in range(tensor.shape[LAYERS_AXIS])
    }
    return {f"{one}{suffix}": _matrix(one, layer) for one, layer in layers.items()}


def _matrix(name: str, tensor: Stored) -> Stored:
    match = _KERNEL.fullmatch(name)
    if match is None or match[2] not in _HEADS or len(tensor.shape) != 3:
        return tensor
    axis = _HEADS[match[2]]
    heads, size = tensor.shape[axis : axis + 2]

    def read(index: Index) -> np.ndarray:
        both = (slice(0, heads), slice(0, size))
        part = tensor.read((*index[:axis], *both, *index[axis + 1 :]))
        joined = part.reshape(*part.shape[:axis], heads * size, *part.shape[axis + 2 :])
        return joined[(slice(None),) * axis + (index[axis],)]

    shape = (*tensor.shape[:axis], heads * size, *tensor.shape[axis + 2 :])
    return dataclasses.replace(tensor, shape=shape, read=read)
