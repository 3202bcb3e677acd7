"""A system of every kind, and the model that plans and control vectors steer."""

import numpy as np
import pytest
import xarray as xr

from depthsys import lm
from tests.conftest import tiny_gpt2
from tests.export.systems import SYSTEMS, with_companions
from tests.lm.conftest import LabelledIds


@pytest.fixture(params=list(SYSTEMS))
def system(request) -> xr.Dataset:
    return with_companions(SYSTEMS[request.param]())


N_LAYERS = 5  # of the model that plans and control vectors steer


@pytest.fixture(scope="module")
def model():
    return lm.DepthModel(tiny_gpt2(n_layer=N_LAYERS).double(), name="tiny")


@pytest.fixture(scope="module")
def ids() -> LabelledIds:
    rng = np.random.default_rng(3)
    rows = [rng.integers(0, 50, size=n).tolist() for n in (1, 2, 4, 7)]
    return LabelledIds(rows, np.arange(4) % 2)
