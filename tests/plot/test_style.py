import numpy as np
import pytest
from matplotlib.lines import Line2D

from depthsys import plot
from depthsys.plot.style import basis_styles, log_axis, order_axis, percent_axis

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
