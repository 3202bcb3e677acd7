"""Detached maps on SmolLM2 and other models: docs/dynamics/detached.md.

    depthsys fetch
    python examples/detached_page.py ~/.cache/depthsys/real [FOLDER OF ANOTHER MODEL ...]

Some fifteen minutes on two cores. The numbers go to docs/dynamics/detached.json and from there, as
they are, between the markers of the page; the figures go to docs/figures. What is stored of models
whose folders are not given stays. ``--tables`` only writes the tables again.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import xarray as xr

from depthsys import demo, lm, ltv, plot
from depthsys.demo import grammar, real
from depthsys.ltv.plan import layer_weights, plan_energy
from depthsys.report import Table, markdown
from depthsys.report.page import update

DOCS = Path(__file__).parents[1] / "docs"
PAGE, NUMBERS = DOCS / "dynamics/detached.md", DOCS / "dynamics/detached.json"
TEXTS = ("movies", "amazon")
SPLIT = "100/10/20"  # a direction; 20 prompts for maps and plans; 40 for gains and energies
EMBEDDED = "demo_128x12"
WRITTEN = 12  # prompts that are gone on with
STRENGTH = 2.0  # of the plans that are written with
LINEAR = ("up", "gate")
ERRORS = ("block", "attention", "mlp", "stack")


def markers(name: str) -> tuple[str, str]:
    return f"<!-- {name}: examples/detached_page.py -->", f"<!-- end of {name} -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("real", type=Path, help="folder of `depthsys fetch`")
    parser.add_argument("more", type=Path, nargs="*", help="folders of other models")
    parser.add_argument("--tables", action="store_true", help="only write the tables again")
    asked = parser.parse_args()
    stored = json.loads(NUMBERS.read_text("utf-8")) if NUMBERS.exists() else {}
    if asked.tables:
        return write_tables(stored)
    model = lm.DepthModel.load(asked.real / real.MODEL, device="cpu")
    splits = {n: lm.read_texts(asked.real / f"{n}.csv").split(SPLIT) for n in TEXTS}
    numbers: dict = {"models": {}, "steering": {}}
    for name, each in splits.items():
        found, spectra, gains = of_model(model, each)
        numbers["models"][f"SmolLM2-135M, {name}"] = found
        if name == TEXTS[0]:
            numbers["steering"][name] = steered(model, each)
            numbers["tokens"] = tokens_of(spectra, each.operating.texts[0])
            draw(spectra, gains)
    for name, other, texts in others(asked, splits[TEXTS[0]]):
        numbers["models"][name] = of_model(other, texts)[0]
    numbers["models"] = with_stored(stored, numbers["models"])
    NUMBERS.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    write_tables(numbers)


def with_stored(stored: dict, models: dict) -> dict:
    """These rows of models, and those stored of models that were not looked at again."""
    return models | {n: row for n, row in stored.get("models", {}).items() if n not in models}


def write_tables(numbers: dict) -> None:
    update(PAGE, {markers(name): markdown(table(numbers)) for name, table in TABLES.items()})


def others(asked: argparse.Namespace, movies: lm.Splits):
    """Names, models and texts: an embedded model, and those asked for."""
    embedded = lm.DepthModel.load(demo.model_path(EMBEDDED), device="cpu")
    yield EMBEDDED, embedded, lm.read_texts(grammar.labelled(400, seed=7)).split(SPLIT)
    for folder in asked.more:
        yield folder.name, lm.DepthModel.load(folder, device="cpu"), movies


# ------------------------------------------------------------------------------------ numbers


def of_model(model: lm.DepthModel, splits: lm.Splits) -> tuple[dict, xr.Dataset, xr.Dataset]:
    run = model.run(splits.operating)
    spectra = lm.detached_spectra(run, n_vectors=8, n_tokens=0 if model.tokenizer is None else 5)
    errors = {linear: lm.reconstruction(run, linear=linear) for linear in LINEAR}
    shares = lm.token_shares(run)
    concept = lm.mean_difference(model, splits.concept)
    gains, agreed = gains_of(model, splits, concept)
    start = spectra.sel(map="from_start")
    up = errors["up"]
    found = {
        "width": model.n_features,
        "layers": model.n_layers,
        "errors": {
            linear: {name: rounded(each[name].max()) for name in ERRORS}
            for linear, each in errors.items()
        },
        "without_biases": rounded(up["stack_without_biases"].mean()),
        "shares": shares_of(shares),
        "stable_rank": {
            name: rounded(spectra["stable_rank"].sel(map=name).median("prompt"))
            for name in spectra["map"].values
        },
        "own_share": rounded(start["own_share"].isel(layer=-1).mean("prompt")),
        "kept": spectra["kept"].values.tolist(),
        "low_rank_error": {
            name: rounded(spectra["low_rank_error"].sel(map=name).median("prompt"))
            for name in spectra["map"].values
        },
        "projection": rounded(projected(start).median("prompt")),
        "gains": {name: rounded(gains[name].mean("prompt")) for name in gains.data_vars},
        "agreement": agreed,
    }
    return found, spectra, gains


def projected(start: xr.Dataset) -> xr.DataArray:
    """The part of every state in the span of the last map's eight leading left vectors."""
    return (start["projection"] ** 2).sum("rank") ** 0.5


