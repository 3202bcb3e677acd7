"""Coupling of blocks and shape of trajectories: numbers and figures of docs/dynamics/coupling.md.

    depthsys fetch
    python examples/coupling_page.py ~/.cache/depthsys/real --small ../shared/data

Five minutes on two cores. The numbers go to docs/dynamics/coupling.json and from there, as they
are, between the markers of the page; the figures go to docs/figures. ``--small`` is a folder with
``weights`` of small models and ``text/tinystories_valid_sample.txt``; without it, what is stored of
them stays.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from transformers import AutoModelForCausalLM

from depthsys import lm, ltv, plot
from depthsys.demo import real
from depthsys.ltv.coupling import FORMS, mismatch, turned
from depthsys.report import Table, markdown
from depthsys.report.page import update
from depthsys.study.lines import lines_of

DOCS = Path(__file__).parents[1] / "docs"
PAGE, NUMBERS = DOCS / "dynamics" / "coupling.md", DOCS / "dynamics" / "coupling.json"
SPLIT = "100/50/50"
COUPLED, UNTRAINED = 10, 5  # prompts whose pairs of layers are looked at
TOPS, DEFAULT = (1, 10, 30), 10
SMALL = ("stories260K", "gpt280K_tinystories", "gpt2_6x128")
STORIES = "text/tinystories_valid_sample.txt"
LINES = 100
LATER = 2  # where a way begins that leaves the first steps out
MARKERS = {
    name: (f"<!-- {name}: examples/coupling_page.py -->", f"<!-- end of {name} -->")
    for name in ("coupling", "shape")
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("real", type=Path, help="folder of `depthsys fetch`")
    parser.add_argument("--small", type=Path, help="folder of small models and texts")
    args = parser.parse_args()
    numbers = json.loads(NUMBERS.read_text("utf-8")) if NUMBERS.exists() else {}
    if args.small is not None:
        numbers["small"] = {name: small(args.small, name) for name in SMALL}
        store(numbers)
    model = lm.DepthModel.load(args.real / real.MODEL, device="cpu")
    texts = lm.read_texts(args.real / "movies.csv").split(SPLIT).operating
    run = model.run(texts)
    few = model.run(texts.first(COUPLED))
    found = lm.coupling(few)
    shape = lm.trajectory_shape(run)
    numbers["SmolLM2-135M"] = {
        **coupling_numbers(few, found),
        "of_the_mean": mean_of(ltv.coupling(lm.jacobians(few))["coupling"].values),
        **shape_numbers(run),
    }
    store(numbers)
    fresh = untrained(model)
    plain = fresh.run(texts.first(UNTRAINED))
    numbers["SmolLM2-135M, untrained"] = {
        **coupling_numbers(plain, lm.coupling(plain)),
        **shape_numbers(fresh.run(texts)),
    }
    store(numbers)
    draw(numbers, shape)


def store(numbers: dict) -> None:
    """What is known so far, to the file and the page."""
    NUMBERS.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    tables = {"coupling": coupling_table(numbers), "shape": shape_table(numbers)}
    update(PAGE, {MARKERS[name]: markdown(table) for name, table in tables.items()})


def untrained(model: lm.DepthModel) -> lm.DepthModel:
    """The same model with weights as they were before training."""
    torch.manual_seed(0)
    hf = AutoModelForCausalLM.from_config(model.hf.config, dtype=torch.float32)
    return lm.DepthModel(hf, model.tokenizer, name="untrained", max_tokens=model.max_tokens)


def small(folder: Path, name: str) -> dict:
    """A small model on lines of stories, trained and not."""
    model = lm.DepthModel.load(folder / "weights" / name, device="cpu", max_tokens=40)
    lines = list(lines_of(folder / STORIES, LINES, 0).texts)
    found = {}
    for kind, each in (("trained", model), ("untrained", untrained(model))):
        few = each.run(lines[:COUPLED])
        found[kind] = {**coupling_numbers(few, lm.coupling(few)), **shape_numbers(each.run(lines))}
    return found


# ------------------------------------------------------------------------------------ numbers


def coupling_numbers(run: lm.Run, found: xr.Dataset) -> dict:
    """Of K = 10 by `lm.coupling`; of others from the same Jacobians, once they are known."""
    numbers = {"coupled_prompts": len(run), "map": [rounded(row) for row in mean(found)]}
    A = lm.jacobians(run, per_prompt=True)["A"]
    most = min(max(TOPS), A.sizes["state"])
    sums: dict[str, np.ndarray] = {}
    for each in A:
        M, s = turned(each.values.astype(float) - np.eye(A.sizes["state"]), most)
        for top in TOPS:
            for form in FORMS:
                m = mismatch(M[..., :top, :top], s[..., :top], form)
                sums[f"{form}, K = {top}"] = sums.get(f"{form}, K = {top}", 0) + m / len(A)
    numbers |= {name: mean_of(m) for name, m in sums.items()}
    # two ways to the same numbers
    np.testing.assert_allclose(mean(found), sums[f"signed, K = {DEFAULT}"], atol=2e-3)
    apart = ~np.eye(A.sizes["layer"], dtype=bool)
    numbers["range"] = rounded(np.quantile(found["coupling"].values[:, apart].mean(1), [0, 1]))
    values = found["singular_value"].mean("prompt")
    numbers["largest"], numbers["tenth"] = (rounded(values.isel(index=k)) for k in (0, -1))
    return numbers


def mean(found: xr.Dataset) -> np.ndarray:
    return found["coupling"].mean("prompt").values


def mean_of(m: np.ndarray) -> list[float]:
    """Mean over pairs of layers, over neighbours, and of the most coupled pair."""
    apart = ~np.eye(len(m), dtype=bool)
    at = np.arange(len(m))
    near = np.abs(np.subtract.outer(at, at)) == 1
    return rounded([m[apart].mean(), m[near].mean(), m[apart].min()])


def shape_numbers(run: lm.Run) -> dict:
    """Median and the middle 80 % of prompts, of whole ways and of those without the first steps."""
    found = {"prompts": len(run)}
    for start in (0, LATER):
        shape = lm.trajectory_shape(run, start=start)
        of_prompts = shape[[n for n in shape.data_vars if shape[n].dims == ("prompt",)]]
        found[f"from {start}"] = {
            str(name): rounded(np.quantile(values, [0.5, 0.1, 0.9]))
            for name, values in of_prompts.items()
        }
        found[f"from {start}"]["steps"] = shape.sizes["layer"]
    return found


def rounded(values) -> list[float]:
    return [float(f"{value:.4g}") for value in np.asarray(values, dtype=float)]


def models(numbers: dict) -> dict:
    """Every model by its name, trained and not."""
    found = {name: row for name, row in numbers.items() if name != "small"}
    for name, kinds in numbers.get("small", {}).items():
        found[name] = kinds["trained"]
        found[f"{name}, untrained"] = kinds["untrained"]
    return found


# ------------------------------------------------------------------------------------ tables


def coupling_table(numbers: dict) -> Table:
    rows = []
    kinds = [(top, form) for top in TOPS for form in FORMS]
    for name, found in models(numbers).items():
        cells = [found[f"{form}, K = {top}"] for top, form in kinds]
        rows.append((name, *(f"{mean:.2f}, {near:.2f}" for mean, near, _ in cells)))
    header = [f"K = {top}, {form}" for top, form in kinds]
    return Table(("model", *header), rows)


def shape_table(numbers: dict) -> Table:
    rows = []
    for name, found in models(numbers).items():
        for start in (0, LATER):
            way = found[f"from {start}"]
            line, low, high = way["line_shape"]
            rows.append(
                (
                    name,
                    str(start),
                    f"{line:.2f} [{low:.2f}, {high:.2f}]",
                    f"{np.sqrt(way['steps']):.2f}",
                    f"{way['length_ratio'][0]:.2f}",
                    f"{np.exp(way['spacing_rate'][0]):.2f}",
                    f"{way['spacing_r2'][0]:.2f}",
                    f"{np.exp(way['growth_rate'][0]):.2f}",
                    f"{way['growth_r2'][0]:.2f}",
                )
            )
    return Table(
        ("model", "from depth", "line-shape score [80 %]", "at right angles", "length / distance",
         "steps, per layer", "R²", "norm, per layer", "R²"),
        rows,
    )  # fmt: skip


# ------------------------------------------------------------------------------------ figures


def draw(numbers: dict, shape: xr.Dataset) -> None:
    fig, axes = plot.figure(12, 5, columns=2)
    for ax, name in zip(axes, ("SmolLM2-135M", "SmolLM2-135M, untrained"), strict=True):
        m = (("layer", "layer_2"), np.array(numbers[name]["map"]))
        plot.coupling(ax, xr.Dataset({"coupling": m}, attrs={"top": DEFAULT}))
        ax.set_title(name)
    plot.save(fig, DOCS / "figures" / "coupling.png", "png")
    fig, axes = plot.figure(11, 4.2, columns=2)
    plot.trajectory_shape(axes, shape)
    plot.save(fig, DOCS / "figures" / "trajectory_shape.png", "png")


if __name__ == "__main__":
    main()
