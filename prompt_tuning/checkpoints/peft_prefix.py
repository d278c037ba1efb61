"""PREFIX_TUNING of PEFT: keys and values for the decoder's self-attention.

The tensor is [P, 2 L D]: for every position 2 L entries [N, H]. One would expect keys and values of
each layer in turn, but PEFT repeats the entries, cuts them into pieces of four, and gives a layer
the first two of its piece. Of 4 layers:

    entry    0 1 2 3 4 5 6 7 | 0 1 2 3 4 5 6 7
    layer    0 0 . . 1 1 . . | 2 2 . . 3 3 . .

For an even number of layers half of the entries are never used, and the layers l and l + L / 2
share theirs; for an odd number every layer has its own, in another order.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from prompt_tuning.checkpoints.peft_adapter import CONFIG, EMBEDDINGS, Adapter
from prompt_tuning.errors import CheckpointError

KEYS, VALUES = "decoder/prefix/keys", "decoder/prefix/values"


def read_prefix(adapter: Adapter) -> dict[str, np.ndarray]:
    """Returns keys and values [L, P, N, H] of every layer, as PEFT uses them."""
    adapter.check_names(EMBEDDINGS)
    if adapter.submodules == 1:
        raise CheckpointError(
            f"num_transformer_submodules in {adapter.where / CONFIG!s} is 1. A T5 would take this "
            "prefix for its encoder's output as well; PEFT's own for a T5 has 2."
        )
    length, layers = adapter.number("num_virtual_tokens"), adapter.number("num_layers")
    heads, width = adapter.number("num_attention_heads"), adapter.number("token_dim")
    if width % heads:
        raise CheckpointError(
            f"{adapter.where / CONFIG!s} says token_dim {width} and num_attention_heads {heads}, "
            "which do not divide."
        )
    stored = adapter.array(EMBEDDINGS, (length, 2 * layers * width))
    entries = stored.reshape(length, 2 * layers, heads, width // heads).swapaxes(0, 1)
    keys, values = _entries(layers)
    return {
        KEYS: np.ascontiguousarray(entries[keys]),
        VALUES: np.ascontiguousarray(entries[values]),
    }


def write_prefix(
    arrays: Mapping[str, np.ndarray],
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Returns the settings and tensors of a PREFIX_TUNING.

    Raises:
        CheckpointError: layers that share their prefix in PEFT do not here.
    """
    layers, length, heads, size = arrays[KEYS].shape
    entries = np.zeros((2 * layers, length, heads, size), np.float32)
    for indices, own in zip(_entries(layers), (arrays[KEYS], arrays[VALUES]), strict=True):
        entries[indices] = own
        if not np.array_equal(entries[indices], own):
            raise CheckpointError(
                f"A prefix of {layers} layers cannot be written for PEFT: its PREFIX_TUNING gives "
                "the layers l and l + L / 2 the same keys and values when their number L is even, "
                "and here they differ. Keep it as a prompt file."
            )
    return {
        "peft_type": "PREFIX_TUNING",
        "encoder_hidden_size": heads * size,
        "num_attention_heads": heads,
        "num_layers": layers,
        "num_transformer_submodules": 2,
        "num_virtual_tokens": length,
        "prefix_projection": False,
        "token_dim": heads * size,
    }, {EMBEDDINGS: np.ascontiguousarray(entries.swapaxes(0, 1).reshape(length, -1))}


def _entries(layers: int) -> tuple[list[int], list[int]]:
    """Returns which entries are the keys and which the values of each layer."""
    keys = [4 * layer % (2 * layers) for layer in range(layers)]
    return keys, [key + 1 for key in keys]
