"""pyMOR, which knows time-invariant systems only, on constant systems and on the embedding."""

import control
import numpy as np
import pytest

from depthsys import ltv
from tests.ltv.test_lti import FREQUENCIES, markov, peak_gain, random_lti, response
from tests.ltv.test_system import random_arrays

pytest.importorskip("pymor")

from pymor.core.logger import log_levels
from pymor.models.iosys import LTIModel
from pymor.reductors.bt import BTReductor

HORIZON = 240  # 0.8^240 is 1e-23: the middle knows nothing of the ends


@pytest.fixture(autouse=True)
def quiet():
    """Progress of pyMOR is not shown; its warnings are."""
    with log_levels({"pymor": "WARNING"}):
        yield


def model_of(A, B, C, D):
    return LTIModel.from_matrices(A, B, C, D, sampling_time=1)


def matrices_of(model):
    """A, B, C, D of a pyMOR model, freed of its E, as a python-control system."""
    A, B, C, D, E = model.to_abcde_matrices()
    if E is not None:
        A, B = np.linalg.solve(E, A), np.linalg.solve(E, B)
    return control.ss(A, B, C, np.zeros((len(C), B.shape[1])) if D is None else D, 1)


CASES = {"wide": (0, 6, 3, 2), "tall": (1, 8, 2, 3), "siso": (2, 5, 1, 1)}


@pytest.fixture(params=CASES)
def lti(request):
    return random_lti(*CASES[request.param], 0.8)


@pytest.fixture
def model(lti):
    return model_of(lti.A, lti.B, lti.C, lti.D)


def reduced_in_time(lti, order, horizon):
    layers = ltv.constant(lti, horizon=horizon)
    return ltv.project(layers, ltv.balanced_basis(layers, order=order))


def test_hankel_values(lti, model):
    expected = model.hsv()
    middle = ltv.hankel_singular_values(ltv.constant(lti, horizon=HORIZON)).sel(depth=HORIZON // 2)
    for values in (middle, ltv.lti_hankel_singular_values(lti, use_slycot=False)):
        np.testing.assert_allclose(values, expected, rtol=1e-9)


def test_gramians(lti, model):
    found = ltv.lti_gramians(lti, use_slycot=False)
    for name, kind in (("P", "c_dense"), ("Q", "o_dense")):
        expected = model.gramian(kind)
        np.testing.assert_allclose(
            found[name], expected, rtol=0, atol=1e-12 * np.abs(expected).max()
        )


@pytest.mark.parametrize("order", [1, 2, 4])
def test_balanced_truncation_has_the_same_transfer_function(lti, model, order):
    theirs = matrices_of(BTReductor(model).reduce(order))
    ours = ltv.lti_balanced_truncation(lti, order, use_slycot=False)
    expected = response(theirs)
    np.testing.assert_allclose(response(ours), expected, rtol=0, atol=1e-10 * peak_gain(expected))
    # pyMOR's own evaluation, so that taking its matrices apart is checked too
    z = FREQUENCIES[300]
    np.testing.assert_allclose(
        response(ours)[300],
        BTReductor(model).reduce(order).transfer_function.eval_tf(z),
        rtol=0,
        atol=1e-10 * peak_gain(expected),
    )


def test_error_bounds(lti, model):
    """Twice the sums of the tails: index i of pyMOR is order i + 1."""
    values = ltv.lti_hankel_singular_values(lti, use_slycot=False).values
    tails = [2 * values[order:].sum() for order in range(1, lti.nstates)]
    np.testing.assert_allclose(BTReductor(model).error_bounds(), tails, rtol=1e-8)


@pytest.mark.parametrize("order", [1, 3])
def test_the_time_varying_reduced_model_is_theirs_in_the_middle(lti, model, order):
    """Gains from layer l to depth l + 1 + j, all of them near the middle: C A^j B."""
    theirs = markov(matrices_of(BTReductor(model).reduce(order)), 20)
    reduced = reduced_in_time(lti, order, HORIZON)
    layer = HORIZON // 2
    gains = ltv.io_matrix(reduced).sel(depth=slice(layer + 1, layer + 20), layer=layer)
    np.testing.assert_allclose(
        gains.transpose("depth", "output", "input"),
        theirs,
        rtol=0,
        atol=1e-9 * np.abs(theirs).max(),
    )


def test_the_middle_converges_with_the_square_of_the_decay_over_half_the_horizon(lti, model):
    """P_k misses A^k P A'^k: the distance is radius^L, until rounding."""
    theirs = markov(matrices_of(BTReductor(model).reduce(2)), 3)
    errors = []
    for horizon in (20, 40, 80):
        reduced = reduced_in_time(lti, 2, horizon)
        layer = horizon // 2
        gains = ltv.io_matrix(reduced).sel(depth=slice(layer + 1, layer + 3), layer=layer)
        difference = gains.transpose("depth", "output", "input") - theirs
        errors.append(float(abs(difference).max()) / np.abs(theirs).max())
    assert errors[0] > 1e-6
    for error, horizon in zip(errors, (20, 40, 80), strict=True):
        assert error < 100 * 0.8**horizon


def test_hankel_values_of_the_embedding_are_the_union_over_depths():
    system = ltv.system(*random_arrays(3, n_layers=5, n=3, m=2, p=3))
    embedding = ltv.embed(system)
    found = model_of(*(embedding[name].values for name in "ABCD")).hsv()
    expected = np.sort(ltv.hankel_singular_values(system).values.ravel())[::-1]
    size = min(len(found), len(expected))
    np.testing.assert_allclose(found[:size], expected[:size], rtol=1e-9, atol=1e-7 * expected[0])
    assert (expected > 1e-3 * expected[0]).sum() >= 5