def shares_of(shares: xr.Dataset) -> dict:
    share = shares["share"]
    count = share.notnull().sum("token").values
    first = np.array([row[len(row) - n] for row, n in zip(share.values, count, strict=True)])
    return {
        "last": rounded(share.isel(token=-1).mean()),
        "first": rounded(first.mean()),
        "biases": rounded(shares["bias_share"].sum("layer").mean()),
        "largest_other": rounded(share.isel(token=slice(-1)).max("token").mean()),
    }


def gains_of(model, splits, concept) -> tuple[xr.Dataset, dict]:
    run = model.run(splits.held_out)
    measured = lm.measure_gains_at(run, concept, [lm.Step()])[0]
    kinds = {"exact": lm.Linearisation()}
    kinds |= {f"detached, {n}": lm.Linearisation(kind="detached", linear=n) for n in LINEAR}
    linear = {name: lm.linear_gains(run, concept, part=kind) for name, kind in kinds.items()}
    agreed = {}
    for name, each in linear.items():
        table = lm.agreement(each, measured, paired=True)
        agreed[name] = {
            quantity: {str(layers): rounded(table[quantity].sel(layers=layers))
                       for layers in table["layers"].values}
            for quantity in ("relative_l2", "spearman")
        }  # fmt: skip
    gains = {
        "measured_gain": measured["gain"],
        "exact_gain": linear["exact"]["gain"],
        "detached_gain": linear["detached, up"]["gain"],
        "gate_gain": linear["detached, gate"]["gain"],
    }
    return xr.Dataset(gains), agreed


def steered(model: lm.DepthModel, splits: lm.Splits) -> dict:
    """What the schedule by detached gains needs and costs, beside that of the linear system."""
    concept = lm.mean_difference(model, splits.concept)
    run = model.run(splits.operating)
    system = lm.identify(run, concept)
    target = float(system["y_std"].values.ravel()[0])
    kinds = {f"detached, {n}": lm.Linearisation(kind="detached", linear=n) for n in LINEAR}
    plans = {"gains of Jacobians": lm.gains_plan(run, concept, target)}
    plans |= {name: lm.gains_plan(run, concept, target, part=kind) for name, kind in kinds.items()}
    energies = lm.compare_energies(model, splits.held_out, concept, system, target, plans=plans)
    of = ("energy", "multiple", "multiple_low", "multiple_high")
    table = {
        str(name): {quantity: rounded(energies[quantity].sel(schedule=name)) for quantity in of}
        for name in energies["schedule"].values
    }
    written = {"linear system": ltv.minimum_energy(system, target, energy="relative"), **plans}
    weights = layer_weights(system, "relative")
    own = {name: float(plan_energy(plan["u"], weights)) for name, plan in written.items()}
    for name in kinds:  # as hard as the plan pushes
        scale = np.sqrt(own["linear system"] / own[name])
        written[f"{name}, scaled"] = written[name].assign(u=scale * written[name]["u"])
        own[f"{name}, scaled"] = own["linear system"]
    prompts = list(splits.held_out.texts[:WRITTEN])
    effects = lm.generation_effects(
        model, prompts, concept, {n: (p, "generated") for n, p in written.items()},
        strengths=(0.0, STRENGTH), max_new_tokens=24,
    )  # fmt: skip
    at = effects.sel(strength=STRENGTH)
    prices = {
        str(name): {
            quantity: rounded(at[quantity].sel(plan=name))
            for quantity in ("readout_new_shift", "perplexity_mean", "kl_mean")
        }
        | {"energy": rounded(STRENGTH**2 * own[str(name)])}
        for name in effects["plan"].values
    }
    before = rounded(effects["perplexity_mean"].sel(strength=0.0).isel(plan=0))
    return {"target": target, "energies": table, "prices": prices, "perplexity_before": before}


