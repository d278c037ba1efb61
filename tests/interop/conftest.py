"""Both worlds in one process: warnings of torch, transformers and peft are their makers' affair."""

import pathlib

import pytest

FOLDER = pathlib.Path(__file__).parent


def pytest_collection_modifyitems(items):
    for item in items:
        if FOLDER in item.path.parents:
            item.add_marker(pytest.mark.interop)
            item.add_marker(pytest.mark.filterwarnings("default"))
