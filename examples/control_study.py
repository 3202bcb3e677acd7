"""Plan, play and compare on real and synthetic texts; write the tables of docs/control.md.

    python examples/control_study.py --data ../shared/data --real ~/real --update

REAL is what `depthsys fetch` has fetched (SmolLM2 and rated texts), DATA has tasks/sst2.csv. Every
pair of model and task is one cell: directions from the concept texts, a system and the optimum of
the full model from the operating texts, and everything played on held-out texts. What is finished
is kept under OUT, so an interrupted study goes on where it stopped. With --update the numbers go
to docs/control.json, the figures to docs/figures and the tables between the markers of the page.
Without DATA and REAL only the demo family is run, on its synthetic texts.
"""

import argparse
import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter

import xarray as xr
from control_example import STAGES, TARGETS, Stage

from depthsys import lm, plot, study
from depthsys.plot import sheets
from depthsys.report.many_plans import energy_row, example, page, splits_row
from depthsys.report.page import update as update_page
from depthsys.shift import Shift
from depthsys.study import steps

ROOT = Path(__file__).parents[1]
DEMOS = ("demo_48x4", "demo_96x8", "demo_128x12")
REAL = "SmolLM2-135M-Instruct"
STORED, PAGE = ROOT / "docs" / "control.json", ROOT / "docs" / "control.md"
EXAMPLE = (REAL, "movies")
N_SPLITS = 5
TASKS = {"movies": "real", "amazon": "real", "tweets": "real", "sst2": "data"}
SYNTHETIC = "sentiment"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder with tasks/sst2.csv")
    parser.add_argument("--real", type=Path, help="folder of `depthsys fetch`")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "control")
    parser.add_argument("--split", default="400/200/200", help="texts per class")
    parser.add_argument("--only", default="", help="regular expression on 'model-task'")
    parser.add_argument("--stages", default="", help="of the worked example, as --only")
    parser.add_argument("--systems", action="store_true", help="only identify")
    parser.add_argument("--update", action="store_true", help="rewrite the page and its figures")
    options = parser.parse_args()
    if options.update and (options.only or options.stages or None in (options.data, options.real)):
        raise SystemExit(
            "--update writes the page from the whole study: give --data and --real, not --only"
        )
    for model, task in planned(options):
        if re.search(options.only, f"{model}-{task}"):
            run_cell(model, task, options)
    if options.update:
        update(planned(options), options.out)


def planned(options) -> list[tuple[str, str]]:
    pairs = [(model, SYNTHETIC) for model in DEMOS]
    if options.real is not None:
        beside = {"real": options.real, "data": options.data}
        pairs += [(REAL, task) for task, of in TASKS.items() if beside[of] is not None]
    return pairs


def run_cell(name: str, task: str, options) -> None:
    folder = options.out / f"{name}-{task}"
    folder.mkdir(parents=True, exist_ok=True)
    cell = made(name, task, options)
    system = kept(folder / "system.nc", lambda: identified(cell))
    plans, verified = {}, {}
    for target in TARGETS if not options.systems else ():
        wanted = Shift.read(target)
        plan = kept(folder / f"plan_{target}.nc", partial(steps.plan, cell, system, wanted))
        plans[target] = plan
        verify = partial(steps.verify_plan, cell, system, plan)
        verified[target] = kept(folder / f"verified_{target}.nc", verify)
    if name in DEMOS and not options.systems:
        kept(folder / "splits.nc", partial(over_splits, name, task, options))
    if (name, task) == EXAMPLE and not options.systems:
        others = [texts_of(t, options) for t in ("tweet_offensive", "amazon")]
        stage = Stage(cell, system, plans, verified, others[0].concept, others[1].held_out)
        for find in STAGES:
            if re.search(options.stages, find.__name__):
                kept(folder / f"{find.__name__}.nc", partial(find, stage))


def over_splits(name: str, task: str, options) -> xr.Dataset:
    """The same for other splits of the texts: median and range."""
    tables = []
    for seed in range(N_SPLITS):
        cell = made(name, task, options, seed=seed)
        system = identified(cell)
        plan = steps.plan(cell, system, Shift.read(TARGETS[0]))
        tables.append(steps.verify_plan(cell, system, plan))
    return lm.energies_over_splits(tables)


def made(name: str, task: str, options, seed: int = 0) -> study.Cell:
    settings = study.Settings.checked(split=options.split, seed=seed)
    texts = texts_of(task, options, seed)
    model = lm.DepthModel.load(model_of(name, options))
    model.name = name
    return study.Cell(settings.for_width(model.n_features), model, texts)


def identified(cell: study.Cell) -> xr.Dataset:
    return steps.identify(cell, steps.find_concept(cell))


def kept(path: Path, find: Callable[[], xr.Dataset]) -> xr.Dataset:
    """The Dataset of a file, found and written first where there is none."""
    if not path.exists():
        begin = perf_counter()
        part = path.with_suffix(".part")
        find().to_netcdf(part, engine="h5netcdf")
        part.replace(path)
        print(path.parent.name, path.stem, f"{perf_counter() - begin:.0f} s", flush=True)
    return xr.load_dataset(path, engine="h5netcdf")


def texts_of(task: str, options, seed: int = 0) -> lm.Splits:
    return lm.read_texts(source_of(task, options)).split(options.split, seed=seed)


def source_of(task: str, options):
    """The labelled texts of a task, or the file that holds them."""
    from depthsys.demo import grammar

    if task == SYNTHETIC:
        return grammar.labelled(1000, concept=task, seed=2603)
    folder = options.real if TASKS.get(task) == "real" else options.data / "tasks"
    return folder / f"{task}.csv"


def model_of(name: str, options) -> Path:
    from depthsys import demo

    return demo.model_path(name) if name in DEMOS else options.real / name


def update(pairs: list[tuple[str, str]], out: Path) -> None:
    """Write the numbers, then the page and its figures from them."""
    folders = {pair: out / "-".join(pair) for pair in pairs}
    rows = [
        energy_row(*pair, *(load(f / f"{n}.nc") for n in ("system", f"plan_{t}", f"verified_{t}")))
        for pair, f in folders.items()
        for t in TARGETS
    ]
    shown = folders[EXAMPLE]
    stages = {find.__name__: load(shown / f"{find.__name__}.nc") for find in STAGES}
    splits = {m: splits_row(load(out / f"{m}-{SYNTHETIC}" / "splits.nc")) for m in DEMOS}
    found = {"energies": rows, "splits": splits, "example": example(stages)}
    STORED.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    parts = page(json.loads(STORED.read_text(encoding="utf-8")))
    update_page(PAGE, {markers(name): part for name, part in parts.items()})
    last = TARGETS[-1]
    drawn = {
        "pushes": sheets.pushes(load(shown / f"plan_{last}.nc")),
        "energy": sheets.energy(load(shown / f"verified_{last}.nc")),
        "achieved": sheets.achieved(load(shown / f"verified_{last}.nc")),
        "effects": sheets.effects(stages["effects"]),
    }
    for name, fig in drawn.items():
        plot.save(fig, ROOT / "docs" / "figures" / f"control_{name}.png", "png")


def load(path: Path) -> xr.Dataset:
    return xr.load_dataset(path, engine="h5netcdf")


def markers(name: str) -> tuple[str, str]:
    """What stands before and after a part of the page."""
    return f"<!-- {name}: examples/control_study.py -->", f"<!-- end of {name} -->"


if __name__ == "__main__":
    main()
