"""Maps and ways of a page: what is painted where, in which colour, and what is said of it."""

import re

import matplotlib as mpl
import numpy as np
import pytest

from depthsys.report.dynamics import SHOWN
from depthsys.report.dynamics.shown import Cells, Curve, Map
from depthsys.report.html import CellResults, Results, heat, page, ways
from depthsys.report.stage import Stage

PIECE = re.compile(r'<path fill="(#\w{6})" d="([^"]*)"><title>([^<]*)</title>')
BOX = re.compile(r"M([\d.]+),([\d.]+)H([\d.]+)V([\d.]+)H[\d.]+Z")


def a_map(**options) -> Map:
    return Map("t", "down, in words", "across", "unit", frozenset({"a"}), lambda stage: None,
               **options)  # fmt: skip


def painted(svg: str) -> list[tuple[str, tuple[float, ...], str]]:
    """Colour, left, top, right and bottom of every piece, and its title."""
    found = []
    for colour, path, title in PIECE.findall(svg):
        for x, y, right, below in BOX.findall(path):
            ends = float(x), min(float(y), float(below)), float(right), max(float(y), float(below))
            found.append((colour, ends, title))
    return found


def cells(values, rows=None, columns=None) -> Cells:
    values = np.array(values, dtype=float)
    rows, columns = (
        np.arange(float(n)) if given is None else np.array(given, dtype=float)
        for n, given in zip(values.shape, (rows, columns), strict=True)
    )
    return Cells(values, rows, columns)


