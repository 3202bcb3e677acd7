import numpy as np
import pytest
import xarray as xr

from depthsys import ltv
from tests.ltv.hidden import hidden_system
from tests.ltv.test_system import dense_io_matrix, random_arrays


def block_ranks(arrays, rtol=1e-9):
    """Ranks and singular values of the Hankel blocks of the dense map."""
    G = dense_io_matrix(*arrays)
    depths, p, _, m = G.shape
    values = [
        np.linalg.svd(G[k:, :, :k].reshape((depths - k) * p, k * m), compute_uv=False)
        if k
        else np.zeros(0)
        for k in range(depths)
    ]
    return [int((s > rtol * s[0]).sum()) if s.size and s[0] else 0 for s in values], values


@pytest.mark.parametrize(("m", "p"), [(1, 1), (2, 1), (1, 3), (2, 2)])
@pytest.mark.parametrize("seed", range(3))
def test_it_has_the_ranks_of_the_hankel_blocks_and_the_same_map(seed, m, p):
    arrays = random_arrays(seed, 9, 4, m, p)
    arrays[0][4, :, 1:] = 0.0  # one state only survives layer 4
    system = ltv.system(*arrays)
    small = ltv.minimal_realization(system)
    ranks, values = block_ranks(arrays)
    assert small.order.values.tolist() == ranks
    assert ranks[5] == min(1 + m, 4, 5 * p)
    assert small.rank_is_certified.all()
    for k, exact in enumerate(values):
        np.testing.assert_allclose(
            small.hankel_singular_values[k, : ranks[k]], exact[: ranks[k]], rtol=1e-8
        )
    error = np.abs(ltv.io_matrix(small) - dense_io_matrix(*arrays)).max()
    assert error <= small.resolution <= 1e-10 * ltv.induced_norm(system)
    assert small.attrs["certified"] == "yes"
    assert small.attrs["rtol"] == 1e-12


@pytest.mark.parametrize("seed", range(40, 60))
def test_hidden_modes_are_left_out_whatever_their_radius_and_scale(seed):
    hidden = hidden_system(seed)
    if hidden.core is None:
        return
    small = ltv.minimal_realization(ltv.system(hidden.A, hidden.B, hidden.C))
    visible = ltv.system(*hidden.core)
    assert small.order.max() <= visible.sizes["state"]
    away = ltv.io_matrix(small) - ltv.io_matrix(visible)
    assert np.sqrt((away**2).sum()) <= 1e-7 * ltv.h2_norm(visible)


def test_python_control_finds_the_same_states_away_from_the_ends():
    control = pytest.importorskip("control")
    pytest.importorskip("slycot")
    rng = np.random.default_rng(0)
    T = rng.standard_normal((5, 5))
    A, B, C = np.diag([0.9, -0.5, 0.3, 0.7, 0.2]), rng.standard_normal((5, 1)), np.ones((1, 5))
    B[3], C[0, 4] = 0.0, 0.0  # one mode is not reached, one is not seen
    lti = control.ss(T @ A @ np.linalg.inv(T), T @ B, C @ np.linalg.inv(T), 0, 1)
    theirs = control.minimal_realization(lti, tol=1e-8, verbose=False)
    small = ltv.minimal_realization(ltv.constant(lti, horizon=40), rtol=1e-8)
    assert theirs.nstates == 3
    assert small.order.values[[0, 1, 2, 3, 20, 37, 38, 40]].tolist() == [0, 1, 2, 3, 3, 3, 3, 1]
    markov = [theirs.C @ np.linalg.matrix_power(theirs.A, j) @ theirs.B for j in range(39)]
    np.testing.assert_allclose(ltv.gains(small)[::-1, 0, 0][:39], np.ravel(markov), atol=1e-9)


@pytest.mark.parametrize("make", [ltv.minimal_realization, ltv.balreal])
def test_a_system_without_any_path_has_no_state_left(make):
    system = ltv.constant([[0.5, 0], [0, 2.0]], [[1.0], [0]], [[0, 1.0]], horizon=4)
    small = make(system)
    assert (small.order == 0).all()
    assert (ltv.io_matrix(small) == 0).all()
    with pytest.raises(ValueError, match="`rtol` must be between 0 and 1; got 0"):
        make(system, rtol=0.0)


def diagonal(values, size):
    return np.diag(np.pad(values, (0, size - len(values))))


