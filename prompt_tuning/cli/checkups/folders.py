"""Whether folders can be written and files be read: our own, and those that a run names."""

import errno
import glob
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

import numpy as np
from etils import epath

from prompt_tuning.checkpoints import formats
from prompt_tuning.cli.arguments import RunArguments
from prompt_tuning.cli.checkups.configuration import Settings
from prompt_tuning.cli.checkups.finding import Finding
from prompt_tuning.data.cache import default_cache_dir
from prompt_tuning.errors import CheckpointError, ConfigError, DataError, PromptTuningError
from prompt_tuning.paths import is_local

GROUP = "folders"
LITTLE = 2**30  # bytes free, under which a warning is due

WRITTEN = {
    "MODEL_DIR": CheckpointError,
    "EVAL_OUTPUT_DIR": CheckpointError,
    "INFER_OUTPUT_DIR": CheckpointError,
    "CACHE_DIR": DataError,
}
CHECKPOINTS = ("INITIAL_CHECKPOINT_PATH", "CHECKPOINT_PATH", "PROMPT_FILE")


def check(settings: Settings, run: RunArguments) -> Iterator[Finding]:
    """Yields a finding for each folder and file; those in object stores are `reach`'s."""
    yield _written("temporary files", tempfile.gettempdir(), ConfigError, "Set TMPDIR")
    if "CACHE_DIR" not in settings.values or settings["CACHE_DIR"] is None:
        advice = "Set PROMPT_TUNING_CACHE"
        yield _written("cache", default_cache_dir(), DataError, advice)
    for name, kind in WRITTEN.items():
        for path in filter(is_local, settings.texts(name)):
            yield _written(name, path, kind, f"Set {name}")
    for name in CHECKPOINTS:
        for path in filter(is_local, settings.texts(name)):
            yield _checkpoint(name, path)
    yield from _files(settings)
    yield from _folders(settings, run)


def _files(settings: Settings) -> Iterator[Finding]:
    for path in filter(is_local, settings.texts("VOCABULARY_FILE")):
        if not os.path.exists(path) and settings.texts("CORPUS"):
            folder = os.path.dirname(path) or "."
            yield _written("VOCABULARY_FILE", folder, ConfigError, "Set VOCABULARY_FILE")
        else:
            yield _readable("VOCABULARY_FILE", path, ConfigError)
    for path in filter(is_local, settings.texts("EMBEDDING_FILE")):
        yield _embedding(path)
    for pattern in filter(is_local, settings.texts("CORPUS")):
        count = len(glob.glob(pattern))
        if count:
            yield _ok("CORPUS", f"{pattern}: {count} {'file' if count == 1 else 'files'}")
        else:
            advice = "Set CORPUS to the path of text files; quotes keep the shell from its stars"
            yield _fault("CORPUS", f"no file is {pattern}", advice, DataError)


def _folders(settings: Settings, run: RunArguments) -> Iterator[Finding]:
    flags = {
        "TSV_DIR": settings.texts("TSV_DIR"),
        "--tfds_data_dir": [run.tfds_data_dir or ""],
        "--seqio_additional_cache_dirs": run.seqio_additional_cache_dirs,
    }
    for name, folders in flags.items():
        for folder in filter(None, folders):
            if is_local(folder):
                yield _readable(name, folder, DataError)


def _written(name: str, folder: str, kind: type[PromptTuningError], advice: str) -> Finding:
    place = pathlib.Path(folder).absolute()
    existing = next(one for one in (place, *place.parents) if one.exists())
    try:
        if not existing.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "is a file, not a folder")
        with tempfile.TemporaryFile(dir=existing):
            pass
        free = shutil.disk_usage(existing).free
    except OSError as error:
        where = folder if existing == place else f"{folder}: {existing}"
        problem = f"{where} cannot be written: {error.strerror}"
        return _fault(name, problem, f"{advice} to a folder that can be written", kind)
    what = "" if existing == place else ", will be made"
    found = f"{folder}{what}, {_size(free)} free"
    if free < LITTLE:
        advice = f"Make room, or: {advice} to another disk"
        return Finding(group=GROUP, name=name, state="warning", found=found, advice=advice)
    return _ok(name, found)


def _checkpoint(name: str, path: str) -> Finding:
    if not os.path.exists(path):
        advice = f"Set {name} to a checkpoint or prompt of any format in docs/checkpoints.md"
        return _fault(name, f"{path} is not there", advice, CheckpointError)
    try:
        return _ok(name, f"{path}: {formats.format_of(epath.Path(path))}")
    except CheckpointError as error:
        return _fault(name, str(error), f"Set {name}", CheckpointError)
    except OSError as error:
        problem = f"{path} cannot be read: {error.strerror}"
        return _fault(name, problem, f"Mend its permissions, or set {name}", CheckpointError)


def _embedding(path: str) -> Finding:
    try:
        shape = np.load(path, mmap_mode="r", allow_pickle=False).shape
    except (OSError, ValueError) as error:
        problem = f"{path} is no numpy file that can be read: {error}"
        return _fault("EMBEDDING_FILE", problem, "Set EMBEDDING_FILE", CheckpointError)
    return _ok("EMBEDDING_FILE", f"{path}: {' x '.join(map(str, shape))}")


def _readable(name: str, path: str, kind: type[PromptTuningError]) -> Finding:
    try:
        if os.path.isdir(path):
            os.listdir(path)
        else:
            with open(path, "rb") as file:
                file.read(1)
    except OSError as error:
        advice = f"Set {name} to one that is there and can be read"
        return _fault(name, f"{path} cannot be read: {error.strerror}", advice, kind)
    return _ok(name, path)


def _size(count: int) -> str:
    return f"{count / 2**30:.0f} GiB" if count >= 10 * 2**30 else f"{count / 2**30:.1f} GiB"


def _ok(name: str, found: str) -> Finding:
    return Finding(group=GROUP, name=name, state="ok", found=found)


def _fault(name: str, found: str, advice: str, kind: type[PromptTuningError]) -> Finding:
    return Finding(group=GROUP, name=name, state="fault", found=found, advice=advice, kind=kind)
