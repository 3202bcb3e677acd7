"""Every public function on batches: a member gets what it gets alone."""

from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import xarray as xr

from depthsys import ltv

LAYERS, INPUTS, OUTPUTS = 4, 3, 2
SIZES = ([3, 3, 4, 3, 3], [3, 4, 4, 4, 3], [3, 2, 3, 3, 3])  # states per depth; largest 4, 4, 3


def varying(seed, sizes=SIZES[0]):
    rng = np.random.default_rng(seed)
    A = [rng.standard_normal((b, a)) / np.sqrt(a) for a, b in pairwise(sizes)]
    B = [rng.standard_normal((n, INPUTS)) for n in sizes[1:]]
    C = [rng.standard_normal((OUTPUTS, n)) for n in [*sizes[:-1], sizes[0]]]
    return ltv.system(A, B, [*C[:-1], C[0]])


def square(seed):
    """One size at all depths, which powers of A and frozen layers need."""
    return varying(seed, [3] * 5)


def impulses(system):
    return xr.DataArray(np.eye(LAYERS)[:, :, None], dims=["layer", "trial", "input"]) * 1.0


def markov(system):
    return ltv.io_matrix(system).isel(layer=0, drop=True).rename(depth="lag")


def records(system):
    rng = np.random.default_rng(0)
    long = ltv.repeat(system, 12)
    u = rng.standard_normal((long.sizes["layer"], INPUTS))
    return ltv.markov_parameters(u, ltv.simulate(long, u).y, 3, observer=2)


AT_THE_END = np.full((LAYERS + 1, OUTPUTS), np.nan)
AT_THE_END[-1] = [1.0, -2.0]

# one way to call each function; a pair says which systems: all sizes, or one size at all depths
CALLS = {
    "actuator_layers": lambda s: ltv.actuator_layers(s, 2, ltv.Trace()),
    "adjoint_basis": lambda s: ltv.adjoint_basis(s, order=2),
    "arnoldi_basis": lambda s: ltv.arnoldi_basis(s, order=2),
    "balanced_basis": lambda s: ltv.balanced_basis(s, order=2),
    "bands": lambda s: ltv.bands(s, width=[1, 3]),
    "balreal": lambda s: ltv.io_matrix(ltv.balreal(s)),
    "check": ltv.check,
    "closed_loop": lambda s: ltv.closed_loop(s, ltv.lqr(s, np.eye(len(s.state)), np.eye(INPUTS)).K),
    "compare": lambda s: ltv.compare(s, [1, 2, 9], [ltv.balanced_basis, ltv.pod_basis]).drop_vars(
        ["seconds", "states"]
    ),
    "concatenate": lambda s: ltv.concatenate([ltv.window(s, 0, 2), ltv.window(s, 2, 4)]),
    "controllability": ltv.controllability,
    "cyclic": ltv.cyclic,
    "embed": ltv.embed,
    "era": lambda s: ltv.io_matrix(ltv.era(markov(s))),
    "error_bounds": lambda s: ltv.error_bounds(s, [0, 1, 3, 30]),
    "floquet_multipliers": lambda s: ltv.floquet_multipliers(s)[["modulus"]],
    "gains": ltv.gains,
    "h2_norm": ltv.h2_norm,
    "hankel_norm": ltv.hankel_norm,
    "hankel_singular_values": ltv.hankel_singular_values,
    "impulse_response": ltv.impulse_response,
    "induced_norm": ltv.induced_norm,
    "input_increments": lambda s: ltv.io_matrix(ltv.input_increments(s)),
    "io_matrix": ltv.io_matrix,
    "kalman_filter": lambda s: ltv.kalman_filter(
        s, noisy(s), np.ones((LAYERS + 1, OUTPUTS)), np.ones((LAYERS, INPUTS))
    ),
    "krylov_basis": lambda s: ltv.krylov_basis(s, order=2),
    "lift": ltv.lift,
    "lqe": lambda s: noisy(s)[["L"]],
    "lqr": lambda s: ltv.lqr(s, np.eye(len(s.state)), np.eye(INPUTS)),
    "lqry": lambda s: ltv.lqry(s, np.eye(OUTPUTS), np.eye(INPUTS)),
    "markov_parameters": records,
    "minimal_realization": lambda s: ltv.io_matrix(ltv.minimal_realization(s)),
    "minimum_energy": lambda s: ltv.minimum_energy(s, [1.0, -2.0]),
    "modal_controllability": ltv.modal_controllability,
    "spectra": ltv.spectra,
    "coupling": lambda s: ltv.coupling(s, top=2),
    "observability_factors": lambda s: products(ltv.observability_factors(s)),
    "observability_gramian": ltv.observability_gramian,
    "optimal_inputs": lambda s: ltv.optimal_inputs(s, x0=only_first(s), y_target=AT_THE_END),
    "parallel": lambda s: ltv.parallel(s, s),
    "pod_basis": lambda s: ltv.pod_basis(s, order=2),
    "project": lambda s: ltv.project(s, ltv.balanced_basis(s, order=2)),
    "random_basis": lambda s: ltv.random_basis(s, order=2),
    "reachability_factors": lambda s: products(ltv.reachability_factors(s)),
    "reachability_gramian": ltv.reachability_gramian,
    "reachable_fraction": lambda s: ltv.reachable_fraction(s, only_first(s)),
    "realization": lambda s: ltv.io_matrix(ltv.realization(ltv.io_matrix(s))),
    "repeat": lambda s: ltv.repeat(s, 2),
    "simulate": lambda s: ltv.simulate(s, np.ones((LAYERS, INPUTS)), x0=[1.0, 2.0, 3.0]),
    "span_basis": lambda s: ltv.span_basis(
        s, order=1, columns=np.tile(only_first(s), (LAYERS + 1, 1))
    ),
    "stack": lambda s: ltv.stack([s, s], "twin"),
    "state_gains": ltv.state_gains,
    "step_response": lambda s: ltv.step_response(s, at=1),
    "transition": lambda s: ltv.transition(s, 0, 4),
    "two_sided_basis": lambda s: ltv.two_sided_basis(s, order=2),
    "window": lambda s: ltv.window(s, 1, 3),
}
# python-control objects, which hold one system; and what takes none or is none
WITHOUT_BATCH = {
    "layer_lti", "mean_lti", "lti_gramians", "lti_hankel_singular_values", "constant",
    "lti_balanced_truncation", "sample_system", "system", "MatrixFree", "RankError", "Energy",
    "Trace", "Volume", "SCHEMA_VERSION",
}  # fmt: skip
ONE_SIZE = {"arnoldi_basis", "coupling", "modal_controllability", "spectra"}


