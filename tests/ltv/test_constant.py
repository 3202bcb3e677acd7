"""A constant system stores one matrix, and goes wherever another one does."""

import numpy as np
import pytest
import xarray as xr

from depthsys import export, ltv


def arrays(n=4, m=2, p=3, seed=0):
    rng = np.random.default_rng(seed)
    A = rng.standard_normal((n, n)) / n
    return A, rng.standard_normal((n, m)), rng.standard_normal((p, n)), rng.standard_normal((p, m))


def held(variable):
    """Bytes that an array really keeps, whatever its shape says."""
    values = variable.values
    while values.base is not None:
        values = values.base
    return values.nbytes


@pytest.fixture
def pair():
    """A constant system, and the same with a matrix per layer."""
    A, B, C, D = arrays()
    L = 6
    feedthrough = np.stack([D] * L + [0 * D])
    return (
        ltv.constant(A, B, C, D, horizon=L),
        ltv.system([A] * L, [B] * L, [C] * (L + 1), feedthrough),
    )


def test_one_matrix_is_stored_for_all_layers():
    n, L = 200, 1000
    rng = np.random.default_rng(0)
    A, b = rng.standard_normal((n, n)), rng.standard_normal((n, 1))
    system = ltv.constant(A, b, b.T, horizon=L)
    assert system.A.shape == (L, n, n)
    assert sum(held(system[name]) for name in "ABCD") == 8 * (n * n + n + n + 1)
    part = ltv.window(system, 10, 900)
    assert held(part.A) == 8 * n * n
    assert not np.shares_memory(part.A.values, system.A.values)


def test_it_is_the_system_with_a_matrix_per_layer(pair):
    one, many = pair
    xr.testing.assert_identical(one, many)
    xr.testing.assert_identical(ltv.window(one, 1, 4), ltv.window(many, 1, 4))
    joined = ltv.concatenate([ltv.window(one, 0, 2), ltv.window(one, 2, 6)])
    assert joined.A.equals(many.A)
    small = [ltv.project(s, ltv.balanced_basis(s, order=2)) for s in pair]
    xr.testing.assert_allclose(*small)
    xr.testing.assert_allclose(
        *(ltv.closed_loop(s, ltv.lqr(s, np.eye(4), np.eye(2)).K) for s in pair)
    )
    np.testing.assert_allclose(ltv.mean_lti(one).A, arrays()[0], rtol=0)
    xr.testing.assert_identical(*(ltv.parallel(s, s) for s in pair))
    xr.testing.assert_identical(*(ltv.embed(s) for s in pair))


@pytest.mark.parametrize("suffix", ["nc", "zarr", "npz", "json", "mat"])
def test_files_hold_every_layer(pair, suffix, tmp_path):
    write = {"nc": "netcdf", "mat": "matlab"}.get(suffix, suffix)
    path = tmp_path / ("folder" if suffix == "mat" else f"out.{suffix}")
    getattr(export, f"to_{write}")(pair[0], path)
    again = export.read(path)
    for name in "ABCD":
        np.testing.assert_array_equal(again[name], pair[1][name])


def test_views_cannot_be_written_to_and_copies_can(pair):
    with pytest.raises(ValueError, match=r"is a view|read-only"):
        pair[0].A[2, 0, 0] = 9.0
    copy = pair[0].copy(deep=True)
    copy.A[2, 0, 0] = 9.0
    assert pair[0].A[2, 0, 0] != 9.0
    assert copy.A[1, 0, 0] != 9.0


def test_the_matrices_of_the_caller_are_not_shared():
    A, B, C, _ = arrays()
    system = ltv.constant(A, B, C, horizon=3)
    A[0, 0] = 99.0
    assert system.A[0, 0, 0] != 99.0


def test_values_that_are_not_finite_are_found_in_views():
    A, B, C, _ = arrays()
    A[1, 2] = np.nan
    with pytest.raises(ValueError, match="`A` must be finite; got nan at layer=0, state_next=1"):
        ltv.constant(A, B, C, horizon=3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"A": np.ones((4, 3))}, r"`A` must have shape \(4, 4\)"),
        ({"B": np.ones((3, 2))}, r"`B` must have shape \(4, 2\) = .*got \(3, 2\)"),
        ({"C": np.ones((3, 5))}, r"`C` must have shape \(3, 4\)"),
        ({"D": np.ones((2, 2))}, r"`D` must have shape \(3, 2\)"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(change, message):
    given = dict(zip("ABCD", arrays(), strict=True)) | change
    with pytest.raises(ValueError, match=message):
        ltv.constant(*given.values(), horizon=3)
