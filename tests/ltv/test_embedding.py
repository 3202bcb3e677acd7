"""The nilpotent embedding hands every LTV answer to tools that know only LTI systems."""

from itertools import pairwise

import control
import numpy as np
import pytest
import scipy.linalg
import xarray as xr

from depthsys import ltv
from tests.ltv.test_system import dense_io_matrix, random_arrays

RTOL = 1e-10


def ragged_lists(seed, sizes, m=2, p=3):
    rng = np.random.default_rng(seed)
    A = [rng.standard_normal((b, a)) for a, b in pairwise(sizes)]
    B = [rng.standard_normal((n, m)) for n in sizes[1:]]
    C = [rng.standard_normal((p, n)) for n in sizes]
    D = [rng.standard_normal((p, m)) for _ in A] + [np.zeros((p, m))]
    return A, B, C, D


SYSTEMS = {
    "wide": lambda: ltv.system(*random_arrays(0, n_layers=5, n=3, m=3, p=2)),
    "tall": lambda: ltv.system(*random_arrays(1, n_layers=6, n=4, m=2, p=3)),
    "one layer": lambda: ltv.system(*random_arrays(2, n_layers=1, n=2, m=2, p=2)),
    "long": lambda: ltv.system(*random_arrays(3, n_layers=12, n=2, m=2, p=2)),
    "more inputs than states": lambda: ltv.system(*random_arrays(4, n_layers=4, n=2, m=5, p=3)),
    "growing": lambda: ltv.system(*ragged_lists(5, [1, 2, 3, 4, 5])),
    "shrinking": lambda: ltv.system(*ragged_lists(6, [4, 3, 2, 1])),
    "up and down": lambda: ltv.system(*ragged_lists(7, [2, 4, 1, 3, 2, 2], m=3, p=2)),
}


@pytest.fixture(params=SYSTEMS)
def pair(request):
    system = SYSTEMS[request.param]()
    return system, ltv.embed(system)


def matrices(embedding):
    return tuple(embedding[name].values for name in "ABCD")


def state_space(embedding):
    return control.ss(*matrices(embedding), 1)


def assert_close(got, expected, rtol=RTOL):
    expected = np.asarray(expected)
    np.testing.assert_allclose(got, expected, rtol=rtol, atol=rtol * np.abs(expected).max())


def test_blocks_stand_where_the_docstring_says():
    A, B, C, D = random_arrays(0, n_layers=3, n=2, m=3, p=4)
    big = ltv.embed(ltv.system(A, B, C, D))
    assert dict(big.sizes) == {"state_next": 8, "state": 8, "input": 9, "output": 16}
    assert [big[name].dims for name in "ABCD"] == [
        ("state_next", "state"),
        ("state_next", "input"),
        ("output", "state"),
        ("output", "input"),
    ]
    a = scipy.linalg.block_diag(*A)
    expected = {
        "A": np.block([[np.zeros((2, 6)), np.zeros((2, 2))], [a, np.zeros((6, 2))]]),
        "B": np.vstack([np.zeros((2, 9)), scipy.linalg.block_diag(*B)]),
        "C": scipy.linalg.block_diag(*C),
        "D": np.vstack([scipy.linalg.block_diag(*D[:3]), np.zeros((4, 9))]),
    }
    for name, matrix in expected.items():
        np.testing.assert_array_equal(big[name], matrix)
    assert big.attrs["embedding"] == "nilpotent"
    assert big.attrs["horizon"] == 3


def test_states_that_do_not_exist_are_rows_and_columns_of_zeros():
    """Without them it is the embedding of the unpadded lists, put together by hand."""
    sizes = [2, 4, 1, 3]
    A, B, C, D = ragged_lists(0, sizes)
    system = ltv.system(A, B, C, D)
    big = ltv.embed(system)
    exists = (np.arange(4) < system.order.values[:, None]).ravel()
    for name, dim in (("A", "state"), ("A", "state_next"), ("B", "state_next"), ("C", "state")):
        assert not big[name].isel({dim: ~exists}).values.any()
    a, b = np.zeros((10, 10)), np.zeros((10, 6))
    a[2:, :7] = scipy.linalg.block_diag(*A)
    b[2:] = scipy.linalg.block_diag(*B)
    np.testing.assert_array_equal(big.A.values[np.ix_(exists, exists)], a)
    np.testing.assert_array_equal(big.B.values[exists], b)
    np.testing.assert_array_equal(big.C.values[:, exists], scipy.linalg.block_diag(*C))