def noisy(system):
    """Gains of a Kalman filter; only the entries of states that exist."""
    n = len(system.state)
    return ltv.lqe(system, np.eye(n), np.eye(OUTPUTS), np.eye(n))


def only_first(system):
    return np.eye(len(system.state))[0]


def products(factor):
    """Factors are known up to a rotation of their columns."""
    return xr.dot(factor, factor.rename(state="state_2"), dim="column")


def test_every_public_function_has_a_call():
    assert CALLS.keys() | WITHOUT_BATCH == set(ltv.__all__)


def members(kind, name):
    one_size = name in ONE_SIZE
    if kind == "one size" or one_size:
        return [square(seed) for seed in range(3)]
    sizes = SIZES if kind == "several sizes" else SIZES[:2]
    return [varying(seed, size) for seed, size in enumerate(sizes)]


def batched(kind, systems):
    if kind == "several sizes":  # 4, 4 and 3 at most: `stack` pads them
        return ltv.stack(systems, "case")
    return xr.concat(systems, dim="case", data_vars="all", join="exact")


def as_dataset(result):
    return result if isinstance(result, xr.Dataset) else result.to_dataset(name="result")


@pytest.mark.parametrize("kind", ["one size", "varying", "several sizes"])
@pytest.mark.parametrize("name", CALLS)
def test_a_member_of_a_batch_gets_what_it_gets_alone(kind, name):
    if name == "random_basis" and kind == "several sizes":
        pytest.skip("its draws are shared by all members, in the size of the largest")
    systems = members(kind, name)
    whole = as_dataset(CALLS[name](batched(kind, systems)))
    for i, system in enumerate(systems):
        alone = as_dataset(CALLS[name](system))
        for key in {*alone.data_vars, *({"order"} & set(alone.coords))}:
            if key == "order" and name == "lqr":
                continue
            got, want = whole[key], alone[key]
            assert "case" in got.dims or key in ("order", "target"), key
            got = got.isel(case=i) if "case" in got.dims else got
            assert_same(got, want, f"{name}: {key} of member {i}")


def assert_same(got, want, where):
    """Equal but for signs that no algorithm fixes and for zeros that pad the larger members."""
    got, want = got.transpose(*want.dims), want
    sizes = [range(min(a, b)) for a, b in zip(got.shape, want.shape, strict=True)]
    beyond = np.ones(got.shape, bool)
    beyond[np.ix_(*sizes)] = False
    values = got.values
    if where.split(":")[0] not in ("cyclic", "embed", "lift"):  # which stack the padded states
        assert not np.nan_to_num(values[beyond], posinf=0).any(), where
        inside, wanted = values[np.ix_(*sizes)], want.values[np.ix_(*sizes)]
        if where.split(":")[0].endswith("basis") or where.startswith("project"):
            inside, wanted = np.abs(inside), np.abs(wanted)
        np.testing.assert_allclose(
            inside.astype(float), wanted.astype(float), rtol=1e-7, atol=1e-9, err_msg=where
        )
    else:
        assert np.isfinite(values).all()


