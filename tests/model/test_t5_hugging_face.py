"""The same architecture by another hand: T5 1.1, mT5 and T5 1.0 of Hugging Face's transformers."""

import re

import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning.batch import Batch
from prompt_tuning.checkpoints.mapping import from_t5x
from prompt_tuning.model import T5Config
from tests.reference_models import filled, forward

SHARED = {
    "embed_dim": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "dtype": "float32",
}
CONFIGS = {
    "t5v11_a": T5Config(vocab_size=512, num_heads=4, head_dim=8, mlp_dim=64, **SHARED),
    "mt5_a": T5Config(vocab_size=384, num_heads=3, head_dim=16, mlp_dim=48, **SHARED),
    "t5orig_a": T5Config(
        vocab_size=288,
        num_heads=4,
        head_dim=8,
        mlp_dim=128,
        mlp_activations=("relu",),
        tied_logits=True,
        **SHARED,
    ),
}
CASES = ("short", "long", "leftpad", "holes")

# Patterns of Hugging Face's names, and t5x's. Kernels are transposed: torch's are [out, in].
NAMES = {
    r"shared\.weight": "token_embedder/embedding",
    r"lm_head\.weight": "decoder/logits_dense/kernel",
    r"(encoder|decoder)\.final_layer_norm\.weight": r"\1/\1_norm/scale",
    r"(encoder|decoder)\.block\.0\.layer\.0\.SelfAttention\.relative_attention_bias\.weight": (
        r"\1/relpos_bias/rel_embedding"
    ),
    r"encoder\.block\.(\d)\.layer\.0\.SelfAttention\.(.)\.weight": (
        r"encoder/layers_\1/attention/\2/kernel"
    ),
    r"decoder\.block\.(\d)\.layer\.0\.SelfAttention\.(.)\.weight": (
        r"decoder/layers_\1/self_attention/\2/kernel"
    ),
    r"decoder\.block\.(\d)\.layer\.1\.EncDecAttention\.(.)\.weight": (
        r"decoder/layers_\1/encoder_decoder_attention/\2/kernel"
    ),
    r"(encoder|decoder)\.block\.(\d)\.layer\.[12]\.DenseReluDense\.(\w+)\.weight": (
        r"\1/layers_\2/mlp/\3/kernel"
    ),
    r"encoder\.block\.(\d)\.layer\.0\.layer_norm\.weight": (
        r"encoder/layers_\1/pre_attention_layer_norm/scale"
    ),
    r"encoder\.block\.(\d)\.layer\.1\.layer_norm\.weight": (
        r"encoder/layers_\1/pre_mlp_layer_norm/scale"
    ),
    r"decoder\.block\.(\d)\.layer\.0\.layer_norm\.weight": (
        r"decoder/layers_\1/pre_self_attention_layer_norm/scale"
    ),
    r"decoder\.block\.(\d)\.layer\.1\.layer_norm\.weight": (
        r"decoder/layers_\1/pre_cross_attention_layer_norm/scale"
    ),
    r"decoder\.block\.(\d)\.layer\.2\.layer_norm\.weight": (
        r"decoder/layers_\1/pre_mlp_layer_norm/scale"
    ),
}
LETTERS = {"/q/": "/query/", "/k/": "/key/", "/v/": "/value/", "/o/": "/out/"}


def renamed(name):
    [(pattern, ours)] = [pair for pair in NAMES.items() if re.fullmatch(pair[0], name)]
    found = re.sub(pattern, ours, name)
    for letter, word in LETTERS.items():
        found = found.replace(letter, word)
    return found


def read_model(arrays, config):
    weights = {}
    for name, array in arrays.items():
        if name.startswith("weights/"):
            ours = renamed(name.removeprefix("weights/"))
            transposed = ours.endswith(("kernel", "rel_embedding"))
            weights[ours] = array.T if transposed else array
    return filled(config, from_t5x(weights))


def read_batch(arrays):
    """Puts every case into one batch, so that they are compiled once."""
    length = max(arrays[f"{case}/input_ids"].shape[1] for case in CASES)
    spoken = max(arrays[f"{case}/labels"].shape[1] for case in CASES)
    inputs, targets = [], []
    for case in CASES:
        # Our mask is the tokens': what transformers was told to mask becomes padding.
        tokens = arrays[f"{case}/input_ids"] * arrays[f"{case}/attention_mask"]
        inputs.append(np.pad(tokens, ((0, 0), (0, length - tokens.shape[1]))))
        labels = np.maximum(arrays[f"{case}/labels"], 0)  # -100 does not count there.
        targets.append(np.pad(labels, ((0, 0), (0, spoken - labels.shape[1]))))
    inputs, targets = jnp.asarray(np.concatenate(inputs)), jnp.asarray(np.concatenate(targets))
    return Batch(inputs=inputs, targets=targets, weights=jnp.ones_like(targets))


@pytest.mark.parametrize("name", CONFIGS)
def test_real_positions_equal_transformers(golden, name):
    arrays = golden(f"hf/{name}.npz")
    hidden, logits = forward(read_model(arrays, CONFIGS[name]), read_batch(arrays))
    exact = np.asarray(logits, np.float64)
    log_probabilities = exact - np.log(np.exp(exact).sum(axis=-1, keepdims=True))
    row = 0
    for case in CASES:
        rows = slice(row, row := row + len(arrays[f"{case}/labels"]))
        real = arrays[f"{case}/attention_mask"] != 0
        expected = arrays[f"{case}/encoder_last_hidden_state"][real]
        found = np.asarray(hidden[rows, : real.shape[1]])[real]
        np.testing.assert_allclose(found, expected, atol=1e-5, err_msg=case)

        labels = arrays[f"{case}/labels"]
        real = labels >= 0
        # Our logits and theirs: float32 against float64 is up to 2e-5 on logits up to 20.
        if case != "long":  # Cut out of the file for its size.
            found = np.asarray(logits[rows, : labels.shape[1]])[real]
            np.testing.assert_allclose(found, arrays[f"{case}/logits"][real], atol=5e-5)
        found = log_probabilities[rows, : labels.shape[1]][real]
        found = np.take_along_axis(found, labels[real][:, None], axis=1)[:, 0]
        expected = arrays[f"{case}/label_logprobs"][real]
        np.testing.assert_allclose(found, expected, atol=5e-5, err_msg=case)
