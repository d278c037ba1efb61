"""From a drawing to a picture: SVG that takes the colours of its page, and PNG in those of paper.

The same drawing gives the same bytes: nobody's `matplotlibrc` is asked, ids follow from the name,
and no date is written.
"""

import dataclasses
import io
import re
import textwrap
import warnings
import zlib
from collections.abc import Callable, Mapping
from typing import Any
from xml.etree import ElementTree

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_INCHES = (4.4, 2.9)
_DPI = 200
# Characters of a line of a title.
_TITLE = 34
# An id, in what refers to it.
_REFERENCE = re.compile(r"#([\w-]+)")

_STYLE: Mapping[str, Any] = {
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "axes.labelsize": 9.5,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "figure.constrained_layout.use": True,
    "font.family": ["DejaVu Sans"],
    "font.size": 10,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "svg.fonttype": "none",
    # A name of a task may hold a dollar.
    "text.parse_math": False,
    "xtick.labelsize": 9.5,
    "xtick.major.size": 3,
    "ytick.labelsize": 9.5,
    "ytick.major.size": 0,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Colours:
    """What a drawing is drawn in."""

    paper: str
    ink: str
    quiet: str
    line: str
    accent: str
    second: str


# Of the pictures.
LIGHT = Colours(
    paper="#fdfcf9",
    ink="#1c1f22",
    quiet="#666d73",
    line="#dedbd3",
    accent="#14688a",
    second="#c2571a",
)
# Stand in an SVG for the variables of the page's style of the same names.
_STANDING_IN = Colours(
    **{one.name: f"#01020{i}" for i, one in enumerate(dataclasses.fields(Colours), 1)}
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plot:
    """A drawing that is not drawn yet.

    Attributes:
        name: of its picture, without the suffix. In place of what no file should be called stand
            dashes, and a number that tells it from others.
        title: what it shows.
        alt: the same for who cannot see it, with the figures that matter.
        draw: draws onto axes in colours.
        note: what must be known to read it.
        inches: width and height.
    """

    name: str
    title: str
    alt: str
    draw: Callable[[Axes, Colours], None]
    note: str = ""
    inches: tuple[float, float] = _INCHES


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawn:
    """A plot as what a page and a folder hold."""

    name: str
    title: str
    alt: str
    note: str
    svg: str
    png: bytes


def drawn(plot: Plot) -> Drawn:
    """Draws a plot twice, for the page and as a picture."""
    name = _file_name(plot.name)
    plot = dataclasses.replace(plot, name=name)
    return Drawn(
        name=name,
        title=plot.title,
        alt=plot.alt,
        note=plot.note,
        svg=_for_page(_saved(plot, _STANDING_IN, "svg"), plot),
        png=_saved(plot, LIGHT, "png"),
    )


def _file_name(name: str) -> str:
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-.")
    return plain if plain == name else f"{plain}-{zlib.crc32(name.encode()):08x}".strip("-")


def _saved(plot: Plot, colours: Colours, kind: str) -> bytes:
    with matplotlib.rc_context(), warnings.catch_warnings():
        # Names of tasks and classes may be in a script that the font has not; the page shows them.
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_settings(plot, colours))
        figure = Figure(figsize=plot.inches)
        axes = figure.add_subplot()
        _set_title(axes, plot.title)
        plot.draw(axes, colours)
        file = io.BytesIO()
        nobody = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
        figure.savefig(file, format=kind, dpi=_DPI, metadata=nobody)
    return file.getvalue()


def _set_title(axes: Axes, title: str) -> None:
    """Sets a title so that it stays on the picture, whatever a task is called."""
    lines = textwrap.wrap(title, _TITLE, break_long_words=False, break_on_hyphens=False)
    longest = max(map(len, lines), default=1)
    scale = min(1.0, _TITLE / longest)
    axes.set_title("\n".join(lines), pad=10, fontsize=scale * 11.5)


def _settings(plot: Plot, colours: Colours) -> dict[Any, Any]:
    return {
        **_STYLE,
        "axes.edgecolor": colours.quiet,
        "axes.facecolor": colours.paper,
        "axes.labelcolor": colours.quiet,
        "axes.titlecolor": colours.ink,
        "figure.facecolor": colours.paper,
        "grid.color": colours.line,
        "savefig.facecolor": colours.paper,
        "svg.hashsalt": plot.name,  # ids are of this plot, and the same for the same drawing
        "text.color": colours.ink,
        "xtick.color": colours.quiet,
        "ytick.color": colours.quiet,
    }


def _for_page(svg: bytes, plot: Plot) -> str:
    """Returns an SVG as a part of HTML: no namespaces, colours of the page, no id for nothing."""
    root = ElementTree.fromstring(svg)
    for parent in list(root.iter()):
        for child in list(parent):
            if _local(child.tag) == "metadata":
                parent.remove(child)
    kept = {
        name
        for element in root.iter()
        for value in element.attrib.values()
        for name in _REFERENCE.findall(value)
    }
    for element in root.iter():
        element.tag = _local(element.tag)
        element.attrib = {
            _local(name): _of_page(value)
            for name, value in element.attrib.items()
            if name != "id" or value in kept
        }
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.attrib |= {"role": "img", "aria-label": plot.alt}
    return ElementTree.tostring(root, encoding="unicode", short_empty_elements=True)


def _of_page(value: str) -> str:
    """Returns the value of an attribute with the colours and the font of the page."""
    for field, colour in dataclasses.asdict(_STANDING_IN).items():
        value = value.replace(colour, f"var(--{field})")
    return re.sub(r" *font-family: [^;]*;", "", value)


def _local(name: str) -> str:
    """The name of a tag or attribute without its namespace."""
    return name.rpartition("}")[2]
