"""The folder of a PEFT adapter, opened: what its configuration says, and tensors not yet read."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from etils import epath

from prompt_tuning.checkpoints.containers.json_file import read_json
from prompt_tuning.checkpoints.containers.safetensors_file import open_safetensors
from prompt_tuning.checkpoints.containers.stored import Stored
from prompt_tuning.checkpoints.containers.torch_file import open_torch
from prompt_tuning.checkpoints.prompt_file import as_float32
from prompt_tuning.errors import CheckpointError, nearest

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
EMBEDDINGS = "prompt_embeddings"
SEQ_2_SEQ_LM = "SEQ_2_SEQ_LM"
# Files of weights, the newer kind first.
_READERS: dict[str, Callable[[epath.Path], Mapping[str, Stored]]] = {
    WEIGHTS: lambda path: open_safetensors(path).tensors,
    "adapter_model.bin": open_torch,
}

_COMMON = (
    *("auto_mapping", "base_model_name_or_path", "exclude_modules", "inference_mode"),
    *("modules_to_save", "peft_type", "peft_version", "revision", "task_type"),
)
_LEARNED_TOKENS = (
    *("num_attention_heads", "num_layers", "num_transformer_submodules", "num_virtual_tokens"),
    "token_dim",
)
_PROMPT_TUNING = (
    *("prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_kwargs"),
    "tokenizer_name_or_path",
)
# The keys that a configuration of each type has.
_KEYS = {
    "PROMPT_TUNING": (*_LEARNED_TOKENS, *_PROMPT_TUNING),
    "P_TUNING": (
        *(*_LEARNED_TOKENS, "encoder_dropout", "encoder_hidden_size", "encoder_num_layers"),
        "encoder_reparameterization_type",
    ),
    "MULTITASK_PROMPT_TUNING": (
        *(*_LEARNED_TOKENS, *_PROMPT_TUNING, "num_ranks", "num_tasks"),
        *("prompt_tuning_init_state_dict_path", "prompt_tuning_init_task"),
    ),
    "PREFIX_TUNING": (
        *(*_LEARNED_TOKENS, "encoder_hidden_size", "init_weights", "prefix_projection"),
    ),
    "IA3": (*("fan_in_fan_out", "feedforward_modules", "init_ia3_weights", "target_modules"),),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adapter:
    """An opened adapter.

    Attributes:
        where: its folder.
        config: what `adapter_config.json` says.
        tensors: by PEFT's names.
    """

    where: epath.Path
    config: Mapping[str, Any]
    tensors: Mapping[str, Stored]

    @property
    def kind(self) -> str:
        return self.config["peft_type"]

    def check_names(self, *wanted: str) -> None:
        """Raises CheckpointError if there are other tensors than these."""
        found = self.tensors
        missing, surplus = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
        if missing or surplus:
            lines = [f"missing {name!r}.{nearest(name, surplus)}" for name in missing]
            lines += [
                f"left over {name[:80]!r}.{nearest(name[:80], missing)}" for name in surplus[:5]
            ]
            raise CheckpointError(
                f"The tensors of {self.where!s} are not those of {self.kind}.\n  "
                + "\n  ".join(lines)
            )

    def array(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """Reads a tensor of the right shape in float32."""
        tensor = self.tensors[name]
        if tensor.shape != shape:
            raise CheckpointError(
                f"{tensor.where} has shape {tensor.shape}, expected {shape} by {CONFIG}."
            )
        return as_float32(tensor.load(), tensor.where)

    def number(self, key: str, *, default: int | None = None) -> int:
        """Returns a number of 1 or more from the configuration."""
        found = self.config.get(key)
        found = default if found is None else found
        if type(found) is not int or not 1 <= found < 2**31:
            raise CheckpointError(
                f"{key} in {self.where / CONFIG!s} is {str(found)[:80]!r}, expected a whole number "
                "of 1 or more."
            )
        return found

    def text(self, key: str) -> str | None:
        """Returns a text from the configuration, None if there is none."""
        found = self.config.get(key)
        # JSON can hold halves of characters, which no file that is written later can.
        return found.encode(errors="replace").decode()[:1000] if isinstance(found, str) else None

    @property
    def submodules(self) -> int:
        """For how many stacks PEFT made vectors: both of a T5 unless told otherwise."""
        found = self.number("num_transformer_submodules", default=2)
        if found > 2:
            raise CheckpointError(
                f"num_transformer_submodules in {self.where / CONFIG!s} is {found}, a T5 has 2."
            )
        return found


def open_adapter(path: epath.Path) -> Adapter:
    """Opens an adapter of one of the types in `_KEYS`.

    Raises:
        CheckpointError: incomplete, of another type, or with settings that are not known.
    """
    config = read_json(path / CONFIG)
    kind = config.get("peft_type")
    if not isinstance(kind, str) or kind not in _KEYS:
        raise CheckpointError(
            f"{path / CONFIG!s} is an adapter of type {str(kind)[:40]!r}. Those that can be "
            f"represented here are {', '.join(_KEYS)}.{nearest(str(kind)[:40], _KEYS)}"
        )
    _check_settings(path / CONFIG, kind, config)
    for name, read in _READERS.items():
        if (path / name).exists():
            return Adapter(where=path, config=config, tensors=read(path / name))
    raise CheckpointError(
        f"{path!s} has {CONFIG}, but none of {', '.join(_READERS)}. The adapter is incomplete."
    )


def _check_settings(where: epath.Path, kind: str, config: Mapping[str, Any]) -> None:
    task_type = config.get("task_type")
    if task_type != SEQ_2_SEQ_LM and not (task_type is None and kind == "IA3"):
        raise CheckpointError(
            f"task_type in {where!s} is {str(task_type)[:40]!r}, expected {SEQ_2_SEQ_LM!r}, which "
            "is what a T5 is."
        )
    for key in ("modules_to_save", "exclude_modules"):
        if config.get(key):
            raise CheckpointError(
                f"{key} in {where!s} is {str(config[key])[:80]!r}. An adapter that replaces parts "
                "of the model, or leaves some out, cannot be represented here."
            )
    known = (*_COMMON, *_KEYS[kind])
    for key, value in config.items():
        # What newer versions of PEFT add is harmless as long as it is off.
        if key not in known and value not in (None, False, "", [], {}):
            raise CheckpointError(
                f"{where!s} sets {key[:80]!r} to {str(value)[:80]!r}, which is no known setting "
                f"of {kind} and may change what it does.{nearest(key[:80], known)}"
            )
