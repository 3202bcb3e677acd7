"""The systems of `identify(per_prompt=True)`, one per prompt, go through the functions of ltv."""

import numpy as np
import pytest

from depthsys import lm, ltv
from tests.lm import one_family

tiny = one_family.tiny

CALLS = {
    "controllability": lambda s: ltv.controllability(s).average_from_layer,
    "compare": lambda s: ltv.compare(s, [1, 2, 9], [ltv.balanced_basis]).error,
    "error_bounds": lambda s: ltv.error_bounds(s, [0, 1, 9]).upper,
    "hankel_singular_values": ltv.hankel_singular_values,
}


@pytest.fixture(scope="module")
def systems(tiny, tokens, concept):
    """Padded by hand, too: prompts of several orders, joined as xarray joins them."""
    each = lm.identify(
        tiny, tokens, concept, lm.Krylov(order=2), readout="profile", per_prompt=True
    )
    more = lm.identify(
        tiny, tokens, concept, lm.Krylov(order=3), readout="profile", per_prompt=True
    )
    return {
        "one order": each,
        "two orders": ltv.stack([each.isel(prompt=0), more.isel(prompt=1)], "prompt"),
    }


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("kind", ["one order", "two orders"])
def test_every_prompt_gets_what_it_gets_alone(systems, kind, name):
    system = systems[kind]
    whole = CALLS[name](system)
    for i in range(2):
        alone = CALLS[name](system.isel(prompt=i)).values
        got = whole.isel(prompt=i).values
        at = tuple(slice(min(a, b)) for a, b in zip(got.shape, alone.shape, strict=True))
        np.testing.assert_allclose(got[at], alone[at], rtol=1e-6, atol=1e-10)
