"""Figures of the residual stream: what is drawn is what was found."""

import numpy as np
import pytest
import xarray as xr
from matplotlib.collections import PathCollection, QuadMesh
from matplotlib.quiver import Quiver

from depthsys import plot

RNG = np.random.default_rng(3)
S, P, F = 8, 20, 30  # sublayers, prompts, features
DRAWN = (
    "unit_correlations", "successive_cosines", "velocity", "mutual_information", "phase_plane",
    "turns", "rotation_p_values", "plane_trajectories",
)  # fmt: skip


@pytest.fixture
def found() -> xr.Dataset:
    parts = (["attention", "mlp"] * S)[: S - 1]
    return xr.Dataset(
        {
            "mean": (("sublayer", "feature"), np.cumsum(RNG.standard_normal((S, F)), axis=0)),
            "correlation": (("step", "feature"), RNG.uniform(0.5, 1, (S - 1, F))),
            "cosine": (("prompt", "step"), RNG.uniform(0.5, 1, (P, S - 1))),
            "update_cosine": (("prompt", "pair"), RNG.uniform(-1, 1, (P, S - 2))),
            "velocity": (("prompt", "step"), RNG.uniform(1, 9, (P, S - 1))),
            "norm": (("prompt", "sublayer"), RNG.uniform(10, 90, (P, S))),
            "mutual_information": (("step", "unit"), RNG.uniform(0, 1, (S - 1, 4))),
            "mutual_information_shuffled": (("step", "unit"), RNG.uniform(0, 0.1, (S - 1, 4))),
            "turns": ("feature", RNG.uniform(-1, 3, F)),
            "turns_shuffled": ("feature", RNG.uniform(1, 2, F)),
            "p_value": ("feature", RNG.uniform(0, 1, F)),
            "q_value": ("feature", np.linspace(0, 0.1, F)),
            "score": (("sublayer", "trajectory", "component"), RNG.standard_normal((S, 6, 3))),
            "mean_score": (("sublayer", "component"), RNG.standard_normal((S, 3))),
            "explained": ("component", [0.6, 0.25, 0.1]),
        },
        coords={"step": np.arange(S - 1), "written_by": ("step", parts)},
    )


@pytest.fixture
def flown() -> xr.Dataset:
    x, y = np.meshgrid([0.0, 1.0, 2.0], [0.0, 10.0, 20.0])
    begin = np.stack([x, y], axis=-1)[None].repeat(2, axis=0)
    place = ("start", "prompt", "row", "column")
    end = begin[:, None].repeat(4, axis=1) + RNG.standard_normal((2, 4, 3, 3, 2))
    share = np.array([[1.0, np.nan, 0.25], [0.5, 0.75, 0.0]])
    return xr.Dataset(
        {
            "begin": (("start", "row", "column", "component"), begin),
            "end": ((*place, "component"), end),
            "own_begin": (("start", "prompt", "component"), RNG.standard_normal((2, 4, 2))),
            "own_end": (("start", "prompt", "component"), RNG.standard_normal((2, 4, 2))),
            "inward": (place, RNG.uniform(size=(2, 4, 3, 3)) > 0.5),
            "inward_share": ("start", [0.25, 0.5]),
            "inward_fraction": (("start", "ring"), share),
            "radius": (("start", "ring"), np.array([[1.0, 2.0, 3.0]] * 2)),
        },
        coords={"start": [4, 9]},
        attrs={"n_sublayers": 12},
    )


