"""`config.json` of Hugging Face's T5 and mT5, read into fields of T5Config and written from one.

Versions 4 and 5 of transformers read the same file differently where the output is concerned.
Version 4 takes `tie_word_embeddings` for two things: whether the logits are read off the embedding
table, and whether the decoder's output is scaled for it. Version 5 writes it as true into every
file, ties only what is equal, and scales a T5 by `scale_decoder_outputs` and an mT5 never.
"""

from collections.abc import Mapping
from typing import Any

from prompt_tuning.checkpoints.containers.json_file import shown
from prompt_tuning.errors import CheckpointError, ConfigError, nearest
from prompt_tuning.model import T5Config
from prompt_tuning.model.layers import NORM_EPSILON

FAMILIES = {"t5": "T5ForConditionalGeneration", "mt5": "MT5ForConditionalGeneration"}
# The ids of every T5's vocabulary; they stand in `generation_config.json` as well.
TOKENS = {"decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
# Relatives whose tensors look alike.
_OTHERS = {
    "umt5": "every layer has a table of relative positions of its own, our layers share the first's"
}

# Their field, ours, and a bound that no T5 comes near.
# fmt: off
_SIZES = (
    ("vocab_size",                      "vocab_size",            2**28),
    ("d_model",                         "embed_dim",             2**20),
    ("d_ff",                            "mlp_dim",               2**24),
    ("num_heads",                       "num_heads",             2**16),
    ("d_kv",                            "head_dim",              2**16),
    ("num_layers",                      "encoder_layers",        2**12),
    ("num_decoder_layers",              "decoder_layers",        2**12),
    ("relative_attention_num_buckets",  "relative_buckets",      2**16),
    ("relative_attention_max_distance", "relative_max_distance", 2**24),
)
# fmt: on

# Their name of an activation and ours. Ours of "gelu" is the approximation by tanh; theirs of that
# name is exact, except in "gated-gelu", where they mean the approximation as well.
_ACTIVATIONS = {
    "gelu_new": "gelu",
    "gelu_pytorch_tanh": "gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "linear": "linear",
}
_USUAL_MLP = {"t5": "relu", "mt5": "gated-gelu"}


def read_settings(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Returns the fields of T5Config that a `config.json` states.

    Raises:
        CheckpointError: another architecture, something our T5 cannot compute, or a value of the
            wrong type.
    """
    family = _family(config, where)
    epsilon = config.get("layer_norm_epsilon", NORM_EPSILON)
    if type(epsilon) is not float or epsilon != NORM_EPSILON:
        raise CheckpointError(
            f"{where} says layer_norm_epsilon is {shown(epsilon)}; every T5 has {NORM_EPSILON}, "
            "and our norms compute with no other."
        )
    if "quantization_config" in config:
        raise CheckpointError(
            f"{where} has a quantization_config; its tensors are not the weights. Use the "
            "checkpoint that is not quantized."
        )
    settings: dict[str, Any] = {
        ours: _size(config[theirs], theirs, limit, where)
        for theirs, ours, limit in _SIZES
        if config.get(theirs) is not None
    }
    if "encoder_layers" in settings:
        settings.setdefault("decoder_layers", settings["encoder_layers"])
    distance, buckets = settings.get("relative_max_distance"), settings.get("relative_buckets")
    if distance and buckets and distance <= buckets // 2:
        raise CheckpointError(
            f"{where} says relative_attention_max_distance is {distance}, expected more than half "
            f"of relative_attention_num_buckets, {buckets}."
        )
    settings["mlp_activations"] = _activations(config, family, where)
    return settings


def _family(config: Mapping[str, Any], where: str) -> str:
    family = config.get("model_type")
    if isinstance(family, str) and family in FAMILIES:
        return family
    known = " or ".join(FAMILIES)
    if isinstance(family, str) and family in _OTHERS:
        raise CheckpointError(f"{where} is of a {family}, expected {known}: {_OTHERS[family]}.")
    hint = nearest(family, FAMILIES) if isinstance(family, str) else ""
    raise CheckpointError(
        f"{where} says model_type is {shown(family)}, expected {known}; T5 1.1, LM-adapted T5 and "
        f"ByT5 are of type t5.{hint}"
    )


def _size(value: Any, field: str, limit: int, where: str) -> int:
    if type(value) is not int or not 1 <= value <= limit:
        raise CheckpointError(
            f"{where} says {field} is {shown(value)}, expected a whole number from 1 to {limit}."
        )
    return value


def _activations(config: Mapping[str, Any], family: str, where: str) -> tuple[str, ...]:
    """Reads the MLP as transformers does: `dense_act_fn`, if it is there, has the last word."""
    projection = config.get("feed_forward_proj", _USUAL_MLP[family])
    if not isinstance(projection, str):
        raise CheckpointError(f"{where} says feed_forward_proj is {shown(projection)}, no text.")
    gate, _, last = projection.rpartition("-")
    name = config.get("dense_act_fn", "gelu_new" if projection == "gated-gelu" else last)
    gated = config.get("is_gated_act", gate == "gated")
    if type(gated) is not bool or gate not in ("", "gated"):
        raise CheckpointError(
            f"{where} says feed_forward_proj is {shown(projection)} and is_gated_act is "
            f"{shown(gated)}; expected an activation, or 'gated-' and one."
        )
    if not isinstance(name, str) or name not in _ACTIVATIONS:
        exact = " 'gelu' is the exact one, T5's is its approximation by tanh." * (name == "gelu")
        raise CheckpointError(
            f"{where} says the activation of its MLPs is {shown(name)}, ours are "
            f"{', '.join(_ACTIVATIONS)}.{exact}"
        )
    return (_ACTIVATIONS[name], "linear") if gated else (_ACTIVATIONS[name],)


def scales_output(config: Mapping[str, Any], where: str, *, head: bool, same: bool) -> bool:
    """Tells whether the decoder's output is scaled by D**-0.5 before the logits.

    Args:
        config: of `config.json`.
        where: the file, for messages.
        head: whether there is an `lm_head.weight`.
        same: whether that is the embedding table once more, or missing.

    Raises:
        CheckpointError: the tensors contradict the file, or two versions of transformers would
            compute different logits.
    """
    family = _family(config, where)
    for field in ("tie_word_embeddings", "scale_decoder_outputs"):
        if type(config.get(field, False)) is not bool:
            raise CheckpointError(
                f"{where} says {field} is {shown(config[field])}, expected true or false."
            )
    newer = _is_of_version_5(config)
    tied = config.get("tie_word_embeddings", family == "t5" or newer)
    if not tied and not head and "scale_decoder_outputs" not in config:
        raise CheckpointError(
            f"{where} is of a model with untied embeddings (tie_word_embeddings), but there is no "
            "'lm_head.weight'. The checkpoint is incomplete."
        )
    if family == "mt5":
        if tied and not newer:
            raise CheckpointError(
                f"{where} is of an mT5 with tied embeddings: transformers 4 scales its output, "
                "transformers 5 does not. Load it with the version it was trained with and save it "
                "untied."
            )
        return False
    if "scale_decoder_outputs" in config:
        return config["scale_decoder_outputs"]
    if tied and not same:
        raise CheckpointError(
            f"{where} does not say tie_word_embeddings is false, but 'lm_head.weight' differs from "
            "the embedding: transformers 4 leaves it out, transformers 5 uses it. Write "
            '"tie_word_embeddings": false there if it is a T5 1.1, or remove the tensor.'
        )
    return tied


def _is_of_version_5(config: Mapping[str, Any]) -> bool:
    """Whether transformers 5 wrote the file; one that does not say is read as version 5 does."""
    version = str(config.get("transformers_version", "5")).partition(".")[0]
    return not version.isdecimal() or int(version[:9]) >= 5


def written_config(config: T5Config, *, family: str, dtype: str) -> dict[str, Any]:
    """Returns a `config.json` that transformers 4 and 5 read as the same model.

    Args:
        config: of the model.
        family: a key of FAMILIES.
        dtype: of most of the weights.

    Raises:
        CheckpointError: a model that Hugging Face cannot represent.
        ConfigError: an unknown family.
    """
    if family not in FAMILIES:
        raise ConfigError(
            f"Unknown family {family!r}, known are {', '.join(FAMILIES)}."
            f"{nearest(family, FAMILIES)}"
        )
    if family == "mt5" and config.tied_logits:
        raise CheckpointError(
            "An mT5 of Hugging Face never scales its output, this model with tied_logits=True "
            "does. Save it with family='t5'."
        )
    written = {
        "architectures": [FAMILIES[family]],
        "model_type": family,
        "is_encoder_decoder": True,
        **{theirs: getattr(config, ours) for theirs, ours, _ in _SIZES},
        **_written_activations(config.mlp_activations),
        "layer_norm_epsilon": NORM_EPSILON,
        "initializer_factor": 1.0,
        "dropout_rate": config.dropout_rate,
        "dtype": dtype,
        "tie_word_embeddings": config.tied_logits,
        "use_cache": True,
        **TOKENS,
    }
    if family == "t5":
        written["scale_decoder_outputs"] = config.tied_logits
    return written


def _written_activations(activations: tuple[str, ...]) -> dict[str, Any]:
    theirs = {ours: name for name, ours in reversed(_ACTIVATIONS.items())}
    first, *gate = activations
    if gate not in ([], ["linear"]) or first not in theirs:
        raise CheckpointError(
            f"mlp_activations={activations} has no name at Hugging Face, where an MLP has one of "
            f"{', '.join(theirs)}, alone or with 'linear'."
        )
    name = theirs[first]
    short = "gelu" if gate and name == "gelu_new" else name
    return {
        "feed_forward_proj": f"gated-{short}" if gate else name,
        "dense_act_fn": name,
        "is_gated_act": bool(gate),
    }