def tokens_of(spectra: xr.Dataset, text: str) -> dict:
    """Tokens of the leading directions of the whole map of the first prompt."""
    whole = spectra.sel(map="from_start").isel(prompt=0)
    return {
        "text": text,
        "singular_value": rounded(whole["singular_value"].isel(layer=-1)[:8]),
        **{
            name: whole[f"{name}_text"].isel(layer=-1).values[:5].tolist()
            for name in ("output", "input")
        },
        "of_layers": {
            str(layer): whole["output_text"].isel(layer=layer).values[0].tolist()
            for layer in np.linspace(0, whole.sizes["layer"] - 1, 6).round().astype(int)
        },
    }


def rounded(values):
    values = np.asarray(values, dtype=float)
    if values.ndim == 0:
        return float(f"{values:.4g}")
    return [rounded(value) for value in values]


# ------------------------------------------------------------------------------------ tables


def error_table(numbers: dict) -> Table:
    rows = []
    for name, found in numbers["models"].items():
        for linear, errors in found["errors"].items():
            cells = [f"{errors[e]:.0e}" for e in ERRORS]
            missing = f"{found['without_biases']:.2f}" if found["without_biases"] else "no biases"
            rows.append((name, linear, *cells, missing if linear == "up" else ""))
    return Table(("model, texts", "linear factor", *ERRORS, "stack without biases"), rows)


def gain_table(numbers: dict) -> Table:
    rows = []
    for name, found in numbers["models"].items():
        for kind, agreed in found["agreement"].items():
            error, rank = agreed["relative_l2"], agreed["spearman"]
            cells = [f"{error[n][0]:.2g}" for n in error] + [f"{rank[n][0]:.2f}" for n in rank]
            rows.append((name, kind, *cells))
    names = list(next(iter(numbers["models"].values()))["agreement"]["exact"]["relative_l2"])
    words = [n.replace("_", " ") for n in names]
    heads = [f"{quantity}, {n}" for quantity in ("relative L2", "Spearman") for n in words]
    return Table(("model, texts", "gains", *heads), rows)


def rank_table(numbers: dict) -> Table:
    rows = []
    for name, found in numbers["models"].items():
        ranks, errors = found["stable_rank"], found["low_rank_error"]["from_start"][-1]
        kept = found["kept"]
        shown = [f"{errors[kept.index(k)]:.2f}" if k in kept else "" for k in (1, 4, 16, 64)]
        shares = found["shares"]
        rows.append(
            (
                name,
                f"{found['width']}",
                f"{np.median(ranks['layer']):.1f}",
                f"{ranks['from_start'][-1]:.1f}",
                *shown,
                f"{shares['last']:.2f}",
                f"{shares['first']:.2f}",
                f"{shares['biases']:.2f}",
            )
        )
    heads = ("model, texts", "H", "stable rank, layers", "whole map")
    errors = tuple(f"error with {k}" for k in (1, 4, 16, 64))
    return Table((*heads, *errors, "share of last token", "first token", "biases"), rows)


def energy_table(numbers: dict) -> Table:
    rows = []
    for texts, found in numbers["steering"].items():
        for name, each in found["energies"].items():
            m = [each["multiple"], each["multiple_low"], each["multiple_high"]]
            told = f"{m[0]:.3g}" if np.isfinite(m[0]) else "not reached"
            between = f" [{m[1]:.3g}, {m[2]:.3g}]" if np.isfinite(m).all() else ""
            rows.append((texts, name.replace("_", " "), told + between))
    return Table(("texts", "schedule", "energy, multiples of the plan [95 %]"), rows)


