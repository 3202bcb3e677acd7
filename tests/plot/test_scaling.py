import numpy as np
import pytest
import xarray as xr

from depthsys import plot
from depthsys.plot import sheets
from tests.plot.drawing import segments_of, written_over, zeros_of
from tests.plot.tables import PARTS, with_interval


@pytest.fixture
def table():
    """Three models, two tasks, three seeds."""
    rng = np.random.default_rng(0)
    error = 0.01 + 0.1 * rng.random((3, 2, 3))
    parts = error[..., None] * [0.1, 0.5, 0.8, 0.3, 1.0]
    cell = ("model", "task", "seed")
    return xr.Dataset(
        {
            "n_parameters": ("model", [10**8, 2 * 10**5, 10**6]),
            "relative_l2": ((*cell, "bound"), with_interval(error)),
            "spearman": ((*cell, "bound"), with_interval(0.4 + 0.1 * error)),
            "budget": ((*cell, "part", "bound"), with_interval(parts)),
        },
        coords={
            "model": ["large", "small", "middle"],
            "task": ["sst2", "imdb"],
            "seed": [0, 1, 2],
            "part": PARTS,
            "bound": ["estimate", "low", "high"],
        },
    )


def scaled(tmp_path, table, quantity="relative_l2", **settings):
    fig, (ax,) = plot.figure()
    plot.scaling(ax, table, quantity, **settings)
    plot.save(fig, tmp_path / "a.png", "png")
    return ax


def seeds_of(ax):
    return [line for line in ax.lines if line.get_label() == "_seeds"]


def medians_of(ax, tasks=("sst2", "imdb")):
    return [line for line in ax.lines if str(line.get_label()).startswith(tasks)]


@pytest.mark.parametrize("quantity", ["relative_l2", "spearman", "averaging"])
def test_scaling_shows_every_seed_with_its_interval_and_joins_medians(table, quantity, tmp_path):
    ax = scaled(tmp_path, table, quantity)
    known = quantity in table
    values = table[quantity] if known else table.budget.sel(part=quantity, drop=True)
    values = values if quantity == "spearman" else 100 * values
    for task, marks, joined in zip(table.task.values, seeds_of(ax), medians_of(ax), strict=True):
        one = values.sel(task=task)
        np.testing.assert_allclose(marks.get_ydata(), one.sel(bound="estimate").values.ravel())
        want = one.sel(bound="estimate").median("seed").sortby(table.n_parameters)
        np.testing.assert_allclose(joined.get_ydata(), want)
        assert joined.get_label() == task
        # rising sizes, each near its own
        np.testing.assert_allclose(joined.get_xdata(), [2e5, 1e6, 1e8], rtol=0.2)
    drawn = [s[:, 1] for c in ax.collections for s in segments_of(c)]
    ends = values.sel(bound=["low", "high"]).transpose("task", "model", "seed", "bound")
    np.testing.assert_allclose(np.sort(drawn, axis=0), np.sort(ends.values.reshape(-1, 2), axis=0))
    places = np.concatenate([line.get_xdata() for line in seeds_of(ax)])
    assert len(set(places)) == 18
    one, other = medians_of(ax)
    assert one.get_marker() != other.get_marker()
    assert ax.get_xscale() == "log"
    assert ax.get_yscale() == ("linear" if quantity == "spearman" else "log")
    assert ax.get_xlabel() == "number of parameters"


def test_panels_of_errors_have_one_axis_and_the_names_stand_above_the_first_row(table):
    fig = sheets.scaling(table)
    errors = [ax for ax in fig.axes if "error" in ax.get_ylabel()]
    assert len(errors) == 5
    assert len({ax.get_ylim() for ax in errors}) == 1
    names = [sorted(t.get_text() for t in ax.texts if t.get_rotation()) for ax in fig.axes[:6]]
    assert names == [["large", "middle", "small"]] * 3 + [[]] * 3
    assert [t.get_text() for t in fig.legends[0].get_texts()] == ["sst2", "imdb"]
    assert not written_over(fig)


def test_names_of_models_of_nearly_one_size_are_spread(table, tmp_path):
    near = table.assign(n_parameters=("model", [10**6, 1_010_000, 1_020_000]))
    places = [t.xy[0] for t in scaled(tmp_path, near).texts if t.get_rotation()]
    assert np.diff(places).min() > 0.03


def test_missing_cells_are_counted_and_a_model_without_any_is_passed_over(table, tmp_path):
    table["relative_l2"][{"model": 2, "task": 0}] = np.nan
    ax = scaled(tmp_path, table)
    sst2, imdb = medians_of(ax)
    assert sst2.get_label() == "sst2 (3 of 9 missing)"
    assert (len(sst2.get_xdata()), len(imdb.get_xdata())) == (2, 3)
    table["relative_l2"][{"task": 0}] = np.nan
    assert medians_of(scaled(tmp_path, table))[0].get_label() == "sst2 (no value)"


def test_what_is_zero_has_a_strip_and_does_not_stretch_the_axis(table, tmp_path):
    table["budget"].loc[{"part": "truncation"}] = 1e-17
    ax = scaled(tmp_path, table, "truncation")
    assert len(zeros_of(ax)) == 2
    assert [t.get_text() for t in ax.texts if not t.get_rotation()] == ["0 to rounding"]
    assert ax.get_ylim()[0] > 1e-3
    table["budget"].loc[{"part": "truncation"}] = 1e-9
    ax = scaled(tmp_path, table, "truncation", names=False)
    (note,) = [text.get_text() for text in ax.texts]
    assert note.startswith("below 0.00")
    # another panel of the same table keeps the same axis
    assert scaled(tmp_path, table).get_ylim() == ax.get_ylim()


