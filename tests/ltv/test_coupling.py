"""Coupling of layers, against hand-computed ones and loops over pairs."""

import numpy as np
import pytest
import xarray as xr

from depthsys import ltv

L, n = 4, 6


@pytest.fixture
def J():
    return np.random.default_rng(7).normal(size=(L, n, n))


def of(J, **options):
    """Of layers that add J."""
    J = np.asarray(J, dtype=float)
    A = J + np.eye(J.shape[-1])
    return ltv.coupling(xr.Dataset({"A": (("layer", "state_next", "state"), A)}), **options)


def turn(seed, size=n):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))[0]


def test_the_same_layer_twice_is_coupled(J):
    found = of([J[0], J[0], 2 * J[0]], top=3)
    np.testing.assert_allclose(found["coupling"], 0, atol=1e-12)
    s = np.linalg.svd(J[0], compute_uv=False)[:3]
    np.testing.assert_allclose(found["singular_value"], [s, s, 2 * s])


def test_layers_that_see_nothing_of_each_other():
    """Orthogonal singular spaces: U2' J1 V2 = 0, so what is missing is all of S1."""
    first, second = np.diag([3.0, 2, 0, 0]), np.diag([0.0, 0, 5, 4])
    found = of([first, second], top=2)
    np.testing.assert_allclose(found["coupling"], [[0, 1], [1, 0]], atol=1e-12)


def test_the_same_axes_in_another_order():
    """M = diag(2, 3) against S = diag(3, 2): sqrt(2) over sqrt(13)."""
    found = of([np.diag([3.0, 2, 0]), np.diag([2.0, 3, 0])], top=2)
    other = np.sqrt(2) / np.sqrt(13)
    np.testing.assert_allclose(found["coupling"], [[0, other], [other, 0]], atol=1e-12)


def test_signs_count_in_one_form_and_not_in_the_other(J):
    """-J acts along the same directions: M = -S, twice as far as S is long."""
    pair = [J[0], -J[0]]
    found = of(pair, top=3)["coupling"]
    np.testing.assert_allclose(found, [[0, 2], [2, 0]], atol=1e-12)
    absolute = of(pair, top=3, form="absolute")["coupling"]
    np.testing.assert_allclose(absolute, 0, atol=1e-12)


def test_stronger_layers_with_the_same_directions_are_coupled_only_one_way():
    """Directions are those of the second, values those of the first: scale does not matter."""
    U, V = turn(1), turn(2)
    first = U @ np.diag([6.0, 5, 4, 3, 2, 1]) @ V.T
    found = of([first, 10 * first], top=4)["coupling"]
    np.testing.assert_allclose(found, 0, atol=1e-12)


@pytest.mark.parametrize("form", ["signed", "absolute"])
@pytest.mark.parametrize("top", [1, 3, n])
def test_every_pair_is_that_of_a_loop(J, form, top):
    found = of(J, top=top, form=form)
    for one in range(L):
        U1, s1, V1t = np.linalg.svd(J[one])
        for two in range(L):
            U2, _, V2t = np.linalg.svd(J[two])
            # by the singular triplets, as the paper writes it a second time
            M = U2[:, :top].T @ U1 @ np.diag(s1) @ V1t @ V2t[:top].T
            total = 0.0
            for i in range(top):
                for j in range(top):
                    entry = abs(M[i, j]) if form == "absolute" else M[i, j]
                    total += (entry - (s1[i] if i == j else 0)) ** 2
            expected = np.sqrt(total / np.sum(s1[:top] ** 2))
            assert float(found["coupling"][one, two]) == pytest.approx(expected, abs=1e-12)
        np.testing.assert_allclose(found["singular_value"][one], s1[:top])
    assert (found.attrs["top"], found.attrs["form"], found.attrs["of"]) == (top, form, "update")


def test_the_absolute_form_is_never_the_larger_one(J):
    signed, absolute = (of(J, top=4, form=form)["coupling"] for form in ("signed", "absolute"))
    assert (absolute <= signed + 1e-12).all()
    assert (absolute < signed - 1e-3).any()


def test_of_layers_as_they_are(J):
    A = xr.Dataset({"A": (("layer", "state_next", "state"), J)})
    xr.testing.assert_allclose(
        ltv.coupling(A, top=3, update=False)[["coupling"]], of(J, top=3)[["coupling"]]
    )
    assert ltv.coupling(A, top=3, update=False).attrs["of"] == "layer"


def test_batches_and_labels_stay(J):
    both = np.stack([J, J + J[::-1]]) + np.eye(n)
    batch = xr.DataArray(both, dims=("prompt", "layer", "state_next", "state"))
    given = xr.Dataset({"A": batch}).assign_coords(layer=range(2, 2 + L), prompt=["a", "b"])
    found = ltv.coupling(given, top=3)
    assert found["coupling"].dims == ("prompt", "layer", "layer_2")
    np.testing.assert_array_equal(found["layer_2"], range(2, 2 + L))
    one = found.sel(prompt="b", drop=True)
    np.testing.assert_allclose(one["coupling"], of(J + J[::-1], top=3)["coupling"])


def test_what_has_no_coupling_is_refused(J):
    with pytest.raises(ValueError, match=r"`top` must be a whole number in 1..6; got 7"):
        of(J, top=7)
    with pytest.raises(ValueError, match=r"`top` must be .*; got 2.5"):
        of(J, top=2.5)
    with pytest.raises(ValueError, match=r"`form` must be one of .*; got 'abs'"):
        of(J, form="abs")
    with pytest.raises(ValueError, match="must be a Dataset with A"):
        ltv.coupling(xr.DataArray(J))
    with pytest.raises(ValueError, match="got one without singular values at layer 1"):
        of([J[0], np.zeros((n, n))], top=3)
    with pytest.raises(ValueError, match="must be finite"):
        of(J * np.nan, top=3)
