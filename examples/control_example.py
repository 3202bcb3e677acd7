"""What docs/control.md tells of one model and task, beside the energies: run by control_study.py.

Each stage takes a `Stage` and returns a Dataset, which control_study.py keeps.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from depthsys import lm, ltv, study
from depthsys.ltv.plan import layer_weights
from depthsys.shift import Shift
from depthsys.study import steps

TARGETS = ("1std", "3std")
# Openings that say nothing of the film, and words that do.
PROMPTS = (
    "The film was", "I watched this movie last night and it was", "The acting in this film is",
    "After two hours in the cinema I felt", "The director's new picture is", "The plot is",
    "My friends asked me about the movie. I told them it was", "Overall, the movie is",
    "The script of this film is", "This is a film that", "The critics agree: this movie is",
    "If you only see one film this year, it should", "The ending of the movie was",
    "The music in this film is", "As a comedy, the film", "The sequel turned out to be",
)  # fmt: skip
WORDS = (
    (" good", " great", " wonderful", " brilliant", " excellent"),
    (" bad", " terrible", " awful", " boring", " poor"),
)
STRENGTHS = (0.0, 0.5, 1.0, 2.0, 4.0)
N_SHARING = 100  # prompts that get a plan of their own
EFFORT = 0.1


@dataclass(frozen=True)
class Stage:
    """What the stages share: a cell, its system, its plans and their verification by target."""

    cell: study.Cell
    system: xr.Dataset
    plans: dict[str, xr.Dataset]
    verified: dict[str, xr.Dataset]
    other_concept: lm.Texts
    other_source: lm.Texts

    @property
    def concept(self) -> xr.Dataset:
        return steps.concept_of(self.system)

    def target(self, asked: str) -> float:
        return Shift.read(asked).in_readout(self.system)


def joined(parts: list[xr.Dataset], dim: str = "row") -> xr.Dataset:
    """Parts side by side."""
    found: Any = xr.concat(parts, dim, data_vars="all", coords="minimal", compat="override")
    return found


def options(stage: Stage) -> xr.Dataset:
    """The optimum with both energies, without a bound and with one that matters."""
    rows = []
    for asked in TARGETS:
        target = stage.target(asked)
        for energy in ("relative", "absolute"):
            linear = ltv.minimum_energy(stage.system, target, energy=energy)
            bound = None
            for bounded in (False, True):
                start = linear
                if bound is not None:
                    start = ltv.minimum_energy(
                        stage.system, target, energy=energy, max_relative_push=bound,
                        allow_residual=True,
                    )  # fmt: skip
                found = lm.optimal_plan(
                    stage.cell.operating, stage.concept, target, start=start, energy=energy,
                    max_relative_push=bound, held_out=stage.cell.held_out,
                )  # fmt: skip
                largest = float(found["push"].max())
                kept = found[
                    ["energy", "residual", "kkt_residual", "met", "steps", "evaluations", "saved"]
                ]
                kept["linear_energy"] = found["linear_energy"]
                kept["linear_needed"] = found["linear_energy_needed"]
                kept["linear_largest_push"] = linear["push"].max()
                kept["linear_shift"] = found["linear_shift"].isel(output=0) / target
                kept["held_out_shift"] = found["held_out_shift"].isel(output=0) / target
                kept["largest_push"] = largest
                kept["limit"] = np.inf if bound is None else bound
                names = {"asked": asked, "of": energy, "bounded": str(bounded)}
                rows.append(kept.drop_vars(kept.coords.keys() - {"bound"}).assign(names))
                bound = min(0.3, 0.8 * largest)
    return joined(rows)


def free(stage: Stage) -> xr.Dataset:
    """How far the concept's directions are from the best ones."""
    return lm.free_directions(stage.cell.operating, stage.concept)


def few(stage: Stage) -> xr.Dataset:
    """Least energy at so many layers at most, by the linear system, for a shift of one."""
    L = stage.system.sizes["layer"]
    sizes = [n for n in (1, 2, 4, 8, 16) if n < L]
    plans = [ltv.minimum_energy(stage.system, 1.0, max_layers=n) for n in sizes]
    plans.append(ltv.minimum_energy(stage.system, 1.0))
    rows = [xr.Dataset({"energy": p["energy"], "u": p["u"]}) for p in plans]
    found = joined([r.drop_vars(list(r.coords)) for r in rows], "most")
    return found.assign_coords(most=[*sizes, L])


def sharing(stage: Stage) -> xr.Dataset:
    """What one plan for all prompts loses."""
    texts = stage.cell.texts.operating
    chosen = np.linspace(0, len(texts.texts) - 1, N_SHARING).astype(int)  # of both classes
    run = stage.cell.model.run([texts.texts[i] for i in chosen])
    asked = {"start": stage.plans["1std"], "energy": "relative"}
    target = stage.target("1std")
    shared = lm.optimal_plan(run, stage.concept, target, **asked)
    own = lm.optimal_plan(run, stage.concept, target, per_prompt=True, **asked)
    return lm.price_of_sharing(shared, own)


