"""Spectra of depth and layers left out, on SmolLM2: docs/dynamics/spectra.md.

    depthsys fetch
    python examples/spectra_page.py ~/.cache/depthsys/real

Three to five minutes on two cores. The numbers go to docs/dynamics/spectra.json and from there, as
they are, between the markers of the page; the figures go to docs/figures.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import scipy.stats
import xarray as xr

from depthsys import lm, ltv, plot
from depthsys.demo import real
from depthsys.report import Table, markdown
from depthsys.report.page import update

DOCS = Path(__file__).parents[1] / "docs"
PAGE = DOCS / "dynamics/spectra.md"
TEXTS = ("movies", "amazon")
SPLIT = "100/10/50"  # a direction, 20 prompts for Jacobians, 100 prompts without each layer
ALONE = 4  # prompts whose own Jacobians are looked at
DRAWS = 1000
CURVES = ("departure", "symmetric_share")
PRODUCTS = ("rank_from_start", "rank_to_end", "growth_from_start", "growth_to_end", "modal_growth")
MARKERS = "<!-- skip: examples/spectra_page.py -->", "<!-- end of skip -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("real", type=Path, help="folder of `depthsys fetch`")
    folder = parser.parse_args().real
    model = lm.DepthModel.load(folder / real.MODEL, device="cpu")
    splits = {name: lm.read_texts(folder / f"{name}.csv").split(SPLIT) for name in TEXTS}
    skips = {name: skip(model, each) for name, each in splits.items()}
    spectra = {name: spectra_of(model, each.operating) for name, each in splits.items()}
    numbers = {
        "skip": {name: skip_numbers(found) for name, found in skips.items()},
        "spectra": {name: spectra_numbers(*found) for name, found in spectra.items()},
    }
    PAGE.with_suffix(".json").write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    update(PAGE, {MARKERS: markdown(skip_table(numbers["skip"]))})
    draw(skips, *spectra[TEXTS[0]][:2])


def skip(model: lm.DepthModel, splits: lm.Splits) -> xr.Dataset:
    concept = lm.mean_difference(model, splits.concept)
    return lm.layer_skip(model, splits.held_out, concept)


def spectra_of(model, texts) -> tuple[xr.Dataset, xr.Dataset, xr.Dataset]:
    """Of the mean Jacobians, of their updates, and of some prompts' own."""
    mean = lm.jacobians(model, texts)
    own = lm.jacobians(model, list(texts.texts[:ALONE]), per_prompt=True)
    return ltv.spectra(mean), ltv.spectra(mean, update=True), ltv.spectra(own)


# ------------------------------------------------------------------------------------ numbers


def skip_numbers(found: xr.Dataset) -> dict:
    """Curves over layers, and how far the predicted one agrees with the real one."""
    means = found.mean("prompt")
    curves = {name: rounded(means[name].values) for name in found.data_vars}
    parts = {"all": slice(None), "without the first two": slice(2, None)}
    agreement = {}
    for name, layers in parts.items():
        pair = (found[each].isel(layer=layers).values for each in ("predicted", "shift"))
        agreement[name] = agreed(*pair)
    return {"prompts": found.sizes["prompt"], "curves": curves, "agreement": agreement}


def agreed(predicted: np.ndarray, real_: np.ndarray) -> dict[str, list[float]]:
    """Relative L2 and Spearman of mean curves (prompt, layer), with 95 % intervals over prompts."""
    rng = np.random.default_rng(0)
    draws = [np.arange(len(real_)), *rng.integers(0, len(real_), (DRAWS, len(real_)))]
    pairs = [(predicted[rows].mean(0), real_[rows].mean(0)) for rows in draws]
    found = {
        "relative_l2": [np.linalg.norm(p - r) / np.linalg.norm(r) for p, r in pairs],
        "spearman": [scipy.stats.spearmanr(p, r).statistic for p, r in pairs],
    }
    return {
        name: rounded([values[0], *np.quantile(values[1:], [0.025, 0.975])])
        for name, values in found.items()
    }


def spectra_numbers(mean: xr.Dataset, added: xr.Dataset, own: xr.Dataset) -> dict:
    alone = own.median("prompt")
    return {
        "layer": {name: rounded(mean[name].values) for name in (*CURVES, *PRODUCTS)},
        "update": {name: rounded(added[name].values) for name in CURVES},
        "turned": rounded((np.abs(added["angle"]) > np.pi / 2).mean("mode").values),
        "prompt": {name: rounded(alone[name].values) for name in (*CURVES, *PRODUCTS)},
    }


def rounded(values) -> list[float]:
    return [float(f"{value:.4g}") for value in np.asarray(values, dtype=float)]


def skip_table(rows: dict) -> Table:
    cells = []
    for texts, row in rows.items():
        for part, found in row["agreement"].items():
            error, rank = found["relative_l2"], found["spearman"]
            cells.append(
                (
                    texts,
                    part,
                    f"{error[0]:.2f} [{error[1]:.2f}, {error[2]:.2f}]",
                    f"{rank[0]:.2f} [{rank[1]:.2f}, {rank[2]:.2f}]",
                )
            )
    return Table(("texts", "layers", "relative L2 [95 %]", "Spearman [95 %]"), cells)


# ------------------------------------------------------------------------------------ figures


def draw(skips: dict[str, xr.Dataset], mean: xr.Dataset, added: xr.Dataset) -> None:
    fig, axes = plot.figure(12, 4, columns=len(skips))
    for ax, (name, found) in zip(axes, skips.items(), strict=True):
        plot.layer_skip(ax, found)
        ax.set_title(name)
    plot.save(fig, DOCS / "figures" / "layer_skip.png", "png")
    fig, axes = plot.figure(13, 4.2, columns=3)
    plot.spectra(axes, mean)
    plot.save(fig, DOCS / "figures" / "spectra.png", "png")
    fig, (left, right) = plot.figure(12, 4.2, columns=2)
    plot.eigenvalue_angles(left, mean)
    plot.eigenvalue_angles(right, added)
    plot.save(fig, DOCS / "figures" / "eigenvalue_angles.png", "png")


if __name__ == "__main__":
    main()
