"""The tiny model of one family, for tests of what stands on the derivatives of blocks.

Those are the same code for all families, and every family's derivatives, states and responses
are tested in test_families.py; so here the second family is slow.
"""

import pytest

from depthsys import lm
from tests.conftest import TINY

FAMILIES = ["gpt2", pytest.param("llama", marks=pytest.mark.slow)]


@pytest.fixture(scope="module", params=FAMILIES)
def tiny(request) -> lm.DepthModel:
    """A tiny random model in float64."""
    return lm.DepthModel(TINY[request.param]().double(), name=request.param)
