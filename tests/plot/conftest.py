import numpy as np
import pytest
import xarray as xr

from tests.plot.tables import BASES, ORDERS, PARTS, with_interval


@pytest.fixture
def energies():
    multiple = [1.0, 2.0, np.nan, 30.0]
    names = ["minimum_energy", "uniform", "first_layer", "last_layer"]
    return xr.Dataset(
        {
            "multiple": ("schedule", multiple),
            "multiple_low": ("schedule", [1.0, 1.5, np.nan, 20.0]),
            "multiple_high": ("schedule", [1.0, 2.5, np.nan, np.inf]),
            "monotone": ("schedule", [True, True, False, True]),
            "layer_pushed": ("schedule", [-1, -1, 0, 2]),
            "u": ("layer", [0.1, -0.2, 0.3]),
        },
        coords={"schedule": names, "layer": range(3)},
        attrs={"target": 5.0, "energy": "absolute", "reference": "minimum_energy"},
    )


@pytest.fixture
def table():
    """As `depthsys compare` writes it."""
    rng = np.random.default_rng(0)
    agreement = ("basis", "order", "injection", "layers", "bound")
    error = 0.01 + rng.random((3, 3, 2, 2))
    reduction = ("basis", "order", "reference")
    upper = np.full((3, 3, 2), np.nan)
    upper[1, :, 0] = [8.0, 4.0, 2.0]
    step_error = [[0.001, 0.0005], [0.02, 0.01], [0.4, 0.3]]
    return xr.Dataset(
        {
            "relative_l2": (agreement, with_interval(error)),
            "max_relative_error": (agreement, with_interval(3 * error)),
            "spearman": (agreement, with_interval(error - 0.7)),
            "pearson": (agreement, with_interval(error - 0.5)),
            "noise_floor": (("injection", "layers"), [[0.04, 0.03], [0.02, 0.01]]),
            "error_budget": (
                ("basis", "order", "part", "layers", "bound"),
                with_interval(0.01 + rng.random((3, 3, 5, 2))),
            ),
            "error": (reduction, 1 + rng.random((3, 3, 2))),
            "upper": (reduction, upper),
            "lower": (("order", "reference"), [[0.8, 0.9], [0.4, 0.5], [0.2, 0.3]]),
            "norm": ("reference", [2.0, 4.0]),
            "resolution": ("reference", [1e-15, 1e-15]),
            "step_error": (("step", "layers", "bound"), with_interval(step_error)),
            "step_limit": ("layers", [0.05, np.nan]),
            "prompt_relative_l2": (("basis_each", "order", "prompt_each"), rng.random((2, 3, 40))),
        },
        coords={
            "basis": BASES,
            "basis_each": ["pod", "ensemble"],
            "order": ORDERS,
            "injection": ["absolute", "relative"],
            "layers": ["all", "without_layer_0"],
            "bound": ["estimate", "low", "high"],
            "part": PARTS,
            "reference": ["mean_system", "mean_response"],
            "step": [0.01, 0.1, 1.0],
        },
    )
