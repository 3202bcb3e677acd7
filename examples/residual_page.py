"""Dynamics of the residual stream on SmolLM2: the numbers and figures of docs/dynamics/residual.md.

    depthsys fetch
    python examples/residual_page.py ~/.cache/depthsys/real FOLDER

FOLDER holds wikitext2_raw_valid.txt and tinystories_valid_sample.txt, texts whose lines are drawn.
Half an hour on two cores. The numbers go to docs/dynamics/residual.json and from there, as they
are, between the markers of the page; the figures go to docs/figures.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import xarray as xr

from depthsys import lm, plot
from depthsys.demo import real
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
NUMBERS = DOCS / "dynamics" / "residual.json"
PAGE = DOCS / "dynamics" / "residual.md"
MARKERS = {
    name: (f"<!-- {name}: examples/residual_page.py -->", f"<!-- end of {name} -->")
    for name in ("side by side", "teleportation")
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("real", type=Path, help="folder of `depthsys fetch`")
    parser.add_argument("texts", type=Path, help="folder of the two text files")
    parser.add_argument("--count", type=int, default=500, help="texts of each")
    parser.add_argument("--tables", action="store_true", help="only write the tables again")
    asked = parser.parse_args()
    if asked.tables:
        return write_tables(json.loads(NUMBERS.read_text("utf-8")))
    model = lm.DepthModel.load(asked.real / real.MODEL, device="cpu", max_tokens=MAX_TOKENS)
    numbers, first = {}, None
    for name, file in TEXTS.items():
        texts = lines_of(asked.texts / file, asked.count, SEED)
        found = measured(model, texts)
        numbers[name] = numbers_of(*found)
        print(name, json.dumps(numbers[name]["summary"], indent=1))
        first = first or found
    numbers["cost"] = cost(model, lines_of(asked.texts / TEXTS["wikitext2"], TIMED, SEED))
    NUMBERS.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    write_tables(numbers)
    draw(*first)


def write_tables(numbers: dict) -> None:
    tables = {"side by side": side_by_side(numbers), "teleportation": flights(numbers)}
    update(PAGE, {MARKERS[name]: markdown(table) for name, table in tables.items()})


def measured(model: lm.DepthModel, texts: lm.Texts) -> tuple[xr.Dataset, xr.Dataset, dict]:
    """Dynamics, the autoencoder, and a teleportation of every kind."""
    run = model.run(texts)
    dynamics = lm.residual_dynamics(run, seed=SEED)
    states = lm.sublayer_states(run).isel(prompt=slice(COMPRESSED))
    code = lm.compress(states, seed=SEED)
    few = model.run(texts.first(FLOWN))
    flown = {name: lm.teleport(few, dynamics, **how) for name, how in FLIGHTS.items()}
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
        ("activations grow denser [A]", *both(lambda n: f"density {three(n['density'])}")),
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
    return Table(("said of Llama 3.1 8B", *TEXTS), rows)


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


def draw(dynamics: xr.Dataset, code: xr.Dataset, flown: dict[str, xr.Dataset]) -> None:
    figures = {name: getattr(sheets, name)(dynamics)
               for name in ("unit_continuity", "velocity_information", "rotations")}  # fmt: skip
    fig, (left, right) = plot.figure(13, 5, columns=2)
    plot.plane_trajectories(left, dynamics)
    plot.code_trajectories(right, code)
    figures["trajectories"] = fig
    whole, near = (flown[name] for name in (*FLIGHTS,)[:: len(FLIGHTS) - 1])
    figures["teleportation"] = sheets.teleportation_of(whole)
    figures["teleportation_near"] = sheets.teleportation_of(near, moving=True)
    for name, fig in figures.items():
        plot.save(fig, DOCS / "figures" / f"residual_{name}.png", "png")


if __name__ == "__main__":
    main()
