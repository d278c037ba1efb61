"""Lines, axes and pictures: what is drawn is what was measured, and always the same."""

import math
import re

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

from prompt_tuning.reporting.curves import POINTS, Line, bands, curves
from prompt_tuning.reporting.plots import LIGHT, Plot, drawn

TRUNCATED = "The axis does not begin at zero."


def one_line(values, **more):
    return curves("name", "Title", [Line(label="train", values=values)], **more)


def axes_of(plot):
    """The axes that a plot is drawn on."""
    axes = Figure().add_subplot()
    plot.draw(axes, LIGHT)
    return axes


def test_a_line_has_every_value_at_its_step():
    values = {10: 3.0, 20: 1.0, 30: 2.0}
    (line,) = axes_of(one_line(values)).lines
    assert dict(zip(*line.get_data(), strict=True)) == values


def test_a_long_line_goes_through_the_means_of_its_parts_to_its_last_step():
    values = {step: float(step) for step in range(1, 7 * POINTS + 1)}
    plot = one_line(values)
    steps, heights = axes_of(plot).lines[0].get_data()
    assert len(steps) == POINTS
    assert steps[-1] == 7 * POINTS
    np.testing.assert_allclose(heights, np.asarray(steps) - 3.0)  # seven steps and their middle
    assert "the mean of about 7 lines" in plot.note


@pytest.mark.parametrize("values", [{}, {1: math.nan}, {1: math.inf}])
def test_a_line_without_a_value_is_no_plot(values):
    assert one_line(values) is None


@pytest.mark.parametrize(
    ("values", "whole"),
    [
        ([0.01, 0.02], False),
        ([90.0, 91.0], False),
        ([90.0, 91.0], True),
        ([0.5, 0.9], True),
        ([5.0, 5.0], False),
        ([-1.0, 1.0], False),
    ],
)
def test_all_values_are_on_the_axis_and_it_says_where_it_does_not_begin_at_zero(values, whole):
    plot = one_line(dict(enumerate(values)), whole=whole)
    low, high = axes_of(plot).get_ylim()
    assert low < min(values) <= max(values) < high
    assert (TRUNCATED in plot.note) == (low > 0.0)
    if whole:
        assert low <= 0.0
        assert high > (1.0 if max(values) <= 1.0 else 100.0)


def test_labels_of_lines_that_end_together_do_not_lie_over_each_other():
    lines = [Line(label=name, values={0: 2.0, 1: 1.0}) for name in ("train", "eval", "other")]
    texts = axes_of(curves("name", "Title", lines)).texts
    heights = sorted(text.xy[1] for text in texts)
    assert min(np.diff(heights)) > 0.08
    assert {text.get_text() for text in texts} == {"train 1", "eval 1", "other 1"}


def test_a_band_reaches_from_the_least_to_the_largest():
    rows = {0: np.array([1.0, 2.0, 6.0]), 1: np.array([2.0, 4.0, 9.0])}
    axes = axes_of(bands("name", "Title", rows))
    corners = axes.collections[0].get_paths()[0].vertices
    assert {tuple(corner) for corner in corners} == {(0, 1), (0, 6), (1, 2), (1, 9)}
    assert axes.lines[0].get_ydata().tolist() == [3.0, 5.0]


def test_what_cannot_be_seen_is_said():
    plot = one_line({1: 5.0, 9: 2.0}, best=(9, 2.0), level=("largest class", 3.0))
    assert plot.alt == (
        "Title: train from 5 at step 1 to 2 at step 9; best 2 at step 9; largest class 3."
    )


def test_a_picture_does_not_depend_on_the_settings_of_whoever_draws():
    plot = one_line({1: 5.0, 9: 2.0})
    usual = drawn(plot)
    with matplotlib.rc_context({"axes.linewidth": 9.0, "svg.hashsalt": "another"}):
        assert drawn(plot) == usual
        assert matplotlib.rcParams["axes.linewidth"] == 9.0


def test_two_plots_on_a_page_share_no_id():
    def draw(axes, colours):
        axes.plot([0, 1], [0, 1], "o", color=colours.accent)

    one, other = (drawn(Plot(name=name, title="T", alt="A", draw=draw)) for name in ("a", "b"))
    ids = [set(re.findall(r' id="([^"]+)"', found.svg)) for found in (one, other)]
    assert all(ids)
    assert ids[0] & ids[1] == set()


@pytest.mark.parametrize("title", ["a_task_of_a_name_without_an_end: accuracy", "x" * 80, "short"])
def test_a_title_stays_on_its_picture(title):
    ends = []

    def draw(axes, colours):
        axes.plot([1, 9], [5.0, 2.0], color=colours.accent)
        axes.figure.draw_without_rendering()
        box = axes.title if axes.title.get_text() else axes._left_title
        ends.append((box.get_window_extent().x1, axes.figure.bbox.x1))

    drawn(Plot(name="a", title=title, alt="A", draw=draw))
    assert all(end <= edge for end, edge in ends)


def test_pictures_have_names_that_files_can_have_and_no_two_the_same():
    names = ["a-b", "a/b", "../a", "a b", "日-a", "本-a", "日"]
    plots = [Plot(name=name, title="T", alt="A", draw=lambda axes, _: None) for name in names]
    found = [drawn(plot).name for plot in plots]
    assert found[0] == "a-b"
    assert len(set(found)) == len(names)
    assert all(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name) for name in found)
