"""Whatever claims a bound, norm, Hankel value, basis or rank says what rounding explains in it."""

import numpy as np
import pytest

from depthsys import ltv
from tests.ltv.hidden import exact_map
from tests.ltv.test_system import random_arrays

A, B, C = np.array([[0.5, 0.1], [0.0, 0.2]]), np.array([[1.0], [0.5]]), np.array([[1.0, 0.3]])
SYSTEM = ltv.constant(A, B, C, horizon=6)
MAP = ltv.io_matrix(SYSTEM)
COLUMNS = np.broadcast_to(np.eye(2), (7, 2, 2))


def record():
    u = np.random.default_rng(0).standard_normal((40, 1))
    return u, ltv.simulate(ltv.constant(A, B, C, horizon=40), u).y


def lti():
    return pytest.importorskip("control").ss(A, B, C, 0, 1)


CLAIMS = {
    "actuator_layers": lambda: ltv.actuator_layers(SYSTEM, 2, ltv.Trace()),
    "adjoint_basis": lambda: ltv.adjoint_basis(SYSTEM, 1),
    "arnoldi_basis": lambda: ltv.arnoldi_basis(SYSTEM, 1),
    "balanced_basis": lambda: ltv.balanced_basis(SYSTEM, 1),
    "balreal": lambda: ltv.balreal(SYSTEM),
    "compare": lambda: ltv.compare(SYSTEM, [1], [ltv.balanced_basis]),
    "controllability": lambda: ltv.controllability(SYSTEM),
    "era": lambda: ltv.era(ltv.impulse_response(SYSTEM)),
    "error_bounds": lambda: ltv.error_bounds(SYSTEM, 1),
    "h2_norm": lambda: ltv.h2_norm(SYSTEM),
    "hankel_norm": lambda: ltv.hankel_norm(SYSTEM),
    "hankel_singular_values": lambda: ltv.hankel_singular_values(SYSTEM),
    "induced_norm": lambda: ltv.induced_norm(SYSTEM),
    "krylov_basis": lambda: ltv.krylov_basis(SYSTEM, 1),
    "lti_hankel_singular_values": lambda: ltv.lti_hankel_singular_values(lti()),
    "markov_parameters": lambda: ltv.markov_parameters(*record(), 5),
    "minimal_realization": lambda: ltv.minimal_realization(SYSTEM),
    "minimum_energy": lambda: ltv.minimum_energy(SYSTEM, 1.0),
    "optimal_inputs": lambda: ltv.optimal_inputs(SYSTEM, x_final=[1.0, 1.0]),
    "pod_basis": lambda: ltv.pod_basis(SYSTEM, 1),
    "random_basis": lambda: ltv.random_basis(SYSTEM, 1),
    "realization": lambda: ltv.realization(MAP),
    "span_basis": lambda: ltv.span_basis(SYSTEM, 1, columns=COLUMNS),
    "two_sided_basis": lambda: ltv.two_sided_basis(SYSTEM, 1),
}
CLAIMS_NOTHING = {
    # settings, types and what is built, cut and joined
    *("SCHEMA_VERSION", "Energy", "MatrixFree", "RankError", "Trace", "Volume", "check"),
    *(
        "closed_loop",
        "concatenate",
        "constant",
        "coupling",
        "cyclic",
        "embed",
        "input_increments",
        "lift",
    ),
    *("parallel", "repeat", "sample_system", "stack", "system", "window", "project"),
    *("layer_lti", "mean_lti"),
    # objects of python-control, which hold no more: the values have it
    "lti_balanced_truncation",
    # products and solutions, and shares of vectors
    *(
        "bands",
        "floquet_multipliers",
        "gains",
        "impulse_response",
        "io_matrix",
        "kalman_filter",
        "lqe",
    ),
    *("lqr", "lqry", "lti_gramians", "modal_controllability", "observability_factors"),
    *("observability_gramian", "reachability_factors", "reachability_gramian"),
    *("reachable_fraction", "simulate", "spectra", "state_gains", "step_response", "transition"),
}


def test_every_function_is_in_one_of_the_lists():
    assert not set(CLAIMS) & CLAIMS_NOTHING
    assert set(CLAIMS) | CLAIMS_NOTHING == set(ltv.__all__)


@pytest.mark.parametrize("name", CLAIMS)
def test_a_claim_carries_its_resolution(name):
    found = CLAIMS[name]()
    own = found.attrs.get("resolution", found.get("resolution") if "resolution" in found else None)
    assert own is not None
    assert np.isfinite(own).all()
    assert (np.asarray(own) >= 0).all()
    assert isinstance(found.attrs["certified"], str)


