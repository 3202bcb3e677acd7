"""Figures of coupling, of trajectories and of lenses: what is drawn is what was found."""

import numpy as np
import pytest
import xarray as xr

from depthsys import plot

RNG = np.random.default_rng(3)
PAIRS = ("prompt", "layer", "layer_2")


@pytest.fixture
def pairs():
    m = RNG.uniform(0, 1.3, (5, 4, 4))
    return xr.Dataset({"coupling": (PAIRS, m)}, coords={"layer": range(4)}, attrs={"top": 10})


def test_the_map_has_the_looked_at_layer_downwards(pairs):
    _, (ax,) = plot.figure()
    plot.coupling(ax, pairs)
    mesh = ax.collections[0]
    drawn, apart = mesh.get_array().reshape(4, 4), ~np.eye(4, dtype=bool)
    np.testing.assert_array_equal(drawn.mask, ~apart)
    np.testing.assert_allclose(drawn[apart], pairs["coupling"].mean("prompt").values[apart])
    assert ax.yaxis_inverted()
    assert ax.get_ylabel().startswith("layer $l$")


def test_the_colours_of_the_map_part_at_one_and_reach_the_farthest_value(pairs):
    m = xr.Dataset({"coupling": (PAIRS[1:], np.array([[0.0, 1.1], [0.7, 0.0]]))})
    _, (ax,) = plot.figure()
    plot.coupling(ax, m)
    mesh = ax.collections[0]
    np.testing.assert_allclose(mesh.get_clim(), (0.7, 1.3))
    assert mesh.colorbar.extend == "neither"
    white = mesh.get_cmap()(mesh.norm(1.0))
    np.testing.assert_allclose(white[:3], 0.97, atol=0.01)
    red, _, blue, _ = mesh.get_cmap()(mesh.norm(0.7))
    assert blue > red  # coupled is blue
    for span, extend in ((0.2, "min"), (0.05, "both"), (0.5, "neither")):
        _, (ax,) = plot.figure()
        plot.coupling(ax, m, span=span)
        np.testing.assert_allclose(ax.collections[0].get_clim(), (1 - span, 1 + span))
        assert ax.collections[0].colorbar.extend == extend
    one = xr.Dataset({"coupling": (PAIRS[1:], np.ones((2, 2)))})
    for given in (one, one.isel(layer=[0], layer_2=[0])):
        _, (ax,) = plot.figure()
        plot.coupling(ax, given)
        assert ax.collections[0].get_clim() == (0, 2)


def test_steps_and_norms_have_their_exponential():
    step = 2.0 * 1.5 ** np.arange(6) * np.exp(RNG.normal(size=(9, 1)) / 5)
    norm = 3.0 * 1.2 ** np.arange(7) * np.ones((9, 1))
    found = xr.Dataset(
        {"step": (("prompt", "layer"), step), "norm": (("prompt", "depth"), norm)},
        coords={"layer": range(2, 8), "depth": range(2, 9)},
    )
    _, axes = plot.figure(10, 4, columns=2)
    plot.trajectory_shape(axes, found)
    mean, fit = (line.get_ydata() for line in axes[0].lines)
    np.testing.assert_allclose(mean, np.exp(np.log(step).mean(axis=0)))
    np.testing.assert_allclose(fit, mean)
    np.testing.assert_array_equal(axes[0].lines[0].get_xdata(), range(2, 8))
    assert axes[1].lines[1].get_label() == "1.200 per layer"
    assert axes[0].get_yscale() == axes[1].get_yscale() == "log"


def test_a_step_of_zero_has_no_exponential():
    found = xr.Dataset({"step": (("prompt", "layer"), [[1.0, 0.0]]),
                        "norm": (("prompt", "depth"), [[1.0, 2.0, 2.0]])})  # fmt: skip
    _, axes = plot.figure(10, 4, columns=2)
    plot.trajectory_shape(axes, found)
    assert (len(axes[0].lines), len(axes[1].lines)) == (1, 2)


