import inspect
import warnings

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from depthsys import ltv


def random_arrays(seed, n_layers=4, n=3, m=2, p=2, batch=()):
    rng = np.random.default_rng(seed)
    A = rng.standard_normal((*batch, n_layers, n, n))
    B = rng.standard_normal((*batch, n_layers, n, m))
    C = rng.standard_normal((*batch, n_layers + 1, p, n))
    D = rng.standard_normal((*batch, n_layers + 1, p, m))
    D[..., -1, :, :] = 0
    return A, B, C, D


def dense_io_matrix(A, B, C, D):
    """All inputs to all outputs, written as the sum over paths."""
    L, n = len(A), A[0].shape[1]
    G = np.zeros((L + 1, C.shape[1], L, B.shape[2]))
    for k in range(L + 1):
        for j in range(min(k + 1, L)):
            if j == k:
                G[k, :, j] = D[k]
                continue
            x = B[j]
            for i in range(j + 1, k):
                x = A[i] @ x
            G[k, :, j] = C[k] @ x
    assert n == A[0].shape[0]
    return G


@settings(derandomize=True, max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 4), st.integers(1, 3))
def test_io_matrix_gains_and_simulate_agree_with_the_sum_over_paths(seed, L, n, m):
    arrays = random_arrays(seed, L, n, m)
    system = ltv.system(*arrays)
    G = dense_io_matrix(*arrays)
    np.testing.assert_allclose(ltv.io_matrix(system), G, atol=1e-9)
    np.testing.assert_allclose(ltv.gains(system), np.moveaxis(G[-1], 1, 0), atol=1e-9)
    u = np.random.default_rng(seed).standard_normal((L, m))
    y = ltv.simulate(system, xr.DataArray(u, dims=["layer", "input"])).y
    np.testing.assert_allclose(y, np.einsum("kplm,lm->kp", G, u), atol=1e-9)


def test_initial_state_is_propagated():
    A, B, C, D = random_arrays(0)
    system = ltv.system(A, B, C, D)
    x0 = xr.DataArray([1.0, 2.0, 3.0], dims=["state"])
    u = xr.DataArray(np.zeros((4, 2)), dims=["layer", "input"])
    x = ltv.simulate(system, u, x0).x
    np.testing.assert_allclose(x[-1], A[3] @ A[2] @ A[1] @ A[0] @ [1, 2, 3])


def test_every_function_broadcasts_over_batch_dims():
    arrays = random_arrays(1, batch=(2, 3))
    batch = ltv.system(*arrays, batch_dims=["task", "prompt"])
    one = ltv.system(*(a[1, 2] for a in arrays))
    u = xr.DataArray(np.ones((3, 4, 2)), dims=["prompt", "layer", "input"])
    at = {"task": 1, "prompt": 2}
    pairs = [
        (ltv.gains(batch), ltv.gains(one)),
        (ltv.io_matrix(batch), ltv.io_matrix(one)),
        (ltv.simulate(batch, u).y, ltv.simulate(one, u[0]).y),
        (ltv.minimum_energy(batch, [1.0, 2.0]).u, ltv.minimum_energy(one, [1.0, 2.0]).u),
    ]
    for many, single in pairs:
        assert many.sizes["task"] == 2
        assert many.sizes["prompt"] == 3
        np.testing.assert_allclose(many.isel(at), single, rtol=1e-10)


def test_lists_of_varying_size_are_padded_and_chain():
    rng = np.random.default_rng(0)
    A = [rng.standard_normal(s) for s in [(2, 1), (3, 2)]]
    B = [rng.standard_normal((n, 2)) for n in (2, 3)]
    C = [rng.standard_normal((1, n)) for n in (1, 2, 3)]
    system = ltv.system(A, B, C)
    assert system.order.values.tolist() == [1, 2, 3]
    h = ltv.gains(system).values[:, 0]
    np.testing.assert_allclose(h, [(C[2] @ A[1] @ B[0])[0], (C[2] @ B[1])[0]])


def test_round_trip_through_netcdf(tmp_path):
    system = ltv.system(*random_arrays(2), attrs={"model": "none"})
    system.to_netcdf(tmp_path / "system.nc", engine="h5netcdf")
    again = xr.load_dataset(tmp_path / "system.nc", engine="h5netcdf")
    xr.testing.assert_identical(ltv.check(again), system)


def break_dims(s):
    return s.assign(A=s.A.transpose("layer", "state", "state_next"))


