# pyright: strict, reportUnnecessaryTypeIgnoreComment=true
"""How users call `lm`, for the type checker: both forms, splits of texts and of runs.

`make lint` checks it with pyright (an ignore that is not needed is an error there), and
test_signatures.py runs it.
"""

from typing import assert_type

import xarray as xr

from depthsys import lm


def of_a_run(run: lm.Run, system: xr.Dataset, plan: xr.Dataset) -> list[xr.Dataset]:
    concept = lm.mean_difference(run)
    assert_type(lm.identify(run, concept, lm.Ensemble(order=2), part="block"), xr.Dataset)
    assert_type(lm.jacobians(run, per_prompt=True), xr.Dataset)
    assert_type(lm.corrected(system, run, concept), xr.Dataset)
    return [
        *lm.measure_gains_at(run, concept, [lm.Step(0.1)]),
        lm.linear_gains(run, concept),
        lm.play(run, concept, plan, scale=[0.5, 1.0]),
        lm.compare_energies(run, concept, system, 0.3, energy="relative"),
        lm.identify(run=run, concept=concept),
        lm.corrected(system, run=run, concept=concept),
    ]


def of_a_model_and_texts(
    model: lm.DepthModel, texts: lm.Texts | list[list[int]], system: xr.Dataset, plan: xr.Dataset
) -> list[xr.Dataset]:
    concept = lm.mean_difference(model, texts)
    assert_type(lm.identify(model, texts, concept, lm.Ensemble(order=2), part="block"), xr.Dataset)
    assert_type(lm.jacobians(model, texts, per_prompt=True), xr.Dataset)
    assert_type(lm.corrected(system, model, texts, concept), xr.Dataset)
    return [
        *lm.measure_gains_at(model, texts, concept, [lm.Step(0.1)]),
        lm.linear_gains(model, model.run(texts), concept),
        lm.play(model, texts, concept, plan, scale=[0.5, 1.0]),
        lm.compare_energies(model, texts, concept, system, 0.3, energy="relative"),
        lm.identify(model, texts=texts, concept=concept),
        lm.corrected(system=system, model=model, texts=texts, concept=concept),
        lm.identify(model=model, texts=texts, concept=concept),
    ]


def of_splits(model: lm.DepthModel, texts: lm.Texts) -> list[xr.Dataset]:
    splits = texts.split("3/2/2")
    runs = splits.each(model.run)
    assert_type(splits, lm.Splits[lm.Texts])
    assert_type(runs, lm.Splits[lm.Run])
    concept = lm.mean_difference(runs.concept, held_out=runs.held_out)
    return [
        concept,
        lm.identify(runs.operating, concept),
        lm.compare(model, splits, ["krylov"], [1], n_each=0, n_bootstrap=3, ablate_eps=False),
        lm.compare(model, runs, ["krylov"], [1], n_each=0, n_bootstrap=3, ablate_eps=False),
        lm.comparison_cost(model, runs, orders=[1]),
    ]


def refused(run: lm.Run, model: lm.DepthModel, texts: lm.Texts, concept: xr.Dataset) -> None:
    """Never called: each line is an error, for the type checker too."""
    lm.identify(run, texts, concept)  # pyright: ignore
    lm.identify(texts, model, concept)  # pyright: ignore
    lm.identify(model, concept)  # pyright: ignore
    lm.identify(run, concept, metod=lm.Krylov())  # pyright: ignore
    lm.measure_gains(model, prompts=texts, concept=concept)  # pyright: ignore
    lm.corrected(run, concept, concept)  # pyright: ignore
    lm.compare(model, texts)  # pyright: ignore
    texts.split(3, 2, 2)  # pyright: ignore
    model.run(texts.split("3/2/2"))  # pyright: ignore