def test_what_is_far_above_the_rest_is_cut_and_its_value_said(table, tmp_path):
    table["relative_l2"][{"model": 0, "task": 1, "seed": 0}] *= 1000
    ax = scaled(tmp_path, table, names=False)
    (text,) = ax.texts
    assert text.get_text() == f"{100 * float(table.relative_l2[0, 1, 0, 0]):.0f} %"
    assert ax.get_ylim()[1] < 1000


def test_scaling_of_one_model_and_one_seed(table, tmp_path):
    ax = scaled(tmp_path, table.isel(model=[0], task=[0], seed=[0]))
    assert [len(line.get_xdata()) for line in medians_of(ax)] == [1]
    assert ax.get_xlim()[0] < 1e8 < ax.get_xlim()[1]


def test_noise_floors_are_bars_under_the_seeds_of_their_model_and_task(table, tmp_path):
    floors = 0.001 * (1 + np.arange(18.0)).reshape(3, 2, 3)
    floors[2, 0] = np.nan
    floored = table.assign(noise_floor=(("model", "task", "seed"), floors))
    ax = scaled(tmp_path, floored)
    (bars,) = [c for c in ax.collections if c.get_label() == "noise floor"]
    drawn = np.array(segments_of(bars))
    want = 100 * np.median(floors, axis=-1).T.ravel()
    np.testing.assert_allclose(drawn[:, 0, 1], want[np.isfinite(want)])
    np.testing.assert_array_equal(drawn[:, 0, 1], drawn[:, 1, 1])
    sizes = np.tile(table.n_parameters.values, 2)[np.isfinite(want)]
    assert (drawn[:, 0, 0] < drawn[:, 1, 0]).all()
    np.testing.assert_allclose(drawn[:, :, 0] / sizes[:, None], 1, rtol=0.25)
    assert "noise floor" not in labels_of(scaled(tmp_path, floored, "averaging"))
    assert "noise floor" not in labels_of(scaled(tmp_path, table))


def labels_of(ax):
    return [c.get_label() for c in ax.collections]


def test_tables_that_are_alike_have_one_axis(table, tmp_path):
    small = table.assign(relative_l2=table.relative_l2 / 50).drop_vars("budget")
    alone = scaled(tmp_path, small).get_ylim()
    both = scaled(tmp_path, small, alike=[table]).get_ylim()
    assert both[0] == pytest.approx(alone[0])
    assert both[1] > 10 * alone[1]
    assert scaled(tmp_path, table, alike=[small]).get_ylim() == both


def test_families_have_a_column_each_and_one_axis(table):
    table["budget"].loc[{"part": "truncation"}] = 1e-17
    small = table.copy(deep=True)
    small["relative_l2"] = small["relative_l2"] / 3
    small["budget"].loc[{"part": "nonlinearity"}] = 1e-5
    other = small.assign_coords(task=["movies", "tweets"])
    fig = sheets.scaling_by_family(
        {
            "one": {"ensemble 4": table, "krylov 8": small},
            "two": {"ensemble 4": other, "krylov 8": other},
        }
    )
    labels = ["ensemble 4\nrelative L2 error", "krylov 8\nrelative L2 error"]
    labels += ["all methods\nsampling", "krylov 8\naveraging", "all methods\nnonlinearity"]
    grid = [ax for ax in fig.axes if ax.get_ylabel()]
    assert [ax.get_ylabel() for ax in grid] == [f"{label} (%)" for label in labels for _ in (1, 2)]
    assert [ax.get_title() for ax in grid[:2]] == ["one", "two"]
    assert len({ax.get_ylim() for ax in grid[:8]}) == 1
    assert len({ax.get_ylim() for ax in grid[8:]}) == 1
    assert grid[0].get_ylim() != grid[8].get_ylim()
    assert grid[8].get_ylim()[0] < 0.01 < grid[0].get_ylim()[0] * 10
    named = [sorted(t.get_text() for t in ax.texts if t.get_rotation()) for ax in grid]
    assert named == [["large, 100 M", "middle, 1 M", "small, 200 k"]] * 2 + [[]] * 8
    keys = [[t.get_text() for t in ax.get_legend().get_texts()] for ax in grid[2:4]]
    assert keys == [["sst2", "imdb"], ["movies", "tweets"]]
    assert not written_over(fig)


def test_scaling_refuses_other_tables(table):
    _, (ax,) = plot.figure()
    with pytest.raises(TypeError, match=r"`table` must be a Dataset; got DataArray"):
        plot.scaling(ax, table.spearman)
    with pytest.raises(ValueError, match=r"`table` must hold \['n_parameters'\]"):
        plot.scaling(ax, table.drop_vars("n_parameters"))
    with pytest.raises(ValueError, match=r"`quantity` must be one of .*'sampling'.* got 'r2'"):
        plot.scaling(ax, table, "r2")
    with pytest.raises(ValueError, match=r"`n_parameters` must be positive; got 0"):
        plot.scaling(ax, table.assign(n_parameters=0 * table.n_parameters))
    with pytest.raises(ValueError, match=r"`n_parameters` must be positive; got no model"):
        plot.scaling(ax, table.isel(model=[]))
    with pytest.raises(ValueError, match=r"`table` must have dims .*isel\(split=0\)"):
        plot.scaling(ax, table.assign(relative_l2=table.relative_l2.expand_dims(split=2)))
    floors = table.relative_l2.sel(bound="low")
    with pytest.raises(ValueError, match=r"`noise_floor` must have dims .*isel\(split=0\)"):
        plot.scaling(ax, table.assign(noise_floor=floors.expand_dims(split=2)))
