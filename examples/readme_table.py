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

from depthsys.report import markdown
from depthsys.report.many_jobs import energies_table, gains_table, row
from depthsys.report.page import update

ROOT = Path(__file__).parents[1]
MODELS = ("gpt2_6x128", "stories260K", "gpt280K_tinystories")
TASKS = ("sst2", "rotten_tomatoes")
DEMOS = ("demo_48x4", "demo_96x8", "demo_128x12")
PAPERS_FORM = ("--basis", "krylov", "--step", "absolute")
SHIFTS = (0.1, 1.0)  # in standard deviations of the readout
MARKERS = "<!-- tables: examples/readme_table.py -->", "<!-- end of tables -->"


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
                rows.append(job_row(model, task, source, options.out / f"{model}-{task}"))
    print(render(rows))
    if options.update:
        text = json.dumps(rows, indent=1)
        (ROOT / "docs" / "main_job.json").write_text(text + "\n", encoding="utf-8")
        update(ROOT / "README.md", {MARKERS: render(rows)})


def render(rows: list[dict]) -> str:
    return f"{markdown(gains_table(rows))}\n\n{markdown(energies_table(rows))}"


def demo_row(name: str, folder: Path) -> dict:
    if not (folder / "demo.txt").exists():
        depthsys("demo", "--model", name, *PAPERS_FORM, "--out", folder, "--force")
    return collect(name, "synthetic sentiment", folder)


def job_row(model: str, task: str, source: tuple[Path, Path], folder: Path) -> dict:
    if not (folder / "gains.txt").exists():
        depthsys("gains", *source, *PAPERS_FORM, "--out", folder, "--force")
    return collect(model, task, folder)


def collect(model: str, task: str, folder: Path) -> dict:
    system, gains = load(folder / "system.nc"), load(folder / "gains.nc")
    energies = {shift: energies_at(shift, system, folder) for shift in SHIFTS}
    return row(model, task, system, gains, energies)


def energies_at(shift: float, system: xr.Dataset, folder: Path) -> xr.Dataset:
    out = folder / f"shift_{shift:g}"
    if not (out / "control.txt").exists():
        target = shift * float(system["y_std"])
        depthsys("control", folder / "system.nc", "--target", repr(target), "--out", out, "--force")
    return load(out / "schedule.nc")


def load(path: Path) -> xr.Dataset:
    return xr.load_dataset(path, engine="h5netcdf")


def depthsys(*arguments) -> None:
    command = [sys.executable, "-m", "depthsys.cli", *map(str, arguments)]
    print("$ depthsys", *command[3:], flush=True)
    subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
