import numpy as np
import pytest
import scipy.linalg
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.linalg import aslinearoperator

from depthsys import ltv
from tests.ltv.hidden import exact_map
from tests.ltv.test_system import dense_io_matrix, random_arrays

PER_DEPTH = ("state_rank", "average", "worst_case_energy", "log_volume")
OF_OUTPUTS = ("output_rank", "output_worst_case_energy")
PER_LAYER = ("average_from_layer", "energy_from_layer")


def reach_map(A, B, k):
    """All inputs before depth k to x_k, dense."""
    columns = []
    for layer in range(k):
        x = B[layer]
        for a in A[layer + 1 : k]:
            x = a @ x
        columns.append(x)
    return np.hstack(columns)


def gramians(A, B):
    """P_0..P_L by their definition, dense."""
    P = [np.zeros((A[0].shape[1],) * 2)]
    for a, b in zip(A, B, strict=True):
        P.append(a @ P[-1] @ a.T + b @ b.T)
    return P


def measures(P, rank):
    """Energy and log volume on the range of P, from its eigenvalues."""
    if rank == 0:
        return np.inf, 0.0
    values = np.linalg.eigvalsh(P)[::-1][:rank]
    return 1 / values[-1], np.log(values).sum()


@settings(derandomize=True, max_examples=20, deadline=None)
@given(
    st.integers(0, 10_000),
    st.integers(1, 6),
    st.integers(1, 5),
    st.integers(1, 3),
    st.integers(1, 3),
)
def test_measures_against_dense_gramians(seed, L, n, m, p):
    A, B, C, D = random_arrays(seed, L, n, m, p)
    found = ltv.controllability(ltv.system(A, B, C, D))
    for k, P in enumerate(gramians(A, B)):
        here = found.isel(depth=k)
        rank = 0 if k == 0 else int(np.linalg.matrix_rank(reach_map(A, B, k)))
        assert int(here["state_rank"]) == rank == min(n, k * m)
        energy, volume = measures(P, rank)
        np.testing.assert_allclose(here.average, np.trace(P), rtol=1e-10)
        np.testing.assert_allclose(here.worst_case_energy, energy, rtol=1e-3)
        np.testing.assert_allclose(here.log_volume, volume, atol=1e-3)
        if rank == 0:
            continue
        # two more ways to the same numbers: the pseudoinverse, the determinant on the range
        R = reach_map(A, B, k)
        np.testing.assert_allclose(
            here.worst_case_energy, np.linalg.norm(np.linalg.pinv(R), 2) ** 2, rtol=1e-6
        )
        gram = R.T @ R if R.shape[1] <= n else R @ R.T
        np.testing.assert_allclose(here.log_volume, np.linalg.slogdet(gram)[1], atol=1e-5)
        output = C[k] @ R
        rank = int(np.linalg.matrix_rank(output))
        assert int(here.output_rank) == rank
        np.testing.assert_allclose(
            here.output_worst_case_energy,
            np.linalg.norm(np.linalg.pinv(output), 2) ** 2,
            rtol=1e-6,
        )
        assert rank == min(p, int(here["state_rank"]))


@settings(derandomize=True, max_examples=10, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 3))
def test_measures_of_one_layer_alone(seed, L, m):
    A, B, C, D = random_arrays(seed, L, n=3, m=m, p=2)
    found = ltv.controllability(ltv.system(A, B, C, D))
    to_end = dense_io_matrix(A, B, C, D)[-1]
    for layer in range(L):
        alone = np.zeros_like(B)
        alone[layer] = B[layer]
        trace = np.trace(gramians(A, alone)[-1])
        np.testing.assert_allclose(found.average_from_layer[layer], trace, rtol=1e-9)
        for i in range(2):
            row = to_end[i, layer]
            u = scipy.linalg.lstsq(row[None], [1.0])[0]
            np.testing.assert_allclose(found.energy_from_layer[layer, i], u @ u, rtol=1e-8)
    np.testing.assert_allclose(found.average_from_layer.sum(), found.average[-1], rtol=1e-9)
    assert found.energy_from_layer.dims == ("layer", "output")