@pytest.mark.parametrize("seed", range(4))
def test_balanced_coordinates_have_equal_diagonal_gramians_and_are_a_similarity(seed):
    arrays = random_arrays(seed, 8, 3, 2, 2)
    system, balanced = ltv.system(*arrays), ltv.balreal(ltv.system(*arrays))
    _, values = block_ranks(arrays)
    P, Q = ltv.reachability_gramian(balanced), ltv.observability_gramian(balanced)
    n = balanced.sizes["state"]
    for k, order in enumerate(balanced.order.values):
        exact = diagonal(values[k][:order], n)
        np.testing.assert_allclose(P[k], exact, atol=1e-9 * max(1, exact.max()))
        np.testing.assert_allclose(Q[k], exact, atol=1e-9 * max(1, exact.max()))
        T, inverse = balanced.T[k].values, balanced.T_inverse[k].values
        np.testing.assert_allclose(T[:order] @ inverse[:, :order], np.eye(order), atol=1e-10)
        whole = bool(balanced.is_similarity[k])
        assert whole == (order == 3)
        if whole:
            np.testing.assert_allclose(inverse @ T, np.eye(3), atol=1e-9)
    assert balanced.is_similarity.values.tolist() == [False, False, *[True] * 6, False]
    inside = system.isel(layer=slice(2, 7))
    transformed = np.stack(
        [
            balanced.T[k + 1].values @ a @ balanced.T_inverse[k].values
            for k, a in enumerate(inside.A.values, start=2)
        ]
    )
    np.testing.assert_allclose(balanced.A[2:7], transformed, atol=1e-9)
    np.testing.assert_allclose(ltv.io_matrix(balanced), ltv.io_matrix(system), atol=1e-9)


def test_far_from_both_ends_it_is_the_balanced_realization_of_slycot():
    control = pytest.importorskip("control")
    pytest.importorskip("slycot")
    rng = np.random.default_rng(1)
    A = np.diag([0.6, -0.5, 0.3]) + 0.1 * rng.standard_normal((3, 3))
    lti = control.ss(A, rng.standard_normal((3, 1)), rng.standard_normal((1, 3)), 0, 1)
    theirs = ltv.lti_balanced_truncation(lti, 3, use_slycot=True)
    ours = ltv.balreal(ltv.constant(lti, horizon=120))
    # balanced coordinates are unique up to the sign of each state
    np.testing.assert_allclose(np.abs(ours.A[60]), np.abs(theirs.A), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(np.abs(ours.B[60]), np.abs(theirs.B), rtol=1e-6)
    np.testing.assert_allclose(np.abs(ours.C[60]), np.abs(theirs.C), rtol=1e-6)
    np.testing.assert_allclose(
        ours.hankel_singular_values[60], ltv.lti_hankel_singular_values(lti), rtol=1e-9
    )


def test_reduction_can_be_refused():
    system = ltv.constant([[0.5]], [[1.0]], [[1.0]], horizon=3)
    with pytest.raises(ValueError, match=r"`system` must be minimal at every depth; got ranks"):
        ltv.balreal(system, allow_reduction=False)
    minimal = ltv.realization(ltv.io_matrix(system))
    whole = ltv.balreal(minimal, allow_reduction=False)
    assert whole.is_similarity.all()
    np.testing.assert_allclose(ltv.io_matrix(whole), ltv.io_matrix(system), atol=1e-14)


def test_batches_are_reduced_member_by_member():
    parts = [ltv.system(*random_arrays(seed, 6, 3, 1, 1)) for seed in range(3)]
    parts[1] = parts[1].assign(C=parts[1].C * [1.0, 0.0, 0.0], A=parts[1].A * np.eye(3))
    batch = xr.concat(parts, dim="case")
    small, balanced = ltv.minimal_realization(batch), ltv.balreal(batch)
    for case, part in enumerate(parts):
        alone = ltv.minimal_realization(part)
        assert small.order[case].values.tolist() == alone.order.values.tolist()
        np.testing.assert_allclose(ltv.io_matrix(small)[case], ltv.io_matrix(part), atol=1e-12)
    assert small.order[1].max() == 1
    assert balanced.is_similarity.sizes == {"case": 3, "depth": 7}


def test_units_far_apart_leave_the_check_of_the_bases_as_it_is():
    system = ltv.system(*random_arrays(0, 6, 3, 1, 1))
    plain = ltv.minimal_realization(system)
    far = system.assign(B=1e-300 * system.B, C=1e300 * system.C)
    small = ltv.minimal_realization(far)  # a leaked warning is an error
    assert small.order.values.tolist() == plain.order.values.tolist()
    np.testing.assert_allclose(ltv.io_matrix(small), ltv.io_matrix(far), atol=1e-12)