def lightness(code: str) -> float:
    """L* of CIE 1976."""
    rgb = np.array([int(code[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return 116 * float(np.cbrt(linear @ [0.2126, 0.7152, 0.0722])) - 16


def test_colours_are_even_also_in_grey():
    steps = np.diff([lightness(heat.colour(level)) for level in range(heat.LEVELS)])
    assert steps.min() > 0
    assert steps.max() < 1.6 * steps.mean()
    known = mpl.colormaps["viridis"](np.linspace(0, 1, heat.LEVELS), bytes=True)[:, :3]
    codes = [heat.colour(level) for level in range(heat.LEVELS)]
    ours = [[int(code[i : i + 2], 16) for i in (1, 3, 5)] for code in codes]
    np.testing.assert_allclose(ours, known, atol=6)


@pytest.mark.parametrize("matrix", [False, True])
def test_every_number_is_painted_where_it_belongs(matrix):
    values = [[1.0, 2.0, np.nan], [4.0, 1.0, 3.0]]
    drawn = a_map(matrix=matrix)
    picture, said = heat.picture(cells(values), drawn, "named")
    found = painted(picture)
    assert len(found) == 5  # nothing where nothing is known
    by_colour = {}
    for colour, box, title in found:
        by_colour.setdefault(colour, []).append((box, title))
    codes = sorted(by_colour, key=lightness)
    assert len(codes) == 4
    for code, value in zip(codes, (1, 2, 3, 4), strict=True):
        numbers = [float(n) for n in re.findall(r"[\d.]+", by_colour[code][0][1])]
        if len(numbers) == 2:
            assert numbers[0] <= value <= numbers[1]
    (two,) = by_colour[codes[1]]  # first row, second column
    (four,) = by_colour[codes[3]]  # second row, first column
    assert two[0][0] == four[0][2]
    assert (two[0][1] < four[0][1]) is matrix
    both = {box[:2] for box, _ in by_colour[codes[0]]}
    assert both == {(four[0][0], two[0][1]), (two[0][0], four[0][1])}
    assert said == "From 1.00 (down 0, across 0) to 4.00 (down 1, across 0); median 2.00."
    assert f'aria-label="named. {said}"' in picture


def test_equal_numbers_side_by_side_are_one_piece():
    picture, _ = heat.picture(cells([[5.0, 5.0, 5.0, 1.0]]), a_map(), "")
    wide, narrow = sorted((box[2] - box[0] for _, box, _ in painted(picture)), reverse=True)
    np.testing.assert_allclose(wide, 3 * narrow, atol=0.2)


def test_numbers_beyond_the_ends_of_the_colours_are_at_the_ends():
    picture, _ = heat.picture(cells([[0.1, 0.6, 9.0]]), a_map(span=(0.5, 1.0)), "")
    titles = [title for _, _, title in sorted(painted(picture), key=lambda each: each[1])]
    assert titles[0] == "0.512 or less"
    assert titles[2] == "0.988 or more"
    low, high = map(float, titles[1].split(" to "))
    assert low <= 0.6 <= high


def test_logarithmic_colours_leave_out_what_has_no_logarithm_and_say_so():
    picture, said = heat.picture(cells([[0.0, 1e-4, 1e-2, 1.0, -1.0]]), a_map(log=True), "")
    colours = [colour for colour, *_ in sorted(painted(picture), key=lambda each: each[1])]
    assert len(colours) == 3
    levels = [[heat.colour(n) for n in range(heat.LEVELS)].index(code) for code in colours]
    assert abs((levels[2] - levels[1]) - (levels[1] - levels[0])) <= 1
    assert "unit, log scale</text>" in picture
    assert said.startswith("From 0.000100 (down 0, across 1) to 1.00")
    assert heat.picture(cells([[0.0, -1.0]]), a_map(log=True), "") is None
    assert heat.picture(cells([[np.nan]]), a_map(), "") is None


def test_a_single_number_and_numbers_that_are_all_the_same_are_painted():
    for values in ([[2.0]], np.full((3, 2), 7.0)):
        picture, _ = heat.picture(cells(values), a_map(), "")
        assert painted(picture)


def test_places_are_where_their_labels_are():
    picture, said = heat.picture(cells([[1.0, 2.0]], [40.0], [10.0, 12.0]), a_map(), "")
    assert "(down 40, across 12)" in said
    assert ">10</text>" in picture
    assert ">12</text>" in picture


def test_a_map_of_many_layers_is_small():
    values = np.random.default_rng(0).uniform(0.5, 1.1, (30, 30))
    picture, _ = heat.picture(cells(values), a_map(), "")
    assert len(picture) < 45_000


def test_a_way_goes_through_its_points_and_names_its_ends():
    points = np.array([[0.0, 0.0], [1.0, 2.0], [np.nan, 1.0], [4.0, 2.0]])
    picture = ways.picture(points, np.array([0, 1, 2, 3]), ("first", "second"), "sublayer", "t")
    assert [f"sublayer {n}:" in picture for n in range(4)] == [True, True, False, True]
    (path,) = re.findall(r'class="l" d="M([^"]*)"', picture)
    x, y = np.array([list(map(float, each.split(","))) for each in path.split("L")]).T
    np.testing.assert_allclose(np.diff(x) / (x[-1] - x[0]), [0.25, 0.75], atol=1e-3)
    assert y[0] > y[1] == y[2]  # upwards
    assert ">0</text>" in picture
    assert ">3</text>" in picture
    assert ways.picture(points[:1], np.array([0]), ("", ""), "", "") is None
    still = ways.picture(np.zeros((3, 2)), np.arange(3), ("", ""), "sublayer", "t")
    assert "sublayer 2" in still


# ----------------------------------------------------------------------------- of measures


def cells_of(name: str, stage: Stage) -> Cells:
    (drawn,) = SHOWN[name].maps
    found = drawn.cells(stage)
    assert found is not None
    return found


def test_the_map_of_coupling_is_the_mean_over_prompts_without_its_diagonal():
    m = np.array([[[0.0, 0.6], [0.8, 0.0]], [[0.0, 1.0], [0.9, 0.0]]])
    stage = Stage({
        "coupling": (("prompt", "layer", "layer_2"), m),
        "layer": (("layer",), np.array([3, 4])),
        "layer_2": (("layer_2",), np.array([3, 4])),
    })  # fmt: skip
    found = cells_of("coupling", stage)
    np.testing.assert_allclose(found.values, [[np.nan, 0.8], [0.85, np.nan]])
    np.testing.assert_array_equal(found.rows, [3, 4])
    assert stage.value("coupling")[0, 0, 0] == 0  # the result itself is as it was


def test_the_map_of_lags_has_those_of_half_of_the_prompts():
    rms = np.arange(8.0).reshape(2, 4)
    stage = Stage({
        "rms": (("layer", "lag"), rms), "n_prompts": (("lag",), np.array([4, 3, 2, 1])),
    })  # fmt: skip
    found = cells_of("tokens", stage)
    np.testing.assert_array_equal(found.values, rms.T[:3])
    np.testing.assert_array_equal(found.rows, [0, 1, 2])
    many = Stage({
        "rms": (("layer", "lag"), np.ones((1, 200))),
        "n_prompts": (("lag",), np.full(200, 4)),
    })  # fmt: skip
    assert cells_of("tokens", many).values.shape == (64, 1)


def test_the_map_of_angles_counts_eigenvalues():
    degrees = np.array([[0.0, 179.0, 91.0, -91.0], [5.0, 5.0, 5.0, 5.0]])
    angle = np.radians([degrees, np.zeros((2, 4))])
    stage = Stage({
        "of": (("of",), np.array(["layer", "update"])),
        "angle": (("of", "layer", "mode"), angle),
    })  # fmt: skip
    found = cells_of("spectra", stage)
    expected = np.zeros((18, 2))
    expected[[0, 9, 17], 0] = 0.25, 0.5, 0.25
    expected[0, 1] = 1
    np.testing.assert_array_equal(found.values, expected)
    assert found.rows[9] == 95
    other = stage.variables | {"of": (("of",), np.array(["other", "update"]))}
    assert SHOWN["spectra"].maps[0].cells(Stage(other)) is None


def test_a_page_shows_maps_ways_and_tables_of_a_cell():
    coupling = Stage({
        "coupling": (("prompt", "layer", "layer_2"), np.array([[[0.0, 0.75], [0.9, 0.0]]])),
        **{name: (("prompt", "layer"), np.full((1, 2), 0.8))
           for name in ("of_others", "of_closest")},
    })  # fmt: skip
    residual = Stage({
        "mean_score": (("sublayer", "component"), np.array([[0.0, 1.0, 9.0], [2.0, 3.0, 9.0]])),
        "explained": (("component",), np.array([0.6, 0.25, 0.1])),
        "turns": (("feature",), np.array([1.0, 2.0, 3.0, np.nan])),
        "turns_shuffled": (("feature",), np.array([4.0, 2.0, 1.0, 1.0])),
        "q_value": (("feature",), np.array([0.01, 0.5, 0.02, 0.5])),
        "start": (("start",), np.array([0])),
        **{f"{p}_{n}": (("start",), np.array([0.5]))
           for p in ("flow", "near") for n in ("inward_share", "contraction", "basin_radius")},
        "flow_inward_fraction": (("start", "ring"), np.array([[0.25, np.nan, 0.75]])),
    })  # fmt: skip
    stages = {"residual": residual, "coupling": coupling}
    html = page(Results("one", (CellResults("m", "t", "0", "c", stages),)))
    assert "From 0.750 (layer 0, directions of layer 1) to 0.900 (layer 1" in html
    assert "first component (60\u00a0% of variance)" in html
    assert "second component (25\u00a0% of variance)" in html
    assert "<h4>Coupling of layers</h4>" in html
    assert "States put all over the plane: share that ends nearer to its own way" in html
    assert "States put near their own place: share" not in html  # there is no such variable
    assert "From 0.250 (from sublayer 0, ring 0) to 0.750 (from sublayer 0, ring 2" in html
    row = html.split("<caption>Turns of units")[1].split("</table>")[0]
    said = re.findall(r"<t[hd][^>]*>([^<]*)<", row)
    assert said[-6:] == ["3", "2.00", "2.33", "67\u00a0%", "33\u00a0%", "33\u00a0%"]
    assert "Larger figures of all measures are beside the results" in html
    alone = page(Results("one", (CellResults("m", "t", "0", "c", {"coupling": coupling}),)))
    assert "teleportation" not in alone
    assert "no part of this page" not in alone


@pytest.mark.filterwarnings("error")
def test_what_is_not_known_of_some_is_that_of_the_others():
    nan = np.nan
    stage = Stage({"a": (("step", "unit"), np.array([[nan, nan, nan], [1.0, nan, 4.0]]))})
    for middle, expected in (("mean", 2.5), ("median", 2.5), ("largest", 4.0), (0.0, 1.0)):
        found = Curve("a", "a", middle=middle).values(stage, "step")
        np.testing.assert_array_equal(found, [nan, expected])
