"""Names of the same parameter in other software, as one table.

Every format is read into t5x's names, one array for each layer. Our own names are t5x's with all
layers of a stack in one array (`encoder/layers/...` for `encoder/layers_3/...`), and with the
prompt nested once less.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping

import numpy as np

from prompt_tuning.checkpoints.containers.stored import Stored
from prompt_tuning.errors import CheckpointError, nearest

PROMPT = "encoder/prompt/prompt"
T5X_PROMPT = "encoder/prompt/prompt/prompt"
EMBEDDING = "token_embedder/embedding"


@dataclasses.dataclass(frozen=True)
class Rule:
    """One parameter, or one of every layer, under three names.

    `{i}` is the index of a layer, which Mesh TensorFlow writes with three digits. `transposed` is
    about Hugging Face, whose torch kernels are `[out, in]`; Mesh TensorFlow's arrays are t5x's.
    """

    t5x: str
    hugging_face: str
    mesh_tensorflow: str
    transposed: bool = False


def _attention(t5x: str, hugging_face: str, mesh_tensorflow: str) -> list[Rule]:
    letters = {"query": "q", "key": "k", "value": "v", "out": "o"}
    return [
        Rule(
            f"{t5x}/{name}/kernel",
            f"{hugging_face}.{letter}.weight",
            f"{mesh_tensorflow}/{letter}",
            transposed=True,
        )
        for name, letter in letters.items()
    ]


def _mlp(t5x: str, hugging_face: str, mesh_tensorflow: str) -> list[Rule]:
    return [
        Rule(
            f"{t5x}/{name}/kernel",
            f"{hugging_face}.{name}.weight",
            f"{mesh_tensorflow}/{name}/kernel",
            transposed=True,
        )
        for name in ("wi", "wi_0", "wi_1", "wo")
    ]


# fmt: off
RULES = (
    Rule(EMBEDDING, "shared.weight", "shared/embedding"),
    Rule("decoder/logits_dense/kernel", "lm_head.weight", "decoder/logits/kernel", transposed=True),

    Rule("encoder/relpos_bias/rel_embedding",
         "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
         "encoder/block_000/layer_000/SelfAttention/relative_attention_bias", transposed=True),
    Rule("encoder/layers_{i}/pre_attention_layer_norm/scale",
         "encoder.block.{i}.layer.0.layer_norm.weight",
         "encoder/block_{i}/layer_000/layer_norm/scale"),
    *_attention("encoder/layers_{i}/attention",
                "encoder.block.{i}.layer.0.SelfAttention",
                "encoder/block_{i}/layer_000/SelfAttention"),
    Rule("encoder/layers_{i}/pre_mlp_layer_norm/scale",
         "encoder.block.{i}.layer.1.layer_norm.weight",
         "encoder/block_{i}/layer_001/layer_norm/scale"),
    *_mlp("encoder/layers_{i}/mlp",
          "encoder.block.{i}.layer.1.DenseReluDense",
          "encoder/block_{i}/layer_001/DenseReluDense"),
    Rule("encoder/encoder_norm/scale",
         "encoder.final_layer_norm.weight",
         "encoder/final_layer_norm/scale"),

    Rule("decoder/relpos_bias/rel_embedding",
         "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
         "decoder/block_000/layer_000/SelfAttention/relative_attention_bias", transposed=True),
    Rule("decoder/layers_{i}/pre_self_attention_layer_norm/scale",
         "decoder.block.{i}.layer.0.layer_norm.weight",
         "decoder/block_{i}/layer_000/layer_norm/scale"),
    *_attention("decoder/layers_{i}/self_attention",
                "decoder.block.{i}.layer.0.SelfAttention",
                "decoder/block_{i}/layer_000/SelfAttention"),
    Rule("decoder/layers_{i}/pre_cross_attention_layer_norm/scale",
         "decoder.block.{i}.layer.1.layer_norm.weight",
         "decoder/block_{i}/layer_001/layer_norm/scale"),
    *_attention("decoder/layers_{i}/encoder_decoder_attention",
                "decoder.block.{i}.layer.1.EncDecAttention",
                "decoder/block_{i}/layer_001/EncDecAttention"),
    Rule("decoder/layers_{i}/pre_mlp_layer_norm/scale",
         "decoder.block.{i}.layer.2.layer_norm.weight",
         "decoder/block_{i}/layer_002/layer_norm/scale"),
    *_mlp("decoder/layers_{i}/mlp",
          "decoder.block.{i}.layer.2.DenseReluDense",
          "decoder/block_{i}/layer_002/DenseReluDense"),
    Rule("decoder/decoder_norm/scale",
         "decoder.final_layer_norm.weight",
         "decoder/final_layer_norm/scale"),
)
# fmt: on

_DIGITS = {"t5x": "{}", "hugging_face": "{}", "mesh_tensorflow": "{:03d}"}
# The first number between separators; no model has so many layers that it is longer.
_INDEX = re.compile(r"(?<=[._])\d{1,6}(?=[./])")
_LAYER = re.compile(r"(?P<stack>encoder|decoder)/layers_(?P<index>\d+)/(?P<rest>.+)")


def translated(name: str, *, source: str, target: str) -> tuple[str, Rule] | None:
    """Returns the name of a parameter in another column of the table, and its rule.

    >>> translated("shared.weight", source="hugging_face", target="t5x")[0]
    'token_embedder/embedding'

    Args:
        name: of one parameter, with the index of its layer filled in.
        source: the column that `name` is from: `t5x`, `hugging_face` or `mesh_tensorflow`.
        target: the column to translate to.

    Returns:
        None if no rule has this name.
    """
    if name in _by_name(source):
        rule = _by_name(source)[name]
        return getattr(rule, target), rule
    index = _INDEX.search(name)
    rule = index and _by_name(source).get(f"{name[: index.start()]}{{i}}{name[index.end() :]}")
    # Written as the column writes it: `layers_07` is nobody's layer 7.
    if index and rule and fill(rule, source, int(index[0])) == name:
        return fill(rule, target, int(index[0])), rule
    return None


def fill(rule: Rule, column: str, index: int) -> str:
    """Returns a rule's name for the layer `index`."""
    return getattr(rule, column).replace("{i}", _DIGITS[column].format(index))


