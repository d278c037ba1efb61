"""The original's answers and those of Hugging Face's transformers, recorded."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from prompt_tuning.decoding import BeamSearch, Greedy, HuggingFaceBeamSearch, Sample, generate
from tests.model.test_t5_hugging_face import CONFIGS as THEIR_CONFIGS
from tests.model.test_t5_hugging_face import read_model
from tests.reference_models import CONFIGS, QUICKLY, read, reference_batches, reference_model

LENGTH = 12
METHODS = {
    "greedy_temp0": Sample(temperature=0.0),
    "greedy_temp0_raw": Sample(temperature=0.0, rescale_log_probs=False),
    "greedy_topk1": Sample(top_k=1),
    "greedy_forced_prefix": Greedy(),
    "beam4": BeamSearch(beams=4),
    "beam4_alpha0": BeamSearch(beams=4, alpha=0.0),
    "beam2_alpha1": BeamSearch(beams=2, alpha=1.0),
}
WEIGHTS = ("init", "trained50", "init_eosx3", "trained50_eosx3")


@functools.partial(jax.jit, static_argnums=(0, 3, 4), compiler_options=QUICKLY)
def decode(graph, state, inputs, strategy, length, keys=None, prefix=None):
    model = nnx.merge(graph, state)
    return generate(model, inputs, strategy=strategy, length=length, keys=keys, prefix=prefix)


@functools.cache
def recorded(name):
    return read(f"{name}/decode.npz")


def model_of(name, weights):
    changes = {}
    if weights.startswith("trained50"):
        changes["encoder/prompt/prompt/prompt"] = recorded(name)["prompt_trained50"]
    if weights.endswith("eosx3"):
        logits = read(f"{name}/params.npz")["decoder/logits_dense/kernel"]
        logits[:, 1] *= 3  # So that answers end.
        changes["decoder/logits_dense/kernel"] = logits
    return reference_model(name, changes=changes)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", CONFIGS)
def test_answers_and_scores_equal_the_original(name, method):
    for weights in WEIGHTS:
        arrays = recorded(name)
        ids = arrays[f"{weights}/{method}/ids"]
        prefix = keys = None
        if method == "greedy_forced_prefix":
            # The original puts a start token before, and takes out end tokens.
            inputs = arrays[f"{weights}/{method}/decoder_input_tokens"][:, 1:]
            prefix = jnp.asarray(np.where(inputs == 1, 0, inputs))
        if method == "greedy_topk1":
            keys = jax.random.split(jax.random.key(0), len(ids))
        inputs = reference_batches(name)["decode"].inputs
        model = nnx.split(model_of(name, weights))
        found = decode(*model, inputs, METHODS[method], LENGTH, keys, prefix)
        tokens = found.tokens if ids.ndim == 3 else found.tokens[:, -1]
        np.testing.assert_array_equal(tokens, ids, err_msg=weights)
        if prefix is None:  # Not recorded there.
            scores = arrays[f"{weights}/{method}/scores"]
            np.testing.assert_allclose(found.scores, scores, atol=2e-5, err_msg=weights)


def up_to_end(rows, eos_id=1):
    """Rows without what follows their end token: transformers goes on with more of them."""
    ends = np.cumsum(rows == eos_id, axis=-1)
    return np.where((ends == 0) | ((ends == 1) & (rows == eos_id)), rows, 0)


BEAMS = {
    "beam4_lp-1": HuggingFaceBeamSearch(beams=4, length_penalty=-1.0, decodes=1),
    "beam4_lp0": HuggingFaceBeamSearch(beams=4, length_penalty=0.0, decodes=1),
    "beam4_lp0.6": HuggingFaceBeamSearch(beams=4, length_penalty=0.6, decodes=1),
    "beam4_lp1": HuggingFaceBeamSearch(beams=4, decodes=1),
    "beam4_lp2": HuggingFaceBeamSearch(beams=4, length_penalty=2.0, decodes=1),
    "beam4_lp1_early": HuggingFaceBeamSearch(beams=4, early_stopping=True, decodes=1),
    "beam4_lp2_never": HuggingFaceBeamSearch(
        beams=4, length_penalty=2.0, early_stopping="never", decodes=1
    ),
    "beam4_lp1_ret4": HuggingFaceBeamSearch(beams=4),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name == "t5v11_a" else pytest.mark.slow)
        for name in THEIR_CONFIGS
    ],
)
def test_beams_with_their_rules_equal_transformers(golden, name):
    arrays = golden(f"hf/{name}_generate.npz")
    model = nnx.split(read_model(golden(f"hf/{name}.npz"), THEIR_CONFIGS[name]))
    inputs = jnp.asarray(arrays["in/input_ids"] * arrays["in/attention_mask"])
    for method, strategy in BEAMS.items():
        expected = up_to_end(arrays[f"{method}/sequences"][:, 1:])
        scores = arrays[f"{method}/sequences_scores"]
        found = decode(*model, inputs, strategy, expected.shape[1])
        # Theirs are in descending order, row after row.
        tokens = np.asarray(found.tokens)[:, ::-1].reshape(expected.shape)
        np.testing.assert_array_equal(tokens, expected, err_msg=method)
        given = np.asarray(found.scores)[:, ::-1].reshape(scores.shape)
        # Sums over up to 16 tokens, and with a penalty of -1 times their number: to 7 digits.
        np.testing.assert_allclose(given, scores, rtol=1e-6, atol=1e-5, err_msg=method)


@pytest.mark.parametrize("name", THEIR_CONFIGS)
def test_greedy_answers_equal_transformers(golden, name):
    arrays = golden(f"hf/{name}_generate.npz")
    expected = arrays["greedy/sequences"][:, 1:]
    model = read_model(golden(f"hf/{name}.npz"), THEIR_CONFIGS[name])
    inputs = jnp.asarray(arrays["in/input_ids"] * arrays["in/attention_mask"])
    found = decode(*nnx.split(model), inputs, Greedy(), expected.shape[1])
    np.testing.assert_array_equal(found.tokens[:, -1], expected)