@pytest.mark.parametrize("function", [ltv.embed, ltv.cyclic])
def test_stacked_forms_of_padded_members_have_the_same_map(function):
    systems = [varying(seed, size) for seed, size in enumerate(SIZES)]
    whole = function(ltv.stack(systems, "case"))
    for i, system in enumerate(systems):
        got, want = whole.isel(case=i), function(system)
        for power in range(4):
            a, b = (
                f.C.values @ np.linalg.matrix_power(f.A.values, power) @ f.B.values
                for f in (got, want)
            )
            np.testing.assert_allclose(a, b, atol=1e-9)
    lifted = ltv.lift(ltv.stack(systems, "case"))
    for i, system in enumerate(systems):
        xr.testing.assert_allclose(lifted.isel(case=i, drop=True), ltv.lift(system))


@pytest.mark.parametrize("dim", ["order", "basis", "index", "column", "sample", "pick"])
def test_batch_dims_with_names_of_results_are_refused_at_once(dim):
    batch = batched("one size", [square(0), square(1)]).drop_vars("order").rename(case=dim)
    for function in (ltv.check, ltv.gains, ltv.controllability, partial(ltv.error_bounds, order=1)):
        with pytest.raises(ValueError, match=rf"batch dims otherwise .*got \['{dim}'\]. Rename"):
            function(batch)
    arrays = [batch[name].values for name in "ABCD"]
    with pytest.raises(ValueError, match="`batch_dims` must be a list of different names other"):
        ltv.system(*arrays, batch_dims=[dim])


# stack


def test_stack_pads_the_smaller_ones_and_keeps_what_all_have():
    systems = [varying(seed, size) for seed, size in enumerate(SIZES)]
    systems[0] = systems[0].assign(extra=("depth", np.arange(5)), own=1.0)
    systems = [s.assign(extra=("depth", np.arange(5))) for s in systems]
    systems = [s.assign_coords(input_name=("input", ["a", "b", "c"])) for s in systems]
    names = xr.DataArray(["x", "y", "z"], dims=["case"])
    whole = ltv.stack([s.assign_attrs(model="m", seed=i) for i, s in enumerate(systems)], names)
    assert whole["case"].values.tolist() == ["x", "y", "z"]
    np.testing.assert_array_equal(whole["order"], SIZES)
    assert whole["extra"].dims == ("case", "depth")
    assert "own" not in whole
    assert whole["input_name"].values.tolist() == ["a", "b", "c"]
    assert whole.attrs["model"] == "m"
    assert "seed" not in whole.attrs
    for i, system in enumerate(systems):
        np.testing.assert_array_equal(ltv.io_matrix(whole)[i], ltv.io_matrix(system))


def test_stack_of_batches_and_names_of_states():
    one = square(0).assign_coords(state_name=("state", ["a", "b", "c"]))
    batch = ltv.stack([one, one], "task")
    assert batch["state_name"].values.tolist() == ["a", "b", "c"]
    outer = ltv.stack([batch, batch], "outer")
    assert dict(outer["order"].sizes) == {"outer": 2, "task": 2, "depth": 5}
    assert "state_name" not in ltv.stack([one, square(1)]).coords


@pytest.mark.parametrize(
    ("systems", "dim", "message"),
    [
        (lambda: [], "case", "`systems` must hold at least one system"),
        (lambda: [square(0), ltv.window(square(1), 0, 3)], "case", r"must have layer=4 .* got 3"),
        (lambda: [square(0), square(1).isel(output=[0])], "case", r"must have output=2 .* got 1"),
        (lambda: [square(0), square(1)], "depth", "`dim` must be one new name"),
        (lambda: [square(0), square(1)], "order", "`dim` must be one new name"),
        (lambda: [square(0), square(1)], xr.DataArray(np.eye(2)), "`dim` must be one new name"),
        (lambda: [square(0), square(1)], "index", r"batch dims otherwise .*\['index'\]"),
        (
            lambda: [
                square(k).assign_coords(output_name=("output", names))
                for k, names in enumerate((["p", "v"], ["v", "p"]))
            ],
            "case",
            r"must have the output_name of the first, \['p' 'v'\]; got \['v' 'p'\]",
        ),
    ],
)
def test_systems_that_do_not_go_together_are_refused(systems, dim, message):
    with pytest.raises(ValueError, match=message):
        ltv.stack(systems(), dim)