def test_nothing_is_reachable_at_depth_zero():
    found = ltv.controllability(ltv.system(*random_arrays(0))).isel(depth=0)
    assert int(found["state_rank"]) == int(found.output_rank) == 0
    assert float(found.average) == float(found.log_volume) == 0
    assert float(found.worst_case_energy) == float(found.output_worst_case_energy) == np.inf
    assert found["state_rank"].dtype.kind == "i"


def test_unreachable_parts_do_not_count():
    """Two of five states can be reached; the others do not show in any measure."""
    rng = np.random.default_rng(0)
    A, B, C, _ = random_arrays(0, n_layers=4, n=2, m=1, p=2)
    turn = np.linalg.qr(rng.standard_normal((5, 5)))[0]
    rest = rng.standard_normal((4, 3, 3))
    big = np.array(
        [turn @ scipy.linalg.block_diag(A[layer], rest[layer]) @ turn.T for layer in range(4)]
    )
    wide = np.array([turn[:, :2] @ b for b in B])
    small = ltv.controllability(ltv.system(A, B, C))
    found = ltv.controllability(ltv.system(big, wide, C @ turn[:, :2].T))
    assert found["state_rank"].values.tolist() == [0, 1, 2, 2, 2]
    for name in (*PER_DEPTH, *OF_OUTPUTS, *PER_LAYER):
        np.testing.assert_allclose(found[name], small[name], rtol=1e-8, err_msg=name)


def test_output_that_a_layer_or_nobody_reaches():
    # two chains side by side; layers 0 and 2 drive the first, layer 1 the second, none the third
    B = np.zeros((3, 3, 1))
    B[[0, 2], 0], B[1, 1] = 1.0, 2.0
    system = ltv.system([0.5 * np.eye(3)] * 3, B, [np.eye(3)] * 4)
    found = ltv.controllability(system)
    inf = np.inf
    np.testing.assert_allclose(
        found.energy_from_layer, [[16, inf, inf], [inf, 1, inf], [1, inf, inf]]
    )
    assert found.output_rank.values.tolist() == [0, 1, 2, 2]
    np.testing.assert_allclose(found.average, [0, 1, 4.25, 1 + 1 + 1 / 16])
    np.testing.assert_allclose(found.worst_case_energy, [inf, 1, 4, 1])
    np.testing.assert_allclose(found.log_volume, [0, 0, 0, np.log(17 / 16)], atol=1e-12)
    # an output that reads nothing that is reachable
    blind = ltv.controllability(system.assign(C=system.C * [0, 0, 1.0]))
    assert not blind.output_rank.any()
    assert np.isinf(blind.output_worst_case_energy).all()


def test_rtol_is_relative_to_the_singular_values_of_the_factor():
    system = ltv.constant(np.eye(2), np.diag([1.0, 1e-6]), np.eye(2), horizon=2)
    fine, coarse = ltv.controllability(system), ltv.controllability(system, rtol=1e-5)
    assert fine["state_rank"].values.tolist() == fine.output_rank.values.tolist() == [0, 2, 2]
    assert coarse["state_rank"].values.tolist() == coarse.output_rank.values.tolist() == [0, 1, 1]
    np.testing.assert_allclose(fine.worst_case_energy[1:], [1e12, 0.5e12])
    np.testing.assert_allclose(coarse.worst_case_energy[1:], [1, 0.5])
    np.testing.assert_allclose(fine.log_volume[1:], np.log([1e-12, 4e-12]))
    np.testing.assert_allclose(coarse.log_volume[1:], np.log([1, 2]))
    assert (fine.attrs["rtol"], coarse.attrs["rtol"]) == (1e-10, 1e-5)
    # relative: the unit of the input plays no part
    tiny = ltv.controllability(system.assign(B=1e-15 * system.B))
    assert tiny["state_rank"].values.tolist() == tiny.output_rank.values.tolist() == [0, 2, 2]
    weak = xr.DataArray([0.6, 0.8], dims=["state"])
    np.testing.assert_allclose(ltv.reachable_fraction(system, weak), [0, 1, 1])
    np.testing.assert_allclose(ltv.reachable_fraction(system, weak, rtol=1e-5), [0, 0.6, 0.6])


