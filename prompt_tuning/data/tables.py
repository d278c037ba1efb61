"""Rows of the files that people keep examples in: TSV, CSV, JSON lines, Parquet, plain text.

Every row of a file has the same columns, every field is text or `None`, and whatever does not fit
is an error that names its line.
"""

import contextlib
import csv
import gzip
import itertools
import json
import os
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow
import pyarrow.parquet
from etils import epath

from prompt_tuning.errors import DataError

Line = tuple[int, str]

# Excel and others begin their UTF-8 files with it; it is no part of the first column's name.
_BYTE_ORDER_MARK = "\ufeff"
_BATCH_ROWS = 4096


class Row(NamedTuple):
    """One row: where it stands, to say so in a message, and its fields by column."""

    place: str
    fields: Mapping[str, str | None]


def is_table(path: str) -> bool:
    """Tells whether the name of a file says that `read_rows` reads it; the file need not be there.

    >>> is_table("films/train.tsv.gz")
    True
    """
    return _reader(path) is not None


def read_rows(path: str) -> Iterator[Row]:
    """Yields the rows of a file, in order and while they are read.

    - `.tsv`: the first line names the columns; fields are split at tabs and never quoted (GLUE).
    - `.csv`: the first line names the columns; quoted as RFC 4180 says.
    - `.jsonl`: one object a line, all with the keys of the first. Numbers stay as they are
      written; lists and objects become JSON text.
    - `.parquet`: as `.jsonl`, but typed.
    - `.txt`: every line, empty ones too, is the one column `inputs`.

    All but Parquet are UTF-8 and may be packed by gzip (`.tsv.gz`).

    Raises:
        DataError: the file cannot be read, is damaged, has no rows, or has one that does not fit.
    """
    reader = _reader(path)
    if reader is None:
        raise DataError(f"{path} is no table. Its name should end with one of: {endings()}.")
    return _not_empty(path, reader(path))


def read_tsv(path: str) -> Iterator[Row]:
    """Yields the rows of a tab-separated file, whatever its name, as `read_rows` does."""
    return _not_empty(path, _read_tsv(path))


def endings() -> str:
    """Returns the endings of the names that are read, for a message."""
    return ", ".join([*_READERS, *(f"{ending}.gz" for ending in _TEXT_READERS)])


def _reader(path: str) -> Callable[[str], Iterator[Row]] | None:
    name = path.lower()
    ending = os.path.splitext(name.removesuffix(".gz"))[1]
    return (_TEXT_READERS if name.endswith(".gz") else _READERS).get(ending)


def _not_empty(path: str, rows: Iterator[Row]) -> Iterator[Row]:
    for first in rows:
        return itertools.chain([first], rows)
    raise DataError(
        f"{path} is empty or has only the names of its columns: there are no examples in it."
    )


def _read_tsv(path: str) -> Iterator[Row]:
    lines = ((number, _without_end(line).split("\t")) for number, line in _lines(path))
    return _under_header(path, lines)


def _read_csv(path: str) -> Iterator[Row]:
    # The module's own limit would refuse a long document, and it has no other setting.
    csv.field_size_limit(sys.maxsize)
    reader = csv.reader((line for _, line in _lines(path)), strict=True)

    def records() -> Iterator[tuple[int, list[str]]]:
        # A quoted field may hold line ends, so a record is named by the line that it begins on.
        begins = 1
        try:
            for record in reader:
                yield begins, record
                begins = reader.line_num + 1
        except csv.Error as error:
            raise DataError(
                f"{path}, line {begins} is not CSV: {error}. A field with a comma, a quote or a "
                'line end stands in "quotes", with the quotes in it doubled; use .tsv for files '
                "that are never quoted."
            ) from error

    return _under_header(path, records())


def _read_text(path: str) -> Iterator[Row]:
    for number, line in _lines(path):
        yield Row(f"{path}, line {number}", {"inputs": _without_end(line)})


def _under_header(path: str, records: Iterator[tuple[int, Sequence[str]]]) -> Iterator[Row]:
    _, header = next(records, (1, ()))
    _check_columns(path, header)
    for number, record in records:
        if len(record) != len(header):
            raise DataError(
                f"{path}, line {number} has {len(record)} fields, but the first line names "
                f"{len(header)} columns: {', '.join(header)}."
            )
        yield Row(f"{path}, line {number}", dict(zip(header, record, strict=True)))