def test_members_that_were_selected_keep_their_labels():
    names = xr.DataArray(["x", "y", "z"], dims=["case"])
    whole = ltv.stack([square(0), square(1), square(2)], names)
    again = ltv.stack([whole.isel(case=2), whole.isel(case=0)], "case")
    assert again["case"].values.tolist() == ["z", "x"]
    np.testing.assert_array_equal(again.A[0], whole.A[2])


def test_one_system_is_no_list():
    with pytest.raises(TypeError, match="`systems` must be a list of systems; got one Dataset"):
        ltv.stack(square(0))


# arrays in chunks


class Chunks:
    """What of dask xarray looks at: an array that says it has chunks."""

    def __init__(self, values):
        self.values = values
        self.shape, self.dtype, self.ndim = values.shape, values.dtype, values.ndim
        self.chunks = tuple((n,) for n in values.shape)

    def __array_function__(self, *_):
        return NotImplemented

    def __array_ufunc__(self, *_, **__):
        return NotImplemented

    def __getitem__(self, key):
        return Chunks(self.values[key])

    def __array__(self, *_, **__):
        raise AssertionError("computed behind the scenes")


def in_chunks(chunked, basis):
    return basis.assign(W=chunked(basis.W))


CHUNKED = {
    "a system": lambda a, s: ltv.gains(s.assign(A=a(s.A))),
    "matrices": lambda a, s: ltv.system(a(s.A), s.B.values, s.C.values),
    "inputs": lambda a, s: ltv.simulate(
        s, a(xr.DataArray(np.ones((4, 3)), dims=["layer", "input"]))
    ),
    "a bound": lambda a, s: ltv.optimal_inputs(
        s, upper=a(xr.DataArray(np.ones(3), dims=["input"]))
    ),
    "targets": lambda a, s: ltv.optimal_inputs(
        s, x_final=a(xr.DataArray([np.nan, 1.0, 0.0], dims=["state"]))
    ),
    "a basis": lambda a, s: ltv.project(s, in_chunks(a, ltv.pod_basis(s, order=1))),
    "an order": lambda a, s: ltv.error_bounds(s, a(ltv.balanced_basis(s, order=1).order)),
    "inputs without dims": lambda a, s: ltv.simulate(s, a(xr.DataArray(np.ones((4, 3)))).data),
    "targets without dims": lambda a, s: ltv.minimum_energy(s, a(xr.DataArray(np.ones(3))).data),
    "a map": lambda a, s: ltv.hankel_singular_values(a(ltv.io_matrix(s))),
}


@pytest.mark.parametrize("call", CHUNKED.values(), ids=CHUNKED)
def test_arrays_in_chunks_are_refused_without_computing_them(call):
    def chunked(array):
        return xr.DataArray(Chunks(array.values), dims=array.dims)

    with pytest.raises(ValueError, match=r"must be in memory; got an array in chunks \(dask\)"):
        call(chunked, square(0))


@pytest.mark.parametrize("call", CHUNKED.values(), ids=CHUNKED)
def test_so_are_those_of_dask(call):
    with pytest.raises(ValueError, match=r"must be in memory; got an array in chunks \(dask\)"):
        call(lambda array: array.chunk(), square(0))


def test_a_state_that_only_some_members_have_is_told_so():
    one = ltv.constant([[0.5]], [[1.0]], [[1.0]], horizon=3)
    three = ltv.constant(0.5 * np.eye(3), np.ones((3, 1)), np.ones((1, 3)), horizon=3)
    both = ltv.stack([one, three], "case")
    rule = r"must be zero in the states that do not exist; .* the order is \[1, 3\] over the batch"
    with pytest.raises(ValueError, match=f"`x0` {rule}"):
        ltv.simulate(both, x0=[1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match=f"`x_final` {rule}"):
        ltv.optimal_inputs(both, x_final=[1.0, 2.0, 3.0], R=[[1.0]])
    own = xr.DataArray([[1.0, 0, 0], [1.0, 2, 3]], dims=["case", "state"])
    y = ltv.simulate(both, x0=own).y
    np.testing.assert_allclose(y[1], ltv.simulate(three, x0=[1.0, 2.0, 3.0]).y)
    with pytest.raises(ValueError, match="`x0` must be a state of size 3; got 2 values"):
        ltv.simulate(both, x0=[1.0, 2.0])
    last = ltv.system([[[1.0, 0.0]], [[1.0]]], [[[1.0]], [[1.0]]], [[[0, 0]], [[0]], [[1.0]]])
    with pytest.raises(ValueError, match=r"`x_final` must be zero .* where the order is 1\."):
        ltv.optimal_inputs(last, x_final=[1.0, 2.0], R=[[1.0]])
    with pytest.raises(ValueError, match="a state of size 1, or 2 with the padding; got 3 values"):
        ltv.optimal_inputs(last, x_final=[1.0, 2.0, 3.0], R=[[1.0]])