def price_table(numbers: dict) -> Table:
    rows = []
    for texts, found in numbers["steering"].items():
        for name, each in found["prices"].items():
            shift = each["readout_new_shift"]
            share = [value / found["target"] for value in shift]
            rows.append(
                (
                    texts,
                    name,
                    f"{each['energy']:.2g}",
                    *(f"{one[0]:.2f} [{one[1]:.2f}, {one[2]:.2f}]" for one in (shift, share)),
                    f"{each['perplexity_mean'][0]:.1f}",
                    f"{each['kl_mean'][0]:.3f}",
                )
            )
    heads = ("energy", "shift of the text [95 %]", "in standard deviations [95 %]", "perplexity",
             "KL, nats")  # fmt: skip
    return Table(("texts", "plan", *heads), rows)


def projection_table(numbers: dict) -> Table:
    """At quarters of the depth: layers behind which the states are."""
    rows = []
    for name, found in numbers["models"].items():
        share = found["projection"]
        behind = [int(q * len(share)) for q in (0, 0.25, 0.5, 0.8)] + [len(share) - 1]
        rows.append((name, *(f"{100 * share[k]:.0f} % ({k})" for k in behind)))
    return Table(("model, texts", "first layer", "a quarter", "half", "four fifths", "last"), rows)


def paper_table(numbers: dict) -> Table:
    """What is said of arXiv 2505.24293 where it could be read, and what is found here."""
    models = numbers["models"]
    large = [found for name, found in models.items() if name.startswith("SmolLM2")]
    movies, small = large[0], [found for name, found in models.items() if found not in large]
    errors = [each[e] for found in large for each in found["errors"].values() for e in ERRORS]
    whole = [found["stable_rank"]["from_start"][-1] for found in small]
    rows = [
        ("values are reconstructed with a relative error below 1e-13 in float64, for Qwen 3, Gemma "
         "3 and Llama 3 [A]",
         "below 1e-12 in float64 on random tiny models of all families (tests); float64 was not "
         "run on SmolLM2", "yes, to the tests' bound"),
        ("about 1e-6, without a dtype [C]",
         f"{min(errors):.0e} to {max(errors):.0e} in float32 on SmolLM2", "yes"),
        ("models work in extremely low-dimensional subspaces [A]",
         f"whole map: stable rank {movies['stable_rank']['from_start'][-1]:.1f} of "
         f"{movies['width']}, of the small models {min(whole):.1f} to {max(whole):.1f}; single "
         f"layers of SmolLM2: {np.median(movies['stable_rank']['layer']):.0f}",
         "of the product, not of single layers"),
        ("many of the largest singular vectors decode to concepts of the likeliest next token [A1]",
         "the first writes what may follow a review; of the next four we see no sense",
         "of the first alone"),
        ("concepts are inserted into unrelated text by the maps of layers [A]",
         "not repeated; used as gains, see above", "not tested"),
    ]  # fmt: skip
    return Table(("the paper says", "here", "holds?"), rows)


def token_table(numbers: dict) -> Table:
    found = numbers["tokens"]
    rows = [
        (f"{value:.3g}", told(writes), told(reads))
        for value, writes, reads in zip(
            found["singular_value"], found["output"], found["input"], strict=False
        )
    ]
    return Table(("singular value", "writes", "reads"), rows)


def told(tokens: list[str]) -> str:
    """Tokens as a table can hold them."""
    bare = (t.strip().replace("|", "/").replace("`", "'").replace("\n", "↵") for t in tokens)
    return " ".join(f"`{t or '␣'}`" for t in bare)


TABLES = {
    "errors": error_table,
    "gains": gain_table,
    "ranks": rank_table,
    "energies": energy_table,
    "prices": price_table,
    "projection": projection_table,
    "tokens": token_table,
    "paper": paper_table,
}


# ------------------------------------------------------------------------------------ figures


def draw(spectra: xr.Dataset, gains: xr.Dataset) -> None:
    fig, axes = plot.figure(13, 4.4, columns=3)
    plot.singular_values(axes[0], spectra.sel(map="from_start"))
    plot.stable_rank(axes[1], spectra)
    plot.low_rank_errors(axes[2], spectra.sel(map="from_start"))
    plot.save(fig, DOCS / "figures" / "detached_spectra.png", "png")
    fig, (ax,) = plot.figure(8, 4)
    plot.detached_gains(ax, gains)
    plot.save(fig, DOCS / "figures" / "detached_gains.png", "png")


if __name__ == "__main__":
    main()
