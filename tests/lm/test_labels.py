"""Depths and layers go by label where they meet a model."""

import numpy as np
import pytest
import xarray as xr

from depthsys import lm, ltv
from depthsys.lm.directions import directions


def test_directions_by_depth(tiny, concept):
    labelled = concept.assign_coords(depth=range(tiny.n_layers + 1))
    turned = labelled.isel(depth=slice(None, None, -1))
    assert bool((directions(tiny, turned) == directions(tiny, concept)).all())
    later = labelled.assign_coords(depth=labelled.depth + 1)
    with pytest.raises(ValueError, match="`concept` must have the labels of the system along 'dep"):
        directions(tiny, later)


def test_schedules_and_weights_by_layer(tiny, tokens, concept):
    system = lm.identify(tiny, tokens, concept)
    plan = ltv.minimum_energy(system, target=0.1)
    order = [2, 0, 1]
    played = lm.play(tiny, tokens, concept, plan)
    again = lm.play(tiny, tokens, concept, plan.isel(layer=order))
    xr.testing.assert_equal(again, played)  # attrs say when they were made
    schedules = plan.u.expand_dims(schedule=["plan"])
    weights = xr.DataArray([1.0, 2.0, 4.0], dims=["layer"], coords={"layer": range(3)})
    about = {"amplitude": float(np.sqrt(plan.energy))}
    right = lm.required_energy(tiny, tokens, concept, schedules, 0.1, weights=weights, **about)
    turned = lm.required_energy(
        tiny,
        tokens,
        concept,
        schedules.isel(layer=order),
        0.1,
        weights=weights.isel(layer=[1, 2, 0]),
        **about,
    )
    np.testing.assert_allclose(turned.energy, right.energy, rtol=1e-12)
    late = weights.assign_coords(layer=[3, 4, 5])
    with pytest.raises(ValueError, match="`weights` must have the labels of the system along 'lay"):
        lm.required_energy(tiny, tokens, concept, schedules, 0.1, weights=late, **about)
