"""Models of their own, since hooks are put on them; a plan that moves what they write."""

import numpy as np
import pytest
import xarray as xr

from depthsys import lm
from tests.conftest import TINY


@pytest.fixture(scope="module", params=list(TINY))
def model(request) -> lm.DepthModel:
    """Of its own, since hooks are put on it."""
    return lm.DepthModel(TINY[request.param]().double(), name=request.param)


@pytest.fixture(scope="module")
def plan() -> xr.Dataset:
    return xr.Dataset({"u": ("layer", [1.5, -2.5, 2.0]), "u_end": -1.0})


@pytest.fixture(scope="module")
def added(plan, concept) -> np.ndarray:
    u = np.append(plan["u"].values, float(plan["u_end"]))
    return u[:, None] * concept["direction"].values
