"""Identification of order 32 against its floor.

Floor in flops: a prefill of the prompts (24 H^2 and the attention, per token and layer) and 33
token-equivalents per prompt, at the rate of bare products with the model's own weights at the
same numbers of rows, measured in turns with the identification. A system of L layers has no more
than l + 1 directions at depth l, so a shallow model needs fewer than 33: that floor is given too.

Floor in bytes: the weights of the blocks, read once.
"""

import numpy as np
import pytest

from depthsys import lm
from depthsys.lm.directions import direction
from tests.benchmarks import lm_setup, measure

TITLE = "4. Identification of order 32 (wanted: 3 times the floor with 16 prompts)"


def floor_flops(model, n_prompts: int, n_tokens: int, directions: float) -> float:
    H, L = model.n_features, model.n_layers
    rows = n_prompts * (n_tokens + directions)
    attention = measure.attention_flops(L, H, n_prompts * n_tokens, (n_tokens + 1) / 2)
    attention += measure.attention_flops(L, H, n_prompts * directions, n_tokens)
    return 24.0 * H**2 * L * rows + attention


def backward_gains(model, ids, v) -> np.ndarray:
    """Gains of the mean system by transposed Jacobians, from the end: the other way round."""
    run = model.run(ids)
    w, gains = v[-1], []
    for layer in reversed(range(model.n_layers)):
        w = run.vjp(layer, w[None]).mean(0)[0]
        gains.append(float(w.double() @ v[layer].double()))
    return np.array(gains[::-1])


@pytest.mark.parametrize("n_prompts", [1, lm_setup.SIZES.prompts])
@pytest.mark.parametrize("n_tokens", lm_setup.SIZES.tokens)
def test_identification(subject, record, n_tokens, n_prompts):
    model = subject.model
    H, L = model.n_features, model.n_layers
    concept = lm_setup.random_concept(L, H)
    ids = subject.ids(n_prompts, n_tokens)
    order = min(lm_setup.ORDER, H)
    prefill = measure.products(model.hf, n_prompts * n_tokens)
    directions = measure.products(model.hf, n_prompts * (order + 1))
    sides = measure.in_turns(
        {
            "depthsys": lambda _: lm.identify(model, ids, concept, lm.Krylov(order)),
            "prefill": lambda _: prefill(),
            "directions": lambda _: directions(),
        },
        lm_setup.DEVICE,
        budget=lm_setup.SIZES.budget,
    )
    found = sides["depthsys"].outputs[-1].gain_full.values
    difference = measure.relative_difference(
        found, backward_gains(model, ids, direction(model, concept).to(model.dtype))
    )
    lm_setup.check_difference("derivatives", subject.precision, difference)
    bare = sides["prefill"].seconds + sides["directions"].seconds
    rate = measure.product_flops(model.hf, n_prompts * (n_tokens + order + 1)) / bare
    weights = sum(p.numel() * p.element_size() for p in model.hf.transformer.h.parameters())
    reading = weights / measure.reading_rate(lm_setup.DEVICE, weights)
    spent = sides["depthsys"].seconds
    # l + 1 directions at layer l, never more than the order (+ 1 for the injection)
    reachable = np.minimum(np.arange(L) + 1, order + 1).mean()
    floor = floor_flops(model, n_prompts, n_tokens, order + 1) / rate
    least = floor_flops(model, n_prompts, n_tokens, reachable) / rate
    record(
        TITLE,
        subject.columns
        | {
            "T": str(n_tokens),
            "prompts": str(n_prompts),
            "depthsys": f"{spent:.3g} s",
            "rate of products": f"{rate / 1e9:.0f} Gflop/s",
            "floor (33 directions)": f"{floor:.3g} s",
            "depthsys / floor": f"{spent / floor:.2f}",
            "floor (min(l + 1, 33) directions)": f"{least:.3g} s",
            "depthsys / that floor": f"{spent / least:.2f}",
            "reading the weights once": f"{reading:.2g} s",
            "gains against transposed Jacobians": f"{difference:.0e}",
        },
    )