def _read_json_lines(path: str) -> Iterator[Row]:
    columns: Sequence[str] | None = None
    for number, line in _lines(path):
        place = f"{path}, line {number}"
        record = _parse_json(place, line)
        if not isinstance(record, dict):
            raise DataError(f"{place} is not a JSON object, like {{...}}, but: {line.strip()[:40]}")
        columns = list(record) if columns is None else columns
        if record.keys() != set(columns):
            raise DataError(
                f"{place} has the keys {', '.join(record)}, but line 1 has {', '.join(columns)}. "
                "All lines need the same; write null where a value is not known."
            )
        yield Row(place, {name: _text(record[name]) for name in columns})


def _parse_json(place: str, line: str) -> Any:
    try:
        # Numbers as they are written: 1.10 stays 1.10.
        record = json.loads(line, parse_int=_Number, parse_float=_Number, parse_constant=_no)
        if "\\u" in line:
            # An escape may be half of a character, which is no text.
            json.dumps(record, ensure_ascii=False).encode("utf-8")
    except json.JSONDecodeError as error:
        # Without the library's own line number: it counts from here.
        raise DataError(
            f"{place} is not JSON: {error.msg} at character {error.colno}. Write one object a line."
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place} is not JSON: {error}. Write one object a line.") from error
    return record


def _read_parquet(path: str) -> Iterator[Row]:
    try:
        with epath.Path(path).open("rb") as raw, pyarrow.parquet.ParquetFile(raw) as file:
            _check_columns(path, file.schema_arrow.names)
            batches = file.iter_batches(_BATCH_ROWS)
            records = itertools.chain.from_iterable(_records(path, batch) for batch in batches)
            for number, fields in enumerate(records, start=1):
                yield Row(f"{path}, row {number}", fields)
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"Cannot read the Parquet file {path}: {error}.") from error


def _records(path: str, batch: pyarrow.RecordBatch) -> Iterator[Mapping[str, str | None]]:
    names = batch.schema.names
    columns = [
        _texts(f"{path}, column {name!r}", column)
        for name, column in zip(names, batch.columns, strict=True)
    ]
    for values in zip(*columns, strict=True):
        yield dict(zip(names, values, strict=True))


def _texts(place: str, column: pyarrow.Array) -> list[str | None]:
    kind = column.type
    if pyarrow.types.is_dictionary(kind):
        return _texts(place, column.dictionary_decode())
    if pyarrow.types.is_nested(kind) or pyarrow.types.is_null(kind):
        return [_text(value) for value in column.to_pylist()]
    try:
        return column.cast(pyarrow.string()).to_pylist()
    except pyarrow.ArrowException as error:
        raise DataError(f"{place} holds {kind}, which cannot be read as text: {error}.") from error


def _lines(path: str) -> Iterator[Line]:
    """Yields the lines of a text file with their numbers and ends.

    A line ends at a line feed only; what other readers take for one may stand inside a sentence.
    """
    try:
        unpack = gzip.open if path.lower().endswith(".gz") else contextlib.nullcontext
        with epath.Path(path).open("rb") as packed, unpack(packed) as file:
            for number, line in enumerate(file, start=1):
                text = _decode(f"{path}, line {number}", line)
                yield number, text.removeprefix(_BYTE_ORDER_MARK) if number == 1 else text
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"Cannot read the task file {path!r}: {error}.") from error


def _decode(place: str, line: bytes) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        utf16 = " It looks like UTF-16." if line[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
        raise DataError(
            f"{place} is not UTF-8 text: byte {error.start + 1} of the line is "
            f"0x{line[error.start]:02x}.{utf16} Save the file as UTF-8."
        ) from error


def _without_end(line: str) -> str:
    return line.removesuffix("\n").removesuffix("\r")


def _check_columns(path: str, columns: Iterable[str]) -> None:
    seen = set()
    for name in columns:
        if name in seen:
            raise DataError(f"{path} has two columns named {name!r}. Rename one.")
        seen.add(name)


class _Number(str):
    """A number as a JSON file writes it."""


def _no(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON value")


def _text(value: Any) -> str | None:
    if value is None:
        return None
    if isinstance(value, str):
        return str(value)  # and no `_Number`, which nobody could store
    return json.dumps(_plain(value), ensure_ascii=False, default=str)


def _plain(value: Any) -> Any:
    """Turns the numbers inside lists and objects back into what `json.dumps` writes as numbers."""
    if isinstance(value, _Number):
        return json.loads(value)
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    return value


_TEXT_READERS: Mapping[str, Callable[[str], Iterator[Row]]] = {
    ".tsv": _read_tsv,
    ".csv": _read_csv,
    ".jsonl": _read_json_lines,
    ".txt": _read_text,
}
_READERS = {**_TEXT_READERS, ".parquet": _read_parquet}
