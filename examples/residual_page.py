"""Dynamics of the residual stream on SmolLM2: the numbers and figures of docs/dynamics/residual.md.

    depthsys fetch
    python examples/residual_page.py ~/.cache/depthsys/real FOLDER

FOLDER holds wikitext2_raw_valid.txt, the raw validation split of WikiText-2, and
tinystories_valid_sample.txt, stories of the validation file of TinyStories, a paragraph a line, of
which lines are drawn. Half an hour on one core. What is measured is kept in the folder of
``--kept`` as it comes, so that a run that was ended goes on, and figures are drawn again without
one. The numbers go to docs/dynamics/residual.json and from there, as they are, between the markers
of the page; the figures go to docs/figures. What it costs is only measured with ``--timed``.
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import numpy as np
import scipy.stats
import xarray as xr

from depthsys import lm, plot
from depthsys.demo import real
from depthsys.files import whole_file
from depthsys.lm.trajectories import shuffled_turns, turns
from depthsys.plot import dynamics as sheets
from depthsys.report import Table, markdown
from depthsys.report.page import update
from depthsys.study.lines import lines_of

DOCS = Path(__file__).parents[1] / "docs"
TEXTS = {"wikitext2": "wikitext2_raw_valid.txt", "tinystories": "tinystories_valid_sample.txt"}
MAX_TOKENS = 64
SEED = 0
COMPRESSED, FLOWN = 256, 8
TIMED, REPEATS = 200, 2
FLIGHTS = {
    "inverse of the projection, whole plane": {"span": "trajectory", "outside": "mean"},
    "own rest, whole plane": {"span": "trajectory", "outside": "own"},
    "inverse of the projection, 3 spreads": {"span": 3.0, "outside": "mean"},
    "own rest, 3 spreads": {"span": 3.0, "outside": "own"},
}
PARTS = ("attention", "mlp")
HOLDS = (
    "yes",
    "from layer 0 to layer 1 only",
    "as the norm grows",
    "on tinystories only",
    "nothing to compare with",
    "no: fewer turns than chance",
    "a curve, but not all of it in a plane",
    "depends on what counts as variance",
)
LATER = 3  # sublayer behind the embedding and layer 0
NUMBERS = DOCS / "dynamics" / "residual.json"
PAGE = DOCS / "dynamics" / "residual.md"
MARKERS = {
    name: (f"<!-- {name}: examples/residual_page.py -->", f"<!-- end of {name} -->")
    for name in ("side by side", "teleportation", "basins")
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("real", type=Path, help="folder of `depthsys fetch`")
    parser.add_argument("texts", type=Path, help="folder of the two text files")
    parser.add_argument("--count", type=int, default=1000, help="texts of each")
    parser.add_argument(
        "--kept", type=Path, default=Path("out/residual"),
        help="folder of what is measured; what lies there is not measured again",
    )  # fmt: skip
    parser.add_argument("--timed", action="store_true", help="measure the cost again, too")
    parser.add_argument("--tables", action="store_true", help="only write the tables again")
    asked = parser.parse_args()
    if asked.tables:
        return write_tables(json.loads(NUMBERS.read_text("utf-8")))
    numbers, found = {}, {}
    stored = json.loads(NUMBERS.read_text("utf-8"))
    for name, file in TEXTS.items():
        texts = lines_of(asked.texts / file, asked.count, SEED)
        stage = partial(kept, asked.kept, f"{name}_{asked.count}")
        found[name] = measured(partial(model_of, asked.real), texts, stage)
        numbers[name] = numbers_of(*found[name])
        print(name, json.dumps(numbers[name]["summary"], indent=1))
    texts = lines_of(asked.texts / TEXTS["wikitext2"], TIMED, SEED)
    numbers["cost"] = cost(model_of(asked.real), texts) if asked.timed else stored["cost"]
    NUMBERS.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    write_tables(numbers)
    draw(found)


@cache
def model_of(real_folder: Path) -> lm.DepthModel:
    return lm.DepthModel.load(real_folder / real.MODEL, device="cpu", max_tokens=MAX_TOKENS)


def kept(folder: Path, texts: str, stage: str, make: Callable[[], xr.Dataset]) -> xr.Dataset:
    """A stage as it lies in the folder; made and put there if it does not."""
    path = folder / f"{texts}_{stage}.nc".replace(" ", "_")
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        dataset = make()
        with whole_file(path, force=False) as unfinished:
            dataset.to_netcdf(unfinished, engine="h5netcdf")
    return xr.load_dataset(path, engine="h5netcdf")


def write_tables(numbers: dict) -> None:
    tables = {
        "side by side": side_by_side(numbers),
        "teleportation": flights(numbers),
        "basins": basins(numbers),
    }
    update(PAGE, {MARKERS[name]: markdown(table) for name, table in tables.items()})


def measured(
    model: Callable[[], lm.DepthModel], texts: lm.Texts, stage: Callable[..., xr.Dataset]
) -> tuple[xr.Dataset, xr.Dataset, dict[str, xr.Dataset]]:
    """Dynamics, the autoencoder, and a teleportation of every kind."""
    dynamics = stage("dynamics", lambda: lm.residual_dynamics(model(), texts, seed=SEED))
    few = texts.first(FLOWN)
    flown = {
        name: stage(name, lambda how=how: lm.teleport(model(), few, dynamics, **how))
        for name, how in FLIGHTS.items()
    }
    some = texts.first(COMPRESSED)
    code = stage("code", lambda: lm.compress(lm.sublayer_states(model(), some), seed=SEED))
    return dynamics, code, flown


def cost(model: lm.DepthModel, texts: lm.Texts) -> dict[str, list[float]]:
    """Seconds of a prefill and of `lm.residual_dynamics`, prefill included, in turn."""
    seconds: dict[str, list[float]] = {"prefill": [], "dynamics": []}
    for _ in range(REPEATS):
        seconds["prefill"].append(timed(lambda: prefill(model, texts)))
        seconds["dynamics"].append(timed(lambda: lm.residual_dynamics(model, texts)))
    return {name: rounded(values) for name, values in seconds.items()}


def prefill(model: lm.DepthModel, texts: lm.Texts) -> None:
    for _ in model.run(texts, contexts=False).states_by_batch():
        pass


def timed(work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


# ------------------------------------------------------------------------------------ numbers


def numbers_of(dynamics: xr.Dataset, code: xr.Dataset, flown: dict[str, xr.Dataset]) -> dict:
    over = {"velocity": "prompt", "norm": "prompt", "density": "prompt", "cosine": "prompt",
            "update_cosine": "prompt", "mutual_information": "unit",
            "mutual_information_shuffled": "unit"}  # fmt: skip
    curves = {name: rounded(dynamics[name].mean(dim).values) for name, dim in over.items()}
    for share in dynamics["quantile"].values:
        curves[f"correlation, {share:g}"] = rounded(
            dynamics["correlation_quantile"].sel(quantile=share).values
        )
    for name in code["compressor"].values:
        for kind in ("explained_at", "explained_within"):
            curves[f"{kind}, {name}"] = rounded(code[kind].sel(compressor=name).values)
    return {
        "prompts": dynamics.sizes["prompt"],
        "n_cut": int(dynamics.attrs["n_cut"]),
        "summary": summary(dynamics, code),
        "curves": curves,
        "teleportation": {name: flight(one) for name, one in flown.items()},
    }


def summary(dynamics: xr.Dataset, code: xr.Dataset) -> dict[str, list[float]]:
    """Single numbers; those of thirds of the steps are of the first, the middle and the last."""
    middle = dynamics["correlation_quantile"].sel(quantile=0.5)
    cosine = dynamics["cosine"].mean("prompt")
    info = dynamics["mutual_information"].mean("unit")
    speed = dynamics["velocity"].mean("prompt")
    relative = (dynamics["velocity"] / dynamics["norm"].values[:, :-1]).mean("prompt")
    q, turned, shuffled = (dynamics[n].values for n in ("q_value", "turns", "turns_shuffled"))
    by_part = {"correlation": middle, "cosine": cosine, "information": info}
    found = {}
    for name, curve in by_part.items():
        for part in PARTS:
            found[f"{name}, {part}"] = thirds(curve.values[dynamics["written_by"].values == part])
    return found | {
        "information, exchanged": rounded([dynamics["mutual_information_shuffled"].mean()]),
        "velocity": thirds(speed.values),
        "relative velocity": thirds(relative.values),
        "density": thirds(dynamics["density"].mean("prompt").values),
        "turns": rounded([turned.mean(), *np.quantile(turned, [0.05, 0.95])]),
        "turns, shuffled": rounded([shuffled.mean()]),
        "turns, states of unit length": turns_of_unit_length(dynamics),
        "turns, each prompt": rounded([dynamics["prompt_turns"].mean()]),
        "turns differ": rounded([(q < 0.05).mean(), ((q < 0.05) & (turned > shuffled)).mean()]),
        "explained": rounded(dynamics["explained"].values[:2]),
        "given back": rounded(code["explained"].values),
        "given back at, autoencoder": thirds(code["explained_at"].values[0]),
        "given back at, pca": thirds(code["explained_at"].values[1]),
        "given back within, autoencoder": thirds(code["explained_within"].values[0]),
    }


def turns_of_unit_length(dynamics: xr.Dataset) -> list[float]:
    """The same of mean activations over the mean norm of the sublayer, and in shuffled orders."""
    norm = dynamics["norm"].mean("prompt").values
    activation = dynamics["mean"].transpose("feature", "sublayer").values / norm
    rng = np.random.default_rng(SEED)
    shuffled = [one.mean() for one in shuffled_turns(activation, rng, 100)]
    return rounded([turns(activation).mean(), np.mean(shuffled)])


def thirds(curve: np.ndarray) -> list[float]:
    return rounded([part.mean() for part in np.array_split(curve, 3)])


def flight(one: xr.Dataset) -> dict[str, list]:
    names = ("inward_share", "contraction", "basin_radius")
    return {
        "start": one["start"].values.tolist(),
        **{name: rounded(one[name].values) for name in names},
        "farthest": rounded(one["radius"].values[:, -1]),
    }


def rounded(values) -> list[float]:
    return [float(f"{float(value):.4g}") for value in np.ravel(values)]


# ------------------------------------------------------------------------------------- tables


def side_by_side(numbers: dict) -> Table:
    """What is said of Llama 3.1 8B, and what is found here."""
    s = {name: numbers[name]["summary"] for name in TEXTS}

    denser = {name: density_later(numbers[name]["curves"]["density"]) for name in TEXTS}

    def both(words) -> list[str]:
        return [words(s[name]) for name in TEXTS]

    def three(values, digits=2) -> str:
        return ", ".join(f"{value:.{digits}f}" for value in values)

    rows = [
        ("units are correlated across layers, more where attention writes [T]",
         *both(lambda n: f"attention writes {three(n['correlation, attention'])}; MLP writes "
                         f"{three(n['correlation, mlp'])}")),
        ("states become more aligned deeper [T]",
         *both(lambda n: f"attention writes {three(n['cosine, attention'])}; MLP writes "
                         f"{three(n['cosine, mlp'])}")),
        ("activations accelerate [A]",
         *both(lambda n: f"velocity {three(n['velocity'], 0)}; for the state's size "
                         f"{three(n['relative velocity'])}")),
        ("activations grow denser [A]",
         *(f"density {three(s[name]['density'])}; from sublayer {LATER} on "
           f"{three(later)}, rank correlation with depth {rank:.2f}"
           for name, (later, rank) in denser.items())),
        ("mutual information: no words of the paper available",
         *both(lambda n: f"attention writes {three(n['information, attention'])}; MLP writes "
                         f"{three(n['information, mlp'])} nats "
                         f"({n['information, exchanged'][0]:.2f} where prompts are exchanged)")),
        ("a unit circles about 10 times over 64 sublayers [T]",
         *both(lambda n: f"{n['turns'][0]:.1f} over 60; {n['turns, shuffled'][0]:.1f} in shuffled "
                         f"orders; {100 * n['turns differ'][0]:.0f} % of units differ from these, "
                         f"{100 * n['turns differ'][1]:.0f} % by turning more")),
        ("few dimensions: a curved trajectory in a plane [A]",
         *both(lambda n: f"two components {100 * sum(n['explained']):.0f} % of the variance; of "
                         f"texts left out the autoencoder gives back "
                         f"{100 * n['given back'][0]:.0f} %, two components "
                         f"{100 * n['given back'][1]:.0f} %")),
        ("the autoencoder gives early layers back worse than late ones [T]",
         *both(lambda n: three(n["given back at, autoencoder"]))),
    ]  # fmt: skip
    rows = [(*row, told) for row, told in zip(rows, HOLDS, strict=True)]
    return Table(("said of Llama 3.1 8B", *TEXTS, "holds?"), rows)


def density_later(curve: list[float]) -> tuple[list[float], float]:
    """Thirds behind the embedding and layer 0, and Spearman's correlation with depth."""
    later = np.array(curve[LATER:])
    rank = scipy.stats.spearmanr(np.arange(len(later)), later).statistic
    return thirds(later), float(rank)


