"""Running text: files tokenised once into one long row of ids, which is then mapped into memory.

A file holds one paragraph per line and an empty line between documents (books, articles). In the
row paragraphs follow each other directly, as white space is not a token, and every document is
closed by an end token.
"""

import contextlib
import glob
import gzip
import hashlib
import io
import itertools
import lzma
import os
import uuid
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import IO

import numpy as np
from etils import epath
from jaxtyping import Int, Integer

from prompt_tuning.errors import ConfigError, DataError
from prompt_tuning.paths import is_local
from prompt_tuning.vocabulary import Vocabulary

# Part of every cache key: a change of how text becomes tokens makes the old rows invalid.
_FORMAT = "1"
_BATCH_CHARACTERS = 1 << 22
_UNPACK = {".xz": lzma.open, ".gz": gzip.open}


def load_corpus(
    files: str | Sequence[str],
    vocabulary: Vocabulary,
    *,
    cache_dir: str | os.PathLike[str],
    max_tokens: int | None = None,
    threads: int = -1,
) -> Integer[np.ndarray, " N"]:
    """Returns the tokens of text files as one row on disk, tokenising them if nobody has before.

    Args:
        files: paths or patterns of `.txt`, `.txt.xz` and `.txt.gz` files; read in the order given,
            those of one pattern by name.
        vocabulary: gives the ids.
        cache_dir: a local folder for the row; its name there follows from the contents of the
            files, the vocabulary and `max_tokens`, so a change of any of them makes a new row.
        max_tokens: stops after this many tokens.
        threads: how many threads tokenise; -1 for all cores.

    Raises:
        DataError: a file or pattern matches nothing, or the text is empty.
        ConfigError: `cache_dir` is not local, and so cannot be mapped into memory.
    """
    if not is_local(cache_dir):
        raise ConfigError(
            f"The corpus cache {os.fspath(cache_dir)!r} is not a local folder, but its tokens are "
            "mapped into memory. Set `cache_dir` to a folder on this machine's disk."
        )
    paths = find_files(files)
    folder = epath.Path(cache_dir)
    row = folder / f"tokens-{_key(paths, vocabulary, max_tokens)}.npy"
    if not row.exists():
        folder.mkdir(parents=True, exist_ok=True)
        documents = itertools.chain.from_iterable(read_documents(path) for path in paths)
        _write_row(row, tokenize(documents, vocabulary, threads=threads), vocabulary, max_tokens)
    return np.load(row, mmap_mode="r")


def find_files(files: str | Sequence[str]) -> list[epath.Path]:
    """Returns the files that paths and patterns name, those of one pattern sorted by name."""
    patterns = [files] if isinstance(files, str) else list(files)
    found = []
    for pattern in patterns:
        path = epath.Path(pattern)
        if glob.has_magic(pattern):
            plain = list(itertools.takewhile(lambda part: not glob.has_magic(part), path.parts))
            folder = epath.Path(*plain)
            matches = sorted(folder.glob(os.path.join(*path.parts[len(plain) :])))
        else:
            matches = [path] if path.exists() else []
        if not matches:
            raise DataError(
                f"No corpus file matches {pattern!r}. Give paths or patterns of `.txt`, `.txt.xz` "
                "or `.txt.gz` files."
            )
        found += matches
    if not found:
        raise DataError("The corpus has no files. Give at least one path or pattern.")
    return found


def read_documents(path: epath.Path) -> Iterator[Iterator[str]]:
    """Yields the documents of a file, each as its paragraphs; read them in order."""
    paragraphs = (line.strip() for line in _read_lines(path))
    for blank, document in itertools.groupby(paragraphs, key=lambda line: not line):
        if not blank:
            yield document


def tokenize(
    documents: Iterable[Iterable[str]], vocabulary: Vocabulary, *, threads: int = -1
) -> Iterator[Int[np.ndarray, " M"]]:
    """Yields the tokens of the documents in pieces, with an end token after each document."""
    end = np.array([vocabulary.eos_id], np.int32)
    # `None` marks the end of a document, so that a batch may hold many short ones.
    stream = (
        paragraph for document in documents for paragraph in itertools.chain(document, [None])
    )
    for batch in _batched(stream):
        rows = iter(
            vocabulary.encode_batch([text for text in batch if text is not None], threads=threads)
        )
        yield np.concatenate([end if text is None else next(rows) for text in batch])


def _batched(stream: Iterator[str | None]) -> Iterator[list[str | None]]:
    batch, characters = [], 0
    for text in stream:
        batch.append(text)
        characters += len(text or "")
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _write_row(
    row: epath.Path,
    pieces: Iterable[Int[np.ndarray, " M"]],
    vocabulary: Vocabulary,
    max_tokens: int | None,
) -> None:
    """Writes the pieces as one `.npy` file, which appears under its name only when it is whole."""
    dtype = np.dtype(np.uint16 if vocabulary.size <= 1 << 16 else np.int32)
    partial = row.with_name(f"{row.name}.tmp-{uuid.uuid4().hex}")
    length = 0
    try:
        with partial.open("wb") as file:
            _write_header(file, dtype, length)
            for piece in pieces:
                room = len(piece) if max_tokens is None else max_tokens - length
                file.write(piece[:room].astype(dtype).tobytes())
                length += min(len(piece), room)
                if length == max_tokens:
                    break
            if not length:
                raise DataError("The corpus files hold no text.")
            file.seek(0)
            _write_header(file, dtype, length)
        partial.replace(row)
    finally:
        partial.unlink(missing_ok=True)


def _write_header(file: IO[bytes], dtype: np.dtype, length: int) -> None:
    # numpy leaves room in a header for any first dimension, so this can be written over in place
    # when the length is known.
    header = {"descr": dtype.str, "fortran_order": False, "shape": (length,)}
    np.lib.format.write_array_header_1_0(file, header)


def _key(paths: Sequence[epath.Path], vocabulary: Vocabulary, max_tokens: int | None) -> str:
    parts = [_FORMAT, vocabulary.fingerprint, str(max_tokens)]
    for path in paths:
        with path.open("rb") as file:
            parts.append(hashlib.file_digest(file, "sha256").hexdigest())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _read_lines(path: epath.Path) -> Iterator[str]:
    unpack = _UNPACK.get(path.suffix, contextlib.nullcontext)
    try:
        with (
            path.open("rb") as packed,
            unpack(packed) as raw,
            io.TextIOWrapper(raw, encoding="utf-8") as lines,
        ):
            yield from lines
    except (OSError, EOFError, lzma.LZMAError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"Cannot read the corpus file {path}: {error}.") from error
