import numpy as np
import pytest
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


@pytest.fixture
def plan():
    return xr.Dataset(
        {
            "u": (("layer", "input"), [[1.0], [-2.0], [0.0]]),
            "push": ("layer", [0.1, 0.25, 0.0]),
            "linear_u": (("layer", "input"), [[1.0], [2.0], [0.5]]),
            "linear_push": ("layer", [0.1, 0.2, 0.05]),
            "target": ("output", [3.0]),
        },
        coords={"layer": range(3)},
        attrs={"energy": "relative", "target_asked": "2std"},
    )


def test_pushes_are_drawn_with_their_sign(plan):
    _, (ax,) = plot.figure()
    plot.pushes(ax, plan)
    heights = np.array([bar.get_height() for bar in ax.patches]).reshape(2, 3)
    np.testing.assert_allclose(heights, [[0.1, -0.25, 0.0], [0.1, 0.2, 0.05]])
    assert ax.get_title() == "shift of 3 (2std), relative energy"
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["optimum of the full model", "plan of the linear system"]
    assert " 0.3" in [text.get_text() for text in ax.texts]  # the mark is near


def test_a_plan_of_the_linear_system_stands_alone(plan):
    _, (ax,) = plot.figure()
    plot.pushes(ax, plan.drop_vars(["linear_push", "linear_u"]).assign(push=plan.push / 10))
    assert len(ax.patches) == 3
    assert ax.get_legend() is None
    assert not ax.texts  # 0.3 is far


def test_the_mark_of_large_pushes_is_that_of_plans():
    from depthsys.ltv.plan import LARGE_PUSH
    from depthsys.plot import control

    assert control.LARGE == LARGE_PUSH


def test_achieved_shifts_stand_over_predicted_ones():
    achieved = np.array([[[0.0, 0.0, 0.0], [4.0, 3.0, 5.0]], [[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]])
    verified = xr.Dataset(
        {
            "achieved": (("played", "amplitude", "bound"), achieved),
            "predicted": (("played", "amplitude"), [[0.0, 2.0], [0.0, 2.0]]),
        },
        coords={
            "played": ["planned", "minimum_energy"],
            "amplitude": [0.0, 1.0],
            "bound": ["estimate", "low", "high"],
        },
        attrs={"target": 2.0},
    )
    _, (ax,) = plot.figure()
    plot.achieved(ax, verified)
    mine, linear, ideal = ax.lines
    np.testing.assert_allclose(mine.get_xydata(), [[0, 0], [1, 2]])
    np.testing.assert_allclose(linear.get_xydata(), [[0, 0], [1, 0.5]])
    np.testing.assert_allclose(ideal.get_xydata(), [[0, 0], [1, 1]])
    band = ax.collections[0].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == (0.0, 2.5)
