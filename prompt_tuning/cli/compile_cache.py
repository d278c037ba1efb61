"""Compiled programs are kept on disk, so that a command that starts again reads its own.

The cache is JAX's. Here it gets a place that every run shares, beside the tokenised splits, a limit
to its size, and a look for what a killed process has left in it.
"""

import contextlib
import logging
import os
import pathlib
import tempfile
import time
import zlib
from collections.abc import Iterator

import jax
from jax.experimental.compilation_cache import compilation_cache

from prompt_tuning.paths import is_local, unreachable

log = logging.getLogger("prompt_tuning")

# Of all programs together. One takes 0.2 MB on a CPU and some tens of MB on a large TPU slice.
LIMIT = 2 << 30
# A program that compiles faster is not kept. JAX's own choice, a second, leaves out most of what a
# small model needs, which is seconds in all.
WORTH_KEEPING = 0.1

_ZLIB = b"\x78"


@contextlib.contextmanager
def kept_programs() -> Iterator[None]:
    """Keeps what is compiled, and reads what was compiled before, as long as the context lasts.

    In `programs` below `$PROMPT_TUNING_CACHE` or the user's folder of caches. What the user has
    said to JAX has precedence: JAX_COMPILATION_CACHE_DIR names another folder, which is then JAX's
    affair alone, and JAX_ENABLE_COMPILATION_CACHE=false keeps nothing.
    """
    folder = _folder()
    if folder is None:
        yield
        return
    settings = {"jax_compilation_cache_dir": folder}
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        settings["jax_persistent_cache_min_compile_time_secs"] = WORTH_KEEPING
    before = {name: getattr(jax.config, name) for name in settings}
    _set(settings)
    try:
        yield
    finally:
        _set(before)


def tidy(folder: pathlib.Path, *, limit: int = LIMIT) -> None:
    """Removes programs that are not whole, and those not used for longest beyond the limit.

    A process that was killed, or a full disk, leaves a part of a file, which JAX would complain
    about at every start and never replace. Other processes may use the folder meanwhile: whoever
    has opened a file still reads it, and who finds none compiles.
    """
    marker = folder / ".checked"
    checked = marker.stat().st_mtime if marker.exists() else 0.0
    began = time.time()
    found = []
    for path in folder.glob("*-cache"):
        with contextlib.suppress(FileNotFoundError):
            stat = path.stat()
            if stat.st_mtime >= checked:
                if not _whole(path):
                    path.unlink()
                    continue
                os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # A look is no use.
            found.append((max(stat.st_atime, stat.st_mtime), stat.st_size, path))
    marker.touch()
    # The clock of a file system lags a little.
    os.utime(marker, (began - 1, began - 1))
    surplus = sum(size for _, size, _ in found) - limit
    for _, size, path in sorted(found):
        if surplus <= 0:
            break
        path.unlink(missing_ok=True)
        surplus -= size


def _folder() -> str | None:
    """Returns where to keep programs; None for nowhere, or where the user has told JAX."""
    if jax.config.jax_compilation_cache_dir or not jax.config.jax_enable_compilation_cache:
        return None
    # Here, because it brings pyarrow along.
    from prompt_tuning.data.cache import default_cache_dir

    folder = os.path.join(default_cache_dir(), "programs")
    problem = unreachable(folder)
    if problem is None and is_local(folder):
        try:
            # Whoever can write to it decides what our processes run.
            os.makedirs(folder, mode=0o700, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
            tidy(pathlib.Path(folder))
        except OSError as error:
            problem = error.strerror or str(error)
    if problem is None:
        return folder
    log.warning(
        "Compiled programs are not kept, so every start compiles: %s (%s). Set PROMPT_TUNING_CACHE "
        "to a folder that can be written, or JAX_ENABLE_COMPILATION_CACHE=false to do without.",
        folder,
        problem,
    )
    return None


def _whole(path: pathlib.Path) -> bool:
    """Tells whether a file of JAX's is complete; one in another compression counts as such."""
    reading = zlib.decompressobj()
    try:
        with path.open("rb") as file:
            if (first := file.read(1)) != _ZLIB:
                return bool(first)
            reading.decompress(first)
            while piece := file.read(1 << 20):
                reading.decompress(piece)
    except zlib.error:
        return False
    return reading.eof


def _set(settings: dict) -> None:
    for name, value in settings.items():
        jax.config.update(name, value)
    # JAX opens the folder once and holds on to it.
    compilation_cache.reset_cache()
