"""Systems of other packages: told by their class, refused where they are continuous."""

from types import SimpleNamespace

import control
import numpy as np
import pytest
import scipy.io
import scipy.signal
import scipy.sparse
import xarray as xr

from depthsys import ltv

A, B, C, D = [[0.5, 1.0], [0.0, 0.25]], [[0.0], [1.0]], [[1.0, 0.0]], [[2.0]]
HERE = [
    lambda system: ltv.constant(system, horizon=3),
    ltv.lti_gramians,
    lambda system: ltv.lti_hankel_singular_values(system, 3),
    lambda system: ltv.lti_balanced_truncation(system, 1),
]


@pytest.mark.parametrize("function", HERE)
@pytest.mark.parametrize(
    ("continuous", "dt"),
    [
        (scipy.signal.StateSpace([[-1.0]], [[1.0]], [[1.0]], [[0.0]]), "None"),
        (scipy.signal.lti([[-1.0]], [[1.0]], [[1.0]], [[0.0]]), "None"),
        (control.ss([[-1.0]], [[1.0]], [[1.0]], [[0.0]]), "0"),
    ],
)
def test_continuous_systems_are_refused(function, continuous, dt):
    """scipy: dt None is continuous. Gains 1, -1, 1 came out of this one."""
    with pytest.raises(ValueError, match=rf"`(A|lti)` must be .*discrete.*got .*dt = {dt}"):
        function(continuous)


@pytest.mark.parametrize(
    "foreign",
    [
        scipy.signal.StateSpace(A, B, C, D, dt=0.1),
        scipy.signal.dlti(A, B, C, D, dt=True),
        control.ss(A, B, C, D, 0.1),
        control.ss(A, B, C, D, True),
        control.ss(A, B, C, D, None),  # python-control: fits both
    ],
    ids=["scipy", "dlti", "control", "dt True", "dt None"],
)
def test_discrete_systems_are_taken(foreign):
    own = ltv.constant(A, B, C, D, horizon=4)
    xr.testing.assert_identical(ltv.constant(foreign, horizon=4), own)
    reference = ltv.lti_gramians(control.ss(A, B, C, D, 1))
    xr.testing.assert_allclose(ltv.lti_gramians(foreign), reference)


def test_scipy_systems_are_truncated_like_those_of_python_control():
    theirs = ltv.lti_balanced_truncation(scipy.signal.dlti(A, B, C, D, dt=0.5), 1)
    own = ltv.lti_balanced_truncation(control.ss(A, B, C, D, 0.5), 1)
    np.testing.assert_array_equal(theirs.A, own.A)
    assert theirs.dt == 0.5


def matlab_struct(tmp_path, **how):
    path = tmp_path / "sys.mat"
    scipy.io.savemat(path, {"sys": {"A": A, "B": B, "C": C, "D": D, "Ts": 0.0}})
    found = scipy.io.loadmat(path, **how)["sys"]
    return found


def test_structs_of_matlab_are_refused(tmp_path):
    """Their sampling time may be 0."""
    record = matlab_struct(tmp_path)
    for struct in (record, record[0, 0], matlab_struct(tmp_path, struct_as_record=False)[0, 0]):
        with pytest.raises(TypeError, match="once you know that its sampling time Ts is not 0"):
            ltv.constant(struct, horizon=3)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (scipy.signal.TransferFunction([1.0], [1.0, 0.5], dt=1), "got TransferFunction.*to_ss"),
        (scipy.signal.ZerosPolesGain([], [0.5], 1.0, dt=1), "got ZerosPolesGain.*to_ss"),
        (control.tf([1.0], [1.0, 0.5], 1), r"got TransferFunction.*control\.ss"),
        (control.frd([1.0, 2.0], [1.0, 2.0]), "got FrequencyResponseData. Fit"),
        (scipy.sparse.eye_array(2), r"toarray\(\)"),
        ({"A": A, "B": B, "C": C, "D": D}, "got dict. Pass its A, B, C and D"),
        (SimpleNamespace(A=A, B=B, C=C, D=D, dt=1, nstates=2), "got SimpleNamespace. Pass its"),
        (ltv.constant(A, B, C, horizon=2), "got Dataset. It is a system already"),
    ],
)
def test_look_alikes_are_refused(other, message):
    """What has the attributes of a state space is none for that."""
    with pytest.raises(TypeError, match=f"`A` must be a matrix or a StateSpace.*{message}"):
        ltv.constant(other, horizon=3)
    if not isinstance(other, xr.Dataset):
        with pytest.raises(TypeError, match="`lti` must be a python-control StateSpace"):
            ltv.lti_gramians(other)
    with pytest.raises(TypeError, match="`B` must be a matrix"):
        ltv.constant(A, other, C, horizon=3)


def test_a_matrix_is_no_lti_system():
    with pytest.raises(TypeError, match="`lti` must be a python-control StateSpace; got list"):
        ltv.lti_gramians(A)


def test_pymor_models_are_taken_or_refused():
    pytest.importorskip("pymor")
    from pymor.models.iosys import LTIModel

    made = LTIModel.from_matrices
    matrices = [np.array(m) for m in (A, B, C, D)]
    own = ltv.constant(A, B, C, D, horizon=3)
    xr.testing.assert_identical(ltv.constant(made(*matrices, sampling_time=1), horizon=3), own)
    with pytest.raises(ValueError, match="must be a discrete-time StateSpace; got a continuous"):
        ltv.constant(made(*matrices), horizon=3)
    with pytest.raises(ValueError, match="`A` must have no mass matrix E"):
        ltv.constant(made(*matrices, np.diag([1.0, 2.0]), sampling_time=1), horizon=3)