@functools.cache
def _by_name(column: str) -> dict[str, Rule]:
    return {getattr(rule, column): rule for rule in RULES}


def to_t5x_names(tensors: Mapping[str, Stored], *, source: str, where: str) -> dict[str, Stored]:
    """Renames a checkpoint's arrays to t5x's and turns them t5x's way.

    Args:
        tensors: by their names in `source`.
        source: the column of the table, `hugging_face` or `mesh_tensorflow`.
        where: the checkpoint, for messages.

    Raises:
        CheckpointError: an array that no rule knows.
    """
    ours, strangers = {}, []
    for name, tensor in tensors.items():
        found = translated(name, source=source, target="t5x")
        if found is None:
            strangers.append(name)
            continue
        theirs, rule = found
        turned = rule.transposed and source == "hugging_face"
        ours[theirs] = tensor.transposed() if turned else tensor
    if strangers:
        names = [getattr(rule, source).format(i=0) for rule in RULES]
        lines = [f"left over {name!r}.{nearest(name, names)}" for name in strangers[:5]]
        raise CheckpointError(
            f"{where} holds {len(strangers)} arrays that a T5 does not have; is it a checkpoint of "
            "another architecture?\n  " + "\n  ".join(lines)
        )
    return ours


def from_t5x(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Renames t5x parameters (paths below `target/`) to ours and stacks the layers.

    Raises:
        CheckpointError: a layer is missing, or its shape differs from its siblings'.
    """
    ours: dict[str, np.ndarray] = {}
    layers: dict[str, dict[int, np.ndarray]] = {}
    for name, array in arrays.items():
        if match := _LAYER.fullmatch(name):
            stacked = f"{match['stack']}/layers/{match['rest']}"
            layers.setdefault(stacked, {})[int(match["index"])] = array
        else:
            ours[PROMPT if name == T5X_PROMPT else name] = array
    for name, by_index in layers.items():
        ours[name] = _stacked(name, by_index)
    return ours


def to_t5x(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Undoes `from_t5x`."""
    theirs: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        stack, layers, rest = name.partition("/layers/")
        if layers:
            theirs |= {f"{stack}/layers_{i}/{rest}": array[i] for i in range(len(array))}
        else:
            theirs[T5X_PROMPT if name == PROMPT else name] = array
    return theirs


def _stacked(name: str, by_index: dict[int, np.ndarray]) -> np.ndarray:
    # A layer with a huge index is no reason to count up to it.
    seen = min(max(by_index) + 1, len(by_index) + 20)
    missing = [i for i in range(seen) if i not in by_index]
    if missing:
        raise CheckpointError(
            f"Layers {missing} of {name!r} are missing (found {sorted(by_index)}). "
            "The checkpoint is incomplete."
        )
    shapes = {array.shape for array in by_index.values()}
    if len(shapes) > 1:
        raise CheckpointError(
            f"The layers of {name!r} have different shapes, {sorted(shapes)}; a stack needs one."
        )
    return np.stack([by_index[i] for i in range(len(by_index))])
