"""Bands of layers that are pushed alike, by loops and by playing the operations layer by layer."""

import numpy as np
import pytest
import xarray as xr
from scipy.sparse.linalg import aslinearoperator

from depthsys import ltv
from tests.ltv.models import model_system, stacked_gains

L = 5


def profile_system(seed, m=1):
    """States of a model, read and pushed along the same directions at every depth."""
    rng = np.random.default_rng(seed)
    n = 6
    A = np.eye(n) + 0.1 * rng.standard_normal((L, n, n))
    v = rng.standard_normal((L + 1, n, m))
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    C = v.swapaxes(1, 2).copy()
    system = ltv.system(A, A @ v[:-1], C)
    return system.assign(
        v=(("depth", "feature", "input"), v),
        y_ref=(("depth", "output"), rng.standard_normal((L + 1, m))),
        state_norm=("depth", rng.uniform(1, 5, L + 1)),
    )


# ------------------------------------------------------------------------------- add


@pytest.mark.parametrize("energy", [None, "absolute"])
def test_sums_over_bands_by_loops(energy):
    system = model_system(0, L, m=2, p=2)
    found = ltv.bands(system, energy=energy)
    assert found.attrs["energy"] == (energy or "relative")
    assert found["gain"].dims[:2] == ("first", "width")
    norm = system.state_norm.values[:-1] if energy is None else np.ones(L)
    G = stacked_gains(system).reshape(2, L, 2)
    for first in range(L):
        for width in range(1, L + 1):
            at = found.sel(first=first, width=width).transpose(..., "output", "input")
            if first + width > L:
                assert at.to_array().isnull().all()
                continue
            band = range(first, first + width)
            parts = np.array([G[:, k] * norm[k] for k in band])
            np.testing.assert_allclose(at["gain"], parts.sum(0), rtol=1e-9)
            undone = 1 - abs(parts.sum(0)) / abs(parts).sum(0)
            np.testing.assert_allclose(at["cancelled"], undone, atol=1e-12)
            for i in range(2):
                plan = ltv.minimum_energy(system, 1.0, outputs=i, layers=[*band], energy=energy)
                np.testing.assert_allclose(at["energy"][i], plan.energy, rtol=1e-8)


def test_gains_that_alternate_cancel():
    system = ltv.constant([[-1.0]], [[1.0]], [[1.0]], horizon=4)
    found = ltv.bands(system, width=[1, 2, 3]).isel(input=0, output=0)
    np.testing.assert_allclose(found.cancelled.sel(first=0), [0, 1, 2 / 3])
    np.testing.assert_allclose(found.energy.sel(first=0), [1, 1 / 2, 1 / 3])
    free = ltv.MatrixFree([aslinearoperator(-np.eye(1))] * 4, [np.eye(1)] * 4, [np.eye(1)] * 5)
    np.testing.assert_allclose(ltv.bands(free, width=2)["gain"][:3, 0], 0, atol=1e-15)
    idle = ltv.bands(ltv.constant([[1.0]], [[0.0]], [[1.0]], horizon=2), width=1)
    assert (idle["energy"] == np.inf).all()
    assert (idle["cancelled"] == 0).all()


def test_a_window_and_names_keep_their_labels():
    system = model_system(1, L, p=2).assign_coords(output_name=("output", ["joy", "hate"]))
    found = ltv.bands(ltv.window(system, 2, 5), width=2)
    assert found.first.values.tolist() == [2, 3, 4]
    assert found.output_name.values.tolist() == ["joy", "hate"]


# ------------------------------------------------------------------------------- what reads


def read_and_moved(system, band, operation, value, strength, live):
    """The state itself, moved along V_k at every layer of the band; every readout is V_k' x."""
    A, v, y_ref = system.A.values, system.v.values, system.y_ref.values
    x = np.zeros(A.shape[-1])  # away from the nominal run
    for k in range(L):
        if k in band:
            y = y_ref[k] + (v[k].T @ x if live else 0)
            inverse = np.linalg.inv(v[k].T @ v[k])
            if operation == "swap":
                c = inverse @ y
                u = strength * (c[::-1] - c)
            elif operation == "clamp":
                u = strength * inverse @ (value[k] - y)
            else:
                u = 2 * strength * inverse @ (value[k] - y)
            x = x + v[k] @ u
        x = A[k] @ x
    return v[-1].T @ x


@pytest.mark.parametrize("strength", [1.0, 2.0])
@pytest.mark.parametrize(
    ("operation", "m"), [("reflect", 1), ("reflect", 2), ("clamp", 1), ("clamp", 2), ("swap", 2)]
)
def test_operations_by_playing_them(m, strength, operation):
    system = profile_system(m, m)
    value = np.random.default_rng(0).standard_normal((L + 1, m))
    given = None if operation == "swap" else value
    found = ltv.bands(system, operation=operation, value=given, strength=strength)
    for first in range(L):
        for width in range(1, L - first + 1):
            at = found.sel(first=first, width=width)
            for name in ("live", "clean"):
                band = range(first, first + width)
                played = read_and_moved(system, band, operation, value, strength, name == "live")
                np.testing.assert_allclose(at[name], played, rtol=1e-9, atol=1e-12)
            np.testing.assert_allclose(at.undone, 1 - at.live / at.clean)
    assert found.live.sel(first=L - 1, width=2).isnull().all()
    assert found.attrs["operation"] == operation
    np.testing.assert_allclose(found.live.sel(width=1), found.clean.sel(width=1))


