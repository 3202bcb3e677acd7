"""Spectra of depth and layers left out, on SmolLM2: docs/dynamics/spectra.md.

    depthsys fetch
    python examples/spectra_page.py ~/.cache/depthsys/real [FOLDER OF ANOTHER MODEL ...]

Ten to fifteen minutes on two cores. The numbers go to docs/dynamics/spectra.json and from there, as
they are, between the markers of the page; the figures go to docs/figures. What is stored of models
whose folders are not given stays. ``--tables`` only writes the tables again.
"""

import argparse
import copy
import json
from pathlib import Path

import numpy as np
import scipy.stats
import torch
import xarray as xr
from transformers import AutoModelForCausalLM

from depthsys import demo, lm, ltv, plot
from depthsys.demo import grammar, real
from depthsys.report import Table, markdown
from depthsys.report.page import update

DOCS = Path(__file__).parents[1] / "docs"
PAGE, NUMBERS = DOCS / "dynamics/spectra.md", DOCS / "dynamics/spectra.json"
TEXTS = ("movies", "amazon")
SPLIT = "100/10/50"  # a direction, 20 prompts for Jacobians, 100 prompts without each layer
ALONE = 4  # prompts whose own Jacobians are looked at
DRAWS = 1000
CURVES = ("departure", "symmetric_share")
PRODUCTS = ("rank_from_start", "rank_to_end", "growth_from_start", "growth_to_end", "modal_growth")
MARKERS = "<!-- skip: examples/spectra_page.py -->", "<!-- end of skip -->"
RADII = "<!-- radii: examples/spectra_page.py -->", "<!-- end of radii -->"
PARTS = {  # the last layer is exact, as no block follows
    "all": slice(None),
    "without the first two": slice(2, None),
    "without the first and the last two": slice(2, -2),
}
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 1)
SHOWN = (0, 1, 5, 10, 15, 20, 25, 28, 29)  # layers in the table of radii
OF_MODELS = "<!-- models: examples/spectra_page.py -->", "<!-- end of models -->"
TRAINED, UNTRAINED = "SmolLM2", "SmolLM2, untrained"
EMBEDDED = "demo_128x12"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("real", type=Path, help="folder of `depthsys fetch`")
    parser.add_argument("more", type=Path, nargs="*", help="folders of other models")
    parser.add_argument("--tables", action="store_true", help="only write the tables again")
    asked = parser.parse_args()
    stored = json.loads(NUMBERS.read_text("utf-8")) if NUMBERS.exists() else {}
    if asked.tables:
        return write_tables(stored)
    folder = asked.real
    model = lm.DepthModel.load(folder / real.MODEL, device="cpu")
    splits = {name: lm.read_texts(folder / f"{name}.csv").split(SPLIT) for name in TEXTS}
    skips = {name: skip(model, each) for name, each in splits.items()}
    spectra = {name: spectra_of(model, each.operating) for name, each in splits.items()}
    numbers = {
        "skip": {name: skip_numbers(found) for name, found in skips.items()},
        "spectra": {name: spectra_numbers(*found) for name, found in spectra.items()},
        "radii": radii_numbers(*spectra[TEXTS[0]][:2]),
    }
    numbers["models"] = with_stored(stored, {
        TRAINED: of_model(skips[TEXTS[0]], *spectra[TEXTS[0]]),
        **{name: of_model(*both(each, texts)) for name, each, texts in others(asked, model)},
    })  # fmt: skip
    NUMBERS.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    write_tables(numbers)
    draw_skips(skips)
    draw(*spectra[TEXTS[0]][:2])


def with_stored(stored: dict, models: dict) -> dict:
    """These rows of models, and those stored of models that were not looked at again."""
    return models | {n: row for n, row in stored.get("models", {}).items() if n not in models}


def write_tables(numbers: dict) -> None:
    tables = {
        MARKERS: skip_table(numbers["skip"]),
        RADII: radii_table(numbers["radii"]),
        OF_MODELS: model_table(numbers["models"]),
    }
    update(PAGE, {markers: markdown(table) for markers, table in tables.items()})


def skip(model: lm.DepthModel, splits: lm.Splits) -> xr.Dataset:
    concept = lm.mean_difference(model, splits.concept)
    return lm.layer_skip(model, splits.held_out, concept)


def spectra_of(model, texts) -> tuple[xr.Dataset, xr.Dataset, xr.Dataset]:
    """Of the mean Jacobians, of their updates, and of some prompts' own."""
    mean = lm.jacobians(model, texts)
    own = lm.jacobians(model, list(texts.texts[:ALONE]), per_prompt=True)
    return ltv.spectra(mean), ltv.spectra(mean, update=True), ltv.spectra(own)


def others(asked: argparse.Namespace, real_model: lm.DepthModel):
    """Names, models and texts: untrained weights, an embedded model, and those asked for."""
    movies = lm.read_texts(asked.real / f"{TEXTS[0]}.csv").split(SPLIT)
    torch.manual_seed(0)
    config = copy.deepcopy(real_model.hf.config)
    config.dtype = torch.float32
    untrained = AutoModelForCausalLM.from_config(config)
    yield UNTRAINED, lm.DepthModel(untrained.eval(), real_model.tokenizer), movies
    embedded = lm.DepthModel.load(demo.model_path(EMBEDDED), device="cpu")
    own = lm.read_texts(grammar.labelled(400, seed=7)).split(SPLIT)
    yield EMBEDDED, embedded, own
    for folder in asked.more:
        yield folder.name, lm.DepthModel.load(folder, device="cpu"), movies


