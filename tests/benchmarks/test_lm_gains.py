"""Gain curves of all layers against one hooked forward pass per layer and sign.

The slow side is measured on a few layers spread over the depth, one per round, and multiplied:
each of its 2L forward passes is the whole model over the whole batch and costs the same.
"""

import numpy as np
import pytest

from depthsys import lm
from depthsys.lm.directions import direction
from tests.benchmarks import lm_setup, lm_slow, measure


def spread(n_layers: int) -> list[int]:
    """Layers for the rounds: middle, first, last, quarters."""
    last = n_layers - 1
    return [last // 2, 0, last, last // 4, 3 * last // 4]


@pytest.mark.parametrize("n_tokens", lm_setup.SIZES.tokens)
def test_gain_curves(subject, record, n_tokens):
    model, n_prompts = subject.model, lm_setup.SIZES.prompts
    concept = lm_setup.random_concept(model.n_layers, model.n_features)
    ids = subject.ids(n_prompts, n_tokens)
    # in 16 bits a smaller step drowns, and is refused
    eps = lm_setup.step(model.n_features, subject.precision)
    tensor, layers = subject.tensor(ids), spread(model.n_layers)
    v = direction(model, concept).to(model.dtype)
    sides = measure.in_turns(
        {
            "measured": lambda _: lm.measure_gains(model, ids, concept, eps=eps).gain.values,
            "hooked": lambda n: lm_slow.hooked_gains(model.hf, tensor, v, layers[n], eps),
            "linear": lambda _: lm.linear_gains(model, ids, concept).gain.values,
        },
        lm_setup.DEVICE,
        budget=2 * lm_setup.SIZES.budget,
    )
    hooked = np.stack(sides["hooked"].outputs, axis=1)
    layers = layers[: hooked.shape[1]]
    L, T = model.n_layers, n_tokens
    hooked_s = L * sides["hooked"].seconds
    bounds = {"measured": 2 * L * T / (T + L), "linear": 2 * L}
    for kind, bound in bounds.items():
        ours = sides[kind].outputs[-1][:, layers]
        difference = measure.relative_difference(ours, hooked)
        lm_setup.check_difference(f"{kind} gains", subject.precision, difference)
        ratio = hooked_s / sides[kind].seconds
        record(
            TITLES[kind],
            subject.columns
            | {
                "T": str(T),
                "prompts": str(n_prompts),
                "depthsys": f"{sides[kind].seconds:.3g} s",
                "hooked": f"{hooked_s:.3g} s ({2 * len(layers)} of {2 * L} passes timed)",
                "ratio": f"{ratio:.1f}",
                BOUNDS[kind]: f"{bound:.1f}",
                "quotient": f"{ratio / bound:.2f}",
                "largest difference / largest gain": f"{difference:.0e}",
            },
        )


TITLES = {
    "measured": "1. Measured gain curve, all layers, both signs (wanted: quotient 0.7)",
    "linear": "3. Exact linear gains of all layers (wanted: quotient 0.7)",
}
BOUNDS = {"measured": "2LT/(T+L)", "linear": "2L"}
