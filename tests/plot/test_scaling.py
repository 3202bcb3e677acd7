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