@pytest.mark.parametrize(
    ("name", "variable", "over", "middle"),
    [
        ("unit_correlations", "correlation", "feature", "median"),
        ("successive_cosines", "cosine", "prompt", "mean"),
        ("velocity", "velocity", "prompt", "median"),
        ("mutual_information", "mutual_information", "unit", "median"),
    ],
)
def test_a_line_for_each_part_that_writes(found, name, variable, over, middle):
    _, (ax,) = plot.figure()
    getattr(plot, name)(ax, found)
    lines = {line.get_label(): line for line in ax.lines}
    expected = getattr(found[variable], middle)(over)
    for first, label in enumerate(["written by attention", "written by the MLP"]):
        np.testing.assert_allclose(lines[label].get_ydata(), expected[first::2])
        np.testing.assert_array_equal(lines[label].get_xdata(), np.arange(first, S - 1, 2))
    if over != "prompt" or name == "velocity":
        for first, drawn in enumerate(ax.collections):
            band, steps = drawn.get_paths()[0].vertices[:, 1], slice(first, None, 2)
            for end, share in ((band.max(), 0.95), (band.min(), 0.05)):
                expected = found[variable].quantile(share, over)[steps]
                assert end == pytest.approx(
                    float(expected.max() if share > 0.5 else expected.min())
                )


def test_what_the_other_lines_are(found):
    _, axes = plot.figure(12, 4, columns=3)
    plot.successive_cosines(axes[0], found)
    plot.velocity(axes[1], found)
    plot.mutual_information(axes[2], found)
    lines = [{line.get_label(): line.get_ydata() for line in ax.lines} for ax in axes]
    updates = found["update_cosine"].mean("prompt")
    np.testing.assert_allclose(lines[0]["of successive updates"], updates)
    norm = found["norm"].median("prompt")[:-1]
    np.testing.assert_allclose(lines[1]["norm of the state"], norm)
    assert axes[1].get_yscale() == "log"
    shuffled = found["mutual_information_shuffled"].mean("unit")
    np.testing.assert_allclose(lines[2]["prompts exchanged"], shuffled)


def test_phase_planes(found):
    _, (ax,) = plot.figure()
    plot.phase_plane(ax, found, units=[7])
    a = found["mean"].values[:, 7]
    g = np.gradient(a)
    np.testing.assert_allclose(ax.lines[0].get_xdata(), (a - a.mean()) / a.std())
    np.testing.assert_allclose(ax.lines[0].get_ydata(), (g - g.mean()) / g.std())
    assert ax.lines[0].get_label() == f"unit 7: {float(found['turns'][7]):.1f} turns"
    _, (ax,) = plot.figure()
    plot.phase_plane(ax, found)
    named = [line.get_label() for line in ax.lines if "unit" in str(line.get_label())]
    order = np.argsort(found["turns"].values)
    assert [int(n.split()[1][:-1]) for n in named] == order[[1, 14, 27]].tolist()


def test_histograms_hold_every_unit(found):
    _, (left, right) = plot.figure(columns=2)
    plot.turns(left, found)
    plot.rotation_p_values(right, found)
    assert sum(bar.get_height() for bar in left.containers[0]) == F
    assert sum(bar.get_height() for bar in right.containers[0]) == F
    low = round(100 * float((found["q_value"] < 0.05).mean()))
    assert f"units; {low} % with $q < 0.05$" in right.get_legend_handles_labels()[1]


def test_trajectories_are_the_scores(found):
    code = xr.Dataset(
        {
            "code": (("sublayer", "prompt", "dim"), RNG.standard_normal((S, 5, 2))),
            "explained": ("compressor", [0.8, 0.7]),
        },
        coords={"compressor": ["autoencoder", "pca"]},
    )
    _, (left, right) = plot.figure(columns=2)
    plot.plane_trajectories(left, found)
    plot.code_trajectories(right, code)
    for ax, mean in ((left, found["mean_score"]), (right, code["code"].mean("prompt"))):
        (dots,) = (c for c in ax.collections if isinstance(c, PathCollection))
        np.testing.assert_allclose(dots.get_offsets(), mean[:, :2])
    assert len(left.lines) == 6 + 1
    assert left.get_xlabel() == "component 1 (60 % of the variance)"
    assert right.get_title() == "variance given back: 80 % (PCA 70 %)"