def test_spectral_radius_is_zero(pair):
    """Exactly: A is strictly lower triangular, and its power L + 1 vanishes."""
    system, embedding = pair
    A = embedding.A.values
    np.testing.assert_array_equal(np.triu(A), 0)
    n_depths = system.sizes["depth"]
    np.testing.assert_array_equal(np.linalg.matrix_power(A, n_depths), 0)
    assert np.linalg.matrix_power(A, n_depths - 1).any()


def test_gain_at_frequency_zero_is_the_io_matrix(pair):
    """At z = 1 the embedding is (I - A)^-1: all paths from all inputs to all outputs."""
    system, embedding = pair
    A, B, C, D = matrices(embedding)
    T = C @ np.linalg.solve(np.eye(len(A)) - A, B) + D
    assert_close(ltv.io_matrix(system).values.reshape(T.shape), T)
    paths = dense_io_matrix(*(system[name].values for name in "ABCD"))
    assert_close(T, paths.reshape(T.shape))


def test_simulation_of_the_embedding_is_the_simulation_of_the_system(pair):
    """Input l enters its own block at time l; at time k only block k of the state is not zero."""
    system, embedding = pair
    A, B, C, D = matrices(embedding)
    L, m = system.sizes["layer"], system.sizes["input"]
    rng = np.random.default_rng(0)
    u = rng.standard_normal((L, m))
    x0 = rng.standard_normal(system.sizes["state"])
    x0[system.order.values[0] :] = 0
    run = ltv.simulate(
        system, xr.DataArray(u, dims=["layer", "input"]), xr.DataArray(x0, dims="state")
    )
    x = np.zeros(len(A))
    x[: len(x0)] = x0
    for k in range(L + 1):
        blocks = np.zeros((L, m))
        blocks[k : k + 1] = u[k : k + 1]
        y = C @ x + D @ blocks.ravel()
        states, outputs = np.zeros((L + 1, len(x0))), np.zeros((L + 1, system.sizes["output"]))
        states[k], outputs[k] = run.x[k], run.y[k]
        assert_close(x, states.ravel())
        assert_close(y, outputs.ravel())
        x = A @ x + B @ blocks.ravel()
    np.testing.assert_array_equal(x, 0)  # the horizon is over


def test_forced_response_of_python_control_is_the_simulation():
    system = SYSTEMS["up and down"]()
    L, m = system.sizes["layer"], system.sizes["input"]
    u = np.random.default_rng(1).standard_normal((L, m))
    inputs = np.zeros((L + 1, L, m))
    inputs[np.arange(L), np.arange(L)] = u
    response = control.forced_response(
        state_space(ltv.embed(system)), inputs=inputs.reshape(L + 1, -1).T
    )
    y = response.outputs.T.reshape(L + 1, L + 1, -1)
    expected = ltv.simulate(system, xr.DataArray(u, dims=["layer", "input"])).y
    assert_close(y.sum(1), expected)


def test_gramians_are_those_of_scipy(pair):
    system, embedding = pair
    A, B, C, _ = matrices(embedding)
    P = scipy.linalg.solve_discrete_lyapunov(A, B @ B.T)
    Q = scipy.linalg.solve_discrete_lyapunov(A.T, C.T @ C)
    assert_close(scipy.linalg.block_diag(*ltv.reachability_gramian(system).values), P)
    assert_close(scipy.linalg.block_diag(*ltv.observability_gramian(system).values), Q)


