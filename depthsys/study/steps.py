"""The steps of a study. Each takes a cell and Datasets, and returns a Dataset; nothing else."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from depthsys import lm, ltv
from depthsys.files import file_hash
from depthsys.lm.hf.checkpoint import checked_dtype
from depthsys.lm.parts import identity_of
from depthsys.lm.precision import Arithmetic
from depthsys.lm.step import check_relative_step as check_dtype_step
from depthsys.ltv.labels import in_order_of
from depthsys.shift import STD, Shift
from depthsys.study.cell import DTYPE, Cell, Found
from depthsys.study.lines import have_labels
from depthsys.study.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable

# A plan that misses its target by more than this part of it is explained.
MISSED = 0.1
PLANNED = "planned"
_OF_PLAN = ("target_asked", "target_unit", "sign", "layers", "max_relative_push", "warning")
# settings that are those of a comparison, or say the same as others
_NO_MATTER = (
    *("methods", "orders", "n_each", "asked", "device", "device_map", "dtype", "tf32", "readout"),
    *("max_tokens", "max_memory", "n_jacobians", "n_lines"),
)
_SEPARATION = (
    "auc", "auc_low", "auc_high", "log_odds_per_unit",
    "paired_accuracy", "paired_low", "paired_high",
)  # fmt: skip


def find_concept(cell: Cell, name: str | None = None) -> xr.Dataset:
    """Concept directions from the concept texts, with their separation of held-out ones.

    Found in the way of that name; by default in that of the settings.
    """
    find: Callable[..., xr.Dataset] = getattr(lm, name or cell.settings.concept)
    return find(cell.concept, held_out=cell.held_out)


def concept_of(system: xr.Dataset) -> xr.Dataset:
    """The concept directions that a system was identified with."""
    concept = system[["v", "auc"]].isel(input=0).rename(v="direction")
    concept.attrs = {k: v for k, v in system.attrs.items() if k == "direction_note"}
    return concept


def identify(cell: Cell, concept: xr.Dataset) -> xr.Dataset:
    """The reduced system of the operating prompts."""
    settings = cell.settings
    system = lm.identify(cell.operating, concept, settings.method(), readout=settings.readout)
    return with_origin(with_separation(system, concept), cell)


def identify_each(cell: Cell, concept: xr.Dataset) -> xr.Dataset:
    """A reduced system of each operating prompt, along the dim ``prompt``."""
    each = lm.identify(
        cell.operating,
        concept,
        cell.settings.method(),
        readout=cell.settings.readout,
        per_prompt=True,
        keep_basis=False,
    )
    return with_origin(with_separation(each, concept), cell)


def gains(cell: Cell, system: xr.Dataset) -> xr.Dataset:
    """Predicted against measured gain of every layer; see `lm.gain_report`."""
    concept, step = concept_of(system), step_of(cell)
    linear = cell.linear_gains("held_out", concept)
    operating = cell.linear_gains("operating", concept)
    (measured,) = lm.measure_gains_at(cell.held_out, concept, [step])
    linearity = lm.linear_range(
        cell.held_out, concept, relative=step.relative, linear=linear, measured=[measured]
    )
    result = lm.gain_report(system, measured, linear, operating)
    result = result.assign(linearity[["step_error", "step_limit"]])
    result.attrs |= {k: v for k, v in linearity.attrs.items() if k == "step_note"}
    return with_origin(result, cell, system)


def step_of(cell: Cell) -> lm.Step:
    """The step of measured gains."""
    return lm.Step(cell.settings.eps, cell.settings.step == "relative")


def check_relative_step(found: Found, _: object = None) -> None:
    """Refuse a relative step that drowns in the rounding of its dtype, before weights are read."""
    settings = found.settings
    step = lm.Step(settings.eps, settings.step == "relative")
    products = "tf32" if settings.tf32 else "float32"
    check_dtype_step(step, Arithmetic(checked_dtype(settings.dtype or DTYPE), products))


def check_step(cell: Cell) -> None:
    """Refuse a step that drowns in the rounding of the states, before any long work."""
    step = step_of(cell)
    lm.check_step(step, cell.model)
    if not step.relative:
        lm.check_step(step, cell.model, cell.held_out)


def control(cell: Cell, system: xr.Dataset) -> xr.Dataset:
    """The minimum-energy schedule beside simple ones; see `lm.compare_energies`."""
    wanted = wanted_shift(cell)
    concept = concept_of(system)
    energies = lm.compare_energies(
        cell.held_out, concept, system, wanted.in_readout(system), energy=cell.settings.energy
    )
    energies.attrs["target_asked"] = str(wanted)
    if abs(float(energies["progress"]) - 1) > MISSED:
        linear = (cell.linear_gains(name, concept) for name in ("operating", "held_out"))
        energies["miss"] = lm.miss_of_plan(system, energies, *linear)
    return with_origin(energies, cell, system)


def wanted_shift(cell: Cell) -> Shift:
    """The shift of the readout that is asked for, by default one standard deviation of it."""
    return cell.settings.target or Shift(1.0, STD)


def plan(cell: Cell, system: xr.Dataset, target: Shift | None = None) -> xr.Dataset:
    """The plan of the linear system, and from there the optimum of the full model.

    A plan with its concept directions, ``direction`` (depth, input, feature), for
    `lm.steering` and the commands that go on from it. ``linear_u`` (layer, input) and
    ``linear_push`` (layer): the plan of the linear system, where ``u`` is the optimum. The target
    is that of the settings unless another one is given.
    """
    settings, concept = cell.settings, concept_of(system)
    wanted = target or wanted_shift(cell)
    shift = wanted.in_readout(system)
    asked: dict[str, Any] = {
        "energy": settings.energy,
        "max_relative_push": settings.max_relative_push,
        "layers": settings.pushed_layers(system.sizes["layer"]),
    }
    # what the linear system cannot reach within the bounds the model itself may
    linear = ltv.minimum_energy(
        system, shift, max_layers=settings.max_layers, allow_residual=not settings.linear, **asked
    )
    found = linear
    if not settings.linear:
        if settings.max_layers is not None:
            asked["layers"] = np.flatnonzero((linear["u"] != 0).any("input")).tolist()
        found = lm.optimal_plan(
            cell.operating, concept, shift, start=linear, held_out=cell.held_out, **asked
        )
        found["linear_push"] = linear["push"].drop_vars(["order", "layer"], errors="ignore")
    direction = concept["direction"].expand_dims("input", axis=1)
    found["direction"] = direction.transpose("depth", "input", "feature")
    found.attrs |= {
        "target_asked": str(wanted), "sign": _sign(cell)
    }  # fmt: skip
    return with_origin(found, cell, system)


def verify_plan(cell: Cell, system: xr.Dataset, found: xr.Dataset) -> xr.Dataset:
    """A plan beside others on held-out prompts: energies, and shifts over amplitude.

    What `lm.compare_energies` says of the schedules: "planned" is the plan, which multiples are of,
    and "minimum_energy" that of the linear system, which may push at all layers; and
    ``predicted``, ``achieved`` and ``spread`` over ``amplitude`` (played: "planned", and
    "linear_plan" from which the plan was found), from `lm.amplitude_response`.

    ValueError if the plan pushes along other directions than those of the system.
    """
    _check_directions(system, found)
    concept, target = concept_of(system), float(found["target"].values.ravel()[0])
    energies = lm.compare_energies(
        cell.held_out,
        concept,
        system,
        target,
        energy=found.attrs["energy"],
        plans={PLANNED: found},
        reference=PLANNED,
    )
    both = {PLANNED: found["u"].isel(input=0)}
    if "linear_u" in found:
        both["linear_plan"] = found["linear_u"].isel(input=0)
    layers = np.arange(energies.sizes["layer"])
    ordered = [in_order_of(u, "plan", "layer", layers) for u in both.values()]
    bare = [u.drop_vars(list(u.coords)) for u in ordered]
    schedules = xr.concat(bare, "schedule").assign_coords(schedule=list(both))
    curves = lm.amplitude_response(cell.held_out, concept, system, schedules)
    for name in ("predicted", "achieved", "spread"):
        energies[name] = curves[name].rename(schedule="played")
    energies.attrs |= {k: found.attrs[k] for k in _OF_PLAN if k in found.attrs}
    energies.attrs["plan_energy"] = float(found["energy"])
    return with_origin(energies, cell, system)


def _check_directions(system: xr.Dataset, plan: xr.Dataset) -> None:
    given = plan["direction"].isel(input=0).transpose("depth", "feature").values
    known = system["v"].isel(input=0).transpose("depth", "feature").values
    if given.shape != known.shape or not np.allclose(given, known, atol=1e-6, equal_nan=True):
        raise ValueError(
            "`plan` must push along the directions of its system; got others. Plan again, or give "
            "MODEL and TEXTS to see what it does."
        )


def _sign(cell: Cell) -> str:
    """Which class pushes with a positive u lead to, in words."""
    return f"u > 0 pushes towards {cell.texts.concept.classes[1]!r}"


def identity(cell: Cell, system: Path | None = None) -> dict[str, Any]:
    """All that what these steps find depends on, for `files.Resumable`.

    Parameters
    ----------
    cell
        The cell.
    system
        File of the system that is gone on from.
    """
    return _identity(cell.model, cell.texts, cell.settings, system)


def identity_before(found: Found, texts: "lm.Splits", system: Path | None = None) -> dict[str, Any]:
    """What of `identity` is known before the weights are read."""
    return _identity(None, texts, found.settings, system)


def _identity(
    model: "lm.DepthModel | None", texts: "lm.Splits", settings: Settings, system: Path | None
) -> dict[str, Any]:
    asked = {k: v for k, v in asdict(settings).items() if k not in _NO_MATTER}
    if settings.target is not None:
        asked["target"] = str(settings.target)
    known = identity_of(model, texts, settings.readout, asked)
    # the hashes of texts know their labels, not what these are called
    known["class names"] = list(texts.concept.classes)
    return known | {"system": "to be identified" if system is None else file_hash(system)}


def verify(cell: Cell, concept: xr.Dataset, vector: xr.Dataset) -> xr.Dataset:
    """What a control vector does on the held-out prompts; see `lm.steering_effect`."""
    found = lm.steering_effect(cell.held_out, concept, vector, seed=cell.settings.seed)
    about = {f"vector_{k}": v for k, v in vector.attrs.items() if k in ("source", "strength")}
    sizes = {"n_layers": cell.model.n_layers, "n_features": cell.model.n_features}
    found = found.assign_attrs(concept=cell.settings.concept, readout="concept", **sizes, **about)
    return with_origin(with_separation(found, concept), cell)


def of_this_run(kept: xr.Dataset, cell: Cell) -> xr.Dataset:
    """What an earlier run has found, as of the files where model and texts are now."""
    return with_origin(kept, cell)


def comparison_cost(cell: Cell, partial: Path | None = None) -> xr.Dataset:
    """What `compare` would take beside what is kept in ``partial``; see `lm.comparison_cost`.

    Nothing is prefilled.
    """
    settings = cell.settings
    kept = () if partial is None else kept_parts(cell, partial).usable
    return lm.comparison_cost(
        cell.model,
        cell.texts,
        list(settings.methods),
        list(settings.orders),
        readout=settings.readout,
        n_each=settings.n_each,
        kept=kept,
    )


def kept_parts(cell: Cell, partial: Path, concept: xr.Dataset | None = None) -> lm.Kept:
    """What an interrupted `compare` has left in ``partial``; see `lm.kept_parts`."""
    named = {"concept": cell.settings.concept}
    options = _options(cell.settings)
    return lm.kept_parts(
        partial, cell.texts, **options, model=cell.model, concept=concept, known=named
    )


def kept_for(found: Found, texts: "lm.Splits", partial: Path) -> lm.Kept:
    """The same before the weights are read."""
    known = {
        "concept": found.settings.concept,
        "dtype": found.settings.dtype or "float32",
        "products": "tf32" if found.settings.tf32 else "float32",
        **asdict(replace(found.settings.prompting, max_tokens=found.max_tokens)),
        "model_width": found.width,
    }
    return lm.kept_parts(partial, texts, **_options(found.settings), known=known)


def compare(
    cell: Cell, concept: xr.Dataset, partial: Path | None = None, *, force: bool = False
) -> xr.Dataset:
    """Reduction methods by order; see `lm.compare`, which keeps its parts in ``partial``.

    They stay there until whoever writes the table has written it. With ``force`` parts that were
    begun with other settings are dropped.
    """
    texts = replace(cell.texts, operating=cell.operating, held_out=cell.held_out)
    options = _options(cell.settings)
    kept = {"partial": partial, "force": force, "keep_partial": partial is not None}
    table = lm.compare(cell.model, texts, **options, **kept, concept=concept)
    return with_origin(table, cell)


def _options(settings: Settings) -> dict[str, Any]:
    """Of `lm.compare` and `lm.kept_parts`."""
    return {
        "methods": list(settings.methods),
        "orders": list(settings.orders),
        "readout": settings.readout,
        "eps": settings.eps,
        "relative": settings.step == "relative",
        "n_each": settings.n_each,
        "seed": settings.seed,
    }


def with_separation(system: xr.Dataset, concept: xr.Dataset) -> xr.Dataset:
    """The result with how well its concept separates, and the warning of that."""
    system = system.assign(concept[[name for name in _SEPARATION if name in concept]])
    if "warning" in concept.attrs:
        system.attrs["concept_warning"] = concept.attrs["warning"]
    return system


def with_origin(result: xr.Dataset, cell: Cell, system: xr.Dataset | None = None) -> xr.Dataset:
    """The result with the provenance of its texts in attrs, and the warning of its system."""
    texts, model = cell.texts, cell.model
    labelled = have_labels(texts.operating)
    # where the same weights are now: what is kept was of a place that may be gone
    of_model = {"model": model.name, "source": model.source, "revision": model.revision}
    attrs = {
        **{name: said for name, said in of_model.items() if name in result.attrs},
        "texts": texts.concept.source,
        **(_of_labels(cell) if labelled else _of_lines(cell)),
        "seed": cell.settings.seed,
        "n_duplicates": texts.n_duplicates,
        "n_conflicts": texts.n_conflicts,
        **cell.model.prompting.attrs,
        "n_other": texts.n_other,
    }
    notes = {}
    for name in ("concept", "operating", "held_out") if labelled else ("operating",):
        part = getattr(texts, name)
        tokens = cell.model.tokens(part)
        attrs[f"n_cut_{name}"] = tokens.n_cut
        letters = part.letter_note if isinstance(part, lm.Pairs) else ""
        if said := "; ".join(filter(None, [tokens.note, letters])):
            notes[name] = said
    if notes:
        attrs["token_notes"] = json.dumps(notes)
    if system is not None and "concept_warning" in system.attrs:
        attrs["concept_warning"] = system.attrs["concept_warning"]
    return result.assign_attrs(attrs)


def _of_lines(cell: Cell) -> dict[str, Any]:
    """What is told of lines."""
    lines = cell.texts.operating
    return {"n_lines": len(lines), "lines_sha256": lines.sha256}


def _of_labels(cell: Cell) -> dict[str, Any]:
    """What is told of texts that have labels."""
    texts = cell.texts
    return {
        "classes": json.dumps(texts.concept.classes),
        "concept_sha256": texts.concept.sha256,
        "held_out_sha256": texts.held_out.sha256,
        "split": texts.sizes,
        "paired": int(isinstance(texts.concept, lm.Pairs)),
        "texts_layout": json.dumps(cell.settings.layout),
    }