def test_a_clamp_ends_at_its_value_whatever_came_before():
    """Read once more where nothing follows: the last depth is that of the last layer."""
    system = profile_system(3)
    still = system.assign(A=0 * system.A + np.eye(6), v=0 * system.v + system.v[-1])
    still["B"][:] = still.v.values[:-1]
    still["C"][:] = still.v.values.swapaxes(1, 2)
    still["y_ref"][:] = 0.5
    found = ltv.bands(still, operation="clamp", value=2.0)
    for width in range(1, L + 1):
        np.testing.assert_allclose(found.live.sel(width=width).dropna("first"), 1.5)
    np.testing.assert_allclose(found.clean.sel(first=0, output=0), 1.5 * np.arange(1, L + 1))


@pytest.mark.parametrize("operation", ["reflect", "swap"])
def test_an_involution_undoes_itself_at_every_second_layer(operation):
    m = 2 if operation == "swap" else 1
    system = ltv.constant(np.eye(m), np.eye(m), np.eye(m), horizon=6)
    nominal = np.tile(np.arange(1.0, m + 1), (7, 1))
    value = None if operation == "swap" else 0.0
    found = ltv.bands(system, operation=operation, value=value, nominal=nominal).sel(first=0)
    np.testing.assert_allclose(found.live.sel(width=[2, 4, 6]), 0, atol=1e-14)
    np.testing.assert_allclose(found.undone.sel(width=[2, 4, 6]), 1)
    odd = found.live.sel(width=[1, 3, 5]).values
    np.testing.assert_allclose(odd, odd[:1].repeat(3, 0))
    assert (abs(odd) > 0.5).all()
    twice = ltv.bands(system, operation=operation, value=value, nominal=nominal, strength=2.0)
    # what is moved is multiplied by -3 per layer, and the shift is what it has moved by
    growth = twice.live.sel(first=0).values / twice.live.sel(first=0, width=1).values
    np.testing.assert_allclose(growth[:, 0], [(1 - (-3.0) ** k) / 4 for k in range(1, 7)])


def test_depths_that_are_not_read_are_not_guessed():
    system = profile_system(4)
    system["C"][0] = 0
    found = ltv.bands(system, operation="clamp", value=0.0)
    assert found.live.sel(first=0).isnull().all()
    assert found.live.sel(first=1, width=[1, 2, 3, 4]).notnull().all()
    # told of the first depth, where nothing has moved yet, it can be played
    told = ltv.bands(system, operation="clamp", value=0.0, nominal=system.y_ref)
    assert told.live.sel(first=0).notnull().all()
    system["C"][2] = 0
    told = ltv.bands(system, operation="clamp", value=0.0, nominal=system.y_ref)
    assert told.live.sel(first=0, width=[1, 2]).notnull().all()
    assert told.live.sel(first=0, width=[3, 4, 5]).isnull().all()


def test_operations_of_each_member_and_of_operators():
    members = [profile_system(seed) for seed in range(2)]
    parts = ["A", "B", "C", "D", "y_ref", "state_norm"]
    many = xr.concat([s[parts] for s in members], dim="prompt")
    found = ltv.bands(many, operation="reflect", value=1.0, width=[1, 3])
    for i, one in enumerate(members):
        alone = ltv.bands(one[parts], operation="reflect", value=1.0, width=[1, 3])
        np.testing.assert_allclose(found.live.isel(prompt=i), alone.live)
    one = members[0]
    free = ltv.MatrixFree(
        [aslinearoperator(a) for a in one.A.values], [*one.B.values], [*one.C.values]
    )
    same = ltv.bands(free, operation="reflect", value=1.0, nominal=one.y_ref.values)
    np.testing.assert_allclose(
        same.live, ltv.bands(one[parts], operation="reflect", value=1.0).live, rtol=1e-9
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"operation": "flip"}, r"`operation` must be one of \('add', 'reflect', .*; got 'flip'"),
        ({"width": 6}, "`width` must be widths of bands of 5 layers, at least one; got 6"),
        ({"width": []}, "`width` must be widths of bands"),
        ({"width": 0}, "`width` must be a whole number >= 1; got 0"),
        ({"value": 1.0}, "`value` must be left out for the operation 'add'"),
        ({"nominal": [[0.0]] * 6}, "`nominal` must be left out for the operation 'add'"),
        ({"operation": "clamp"}, "`value` must be given for 'clamp'; got None. Say where"),
        ({"operation": "swap"}, "`system` must have two inputs and outputs for 'swap'; got 1"),
        ({"operation": "clamp", "value": [1.0, 2.0]}, "`value` must have dims"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        ltv.bands(profile_system(0), **arguments)


def test_what_cannot_be_read_is_refused():
    two = profile_system(0, 2)
    with pytest.raises(ValueError, match=r"`value` must be left out for 'swap'; got 1\.0\. Leave"):
        ltv.bands(two, operation="swap", value=1.0)
    with pytest.raises(ValueError, match="`system` must have as many outputs as inputs for 'cla"):
        ltv.bands(two.isel(output=[0]), operation="clamp", value=1.0)
    with pytest.raises(ValueError, match="`nominal` must be given for a system without 'y_ref'"):
        ltv.bands(two.drop_vars("y_ref"), operation="clamp", value=1.0)
