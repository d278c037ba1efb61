import contextlib
import logging
import os
import re
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning.cli import compile_cache
from prompt_tuning.cli.compile_cache import kept_programs, tidy

HITS = "/jax/compilation_cache/cache_hits"
X = np.linspace(0.0, 1.0, 64, dtype=np.float32).reshape(8, 8)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where programs are kept in this test, whatever they take to compile."""
    monkeypatch.setenv("PROMPT_TUNING_CACHE", str(tmp_path))
    monkeypatch.setattr(compile_cache, "WORTH_KEEPING", 0.0)
    return tmp_path / "programs"


@contextlib.contextmanager
def hits():
    """Counts the programs that are read from disk."""
    seen = []

    def listen(event, **_):
        seen.extend([event] if event == HITS else [])

    jax.monitoring.register_event_listener(listen)
    try:
        yield seen
    finally:
        jax.monitoring.unregister_event_listener(listen)


def computed():
    """Compiles and runs a function that no process has seen before this one."""
    return np.asarray(jax.jit(lambda x: jnp.sin(x) @ jnp.cos(x).T + jnp.tanh(x))(X))


def entries(folder):
    return sorted(folder.glob("*-cache"))


def test_a_program_is_read_where_it_was_compiled_before_and_computes_the_same_bits(folder):
    with hits() as seen, kept_programs():
        first = computed()
        assert entries(folder) and not seen
    with hits() as seen, kept_programs():
        second = computed()
        assert seen
    np.testing.assert_array_equal(first, second)


def test_nothing_is_kept_before_or_after_and_the_settings_are_as_they_were(folder):
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = [getattr(jax.config, name) for name in names]
    with kept_programs():
        assert jax.config.jax_compilation_cache_dir == str(folder)
    assert [getattr(jax.config, name) for name in names] == before
    computed()
    assert not entries(folder)


def test_what_the_user_told_jax_stays(folder, tmp_path, monkeypatch):
    own = str(tmp_path / "own")
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", own)
    try:
        with kept_programs():
            assert jax.config.jax_compilation_cache_dir == own
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        with kept_programs():
            computed()
    finally:
        jax.config.update("jax_enable_compilation_cache", True)
    assert not folder.exists()
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "1.0")
    threshold = jax.config.jax_persistent_cache_min_compile_time_secs
    with kept_programs():
        assert jax.config.jax_persistent_cache_min_compile_time_secs == threshold


def test_a_folder_that_cannot_be_written_is_said_and_stops_nobody(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "prompt_tuning")
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("PROMPT_TUNING_CACHE", str(tmp_path / "file"))
    with kept_programs():
        computed()
    (message,) = caplog.messages
    assert re.fullmatch(
        r"Compiled programs are not kept, so every start compiles: .*/file/programs "
        r"\(Not a directory\)\. Set PROMPT_TUNING_CACHE to a folder that can be written, or "
        r"JAX_ENABLE_COMPILATION_CACHE=false to do without\.",
        message,
    )


def test_what_a_killed_process_left_half_written_is_replaced_in_silence(folder):
    with kept_programs():
        computed()
    whole = {path: path.read_bytes() for path in entries(folder)}
    for path, content in whole.items():
        path.write_bytes(content[: len(content) // 2])
    with hits() as seen, kept_programs():
        computed()  # JAX would warn of it, and warnings are errors here
        assert not seen
    assert entries(folder) == list(whole)
    for path in whole:
        zlib.decompress(path.read_bytes())


def entry(folder, name, *, used, size=100):
    path = folder / f"{name}-cache"
    path.write_bytes(zlib.compress(os.urandom(size)))
    os.utime(path, (used, used))
    return path


def test_the_programs_not_used_for_longest_go_beyond_the_limit(tmp_path):
    old, older, new = (
        entry(tmp_path, name, used=used) for name, used in [("a", 200), ("b", 100), ("c", 300)]
    )
    other = tmp_path / "something else"
    other.write_bytes(bytes(1000))
    sizes = [path.stat().st_size for path in (old, older, new)]
    tidy(tmp_path, limit=sum(sizes))
    assert entries(tmp_path) == [old, older, new]
    tidy(tmp_path, limit=sum(sizes) - 1)
    assert entries(tmp_path) == [old, new]
    tidy(tmp_path, limit=0)
    assert entries(tmp_path) == [] and other.exists()


def test_only_what_is_new_since_the_last_look_is_read_again(tmp_path):
    tidy(tmp_path)
    seen = entry(tmp_path, "seen", used=1000)
    seen.write_bytes(b"\x78 no program at all")
    os.utime(seen, (1000, 1000))
    unseen = entry(tmp_path, "unseen", used=1000)
    unseen.write_bytes(b"\x78 no program at all")
    tidy(tmp_path)
    assert entries(tmp_path) == [seen]
