"""Identification of many prompts by Krylov of order 32 and by ensemble balancing.

Wanted: each under 3 times the plain prefill of the prompts plus its floor. The prefill is timed:
the model's own forward pass without a cache, 32 prompts at a time. The floor is the last token
through each block once, and a product per direction: (l + 1) of them at layer l for Krylov, one for
an ensemble with the concept readout, L - l with the profile, at the rate of bare products with the
model's own weights.
"""

import os

import numpy as np
import pytest
import torch

from depthsys import lm, ltv
from tests.benchmarks import lm_setup, measure

TITLE = "9. Identification of many prompts (wanted: 3 times prefill + floor)"
COUNT = int(os.environ.get("DEPTHSYS_BENCH_PROMPTS", "400"))
SIDES = {
    "Krylov 32": (lambda: lm.Krylov(lm_setup.ORDER), "concept", lambda L: (L + 1) / 2),
    "ensemble, concept": (lambda: lm.Ensemble(1), "concept", lambda L: 1),
    "ensemble, profile": (lambda: lm.Ensemble(4), "profile", lambda L: (L + 1) / 2),
}


@pytest.mark.parametrize("side", list(SIDES))
def test_identification_of_many_prompts(subject, record, side):
    if subject.columns["shape"].split()[0] not in ("GPT-2", "tiny"):
        pytest.skip("this table is made for GPT-2 alone")
    model, tiny = subject.model, lm_setup.SIZES is lm_setup.SMOKE
    n_prompts, n_tokens = (4, 6) if tiny else (COUNT, 64)
    L, H = model.n_layers, model.n_features
    method, readout, directions = SIDES[side]
    concept = lm_setup.random_concept(L, H)
    ids = subject.ids(n_prompts, n_tokens)
    tokens = torch.tensor(ids, device=lm_setup.DEVICE)

    @torch.no_grad()
    def prefill(_):
        for part in tokens.split(32):
            model.hf.transformer(part, use_cache=False)

    made = method() if not tiny else type(method())(2)
    products = measure.products(model.hf, n_prompts)
    sides = measure.in_turns(
        {
            "depthsys": lambda _: lm.identify(model, ids, concept, made, readout=readout),
            "prefill": prefill,
            "products": lambda _: products(),
        },
        lm_setup.DEVICE,
        budget=lm_setup.SIZES.budget,
        max_rounds=2,
    )
    # one row per prompt: the nominal one, then as many as there are directions
    floor = sides["products"].seconds * (1 + directions(L))
    spent, plain = sides["depthsys"].seconds, sides["prefill"].seconds
    system = sides["depthsys"].outputs[-1]
    if side.startswith("ensemble"):
        exact = lm.linear_gains(model, ids[:4], concept).gain.mean("prompt")
        few = lm.identify(model, ids[:4], concept, lm.Ensemble(1))
        found = ltv.gains(few)[:, 0, 0]
        assert measure.relative_difference(found.values, exact.values) < 1e-5
    assert np.isfinite(system.A.values).all()
    record(
        TITLE,
        subject.columns
        | {
            "T": str(n_tokens),
            "prompts": str(n_prompts),
            "method": side,
            "depthsys": f"{spent:.3g} s",
            "prefill": f"{plain:.3g} s",
            "floor of directions": f"{floor:.3g} s",
            "depthsys / (prefill + floor)": f"{spent / (plain + floor):.2f}",
        },
    )
