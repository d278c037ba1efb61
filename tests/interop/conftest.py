"""Both worlds in one process: warnings of torch, transformers and peft are their makers' affair."""

import pathlib

import pytest

# The modules here cannot be imported without torch, which is not in the lock. `make test-interop`
# installs it, asks for them by this mark, and fails where an import does.
MARK = "interop"
FOLDER = pathlib.Path(__file__).parent


def pytest_ignore_collect(collection_path, config):
    asked_for = config.option.markexpr == MARK
    return None if asked_for or not collection_path.name.startswith("test_") else True


def pytest_collection_modifyitems(items):
    for item in items:
        if FOLDER in item.path.parents:
            item.add_marker(pytest.mark.interop)
            item.add_marker(pytest.mark.filterwarnings("default"))
