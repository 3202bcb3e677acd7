"""Run the main job on several models and tasks, and write the README's tables.

    python examples/readme_table.py --data ../shared/data --out out/table --update

Each model and task is one `depthsys gains` and one `depthsys control` with the full 400/200/200
split; finished ones are kept, so an interrupted run goes on where it stopped. The numbers go to
docs/main_job.json and from there, as they are, into the README between its markers.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import xarray as xr

ROOT = Path(__file__).parents[1]
MODELS = ("gpt2_6x128", "stories260K", "gpt280K_tinystories")
TASKS = ("sst2", "rotten_tomatoes")
DEMOS = ("demo_48x4", "demo_96x8", "demo_128x12")
SHIFTS = (0.1, 1.0)  # in standard deviations of the readout
BASELINES = ("uniform", "first_layer", "last_layer", "best_single_layer", "random_single_layer")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder with weights/ and tasks/ (real models)")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "table")
    parser.add_argument("--update", action="store_true", help="rewrite docs/main_job.json, README")
    options = parser.parse_args()
    rows = [demo_row(name, options.out / name) for name in DEMOS]
    if options.data is not None:
        for model in MODELS:
            for task in TASKS:
                source = (options.data / "weights" / model, options.data / "tasks" / f"{task}.csv")
                rows.append(row(model, task, source, options.out / f"{model}-{task}"))
    print(render(rows))
    if options.update:
        text = json.dumps(rows, indent=1)
        (ROOT / "docs" / "main_job.json").write_text(text + "\n", encoding="utf-8")
        update_readme(render(rows))


def demo_row(name: str, folder: Path) -> dict:
    if not (folder / "demo.txt").exists():
        depthsys("demo", "--model", name, "--out", folder, "--force")
    return collect(name, "synthetic sentiment", folder)


def row(model: str, task: str, source: tuple[Path, Path], folder: Path) -> dict:
    if not (folder / "gains.txt").exists():
        depthsys("gains", *source, "--out", folder, "--force")
    return collect(model, task, folder)


def energies_at(shift: float, folder: Path) -> xr.Dataset:
    system = xr.load_dataset(folder / "system.nc", engine="h5netcdf")
    out = folder / f"shift_{shift:g}"
    if not (out / "control.txt").exists():
        target = shift * float(system["y_std"])
        depthsys("control", folder / "system.nc", "--target", repr(target), "--out", out, "--force")
    return xr.load_dataset(out / "schedule.nc", engine="h5netcdf")


def depthsys(*arguments) -> None:
    command = [sys.executable, "-m", "depthsys.cli", *map(str, arguments)]
    print("$ depthsys", *command[3:], flush=True)
    subprocess.run(command, check=True)


def collect(model: str, task: str, folder: Path) -> dict:
    """The numbers of one run: estimates and intervals, nothing chosen."""
    system, gains = (
        xr.load_dataset(folder / name, engine="h5netcdf") for name in ("system.nc", "gains.nc")
    )

    def triple(array: xr.DataArray) -> list[float]:
        return [round(float(x), 6) for x in array.sel(bound=["estimate", "low", "high"])]

    absolute = gains.sel(injection="absolute")
    return {
        "model": model,
        "task": task,
        "shape": f"{system.sizes['layer']} x {system.sizes['feature']}",
        "auc": round(float(system["auc"][-1]), 4),
        "agreement": {
            layers: {
                name: triple(absolute[name].sel(layers=layers))
                for name in ("spearman", "pearson", "relative_l2", "max_relative_error")
            }
            for layers in ("all", "without_layer_0")
        },
        "budget": {
            str(part): triple(gains["error_budget"].sel(part=part, layers="all"))
            for part in gains["part"].values
        },
        "noise_floor": [round(float(x), 6) for x in absolute["noise_floor"]],
        "layer_0": [
            round(float(gains["measured_gain"].isel(layer=0).quantile(q)), 2)
            for q in (0, 0.1, 0.9, 1)
        ],
        "energies": [energy_row(shift, energies_at(shift, folder)) for shift in SHIFTS],
    }


def energy_row(shift: float, energies: xr.Dataset) -> dict:
    """Energies for one target; None = not reached on the full model."""

    def value(variable: str, name: str) -> float | None:
        chosen = energies.sel(schedule=name)
        return float(f"{float(chosen[variable]):.5g}") if bool(chosen["reached"]) else None

    names = [str(name) for name in energies["schedule"].values]

    return {
        "shift": shift,
        "planned": float(f"{float(energies['predicted_energy']):.5g}"),
        "needed": value("energy", "minimum_energy"),
        "multiples": {name: value("multiple", name) for name in BASELINES},
        "not_monotone": [n for n in names if not bool(energies["monotone"].sel(schedule=n))],
    }


def render(rows: list[dict]) -> str:
    """Two markdown tables."""
    lines = [
        "| model (L x H) | texts | AUC | Spearman [95 %] | Pearson | relative L2 | its "
        "noise floor | Spearman without layer 0 | relative L2 without layer 0 | nonlinearity | "
        "averaging | sampling | truncation |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        every, rest = (r["agreement"][k] for k in ("all", "without_layer_0"))
        parts = " | ".join(percent(r["budget"][p][0]) for p in list(r["budget"])[:4])
        lines.append(
            f"| {r['model']} ({r['shape']}) | {r['task']} | {r['auc']:.2f} | "
            f"{bracket(every['spearman'])} | {bracket(every['pearson'])} | "
            f"{interval(every['relative_l2'])} | {percent(r['noise_floor'][0])} | "
            f"{bracket(rest['spearman'])} | "
            f"{interval(rest['relative_l2'])} | {parts} |"
        )
    lines += [
        "",
        "| model | texts | shift (std) | energy planned | energy needed | uniform | first layer | "
        "last layer | best single layer | random single layer |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        for e in r["energies"]:
            cells = [cell(e, "planned", e["planned"]), cell(e, "minimum_energy", e["needed"])]
            cells += [cell(e, name, e["multiples"][name]) for name in BASELINES]
            lines.append(f"| {r['model']} | {r['task']} | {e['shift']:g} | {' | '.join(cells)} |")
    return "\n".join(lines)


def percent(value: float) -> str:
    return "0" if value < 5e-7 else f"{100 * value:.2g} %"


def cell(energies: dict, name: str, value: float | None) -> str:
    text = "not reached" if value is None else f"{value:.3g}"
    return text + (" *" if name in energies["not_monotone"] else "")


def bracket(triple: list[float]) -> str:
    estimate, low, high = triple
    return f"{estimate:.2f} [{low:.2f}, {high:.2f}]"


def interval(triple: list[float]) -> str:
    estimate, low, high = (100 * x for x in triple)
    return f"{estimate:.2g} % [{low:.2g}, {high:.2g}]"


def update_readme(tables: str) -> None:
    path = ROOT / "README.md"
    text = path.read_text(encoding="utf-8")
    begin, end = "<!-- tables: examples/readme_table.py -->", "<!-- end of tables -->"
    head, rest = text.split(begin)
    path.write_text(f"{head}{begin}\n{tables}\n{end}{rest.split(end)[1]}", encoding="utf-8")


if __name__ == "__main__":
    main()