def ragged_arrays(seed, order, m):
    rng = np.random.default_rng(seed)
    L = len(order) - 1
    A = [rng.standard_normal((order[k + 1], order[k])) for k in range(L)]
    B = [rng.standard_normal((order[k + 1], m)) for k in range(L)]
    return A, B, [rng.standard_normal((2, n)) for n in order]


def test_state_sizes_that_vary():
    A, B, C = ragged_arrays(0, [3, 2, 4, 1, 3], m=1)
    found = ltv.controllability(ltv.system(A, B, C))
    P = gramians(A, B)
    assert found["state_rank"].values.tolist() == [0, 1, 2, 1, 2]
    for k in range(1, 5):
        energy, volume = measures(P[k], int(found["state_rank"][k]))
        np.testing.assert_allclose(found.worst_case_energy[k], energy, rtol=1e-7)
        np.testing.assert_allclose(found.log_volume[k], volume, rtol=1e-7)
        np.testing.assert_allclose(found.average[k], np.trace(P[k]), rtol=1e-9)
        energy, _ = measures(C[k] @ P[k] @ C[k].T, int(found.output_rank[k]))
        np.testing.assert_allclose(found.output_worst_case_energy[k], energy, rtol=1e-6)


def test_batch_dims_give_the_measures_of_each_member():
    arrays = random_arrays(3, batch=(2, 3))
    arrays[1][0, 1, :2] = 0  # one member is driven from layer 2 on only
    many = ltv.controllability(ltv.system(*arrays, batch_dims=["task", "prompt"]))
    for at in np.ndindex(2, 3):
        one = ltv.controllability(ltv.system(*(a[at] for a in arrays)))
        member = many.isel(task=at[0], prompt=at[1])
        for name in (*PER_DEPTH, *OF_OUTPUTS, *PER_LAYER):
            np.testing.assert_allclose(member[name], one[name], rtol=1e-10, err_msg=name)
    late = many.isel(task=0, prompt=1)
    assert late["state_rank"].values.tolist() == [0, 0, 0, 2, 3]
    assert np.isinf(late.worst_case_energy[:3]).all()


@pytest.mark.parametrize("name", ["A", "B", "C"])
def test_batch_dims_of_one_variable_alone(name):
    arrays = dict(zip("ABC", random_arrays(4)[:3], strict=True))
    system = ltv.system(**arrays)
    factor = xr.DataArray([1.0, 0.5], dims=["prompt"])
    many = ltv.controllability(system.assign({name: factor * system[name]}))
    for i, scale in enumerate(factor.values):
        one = ltv.controllability(ltv.system(**(arrays | {name: scale * arrays[name]})))
        for variable in (*PER_DEPTH, *OF_OUTPUTS, *PER_LAYER):
            got = many[variable]
            got = got.isel(prompt=i) if "prompt" in got.dims else got
            np.testing.assert_allclose(got, one[variable], rtol=1e-10, err_msg=variable)


def test_labels_of_a_window():
    A, B, C, D = random_arrays(5, n_layers=6)
    found = ltv.controllability(ltv.window(ltv.system(A, B, C, D), 2, 5))
    assert found.layer.values.tolist() == [2, 3, 4]
    assert found.depth.values.tolist() == [2, 3, 4, 5]
    traces = [np.trace(P) for P in gramians(A[2:5], B[2:5])]
    np.testing.assert_allclose(found.average, traces, rtol=1e-10)


@pytest.mark.parametrize("order", [[3] * 5, [3, 2, 4, 1, 3]])
def test_matrix_free_measures(order):
    A, B, C = ragged_arrays(1, order, m=2)
    dense = ltv.controllability(ltv.system(A, B, C))
    free = ltv.controllability(ltv.MatrixFree([aslinearoperator(a) for a in A], B, C))
    for name in (*PER_DEPTH, *OF_OUTPUTS, *PER_LAYER):
        np.testing.assert_allclose(free[name], dense[name], rtol=1e-9, err_msg=name)


