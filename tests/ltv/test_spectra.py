"""Spectra of layers and of their products, against hand-computed ones and other formulas."""

import mpmath
import numpy as np
import pytest
import scipy.linalg
import xarray as xr

from depthsys import ltv

L, n = 4, 5


@pytest.fixture
def A():
    return np.random.default_rng(3).normal(size=(L, n, n)) / 2


def of(A, **options):
    A = np.asarray(A, dtype=float)
    return ltv.spectra(xr.Dataset({"A": (("layer", "state_next", "state"), A)}), **options)


def test_a_turn_a_symmetric_map_and_a_nilpotent_one():
    turn = [[0.0, -0.5], [0.5, 0.0]]
    symmetric = [[2.0, 1.0], [1.0, 2.0]]
    nilpotent = [[0.0, 3.0], [0.0, 0.0]]
    found = of([turn, symmetric, nilpotent])
    np.testing.assert_allclose(found["modulus"], [[0.5, 0.5], [3, 1], [0, 0]], atol=1e-12)
    np.testing.assert_allclose(np.sort(found["angle"][0]), [-np.pi / 2, np.pi / 2])
    np.testing.assert_allclose(found["angle"][1], 0, atol=1e-12)
    np.testing.assert_allclose(found["norm"], [0.5, 3, 3])
    np.testing.assert_allclose(found["departure"], [0, 0, 1], atol=1e-12)
    np.testing.assert_allclose(found["symmetric_share"], [0, 1, 0.5], atol=1e-12)


def test_eigenvalues_and_departure_are_those_of_long_arithmetic(A):
    found = of(A)
    with mpmath.workdps(40):
        for layer in range(L):
            M = mpmath.matrix(A[layer].tolist())
            values, _ = mpmath.eig(M)
            modulus = sorted((float(abs(v)) for v in values), reverse=True)
            np.testing.assert_allclose(found["modulus"][layer], modulus, rtol=1e-11)
            turns = sorted(abs(float(mpmath.arg(v))) for v in values)  # half a turn has two signs
            np.testing.assert_allclose(np.sort(abs(found["angle"][layer])), turns, atol=1e-11)
            # Henrici's own formula, which cancels in short arithmetic
            size = mpmath.mnorm(M, "f")
            rest = size**2 - sum(abs(v) ** 2 for v in values)
            departure = float(mpmath.sqrt(rest) / size)
            assert float(found["departure"][layer]) == pytest.approx(departure, rel=1e-11)


def test_a_departure_far_below_the_roundings_of_squares_is_found():
    near = np.diag([1.0, 2.0, 3.0])
    near[0, 2] = 1e-10
    assert float(of([near])["departure"][0]) == pytest.approx(1e-10 / np.sqrt(14), rel=1e-5)


def test_the_two_parts_share_the_square(A):
    found = of(A)
    for layer, M in enumerate(A):
        anti = np.sum((M - M.T) ** 2) / 4 / np.sum(M**2)
        assert float(found["symmetric_share"][layer]) == pytest.approx(1 - anti)
        assert float(found["norm"][layer]) == pytest.approx(scipy.linalg.svdvals(M)[0])


def test_products_are_those_of_the_transitions(A):
    system = ltv.system(A, np.ones((L, n, 1)), np.ones((L + 1, 1, n)))
    found = ltv.spectra(system)
    np.testing.assert_array_equal(found["depth"], range(L + 1))
    for k in range(L + 1):
        for name, (start, stop) in {"from_start": (0, k), "to_end": (k, L)}.items():
            s = scipy.linalg.svdvals(ltv.transition(system, start, stop).values)
            assert float(found[f"growth_{name}"][k]) == pytest.approx(s[0])
            share = s / s.sum()
            rank = np.prod(share**-share)  # the exponential of the entropy
            assert float(found[f"rank_{name}"][k]) == pytest.approx(rank)
    radii = [np.abs(np.linalg.eigvals(M)).max() for M in A]
    np.testing.assert_allclose(found["modal_growth"], np.cumprod([1, *radii]))


