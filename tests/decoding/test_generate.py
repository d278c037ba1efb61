import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from prompt_tuning.batch import PAD
from prompt_tuning.decoding.generate import greedy, make_generate
from prompt_tuning.model import T5
from prompt_tuning.prompts import PromptParam
from tests.reference_models import CONFIGS, QUICKLY, read, reference_batches, reference_model
from tests.small_models import BATCH, MODELS, compiled, small_model

LENGTH = 6
every_model = pytest.mark.parametrize("name", MODELS)


@functools.partial(jax.jit, static_argnums=(0, 3, 4), compiler_options=QUICKLY)
def _generate(graph, state, inputs, length, eos_id):
    return greedy(nnx.merge(graph, state), inputs, length=length, eos_id=eos_id)


def generate(model, inputs, length=LENGTH, eos_id=1):
    return np.asarray(_generate(*nnx.split(model), inputs, length, eos_id))


@functools.cache
def naively(name, eos_id):
    """Runs the whole decoder once for every token, without remembering anything."""
    model = small_model(name)
    encoded = compiled(model, "encode", BATCH.inputs)
    # Positions still to come hold any token, so that the mask counts them; nothing depends on it.
    tokens = np.full((4, LENGTH), 2, np.int32)
    for position in range(LENGTH):
        logits = compiled(model, "decode", encoded, jnp.asarray(tokens))
        tokens[:, position] = np.argmax(np.asarray(logits)[:, position], axis=-1)
    for row in tokens:
        [ends] = np.nonzero(row == eos_id)
        row[ends[0] + 1 if len(ends) else LENGTH :] = PAD
    return tokens


@every_model
@pytest.mark.parametrize("rank", [0, 3])
def test_greedy_takes_the_likeliest_token_until_the_end(name, rank):
    # Any token may end a row: take one that is said early in one row, and one said late in another.
    never = naively(name, eos_id=-1)
    assert PAD not in never
    eos_id = int(never[rank, rank])
    expected = naively(name, eos_id)
    assert np.any(expected == PAD)
    model = small_model(name)
    np.testing.assert_array_equal(generate(model, BATCH.inputs, eos_id=eos_id), expected)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("weights", ["init", "trained50", "init_eosx3", "trained50_eosx3"])
def test_greedy_equals_the_original(golden, name, weights):
    recorded = golden(f"{name}/decode_greedy.npz")
    changes = {}
    if weights.startswith("trained50"):
        changes["encoder/prompt/prompt/prompt"] = recorded["prompt_trained50"]
    if weights.endswith("eosx3"):
        logits = read(f"{name}/params.npz")["decoder/logits_dense/kernel"]
        logits[:, 1] *= 3  # So that rows end.
        changes["decoder/logits_dense/kernel"] = logits
    model = reference_model(name, changes=changes)
    expected = recorded[f"{weights}/ids"][:, -1]
    found = generate(model, reference_batches(name)["decode"].inputs, expected.shape[1])
    np.testing.assert_array_equal(found, expected)


class Counted(T5):
    """A model that notes every position it is asked to continue at."""

    def decode_next(self, token, position, *args):
        jax.debug.callback(lambda position: POSITIONS.append(int(position)), position)
        return super().decode_next(token, position, *args)


POSITIONS = []


def test_the_loop_ends_when_every_row_has():
    model = small_model("T5 1.1", kind=Counted)
    never = naively("T5 1.1", eos_id=-1)[:1]
    for eos_id, longest in (
        (-1, LENGTH),
        (int(never[0, 2]), list(never[0]).index(never[0, 2]) + 1),
    ):
        POSITIONS.clear()
        generate(model, BATCH.inputs[:1], eos_id=eos_id)
        jax.effects_barrier()
        assert sorted(POSITIONS) == list(range(longest))
    assert longest < LENGTH


def test_a_compiled_generate_is_greedy():
    model = small_model()
    graph, prompt, frozen = nnx.split(model, PromptParam, ...)
    compiled_once = make_generate(graph, length=LENGTH)
    found = compiled_once(prompt, frozen, BATCH.inputs)
    np.testing.assert_array_equal(found, generate(model, BATCH.inputs))
    # Another prompt is another argument, not another program.
    other = jax.tree.map(lambda leaf: -leaf, prompt)
    assert np.any(compiled_once(other, frozen, BATCH.inputs) != found)
    assert compiled_once._cache_size() == 1