def holding(stage: Stage) -> xr.Dataset:
    """Steer one concept and hold another: both outputs, by the linear plan and by the optimum."""
    cell = stage.cell
    other = lm.mean_difference(cell.model, stage.other_concept)
    both = lm.several(
        {"steered": stage.concept[["direction"]].assign_attrs(other.attrs), "held": other}
    )
    system = lm.identify(cell.operating, both, lm.Ensemble(order=8))
    target = stage.target("1std")
    alone = lm.play(cell.held_out, both, _first_input(stage.plans["1std"]["u"], system))
    linear = ltv.minimum_energy(system, target, outputs="steered", hold="held")
    best = lm.optimal_plan(
        cell.operating, both, target, hold="held", start=linear, held_out=cell.held_out
    )
    shifts = {
        "without holding": alone["response"].isel(scale=0),
        "linear plan": lm.play(cell.held_out, both, linear)["response"].isel(scale=0),
        "optimum": lm.play(cell.held_out, both, best)["response"].isel(scale=0),
        "optimum, operating": best["response"],
    }
    means = [s.mean("prompt").values.ravel() / target for s in shifts.values()]
    return xr.Dataset(
        {
            "shift": (("plan", "output"), np.stack(means)),
            "energy": best["energy"],
            "hold_price": linear["hold_price"],
            "price": best["energy"] / stage.plans["1std"]["energy"],
            "kkt_residual": best["kkt_residual"],
            "cosine": ("depth", (both["direction"].isel(input=0) * both["direction"].isel(input=1))
                       .sum("feature").values),
        },
        coords={"plan": list(shifts), "output": ["steered", "held"]},
    )  # fmt: skip


def _first_input(u: xr.DataArray, system: xr.Dataset) -> xr.DataArray:
    """A schedule of one input as one of two, of which the other is not pushed."""
    wide = np.zeros((system.sizes["layer"], system.sizes["input"]))
    wide[:, 0] = u.values.ravel()
    return xr.DataArray(wide, dims=("layer", "input"))


def feedback(stage: Stage) -> xr.Dataset:
    """Open loop against feedback, on held-out prompts and on texts of another source."""
    cell = stage.cell
    system = lm.identify(cell.operating, stage.concept, lm.Krylov(order=32))
    off = cell.model.run(stage.other_source)
    rows = []
    for asked in TARGETS:
        for reference in ("own", "mean"):
            law = lm.feedback(system, stage.target(asked), effort=EFFORT, reference=reference)
            table = lm.compare_feedback(cell.held_out, stage.concept, law, off=off)
            rows.append(
                table[["error", "energy", "ratio"]].assign(
                    asked=asked, reference=reference, verdict=table.attrs["verdict"]
                )
            )
    found = joined(rows)
    std = float(stage.system["y_std"])
    return found.assign_attrs(effort=EFFORT, order=32, y_std=std)


def effects(stage: Stage) -> xr.Dataset:
    """What the model writes under plans for three standard deviations, and what it costs."""
    target, concept = stage.target("3std"), stage.concept
    best, verified = stage.plans["3std"], stage.verified["3std"]
    gain = ltv.gains(stage.system).isel(output=0, input=0).values
    norm = stage.system["state_norm"]
    alike = target / (gain * norm.values[:-1]).sum()
    every = target / gain[1:].sum()
    layer = int(verified["layer_pushed"].sel(schedule="best_single_layer"))
    single = np.zeros(len(gain))
    needed = float(verified["energy"].sel(schedule="best_single_layer"))
    weight = layer_weights(stage.system, "relative").values[layer]
    single[layer] = np.sign(gain[layer]) * np.sqrt(needed / weight)
    layers = np.flatnonzero(concept["direction"].notnull().any("feature").values[:-1]).tolist()
    plans = {
        "optimal plan": (best, "generated"),
        "linear plan": (best.assign(u=best["linear_u"]), "generated"),
        "equal relative pushes": (
            lm.equal_push_plan(
                concept, relative=alike, state_norm=norm, layers=layers, positions="generated"
            ),
            "generated",
        ),
        f"best single layer ({layer})": (
            xr.Dataset({"u": ("layer", single)}), "generated",
        ),
        "mean difference, every token": (
            lm.equal_push_plan(concept, size=every, layers=[k for k in layers if k]), "every",
        ),
    }  # fmt: skip
    return lm.generation_effects(
        stage.cell.model, list(PROMPTS), concept, plans, strengths=STRENGTHS, words=WORDS
    )


STAGES = (options, free, few, sharing, holding, feedback, effects)