def basins(numbers: dict) -> Table:
    """Radii of basins, and how far the grid goes."""
    rows = []
    for texts in TEXTS:
        for name, one in numbers[texts]["teleportation"].items():
            cells = [
                f"{radius:.3g} of {farthest:.3g}" if radius else f"none of {farthest:.3g}"
                for radius, farthest in zip(one["basin_radius"], one["farthest"], strict=True)
            ]
            rows.append((texts, name, *cells))
    starts = numbers["wikitext2"]["teleportation"][next(iter(FLIGHTS))]["start"]
    return Table(("texts", "state outside the plane, grid", *(f"from {s}" for s in starts)), rows)


def flights(numbers: dict) -> Table:
    rows = []
    for texts in TEXTS:
        for name, one in numbers[texts]["teleportation"].items():
            cells = [
                f"{100 * share:.0f} % ({contraction:.2f})"
                for share, contraction in zip(one["inward_share"], one["contraction"], strict=True)
            ]
            rows.append((texts, name, *cells))
    starts = numbers["wikitext2"]["teleportation"][next(iter(FLIGHTS))]["start"]
    return Table(("texts", "state outside the plane, grid", *(f"from {s}" for s in starts)), rows)


# ------------------------------------------------------------------------------------ figures


def draw(found: dict[str, tuple[xr.Dataset, xr.Dataset, dict[str, xr.Dataset]]]) -> None:
    """A row of every figure, or a figure of its own, for each set of texts."""
    rows = {
        "unit_continuity": (plot.unit_correlations, plot.successive_cosines),
        "velocity_information": (plot.velocity, plot.mutual_information),
        "rotations": (plot.phase_plane, plot.turns, plot.rotation_p_values),
    }
    figures = {}
    for name, panels in rows.items():
        fig, axes = plot.figure(14, 8.6, columns=len(panels), rows=len(found))
        for row, (texts, (dynamics, _, _)) in enumerate(found.items()):
            for ax, panel in zip(axes[row * len(panels) :], panels, strict=False):
                panel(ax, dynamics)
                ax.set_title(texts)
        figures[name] = fig
    fig, axes = plot.figure(13, 9.6, columns=2, rows=len(found))
    for row, (texts, (dynamics, code, _)) in enumerate(found.items()):
        plot.plane_trajectories(axes[2 * row], dynamics)
        plot.code_trajectories(axes[2 * row + 1], code)
        axes[2 * row].set_title(texts, fontsize="medium")
    figures["trajectories"] = fig
    for texts, (_, _, flown) in found.items():
        whole, near = (flown[name] for name in (*FLIGHTS,)[:: len(FLIGHTS) - 1])
        figures[f"teleportation_{texts}"] = sheets.teleportation_of(whole)
        figures[f"teleportation_near_{texts}"] = sheets.teleportation_of(near, moving=True)
    for name, fig in figures.items():
        plot.save(fig, DOCS / "figures" / f"residual_{name}.png", "png")


if __name__ == "__main__":
    main()
