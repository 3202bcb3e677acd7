"""No certificate is false: exact errors in 60 digits, of systems with hidden modes."""

import numpy as np
import pytest
import xarray as xr
from scipy.sparse.linalg import aslinearoperator

from depthsys import ltv
from tests.ltv.hidden import exact_distance, exact_map, hidden_system
from tests.ltv.test_system import random_arrays

HIDDEN = np.array([[0.0, 1.0], [-2.0, -3.0]]), np.array([[0.0], [1.0]]), np.array([[2.0, 1.0]])


def lists(system):
    """A, B, C of a reduced system, without the columns that pad it."""
    own = slice(max(1, int(system.order.max())))
    small = system.isel(state=own, state_next=own)
    return [list(small[name].values) for name in "ABC"]


def models(system, seed, most):
    """Models of orders up to 3 in the ways we know: (order, whether a bound is proved, model)."""
    try:
        basis = ltv.balanced_basis(system, most)
    except ltv.RankError as error:
        if error.rank == 0:
            return
        basis = ltv.balanced_basis(system, error.rank)
    rank, small = int(basis.order.max()), ltv.project(system, basis)
    for order in range(1, rank + 1):
        part = small.isel(state=slice(order), state_next=slice(order))
        yield order, True, part.assign_coords(order=np.minimum(part.order, order))
    order = seed % rank + 1
    if seed % 3 == 0:
        try:
            yield order, True, ltv.realization(ltv.io_matrix(system), order)
        except ltv.RankError:
            pass  # the map is known better than the factors, and its rank with it
    if seed % 3 == 1:
        yield 1, False, ltv.project(system, ltv.krylov_basis(system, 1))


def check_certificates(seeds):
    """Every bound of every system against the exact error; how many claim something."""
    certified = exactly_hidden = 0
    for seed in seeds:
        hidden = hidden_system(seed)
        system = ltv.system(hidden.A, hidden.B, hidden.C)
        G = exact_map(hidden.A, hidden.B, hidden.C)
        bounds = ltv.error_bounds(system, [0, 1, 2, 3])
        lower, upper = bounds.lower.values, bounds.upper.values
        norm = exact_distance(G, 0 * G)
        if seed % 3 == 2:
            assert abs(ltv.induced_norm(system) - norm) <= bounds.resolution + 1e-12 * norm, seed
        assert lower[0] <= norm * (1 + 1e-12), seed
        assert norm <= upper[0] or norm == 0, seed
        visible = 3 if hidden.core is None else len(hidden.core[0][0])
        if hidden.core is not None:
            # the visible part has the same map, so that no lower bound is left at its order
            assert exact_distance(G, exact_map(*hidden.core)) <= 1e-20 * norm, seed
            assert lower[visible] == 0, seed
            exactly_hidden += 1
        for order, proved, model in models(system, seed, visible):
            error = exact_distance(G, exact_map(*lists(model)))
            assert lower[order] <= error * (1 + 1e-12), (seed, order)
            if proved:
                assert error <= upper[order], (seed, order)
        certified += bool(bounds.upper_is_certified.all() and bounds.resolution <= 1e-8 * norm)
    assert certified >= 0.95 * len(seeds)  # a bound that never says anything would pass, too
    assert exactly_hidden >= 0.5 * len(seeds)


@pytest.mark.parametrize(
    "part", [0, *(pytest.param(part, marks=pytest.mark.slow) for part in range(1, 10))]
)
def test_no_certificate_is_false(part):
    check_certificates(range(30 * part, 30 * part + 30))


@pytest.mark.slow
@pytest.mark.parametrize("part", range(30))
def test_no_certificate_is_false_in_3000_systems(part):
    check_certificates(range(1000 + 100 * part, 1100 + 100 * part))


