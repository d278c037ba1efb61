import pytest

from tests.small_vocabulary import train


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory):
    return train(tmp_path_factory.mktemp("vocabulary") / "small.model")
