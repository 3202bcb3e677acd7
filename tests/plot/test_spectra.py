"""Figures of spectra and of layers left out: what is drawn is what was found."""

import numpy as np
import pytest
import xarray as xr

from depthsys import ltv, plot

A = np.random.default_rng(5).normal(size=(6, 4, 4)) / 2


@pytest.fixture
def found():
    return ltv.spectra(xr.Dataset({"A": (("layer", "state_next", "state"), A)}))


def test_curves_are_those_of_the_table(found):
    _, axes = plot.figure(12, 4, columns=3)
    plot.spectra(axes, found)
    drawn = [line.get_ydata() for ax in axes for line in ax.lines]
    names = ["departure", "symmetric_share", "rank_from_start", "rank_to_end"]
    names += ["growth_from_start", "growth_to_end", "modal_growth"]
    for values, name in zip(drawn, names, strict=True):
        np.testing.assert_array_equal(values, found[name])
    assert axes[2].get_yscale() == "log"
    assert "layer $A_l$" in axes[0].get_ylabel()
    _, axes = plot.figure(12, 4, columns=3)
    plot.spectra(axes, found.assign_attrs(of="update"))
    assert "update $A_l - I$" in axes[0].get_ylabel()


def test_every_eigenvalue_is_in_one_field_of_its_layer(found):
    _, (ax,) = plot.figure()
    plot.eigenvalue_angles(ax, found)
    share = ax.collections[0].get_array().filled(0).reshape(-1, len(A))
    np.testing.assert_allclose(share.sum(axis=0), 1)
    edges = np.linspace(0, 180, len(share) + 1)
    for layer, M in enumerate(A):
        turns = np.degrees(np.abs(np.angle(np.linalg.eigvals(M))))
        np.testing.assert_allclose(share[:, layer] * len(M), np.histogram(turns, edges)[0])


def test_maps_of_angles_have_the_same_colours_whatever_is_in_them(found):
    span = []
    for given in (found, found.assign(angle=found["angle"] * 0)):
        _, (ax,) = plot.figure()
        plot.eigenvalue_angles(ax, given)
        span.append(ax.collections[0].get_clim())
    assert span == [(1 / 4, 1), (1 / 4, 1)]


def test_the_radii_are_quantiles_of_each_layer(found):
    _, (ax,) = plot.figure()
    plot.eigenvalue_radii(ax, found)
    sizes = np.array([np.abs(np.linalg.eigvals(M)) for M in A])
    np.testing.assert_allclose(ax.lines[0].get_ydata(), np.median(sizes, axis=1))
    np.testing.assert_allclose(ax.lines[1].get_ydata(), sizes.max(axis=1))
    for band, low, high in zip(ax.collections, (0.05, 0.25), (0.95, 0.75), strict=True):
        drawn = band.get_paths()[0].vertices[:, 1]
        for share in (low, high):
            for value in np.quantile(sizes, share, axis=1):
                assert np.isclose(drawn, value).any()
    assert ax.get_yscale() == "log"
    assert "update" not in ax.get_ylabel()
    _, (ax,) = plot.figure()
    plot.eigenvalue_radii(ax, found.assign_attrs(of="update"))
    assert "update" in ax.get_ylabel()
    with pytest.raises(ValueError, match="prompt"):
        plot.eigenvalue_radii(ax, found.expand_dims(prompt=2))


def test_what_is_lost_is_drawn_with_its_prediction():
    shift = np.random.default_rng(1).normal(size=(20, 6))
    table = xr.Dataset(
        {"shift": (("prompt", "layer"), shift), "predicted": (("prompt", "layer"), 2 * shift)}
    )
    _, (ax,) = plot.figure()
    plot.layer_skip(ax, table)
    np.testing.assert_allclose(ax.lines[0].get_ydata(), shift.mean(axis=0))
    np.testing.assert_allclose(ax.lines[1].get_ydata(), 2 * shift.mean(axis=0))
    band = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert np.isclose(band.max(), np.quantile(shift, 0.9, axis=0).max())


def test_what_cannot_be_drawn_is_refused(found):
    _, (ax,) = plot.figure()
    with pytest.raises(ValueError, match="`axes` must be three; got 1"):
        plot.spectra([ax], found)
    with pytest.raises(ValueError, match="departure"):
        plot.spectra([ax] * 3, found.drop_vars("departure"))
    batch = found.expand_dims(prompt=2)
    with pytest.raises(ValueError, match="prompt"):
        plot.eigenvalue_angles(ax, batch)
    with pytest.raises(ValueError, match="prompt"):
        plot.spectra([ax] * 3, batch)
    lost = xr.Dataset({name: ("layer", np.zeros(3)) for name in ("shift", "predicted")})
    with pytest.raises(ValueError, match="shift"):
        plot.layer_skip(ax, lost)
    with pytest.raises(TypeError, match="`found` must be a Dataset"):
        plot.layer_skip(ax, np.zeros(3))
