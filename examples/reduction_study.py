"""Compare the reduction methods on many models and tasks; write the tables of docs/reduction.md.

    python examples/reduction_study.py --data ../shared/data --real ~/real --jobs 2 --update

DATA has weights/ and tasks/*.csv (texts and models that are not redistributed); REAL is what
`depthsys fetch` has fetched: SmolLM2 and rated texts. Each pair of model and task is `lm.compare`
with the full 400/200/200 splits, in its own file under OUT; finished pairs are kept, so an
interrupted study goes on where it stopped. With --update everything that the page shows is written
anew: docs/reduction.nc, docs/figures/reduction_*.png and the tables between the page's markers.
Without DATA and REAL only the demo family is run, on its synthetic tasks.
"""

import argparse
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import xarray as xr

from depthsys.report import page
from depthsys.report.many_comparisons import page as parts_of
from depthsys.report.pairs import by_size

ROOT = Path(__file__).parents[1]
DEMOS = ("demo_48x4", "demo_96x8", "demo_128x12")
SHARED = ("stories260K", "gpt280K_tinystories", "gpt2_6x128")
TASKS = ("sst2", "imdb", "amazon_polarity", "tweet_hate", "tweet_offensive", "cola")
SYNTHETIC = ("synthetic sentiment", "synthetic domain")
ABLATION = ("sst2", "synthetic sentiment")  # tasks on which other concept directions are tried
REAL = "SmolLM2-135M-Instruct"
REAL_TASKS = ("movies", "amazon", "tweets", "editorials")  # beside the model
HARDER_TASKS = ("sst2", "tweet_offensive", "cola")  # of DATA
DRAWN = (("gpt2_6x128", "sst2"), ("demo_128x12", "synthetic sentiment"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder with weights/ and tasks/")
    parser.add_argument("--real", type=Path, help="folder of `depthsys fetch`")
    parser.add_argument("--device", default="cpu", help="of the real model; the others run on cpu")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "reduction")
    parser.add_argument("--jobs", type=int, default=1, help="pairs at a time, one thread each")
    parser.add_argument("--each", type=int, default=16, help="prompts with a system of their own")
    parser.add_argument("--split", default="400/200/200", help="texts per class")
    parser.add_argument("--only", default="", help="regular expression on 'model-task'")
    parser.add_argument("--update", action="store_true", help="rewrite the page and its figures")
    parser.add_argument("--pair", nargs=2, metavar=("MODEL", "TASK"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.update and (options.only or None in (options.data, options.real)):
        raise SystemExit(
            "--update writes the page from the whole study: give --data and --real, not --only"
        )
    options.out.mkdir(parents=True, exist_ok=True)
    if options.pair:
        run_pair(*options.pair, options)
        return
    from depthsys.study.many_comparisons import collected

    pairs = planned(options.data, options.real)
    pairs = [(m, t) for m, t in pairs if re.search(options.only, f"{m}-{t}")]
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(lambda pair: in_a_process(pair, options), pairs))
    study = collected(load(file_of(*pair, options.out)) for pair in pairs)
    study.to_netcdf(options.out / "study.nc", engine="h5netcdf")
    for name, text in parts_of(study).items():
        print(f"## {name}\n\n{text}\n")
    if options.update:
        update(study, options.out)


def planned(data: Path | None, real: Path | None) -> list[tuple[str, str]]:
    pairs = [(model, task) for model in DEMOS for task in SYNTHETIC]
    if data is not None:
        pairs += [(model, task) for task in TASKS for model in SHARED]
    if real is not None:
        pairs += [(REAL, task) for task in REAL_TASKS]
        pairs += [(REAL, task) for task in HARDER_TASKS if data is not None]
    return pairs


def file_of(model: str, task: str, out: Path) -> Path:
    return out / f"{model}-{task.replace(' ', '_')}.nc"


def load(path: Path) -> xr.Dataset:
    return xr.load_dataset(path, engine="h5netcdf")


def in_a_process(pair: tuple[str, str], options) -> None:
    path = file_of(*pair, options.out)
    if path.exists():
        check_settings(path, options)
        return
    command = [sys.executable, __file__, "--pair", *pair, "--out", str(options.out)]
    command += ["--each", str(options.each), "--split", options.split]
    command += ["--device", options.device]
    for name in ("data", "real"):
        if getattr(options, name) is not None:
            command += [f"--{name}", str(getattr(options, name))]
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


def run_pair(name: str, task: str, options) -> None:
    from depthsys import lm, study
    from depthsys.study.many_comparisons import pair

    device = options.device if name == REAL else "cpu"
    settings = study.Settings.checked(
        split=options.split, n_each=options.each, readout="profile", device=device
    )
    concept, operating, held_out = settings.split
    texts = lm.read_texts(source_of(task, options)).split(
        concept=concept, operating=operating, held_out=held_out
    )
    model = lm.DepthModel.load(model_of(name, options), device=device)
    model.name = name
    cell = study.Cell(settings.for_width(model.n_features), model, texts)
    table = pair(cell, task, directions=task in ABLATION)
    # the last thing written, under its own name only when it is whole
    target = file_of(name, task, options.out)
    table.to_netcdf(target.with_suffix(".part"), engine="h5netcdf")
    target.with_suffix(".part").replace(target)


def source_of(task: str, options):
    """The labelled texts of a task, or the file that holds them."""
    from depthsys.demo import grammar

    if task in SYNTHETIC:
        return grammar.labelled(1000, concept=task.split()[1], seed=2603)
    beside = options.real if task in REAL_TASKS else options.data / "tasks"
    return beside / f"{task}.csv"


def model_of(name: str, options) -> Path:
    from depthsys import demo

    if name in DEMOS:
        return demo.model_path(name)
    return (options.real if name == REAL else options.data / "weights") / name


def update(study: xr.Dataset, out: Path) -> None:
    """Write the numbers, then the page and its figures from the numbers as they are stored."""
    from depthsys import plot
    from depthsys.plot import sheets

    path, figures = ROOT / "docs" / "reduction.nc", ROOT / "docs" / "figures"
    names = [name for name in study.data_vars if study[name].dtype.kind == "f"]
    compact = {name: {"zlib": True, "dtype": "float32"} for name in names}
    study.to_netcdf(path, engine="h5netcdf", encoding=compact)
    parts = {markers(name): part for name, part in parts_of(load(path)).items()}
    page.update(ROOT / "docs" / "reduction.md", parts)
    plot.save(sheets.agreement_by_size(by_size(study)), figures / "reduction_size.png", "png")
    for model, task in DRAWN:
        if file_of(model, task, out).exists():
            table = load(file_of(model, task, out))
            for kind, draw in (
                ("", sheets.agreement_and_certificates),
                ("budget_", sheets.budget_and_range),
            ):
                plot.save(draw(table), figures / f"reduction_{kind}{model}.png", "png")
    tasks = {t: file_of(REAL, t, out) for t in (*REAL_TASKS, *HARDER_TASKS)}
    real = {task: load(path) for task, path in tasks.items() if path.exists()}
    plot.save(sheets.separation_of_tasks(real), figures / "real_separation.png", "png")
    plot.save(sheets.gains_of_tasks(real), figures / "real_gains.png", "png")


def markers(name: str) -> tuple[str, str]:
    """What stands before and after a part of the page."""
    return f"<!-- {name}: examples/reduction_study.py -->", f"<!-- end of {name} -->"


if __name__ == "__main__":
    main()
