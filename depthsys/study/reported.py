"""What a page is to be made of: a study's store, the folder of a run, or one file of it.

Only what a page shows is read: small arrays, no matrices of the full model.
"""

import csv
import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from depthsys.export.guard import existing_file, told_of
from depthsys.export.netcdf import WHOLE
from depthsys.files import Resumable
from depthsys.files.strangers import read_netcdf
from depthsys.files.trees import METADATA, Node, read_tree
from depthsys.report.dynamics import SHOWN
from depthsys.report.html import STAGES, CellResults, Results, Stage
from depthsys.study.grid import current
from depthsys.study.stages import STAGES as MADE
from depthsys.study.store import ASKED, FAILED
from depthsys.wording import counted

_SEPARATION = {"auc", "auc_low", "auc_high", "paired_accuracy", "paired_low", "paired_high"}
_AGREEMENT = {
    "spearman", "relative_l2", "noise_floor", "error_budget", "step_error", "step_limit", "layer",
}  # fmt: skip
_ENERGIES = {
    "u", "energy", "energy_low", "energy_high", "multiple", "multiple_low", "multiple_high",
    "largest_push", "reached", "monotone", "layer_pushed", "single_energy", "predicted_energy",
    "progress", "miss", "random_multiple",
}  # fmt: skip
_WRITTEN = {"log_odds", "perplexity", "kl", "repetition"}
# What is read of each stage; all that a page shows and nothing of the size of a model.
WANTED: dict[str, set[str]] = {
    "concept": _SEPARATION,
    "system": _SEPARATION | {"A", "B", "C", "D", "order", "resolution"},
    "gains": _AGREEMENT
    | {"pearson", "max_relative_error", "measured_gain", "linear_gain", "surrogate_gain"},
    "comparison": _AGREEMENT
    | _SEPARATION
    | {
        "relative_l2_operating", "relative_l2_gap", "error", "upper", "lower", "states", "norm",
        "resolution", "lower_is_certified",
    },
    "energies": _ENERGIES,
    "plan": {
        "u", "push", "linear_u", "linear_push", "energy", "target", "predicted", "held_out_shift",
        "kkt_residual", "steps", "saved",
    },
    "verified": _ENERGIES | {"predicted", "achieved", "spread"},
    "effect": _SEPARATION
    | {"response_mean", "predicted_mean", "readout_std", "push_mean", "push_max"},
    "texts": _WRITTEN
    | {"text", "prompt", "readout_shift", "readout_new_shift"}
    | {f"{name}_mean" for name in _WRITTEN},
    **{name: shown.variables | shown.marks | _SEPARATION for name, shown in SHOWN.items()},
}  # fmt: skip
# What only measures how wide the states are.
_WIDTHS = ("v", "direction")
# A stage by variables that only it has; the first that fits.
_MARKS: tuple[tuple[str, set[str]], ...] = (
    ("system", {"A", "B", "C"}),
    ("comparison", {"error_budget", "upper"}),
    ("gains", {"error_budget", "full_gain"}),
    ("verified", {"predicted_energy", "achieved"}),
    ("energies", {"predicted_energy", "multiple"}),
    ("effect", {"response_mean", "push_mean"}),
    ("plan", {"u", "push"}),
    ("texts", {"text"}),
    *((name, set(shown.marks)) for name, shown in SHOWN.items()),
    ("concept", {"auc"}),
)
_DEPTH = 3  # folders below that of a run in which its results are looked for
_PARTIAL = ".partial"  # of the folder in which a command keeps what it has begun
_NAME = ("prompt", "strength", "text")  # the columns of texts that `depthsys generate` writes


def read_results(path: Path) -> Results:
    """All results at a path, for `report.html.page`.

    Parameters
    ----------
    path
        The Zarr store of a study, also one that is still written; a folder in which commands left
        their results; or one ``.nc`` of them.

    Raises
    ------
    FileNotFoundError
        If there is nothing at the path.
    ValueError
        If it holds no results, is half written, or is the store of something else.
    """
    if not path.exists():
        raise FileNotFoundError(
            f"`path` must be a study.zarr, the folder of a run or a .nc of it; got {str(path)!r}, "
            "which is not there. Look for it."
        )
    if path.is_file():
        return _of_file(path)
    if (path / METADATA).is_file():
        return _of_study(path)
    return _of_folder(path)


