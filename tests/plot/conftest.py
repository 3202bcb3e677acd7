import numpy as np
import pytest
import xarray as xr


@pytest.fixture
def energies():
    multiple = [1.0, 2.0, np.nan, 30.0]
    names = ["minimum_energy", "uniform", "first_layer", "last_layer"]
    return xr.Dataset(
        {
            "multiple": ("schedule", multiple),
            "monotone": ("schedule", [True, True, False, True]),
            "layer_pushed": ("schedule", [-1, -1, 0, 2]),
            "u": ("layer", [0.1, -0.2, 0.3]),
        },
        coords={"schedule": names, "layer": range(3)},
        attrs={"target": 5.0, "energy": "absolute"},
    )
