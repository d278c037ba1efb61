"""How reports look on a terminal: lines beside labels, tables, sizes in words."""

import textwrap
from collections.abc import Sequence

# A label, and the line or lines beside it.
Row = tuple[str, str | Sequence[str]]
WIDTH = 110


def block(title: str, rows: Sequence[Row]) -> str:
    """Returns a title and, indented under it, labels with their lines aligned beside them.

    Long lines are wrapped at spaces; those that begin with one are tables and stay as they are.

        Prompt tuning
          trains   1 tensor
          steps    20 to 80
    """
    width = max((len(label) for label, _ in rows), default=0) + 2
    lines = [title]
    for label, said in rows:
        for line in _lines(said, WIDTH - width - 2):
            lines.append(f"  {label:<{width}}{line}")
            label = ""
    return "\n".join(lines)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns the lines of a table: the first column to the left, all others to the right."""
    columns = list(zip(header, *rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    return ["  ".join(_cells(row, widths)).rstrip() for row in (header, *rows)]


def size(count: int) -> str:
    """Returns a number of bytes as a person says it.

    >>> size(2_296_320)
    '2.2 MiB'
    """
    units = ("bytes", "KiB", "MiB", "GiB", "TiB")
    power = 0
    while power + 1 < len(units) and count >= 1024 ** (power + 1):
        power += 1
    return f"{count:,} bytes" if power == 0 else f"{count / 1024**power:.1f} {units[power]}"


def many(count: int, thing: str) -> str:
    """Returns `1 step`, `2,000 steps`, `2 batches`."""
    plural = f"{thing}es" if thing.endswith("ch") else f"{thing}s"
    return f"{count:,} {thing if count == 1 else plural}"


def _lines(said: str | Sequence[str], width: int) -> list[str]:
    wrapped: list[str] = []
    for line in [said] if isinstance(said, str) else said:
        wrapped += (
            [line]
            if "  " in line
            # A path or a hash is copied: it stays in one piece.
            else textwrap.wrap(line, width, break_long_words=False, break_on_hyphens=False) or [""]
        )
    return wrapped


def _cells(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [
        cell.ljust(width) if i == 0 else cell.rjust(width)
        for i, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
