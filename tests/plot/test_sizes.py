import numpy as np
import pytest
import xarray as xr

from depthsys import plot
from depthsys.plot.style import basis_styles
from tests.plot.drawing import segments_of, zeros_of
from tests.plot.tables import with_interval

FEW = ["ensemble", "krylov"]


@pytest.fixture
def rows():
    """Two forms on three tasks of each of two models."""
    rng = np.random.default_rng(0)
    return xr.Dataset(
        {
            "value": (
                ("pair", "form", "metric", "bound"),
                with_interval(0.1 + 0.4 * rng.random((6, 2, 2))),
            )
        },
        coords={
            "form": ["paper: krylov 32", "ensemble 4"],
            "metric": ["spearman", "relative_l2"],
            "bound": ["estimate", "low", "high"],
            "model": ("pair", list("ababab")),
            "n_parameters": ("pair", [10**7, 10**9] * 3),
        },
    )


def sized(tmp_path, rows, rows_of_axes=1):
    columns = rows.sizes["metric"] // rows_of_axes
    fig, axes = plot.figure(9, 4, columns=columns, rows=rows_of_axes)
    plot.agreement_by_size(axes, rows)
    plot.save(fig, tmp_path / "a.png", "png")
    (legend,) = fig.legends
    return axes, [text.get_text() for text in legend.get_texts()]


def test_agreement_by_size_shows_every_pair_and_joins_the_medians(rows, tmp_path):
    axes, labels = sized(tmp_path, rows)
    assert labels == ["paper: krylov 32", "ensemble 4"]
    for ax, metric in zip(axes, ["spearman", "relative_l2"], strict=True):
        value = rows.value.sel(metric=metric) * (100 if metric == "relative_l2" else 1)
        pairs = [line for line in ax.lines if line.get_label() == "_pairs"]
        joined = [line for line in ax.lines if line.get_label() == "_joined"]
        bars = [c for c in ax.collections if c.get_label() == "_medians"]
        for form in range(2):
            mine = value.isel(form=form)
            np.testing.assert_array_equal(pairs[form].get_ydata(), mine.sel(bound="estimate"))
            want = mine.sel(bound="estimate").groupby("model").median()
            np.testing.assert_allclose(joined[form].get_ydata(), want)
            np.testing.assert_allclose([s[0, 1] for s in segments_of(bars[form])], want)
            # the bar reaches over the pairs of its model
            for at, (left, right) in enumerate(s[:, 0] for s in segments_of(bars[form])):
                own = pairs[form].get_xdata()[at::2]
                assert left < own.min() < own.max() < right
        every = np.concatenate([line.get_xdata() for line in pairs])
        assert len(set(every)) == 12
        np.testing.assert_array_equal(every.round(), [0, 1] * 6)
        assert pairs[0].get_xdata()[0::2].max() < pairs[1].get_xdata()[0::2].min()
        ends = value.sel(bound=["low", "high"]).transpose("form", "pair", "bound")
        drawn = [s[:, 1] for c in ax.collections if c not in bars for s in segments_of(c)]
        np.testing.assert_allclose(drawn, ends.values.reshape(-1, 2))
    assert [ax.get_yscale() for ax in axes] == ["linear", "log"]
    assert axes[1].get_ylabel() == "relative L2 error (%)"


def test_agreement_by_size_names_the_models_by_rising_size_under_the_last_row(rows, tmp_path):
    rows = rows.assign_coords(n_parameters=("pair", [2_526_976, 168_480] * 3))
    axes, _ = sized(tmp_path, rows, rows_of_axes=2)
    assert [tick.get_text() for tick in axes[0].get_xticklabels()] == ["", ""]
    assert [tick.get_text() for tick in axes[1].get_xticklabels()] == ["b\n168 k", "a\n2.53 M"]
    assert [ax.get_xlabel() for ax in axes] == ["", "model, number of parameters"]
    pairs = next(line for line in axes[0].lines if line.get_label() == "_pairs")
    np.testing.assert_array_equal(pairs.get_xdata().round(), [1, 0] * 3)
    beside, _ = sized(tmp_path, rows)
    assert [len(ax.get_xticklabels()[0].get_text()) for ax in beside] == [7, 7]
    long = rows.assign_coords(model=("pair", ["a" * 40, "b" * 40] * 3))
    (tick, _) = sized(tmp_path, long)[0][1].get_xticklabels()
    assert tick.get_rotation() == 30
    assert tick.get_text() == "b" * 40 + ", 168 k"


