"""What a run writes down of that with which it was made."""

import importlib.metadata
import json

from prompt_tuning.cli.environment import environment
from prompt_tuning.partitioning import Partitioning


def test_the_versions_and_devices_of_a_run_are_named():
    found = json.loads(environment(Partitioning().placement(4)))
    assert found["jax"] == importlib.metadata.version("jax")
    assert found["devices"] == "8 cpu (cpu)"
    assert "over 4 cpu devices" in found["mesh"]


def test_the_same_machine_writes_the_same_again():
    one, other = (environment(Partitioning().placement(1)) for _ in range(2))
    assert one == other


def test_a_library_that_is_not_installed_is_not_named(monkeypatch):
    known = importlib.metadata.version

    def version(name):
        if name == "seqio":
            raise importlib.metadata.PackageNotFoundError(name)
        return known(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    found = json.loads(environment(Partitioning().placement(1)))
    assert "seqio" not in found
    assert "jax" in found