# --------------------------------------------------------------------------- a study


def _of_study(path: Path) -> Results:
    nodes = read_tree(path, _wanted, _WIDTHS)
    about = nodes[""].attrs
    if "study_name" not in about:
        raise ValueError(
            f"`path` must be the store of a study; got {str(path)!r}, a Zarr store without "
            "`study_name`. Give what `depthsys study run` writes."
        )
    settings = str(about.get("study_toml", ""))
    cells, unknown = _cells(nodes, asked := set(_listed(about, "study_cells")))
    expected = set(_listed(about, "study_stages")) & STAGES.keys() or _stages(settings)
    expected = expected or {name for cell in cells for name in cell.stages}
    found = tuple(
        replace(cell, missing=_missing(cell, expected, complete="stages" in about))
        for cell in cells
        if not asked or _group(cell) in asked
    )
    if not any(cell.stages or cell.failed for cell in found):
        raise ValueError(
            f"`path` must hold a cell with a finished stage; got {str(path)!r}, which has none "
            "yet. Wait for the first one, or run the study."
        )
    notes = [f"{name}: not known to this version of depthsys" for name in sorted(unknown)]
    if left := len(cells) - len(found):
        notes.append(f"{counted(left, 'cell')} that the file of the study does not ask for")
    return Results(
        str(about["study_name"]), found, about, settings, "study", _placed(path), tuple(notes)
    )


def _placed(path: Path) -> str:
    """Where results are, by its own name: what lies beside them is told from there."""
    real = path.resolve()
    return str(real.parent / (path.name or real.name))


def _wanted(group: str) -> set[str]:
    parts = group.split("/")
    return WANTED.get(parts[4], set()) if len(parts) == 5 else set()


def _cells(nodes: Mapping[str, Node], asked: set[str]) -> tuple[list[CellResults], set[str]]:
    """The cells, those that were asked for and have nothing yet among them, and unknown stages."""
    stages: dict[tuple[str, ...], dict[str, Stage]] = {tuple(g.split("/")): {} for g in asked}
    said: dict[tuple[str, ...], Mapping[str, Any]] = {}
    unknown = set()
    for group, node in nodes.items():
        parts = tuple(group.split("/"))
        if len(parts) == 4:
            said[parts] = node.attrs
            if _said(node.attrs, FAILED):
                stages.setdefault(parts, {})
        elif len(parts) == 5 and parts[4] in WANTED:
            stages.setdefault(parts[:4], {})[parts[4]] = _stage(node)
        elif len(parts) == 5:
            unknown.add(parts[4])
    found = []
    for key in sorted(stages, key=_as_counted):
        model, task, seed, concept = key
        attrs = said.get(key, {})
        failed = _said(attrs, FAILED)
        inside = _current(_in_order(stages[key]), attrs)
        seed = seed.removeprefix("seed_")
        found.append(CellResults(model, task, seed, concept, inside, _told(failed)))
    return found, unknown


def _listed(about: Mapping[str, Any], name: str) -> list[str]:
    """A list of names among the attrs of a store; [] where there is none."""
    try:
        said = json.loads(str(about.get(name, "[]")))
    except ValueError:
        return []
    return [str(each) for each in said] if isinstance(said, list) else []


def _group(cell: CellResults) -> str:
    return f"{cell.model}/{cell.task}/seed_{cell.seed}/{cell.concept}"


def _said(attrs: Mapping[str, Any], name: str) -> dict[str, str]:
    """What the attrs of a cell say of its stages, in their order; {} where they do not."""
    try:
        said = json.loads(str(attrs.get(name, "{}")))
    except ValueError:
        return {}
    if not isinstance(said, dict):
        return {}
    return {stage: str(said[stage]) for stage in sorted(said, key=[*STAGES, *said].index)}


