"""Our models in transformers, and theirs with us: the same logits, the same answers.

Needs torch and transformers, which we never import ourselves.
"""

import dataclasses

import jax
import numpy as np
import pytest
import torch
import transformers
from etils import epath
from flax import nnx

from prompt_tuning.batch import shift_right
from prompt_tuning.checkpoints.containers.stored import Stored
from prompt_tuning.checkpoints.hugging_face import open_hugging_face, save_hugging_face
from prompt_tuning.checkpoints.mapping import from_t5x, to_t5x
from prompt_tuning.decoding import greedy
from prompt_tuning.model import parameters
from tests.reference_models import QUICKLY, filled, forward
from tests.small_models import BATCH, small_model

# Two implementations in float32; each is as far from float64 as from the other.
TOLERANCE = 1e-5
LENGTH = 6

# transformers generates with a decoder no deeper than the encoder, by which it sizes its memory.
DEPTHS = {"encoder_layers": 3, "decoder_layers": 2}
PLAIN = {"mlp_activations": ("relu",), "tied_logits": True}
# What is changed of a T5 1.1, how it is saved, and as what.
EXPORTS = {
    "T5 1.1": ({}, {}, "T5"),
    "T5 1.1 with silu": ({"mlp_activations": ("silu", "linear")}, {}, "T5"),
    "T5 1.1 in shards": ({}, {"shard_bytes": 5_000}, "T5"),
    "T5 1.1 in bfloat16": ({}, {"dtype": "bfloat16"}, "T5"),
    "T5 1.0": (PLAIN, {}, "T5"),
    "mT5": ({}, {"family": "mt5"}, "MT5"),
}


def stored(model):
    named = parameters.named(nnx.state(model))
    arrays = to_t5x({name: np.asarray(array) for name, array in named.items()})
    return {name: Stored.of(array, name) for name, array in arrays.items()}


def our_model(path):
    contents = open_hugging_face(epath.Path(path))
    arrays = {name: one.load() for name, one in contents.tensors.items()}
    return filled(dataclasses.replace(contents.config, dtype="float32"), from_t5x(arrays))


def their_model(path):
    kind = transformers.AutoModelForSeq2SeqLM
    return kind.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()


def their_logits(model):
    with torch.no_grad():
        return model(
            input_ids=torch.tensor(np.asarray(BATCH.inputs)),
            attention_mask=torch.tensor(np.asarray(BATCH.inputs) != 0),
            decoder_input_ids=torch.tensor(np.asarray(shift_right(BATCH.targets))),
        ).logits.numpy()


def their_tokens(model):
    with torch.no_grad():
        tokens = model.generate(
            input_ids=torch.tensor(np.asarray(BATCH.inputs)),
            attention_mask=torch.tensor(np.asarray(BATCH.inputs) != 0).long(),
            max_new_tokens=LENGTH,
            do_sample=False,
            num_beams=1,
        ).numpy()[:, 1:]
    return np.pad(tokens, ((0, 0), (0, LENGTH - tokens.shape[1])))


def our_tokens(model):
    graph, state = nnx.split(model)

    def run(state):
        return greedy(nnx.merge(graph, state), BATCH.inputs, length=LENGTH)

    return jax.jit(run, compiler_options=QUICKLY)(state)


def assert_same(ours, theirs):
    _, logits = forward(ours, BATCH)
    real = np.asarray(BATCH.targets) != 0
    np.testing.assert_allclose(
        np.asarray(logits)[real], their_logits(theirs)[real], rtol=0, atol=TOLERANCE
    )
    tokens = np.asarray(our_tokens(ours))
    assert len(np.unique(tokens)) > 2
    np.testing.assert_array_equal(tokens, their_tokens(theirs))


@pytest.mark.parametrize("name", EXPORTS)
def test_what_we_save_transformers_computes_alike(tmp_path, name):
    changes, options, kind = EXPORTS[name]
    ours = small_model("T5 1.1", **DEPTHS, **changes)
    save_hugging_face(stored(ours), ours.config, 7, epath.Path(tmp_path / "saved"), **options)
    theirs = their_model(tmp_path / "saved")
    assert type(theirs).__name__ == f"{kind}ForConditionalGeneration"
    if "dtype" not in options:
        assert_same(ours, theirs)
    assert_same(our_model(tmp_path / "saved"), theirs)


def their_random_model(kind, **fields):
    """Makes a model of theirs whose logits are of size 5, with a table for the logits or none."""
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=50,
        d_model=16,
        d_kv=6,
        d_ff=24,
        num_heads=2,
        num_layers=3,
        num_decoder_layers=2,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=16,
        decoder_start_token_id=0,
        **fields,
    )
    config._attn_implementation = "eager"
    model = getattr(transformers, f"{kind}ForConditionalGeneration")(config).eval()
    generator = torch.Generator().manual_seed(0)
    for _, parameter in sorted(model.named_parameters()):
        size = 1.0 if parameter.ndim == 1 else parameter.shape[-1] ** -0.5
        noise = torch.randn(parameter.shape, generator=generator) * size
        parameter.data = 1 + noise / 4 if parameter.ndim == 1 else noise
    return model


def with_own_head(model):
    """Unties: transformers 5 makes a tied model, whatever the configuration says."""
    generator = torch.Generator().manual_seed(1)
    shape = model.shared.weight.shape
    model.lm_head.weight = torch.nn.Parameter(torch.randn(shape, generator=generator))
    return model


GATED = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
THEIRS = {
    "T5 1.0": lambda: their_random_model("T5"),
    "T5 1.1": lambda: with_own_head(their_random_model("T5", **GATED)),
    "mT5": lambda: with_own_head(their_random_model("MT5")),
    "T5 1.1, tied and not scaled": lambda: their_random_model("T5", **GATED),
    "mT5, tied and not scaled": lambda: their_random_model("MT5"),
    "T5 1.0, with a head and scaled": lambda: with_own_head(their_random_model("T5")),
}


@pytest.mark.parametrize("name", THEIRS)
@pytest.mark.parametrize("shard", ["1GB", "8KB"])
def test_what_transformers_saves_we_compute_alike(tmp_path, name, shard):
    theirs = THEIRS[name]()
    theirs.save_pretrained(tmp_path, max_shard_size=shard)
    assert (tmp_path / "model.safetensors").exists() == (shard == "1GB")
    assert_same(our_model(tmp_path), theirs)


@pytest.mark.parametrize("name", THEIRS)
@pytest.mark.parametrize("zipped", [True, False])
def test_what_torch_saves_we_compute_alike(tmp_path, name, zipped):
    theirs = THEIRS[name]()
    theirs.config.save_pretrained(tmp_path)
    torch.save(
        theirs.state_dict(),
        tmp_path / "pytorch_model.bin",
        _use_new_zipfile_serialization=zipped,
    )
    assert_same(our_model(tmp_path), theirs)