@settings(derandomize=True, max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 5), st.integers(1, 2))
def test_reachable_fraction_against_the_pseudoinverse(seed, L, n, m):
    A, B, C, _ = random_arrays(seed, L, n, m)
    d = np.random.default_rng(seed).standard_normal((L + 1, n))
    system = ltv.system(A, B, C)
    fraction = ltv.reachable_fraction(system, xr.DataArray(d, dims=["depth", "state"]))
    assert fraction.name == "reachable_fraction"
    np.testing.assert_array_equal(fraction.depth, system.depth)
    for k in range(L + 1):
        R = reach_map(A, B, k) if k else np.zeros((n, 1))
        P = R @ R.T  # rank at most k m
        inside = P @ np.linalg.pinv(P, rcond=1e-11, hermitian=True) @ d[k]
        expected = np.linalg.norm(inside) / np.linalg.norm(d[k])
        np.testing.assert_allclose(fraction[k], expected, atol=1e-4)
        direct = R @ np.linalg.lstsq(R, d[k], rcond=1e-10)[0]
        np.testing.assert_allclose(
            fraction[k], np.linalg.norm(direct) / np.linalg.norm(d[k]), atol=1e-8
        )
    assert float(fraction[0]) == 0
    assert float(fraction.max()) <= 1


def test_reachable_fraction_of_one_target_and_of_batches():
    arrays = random_arrays(6, n=4, m=1, batch=(2,))
    system = ltv.system(*arrays, batch_dims=["prompt"])
    rng = np.random.default_rng(0)
    targets = xr.DataArray(rng.standard_normal((4, 3)), dims=["state", "task"])
    many = ltv.reachable_fraction(system, targets)
    assert set(many.dims) == {"task", "prompt", "depth"}
    for i in range(2):
        A, B = (a[i] for a in arrays[:2])
        for t in range(3):
            d = targets[:, t].values
            for k in range(1, 5):
                R = reach_map(A, B, k)
                inside = R @ np.linalg.lstsq(R, d, rcond=None)[0]
                got = many.isel(prompt=i, task=t, depth=k)
                np.testing.assert_allclose(
                    got, np.linalg.norm(inside) / np.linalg.norm(d), rtol=1e-7
                )
    # a reachable target, an unreachable one
    A, B = (a[0] for a in arrays[:2])
    R = reach_map(A, B, 2)
    one = system.isel(prompt=0)
    inside = xr.DataArray(R @ [1.0, 2.0], dims=["state"])
    outside = xr.DataArray(scipy.linalg.null_space(R.T)[:, 0], dims=["state"])
    np.testing.assert_allclose(ltv.reachable_fraction(one, inside)[2], 1)
    np.testing.assert_allclose(ltv.reachable_fraction(one, outside)[2], 0, atol=1e-12)


@pytest.mark.parametrize("order", [[3] * 5, [3, 2, 4, 1, 3]])
def test_matrix_free_reachable_fraction(order):
    A, B, C = ragged_arrays(2, order, m=1)
    d = np.random.default_rng(0).standard_normal((5, max(order)))
    target = xr.DataArray(d, dims=["depth", "state"])
    dense = ltv.reachable_fraction(ltv.system(A, B, C), target)
    free = ltv.reachable_fraction(ltv.MatrixFree([aslinearoperator(a) for a in A], B, C), target)
    np.testing.assert_allclose(free, dense, rtol=1e-9, atol=1e-12)
    assert float(dense[1]) < 0.999


def test_matrix_free_reachable_fraction_takes_dims_by_name():
    A, B, C = ragged_arrays(2, [3] * 5, m=1)
    d = np.random.default_rng(0).standard_normal((3, 5))
    target = xr.DataArray(d, dims=["state", "depth"])
    dense = ltv.reachable_fraction(ltv.system(A, B, C), target)
    np.testing.assert_allclose(ltv.reachable_fraction(ltv.MatrixFree(A, B, C), target), dense)