def with_nan(s):
    s = s.copy(deep=True)
    s.B[1, 2, 0] = np.nan
    return s


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.drop_vars("C"), "must hold the variable 'C'"),
        (break_dims, r"`A` must end in dims \('layer', 'state_next', 'state'\)"),
        (with_nan, "`B` must be finite; got nan at layer=1, state_next=2, input=0"),
        (lambda s: s.isel(depth=slice(1, None)), "L >= 1 layers and L \\+ 1 depths"),
        (lambda s: s.isel(state=slice(2)), "must store square A"),
        (lambda s: s.assign(D=s.D + 1), "`D` must be zero at the last depth"),
        (lambda s: s.assign_attrs(schema_version=99), "schema_version <= 2; got 99"),
        (lambda s: s.assign_attrs(schema_version="new"), "`schema_version` must be a whole number"),
        (lambda s: s.assign_attrs(schema_version=1.9), "`schema_version` must be a whole number"),
        (lambda s: s.assign_attrs(schema_version=-3), "whole number >= 1; got -3"),
        (lambda s: s.assign_coords(order=s.order + 9), r"`order` must be in 0\.\.3"),
        (lambda s: s.isel(layer=[0, 1, 3], depth=[0, 1, 2, 3]), "`layer` must count up by one"),
        (lambda s: s.isel(layer=[1, 0, 2, 3]), "`layer` must count up by one; got .1 0 2 3."),
        (lambda s: s.isel(depth=[4, 3, 2, 1, 0]), "`depth` must count up by one"),
        (lambda s: s.assign_coords(layer=[1.0, 2.0, 3.0, 4.0]), "`layer` must count up by one"),
        (lambda s: s.assign_coords(layer=s.layer + 1), "`depth` must start where `layer` starts"),
        (lambda s: s.isel(input=[]), "`B` must not be empty"),
        (lambda s: s.isel(output=[]), "`C` must not be empty"),
        (lambda s: s.assign(x_ref=s.A[:, 0]), r"`x_ref` must end in dims \('depth', 'state'\)"),
    ],
)
def test_check_names_what_is_wrong(change, message):
    broken = change(ltv.system(*random_arrays(0)))
    for function in (ltv.check, ltv.gains, ltv.io_matrix):
        with pytest.raises(ValueError, match=message):
            function(broken)


def test_complex_text_and_repeated_dims_are_refused():
    s = ltv.system(*random_arrays(0))
    with pytest.raises(TypeError, match="`C` must be real; got complex128"):
        ltv.check(s.assign(C=s.C * 1j))
    with pytest.raises(TypeError, match="`C` must hold numbers; got dtype"):
        ltv.check(s.assign(C=s.C.astype(str)))
    twice = s.drop_vars("A")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # xarray warns where we refuse
        twice["A"] = (("layer", "layer", "state_next", "state"), np.zeros((4, 4, 3, 3)))
        with pytest.raises(ValueError, match="`A` must name each dim once"):
            ltv.check(twice)


def test_finite_values_whose_sum_overflows_are_finite():
    s = ltv.system(*random_arrays(0))
    ltv.check(s.assign(C=s.C * 0 + 1e308))


def test_constant_is_the_same_map_at_every_layer():
    A, B, C, D = (x[0] for x in random_arrays(0))
    s = ltv.constant(A, B, C, D, horizon=6)
    x, u = np.zeros(3), np.random.default_rng(0).standard_normal((6, 2))
    y = ltv.simulate(s, xr.DataArray(u, dims=["layer", "input"])).y.values
    for k in range(6):
        np.testing.assert_allclose(y[k], C @ x + D @ u[k], atol=1e-10)
        x = A @ x + B @ u[k]
    np.testing.assert_allclose(y[6], C @ x, rtol=1e-10)


def test_constant_takes_a_python_control_system():
    control = pytest.importorskip("control")
    A, B, C, D = (x[0] for x in random_arrays(0))
    s = ltv.constant(control.ss(A, B, C, D, 1), horizon=3)
    xr.testing.assert_identical(s, ltv.constant(A, B, C, D, horizon=3))
    assert ltv.constant(control.ss(A, B, C, D, True), horizon=3).equals(s)
    with pytest.raises(ValueError, match="must be a discrete-time StateSpace; got a continuous"):
        ltv.constant(control.ss(A, B, C, D), horizon=3)
    with pytest.raises(TypeError, match="`B`, `C`, `D` must be left out beside a StateSpace"):
        ltv.constant(control.ss(A, B, C, D, 1), B, horizon=3)


