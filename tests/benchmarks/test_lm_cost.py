"""The contract check, and cost against H, L, T and the number of prompts."""

import pytest

from depthsys import lm
from depthsys.lm import contract
from tests.benchmarks import lm_setup, measure

CONTRACT = "7. Contract check (wanted: below 2 s for GPT-2-medium on a CPU)"
COST = "8a. Cost against H, L, T and prompts P"
EXPONENTS = "8b. Fitted exponents (in brackets: largest misfit of the power law)"


def test_contract_check(subject, record):
    model = subject.model
    try:
        sides = measure.in_turns(
            {"check": lambda _: contract.check(model)},
            lm_setup.DEVICE,
            budget=lm_setup.SIZES.budget,
        )
        spent = f"{sides['check'].seconds:.3g} s"
        assert sides["check"].outputs[-1].keys() == model.contract.keys()
    except ValueError as error:
        if subject.precision == "float32":
            raise
        spent = f"refused: {error}"  # the limits are those of float32
    row = {"check, repeated": spent, "whole DepthModel(...)": f"{subject.load_seconds:.3g} s"}
    record(CONTRACT, subject.columns | row)


WORKS = {
    "linear gains": lambda model, ids, concept: lm.linear_gains(model, ids, concept).gain,
    "measured gains": lambda model, ids, concept: (
        lm.measure_gains(model, ids, concept, eps=lm_setup.step(model.n_features)).gain
    ),
    "identification": lambda model, ids, concept: (
        lm.identify(model, ids, concept, lm.Krylov(min(lm_setup.ORDER, model.n_features))).gain_full
    ),
}


def cost(sizes: dict[str, int]) -> dict[str, float]:
    """Seconds of each work on a random model with small vocabulary, in turns."""
    shape = lm_setup.Shape(sizes["L"], sizes["H"], max(1, sizes["H"] // 64), vocabulary=100)
    model = lm.DepthModel(lm_setup.random_gpt2(shape), max_tokens=sizes["T"])
    ids = lm_setup.random_ids(sizes["P"], sizes["T"], shape.vocabulary)
    concept = lm_setup.random_concept(shape.L, shape.H)
    sides = measure.in_turns(
        {
            name: lambda _, work=work: work(model, ids, concept).values
            for name, work in WORKS.items()
        },
        lm_setup.DEVICE,
        budget=lm_setup.SIZES.budget / 4,
    )
    linear, measured = (sides[name].outputs[-1] for name in ("linear gains", "measured gains"))
    difference = measure.relative_difference(measured, linear)
    lm_setup.check_difference("linear gains", "float32", difference)
    return {name: side.seconds for name, side in sides.items()}


@pytest.mark.parametrize("axis", list(lm_setup.SIZES.cost_axes))
def test_cost(threads, record, axis):
    """In float32 (TF32 off). Measured and linear gains must agree at every size."""
    base, values = lm_setup.SIZES.cost_base, lm_setup.SIZES.cost_axes[axis]
    times = []
    for value in values:
        sizes = base | {axis: value}
        times.append(cost(sizes))
        seconds = {name: f"{spent:.3g} s" for name, spent in times[-1].items()}
        record(COST, {key: str(size) for key, size in sizes.items()} | seconds)
    fits = {name: measure.exponent(list(values), [t[name] for t in times]) for name in WORKS}
    record(
        EXPONENTS,
        {"in": f"{axis} ({values[0]} to {values[-1]})"}
        | {name: f"{slope:.2f} ({misfit:.0%})" for name, (slope, misfit) in fits.items()},
    )
