"""Every test runs on 8 CPU devices, with shapes checked and no silent promotion of arrays."""

import importlib
import logging
import os
import pathlib

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import hypothesis
import jax
import jaxtyping
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

GOLDEN = pathlib.Path(__file__).parent / "golden"

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# The first example of a test compiles; every run tries the same examples.
hypothesis.settings.register_profile("reproducible", deadline=None, derandomize=True)
hypothesis.settings.load_profile("reproducible")

_register_dataclass = jax.tree_util.register_dataclass


def _register_unchecked(cls, *args, **kwargs):
    """Leaves out the shape check of a pytree's constructor.

    JAX calls it with whatever a transformation puts in the place of the arrays: a row under
    `vmap`, a shape under `eval_shape`, a sharding, a bare `object()`.
    """
    cls.__no_type_check__ = True
    return _register_dataclass(cls, *args, **kwargs)


jax.tree_util.register_dataclass = _register_unchecked
jaxtyping.install_import_hook("prompt_tuning", "beartype.beartype")


# What takes longest goes first, so that no job is left alone with it at the end.
LONGEST = ("tests/end_to_end/", "tests/cli/")

# Every law holds for a quantized base, too. What is particular to one has tests of its own, so the
# whole table of laws is gone through only with the slow tests.
OF_THE_TABLE = "in int8"


@pytest.hookimpl(tryfirst=True)  # before those are chosen that are to run
def pytest_collection_modifyitems(items):
    for item in items:
        if OF_THE_TABLE in item.nodeid:
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: not item.nodeid.startswith(LONGEST))


@pytest.fixture(scope="session")
def tpu_compiler():
    """The compiler for TPUs. It is in the lock, so where it is missing tests fail."""
    return importlib.import_module("libtpu")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """No test reads or fills the cache of tokenised splits of whoever runs it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROMPT_TUNING_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def own_log():
    """No test sees the handlers that a command of another one has set."""
    yield
    log = logging.getLogger("prompt_tuning")
    log.handlers, log.propagate = [], True
    log.setLevel(logging.NOTSET)


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """Lets every run of this module but the first read its compiled programs from a file."""
    settings = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("programs")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture
def golden():
    """Reads reference arrays: `golden("A/params.npz")` is a dict from name to array."""

    def read(name):
        with np.load(GOLDEN / name) as arrays:
            return dict(arrays)

    return read
