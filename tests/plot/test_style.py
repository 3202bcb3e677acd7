import numpy as np
import pytest
from matplotlib.lines import Line2D

from depthsys import plot
from depthsys.plot.style import (
    basis_styles,
    colour_bar,
    dwarfing,
    key_above,
    legend_beside,
    log_axis,
    order_axis,
    percent_axis,
    symlog_axis,
    thinned,
)
from tests.plot.drawing import written_over

BASES = ["ensemble", "balanced", "two_sided", "krylov", "arnoldi", "pod", "adjoint", "random"]


def test_saved_figures_are_whole_and_reproducible(energies, tmp_path):
    for name in ("a.svg", "b.svg"):
        fig, (ax,) = plot.figure()
        plot.schedule(ax, energies)
        plot.save(fig, tmp_path / name, "svg")
    plot.save(fig, tmp_path / "a.png", "png")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert b"minimum-energy schedule" in (tmp_path / "a.svg").read_bytes()
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"


def test_a_figure_may_have_rows():
    _, axes = plot.figure(columns=3, rows=2)
    assert len(axes) == 6


def test_eight_bases_differ_in_marker_and_line_and_other_names_get_what_is_free():
    styles = basis_styles(BASES)
    assert len({(style["marker"], str(style["ls"])) for style in styles}) == 8
    assert len({style["color"] for style in styles}) == 8
    widths = [style["lw"] for style in styles]
    assert widths[0] > widths[1] > max(widths[2:-1]) > widths[-1]
    # open markers mean 0 to rounding
    assert {style["marker"] for style in styles} <= set(Line2D.filled_markers)
    # whatever the place, and also within a longer label
    for name, style in zip(BASES, styles, strict=True):
        assert basis_styles(["mine", f"paper: {name} 32"])[1] == style
    assert basis_styles(["krylov 32", "krylov"])[1] == styles[3]
    others = basis_styles([*"abcdefgh", "ensemble"])
    assert others[0]["color"] == styles[1]["color"]
    assert len({style["marker"] for style in others[-1:] + others[:7]}) == 8
    assert basis_styles(["krylov or random"])[0]["color"] == styles[0]["color"]


def test_a_percent_axis_has_plain_numbers():
    texts = []
    for low, high in ((0.5, 30), (0.5, 300), (1e-9, 1)):
        fig, (ax,) = plot.figure()
        log_axis(ax)
        ax.set_ylim(low, high)
        percent_axis(ax)
        fig.draw_without_rendering()
        ticks = [*ax.get_yticklabels(), *ax.get_yticklabels(minor=True)]
        inside = [tick.get_text() for tick in ticks if low <= tick.get_position()[1] <= high]
        texts.append([text for text in inside if text])
    assert texts[:2] == [["1", "10", "0.5", "2", "5", "20"], ["1", "10", "100"]]
    assert "10^{-6}" in "".join(texts[2])


@pytest.mark.parametrize(
    ("orders", "ticks"), [([1, 2, 4], [1, 2, 4]), ([3], [3]), ([1, 4, 16], [1, 4, 16])]
)
def test_an_order_axis_has_ticks_at_the_orders_alone(orders, ticks):
    _, (ax,) = plot.figure()
    order_axis(ax, np.array(orders))
    assert ax.get_xticks().tolist() == ticks
    assert [tick.get_text() for tick in ax.get_xticklabels()] == [str(tick) for tick in ticks]


def test_an_order_axis_of_many_orders_labels_some_and_the_last():
    _, (ax,) = plot.figure()
    order_axis(ax, np.arange(10, 150))
    assert len(ax.get_xticks()) < 22
    assert ax.get_xticks()[-1] == 149


@pytest.mark.parametrize("n", [0, 1, 16, 17, 480])
def test_markers_are_few_and_those_of_two_lines_are_apart(n):
    rows = [thinned(np.ones(n), row, 2) for row in range(2)]
    assert all(len(marks) <= 16 for marks in rows)
    assert all(len(marks) >= min(n, 8) for marks in rows)
    if n > 16:
        assert not set(rows[0]) & set(rows[1])


def test_a_point_without_neighbours_keeps_its_marker():
    values = np.full(100, np.nan)
    values[[3, 50]] = 1.0
    values[60:100] = 2.0
    for row in range(3):
        marks = thinned(values, row, 3)
        assert {3, 50} <= set(marks)
        assert np.isfinite(values[marks]).all()


def test_one_place_dwarfs_the_others_or_none_does():
    assert dwarfing(np.array([[9.0, -50.0], [2.0, 1.0], [np.nan, -3.0]])) == (0, 3.0)
    assert dwarfing(np.array([1.0, 2.0, -90.0])) == (2, 2.0)
    for values in ([1.0, 4.0], [5.0], [0.0, 9.0], [np.nan, 1.0]):
        assert dwarfing(np.array(values)) is None


@pytest.mark.parametrize("ends", [(-1, 9), (-4e6, 2), (0, 30), (-2.4, 11)])
def test_a_symlog_axis_has_ticks_in_both_of_its_parts(ends):
    fig, (ax,) = plot.figure(4.5, 3.6)
    ax.plot([0, 1], ends)
    edge = symlog_axis(ax, 1.7)
    assert edge == 2.0
    inside = [tick for tick in ax.get_yticks() if abs(tick) <= edge]
    beyond = [tick for tick in ax.get_yticks() if abs(tick) > edge]
    assert len(inside) >= 3
    assert beyond
    assert not written_over(fig)


def test_a_title_stands_above_the_key_and_the_colour_bar_at_its_map():
    fig, axes = plot.figure(9, 6, columns=2, rows=2)
    for ax in axes[:2]:
        drawn = ax.imshow(np.eye(3), aspect="auto")
        colour_bar(ax, drawn, "unit")
        ax.plot([0], [0], label="a line")
        key_above(ax)
        ax.set_title("a title that is set later")
    # a wide legend under the map does not come between
    axes[2].plot([0], [0], label="a line with a long name")
    legend_beside(axes[2])
    assert not written_over(fig)
    for ax in axes[:2]:
        bar = next(child for child in ax.child_axes if child.get_ylabel() == "unit")
        box, beside = ax.get_window_extent(), bar.get_window_extent()
        assert 0 < beside.x0 - box.x1 < 0.06 * box.width
        assert beside.height == pytest.approx(box.height)
    title, key = axes[0].title.get_window_extent(), axes[0].get_legend().get_window_extent()
    assert title.y0 >= key.y1


@pytest.mark.parametrize(("columns", "fitting"), [(1, 4), (3, 1)])
def test_a_key_has_as_many_columns_as_fit(columns, fitting):
    fig, axes = plot.figure(9, 3, columns=columns)
    for i in range(4):
        axes[-1].plot([0, 1], [0, i], label=f"the curve {i}")
    key = key_above(axes[-1], ncols=4)
    assert key._ncols == fitting
    assert not written_over(fig)


def test_labels_of_a_short_log_axis_do_not_write_over_each_other():
    for low, high in ((0.04, 4), (0.9, 4.1), (3, 70), (1e-3, 0.2)):
        fig, (ax,) = plot.figure(5, 2.2)
        ax.plot([0, 1], [low, high])
        log_axis(ax)
        ax.set_ylim(low, high)
        assert not written_over(fig)
        ticks = [*ax.get_yticklabels(), *ax.get_yticklabels(minor=True)]
        inside = [t for t in ticks if t.get_text() and low <= t.get_position()[1] <= high]
        assert len(inside) >= 2
