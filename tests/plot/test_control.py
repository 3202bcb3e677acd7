import numpy as np
import pytest
import xarray as xr

from depthsys import ltv, plot
from depthsys.plot import sheets
from tests.plot.drawing import labels_of, marks_of


def test_energies_say_not_reached(energies):
    _, (ax,) = plot.figure()
    plot.energies(ax, energies)
    assert [text.get_text() for text in ax.texts] == [
        "1.00 ×",
        "2.00 ×",
        "not reached (not monotone)",
        "30.0 ×",
    ]
    assert [label.get_text() for label in ax.get_yticklabels()][2] == "first layer (0)"


def test_numbers_of_multiples_stand_at_their_bars_and_not_on_their_whiskers(energies):
    _, (ax,) = plot.figure()
    plot.energies(ax, energies)
    high = energies.multiple_high.values
    for row, text in enumerate(ax.texts):
        # at the end of the bar, however far the interval reaches
        at = energies.multiple.values[row]
        assert text.xy[0] == (max(at, 1.0) if np.isfinite(at) else 1.0)
    lines = {c.get_segments()[0][0, 1]: c.get_segments()[0] for c in ax.collections}
    assert all(text.xy[1] < y for text, y in zip(np.array(ax.texts)[[0, 1, 3]], lines, strict=True))
    ends = [segment[1, 0] for segment in lines.values()]
    assert ends[:2] == list(high[:2])
    # one that ends in "not reached" runs to the edge, with an arrow
    assert ends[2] == ax.get_xlim()[1]
    (arrow,) = [line for line in ax.lines if line.get_marker() == ">"]
    assert arrow.get_xdata()[0] == ends[2]


def test_energies_without_intervals_are_points(energies):
    _, (ax,) = plot.figure()
    plot.energies(ax, energies.drop_vars(["multiple_low", "multiple_high"]))
    assert not ax.collections
    (points,) = [line for line in ax.lines if line.get_marker() == "o"]
    assert points.get_xdata().tolist() == [1.0, 2.0, 30.0]


def test_multiples_have_one_format_from_small_to_huge(energies):
    huge = [1.0, 0.0314, np.nan, 5350.0]
    _, (ax,) = plot.figure()
    plot.energies(ax, energies.assign(multiple=("schedule", huge)))
    texts = [text.get_text() for text in ax.texts]
    assert texts == ["1.00 ×", "0.0314 ×", "not reached (not monotone)", "5350 ×"]


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


@pytest.mark.parametrize(("n_layers", "n_patches"), [(30, 60), (80, 2)])
def test_many_pushes_are_outlines_over_the_layers(plan, n_layers, n_patches):
    push = np.linspace(0.01, 0.2, n_layers)
    u = xr.DataArray(np.ones((n_layers, 1)), dims=["layer", "input"])
    many = xr.Dataset(
        {"u": u, "linear_u": -u, "push": ("layer", push), "linear_push": ("layer", 2 * push)},
        coords={"layer": range(n_layers)},
        attrs=plan.attrs,
    ).assign(target=plan.target)
    _, (ax,) = plot.figure()
    plot.pushes(ax, many)
    assert len(ax.patches) == n_patches
    assert labels_of(ax) == ["optimum of the full model", "plan of the linear system"]
    if n_patches == 2:
        for patch, want in zip(ax.patches, [push, -2 * push], strict=True):
            np.testing.assert_allclose(patch.get_data().values, want)
        assert ax.patches[0].get_fill()
        assert not ax.patches[1].get_fill()


def test_a_large_negative_push_has_its_mark(plan):
    _, (ax,) = plot.figure()
    plot.pushes(ax, plan.assign(u=-abs(plan.u), linear_u=-abs(plan.linear_u)))
    assert [text.get_text() for text in ax.texts] == [" -0.3"]


def test_layer_energies_are_shares_of_the_whole(tmp_path):
    rng = np.random.default_rng(0)
    system = ltv.system(
        rng.standard_normal((5, 3, 3)),
        rng.standard_normal((5, 3, 2)),
        rng.standard_normal((6, 2, 3)),
    ).assign(state_norm=("depth", [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]))
    planned = ltv.minimum_energy(system, [1.0, 2.0])
    weights = 1 / system.state_norm.values[:-1] ** 2
    fig, (ax,) = plot.figure()
    plot.layer_energies(ax, planned.assign_attrs(energy="relative"), weights=weights)
    plot.save(fig, tmp_path / "a.png", "png")
    each = weights * (planned.u.values**2).sum(axis=-1)
    np.testing.assert_allclose([bar.get_height() for bar in ax.patches], 100 * each / each.sum())
    half = int(np.flatnonzero(np.cumsum(each) >= each.sum() / 2)[0])
    assert labels_of(ax) == [f"half of the energy: layers up to {half}", "energy of the layer"]
    assert ax.get_title() == f"energy {each.sum():.3g}"


