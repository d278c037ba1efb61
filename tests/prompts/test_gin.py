"""Prompts are configured from outside, by plain arguments: no decorator, no import of gin."""

import gin
import numpy as np
import pytest
from flax import nnx

from prompt_tuning.prompts import Prompt, PromptParam, Suffix

# What a gin file may say about `Prompt.init`. A new initializer gets the test with one entry.
INITIALIZERS = {
    "uniform": "prompts.uniform.scale = 0.1",
    "symmetric_uniform": "prompts.symmetric_uniform.limit = 0.1",
    "from_array": "prompts.from_array.array = @numpy.load()",
    "from_sampled_vocabulary": """
        prompts.from_sampled_vocabulary.embeddings = @numpy.load
        prompts.from_sampled_vocabulary.population_size = 5
    """,
    "from_class_labels": """
        prompts.from_class_labels.embeddings = @numpy.load
        prompts.from_class_labels.vocabulary = @vocabulary.ByteVocabulary()
        prompts.from_class_labels.labels = ['no', 'yes']
    """,
    "from_embedded_string": """
        prompts.from_embedded_string.embeddings = @numpy.load
        prompts.from_embedded_string.vocabulary = @vocabulary.ByteVocabulary()
        prompts.from_embedded_string.text = 'no'
        prompts.from_embedded_string.fallback = @prompts.uniform()
    """,
}


@pytest.fixture
def configured(tmp_path):
    """Returns the function that a model calls to make its prompt, as gin hands it over."""

    def parse(bindings, rows):
        np.save(tmp_path / "array.npy", np.ones((rows, 4), np.float32))
        lines = f"""
            from __gin__ import dynamic_registration
            import numpy
            from prompt_tuning import prompts
            from prompt_tuning import vocabulary
            numpy.load.file = '{tmp_path}/array.npy'
            prompts.Prompt.length = 3
            {bindings}
            PROMPT = @prompts.Prompt
        """
        gin.parse_config("\n".join(line.strip() for line in lines.splitlines()))
        return gin.query_parameter("%PROMPT").scoped_configurable_fn

    with gin.unlock_config():
        yield parse
    gin.clear_config(clear_constants=True)


@pytest.mark.parametrize("name", INITIALIZERS)
def test_gin_configures_every_initializer(configured, name):
    bindings = f"prompts.Prompt.init = @prompts.{name}()\n{INITIALIZERS[name]}"
    make = configured(bindings, rows=3 if name == "from_array" else 259)
    prompt = make(embed_dim=4, rngs=nnx.Rngs(0))
    assert isinstance(prompt, Prompt)
    assert isinstance(prompt.prompt, PromptParam)
    assert prompt.prompt.shape == (3, 4)


def test_gin_configures_where_the_prompt_goes(configured):
    make = configured(
        """
        prompts.Prompt.init = @prompts.uniform()
        prompts.Prompt.combine = @prompts.Suffix()
        prompts.Suffix.before_eos = False
        """,
        rows=1,
    )
    assert make(embed_dim=4, rngs=nnx.Rngs(0)).combine == Suffix(before_eos=False)


@pytest.mark.parametrize("name", ["prefix", "after_bos"])
def test_gin_names_a_function_without_calling_it(configured, name):
    make = configured(
        f"""
        prompts.Prompt.init = @prompts.uniform()
        prompts.Prompt.combine = @prompts.{name}
        """,
        rows=1,
    )
    assert make(embed_dim=4, rngs=nnx.Rngs(0)).combine.__name__ == name
