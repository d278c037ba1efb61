"""What a page is made of: sections of blocks, as plain values that a template sets."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from prompt_tuning.reporting.plots import Drawn


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """One place in a table; a `best` one stands out."""

    text: str
    best: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """Columns under names. The first column names its row."""

    kind: ClassVar[str] = "table"
    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    # Whether cells are numbers, which are set to the right.
    numeric: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Text:
    """A paragraph; a `warning` stands out."""

    kind: ClassVar[str] = "text"
    text: str
    warning: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Code:
    """A file to unfold."""

    kind: ClassVar[str] = "code"
    title: str
    text: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figures:
    """Plots side by side, as many as there is room for."""

    kind: ClassVar[str] = "figures"
    plots: Sequence[Drawn]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """What a model was asked and what it said."""

    name: str
    asked: str
    wanted: str
    answered: str
    right: bool
    score: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Examples:
    """Some examples under a title."""

    kind: ClassVar[str] = "examples"
    title: str
    examples: Sequence[Example]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vector:
    """One vector of a prompt with the tokens next to it, each with its cosine."""

    number: int
    norm: str
    moved: str
    near: Sequence[tuple[str, str]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vectors:
    """The vectors of a prompt."""

    kind: ClassVar[str] = "vectors"
    vectors: Sequence[Vector]


Block = Table | Text | Code | Figures | Examples | Vectors


@dataclasses.dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the page: blocks, or the reason why there are none."""

    name: str
    title: str
    blocks: Sequence[Block] = ()
    reason: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fact:
    """A figure at the head of the page."""

    label: str
    value: str
    about: str = ""


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[str | Cell]],
    *,
    caption: str,
    numeric: bool = True,
) -> Table:
    """Returns a table of texts and cells."""
    cells = [[one if isinstance(one, Cell) else Cell(text=one) for one in row] for row in rows]
    return Table(caption=caption, header=header, rows=cells, numeric=numeric)


def number(value: float, figures: int = 4) -> str:
    """Returns a number as a person reads it, to so many figures; NaN is a dash.

    >>> number(0.123456), number(1234567.0)
    ('0.1235', '1,234,567')
    """
    if value != value:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.{figures}g}"