def test_arrows_lead_from_the_grid_to_the_ends(flown):
    _, axes = plot.figure(columns=2)
    plot.teleportation(axes, flown)
    for number, ax in enumerate(axes):
        (arrows,) = (c for c in ax.collections if isinstance(c, Quiver))
        one = flown.isel(start=number)
        move = (one["end"].mean("prompt") - one["begin"]).values.reshape(-1, 2)
        np.testing.assert_allclose(np.stack([arrows.U, arrows.V], axis=1), move)
        np.testing.assert_allclose(arrows.get_offsets(), one["begin"].values.reshape(-1, 2))
        (ground,) = (c for c in ax.collections if isinstance(c, QuadMesh))
        share = one["inward"].mean("prompt").values
        np.testing.assert_allclose(np.ravel(ground.get_array()), share.ravel())
    assert axes[1].get_title() == "sublayer 9, 12 on\n50 % inward"


def test_arrows_without_the_own_move(flown):
    _, axes = plot.figure(columns=2)
    plot.teleportation(axes, flown, moving=True)
    (arrows,) = (c for c in axes[0].collections if isinstance(c, Quiver))
    one = flown.isel(start=0)
    own = (one["own_end"] - one["own_begin"]).mean("prompt")
    move = (one["end"].mean("prompt") - one["begin"] - own).values.reshape(-1, 2)
    np.testing.assert_allclose(np.stack([arrows.U, arrows.V], axis=1), move)
    assert len(axes[0].lines) == 1


def test_rings_without_points_are_left_out(flown):
    _, (ax,) = plot.figure()
    plot.inward_fractions(ax, flown)
    assert ax.lines[0].get_ydata().tolist() == [1.0, 0.25]
    assert ax.lines[1].get_ydata().tolist() == [0.5, 0.75, 0.0]
    assert ax.lines[0].get_label() == "from sublayer 4"
    assert ax.get_xscale() == "linear"
    _, (ax,) = plot.figure()
    plot.inward_fractions(ax, flown.assign(radius=flown["radius"] * [[1], [99]]))
    assert ax.get_xscale() == "log"


def test_what_cannot_be_drawn_is_refused(found, flown):
    _, (ax,) = plot.figure()
    for name in DRAWN:
        with pytest.raises(TypeError, match=r"`found` must be a Dataset.*lm.residual_dynamics"):
            getattr(plot, name)(ax, np.zeros(3))
        with pytest.raises(ValueError, match="`found` must hold"):
            getattr(plot, name)(ax, xr.Dataset())
        with pytest.raises(ValueError, match="must have dims"):
            getattr(plot, name)(ax, found.expand_dims(model=2))
    with pytest.raises(ValueError, match="`found` must have units; got none"):
        plot.mutual_information(ax, found.isel(unit=slice(0)))
    with pytest.raises(ValueError, match=r"`found.turns` must have numbers; got none"):
        plot.turns(ax, found.assign(turns=found["turns"] * np.nan))
    with pytest.raises(TypeError, match=r"`found` must be a Dataset.*lm.compress"):
        plot.code_trajectories(ax, None)
    with pytest.raises(TypeError, match=r"`flown` must be a Dataset.*lm.teleport"):
        plot.inward_fractions(ax, None)
    with pytest.raises(TypeError, match=r"`flown` must be a Dataset.*lm.teleport"):
        plot.teleportation([ax], None)
    with pytest.raises(ValueError, match="`axes` must be 2, one for each start; got 1"):
        plot.teleportation([ax], flown)


@pytest.mark.filterwarnings("error")
def test_a_step_at_which_no_unit_varies_is_left_empty():
    rng = np.random.default_rng(0)
    values = rng.random((3, 5))
    values[0] = np.nan
    found = xr.Dataset(
        {n: (("step", "unit"), values)
         for n in ("mutual_information", "mutual_information_shuffled")},
        {"written_by": ("step", ["attention", "mlp", "attention"])},
    )  # fmt: skip
    _, (ax,) = plot.figure(5, 4)
    plot.mutual_information(ax, found)
    drawn = {line.get_label(): line.get_ydata() for line in ax.lines}
    attention = next(y for label, y in drawn.items() if "ttention" in label)
    assert np.isnan(attention[0])
    assert attention[1] == np.median(values[2])