def test_masked_values_are_refused():
    """numpy drops the mask, and a stand-in value would count."""
    masked = np.ma.masked_equal([[0.5, 99.0], [0.0, 0.25]], 99.0)
    with pytest.raises(ValueError, match="`A` must have no masked values; got 1"):
        ltv.constant(masked, B, C, horizon=3)
    with pytest.raises(ValueError, match="`A` must have no masked values; got 2"):
        ltv.system(np.ma.stack([masked, masked]), [B] * 2, [C] * 3)


@pytest.mark.parametrize("nested", [lambda m: [m], lambda m: [[m[0], m[1]]], lambda m: ([*m],)])
def test_masked_arrays_deep_in_lists_are_refused(nested):
    masked = np.ma.masked_equal([[0.5, 99.0], [0.0, 0.25]], 99.0)
    with pytest.raises(ValueError, match="`A` must have no masked values; got 1"):
        ltv.system(nested(masked), [B], [C] * 2)


def test_masked_arrays_in_lists_of_varying_size_are_refused():
    masked = np.ma.masked_equal([[0.5, 99.0]], 99.0)
    with pytest.raises(ValueError, match="`A` must have no masked values; got 1"):
        ltv.system([masked, [[1.0]]], [[[1.0]]] * 2, [C, [[1.0]], [[1.0]]])
    with pytest.raises(ValueError, match="`B` must have no masked values; got 1"):
        ltv.MatrixFree([np.eye(2)], [np.ma.masked_equal([[1.0], [99.0]], 99.0)], [C, C])


MASKED = np.ma.masked_equal([1.0, 99.0], 99.0)
BESIDE = {
    "u": lambda s: ltv.simulate(s, np.ma.stack([MASKED] * 3)[:, 1:]),
    "x0": lambda s: ltv.simulate(s, x0=MASKED),
    "Q": lambda s: ltv.lqr(s, np.ma.stack([MASKED] * 2), [[1.0]]),
    "target": lambda s: ltv.minimum_energy(s, MASKED[1:]),
    "weights": lambda s: ltv.minimum_energy(s, 1.0, weights=[MASKED[1:]] * 3),
    "x_final": lambda s: ltv.optimal_inputs(s, x_final=MASKED),
    "y_target": lambda s: ltv.optimal_inputs(s, y_target=np.ma.stack([MASKED[1:]] * 4)),
    "lower": lambda s: ltv.optimal_inputs(s, lower=MASKED[1:]),
    "y": lambda s: ltv.kalman_filter(
        s, ltv.lqe(s, [[1.0]], [[1.0]], G=s.B.values[0]), [MASKED[1:]] * 4
    ),
}


@pytest.mark.parametrize("name", BESIDE)
def test_masked_values_beside_a_system_are_refused(name):
    system = ltv.constant([[0.5, 1.0], [0.0, 0.25]], [[0.0], [1.0]], [[1.0, 0.0]], horizon=3)
    with pytest.raises(ValueError, match=f"`{name}` must have no masked values; got [1234]. Fill"):
        BESIDE[name](system)


def test_a_masked_array_without_masked_values_is_an_array():
    system = ltv.constant([[0.5]], [[1.0]], [[1.0]], horizon=1)
    assert ltv.simulate(system, np.ma.array([[2.0]])).y.values[-1, 0] == 2.0


def test_labelled_arrays_go_by_their_dims():
    """A DataArray in another order of dims was read by position."""
    rng = np.random.default_rng(0)
    a, b, c = (rng.standard_normal(shape) for shape in [(2, 3, 3), (2, 3, 1), (3, 1, 3)])
    turned = xr.DataArray(a, dims=["layer", "state_next", "state"]).transpose(
        "state", "state_next", "layer"
    )
    xr.testing.assert_identical(ltv.system(turned, b, c), ltv.system(a, b, c))
    one = xr.DataArray(a[0], dims=["state_next", "state"])
    again = ltv.constant(one.T, b[0], c[0], horizon=2)
    xr.testing.assert_identical(again, ltv.constant(a[0], b[0], c[0], horizon=2))
    with pytest.raises(ValueError, match=r"`A` must have dims .* Rename \['depth'"):
        ltv.system(turned.rename(layer="depth"), b, c)
    unnamed = xr.DataArray(a)
    xr.testing.assert_identical(ltv.system(unnamed, b, c), ltv.system(a, b, c))


@pytest.mark.parametrize("dim", ["state", "state_next"])
def test_arrays_that_label_their_states_differently_are_refused(dim):
    A_named = xr.DataArray(A, dims=["state_next", "state"], coords={dim: ["pos", "vel"]})
    C_named = xr.DataArray(C, dims=["output", "state"], coords={"state": ["vel", "pos"]})
    with pytest.raises(ValueError, match=r"`C` must have the labels of `A` along 'state'"):
        ltv.constant(A_named, B, C_named, horizon=3)
    with pytest.raises(ValueError, match=r"`C` must have the labels of `A` along 'state'"):
        ltv.system(A_named.expand_dims(layer=2), [B] * 2, C_named.expand_dims(depth=3))
    right = C_named.sel(state=["pos", "vel"]).assign_coords(state=["pos", "vel"])
    ltv.constant(A_named, B, right, horizon=3)
