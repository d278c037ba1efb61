"""`prompt-tuning report`: what became of a run, as one page and pictures."""

import argparse
import re

import numpy as np
from etils import epath

from prompt_tuning.checkpoints import base as base_model
from prompt_tuning.checkpoints import formats, mapping
from prompt_tuning.checkpoints.containers.stored import total_bytes
from prompt_tuning.checkpoints.prompt_file import PromptFile
from prompt_tuning.cli.configuration.shipped_paths import spelled_out
from prompt_tuning.errors import CheckpointError, ConfigError
from prompt_tuning.reporting import report
from prompt_tuning.reporting.run_files import RunFiles, read_run
from prompt_tuning.reporting.vectors import Embeddings
from prompt_tuning.vocabulary import ByteVocabulary, SentencePieceVocabulary

# Of a larger base the hash is not compared, which would read all of it.
READ_WHOLE = 4 * 10**9
FOLDER = "report"


def run(arguments: argparse.Namespace) -> int:
    """Writes the report of a run and says where; returns the exit code."""
    files = read_run(arguments.path)
    embeddings, reason = _embeddings(files, arguments.base, arguments.vocabulary)
    made = report(files, embeddings=embeddings, no_embeddings=reason)
    page = made.save(arguments.output or files.folder / FOLDER)
    print(f"{page!s}\n{len(made.pictures)} pictures beside it.")
    for title, why in made.left_out.items():
        print(f"Left out: {title}. {why}")
    return 0


def _embeddings(
    files: RunFiles, base: str | None, vocabulary: str | None
) -> tuple[Embeddings | None, str | None]:
    """Returns the token embeddings of a run's base, or why there are none.

    What a flag names has to be there; what only the run's record names may be gone.

    Raises:
        CheckpointError: a flag names no base, or another than the prompt's.
        ConfigError: a flag names no vocabulary.
    """
    if files.prompt is None or files.prompt.method != "prompt":
        return None, None
    path = base or _recorded(files, "INITIAL_CHECKPOINT_PATH") or files.prompt.base_name
    if path is None:
        return None, "The run does not say which base it was made over: name it with --base."
    if base is None and not epath.Path(path).exists():
        return None, f"The base is no longer at {path}. Name where it is with --base."
    try:
        table, about = _table(path, files.prompt)
    except CheckpointError as error:
        if base is not None:
            raise CheckpointError(f"--base: {error}") from error
        return None, f"{_first_line(error)} Name the base with --base."
    try:
        pieces = _vocabulary(files, vocabulary)
    except ConfigError as error:
        if vocabulary is not None:
            raise ConfigError(f"--vocabulary: {error}") from error
        pieces, about = None, f"{about} (tokens are numbers: {error})"
    if pieces is None:
        return Embeddings(table=table, piece=None, about=about), None
    # Tables are padded with rows that are no token's.
    return Embeddings(table=table[: pieces.size], piece=pieces.piece, about=about), None


def _table(path: str, prompt: PromptFile) -> tuple[np.ndarray, str]:
    """Returns the embeddings of the base of a prompt, and whose they are.

    Raises:
        CheckpointError: there is no model, or another.
    """
    contents = formats.open_model(path)
    is_read = prompt.base is not None and total_bytes(contents.tensors.values()) <= READ_WHOLE
    if is_read:
        prompt.over(base_model.fingerprint(contents))
    table = contents.tensors[mapping.EMBEDDING].load()
    if table.shape[1] != prompt.vectors.shape[1]:
        raise CheckpointError(
            f"{path} has embeddings of width {table.shape[1]}, the prompt was trained over a base "
            f"of width {prompt.vectors.shape[1]}."
        )
    return table, path if is_read else f"{path} (whose hash was not compared)"


def _vocabulary(
    files: RunFiles, path: str | None
) -> SentencePieceVocabulary | ByteVocabulary | None:
    """Returns the vocabulary of a run's base; None if the run does not say which it was.

    Raises:
        ConfigError: there is no such file, or it is no vocabulary.
    """
    if path is None and "ByteVocabulary" in files.settings.get("VOCABULARY", ""):
        return ByteVocabulary(**_extra_ids(files))
    path = path or _recorded(files, "VOCABULARY_FILE")
    if path is None:
        return None
    found = SentencePieceVocabulary(path, **_extra_ids(files))
    found.piece(0)  # reads the file
    return found


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _extra_ids(files: RunFiles) -> dict[str, int]:
    found = re.search(r"Vocabulary\.extra_ids = ([0-9]+)$", files.config or "", re.MULTILINE)
    return {} if found is None else {"extra_ids": int(found[1])}


def _recorded(files: RunFiles, setting: str) -> str | None:
    """Returns the path that a run's configuration names, if it names one.

    What the package brought along lies where the package is now.
    """
    value = spelled_out(files.settings).get(setting, "None")
    return value[1:-1] if re.fullmatch(r"(['\"]).+\1", value) else None
