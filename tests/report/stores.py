"""Small stores of studies, as a runner writes them: real results of an embedded model."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

import xarray as xr

from depthsys import demo, lm, study
from depthsys.demo import grammar
from depthsys.study import Settings, steps

HOW = {"consolidated": False, "zarr_format": 3}
TOML = 'name = "small <study> & more"\n# 5 % of "all"\n'
ABOUT = {
    "study_name": 'small <script>alert("x")</script> & more',
    "study_toml": TOML,
    "depthsys_version": "0.1.0",
    "created": "2026-11-28T03:48:49+00:00",
    "command": "depthsys study run study.toml --out study.zarr",
    "machine": "2 cores",
}
PROMPTS = ["The story was", 'I think <b>this</b> & "that"']
MODEL, TASK, CONCEPT = "demo_48x4", "sentiment", "mean_difference"


def results() -> dict[str, xr.Dataset]:
    """All stages of one cell."""
    model = lm.DepthModel.load(demo.model_path(MODEL), device="cpu")
    model.name = MODEL
    texts = lm.read_texts(grammar.labelled(60, seed=5)).split(concept=24, operating=8, held_out=8)
    options = {"methods": "ensemble,krylov,pod", "orders": "1,4", "n_each": 2}
    cell = study.Cell(Settings.checked(split="24/8/8", target="1std", **options), model, texts)
    concept = steps.find_concept(cell)
    system = steps.identify(cell, concept)
    plan = steps.plan(cell, system)
    written = lm.generation_effects(
        model,
        PROMPTS,
        steps.concept_of(system),
        {"plan": plan},
        strengths=(0.0, 1.0, -1.0),
        max_new_tokens=6,
        n_bootstrap=50,
    )
    return {
        "concept": concept,
        "system": system,
        "gains": steps.gains(cell, system),
        "comparison": steps.compare(cell, concept),
        "energies": steps.control(cell, system),
        "plan": plan,
        "verified": steps.verify_plan(cell, system, plan),
        "texts": written.assign_coords(prompt=PROMPTS),
    }


def write_study(store: Path, stages: dict[str, xr.Dataset]) -> Path:
    """Six cells: of two models, two tasks; one that failed, and one that is not finished.

    One is written as a runner does it; the others are copies with other attributes.
    """
    xr.Dataset(attrs=ABOUT).to_zarr(store, **HOW)
    first = store / MODEL / TASK / "seed_0" / CONCEPT
    for name, data in stages.items():
        labels = {
            n: (v.dims, v.values.astype(object), v.attrs)
            for n, v in data.variables.items()
            if v.dtype.kind == "U"
        }
        made = {"stage_seconds": 1.5, "stage_sha256": "ab" * 32, "stage_notes": "[]"}
        group = first.relative_to(store) / name
        data.assign(labels).assign_attrs(made).to_zarr(store, group=str(group), mode="a", **HOW)
    for model, task in ((MODEL, "domain"), ("larger", "domain"), ("larger", TASK)):
        changes = {} if model == MODEL else {"model": model, "n_parameters": 1_000_000}
        copied(first, store / model / task / "seed_0" / CONCEPT, stages, **changes)
    why = "`target` must be reachable; got <i>nothing</i>. Choose another."
    failed = copied(first, store / MODEL / TASK / "seed_10" / CONCEPT, ("concept", "system"))
    described(failed, failed=json.dumps({"gains": why}))
    copied(first, store / MODEL / TASK / "seed_2" / CONCEPT, ("concept", "system", "gains"))
    return store


def copied(first: Path, cell: Path, stages: Iterable[str], **changes: object) -> Path:
    """Some stages of a cell, with other attributes."""
    for name in stages:
        shutil.copytree(first / name, cell / name)
        described(cell / name, **changes)
    for place in (cell, *cell.parents[:3]):
        described(place)
    return cell


def described(group: Path, **attrs: object) -> None:
    """Write attributes of a group, beside those that it has."""
    file = group / "zarr.json"
    empty = {"zarr_format": 3, "node_type": "group", "attributes": {}}
    meta = json.loads(file.read_text()) if file.exists() else empty
    meta["attributes"] |= attrs
    file.write_text(json.dumps(meta))


def multiplied(store: Path, out: Path, count: int) -> Path:
    """So many copies of the first cell of a store, as seeds."""
    out.mkdir()
    shutil.copy(store / "zarr.json", out)
    first = store / MODEL / TASK / "seed_0" / CONCEPT
    stages = [place.name for place in first.iterdir() if place.is_dir()]
    for seed in range(count):
        copied(first, out / MODEL / TASK / f"seed_{seed}" / CONCEPT, stages)
    return out