def test_gramians_are_those_of_python_control(pair):
    pytest.importorskip("slycot")
    system, embedding = pair
    lti = state_space(embedding)
    P, Q = control.gram(lti, "c"), control.gram(lti, "o")
    assert_close(scipy.linalg.block_diag(*ltv.reachability_gramian(system).values), P)
    assert_close(scipy.linalg.block_diag(*ltv.observability_gramian(system).values), Q)


def hankel_union(system):
    return np.sort(ltv.hankel_singular_values(system).values.ravel())[::-1]


def test_hankel_values_are_the_union_over_depths_by_slycot(pair):
    slycot = pytest.importorskip("slycot")
    system, embedding = pair
    A, B, C, _ = matrices(embedding)
    # job B and order 1: job N has too small a work array, order 0 returns zeros for all values
    sizes = len(A), B.shape[1], C.shape[0]
    found = slycot.ab09ad("D", "B", "N", *sizes, A.copy(), B.copy(), C.copy(), nr=1)[-1]
    expected = hankel_union(system)
    rank = int((expected > 1e-12 * expected[0]).sum())
    np.testing.assert_allclose(found[:rank], expected[:rank], rtol=RTOL, atol=1e-13 * found[0])
    np.testing.assert_allclose(found[rank:], 0, atol=1e-12 * found[0])
    np.testing.assert_allclose(ltv.hankel_norm(system), found[0], rtol=RTOL)


@pytest.mark.parametrize("name", ["wide", "tall", "growing"])
def test_hankel_values_of_the_embedding_by_the_own_path(name):
    """`lti_hankel_singular_values` without slycot: A to the power L + 1 ends its doubling."""
    system = SYSTEMS[name]()
    lti = state_space(ltv.embed(system))
    found = ltv.lti_hankel_singular_values(lti, use_slycot=False)
    expected = hankel_union(system)
    size = min(len(found), len(expected))
    np.testing.assert_allclose(found[:size], expected[:size], rtol=RTOL, atol=1e-12 * expected[0])
    assert found.attrs["spectral_radius"] == 0


def test_induced_norm_is_the_peak_gain_by_python_control(pair):
    pytest.importorskip("slycot")
    system, embedding = pair
    peak, _ = control.linfnorm(state_space(embedding), 1e-12)
    np.testing.assert_allclose(ltv.induced_norm(system), peak, rtol=RTOL)


def test_h2_norm_is_the_h2_norm_by_python_control(pair):
    pytest.importorskip("slycot")
    system, embedding = pair
    assert_close(ltv.h2_norm(system), control.system_norm(state_space(embedding), 2))


def test_every_member_of_a_batch_is_embedded():
    arrays = random_arrays(8, n_layers=3, n=2, m=2, p=3, batch=(2, 3))
    many = ltv.embed(ltv.system(*arrays, batch_dims=["task", "prompt"]))
    assert many.A.dims == ("task", "prompt", "state_next", "state")
    for task in range(2):
        for prompt in range(3):
            one = ltv.embed(ltv.system(*(a[task, prompt] for a in arrays)))
            for name in "ABCD":
                np.testing.assert_array_equal(many[name][task, prompt], one[name])


@pytest.mark.parametrize("name", ["A", "B", "C", "D"])
def test_matrices_without_a_batch_dim_are_shared_by_the_batch(name):
    """Three prompts that differ in one matrix only, as `check` and the Gramians allow."""
    system = ltv.system(*random_arrays(9, n_layers=3))
    factor = xr.DataArray([1.0, 2.0, -1.0], dims="prompt")
    batch = system.assign({name: (system[name] * factor).transpose("prompt", ...)})
    many = ltv.embed(batch)
    for prompt in range(3):
        one = ltv.embed(batch.isel(prompt=prompt))
        for matrix in "ABCD":
            member = many[matrix]
            member = member.isel(prompt=prompt) if "prompt" in member.dims else member
            np.testing.assert_array_equal(member, one[matrix])


def test_what_is_not_a_system_is_refused():
    with pytest.raises(ValueError, match="must hold the variable 'D'"):
        ltv.embed(ltv.system(*random_arrays(0)).drop_vars("D"))
