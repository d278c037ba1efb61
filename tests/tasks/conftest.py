import pytest
import seqio

from tests.small_vocabulary import train


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory):
    return train(tmp_path_factory.mktemp("vocabulary") / "small.model")


@pytest.fixture
def registry():
    """Takes away what a test registers."""
    before = set(seqio.TaskRegistry.names())
    yield seqio.TaskRegistry
    for name in set(seqio.TaskRegistry.names()) - before:
        seqio.TaskRegistry.remove(name)