@pytest.mark.parametrize("horizon", [20, 50, pytest.param(100, marks=pytest.mark.slow)])
@pytest.mark.parametrize("dual", [False, True])
def test_a_hidden_unstable_mode_does_not_break_a_certificate(horizon, dual):
    """(2 + z) / ((z + 1)(z + 2)) is 1 / (z + 1): order 1 is exact, and the mode grows to 1e30."""
    A, B, C = HIDDEN
    system = ltv.constant(*((A.T, C.T, B.T) if dual else (A, B, C)), horizon=horizon)
    visible = ltv.constant([[-1.0]], [[1.0]], [[1.0]], horizon=horizon)
    norm = ltv.induced_norm(visible)
    bounds = ltv.error_bounds(system, 1)
    assert bounds.lower == 0
    assert not bounds.lower_is_certified
    assert bounds.upper_is_certified
    assert bounds.upper <= 1e-10 * norm
    assert bounds.attrs["certified"].startswith("lower bound not certified: rounding explains")
    np.testing.assert_allclose(ltv.io_matrix(system), ltv.io_matrix(visible), rtol=1e-15)
    for of in (ltv.induced_norm, ltv.h2_norm, ltv.hankel_norm):
        np.testing.assert_allclose(of(system), of(visible), rtol=1e-12)
        assert of(system).attrs["resolution"] <= 1e-10 * norm
        assert of(system).attrs["certified"] == "yes"
    values = ltv.hankel_singular_values(system)
    np.testing.assert_allclose(
        values.isel(index=0), ltv.hankel_singular_values(visible)[:, 0], rtol=1e-10
    )
    assert (values.isel(index=1) <= values.attrs["resolution"]).all()
    table = ltv.compare(system, [1], [ltv.balanced_basis])
    assert table.error <= 1e-12 * norm
    assert table.error <= table.upper <= 1e-10 * norm
    assert table.ratio.isnull()
    basis = ltv.balanced_basis(system, 1)
    assert basis.model_resolution <= 1e-10 * norm
    assert basis.attrs["certified"] == "yes"
    with pytest.raises(ltv.RankError, match="got 2"):
        ltv.balanced_basis(system, 2)


def test_what_is_too_large_for_long_arithmetic_is_not_certified():
    A, B, C = HIDDEN
    n = 64
    rng = np.random.default_rng(0)
    Q = np.linalg.qr(rng.standard_normal((n, n)))[0]
    big = 0.5 * np.eye(n)
    big[:2, :2] = A
    b, c = rng.standard_normal((n, 4)), rng.standard_normal((4, n))
    b[:2], c[:, :2] = B, C
    system = ltv.constant(Q @ big @ Q.T, Q @ b, c @ Q.T, horizon=60)
    free = ltv.MatrixFree(
        [aslinearoperator(A)] * 60, [B] * 60, [C] * 61
    )  # operators have no entries to be exact about
    for hidden in (system, free):
        bounds = ltv.error_bounds(hidden, [1, 2])
        assert (bounds.lower == 0).all()
        assert (bounds.upper == np.inf).all()
        assert (bounds.simple == np.inf).all()
        assert not bounds[["lower_is_certified", "upper_is_certified"]].to_array().any()
        assert not bounds.simple_is_proved.any()
        assert bounds.attrs["certified"].startswith("not certified in 2 of 2 cases: rounding")
        values = ltv.hankel_singular_values(hidden)
        assert values.attrs["resolution"] > 1e-3 * values.max()
        assert "the largest value" in values.attrs["certified"]
        assert ltv.induced_norm(hidden).attrs["certified"].startswith("not certified: rounding")
        basis = ltv.balanced_basis(hidden, 1)
        assert basis.attrs["certified"].startswith("not certified: rounding")
        table = ltv.compare(hidden, [1], [ltv.balanced_basis])
        assert table.upper.isnull().all()
        assert not table.error_is_certified.any()
        assert table.attrs["certified"].startswith("not certified")


