"""IA3 of Hugging Face's PEFT: one tensor for each projection whose input or output is scaled."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from prompt_tuning.checkpoints import mapping
from prompt_tuning.checkpoints.peft_adapter import CONFIG, Adapter
from prompt_tuning.checkpoints.prompt_file import as_float32
from prompt_tuning.errors import CheckpointError, nearest

# From the projection in Hugging Face's names to the scaled thing in ours: the kernel in t5x's
# names, the parameter, and whether the input is scaled (PEFT's "feedforward") or the output.
# The hidden features of an MLP are the input of `wo`. In a gated MLP they are the product of two
# branches, so that scaling the linear one, as PEFT does to an mT5, is the same.
SCALED = {
    "k": ("key/kernel", "k_conv/ia3_scaling", False),
    "v": ("value/kernel", "v_conv/ia3_scaling", False),
    "wo": ("wo/kernel", "intermediate_conv/ia3_scaling", True),
    "wi_1": ("wi_1/kernel", "intermediate_conv/ia3_scaling", False),
}
# What PEFT takes for a T5 if nothing is said, and what we write.
_TARGETS = ("k", "v", "wo")
_FEEDFORWARD = "feedforward_modules"
_NAME = re.compile(
    r"base_model\.model\.(?P<module>\w+\.block\.\d{1,4}\.layer\.\d\.\w+\.(?P<last>\w+))\.ia3_l"
)


def read_scales(adapter: Adapter) -> dict[str, np.ndarray]:
    """Returns factors under our names, with heads joined: [L, N * H], and [L, F] of MLPs.

    The tensors decide; the lists of the configuration have to agree with them.

    Raises:
        CheckpointError: something else is scaled, or a layer is missing.
    """
    where = adapter.where
    targets, feedforward = _modules(adapter, "target_modules"), _modules(adapter, _FEEDFORWARD)
    found: dict[str, np.ndarray] = {}
    for name, tensor in adapter.tensors.items():
        module, last, place = _place(name, str(where))
        scales_input = SCALED[last][2]
        if targets is not None and not _named(module, targets):
            raise CheckpointError(
                f"{tensor.where} scales {module!r}, which is not among target_modules {targets}."
            )
        if feedforward is not None and _named(module, feedforward) != scales_input:
            raise CheckpointError(
                f"{where!s} scales the {'output' if scales_input else 'input'} of {last!r}. Only "
                "the outputs of k, v and wi_1 and the input of wo can be scaled here."
            )
        size = max(tensor.shape, default=0)
        if tensor.shape != ((1, size) if scales_input else (size, 1)):
            raise CheckpointError(
                f"{tensor.where} has shape {tensor.shape}, expected "
                f"{'(1, features)' if scales_input else '(features, 1)'}."
            )
        if place in found:
            raise CheckpointError(
                f"{where!s} scales the MLP of {module!r} in two places (wo and wi_1)."
            )
        found[place] = as_float32(tensor.load(), tensor.where).reshape(-1)
    if not found:
        raise CheckpointError(f"{where!s} is IA3 without any scales.")
    return mapping.from_t5x(found)


def write_scales(
    arrays: Mapping[str, np.ndarray],
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Returns the settings and tensors of an IA3 with the targets that PEFT has for a T5."""
    theirs = {}
    for name, array in mapping.to_t5x({name: np.asarray(a) for name, a in arrays.items()}).items():
        [last] = [key for key in _TARGETS if name.endswith(SCALED[key][1])]
        kernel, ending, scales_input = SCALED[last]
        translated = mapping.translated(
            name.removesuffix(ending) + kernel, source="t5x", target="hugging_face"
        )
        assert translated is not None
        module = translated[0].removesuffix(".weight")
        shape = (1, -1) if scales_input else (-1, 1)
        factors = np.ascontiguousarray(array.reshape(shape), np.float32)
        theirs[f"base_model.model.{module}.ia3_l"] = factors
    return {
        "peft_type": "IA3",
        "fan_in_fan_out": False,
        "init_ia3_weights": True,
        "modules_to_save": None,
        "target_modules": list(_TARGETS),
        _FEEDFORWARD: [last for last in _TARGETS if SCALED[last][2]],
    }, theirs


def _place(name: str, where: str) -> tuple[str, str, str]:
    """Returns Hugging Face's module, its last part, and t5x's name of the factors."""
    match = _NAME.fullmatch(name)
    there = match and mapping.translated(
        f"{match['module']}.weight", source="hugging_face", target="t5x"
    )
    if not match or not there or match["last"] not in SCALED:
        example = "base_model.model.encoder.block.0.layer.0.SelfAttention.k.ia3_l"
        raise CheckpointError(
            f"{where} holds {name[:120]!r}, which is none of the scales of an IA3 on T5 (of k, v "
            f"and wo or wi_1, such as {example!r}).{nearest(name[:120], [example])}"
        )
    kernel, ending, _ = SCALED[match["last"]]
    return match["module"], match["last"], there[0].removesuffix(kernel) + ending


def _modules(adapter: Adapter, key: str) -> list[str] | None:
    found = adapter.config.get(key)
    if found is None:
        return None
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise CheckpointError(
            f"{key} in {adapter.where / CONFIG!s} is {str(found)[:80]!r}, expected a list of "
            "names; a pattern is not followed here."
        )
    return found


def _named(module: str, targets: list[str]) -> bool:
    return any(module == one or module.endswith(f".{one}") for one in targets)
