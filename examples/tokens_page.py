"""Gains of pushes at every token, on SmolLM2 and small models: docs/dynamics/tokens.md.

    depthsys fetch
    python examples/tokens_page.py ~/.cache/depthsys/real TEXT.txt REVIEWS.csv [MODEL FOLDER ...]

Some ten minutes on two cores. TEXT.txt is running text, a paragraph a line (the raw validation
split of WikiText-2 there), REVIEWS.csv rated texts for the further models, as the movies.csv of
`depthsys fetch` is. The numbers go to docs/dynamics/tokens.json and from there, as they are,
between the markers of the page; the figures go to docs/figures. What is stored of models whose
folders are not given stays. ``--tables`` only writes the tables and the figure of shares again.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import xarray as xr

from depthsys import demo, lm, plot
from depthsys.demo import grammar, real
from depthsys.report import Table, markdown
from depthsys.report.page import update

DOCS = Path(__file__).parents[1] / "docs"
PAGE, NUMBERS = DOCS / "dynamics/tokens.md", DOCS / "dynamics/tokens.json"
SPLIT = "100/10/30"  # a direction, none, 60 prompts
ENDS, PASSAGES = (16, 32, 48), 10  # tokens of a passage of text, and how many passages
PUSHED, LAGS, LAYERS = 8, (0, 1, 8), (1, 8, 15, 22)
DECAY = ("decay_rate", "decay_power", "decay_rate_r2", "decay_power_r2")
EMBEDDED = "demo_128x12"
BY = ["layer", "lag", "position"]
SHARES = "<!-- shares: examples/tokens_page.py -->", "<!-- end of shares -->"
MEASURED = "<!-- measured: examples/tokens_page.py -->", "<!-- end of measured -->"
KINDS = {
    "gain": {},
    "gain, by the state's norm": {"relative": True},
    "gradient": {"of": "gradient"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("real", type=Path, help="folder of `depthsys fetch`")
    parser.add_argument("text", type=Path, help="running text")
    parser.add_argument("reviews", type=Path, help="rated texts for the further models")
    parser.add_argument("more", type=Path, nargs="*", help="folders of further models")
    parser.add_argument("--tables", action="store_true", help="only write the tables again")
    asked = parser.parse_args()
    stored = json.loads(NUMBERS.read_text("utf-8")) if NUMBERS.exists() else {}
    if asked.tables:
        write_tables(stored)
        return draw_shares(stored["shares"]["SmolLM2, movies"])
    model = lm.DepthModel.load(asked.real / real.MODEL, device="cpu")
    splits = lm.read_texts(asked.real / "movies.csv").split(SPLIT)
    concept = lm.mean_difference(model, splits.concept)
    run = model.run(splits.held_out, tokens="all", contexts=False)
    found = {"SmolLM2, movies": lm.token_gains(run, concept)}
    passages = model.run(parts_of(model, asked.text), tokens="all", contexts=False)
    found["SmolLM2, wikitext"] = lm.token_gains(passages, concept)
    measured = really_pushed(model, splits.held_out, concept, found["SmolLM2, movies"])
    for name, other, texts in others(asked):
        v = lm.mean_difference(other, texts.concept)
        found[name] = lm.token_gains(other, texts.held_out, v)
    numbers = {
        "shares": with_stored(stored, {name: numbers_of(each) for name, each in found.items()}),
        "lengths": by_length(found["SmolLM2, wikitext"]),
        "measured": measured,
    }
    NUMBERS.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    write_tables(numbers)
    draw(lm.lag_map(found["SmolLM2, movies"]))
    draw_shares(numbers["shares"]["SmolLM2, movies"])


def with_stored(stored: dict, shares: dict) -> dict:
    """These rows, and those stored of models that were not looked at again."""
    return shares | {n: row for n, row in stored.get("shares", {}).items() if n not in shares}


def write_tables(numbers: dict) -> None:
    tables = {
        SHARES: share_table(numbers["shares"]),
        MEASURED: measured_table(numbers["measured"]),
    }
    update(PAGE, {markers: markdown(table) for markers, table in tables.items()})


def parts_of(model: lm.DepthModel, path: Path) -> list[list[int]]:
    """Token ids of passages of a text, each cut at all the ends: as many prompts a passage."""
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    rows, _ = model.tokenize([line for line in lines if len(line) > 400][:PASSAGES])
    return [row[:end] for row in rows for end in ENDS]


def others(asked: argparse.Namespace):
    """Names, models and splits of texts of small models."""
    demo_texts = lm.read_texts(grammar.labelled(200, seed=7)).split("60/10/30")
    demo_model = lm.DepthModel.load(demo.model_path(EMBEDDED), device="cpu")
    yield EMBEDDED, demo_model, demo_texts
    reviews = lm.read_texts(asked.reviews).split("100/10/30")
    for folder in asked.more:
        yield folder.name, lm.DepthModel.load(folder, device="cpu"), reviews


def really_pushed(
    model: lm.DepthModel, texts: lm.Texts, concept: xr.Dataset, exact: xr.Dataset
) -> dict:
    """Relative L2 of exact to measured gains, by the lag, over prompts and layers."""
    chosen = np.flatnonzero(exact["n_tokens"].values > max(LAGS))[:PUSHED]
    some = [texts.texts[row] for row in chosen]
    found = lm.measure_token_gains(model, some, concept, lags=LAGS, layers=LAYERS)["gain"]
    pair = exact["gain"].isel(prompt=chosen).sel(layer=list(LAYERS), lag=list(LAGS))
    # the texts again: other batches, other rounding
    error = abs(pair.values - found.values) ** 2
    by_lag = np.sqrt(error.sum((0, 1)) / (found.values**2).sum((0, 1)))
    return {
        "prompts": len(some),
        "step": found.attrs.get("step", lm.Step().size),
        "lags": list(LAGS),
        "layers": list(LAYERS),
        "relative_l2": rounded(by_lag),
    }


# ------------------------------------------------------------------------------------ numbers


def numbers_of(found: xr.Dataset) -> dict:
    maps = {kind: lm.lag_map(found, **options) for kind, options in KINDS.items()}
    gains = maps["gain"]
    return {
        "prompts": found.sizes["prompt"],
        "tokens": [int(found["n_tokens"].min()), int(found["n_tokens"].max())],
        "explained": {k: rounded(m["explained_in_all"].values) for k, m in maps.items()},
        "by_layer": {k: [rounded(r) for r in m["explained"].values] for k, m in maps.items()},
        "earlier_share": rounded(gains["earlier_share"].values),
        "decay": {k: {n: rounded(maps[k][n].values) for n in DECAY} for k in ("gain", "gradient")},
        "first": rounded(first_share(found)),
    }


def first_share(found: xr.Dataset) -> np.ndarray:
    """Of the squares of gains of earlier tokens, by the state's norm: the first token's (layer)."""
    square = (found["gain"] * found["state_norm"]).fillna(0) ** 2
    earlier = square.where(found["lag"] > 0, 0).sum("lag")
    first = square.isel(lag=found["n_tokens"] - 1).where(found["n_tokens"] > 1, 0)
    with np.errstate(invalid="ignore"):
        return (first.sum("prompt") / earlier.sum("prompt")).values


def by_length(found: xr.Dataset) -> dict:
    """Shares explained among prompts that are one passage, cut at several ends: the median."""
    parts = [
        lm.lag_map(found.isel(prompt=slice(start, start + len(ENDS))))["explained_in_all"].values
        for start in range(0, found.sizes["prompt"], len(ENDS))
    ]
    names = lm.lag_map(found)["by"].values.tolist()
    return dict(zip(names, rounded(np.median(parts, 0)), strict=True))


def rounded(values) -> list[float | None]:
    """None where nothing is known: JSON has no NaN."""
    flat = np.asarray(values, dtype=float)
    return [float(f"{value:.4g}") if np.isfinite(value) else None for value in flat]


def share_table(rows: dict) -> Table:
    heads = ("model and texts", "prompts", "of", "by layer", "by lag", "by position")
    cells = [
        (name, f"{row['prompts']}", kind, *(two_digits(share) for share in shares))
        for name, row in rows.items()
        for kind, shares in row["explained"].items()
    ]
    return Table(heads, cells)


def two_digits(share: float) -> str:
    """A share that rounds to nothing has no sign."""
    return f"{round(share, 2) + 0.0:.2f}"


def measured_table(found: dict) -> Table:
    cells = [
        (f"{lag}", f"{error:.1e}")
        for lag, error in zip(found["lags"], found["relative_l2"], strict=True)
    ]
    return Table(("lag", "relative L2 of exact to measured gains"), cells)


# ------------------------------------------------------------------------------------ figures


def draw(gains: xr.Dataset) -> None:
    fig, (left, right) = plot.figure(12, 4.4, columns=2)
    plot.token_gains(left, gains)
    plot.lag_curves(right, gains)
    plot.save(fig, DOCS / "figures" / "token_gains.png", "png")


def draw_shares(row: dict) -> None:
    """Shares by layer as they are stored."""
    fig, (left, middle, right) = plot.figure(15, 4.4, columns=3)
    for ax, kind, title in (
        (left, "gain", "gain per unit of the state"),
        (middle, "gain, by the state's norm", "gain per fraction of the state's norm"),
    ):
        shares = ("layer", "by"), np.array(row["by_layer"][kind], dtype=float)
        plot.lag_shares(ax, xr.Dataset({"explained": shares}, coords={"by": BY}))
        ax.set_title(title)
    earlier = np.array(row["earlier_share"], dtype=float)
    plot.earlier_shares(right, xr.Dataset({"earlier_share": ("layer", earlier)}))
    right.set_title("gradient")
    plot.save(fig, DOCS / "figures" / "lag_shares.png", "png")


if __name__ == "__main__":
    main()
