import numpy as np
import xarray as xr

from depthsys import plot


def test_energies_say_not_reached(energies):
    _, (ax,) = plot.figure()
    plot.energies(ax, energies)
    assert [text.get_text() for text in ax.texts] == [
        "1 x",
        "2 x",
        "not reached (not monotone)",
        "30 x",
    ]
    assert [label.get_text() for label in ax.get_yticklabels()][2] == "first layer (0)"


def test_energies_when_nothing_is_reached(energies, tmp_path):
    fig, (ax,) = plot.figure()
    plot.energies(ax, energies.assign(multiple=energies.multiple * np.nan))
    plot.save(fig, tmp_path / "a.png", "png")
    assert {text.get_text() for text in ax.texts} == {"not reached", "not reached (not monotone)"}


def test_schedule_shows_the_injections(energies):
    _, (ax,) = plot.figure()
    plot.schedule(ax, energies)
    np.testing.assert_allclose([bar.get_height() for bar in ax.patches], energies.u)
    assert "shift of 5" in ax.get_title()


def test_schedule_takes_a_plan_with_several_inputs(tmp_path):
    rng = np.random.default_rng(0)
    u = xr.DataArray(rng.standard_normal((5, 2)), dims=["layer", "input"]).assign_coords(
        layer=range(3, 8)
    )
    _, (ax,) = plot.figure()
    plot.schedule(ax, xr.Dataset({"u": u}))
    heights = np.array([bar.get_height() for bar in ax.patches]).reshape(2, 5)
    np.testing.assert_allclose(heights, u.T)
    middles = np.array([bar.get_x() + bar.get_width() / 2 for bar in ax.patches]).reshape(2, 5)
    np.testing.assert_allclose(middles.mean(0), range(3, 8))
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["input 0", "input 1"]
