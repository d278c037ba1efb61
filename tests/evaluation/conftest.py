import pytest

from prompt_tuning.prompts import PromptParam
from prompt_tuning.training.state import split_model
from tests.evaluation.questions import VOCABULARY_SIZE
from tests.small_models import small_model
from tests.small_vocabulary import train


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory):
    small = train(tmp_path_factory.mktemp("vocabulary") / "small.model")
    assert small.size == VOCABULARY_SIZE
    return small


@pytest.fixture(scope="session")
def model():
    """A model with dropout, which no evaluation may use."""
    return small_model(vocab_size=VOCABULARY_SIZE, dropout_rate=0.5)


@pytest.fixture(scope="session")
def split_states(model):
    """The graph, the prompt and the frozen state of the model."""
    return split_model(model, PromptParam)