def test_the_share_of_the_mean_is_that_of_norms():
    J = RNG.normal(size=(3, 4, 4))
    norms = 2 * np.linalg.norm(J, axis=(1, 2))
    found = xr.Dataset(
        {"J": (("depth", "feature_out", "feature"), J), "prompt_norm": ("depth", norms)},
        coords={"depth": [0, 2, 4]}, attrs={"n_prompts": 16},
    )  # fmt: skip
    _, (ax,) = plot.figure()
    plot.lens(ax, found)
    np.testing.assert_allclose(ax.lines[0].get_ydata(), 0.5)
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), [0, 2, 4])
    assert ax.lines[1].get_ydata()[0] == 0.25


def test_every_reader_has_its_curves():
    dims, shape = ("reader", "depth", "prompt"), (2, 3, 5)
    kl = RNG.uniform(0.1, 2, shape)
    kl[:, -1] = 0
    found = xr.Dataset(
        {"agreement": (dims, RNG.integers(0, 2, shape).astype(float)), "kl": (dims, kl)},
        coords={"reader": ["logit lens", "J-lens"]},
    )
    _, axes = plot.figure(10, 4, columns=2)
    plot.lens_agreement(axes, found)
    for ax, name in zip(axes, ("agreement", "kl"), strict=True):
        assert [line.get_label() for line in ax.lines] == ["logit lens", "J-lens"]
        expected = found[name].mean("prompt").values
        expected = np.where(expected > 0, expected, np.nan) if name == "kl" else expected
        np.testing.assert_allclose([line.get_ydata() for line in ax.lines], expected)


def test_tokens_stand_at_their_rank_and_depth():
    token = np.array([[" the", "$x"], ["\n", "a very long token"]])
    found = xr.Dataset(
        {"token": (("depth", "rank"), token),
         "probability": (("depth", "rank"), [[0.9, 0.05], [0.3, 0.2]])},
        coords={"depth": [3, 4]},
    )  # fmt: skip
    fig, (ax,) = plot.figure()
    plot.decoded(ax, found)
    fig.draw_without_rendering()  # a dollar begins no formula
    shown = {text.get_position(): text.get_text() for text in ax.texts}
    assert shown == {(1, 3): "_the", (2, 3): r"\$x", (1, 4): "↵", (2, 4): "a_very_long…"}
    assert [text.get_color() for text in ax.texts] == ["w", "k", "k", "k"]
    _, (ax,) = plot.figure()
    plot.decoded(ax, found.drop_vars("probability"))
    assert (len(ax.texts), len(ax.collections)) == (4, 0)


def test_what_cannot_be_drawn_is_refused(pairs):
    _, (ax,) = plot.figure()
    with pytest.raises(ValueError, match=r"`found` must hold \['coupling'\]"):
        plot.coupling(ax, xr.Dataset())
    with pytest.raises(ValueError, match="member"):
        plot.coupling(ax, pairs.expand_dims(member=2))
    for span in (0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="`span` must be above 0; got"):
            plot.coupling(ax, pairs, span=span)
    with pytest.raises(TypeError, match="`found` must be a Dataset"):
        plot.lens(ax, np.zeros(3))
    with pytest.raises(ValueError, match="prompt_norm"):
        plot.lens(ax, xr.Dataset({"J": pairs["coupling"]}))
    for draw in (plot.trajectory_shape, plot.lens_agreement):
        with pytest.raises(ValueError, match="`axes` must be two; got 1"):
            draw([ax], pairs)
        with pytest.raises(ValueError, match="must hold"):
            draw([ax, ax], pairs)
    read = xr.Dataset({"token": (("depth", "prompt", "rank"), np.full((2, 3, 1), "a"))})
    with pytest.raises(ValueError, match="prompt"):
        plot.decoded(ax, read)