def test_layer_energies_of_a_plan_are_its_own_energy():
    rng = np.random.default_rng(1)
    u, norm = rng.standard_normal((4, 2)), np.array([1.0, 3.0, 5.0, 2.0])
    direction = rng.standard_normal((5, 2, 6))
    direction[0] = np.nan
    u[0] = 0.0
    moved = np.einsum("li,lif->lf", u, np.nan_to_num(direction[:-1]))
    plan = xr.Dataset(
        {
            "u": (("layer", "input"), u),
            "push": ("layer", np.linalg.norm(moved, axis=1) / norm),
            "direction": (("depth", "input", "feature"), direction),
        },
        attrs={"energy": "relative"},
    )
    _, (ax,) = plot.figure()
    plot.layer_energies(ax, plan)
    each = (u**2).sum(axis=1) / norm**2
    np.testing.assert_allclose([bar.get_height() for bar in ax.patches], 100 * each / each.sum())
    # of one input the direction has length 1, unless the plan says otherwise
    single = plan.isel(input=[0]).drop_vars("direction")
    plot.layer_energies(ax := plot.figure()[1][0], single.assign(push=abs(single.u[:, 0])))
    each = u[:, 0] ** 2
    np.testing.assert_allclose([bar.get_height() for bar in ax.patches], 100 * each / each.sum())


def test_layer_energies_of_nothing():
    _, (ax,) = plot.figure()
    plot.layer_energies(ax, xr.Dataset({"u": ("layer", [0.0, 0.0])}))
    assert ax.get_title() == "no energy: nothing is pushed"
    assert ax.get_legend() is None


def test_layer_energies_refuse_other_plans(plan):
    _, (ax,) = plot.figure()
    with pytest.raises(TypeError, match=r"`plan` must be a Dataset; got DataArray"):
        plot.layer_energies(ax, plan.u)
    with pytest.raises(ValueError, match=r"`plan` must hold u with dims .*Select one schedule"):
        plot.layer_energies(ax, plan[["u"]].expand_dims("task"))
    with pytest.raises(ValueError, match=r"`weights` must be given for relative energy"):
        plot.layer_energies(ax, plan.drop_vars("push"))
    for weights in ([1.0, 2.0], [1.0, 0.0, 1.0]):
        with pytest.raises(ValueError, match=r"`weights` must be 3 positive numbers.*state_norm"):
            plot.layer_energies(ax, plan, weights=weights)


def test_the_sheet_of_a_plan_without_its_costs_is_left_out(plan):
    assert sheets.push_energy(plan) is not None
    assert sheets.push_energy(plan.drop_vars("push")) is None
    several = plan.drop_dims("input").assign(u=(("layer", "input"), np.ones((3, 2))))
    assert sheets.push_energy(several) is None
    assert sheets.push_energy(several.assign_attrs(energy="absolute")) is not None


def test_single_layers_that_do_not_reach_are_marked_at_the_edge(energies):
    single = [np.nan, 9.0, 4.0]
    found = energies.assign(
        single_energy=("layer", single), energy=("schedule", [0.1, 0.2, np.nan, 3.0])
    )
    fig = sheets.single_layers(found)
    (ax,) = fig.axes[:1]
    curve, planned, lost = ax.lines
    np.testing.assert_array_equal(curve.get_ydata(), single)
    np.testing.assert_array_equal(planned.get_ydata(), [0.1, 0.1])
    assert lost.get_xdata().tolist() == [0]
    assert labels_of(ax) == ["the layer alone", "minimum energy", "not reached by the layer alone"]
    assert ax.get_yscale() == "log"
    assert ax.get_ylim()[0] < 0.1 < 9 < ax.get_ylim()[1]
    many = 10.0 ** np.arange(100).clip(max=5)
    many = found.drop_dims("layer").assign(single_energy=("layer", many))
    (ax,) = sheets.single_layers(many.assign_coords(layer=range(100))).axes[:1]
    assert marks_of(ax.lines[0]) <= 40
    with pytest.raises(
        ValueError, match=r"`energies` must hold .* without \['single_energy', 'energy'\]"
    ):
        plot.single_layer_energies(ax, energies)


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
