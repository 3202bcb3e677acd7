"""Run the main job on several models and tasks, and write the tables of the README and the docs.

    depthsys study run examples/readme_study.toml --out out/readme.zarr
    python examples/readme_table.py --study out/readme.zarr --update
    python examples/readme_table.py --data ../shared/data --out out/table --update

With --study, what a study has found, for the README. With --data, `depthsys gains` and `depthsys
control` on the embedded and on small trained models in the paper's form, for docs/small_models.md;
finished jobs are kept, so an interrupted run goes on where it stopped. All with the full
400/200/200 split. The numbers go to docs/main_job.json and from there, as they are, into the pages
between their markers.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import xarray as xr

from depthsys import study
from depthsys.report import markdown
from depthsys.report.many_jobs import energies_table, gains_table, row
from depthsys.report.page import update
from depthsys.study.reading import cells_of

ROOT = Path(__file__).parents[1]
MODELS = ("gpt2_6x128", "stories260K", "gpt280K_tinystories")
TASKS = ("sst2", "rotten_tomatoes")
DEMOS = ("demo_48x4", "demo_96x8", "demo_128x12")
PAPERS_FORM = ("--basis", "krylov", "--step", "absolute")
SHIFTS = (0.1, 1.0)  # in standard deviations of the readout
MARKERS = "<!-- tables: examples/readme_table.py -->", "<!-- end of tables -->"
STORED = ROOT / "docs" / "main_job.json"
PAGES = {"real": ROOT / "README.md", "small": ROOT / "docs" / "small_models.md"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder with weights/ and tasks/ (small models)")
    parser.add_argument("--study", type=Path, help="store of examples/readme_study.toml")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "table")
    parser.add_argument("--update", action="store_true", help="rewrite docs/main_job.json, a page")
    options = parser.parse_args()
    if options.study is not None:
        store("real", study_rows(options.study), options)
    if options.data is not None:
        store("small", small_rows(options.data, options.out), options)


def store(kind: str, rows: list[dict], options) -> None:
    print(render(rows))
    if not options.update:
        return
    stored = json.loads(STORED.read_text(encoding="utf-8")) | {kind: rows}
    STORED.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
    update(PAGES[kind], {MARKERS: render(rows)})


def render(rows: list[dict]) -> str:
    return f"{markdown(gains_table(rows))}\n\n{markdown(energies_table(rows))}"


def study_rows(path: Path) -> list[dict]:
    return [study_row(names, node) for names, node in cells_of(study.read(path))]


def study_row(names: dict, node: xr.DataTree) -> dict:
    stages = ("system", "gains", "energies")
    system, gains, energies = (node[stage].to_dataset().load() for stage in stages)
    shift = float(node["plan"].attrs["target_asked"].removesuffix("std"))
    return row(names["model"], names["task"], system, gains, {shift: energies})


def small_rows(data: Path, out: Path) -> list[dict]:
    rows = [demo_row(name, out / name) for name in DEMOS]
    for model in MODELS:
        for task in TASKS:
            source = (data / "weights" / model, data / "tasks" / f"{task}.csv")
            rows.append(job_row(model, task, source, out / f"{model}-{task}"))
    return rows


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
        asked = ("--target", repr(target), "--energy", "absolute", "--out", out, "--force")
        depthsys("control", folder / "system.nc", *asked)
    return load(out / "schedule.nc")


def load(path: Path) -> xr.Dataset:
    return xr.load_dataset(path, engine="h5netcdf")


def depthsys(*arguments) -> None:
    command = [sys.executable, "-m", "depthsys.cli", *map(str, arguments)]
    print("$ depthsys", *command[3:], flush=True)
    subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