def test_a_batch_is_certified_member_by_member():
    A, B, C = HIDDEN
    good = ltv.constant([[0.5, 0.1], [0.0, 0.2]], [[1.0], [0.5]], [[1.0, 0.3]], horizon=50)
    bad = ltv.constant(A, B, C, horizon=50)
    batch = xr.concat([good, bad, good], dim="case")
    bounds = ltv.error_bounds(batch, 1)
    assert bounds.lower_is_certified.values.tolist() == [True, False, True]
    for case, one in enumerate([good, bad, good]):
        alone = ltv.error_bounds(one, 1)
        for name in alone:
            np.testing.assert_allclose(bounds[name][case], alone[name], rtol=1e-9)
    assert "in 1 of 3 cases" in bounds.attrs["certified"]
    basis = ltv.balanced_basis(batch, 1)
    np.testing.assert_allclose(
        ltv.io_matrix(ltv.project(batch, basis))[1], ltv.io_matrix(bad), atol=1e-12
    )


def test_resolution_does_not_depend_on_the_unit_of_states_inputs_or_outputs():
    A, B, C, D = random_arrays(3, 12, 4, 2, 2)
    plain = ltv.error_bounds(ltv.system(A, B, C, D), 2)
    units = 2.0 ** np.array([-27, -3, 9, 26])
    scaled = ltv.system(
        A * units[:, None] / units, 1024 * B * units[:, None], 2**-20 * C / units, 2**-10 * D
    )
    theirs = ltv.error_bounds(scaled, 2)
    for name in ("resolution", "lower", "upper"):
        np.testing.assert_allclose(theirs[name] * 2**10, plain[name], rtol=1e-9)


def test_a_chain_of_states_warns_of_nothing():
    """Hankel values rise by hundreds of decades along the chain: a product of rises overflows."""
    n = 10
    A = 0.5 * np.eye(n) + 0.4 * np.eye(n, k=-1)
    chain = ltv.constant(A.T, np.eye(n)[:, -1:], np.eye(n)[:1], horizon=100)
    bounds = ltv.error_bounds(chain, [1, 2, 5])
    table = ltv.compare(chain, [1, 2, 5], [ltv.balanced_basis])
    assert (bounds.lower <= table.error.isel(basis=0)).all()
    assert (table.error.isel(basis=0) <= bounds.upper).all()
    nothing = ltv.constant(A, np.eye(n)[:, -1:], np.eye(n)[:1], horizon=100)
    assert ltv.error_bounds(nothing, 1).upper == 0


@pytest.mark.parametrize("seed", range(12))
def test_the_table_knows_the_rounding_of_a_galerkin_basis_in_badly_scaled_coordinates(seed):
    rng = np.random.default_rng(seed)
    L, n = 12, 4
    units = 10.0 ** rng.uniform(-8, 8, n)
    A = rng.standard_normal((L, n, n)) * units[:, None] / units
    B, C = (
        rng.standard_normal((L, n, 1)) * units[:, None],
        rng.standard_normal((L + 1, 1, n)) / units,
    )
    system = ltv.system(A, B, C)
    table = ltv.compare(system, [1, 2, 3], [ltv.random_basis]).isel(basis=0)
    G = exact_map(*(list(x) for x in (A, B, C)))
    for order in (1, 2, 3):
        row = table.sel(order=order)
        stored = ltv.project(system, ltv.random_basis(system, order))
        error = exact_distance(G, exact_map(*lists(stored)))
        assert abs(row.error - error) <= row.resolution_of_error + 1e-13 * error
        assert row.resolution_of_error <= 1e-8 * error
        assert row.error_is_certified


@pytest.mark.parametrize("seed", range(5))
def test_an_oblique_basis_says_what_it_loses(seed):
    system = ltv.system(*random_arrays(seed, 6, 4, 1, 1))
    orthonormal, oblique = ltv.pod_basis(system, 2), ltv.balanced_basis(system, 2)
    assert orthonormal.resolution < 1e-14
    for basis in (orthonormal, oblique):
        V, W = basis.V.values, basis.W.values
        off = np.abs(np.swapaxes(W, 1, 2) @ V)
        lost = np.abs(off - np.eye(2) * (np.abs(V).sum(1) > 0)[:, None]).max()
        assert lost <= basis.resolution + 1e-15
        assert basis.attrs["certified"] == "yes"


