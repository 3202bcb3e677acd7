"""Compare the reduction methods on many models and tasks; write the tables of docs/reduction.md.

    python examples/reduction_study.py --data ../shared/data --out out/reduction --jobs 2 --update

DATA has weights/ and tasks/*.csv (texts and models that are not redistributed). Each pair of model
and task is `lm.compare` with the full 400/200/200 splits, in its own file under OUT; finished pairs
are kept, so an interrupted study goes on where it stopped. With --update everything that the page
shows is written anew: docs/reduction.nc, docs/figures/reduction_*.png and the tables between the
page's markers. Without DATA only the demo family is run, on its synthetic tasks.
"""

import argparse
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import xarray as xr
from scipy.stats import rankdata

ROOT = Path(__file__).parents[1]
DEMOS = ("demo_48x4", "demo_96x8", "demo_128x12")
SHARED = ("stories260K", "gpt280K_tinystories", "gpt2_6x128")
TASKS = ("sst2", "imdb", "amazon_polarity", "tweet_hate", "tweet_offensive", "cola")
SYNTHETIC = ("synthetic sentiment", "synthetic domain")
ORDERS = (1, 2, 4, 8, 16, 32)
ABLATION = ("sst2", "synthetic sentiment")  # tasks on which other concept directions are tried
DIRECTIONS = ("mean_difference", "whitened", "logistic", "pca")
TABLES = ("krylov", "arnoldi", "random", "pod", "adjoint", "two_sided", "balanced", "ensemble")
ALL = {"layers": "all", "injection": "absolute"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder with weights/ and tasks/")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "reduction")
    parser.add_argument("--jobs", type=int, default=1, help="pairs at a time, one thread each")
    parser.add_argument("--each", type=int, default=16, help="prompts with a system of their own")
    parser.add_argument("--split", default="400/200/200", help="texts per class")
    parser.add_argument("--only", default="", help="regular expression on 'model-task'")
    parser.add_argument("--update", action="store_true", help="rewrite the page and its figures")
    parser.add_argument("--pair", nargs=2, metavar=("MODEL", "TASK"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.update and (options.only or options.data is None):
        raise SystemExit("--update writes the page from the whole study: give --data, not --only")
    options.out.mkdir(parents=True, exist_ok=True)
    if options.pair:
        run_pair(*options.pair, options)
        return
    pairs = [(m, t) for m, t in planned(options.data) if re.search(options.only, f"{m}-{t}")]
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(lambda pair: in_a_process(pair, options), pairs))
    study = collected([file_of(*pair, options.out) for pair in pairs])
    study.to_netcdf(options.out / "study.nc", engine="h5netcdf")
    for name, text in tables(study).items():
        print(f"## {name}\n\n{text}\n")
    if options.update:
        update(study, options.out)


# ----------------------------------------------------------------------------- the runs


def planned(data: Path | None) -> list[tuple[str, str]]:
    pairs = [(model, task) for model in DEMOS for task in SYNTHETIC]
    if data is not None:
        pairs += [(model, task) for task in TASKS for model in SHARED]
    return pairs


def file_of(model: str, task: str, out: Path) -> Path:
    return out / f"{model}-{task.replace(' ', '_')}.nc"


def in_a_process(pair: tuple[str, str], options) -> None:
    path = file_of(*pair, options.out)
    if path.exists():
        check_settings(path, options)
        return
    command = [sys.executable, __file__, "--pair", *pair, "--out", str(options.out)]
    command += ["--each", str(options.each), "--split", options.split]
    if options.data is not None:
        command += ["--data", str(options.data)]
    print("...", *pair, flush=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, env=environment)


def check_settings(path: Path, options) -> None:
    """A finished pair counts only if it was made with these settings."""
    with xr.open_dataset(path, engine="h5netcdf") as table:
        made = table.attrs["split"], table.sizes["prompt_each"]
    if made != (options.split, options.each):
        raise SystemExit(
            f"{path} was made with --split {made[0]} --each {made[1]}, not {options.split} "
            f"{options.each}. Delete it or choose another --out."
        )


def run_pair(model_name: str, task: str, options) -> None:
    from depthsys import demo, lm
    from depthsys.demo import grammar

    if task in SYNTHETIC:
        source = grammar.labelled(1000, concept=task.split()[1], seed=2603)
    else:
        source = options.data / "tasks" / f"{task}.csv"
    concept_size, operating, held_out = map(int, options.split.split("/"))
    texts = lm.read_texts(source).split(
        concept=concept_size, operating=operating, held_out=held_out, seed=0
    )
    folder = (
        demo.model_path(model_name)
        if model_name in DEMOS
        else options.data / "weights" / model_name
    )
    model = lm.DepthModel.load(folder, device="cpu", left_padding=True)
    concept = lm.mean_difference(model, texts.concept, held_out=texts.held_out)
    orders = [r for r in ORDERS if r <= model.n_features]
    table = lm.compare(model, texts, orders=orders, concept=concept, n_each=options.each)
    table = table.assign(terminal_readout(lm, model, texts, concept, table))
    if task in ABLATION:
        table = table.assign(directions(lm, model, texts, orders))
    table.attrs |= {"model": model_name, "task": task, "split": texts.sizes}
    # the last thing written, under its own name only when it is whole
    target = file_of(model_name, task, options.out)
    table.to_netcdf(target.with_suffix(".part"), engine="h5netcdf")
    target.with_suffix(".part").replace(target)


def terminal_readout(lm, model, texts, concept, table: xr.Dataset) -> dict[str, xr.DataArray]:
    """Ensemble of order 1 where only the last depth is read, and its use on single prompts."""
    system = lm.identify(model, texts.operating, concept, lm.Ensemble(order=1))
    measured = table[["measured_gain"]].rename(measured_gain="gain")
    operating = table[["measured_gain_operating", "linear_gain_operating"]].rename(
        measured_gain_operating="gain", prompt_operating="prompt"
    )
    linear = operating[["linear_gain_operating"]].rename(linear_gain_operating="gain")
    linear.attrs = dict(system.attrs)
    expected = lm.expected_error(system, linear)["expected"]
    fixed = lm.corrected(system, model, texts.held_out, concept)
    return {
        "terminal_relative_l2": lm.agreement(system, measured)["relative_l2"],
        "terminal_relative_l2_operating": lm.agreement(system, operating[["gain"]])["relative_l2"],
        "reuse_expected": expected,
        "reuse_found": fixed["error_before"].quantile(expected["quantile"].values, dim="prompt"),
    }


def directions(lm, model, texts, orders) -> dict[str, xr.DataArray]:
    """Ablation of the concept direction: the same comparison with other directions."""
    rows = []
    wanted = [r for r in (4, 32) if r in orders]
    for name in DIRECTIONS:
        concept = getattr(lm, name)(model, texts.concept, held_out=texts.held_out)
        rows.append(
            lm.compare(
                model, texts, ["ensemble", "krylov", "arnoldi", "random"], wanted,
                concept=concept, n_each=0, ablate_eps=False,
            )[["relative_l2", "spearman", "auc", "auc_low", "auc_high"]]
        )  # fmt: skip
    table = xr.concat(rows, dim=xr.Variable("direction", list(DIRECTIONS)))
    table = table.rename(basis="basis_direction", order="order_direction")
    return {f"direction_{name}": table[name] for name in table.data_vars}


# ---------------------------------------------------------------------------- collecting


GONE = ("layer", "depth", "step", "prompt", "prompt_operating", "prompt_each")
KEPT_ATTRS = ("n_parameters", "n_layers", "n_features", "n_held_out", "n_operating")


def collected(files: list[Path]) -> xr.Dataset:
    """All pairs along the dim ``pair``, without the curves of single layers and prompts.

    The ablation of the direction, made on some tasks only, has a dim ``pair_direction`` of its own.
    """
    rows, ablations = [], []
    for path in files:
        table = xr.load_dataset(path, engine="h5netcdf")
        tried = [name for name in table.data_vars if str(name).startswith("direction_")]
        if tried:
            ablation = table[tried].drop_dims("depth")
            last = {n: table[n].isel(depth=-1, drop=True) for n in tried if "auc" in str(n)}
            ablations.append(labelled(ablation.assign(last), table, "_direction"))
        rows.append(labelled(summary(table.drop_vars(tried)), table))
    options = {"join": "outer", "data_vars": "all", "coords": "minimal", "compat": "override"}
    study = xr.concat(rows, dim="pair", combine_attrs="drop_conflicts", **options)
    study.attrs = {k: v for k, v in study.attrs.items() if not k.startswith("note_")}
    if ablations:
        study = study.merge(xr.concat(ablations, dim="pair_direction", **options), join="outer")
    return study


def labelled(row: xr.Dataset, table: xr.Dataset, suffix: str = "") -> xr.Dataset:
    """The row with the names of its model and task along the dim ``pair``."""
    dim = f"pair{suffix}"
    names = {f"{k}{suffix}": (dim, [table.attrs[k]]) for k in ("model", "task")}
    if not suffix:
        names |= {k: (dim, [table.attrs[k]]) for k in KEPT_ATTRS}
    return row.reset_coords(drop=True).expand_dims(dim).assign_coords(names)


def summary(table: xr.Dataset) -> xr.Dataset:
    """What has no dim layer, depth, step or prompt, and what is made of those."""
    medians = {
        f"{name}_median": table[name].median("prompt_each")
        for name in ("prompt_relative_l2", "prompt_error_ratio")
        if name in table
    }
    auc = {name: table[name].isel(depth=-1, drop=True) for name in ("auc", "auc_low", "auc_high")}
    # a search that overflow ended early has fewer steps
    chosen = table["step_error"].reindex(step=[0.01, 0.1, 0.5]).sel(bound="estimate")
    eps = {"nonlinearity_at": chosen.rename(step="eps").reset_coords(drop=True)}
    bare = table.drop_dims([d for d in GONE if d in table.dims])
    return bare.assign(medians | auc | eps | mean_curves(table) | gaps(table))


def gaps(table: xr.Dataset) -> dict[str, xr.DataArray]:
    """Paired differences of the errors at order 32 to that of ensemble balancing of order 4."""
    from depthsys import lm

    measured = table[["measured_gain"]].rename(measured_gain="gain")
    mine = table.surrogate_gain.sel(basis="ensemble", order=4, drop=True)
    rows = [
        lm.error_gap(table.surrogate_gain.sel(basis=name, order=32, drop=True), mine, measured)
        for name in table.basis.values
    ]
    gap = xr.concat(rows, dim=table["basis"], coords="minimal", compat="override")
    return {"gap_to_ensemble_4": gap}


def mean_curves(table: xr.Dataset) -> dict[str, xr.DataArray]:
    """Agreement of the full-order curves: the product of mean Jacobians, the mean exact gains."""
    from depthsys import lm

    measured = table[["measured_gain"]].rename(measured_gain="gain")
    measured.attrs = {"relative": 0}
    curves = {
        "product of mean Jacobians": table["mean_system_gain"],
        "mean exact gains, operating": table["linear_gain_operating"].mean("prompt_operating"),
        "mean exact gains, held out": table["linear_gain"].mean("prompt"),
    }
    fits = [lm.agreement(curve, measured) for curve in curves.values()]
    whole = xr.concat(fits, dim=xr.Variable("curve", list(curves)))
    found = {f"curve_{n}": whole[n] for n in ("relative_l2", "spearman", "pearson")}
    operating = table[["measured_gain_operating"]].rename(
        measured_gain_operating="gain", prompt_operating="prompt"
    )
    exact = table["linear_gain_operating"].mean("prompt_operating")
    return found | {"curve_operating": lm.agreement(exact, operating)["relative_l2"]}


# ------------------------------------------------------------------------------- tables


def tables(study: xr.Dataset) -> dict[str, str]:
    return {
        "intro": intro(study),
        "findings": findings(study),
        "agreement": agreement_table(study),
        "methods": methods_table(study),
        "certificates": certificates_table(study),
        "criteria": criteria_table(study),
        "eps": eps_table(study),
        "directions": directions_table(study),
        "reuse": reuse_table(study),
        "cost": cost_table(study),
        "prompts": prompts_table(study),
        "full": full_table(study),
    }


def markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def name_of(row: xr.Dataset) -> list[str]:
    return [f"{row.model.item()} ({row.n_layers.item()} x {row.n_features.item()})",
            str(row.task.item())]  # fmt: skip


def percent(array) -> str:
    values = 100 * np.atleast_1d(np.asarray(array, dtype=float))
    if not np.isfinite(values[0]):
        return "-"
    text = "< 0.01 %" if abs(values[0]) < 0.01 else f"{values[0]:.2g} %"
    if values[0] >= 99.5:
        text = f"{values[0]:.0f} %"
    return text + (f" [{values[1]:.2g}, {values[2]:.2g}]" if len(values) == 3 else "")


def number(array) -> str:
    values = np.atleast_1d(np.asarray(array, dtype=float))
    if not np.isfinite(values[0]):
        return "-"
    return f"{values[0]:.2f}" + (f" [{values[1]:.2f}, {values[2]:.2f}]" if len(values) == 3 else "")


def pairs_of(study: xr.Dataset):
    return [study.isel(pair=i) for i in range(study.sizes["pair"])]


def forms(row: xr.Dataset, metric: str, layers: str = "all") -> dict[str, xr.DataArray]:
    """The forms that are set against model size, each (bound)."""
    surrogate = row[metric].sel(injection="absolute", layers=layers)
    curve = row[f"curve_{metric}"].sel(layers=layers)
    return {
        "paper: krylov 32": surrogate.sel(basis="krylov", order=32),
        "paper: arnoldi 32": surrogate.sel(basis="arnoldi", order=32),
        "product of mean Jacobians": curve.sel(curve="product of mean Jacobians"),
        "ensemble 4": surrogate.sel(basis="ensemble", order=4),
        "mean exact gains": curve.sel(curve="mean exact gains, held out"),
    }


def agreement_table(study: xr.Dataset) -> str:
    rows = []
    for row in pairs_of(study):
        spearman, error = forms(row, "spearman"), forms(row, "relative_l2")
        cells = [number([row.auc.item(), row.auc_low.item(), row.auc_high.item()])]
        for form in ("paper: arnoldi 32", "product of mean Jacobians", "ensemble 4"):
            cells += [number(spearman[form]), percent(error[form])]
        cells += [percent(error["mean exact gains"]), percent(row.noise_floor.sel(**ALL))]
        rows.append(name_of(row) + cells)
    header = ["model (L x H)", "texts", "AUC"]
    for form in ("Arnoldi 32", "product of mean Jacobians", "ensemble 4"):
        header += [f"{form}: Spearman", "relative L2"]
    return markdown([*header, "nonlinearity", "noise floor"], rows)


def methods_table(study: xr.Dataset) -> str:
    """Relative L2 of every method against the measured gains, median over pairs and worst pair."""
    rows = []
    for name in TABLES:
        cells = []
        for order in ORDERS:
            error = study.relative_l2.sel(basis=name, order=order, bound="estimate", **ALL)
            worst = int(error.argmax("pair"))
            cells.append(f"{percent(error.median())} (worst {percent(error.isel(pair=worst))})")
        rows.append([name, *cells])
    return markdown(["method", *(f"order {r}" for r in ORDERS)], rows)


def prompts_table(study: xr.Dataset) -> str:
    """One system per prompt: median over prompts of each pair, then median and worst pair."""
    rows = []
    error = study.prompt_relative_l2_median
    for name in TABLES:
        cells = []
        for order in ORDERS:
            values = error.sel(basis_each=name, order=order)
            cells.append(f"{percent(values.median())} (worst {percent(values.max())})")
        rows.append([name, *cells])
    return markdown(["method", *(f"order {r}" for r in ORDERS)], rows)


def full_table(study: xr.Dataset) -> str:
    """Model x task x method x order: relative L2 with its interval."""
    rows = []
    for row in pairs_of(study):
        for name in TABLES:
            error = row.relative_l2.sel(basis=name, **ALL)
            rows.append([*name_of(row), name, *(percent(error.sel(order=r)) for r in ORDERS)])
    return markdown(["model (L x H)", "texts", "method", *(f"order {r}" for r in ORDERS)], rows)


def certificates_table(study: xr.Dataset) -> str:
    """Exact error over norm, against the reference that a method reduces."""
    rows = []
    for name in TABLES:
        reference = "mean_response" if name == "ensemble" else "mean_system"
        part = study.sel(reference=reference)
        cells = []
        for order in (1, 2, 4, 8):
            error = (part.error / part.norm).sel(basis=name, order=order)
            ratio = part.ratio.sel(basis=name, order=order)
            text = percent(error.median())
            if bool(ratio.notnull().any()):
                text += f" (x {float(ratio.median()):.3g})"
            cells.append(text)
        rows.append([name, reference.replace("_", " "), *cells])
    return markdown(["method", "reference", *(f"order {r}" for r in (1, 2, 4, 8))], rows)


def criteria(study: xr.Dataset) -> xr.Dataset:
    """What ensemble balancing is asked for, beside the paper's form, per pair.

    ``operating``: error against the gains measured on the operating prompts themselves;
    ``allowed``: 2 % plus the nonlinearity of those prompts. ``held_out``: the same errors on
    held-out prompts.
    """
    chosen = {"layers": "all", "bound": "estimate"}
    own = study.relative_l2_operating.sel(**chosen)
    terminal = study.terminal_relative_l2_operating.sel(**chosen)
    total = study.relative_l2.sel(bound="estimate", **ALL)
    paper = {"basis": ["krylov", "arnoldi"], "order": 32}
    parts = {
        "operating_1": terminal,
        "operating_4": own.sel(basis="ensemble", order=4),
        "operating_paper": own.sel(**paper).min("basis"),
        "nonlinearity": study.curve_operating.sel(layers="all", bound="estimate"),
        "held_out_4": total.sel(basis="ensemble", order=4),
        "held_out_paper": total.sel(**paper).min("basis"),
        "averaging": study.error_budget.sel(basis="krylov", order=4, part="averaging", **chosen),
        "noise_floor": study.noise_floor.sel(**ALL),
        "held_out_nonlinearity": study.curve_relative_l2.sel(
            curve="mean exact gains, held out", **chosen
        ),
    }
    found = xr.Dataset({name: part.reset_coords(drop=True) for name, part in parts.items()})
    return found.assign(allowed=0.02 + found.nonlinearity)


def criteria_table(study: xr.Dataset) -> str:
    c = criteria(study)
    columns = {
        "nonlinearity": "nonlinearity",
        "averaging": "averaging",
        "operating_1": "ensemble 1 (concept readout)",
        "operating_4": "ensemble 4 (profile)",
        "operating_paper": "better of Krylov, Arnoldi 32",
        "held_out_4": "held out: ensemble 4",
        "held_out_paper": "held out: better of Krylov, Arnoldi 32",
        "noise_floor": "noise floor",
    }
    rows = []
    for i, row in enumerate(pairs_of(study)):
        rows.append([*name_of(row), *(percent(c[name].isel(pair=i)) for name in columns)])
    return markdown(["model (L x H)", "texts", *columns.values()], rows)


def eps_table(study: xr.Dataset) -> str:
    rows = []
    for row in pairs_of(study):
        at = row.nonlinearity_at
        cells = [percent(at.sel(eps=e, layers="all")) for e in (0.01, 0.1, 0.5)]
        limits = [float(row.step_limit.sel(layers=s)) for s in ("all", "without_layer_0")]
        cells += ["not passed" if np.isnan(x) else f"{x:.2g}" for x in limits]
        rows.append(name_of(row) + cells)
    header = ["model (L x H)", "texts", "error at eps 0.01", "at 0.1", "at 0.5",
              "eps where it passes 5 %", "without layer 0"]  # fmt: skip
    return markdown(header, rows)


def directions_table(study: xr.Dataset) -> str:
    rows = []
    for i in range(study.sizes.get("pair_direction", 0)):
        for name in DIRECTIONS:
            part = study.isel(pair_direction=i).sel(direction=name)
            error = part.direction_relative_l2.sel(**ALL)
            auc = [part[f"direction_auc{s}"].item() for s in ("", "_low", "_high")]
            cells = [
                percent(error.sel(basis_direction=basis, order_direction=order))
                for basis, order in (
                    ("ensemble", 4),
                    ("krylov", 4),
                    ("arnoldi", 32),
                    ("random", 32),
                )
            ]
            names = [part.model_direction.item(), part.task_direction.item(), name]
            rows.append([*names, number(auc), *cells])
    header = ["model", "texts", "direction", "AUC", "ensemble 4", "Krylov 4", "Arnoldi 32"]
    return markdown([*header, "random 32"], rows)


def reuse_table(study: xr.Dataset) -> str:
    rows = []
    for row in pairs_of(study):
        cells = []
        for q in (0.5, 0.9):
            cells += [percent(row[n].sel(quantile=q)) for n in ("reuse_expected", "reuse_found")]
        rows.append(name_of(row) + cells)
    header = ["model (L x H)", "texts", "median expected", "median found", "0.9 quantile expected",
              "0.9 quantile found"]  # fmt: skip
    return markdown(header, rows)


def cost_table(study: xr.Dataset) -> str:
    rows = []
    for name in TABLES:
        part = study.sel(basis=name)
        seconds = part.seconds.sel(order=32) / study.seconds.sel(basis="krylov", order=32)
        stored = part.bytes.sel(order=[4, 32]).median("pair")
        rows.append(
            [
                name,
                f"{float(seconds.median()):.2g} ({float(seconds.min()):.2g} to "
                f"{float(seconds.max()):.2g})",
                *(f"{float(b) / 1024:.0f}" for b in stored),
            ]
        )
    header = ["method", "seconds, Krylov = 1: median (range)", "KiB stored, order 4", "order 32"]
    return markdown(header, rows)


def intro(study: xr.Dataset) -> str:
    """What was run, from what is there."""
    models, tasks = (list(dict.fromkeys(study[k].values.tolist())) for k in ("model", "task"))
    sizes = (
        sorted(set(study.n_operating.values.tolist())),
        sorted(set(study.n_held_out.values.tolist())),
    )
    return (
        f"{study.sizes['pair']} pairs of {len(models)} models ({', '.join(models)}) and "
        f"{len(tasks)} tasks ({', '.join(tasks)}), split {study.attrs['split']} per class "
        f"({sizes[0][0]} operating, {sizes[1][0]} held-out prompts), seed 0, eps "
        f"{study.attrs['eps']:g}, float32, texts cut at 128 tokens. The models have "
        f"{int(study.n_parameters.min()):,} to {int(study.n_parameters.max()):,} parameters and up "
        f"to {int(study.n_layers.max())} layers: GPT-2 and larger models were not measured, "
        f"because their weights are not at hand."
    )


def size_effects(study: xr.Dataset) -> list[str]:
    """Whether the error falls with the size of the model, per form."""
    size = study.n_parameters.values
    rows = [forms(row, "relative_l2") for row in pairs_of(study)]
    draws = np.random.default_rng(0).integers(len(rows), size=(1000, len(rows)))
    texts = []
    for form in rows[0]:
        error = np.array([float(row[form].sel(bound="estimate")) for row in rows])
        with np.errstate(invalid="ignore"):
            samples = [np.corrcoef(rankdata(size[d]), rankdata(error[d]))[0, 1] for d in draws]
        estimate = np.corrcoef(rankdata(size), rankdata(error))[0, 1]
        texts.append(f"{form} {number([estimate, *np.nanquantile(samples, [0.025, 0.975])])}")
    return texts


def findings(study: xr.Dataset) -> str:
    """Counts over the pairs, with the pairs that are worst."""
    n = study.sizes["pair"]
    c = criteria(study)
    names = [f"{m} on {t}" for m, t in zip(study.model.values, study.task.values, strict=True)]

    def worst(array: xr.DataArray, count: int = 3) -> str:
        order = np.argsort(-array.fillna(-1).values)[:count]
        return ", ".join(f"{names[i]} ({percent(array.values[i])})" for i in order)

    def losers(good: xr.DataArray) -> str:
        return ", ".join(names[i] for i in np.flatnonzero(~good.values)) or "none"

    budget = study.error_budget.sel(layers="all", bound="estimate")
    averaging = budget.sel(basis="krylov", order=4, part="averaging")
    total = study.relative_l2.sel(**ALL)
    arnoldi = total.sel(basis="arnoldi", bound="estimate").sel(order=32)
    product = study.curve_relative_l2.sel(
        curve="product of mean Jacobians", layers="all", bound="estimate")  # fmt: skip
    first, fourth = ((c[name] < c.allowed) for name in ("operating_1", "operating_4"))
    no_loss = c.operating_4 <= c.operating_paper
    not_worse = c.held_out_4 <= c.held_out_paper
    gap = study.gap_to_ensemble_4.sel(basis=["krylov", "arnoldi"], layers="all")
    worse = (gap.sel(bound="low") > 0).all("basis")
    better = (gap.sel(bound="high") < 0).any("basis")
    rows = [forms(row, "relative_l2", "without_layer_0") for row in pairs_of(study)]
    bare = {
        form: xr.concat(
            [r[form].sel(bound="estimate").reset_coords(drop=True) for r in rows], "pair"
        )
        for form in rows[0]
    }
    bare_gap = study.gap_to_ensemble_4.sel(basis=["krylov", "arnoldi"], layers="without_layer_0")
    bare_better = (bare_gap.sel(bound="high") < 0).any("basis")
    mean, response = (study.sel(reference=r) for r in ("mean_system", "mean_response"))
    checked = violations = 0
    for part, basis in ((mean, "balanced"), (response, "ensemble")):
        slack = part.resolution
        every = part.error.sel(basis=[b for b in part.basis.values])
        checked += int(every.notnull().sum())
        violations += int((every < part.lower - slack).sum())
        own = part.sel(basis=basis)
        violations += int((own.error > own.upper + slack).sum())
        checked += int(own.upper.notnull().sum())
    lines = [
        f"{n} pairs of model and task.",
        f"Averaging alone (the product of the mean Jacobians for the mean of the products) costs "
        f"{percent(averaging.median())} of the gains in the median pair; worst: "
        f"{worst(averaging)}. No order mends it.",
        f"The product of mean Jacobians at full order misses the measured gains by "
        f"{percent(product.median())} in the median pair, Arnoldi of order 32 by "
        f"{percent(arnoldi.median())}, ensemble balancing of order 4 by "
        f"{percent(c.held_out_4.median())} (noise floor {percent(c.noise_floor.median())}). Worst "
        f"for ensemble: {worst(c.held_out_4)}.",
        f"Against the gains measured on the operating prompts, ensemble of order 1 (concept "
        f"readout) is within 2 % plus the nonlinearity of those prompts in {int(first.sum())} of "
        f"{n} pairs, of order 4 (profile) in {int(fourth.sum())}; ensemble 4 is not worse "
        f"than the better of Krylov and Arnoldi of order 32 in {int(no_loss.sum())}. Where it is "
        f"worse: {losers(no_loss)}.",
        f"On held-out prompts ensemble 4 is not worse than the better of the two in "
        f"{int(not_worse.sum())} of {n} pairs. By paired intervals over prompts it beats both "
        f"clearly in {int(worse.sum())}, and one of them beats it clearly in {int(better.sum())}: "
        f"{losers(~better)}.",
        f"On the operating prompts, where sampling plays no part, the better of Krylov and Arnoldi "
        f"of order 32 misses by {percent(c.operating_paper.median())} in the median pair (worst: "
        f"{worst(c.operating_paper)}); the nonlinearity of the model, the least that any linear "
        f"surrogate can miss, is {percent(c.nonlinearity.median())}.",
        f"Rank correlation over the pairs between the number of parameters and the relative L2 "
        f"error, with bootstrap intervals over pairs: {', '.join(size_effects(study))}.",
        f"Without layer 0: the product of mean Jacobians misses by "
        f"{percent(bare['product of mean Jacobians'].median())} in the median pair, Arnoldi of "
        f"order 32 by {percent(bare['paper: arnoldi 32'].median())}, ensemble of order 4 by "
        f"{percent(bare['ensemble 4'].median())}. By paired intervals ensemble 4 beats both Krylov "
        f"and Arnoldi clearly in {int((bare_gap.sel(bound='low') > 0).all('basis').sum())} pairs; "
        f"one of them beats it clearly in {int(bare_better.sum())}: {losers(~bare_better)}.",
        f"Certificates: in {checked} comparisons of an exact error with a bound, {violations} "
        f"violate it by more than rounding.",
    ]
    return "\n".join(f"* {line}" for line in lines)


# ------------------------------------------------------------------------------- the page


def update(study: xr.Dataset, out: Path) -> None:
    """Write the numbers, then the page and its figures from the numbers as they are stored."""
    path = ROOT / "docs" / "reduction.nc"
    names = [name for name in study.data_vars if study[name].dtype.kind == "f"]
    compact = {name: {"zlib": True, "dtype": "float32"} for name in names}
    study.to_netcdf(path, engine="h5netcdf", encoding=compact)
    page = ROOT / "docs" / "reduction.md"
    text = page.read_text(encoding="utf-8")
    for name, table in tables(xr.load_dataset(path, engine="h5netcdf")).items():
        begin, end = markers(name)
        head, rest = text.split(begin)
        text = f"{head}{begin}\n{table}\n{end}{rest.split(end)[1]}"
    page.write_text(text, encoding="utf-8")
    draw(study, out, ROOT / "docs" / "figures")


def markers(name: str) -> tuple[str, str]:
    """What stands before and after a table of the page."""
    return f"<!-- {name}: examples/reduction_study.py -->", f"<!-- end of {name} -->"


def draw(study: xr.Dataset, out: Path, figures: Path) -> None:
    from depthsys import plot

    values = []
    for row in pairs_of(study):
        values.append(
            xr.concat(
                [xr.concat(list(forms(row, m).values()), dim="form", coords="minimal",
                           compat="override") for m in ("spearman", "relative_l2")],
                dim=xr.Variable("metric", ["spearman", "relative_l2"]),
            ).reset_coords(drop=True)
        )  # fmt: skip
    names = list(forms(study.isel(pair=0), "spearman"))
    rows = xr.Dataset({"value": xr.concat(values, dim="pair").assign_coords(form=names)})
    rows = rows.assign_coords({c: study[c] for c in ("model", "task", "n_features", "n_layers",
                                                     "n_parameters")})  # fmt: skip
    fig, axes = plot.figure(9, 7.5, rows=2)
    plot.agreement_by_size(axes, rows)
    plot.save(fig, figures / "reduction_size.png", "png")
    for model, task in (("gpt2_6x128", "sst2"), ("demo_128x12", "synthetic sentiment")):
        path = file_of(model, task, out)
        if not path.exists():
            continue
        table = xr.load_dataset(path, engine="h5netcdf")
        fig, (left, right) = plot.figure(12, 4.5, columns=2)
        plot.agreement_by_order(left, table)
        plot.certified_errors(right, table, reference="mean_response")
        left.set_title(f"{model}, {task}")
        right.set_title("against the mean exact response")
        plot.save(fig, figures / f"reduction_{model}.png", "png")
        fig, axes = plot.figure(12, 4.5, columns=2)
        plot.budget_bars(axes[0], table, order=4)
        plot.linear_range(axes[1], table)
        plot.save(fig, figures / f"reduction_budget_{model}.png", "png")


if __name__ == "__main__":
    main()