def both(model: lm.DepthModel, splits: lm.Splits) -> tuple[xr.Dataset, ...]:
    """Layers left out, and spectra."""
    return skip(model, splits), *spectra_of(model, splits.operating)


# ------------------------------------------------------------------------------------ numbers


def skip_numbers(found: xr.Dataset) -> dict:
    """Curves over layers, and how far the predicted one agrees with the real one."""
    means = found.mean("prompt")
    curves = {name: rounded(means[name].values) for name in found.data_vars}
    agreement = {}
    for name, layers in PARTS.items():
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


def radii_numbers(mean: xr.Dataset, added: xr.Dataset) -> dict:
    """Quantiles of the moduli of each layer's eigenvalues: a curve over layers for each."""
    found = {}
    for of, each in (("layer", mean), ("update", added)):
        curves = np.quantile(each["modulus"].transpose("layer", "mode").values, QUANTILES, axis=1)
        found[of] = {f"{q:g}": rounded(curve) for q, curve in zip(QUANTILES, curves, strict=True)}
    return found


def of_model(skipped: xr.Dataset, mean: xr.Dataset, added: xr.Dataset, own: xr.Dataset) -> dict:
    """What the table of models shows: means over the first and the last third of the layers."""
    n_layers, width = mean.sizes["layer"], mean.sizes["mode"]
    third = max(1, n_layers // 3)
    parts = {"first": slice(0, third), "last": slice(n_layers - third, n_layers)}
    thirds = {
        f"{name} {of}": [float(f"{found[name][part].mean():.3g}") for part in parts.values()]
        for of, found in (("layer", mean), ("update", added))
        for name in CURVES
    }
    turned = (np.abs(added["angle"]) > np.pi / 2).mean("mode")
    return {
        "layers": n_layers,
        "width": width,
        "rank": float(f"{mean['rank_to_end'][0] / width:.3g}"),
        **thirds,
        "turned": [float(f"{turned[part].mean():.3g}") for part in parts.values()],
        "growth": float(f"{mean['growth_from_start'][-1]:.3g}"),
        "modal": float(f"{mean['modal_growth'][-1]:.3g}"),
        "growth alone": float(f"{own['growth_from_start'][:, -1].median():.3g}"),
        "skip": skip_numbers(skipped)["agreement"]["without the first two"]["relative_l2"],
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


def radii_table(found: dict) -> Table:
    rows = []
    for layer in SHOWN:
        cells = []
        for of in ("layer", "update"):
            low, _, middle, _, high, largest = (found[of][f"{q:g}"][layer] for q in QUANTILES)
            cells += [f"{middle:.2f} [{low:.2f}, {high:.2f}]", f"{largest:.3g}"]
        rows.append((str(layer), *cells))
    heads = ("median modulus [90 %]", "largest", "of the update: median [90 %]", "largest")
    return Table(("layer", *heads), rows)


def model_table(rows: dict) -> Table:
    header = (
        "model", "layers x width", "effective rank of the product, of the width",
        "departure, first to last third", "of updates", "symmetric share, first to last third",
        "of updates", "norm of the product (of one prompt)", "product of radii",
        "skip without the first two layers, relative L2 [95 %]",
    )  # fmt: skip
    cells = [
        (
            name,
            f"{row['layers']} x {row['width']}",
            f"{100 * row['rank']:.0f} %",
            *(
                "{:.2f} to {:.2f}".format(*row[f"{curve} {of}"])
                for curve in CURVES
                for of in ("layer", "update")
            ),
            f"{row['growth']:.3g} ({row['growth alone']:.3g})",
            f"{row['modal']:.3g}",
            "{:.2f} [{:.2f}, {:.2f}]".format(*row["skip"]),
        )
        for name, row in rows.items()
    ]
    return Table(header, cells)


# ------------------------------------------------------------------------------------ figures


def draw_skips(skips: dict[str, xr.Dataset]) -> None:
    fig, axes = plot.figure(12, 4, columns=len(skips))
    for ax, (name, found) in zip(axes, skips.items(), strict=True):
        plot.layer_skip(ax, found)
        ax.set_title(name)
    plot.save(fig, DOCS / "figures" / "layer_skip.png", "png")


def draw(mean: xr.Dataset, added: xr.Dataset) -> None:
    fig, axes = plot.figure(13, 4.2, columns=3)
    plot.spectra(axes, mean)
    plot.save(fig, DOCS / "figures" / "spectra.png", "png")
    fig, axes = plot.figure(12, 8, columns=2, rows=2)
    for column, found in enumerate((mean, added)):
        plot.eigenvalue_angles(axes[column], found)
        plot.eigenvalue_radii(axes[2 + column], found)
    plot.save(fig, DOCS / "figures" / "eigenvalue_angles.png", "png")


if __name__ == "__main__":
    main()