@settings(derandomize=True, max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 3))
def test_modes_against_left_eigenvectors(seed, n, m):
    A, B, C, _ = random_arrays(seed, 3, n, m)
    found = ltv.modal_controllability(ltv.system(A, B, C))
    assert found.cosine.dims == ("layer", "mode", "input")
    assert (found.modulus.diff("mode") <= 1e-12).all()
    values = (found.modulus * np.exp(1j * found.angle)).values
    for layer in range(3):
        w, left = scipy.linalg.eig(A[layer], left=True, right=False)
        expected = np.abs(left.conj().T @ B[layer])
        expected /= np.linalg.norm(left, axis=0)[:, None] * np.linalg.norm(B[layer], axis=0)
        match = np.abs(values[layer][:, None] - w).argmin(1)
        assert sorted(match) == list(range(n))
        np.testing.assert_allclose(values[layer], w[match], rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(found.cosine[layer], expected[match], rtol=1e-6, atol=1e-9)


def test_a_mode_that_fails_the_popov_belevitch_hautus_test_has_cosine_zero():
    rng = np.random.default_rng(0)
    T = rng.standard_normal((4, 4))
    turn = 0.7 * np.array([[np.cos(1.0), -np.sin(1.0)], [np.sin(1.0), np.cos(1.0)]])
    A = T @ scipy.linalg.block_diag(1.2, turn, -0.5) @ np.linalg.inv(T)
    # the first input misses the pair of complex modes, the second the slowest and the fastest
    B = T @ np.array([[1.0, 0.0], [0.0, 1.0], [0.0, -2.0], [3.0, 0.0]])
    found = ltv.modal_controllability(ltv.constant(A, B, np.eye(4), horizon=2))
    np.testing.assert_allclose(found.modulus[0], [1.2, 0.7, 0.7, 0.5])
    np.testing.assert_allclose(np.abs(found.angle[0]), [0, 1, 1, np.pi], atol=1e-8)
    np.testing.assert_allclose(found.angle[0, 1], -found.angle[0, 2])
    for mode in range(4):
        value = float(found.modulus[0, mode]) * np.exp(1j * float(found.angle[0, mode]))
        for i in range(2):
            pencil = np.column_stack([A - value * np.eye(4), B[:, i]])
            fails = np.linalg.matrix_rank(pencil, tol=1e-9) < 4
            assert fails == (i == (mode in (1, 2)) * 0 + (mode in (0, 3)) * 1)
            assert (float(found.cosine[1, mode, i]) < 1e-10) == fails


def test_an_input_along_a_mode_and_one_that_is_zero():
    q = np.linalg.qr(np.random.default_rng(1).standard_normal((3, 3)))[0]
    A = q @ np.diag([0.9, -0.6, 0.3]) @ q.T
    B = np.column_stack([5 * q[:, 1], np.zeros(3)])
    found = ltv.modal_controllability(ltv.constant(A, B, np.eye(3), horizon=1))
    np.testing.assert_allclose(found.cosine[0], [[0, 0], [1, 0], [0, 0]], atol=1e-12)
    np.testing.assert_allclose(found.angle[0], [0, np.pi, 0])


def test_modes_of_batches():
    arrays = random_arrays(7, batch=(2,))
    many = ltv.modal_controllability(ltv.system(*arrays, batch_dims=["prompt"]))
    for i in range(2):
        one = ltv.modal_controllability(ltv.system(*(a[i] for a in arrays)))
        xr.testing.assert_allclose(many.isel(prompt=i), one)


@pytest.mark.parametrize("name", ["A", "B"])
def test_modes_of_batch_dims_of_one_variable_alone(name):
    system = ltv.system(*random_arrays(8))
    factor = xr.DataArray([1.0, 0.5], dims=["prompt"])
    many = ltv.modal_controllability(system.assign({name: factor * system[name]}))
    one = ltv.modal_controllability(system)
    for i in range(2):
        np.testing.assert_allclose(many.cosine.isel(prompt=i), one.cosine, rtol=1e-8)


def test_bad_arguments():
    system = ltv.system(*random_arrays(0))
    d = xr.DataArray(np.ones(3), dims=["state"])
    for rtol in (0, 1.0, -1e-3, np.nan):
        for call in (
            lambda r: ltv.controllability(system, rtol=r),
            lambda r: ltv.reachable_fraction(system, d, rtol=r),
        ):
            with pytest.raises(ValueError, match="`rtol` must be between 0 and 1; got"):
                call(rtol)
    for bad in (np.ones(4), d[:2], d.rename(state="feature")):
        with pytest.raises(ValueError, match=r"`target` must have dims {'state': 3} or"):
            ltv.reachable_fraction(system, bad)
    np.testing.assert_array_equal(
        ltv.reachable_fraction(system, np.ones(3)), ltv.reachable_fraction(system, d)
    )
    for value, message in ((0.0, "must not be zero"), (np.nan, "finite"), (np.inf, "finite")):
        with pytest.raises(ValueError, match=f"`target` must .*{message.split()[-1]}"):
            ltv.reachable_fraction(system, value * d)
    A, B, C = ragged_arrays(0, [3, 2, 3], m=1)
    with pytest.raises(ValueError, match=r"one state size to freeze a layer; got orders \[3 2 3\]"):
        ltv.modal_controllability(ltv.system(A, B, C))


def test_target_of_another_depth_is_refused():
    short = xr.DataArray(np.ones((3, 3)), dims=["depth", "state"])
    with pytest.raises(ValueError, match=r"`target` must have dims .*'depth': 5.*got {'depth': 3"):
        ltv.reachable_fraction(ltv.system(*random_arrays(0)), short)


def test_a_gain_of_rounding_counts_as_none():
    """An output that sees nothing of what is reached, but for rounding."""
    q = np.linalg.qr(np.random.default_rng(0).standard_normal((3, 3)))[0]
    system = ltv.constant(np.eye(3), q[:, :1], q[:, 1:2].T, horizon=3)
    assert 0 < abs(ltv.gains(system)).max() < 1e-15
    found = ltv.controllability(system)
    assert np.isinf(found.energy_from_layer).all()
    assert found.output_rank.values.tolist() == [0, 0, 0, 0]


def test_beside_operators_there_are_no_batch_dims():
    A, B, C, _ = random_arrays(0)
    target = xr.DataArray(np.ones((2, 3)), dims=["prompt", "state"])
    with pytest.raises(ValueError, match=r"an argument must have dims \('depth', 'state'\); got"):
        ltv.reachable_fraction(ltv.MatrixFree(list(A), B, C), target)


def test_ranks_say_where_rounding_decides_them():
    A, B, C, D = random_arrays(0, 6, 3, 2, 2)
    found = ltv.controllability(ltv.system(A, B, C, D))
    assert found.state_rank_is_certified.all()
    assert found.output_rank_is_certified.all()
    assert found.attrs["certified"] == "yes"
    # a second direction of exactly the size that counts as zero, and one of the size of rounding
    for small, rtol in ((1e-8, 1e-8), (1e-17, 1e-16)):
        B[:] = [[1.0, 0.0], [0.0, small], [0.0, 0.0]]
        system = ltv.system(0 * A + np.eye(3), B, np.broadcast_to(np.eye(3), (7, 3, 3)))
        found = ltv.controllability(system, rtol=rtol)
        assert not found.state_rank_is_certified[1:].any()
        assert found.output_rank_is_certified[1:].any() == (small > 1e-16)  # its limit is others
        assert found.attrs["certified"].startswith("a state rank is not certified in 6 of 7 cases")
    assert ltv.controllability(system, rtol=1e-8).attrs["certified"] == "yes"


@pytest.mark.parametrize("seed", range(10))
def test_the_estimated_rounding_of_the_factors_covers_the_true_one(seed):
    rng = np.random.default_rng(seed)
    L, n, m = 8, 3, 1
    units = 10.0 ** rng.uniform(-4, 4, n)
    A = rng.standard_normal((L, n, n)) * units[:, None] / units
    B = rng.standard_normal((L, n, m)) * units[:, None]
    C = np.broadcast_to(np.eye(n), (L + 1, n, n))
    found = ltv.controllability(ltv.system(A, B, C))
    exact = exact_map(list(A), list(B), list(C))
    factors = ltv.reachability_factors(ltv.system(A, B, C)).values
    for k in range(1, L + 1):
        R = exact[k, :, :k, :].reshape(n, -1).astype(float)
        s, ours = (np.linalg.svd(x, compute_uv=False) for x in (R, factors[k]))
        size = min(len(s), len(ours))
        assert np.abs(s[:size] - ours[:size]).max() <= found.resolution[k]
        assert found.resolution[k] <= 1e-9 * s[0]