def test_where_only_the_model_is_lost_the_lower_bound_stands():
    """Two growing modes, one not reached and one not seen: values are known, factors are not."""
    rng = np.random.default_rng(1)
    n, L = 5, 45
    A = np.diag(np.r_[rng.uniform(-0.9, 0.9, n - 2), 2.5, 2.2])
    b, c = rng.standard_normal((n, 1)), rng.standard_normal((1, n))
    b[-1], c[:, -2] = 0, 0
    Q = np.linalg.qr(rng.standard_normal((n, n)))[0]
    system = ltv.constant(Q @ A @ Q.T, Q @ b, c @ Q.T, horizon=L)
    bounds = ltv.error_bounds(system, 1)
    lost = float(ltv.balanced_basis(system, 1).model_resolution)
    top = float(ltv.hankel_norm(system))
    assert float(bounds.resolution) < 1e-3 * top < lost
    assert bounds.lower_is_certified
    assert bounds.lower > 0
    assert not bounds.upper_is_certified
    said = bounds.attrs["certified"]
    assert said.startswith(
        f"upper bound not certified: rounding explains {lost:.1e} (`model_resolution` of "
        f"`balanced_basis`), and the largest Hankel value is {top:.1e}"
    )
    assert said.endswith("avoids that: `error_bounds(io_matrix(system), order)`")
    io = ltv.io_matrix(system)  # the way out
    out = ltv.error_bounds(io, 1)
    assert out.attrs["certified"] == "yes"
    error = np.linalg.norm(
        (io - ltv.io_matrix(ltv.realization(io, 1))).values.reshape(L + 1, L), ord=2
    )
    assert out.lower <= error <= out.upper < np.inf
    both = ltv.error_bounds(system, 5).attrs["certified"]  # nothing is left out
    assert "upper bound not certified" in both
    assert "; lower bound not certified: rounding explains" in both


@pytest.mark.parametrize(
    "seed", [*range(8), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(8, 24))]
)
def test_no_certificate_is_false_near_the_smallest_numbers(seed):
    """Inputs and outputs by 1e-150 to 1e-160 each: products are near 1e-308, with few digits."""
    hidden, rng = hidden_system(seed, longest=20), np.random.default_rng(seed)
    ins, outs = (2.0 ** -int(rng.integers(498, 533)) for _ in range(2))
    B, C = [ins * b for b in hidden.B], [outs * c for c in hidden.C]
    system, G = ltv.system(hidden.A, B, C), exact_map(hidden.A, B, C)
    norm, least = exact_distance(G, 0 * G), float(np.finfo(float).smallest_subnormal)
    visible = 3 if hidden.core is None else len(hidden.core[0][0])
    bounds = ltv.error_bounds(system, [0, 1, 2, 3])
    lower, upper = bounds.lower.values, bounds.upper.values
    assert lower[0] <= norm * (1 + 1e-12) + least
    assert norm <= upper[0]
    assert norm == 0 or bounds.resolution > 0
    assert abs(ltv.induced_norm(system) - norm) <= bounds.resolution + 1e-12 * norm
    if hidden.core is not None:
        assert lower[visible] == 0
    for order, proved, model in models(system, seed, visible):
        error = exact_distance(G, exact_map(*lists(model)))
        assert lower[order] <= error * (1 + 1e-12) + least, order
        if proved:
            assert error <= upper[order], order


def test_a_map_that_underflows_is_not_certified_to_be_zero():
    system = ltv.constant([[0.5]], [[1e-170]], [[1e-170]], horizon=3)
    for found in (ltv.induced_norm(system), ltv.hankel_norm(system)):
        assert found == 0
        assert 0 < found.attrs["resolution"] < 1e-300
        assert found.attrs["certified"].startswith("not certified")
