"""Lines over the steps of a run, and how their axes and labels are set."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

from prompt_tuning.reporting.blocks import number
from prompt_tuning.reporting.plots import Colours, Plot

# A longer line is drawn through the means of as many equal parts.
POINTS = 300
# Of a shorter one each value is marked.
_MARKED = 40
# The least distance of two labels at the end of lines, in heights of the axes.
_APART = 0.09


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """Values by step under a name; `around` are lower and upper bounds to shade."""

    label: str
    values: Mapping[int, float]
    colour: str = "accent"
    around: tuple[Mapping[int, float], Mapping[int, float]] | None = None


def curves(
    name: str,
    title: str,
    lines: Sequence[Line],
    *,
    best: tuple[int, float] | None = None,
    level: tuple[str, float] | None = None,
    whole: bool = False,
) -> Plot | None:
    """Returns a plot of lines, each labelled at its end; None if none has a value.

    Args:
        name: of the plot.
        title: what is measured.
        lines: at most a handful.
        best: a step and its value, to be marked.
        level: a value to compare with, under a name.
        whole: whether the axis shows all of 0 to 1, or 0 to 100 if a value is above 1.
    """
    lines = [line for line in map(_finite, lines) if line.values]
    if not lines:
        return None
    bounds = [value for line in lines for one in line.around or () for value in one.values()]
    values = [value for line in lines for value in line.values.values()] + bounds
    low, high = _limits([*values, *([level[1]] if level else [])], whole)
    longest = max(len(line.values) for line in lines)

    def draw(axes: Axes, colours: Colours) -> None:
        ends = []
        for line in lines:
            colour = getattr(colours, line.colour)
            steps, heights = _thinned(line.values)
            if line.around is not None:
                low_edge, high_edge = (_thinned(one)[1] for one in line.around)
                axes.fill_between(steps, low_edge, high_edge, color=colour, alpha=0.18, linewidth=0)
            marker = "o" if len(steps) <= _MARKED else None
            axes.plot(steps, heights, color=colour, marker=marker, markersize=3.2)
            last = line.values[max(line.values)]
            ends.append((last, f"{line.label} {number(last, 3)}".strip(), colour))
        if level is not None:
            axes.axhline(level[1], color=colours.quiet, linewidth=1, linestyle=(0, (4, 3)))
            ends.append((level[1], f"{level[0]} {number(level[1], 3)}", colours.quiet))
        axes.set_ylim(low, high)
        _set_axes(axes)
        _label_ends(axes, ends, low, high)
        if best is not None:
            _mark(axes, best, colours, low, high)

    return Plot(
        name=name,
        title=title,
        alt=_alt(title, lines, best, level),
        draw=draw,
        note=_note(low, longest),
    )


def bands(
    name: str, title: str, rows: Mapping[int, Float[np.ndarray, " P"]], *, level=None
) -> Plot | None:
    """Returns a plot of the mean of many values over steps, shaded from the least to the largest.

    Args:
        name: of the plot.
        title: what is measured.
        rows: the values of each step.
        level: a value to compare with, under a name.
    """
    mean = {step: float(np.mean(row)) for step, row in rows.items()}
    least = {step: float(np.min(row)) for step, row in rows.items()}
    most = {step: float(np.max(row)) for step, row in rows.items()}
    line = Line(label="mean", values=mean, around=(least, most))
    return curves(name, title, [line], level=level)


def _finite(line: Line) -> Line:
    finite = {step: value for step, value in line.values.items() if math.isfinite(value)}
    return dataclasses.replace(line, values=dict(sorted(finite.items())))


def _thinned(values: Mapping[int, float]) -> tuple[np.ndarray, np.ndarray]:
    """Returns steps and values, of many the means of equal parts and the end of each."""
    steps, heights = np.asarray([*values]), np.asarray([*values.values()])
    if len(steps) <= POINTS:
        return steps, heights
    parts = np.array_split(np.arange(len(steps)), POINTS)
    return np.asarray([steps[part[-1]] for part in parts]), np.asarray(
        [heights[part].mean() for part in parts]
    )


def _limits(values: Sequence[float], whole: bool) -> tuple[float, float]:
    """Returns the ends of the axis: from zero unless the values lie close together far from it."""
    low, high = min(values), max(values)
    if whole and low >= 0.0 and high <= 100.0:
        top = 1.0 if high <= 1.0 else 100.0
        return -0.02 * top, 1.04 * top
    if 0.0 <= low < 0.6 * high:
        return -0.02 * high, 1.1 * high
    room = 0.12 * (high - low) or 0.1 * abs(high) or 1.0
    return low - room, high + room


def _note(low: float, longest: int) -> str:
    notes = []
    if low > 0.0:
        notes.append("The axis does not begin at zero.")
    if longest > POINTS:
        each = max(2, round(longest / POINTS))
        notes.append(f"Each point is the mean of about {each} lines of the log.")
    return " ".join(notes)


def _set_axes(axes: Axes) -> None:
    axes.set_xlabel("step")
    axes.grid(axis="y", linewidth=0.8)
    axes.spines["left"].set_visible(False)
    low, high = axes.dataLim.intervalx
    # Around a single step there is nothing to be counted.
    one_step = FixedLocator([low]) if low == high else None
    axes.xaxis.set_major_locator(one_step or MaxNLocator(3, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))


def _label_ends(
    axes: Axes, ends: Sequence[tuple[float, str, str]], low: float, high: float
) -> None:
    """Writes beside the end of each line what it is and its last value, none over another."""
    height = -math.inf
    for value, text, colour in sorted(ends):
        height = max((value - low) / (high - low), height + _APART)
        place = (1.02, height)
        axes.annotate(text, place, xycoords="axes fraction", va="center", color=colour)


def _mark(axes: Axes, best: tuple[int, float], colours: Colours, low: float, high: float) -> None:
    axes.plot(
        *best, "o", markersize=8, markerfacecolor="none", markeredgecolor=colours.ink, zorder=5
    )
    above = best[1] < low + 0.85 * (high - low)
    left, right = axes.get_xlim()
    is_left = best[0] < left + 0.5 * (right - left)
    axes.annotate(
        f"best {number(best[1])}",
        best,
        xytext=(0, 9 if above else -9),
        textcoords="offset points",
        ha="left" if is_left else "right",
        va="bottom" if above else "top",
    )


def _alt(
    title: str,
    lines: Sequence[Line],
    best: tuple[int, float] | None,
    level: tuple[str, float] | None,
) -> str:
    said = []
    for line in lines:
        first, last = min(line.values), max(line.values)
        ends = f"{number(line.values[first])} at step {first:,}"
        if last != first:
            ends = f"from {ends} to {number(line.values[last])} at step {last:,}"
        said.append(f"{line.label} {ends}".strip())
    if best is not None:
        said.append(f"best {number(best[1])} at step {best[0]:,}")
    if level is not None:
        said.append(f"{level[0]} {number(level[1])}")
    return f"{title}: {'; '.join(said)}."