@pytest.mark.parametrize("seed", range(20))
def test_lti_values_are_right_to_their_resolution(seed):
    """Growing and decaying modes, some hidden, states scaled by 1e-4 to 1e4: exact in 60 digits."""
    control = pytest.importorskip("control")
    rng = np.random.default_rng(seed)
    n, h = int(rng.integers(2, 6)), int(rng.integers(3, 20))
    a = rng.standard_normal((n, n))
    a *= rng.uniform(0.3, 1.5) / np.abs(np.linalg.eigvals(a)).max()
    b, c = rng.standard_normal((n, 1)), rng.standard_normal((1, n))
    if seed % 3 == 0:
        b[0], a[0, 1:] = 0, 0
    scale = 10.0 ** rng.uniform(-4, 4, n)
    a, b, c = a * scale[:, None] / scale, b * scale[:, None], c / scale
    lti = control.ss(a, b, c, 0, 1, remove_useless_states=False)
    values = ltv.lti_hankel_singular_values(lti, h)
    G = exact_map([a] * (2 * h), [b] * (2 * h), [c] * (2 * h + 1)).astype(float)
    exact = np.zeros(max(n, h))
    exact[:h] = np.linalg.svd(G[h : 2 * h, 0, :h, 0], compute_uv=False)
    off = np.abs(values.values - exact[:n]).max()
    assert 0 < values.attrs["resolution"]
    assert off <= values.attrs["resolution"]


def test_lti_values_behind_a_hidden_growing_mode_are_not_certified():
    control = pytest.importorskip("control")
    hidden = np.array([[0.0, 1.0], [-2.0, -3.0]]), np.array([[0.0], [1.0]]), np.array([[2.0, 1.0]])
    lti = control.ss(*hidden, 0, 1)
    assert ltv.lti_hankel_singular_values(lti, 5).attrs["certified"] == "yes"
    said = ltv.lti_hankel_singular_values(lti, 100).attrs["certified"]
    assert said.startswith("not certified: rounding explains")
    assert "the largest value" in said


GROWING = np.array([[2.0, 1.0], [0.0, 0.5]])


@pytest.mark.parametrize("of", ["minimum_energy", "optimal_inputs"])
def test_the_rank_of_targets_is_certified_or_not(of):
    """The second output sees a growing mode through what nearly cancels."""

    def rank(horizon):
        rng = np.random.default_rng(0)
        Q = np.linalg.qr(rng.standard_normal((2, 2)))[0]
        a, b = Q @ GROWING @ Q.T, Q @ np.array([[1.0], [0.0]])
        c = np.array([[1.0, 0.0], [0.0, 1.0]]) @ Q.T
        system = ltv.constant(a, b, c, horizon=horizon)
        if of == "minimum_energy":
            return ltv.minimum_energy(system, [1.0, 0.0], allow_residual=True)
        return ltv.optimal_inputs(system, y_target=[[np.nan] * 2] * horizon + [[1.0, np.nan]])

    name = "gain_rank" if of == "minimum_energy" else "target_rank"
    sure = rank(6)
    if of == "optimal_inputs":
        assert sure[name] == 1
        assert sure[f"{name}_is_certified"]
        assert sure.attrs["certified"] == "yes"
        return
    # what the second output is sums of cancels to rounding: nobody knows its rank
    assert not sure[f"{name}_is_certified"]
    assert sure.attrs["certified"].startswith("gain_rank is not certified: rounding explains")
    assert ltv.minimum_energy(SYSTEM, 1.0).gain_rank_is_certified


def test_values_of_layers_know_the_rounding_of_gains():
    """States scaled so that the output is what is left of 1e10 after cancelling."""
    fine = ltv.actuator_layers(SYSTEM, 2, ltv.Trace(of="output"))
    assert fine.attrs["certified"] == "yes"
    assert 0 < fine.resolution < 1e-12 * fine.value[-1]
    rng = np.random.default_rng(1)
    a, b, c, _ = random_arrays(1, 8, 3, 1, 1)
    big = 10.0**7.5
    T = np.eye(3) + big * rng.standard_normal((3, 3))
    mixed = ltv.system(T @ a @ np.linalg.inv(T), T @ b, c @ np.linalg.inv(T))
    plain = ltv.actuator_layers(ltv.system(a, b, c), 2, ltv.Trace(of="output"))
    found = ltv.actuator_layers(mixed, 2, ltv.Trace(of="output"))
    assert found.resolution > plain.resolution


def test_a_cost_beyond_the_largest_number_is_named():
    """It was blamed on A."""
    faint = ltv.constant(A, 1e-160 * B, C, horizon=4)
    with pytest.raises(np.linalg.LinAlgError, match=r"`cost` must be a finite number; got inf, si"):
        ltv.optimal_inputs(faint, x_final=[1.0, 1.0])
    with pytest.raises(np.linalg.LinAlgError, match=r"`energy` must be a finite number; got inf"):
        ltv.minimum_energy(faint, 1.0)
    plan = ltv.optimal_inputs(faint, x_final=[1e-160, 0.0])
    whole = ltv.optimal_inputs(ltv.constant(A, B, C, horizon=4), x_final=[1.0, 0.0])
    np.testing.assert_allclose(plan.u, whole.u, rtol=1e-9)