def test_growth_beyond_the_modes_is_transient():
    """Two nilpotent layers that hand on to each other: no mode grows, the product does."""
    up, down = np.array([[0.0, 4.0], [0.0, 0.0]]), np.array([[0.0, 0.0], [4.0, 0.0]])
    found = of([up, down])
    np.testing.assert_allclose(found["modal_growth"], [1, 0, 0], atol=1e-12)
    np.testing.assert_allclose(found["growth_from_start"], [1, 4, 16])


def test_ranks_of_known_singular_values():
    found = of([np.diag([1.0, 1.0, 0.0]), np.zeros((3, 3))])
    np.testing.assert_allclose(found["rank_from_start"], [3, 2, 0])
    np.testing.assert_allclose(found["rank_to_end"], [0, 0, 3])


def test_the_update_is_what_a_block_adds(A):
    found = of(A + np.eye(n), update=True)
    xr.testing.assert_allclose(found[["modulus", "norm", "departure"]], of(A)[
        ["modulus", "norm", "departure"]
    ])  # fmt: skip
    whole = of(A + np.eye(n))
    xr.testing.assert_allclose(found["growth_to_end"], whole["growth_to_end"])
    xr.testing.assert_allclose(found["modal_growth"], whole["modal_growth"])
    assert (found.attrs["of"], whole.attrs["of"]) == ("update", "layer")


def test_batches_and_labels_stay(A):
    batch = xr.DataArray(np.stack([A, 2 * A]), dims=("prompt", "layer", "state_next", "state"))
    given = xr.Dataset({"A": batch}).assign_coords(layer=range(2, 2 + L), prompt=["a", "b"])
    found = ltv.spectra(given)
    assert found["modulus"].dims == ("prompt", "layer", "mode")
    np.testing.assert_array_equal(found["layer"], range(2, 2 + L))
    np.testing.assert_array_equal(found["depth"], range(2, 3 + L))
    one = found.sel(prompt="b", drop=True)
    xr.testing.assert_allclose(one, of(2 * A).assign_coords(one.coords))


def test_what_has_no_eigenvalues_is_refused(A):
    with pytest.raises(ValueError, match="must be a Dataset with A; got DataArray"):
        ltv.spectra(xr.DataArray(A))
    with pytest.raises(ValueError, match=r"must have square A \(layer, state_next, state\); got"):
        of(A[:, :3])
    sizes = ltv.system([np.ones((2, 1)), np.ones((1, 2))], [np.ones((2, 1)), np.ones((1, 1))],
                       [np.ones((1, 1)), np.ones((1, 2)), np.ones((1, 1))])  # fmt: skip
    with pytest.raises(ValueError, match=r"one state size at all depths; got orders \[1 2 1\]"):
        ltv.spectra(sizes)
    with pytest.raises(ValueError, match="must be finite; got NaN or infinity in A"):
        of(A * np.nan)


def test_real_eigenvalues_turn_by_nothing_or_by_half_a_turn():
    """By their signs, and not by what rounding leaves of an imaginary part."""
    found = of(np.random.default_rng(0).standard_normal((3, 8, 8)))
    for layer, M in enumerate(np.random.default_rng(0).standard_normal((3, 8, 8))):
        real = np.linalg.eigvals(M)
        real = real[real.imag == 0].real
        angles = found["angle"].values[layer]
        assert (angles == 0).sum() == (real > 0).sum()
        assert (angles == np.pi).sum() == (real < 0).sum()
        assert not (angles == -np.pi).any()


def test_values_and_departure_are_those_of_the_complex_schur_form():
    rng = np.random.default_rng(5)
    for size in (1, 2, 3, 8):
        M = rng.standard_normal((size, size))
        found = of([M])
        T = scipy.linalg.schur(M, output="complex")[0]
        departure = np.linalg.norm(np.triu(T, 1)) / np.linalg.norm(M)
        assert float(found["departure"][0]) == pytest.approx(departure, rel=1e-10, abs=1e-12)
        np.testing.assert_allclose(
            found["modulus"][0], np.sort(np.abs(np.diag(T)))[::-1], rtol=1e-10
        )