def _told(failures: Mapping[str, str]) -> dict[str, str]:
    """Failures as a cell tells them: the first stage, and the reasons of all."""
    if not failures:
        return {}
    (first, why), *others = failures.items()
    reasons = [why, *(f"{STAGES.get(name, name)}: {said}" for name, said in others)]
    return {"failed_stage": first, "failed_reason": "; ".join(reasons)}


def _current(stages: Mapping[str, Stage], node: Mapping[str, Any]) -> dict[str, Stage]:
    """Without stages that are out of date."""
    known = {name: stage.attrs for name, stage in stages.items() if name in MADE}
    there = current(known, _said(node, ASKED), _said(node, FAILED))
    return {name: stage for name, stage in stages.items() if name in there or name not in MADE}


def _as_counted(key: tuple[str, ...]) -> list[list[tuple[int, str]]]:
    """Seed 2 before seed 10."""
    return [
        [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
        for name in key
    ]


def _stage(node: Node) -> Stage:
    width = {"n_features": node.sizes["feature"]} if "feature" in node.sizes else {}
    return Stage(node.variables, {**node.attrs, **width})


def _in_order(stages: Mapping[str, Stage]) -> dict[str, Stage]:
    return {name: stages[name] for name in STAGES if name in stages}


def _stages(settings: str) -> set[str]:
    """The stages that study.toml asks for, where it says so."""
    try:
        said = tomllib.loads(settings).get("stages", [])
    except tomllib.TOMLDecodeError:
        return set()
    return {name for name in said if name in STAGES} if isinstance(said, list) else set()


def _missing(cell: CellResults, expected: set[str], *, complete: bool) -> tuple[str, ...]:
    if "failed_stage" in cell.attrs or complete:
        return ()
    return tuple(name for name in STAGES if name in expected - cell.stages.keys())


# --------------------------------------------------------------------------- a folder, a file


def _of_file(path: Path) -> Results:
    if path.suffix != ".nc":
        raise ValueError(
            f"`path` must be a study.zarr, the folder of a run or a .nc of it; got {str(path)!r}. "
            "Give one of these."
        )
    found = _read_file(path)
    if found is None:
        raise ValueError(
            f"`path` must hold a result of depthsys; got {str(path)!r}, which holds none of those "
            f"that a page shows ({', '.join(STAGES)}). Give another one."
        )
    cell = _cell(*found)
    return Results(
        f"{STAGES[found[0]]}: {cell.model or path.stem}", (cell,), {}, "", "file", _placed(path)
    )


def _of_folder(path: Path) -> Results:
    cells: list[CellResults] = []
    for file in _files(path, ".nc"):
        found = _read_file(file)
        if found is not None:
            rest = tuple(f"the rest of {command}" for command in _begun(file.parent))
            new = replace(_cell(*found), missing=rest)
            _put(cells, new, file.parent.relative_to(path).as_posix())
    notes = _with_written(cells, [t for file in _files(path, ".csv") if (t := _written(file))])
    if not cells and (begun := _begun(path)):
        raise ValueError(
            f"`path` must hold results of depthsys; found none yet in {str(path)!r}, where "
            f"{' and '.join(begun)} was interrupted or is at work. Call the same command again: it "
            "goes on there."
        )
    if not cells:
        raise ValueError(
            f"`path` must hold results of depthsys; found none in {str(path)!r}, {_DEPTH} folders "
            "deep. Give the folder after --out, or a study.zarr."
        )
    name = path.resolve().name
    return Results(name, tuple(cells), {}, "", "run", _placed(path), tuple(notes))


def _begun(folder: Path) -> tuple[str, ...]:
    """Commands that were interrupted there, or are still at work."""
    inside = {found: found.name for found in sorted(folder.glob(f"*{_PARTIAL}"))}
    whole = folder.resolve()
    beside = {whole.with_name(f"{whole.name}{_PARTIAL}"): f"compare{_PARTIAL}"}
    return tuple(
        f"depthsys {name.removesuffix(_PARTIAL)}"
        for found, name in (inside | beside).items()
        if Resumable.begun_in(found) is not None
    )


def _files(path: Path, kind: str) -> Iterator[Path]:
    """Files below a folder, those nearest to it first; links are none of it."""
    found = [file for file in path.rglob(f"*{kind}") if file.is_file() and not file.is_symlink()]
    inside = [(file.relative_to(path).parts, file) for file in found]
    kept = [(len(parts), parts, file) for parts, file in inside if len(parts) <= _DEPTH + 1]
    hidden = {file for _, parts, file in kept if any(part.startswith(".") for part in parts)}
    return (file for *_, file in sorted(kept) if file not in hidden)


def _read_file(path: Path) -> tuple[str, Stage] | None:
    """Which stage a file holds, and what a page shows of it; None for something else."""
    names = set(_WIDTHS).union(*WANTED.values(), *(marks for _, marks in _MARKS))
    with told_of(path, WHOLE):
        data = read_netcdf(existing_file(path), {"": names})[""].dataset
    here = set(map(str, data.variables))
    kind = next((kind for kind, marks in _MARKS if marks <= here), None)
    if kind is None or ("prompt" in data.sizes and kind == "system"):
        return None
    width = {"n_features": data.sizes["feature"]} if "feature" in data.sizes else {}
    kept = [name for name in data.data_vars if name in WANTED[kind]]
    return kind, Stage.of(data[kept].assign_attrs({**data.attrs, **width}))


def _cell(kind: str, data: Stage) -> CellResults:
    attrs = data.attrs
    model, texts = str(attrs.get("model", "")), str(attrs.get("texts", ""))
    name = Path(model).name if Path(model).is_absolute() else model
    concept = str(attrs.get("concept", attrs.get("system_concept", "")))
    seed = str(attrs.get("seed", ""))
    return CellResults(name, Path(texts).stem, seed, concept, {kind: data})


_SAME = ("model_fingerprint", "texts", "split", "n_lines", "seed")


def _put(cells: list[CellResults], new: CellResults, where: str) -> None:
    """Add a stage to the cell that it is of, or a cell."""
    ((kind, data),) = new.stages.items()
    for place, cell in enumerate(cells):
        other = next(iter(cell.stages.values())).attrs
        same = all(other.get(name) == data.attrs.get(name) for name in _SAME)
        if same and kind not in cell.stages:
            stages = _in_order({**cell.stages, kind: data})
            missing = tuple(dict.fromkeys([*cell.missing, *new.missing]))
            concept = cell.concept or new.concept
            cells[place] = replace(cell, stages=stages, concept=concept, missing=missing)
            return
    if (new.model, new.task, new.seed) in {(c.model, c.task, c.seed) for c in cells}:
        new = replace(new, task=f"{new.task} ({where})")
    cells.append(new)


def _written(path: Path) -> Stage | None:
    """Texts that `depthsys generate` wrote; None for another table."""
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        rows = csv.reader(file)
        if next(rows, None) != list(_NAME):
            return None
        found = {(row[0], float(row[1])): row[2] for row in rows if len(row) == 3}
    prompts = list(dict.fromkeys(prompt for prompt, _ in found))
    strengths = sorted({strength for _, strength in found})
    texts = [[found.get((prompt, s), "") for s in strengths] for prompt in prompts]
    return Stage(
        {
            "text": (("prompt", "strength"), np.array(texts, dtype=object)),
            "prompt": (("prompt",), np.array(prompts, dtype=object)),
            "strength": (("strength",), np.array(strengths)),
        }
    )


def _with_written(cells: list[CellResults], tables: list[Stage]) -> list[str]:
    """Put texts to the plan that they were written under, as far as one can tell."""
    planned = [place for place, cell in enumerate(cells) if "plan" in cell.stages]
    if len(planned) == 1 and len(tables) == 1:
        cell = cells[planned[0]]
        cells[planned[0]] = replace(cell, stages=_in_order({**cell.stages, "texts": tables[0]}))
        return []
    if not tables:
        return []
    many = counted(len(tables), "table")
    return [f"{many} of written texts: not known under which of {counted(len(planned), 'plan')}"]