def test_agreement_by_size_has_the_colours_of_the_bases_and_cuts_what_is_far_above(rows, tmp_path):
    rows["value"][0, 1, 1] = 100 * rows.value[0, 1, 1]
    axes, _ = sized(tmp_path, rows)
    joined = [line for line in axes[1].lines if line.get_label() == "_joined"]
    known = {style["color"]: name for name, style in zip(FEW, basis_styles(FEW), strict=True)}
    assert [known[line.get_color()] for line in joined] == ["krylov", "ensemble"]
    (text,) = axes[1].texts
    assert text.get_text() == f"{100 * float(rows.value[0, 1, 1, 0]):.0f} %"
    assert axes[1].get_ylim()[1] < 1000


def test_agreement_by_size_says_what_is_missing_or_zero(rows, tmp_path):
    rows["value"][0, 0, 0] = np.nan
    rows["value"][1, 0, 1] = np.nan
    rows["value"][2, 1, 1] = 0.0
    axes, labels = sized(tmp_path, rows)
    assert labels == ["paper: krylov 32 (2 of 6 missing)", "ensemble 4"]
    (zero,) = [line for line in zeros_of(axes[1])]
    assert len(zero.get_xdata()) == 1
    joined = next(line for line in axes[0].lines if line.get_label() == "_joined")
    assert joined.get_ydata()[0] == pytest.approx(np.median(rows.value[[2, 4], 0, 0, 0]))
    rows["value"][:, 1] = np.nan
    assert sized(tmp_path, rows)[1][1] == "ensemble 4 (no value)"


def test_agreement_by_size_of_one_pair(rows, tmp_path):
    (ax,), _ = sized(tmp_path, rows.isel(pair=[0], metric=[1]))
    assert ax.get_xlim() == (-0.5, 0.5)
    bars = [segments_of(c) for c in ax.collections if c.get_label() == "_medians"]
    want = 100 * rows.value[0, :, 1, 0]
    np.testing.assert_array_equal([segments[0][0, 1] for segments in bars], want)


def test_agreement_by_size_refuses_other_rows(rows):
    _, (ax,) = plot.figure()
    with pytest.raises(ValueError, match=r"`axes` must be one per metric, 2; got 1"):
        plot.agreement_by_size([ax], rows)
    with pytest.raises(ValueError, match=r"`n_parameters` must be positive; got 0"):
        plot.agreement_by_size([ax, ax], rows.assign_coords(n_parameters=0 * rows.n_parameters))
    with pytest.raises(ValueError, match=r"`n_parameters` must be positive; got no pair"):
        plot.agreement_by_size([ax, ax], rows.isel(pair=[]))
    with pytest.raises(ValueError, match=r"`metric` must be one of \['spearman'.*got 'r2'"):
        plot.agreement_by_size([ax, ax], rows.assign_coords(metric=["spearman", "r2"]))
    with pytest.raises(ValueError, match=r"`rows` must hold .* without \['model'\]"):
        plot.agreement_by_size([ax, ax], rows.drop_vars("model"))
    with pytest.raises(ValueError, match=r"`rows` must have dims .*isel\(seed=0\)"):
        plot.agreement_by_size([ax, ax], rows.expand_dims("seed"))
    with pytest.raises(TypeError, match=r"`rows` must be a Dataset; got DataArray"):
        plot.agreement_by_size([ax, ax], rows.value)
