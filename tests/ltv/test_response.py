"""Responses to an impulse and to a step: against columns of the map, scipy and python-control."""

import control
import numpy as np
import pytest
import scipy.signal
import xarray as xr

from depthsys import ltv
from tests.ltv.test_system import random_arrays


@pytest.fixture
def system():
    return ltv.system(*random_arrays(0)).assign_coords(layer=range(3, 7), depth=range(3, 8))


@pytest.mark.parametrize("at", [3, 4, 6])
def test_an_impulse_response_is_a_column_of_the_map(system, at):
    found = ltv.impulse_response(system, at)
    column = ltv.io_matrix(system).sel(layer=at).transpose("depth", "output", "input")
    np.testing.assert_allclose(found.y, column, atol=1e-12)
    assert found.attrs == {"response": "impulse", "at": at}
    assert found.depth.values.tolist() == [3, 4, 5, 6, 7]


@pytest.mark.parametrize("at", [None, 5])
def test_a_step_response_is_what_simulation_gives(system, at):
    found = ltv.step_response(system, at)
    for i in range(2):
        u = np.zeros((4, 2))
        u[(0 if at is None else at - 3) :, i] = 1.0
        run = ltv.simulate(system, u)
        np.testing.assert_allclose(found.y.isel(input=i), run.y, atol=1e-12)
        np.testing.assert_allclose(found.x.isel(input=i), run.x, atol=1e-12)


@pytest.mark.parametrize(
    ("ours", "theirs", "scipys"),
    [
        (ltv.impulse_response, control.impulse_response, scipy.signal.dimpulse),
        (ltv.step_response, control.step_response, scipy.signal.dstep),
    ],
)
def test_constant_systems_respond_as_in_python_control_and_scipy(ours, theirs, scipys):
    A, B, C, D = (x[0] for x in random_arrays(5))
    A = 0.3 * A
    y = ours(ltv.constant(A, B, C, D, horizon=8)).y.values
    found = theirs(control.ss(A, B, C, D, 1), np.arange(8)).outputs  # (output, input, time)
    np.testing.assert_allclose(y[:8], np.moveaxis(found, -1, 0), atol=1e-12)
    _, columns = scipys((A, B, C, D, 1), n=8)
    np.testing.assert_allclose(y[:8], np.stack(columns, axis=-1), atol=1e-12)


def test_step_of_a_double_integrator():
    """Positions k^2 / 2 for a sampling time of 1."""
    s = ltv.constant([[1, 1], [0, 1]], [[0.5], [1]], [[1, 0]], horizon=5)
    np.testing.assert_allclose(ltv.step_response(s).y[:, 0, 0], [0, 0.5, 2, 4.5, 8, 12.5])


def test_matrix_free_systems_respond_too():
    A, B, C, D = random_arrays(1)
    free = ltv.MatrixFree(list(A), list(B), list(C), list(D))
    for function in (ltv.impulse_response, ltv.step_response):
        xr.testing.assert_allclose(
            function(free),
            function(ltv.system(A, B, C, D)).drop_vars(["layer", "order"], errors="ignore"),
        )


@pytest.mark.parametrize("at", [2, 7, 3.0, True, "3"])
def test_layers_that_are_not_there_are_refused(system, at):
    for function in (ltv.impulse_response, ltv.step_response):
        with pytest.raises(ValueError, match=rf"`at` must be in 3\.\.6, the layers; got {at!r}"):
            function(system, at)
