import re

import jax
import numpy as np
import pytest
from flax import nnx

from prompt_tuning.errors import ConfigError
from prompt_tuning.model import BaseParam, parameters
from prompt_tuning.prompts import PromptParam
from prompt_tuning.training.optimizer import adafactor
from prompt_tuning.training.state import split_model, start
from tests.reference_models import reference_model

PROMPT = "encoder/prompt/prompt"


def bytes_of(tree):
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


@pytest.fixture(scope="module")
def model():
    return reference_model("A")


@pytest.mark.parametrize("kind", [PromptParam, BaseParam])
def test_a_split_takes_all_variables_of_one_type_and_leaves_the_others(model, kind):
    graph, chosen, frozen = split_model(model, kind)
    everything = parameters.named(nnx.state(model))
    others = everything.keys() - {PROMPT}
    expected = {PROMPT} if kind is PromptParam else others
    assert parameters.named(chosen).keys() == expected
    assert parameters.named(frozen).keys() == everything.keys() - expected

    again = parameters.named(nnx.state(nnx.merge(graph, chosen, frozen)))
    assert again.keys() == everything.keys()
    for name, array in again.items():
        np.testing.assert_array_equal(array, everything[name])


def test_a_model_without_a_prompt_has_nothing_to_train():
    message = (
        "There is nothing to train: the model has no PromptParam. Give the model a `prompt` "
        "(T5.prompt), or train BaseParam for model tuning."
    )
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        split_model(reference_model("A", with_prompt=False), PromptParam)


def test_a_run_starts_at_the_step_of_its_base(model):
    _, prompt, _ = split_model(model, PromptParam)
    state = start(prompt, adafactor(), step=1_100_000)
    assert state.step == 1_100_000
    assert int(state.opt_state[PROMPT][0].count) == 1_100_000
    assert not np.any(state.opt_state[PROMPT][0].v)


def test_a_run_is_three_prompts_large_at_most(model):
    _, prompt, frozen = split_model(model, PromptParam)
    for momentum, prompts in [(None, 2), (0.9, 3)]:
        state = start(prompt, adafactor(momentum=momentum), step=0)
        size = bytes_of((state.trainable, state.opt_state))
        assert size < prompts * bytes_of(prompt) + 32
        assert size < bytes_of(frozen) / 100
