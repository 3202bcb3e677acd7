"""Free directions and the energy floor, against dense Jacobians and what is played."""

import numpy as np
import pytest
import xarray as xr

from depthsys import lm
from depthsys.lm.readouts import LogitDifference
from tests.lm import whole_sequence

RELATIVE, ABSOLUTE = {"energy": "relative"}, {"energy": "absolute"}


@pytest.fixture(scope="module")
def free(tiny, tokens, concept):
    return lm.free_directions(tiny, tokens, concept)


@pytest.fixture(scope="module")
def dense(tiny, tokens, concept):
    """Mean gradient of the readout (depth, feature), by products of dense Jacobians."""
    each = []
    for ids in tokens.ids:
        row, rows = concept.direction.values[-1], [concept.direction.values[-1]]
        for matrix in whole_sequence.jacobians(tiny.hf, ids)[::-1]:
            row = row @ matrix
            rows.insert(0, row)
        each.append(rows)
    return np.mean(each, axis=0)


def test_they_are_the_mean_gradient(free, dense):
    length = np.linalg.norm(dense, axis=1)
    np.testing.assert_allclose(free.gain, length, rtol=1e-5)
    np.testing.assert_allclose(free.direction, dense / length[:, None], atol=1e-5)


def test_floors_are_the_least_energy_of_a_unit_shift(tiny, tokens, concept, free, dense):
    norm = np.linalg.norm(tiny.run(tokens).states, axis=-1).mean(axis=1)
    np.testing.assert_allclose(free.state_norm, norm, rtol=1e-6)
    v = concept.direction.values[:-1]
    along = np.einsum("lf,lf->l", dense[:-1], v)
    length = np.linalg.norm(dense[:-1], axis=1)
    for name, weight in (("absolute", np.ones(3)), ("relative", 1 / norm[:-1] ** 2)):
        # the least norm solution of one equation in all features of all layers
        whole = (dense[:-1] / np.sqrt(weight)[:, None]).reshape(1, -1)
        plan = np.linalg.lstsq(whole, np.ones(1), rcond=None)[0]
        np.testing.assert_allclose(free.energy_floor.sel(energy=name), plan @ plan, rtol=1e-5)
        of_concept = free.energy_of_concept.sel(energy=name)
        np.testing.assert_allclose(of_concept, 1 / np.sum(along**2 / weight), rtol=1e-5)
        np.testing.assert_allclose(
            free.over_floor.sel(energy=name), of_concept / (plan @ plan), rtol=1e-5
        )
    assert bool((free.over_floor > 1).all())
    np.testing.assert_allclose(free.cosine, along / length, atol=1e-5)


def test_they_are_a_concept_that_costs_the_floor(tiny, tokens, concept, free):
    """Small enough, the plan of the full model along them needs what the floor says."""
    rows = xr.DataArray(concept.direction.values[-1:], dims=("output", "feature"))
    for energy in ("relative", "absolute"):
        plan = lm.optimal_plan(
            tiny, tokens, free, 0.01, readout=rows, energy=energy, target_rtol=1e-4
        )
        floor = float(free.energy_floor.sel(energy=energy)) * 0.01**2
        np.testing.assert_allclose(plan.energy, floor, rtol=1e-2)
        assert (plan.u > 0).all()
        other = lm.optimal_plan(tiny, tokens, concept, 0.01, readout=rows, energy=energy)
        np.testing.assert_allclose(
            other.energy / plan.energy, free.over_floor.sel(energy=energy), rtol=2e-2
        )
    own = lm.free_directions(tiny, tokens, free, readout=rows)
    np.testing.assert_allclose(own.over_floor, 1, rtol=1e-6)
    np.testing.assert_allclose(own.cosine, 1, rtol=1e-6)


def test_several_outputs_have_a_direction_each(tiny, tokens, concept, free):
    other = concept.direction.roll(feature=3)
    both = lm.several({"a": concept, "b": xr.Dataset({"direction": other})})
    found = lm.free_directions(tiny, tokens, both)
    assert found.direction.dims == ("depth", "input", "feature")
    assert found.cosine.dims == ("layer", "output", "input")
    np.testing.assert_allclose(found.direction[:, 0], free.direction, atol=1e-5)
    np.testing.assert_allclose(found.gain.isel(output=0), free.gain, rtol=1e-5)
    np.testing.assert_allclose(found.energy_floor.isel(output=0), free.energy_floor, rtol=1e-5)
    # more directions to push along bring the first output nearer to its floor
    assert bool((found.over_floor.isel(output=0) < free.over_floor).all())
    assert bool((found.over_floor >= 1).all())
    lm.play(tiny, tokens, found, xr.DataArray(np.ones((3, 2)), dims=("layer", "input")))


def test_of_a_difference_of_logits(tiny, tokens, concept):
    readout = LogitDifference(3, 7)
    found = lm.free_directions(tiny, tokens, concept, readout=readout)
    step = 1e-3
    for layer in range(3):
        u = np.zeros(3)
        u[layer] = step
        ends = lm.play(
            tiny, tokens, found, xr.DataArray(u, dims="layer"), scale=[1, -1], readout=readout
        ).response.mean("prompt")
        slope = float(ends[0] - ends[1]) / (2 * step)
        np.testing.assert_allclose(slope, found.gain[layer], rtol=1e-2)


def test_a_depth_without_a_direction_has_no_cosine(tiny, tokens, concept, free):
    missing = concept.assign(
        direction=concept.direction.where(xr.DataArray(range(4), dims="depth") != 1)
    )
    found = lm.free_directions(tiny, tokens, missing)
    assert np.isnan(found.cosine).values.tolist() == [False, True, False]
    np.testing.assert_array_equal(found.direction, free.direction)
    assert bool((found.energy_of_concept > free.energy_of_concept).all())