def test_bad_constants_are_refused():
    A, B, C, _ = (x[0] for x in random_arrays(0))
    for horizon in (0, -1, 2.0, True, "3"):
        with pytest.raises(ValueError, match="`horizon` must be a whole number >= 1"):
            ltv.constant(A, B, C, horizon=horizon)
    with pytest.raises(TypeError, match="`B` and `C` must be given"):
        ltv.constant(A, B, horizon=2)
    with pytest.raises(ValueError, match=r"`B\[0\]` must be a matrix; got shape \(3,\)"):
        ltv.constant(A, B[:, 0], C, horizon=2)
    with pytest.raises(TypeError, match=r"`A\[0\]` must be real"):
        ltv.constant(A * 1j, B, C, horizon=2)


def test_bad_arrays_are_refused():
    A, B, C, _ = random_arrays(0)
    with pytest.raises(TypeError, match="must be an xarray Dataset; got ndarray"):
        ltv.check(A)
    with pytest.raises(ValueError, match=r"`A` must have dims .* got shape \(3, 3\)"):
        ltv.system(A[0], B, C)
    with pytest.raises(TypeError, match="`A` must be real"):
        ltv.system(A * 1j, B, C)
    with pytest.raises(ValueError, match=r"`B\[1\]` must have shape \(3, 2\)"):
        ltv.system(list(A), [B[0], B[1][:2], *B[2:]], list(C))
    with pytest.raises(ValueError, match="`C` L \\+ 1 matrices"):
        ltv.system([*A[:3], A[3][:2]], list(B), list(C[:4]))
    with pytest.raises(ValueError, match="`batch_dims` must be empty"):
        ltv.system([A[0], A[1][:2]], list(B), list(C), batch_dims=["prompt"])
    with pytest.raises(ValueError, match=r"`B` must have shape \(4, 3, 2\) = .* got \(4, 2, 2\)"):
        ltv.system(A, B[:, :2], C)
    with pytest.raises(ValueError, match=r"`C` must have shape \(5, 2, 3\)"):
        ltv.system(A, B, C[:-1])
    with pytest.raises(ValueError, match=r"`B` must have the batch shape of `A`, \(\); got \(1,\)"):
        ltv.system(A, B[None], C)
    with pytest.raises(ValueError, match="`batch_dims` must name every leading dim"):
        ltv.system(A[None], B[None], C[None])
    with pytest.raises(TypeError, match="`A` must hold numbers"):
        ltv.system(A.astype(str), B, C)
    with pytest.raises(ValueError, match=r"`C\[0\]` must be a matrix"):
        ltv.system([np.ones((2, 1))], [np.ones((2, 1))], [np.ones(1), np.ones((1, 2))])
    s = ltv.system(A, B, C)
    u = xr.DataArray(np.zeros((3, 2)), dims=["layer", "input"])
    with pytest.raises(ValueError, match="`u` must have dims"):
        ltv.simulate(s, u)
    u = xr.DataArray(np.zeros((4, 2)), dims=["layer", "input"])
    with pytest.raises(ValueError, match=r"`u` must have dims .*got shape \(4, 3\)"):
        ltv.simulate(s, np.zeros((4, 3)))
    with pytest.raises(TypeError, match="`u` must be real"):
        ltv.simulate(s, u * 1j)
    with pytest.raises(ValueError, match="`u` must have the labels of the system along 'layer'"):
        ltv.simulate(s, u.assign_coords(layer=range(1, 5)))
    with pytest.raises(ValueError, match="`u` must be finite"):
        ltv.simulate(s, u + np.nan)
    with pytest.raises(ValueError, match="`x0` must be a state of size 3; got 2 values"):
        ltv.simulate(s, u, np.zeros(2))


@pytest.mark.parametrize("name", ["A", "B", "C"])
def test_states_beyond_the_order_must_be_empty(name):
    rng = np.random.default_rng(0)
    sizes = [1, 3, 2, 1]
    system = ltv.system(
        [rng.standard_normal((sizes[k + 1], sizes[k])) for k in range(3)],
        [rng.standard_normal((sizes[k + 1], 2)) for k in range(3)],
        [rng.standard_normal((2, n)) for n in sizes],
    )
    place = {"A": (1, 2, 0), "B": (1, 2, 0), "C": (2, 0, 2)}[name]  # state 2 at depth 2
    system[name][place] = 1.0
    with pytest.raises(ValueError, match=f"`{name}` must be zero in states beyond `order`"):
        ltv.check(system)
    ltv.check(system.drop_vars("order"))
    system[name][place] = 0.0
    ltv.check(system)


def test_signatures_are_short_enough_to_read():
    """Of every function: types spelled out by Python fill a page each."""
    for name in ltv.__all__:
        if callable(found := getattr(ltv, name)) and not isinstance(found, type):
            given = inspect.signature(found)
            assert max(len(str(p)) for p in given.parameters.values()) < 100, name
            assert len(str(given)) < 80 * (2 + len(given.parameters)), name
