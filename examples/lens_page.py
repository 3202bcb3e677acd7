"""Jacobian lenses on SmolLM2 and small models: the numbers and figures of docs/dynamics/lens.md.

    depthsys fetch
    python examples/lens_page.py ~/.cache/depthsys/real [--small FOLDER]

The published definition takes most of the time: some minutes a prompt on two cores. The numbers go
to docs/dynamics/lens.json, and between the markers of the page; the figures go to docs/figures.
FOLDER holds the models weights/stories260K, weights/gpt280K_tinystories and weights/gpt2_6x128,
each as Hugging Face writes it, and text/tinystories_valid_sample.txt, one story or part of one a
line; without it, what is stored of them stays. ``--tables`` only writes the tables again.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import xarray as xr

from depthsys import lm, plot
from depthsys.demo import real
from depthsys.report import Table, markdown
from depthsys.report.page import update
from depthsys.study.lines import lines_of

DOCS = Path(__file__).parents[1] / "docs"
PAGE, NUMBERS = DOCS / "dynamics" / "lens.md", DOCS / "dynamics" / "lens.json"
SPLIT = "100/15/25"  # of each class: a direction, 30 prompts for the lens, 50 that are read
OTHERS = "amazon"  # texts of another kind, which the same lens reads
SMALL = ("stories260K", "gpt280K_tinystories", "gpt2_6x128")
STORIES = "text/tinystories_valid_sample.txt"
FEW, LENGTHS = 2, (26, 36)  # prompts and tokens for both definitions, on SmolLM2
LINES, TOKENS = 60, 40  # lines of stories, cut there
PROMPT = "The capital of France is"
SHOWN = 3  # every so many depths in the figure of tokens
AT = (0, 10, 15, 20, 25)
MARKERS = {
    name: (f"<!-- {name}: examples/lens_page.py -->", f"<!-- end of {name} -->")
    for name in ("read", "definitions", "directions", "paper")
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("real", type=Path, help="folder of `depthsys fetch`")
    parser.add_argument("--small", type=Path, help="folder of small models and texts")
    parser.add_argument("--tables", action="store_true", help="only write the tables again")
    args = parser.parse_args()
    numbers = json.loads(NUMBERS.read_text("utf-8")) if NUMBERS.exists() else {}
    if args.tables:
        return store(numbers)
    if args.small is not None:
        numbers["small"] = {name: small(args.small, name) for name in SMALL}
        store(numbers)
    model = lm.DepthModel.load(args.real / real.MODEL, device="cpu")
    texts = {n: lm.read_texts(args.real / f"{n}.csv").split(SPLIT) for n in ("movies", OTHERS)}
    operating = model.run(texts["movies"].operating)
    lens = lm.lens(operating)
    read = {n: lm.lens_agreement(model, each.held_out, lens) for n, each in texts.items()}
    numbers["lens"] = lens_numbers(lens, operating)
    numbers["read"] = {name: read_numbers(each) for name, each in read.items()}
    concept = lm.mean_difference(model, texts["movies"].concept)
    numbers["directions"] = direction_numbers(model, concept, lens)
    store(numbers)
    draw(model, lens, read["movies"])
    few = of_lengths(model, texts[OTHERS].operating.texts, LENGTHS, FEW)
    numbers["definitions"] = definition_numbers(model, few, texts["movies"].held_out)
    store(numbers)


def store(numbers: dict) -> None:
    """What is known so far, to the file and, once it is all there, to the page."""
    NUMBERS.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    if {"read", "directions", "definitions"} <= {*numbers}:
        tables = {
            "read": read_table(numbers),
            "definitions": definition_table(numbers),
            "directions": direction_table(numbers),
        }
        if {*SMALL} <= {*numbers.get("small", {})}:
            tables["paper"] = paper_table(numbers)
        update(PAGE, {MARKERS[name]: markdown(table) for name, table in tables.items()})


# ------------------------------------------------------------------------------------ numbers


def lens_numbers(lens: xr.Dataset, run: lm.Run) -> dict:
    """What prompts share, and the lens against the product of mean Jacobians and half of itself."""
    mean = lm.jacobians(run)["A"].values.astype(float)
    J = lens["J"].values.astype(float)
    product, products = np.eye(J.shape[-1]), [np.eye(J.shape[-1])]
    for A in mean[::-1]:
        product = product @ A
        products.insert(0, product)
    halves = [
        lm.lens(run.model, list(run.texts.texts[part]), depths=[10, 20])
        for part in (slice(0, None, 2), slice(1, None, 2))
    ]
    return {
        "prompts": len(run),
        "share": rounded(norms(J) / lens["prompt_norm"].values),
        "product_of_means": rounded(norms(np.array(products) - J) / norms(J)),
        "halves": {
            "depth": [10, 20],
            "difference": rounded(norms(halves[0]["J"] - halves[1]["J"]) / norms(J[[10, 20]])),
        },
    }


def norms(J) -> np.ndarray:
    return np.linalg.norm(np.asarray(J, dtype=float), axis=(1, 2))


def read_numbers(found: xr.Dataset) -> dict:
    means = found.mean("prompt")
    return {
        "prompts": found.sizes["prompt"],
        "agreement": {r: rounded(means["agreement"].sel(reader=r)) for r in reader_names(found)},
        "kl": {r: rounded(means["kl"].sel(reader=r)) for r in reader_names(found)},
    }


def reader_names(found: xr.Dataset) -> list[str]:
    return [str(name) for name in found["reader"].values]


def definition_numbers(model: lm.DepthModel, prompts: list, others) -> dict:
    """Both definitions of the same prompts: matrices, and what they read of other prompts."""
    skip = 16
    ours = lm.lens(model, prompts)
    theirs = lm.lens(model, prompts, definition="published", skip=skip)
    run = model.run(others)
    states = run.states
    tokens = [lm.decode(model, states, lens=each, top=1)["token_id"] for each in (ours, theirs)]
    same = (tokens[0] == tokens[1]).mean(("prompt", "rank"))
    J, K = ours["J"].values.astype(float), theirs["J"].values.astype(float)
    read = {name: read_numbers(lm.lens_agreement(run, each))
            for name, each in (("last token", ours), ("published", theirs))}  # fmt: skip
    return {
        "prompts": len(prompts),
        "tokens": [len(row) for row in model.tokenize(prompts)[0]],
        "skip": skip,
        "difference": rounded(norms(J - K) / norms(J)),
        "cosine": rounded((J * K).sum(axis=(1, 2)) / norms(J) / norms(K)),
        "size": rounded(norms(K) / norms(J)),
        "same_token": rounded(same),
        "agreement": {name: each["agreement"]["J-lens"] for name, each in read.items()},
        "kl": {name: each["kl"]["J-lens"] for name, each in read.items()},
        "logit_lens": read["last token"]["agreement"]["logit lens"],
    }


def of_lengths(model: lm.DepthModel, texts, lengths: tuple[int, int], count: int) -> list[str]:
    rows = model.tokenize(list(texts))[0]
    fit = [t for t, row in zip(texts, rows, strict=True) if lengths[0] <= len(row) <= lengths[1]]
    return fit[:count]


def small(folder: Path, name: str) -> dict:
    """Both definitions on a small model, of lines of stories; read on other lines."""
    model = lm.DepthModel.load(folder / "weights" / name, device="cpu", max_tokens=TOKENS)
    lines = list(lines_of(folder / STORIES, 3 * LINES, 0).texts)
    long = [t for t in lines if len(model.tokenize([t])[0][0]) >= 18]
    return definition_numbers(model, long[:LINES], long[LINES : 2 * LINES])


def direction_numbers(model: lm.DepthModel, concept: xr.Dataset, lens: xr.Dataset) -> dict:
    found = {}
    for name, given in (("logit lens", None), ("J-lens", lens)):
        read = lm.decode(model, concept, lens=given, top=6)
        found[name] = {str(k): read["token"].sel(depth=k).values.tolist() for k in AT}
    return found


def rounded(values) -> list[float]:
    return [float(f"{value:.4g}") for value in np.asarray(values, dtype=float)]


# ------------------------------------------------------------------------------------ tables


def read_table(numbers: dict) -> Table:
    rows = []
    for texts, found in numbers["read"].items():
        for reader, agreement in found["agreement"].items():
            kl = found["kl"][reader]
            rows.append((texts, reader, *(f"{100 * agreement[k]:.0f} %, {kl[k]:.2f}" for k in AT)))
    return Table(("texts", "reader", *(f"depth {k}" for k in AT)), rows)


def definition_table(numbers: dict) -> Table:
    rows = []
    models = {"SmolLM2-135M": numbers.get("definitions"), **numbers.get("small", {})}
    for name, found in models.items():
        if found is None:  # a run that was ended before
            continue
        last = len(found["difference"]) - 1
        for part, depth in (("first", 0), ("middle", last // 2), ("last but one", last - 1)):
            of_both = (found["agreement"][d][depth] for d in ("last token", "published"))
            rows.append(
                (
                    name,
                    f"{part} ({depth})",
                    f"{found['difference'][depth]:.2f}",
                    f"{found['cosine'][depth]:.2f}",
                    f"{found['size'][depth]:.2f}",
                    f"{100 * found['same_token'][depth]:.0f} %",
                    " / ".join(f"{100 * value:.0f} %" for value in of_both),
                    f"{100 * found['logit_lens'][depth]:.0f} %",
                )
            )
    return Table(
        ("model", "depth", "difference", "cosine", "size", "same token", "right: ours / published",
         "right: logit lens"),
        rows,
    )  # fmt: skip


def direction_table(numbers: dict) -> Table:
    rows = [
        (str(depth), *(" ".join(map(shown, numbers["directions"][name][str(depth)]))
                       for name in ("logit lens", "J-lens")))
        for depth in AT[1:]  # all texts end in one token: at depth 0 there is no direction
    ]  # fmt: skip
    return Table(("depth", "logit lens", "J-lens"), rows)


def paper_table(numbers: dict) -> Table:
    """What is said of the published lens where it could be read, and what is found here."""
    lens, both, small = numbers["lens"], numbers["definitions"], numbers["small"]
    middle = {name: (len(row["difference"]) - 1) // 2 for name, row in small.items()}

    def ends(key, factor=1) -> tuple[float, float]:
        values = [factor * row[key][middle[name]] for name, row in small.items()]
        return min(values), max(values)

    halves = [100 * value for value in lens["halves"]["difference"]]
    rows = [
        ("a state is read as unembed(J h), J the mean derivative over prompts, positions and "
         "all later positions [R]",
         '`definition="published"` makes it, `lm.read_lens` reads theirs', "the same definition"),
        ("a mean over positions of the derivative at the same position gives a slightly different "
         "J, and both work as lenses [F]",
         "ours, of the last position alone, differs in the middle by {:.0f} to {:.0f} % of the "
         "norm on small models (cosine {:.2f} to {:.2f}), ".format(*ends("difference", 100),
                                                              *ends("cosine"))
         + f"{100 * both['difference'][15]:.0f} % on SmolLM2 ({both['prompts']} prompts); both "
         "read the same token of {:.0f} to {:.0f} %".format(*ends("same_token", 100)),
         "not slight here; but one position is no mean over them"),
        ("published lenses are made of 1000 prompts [N]",
         f"{lens['prompts']} prompts: halves of them differ by {halves[0]:.0f} % of the norm at "
         f"depth 10, {halves[1]:.0f} % at 20", "ours are of fewer"),
        ("what is read is coherent only in a middle band of layers [P]",
         "divergences by depth, above; what is read was not judged", "not tested"),
    ]  # fmt: skip
    return Table(("it is said", "here", "holds?"), rows)


def shown(token: str) -> str:
    """A token as code in a cell of a table."""
    return f"`{token.strip(' ')}`".replace("\n", "\\n").replace("|", "\\|")


# ------------------------------------------------------------------------------------ figures


def draw(model: lm.DepthModel, lens: xr.Dataset, read: xr.Dataset) -> None:
    fig, axes = plot.figure(14, 4.2, columns=3)
    plot.lens_agreement(axes[:2], read)
    plot.lens(axes[2], lens)
    plot.save(fig, DOCS / "figures" / "lens.png", "png")
    states = model.run([PROMPT]).states.isel(prompt=0)[::SHOWN]
    fig, axes = plot.figure(15, 5, columns=3)
    for ax, (title, options) in zip(
        axes,
        {"logit lens": {}, "J-lens": {"lens": lens},
         "J-lens about the mean": {"lens": lens, "about_mean": True}}.items(),
        strict=True,
    ):  # fmt: skip
        found = lm.decode(model, states, top=4, **options)
        found = found.assign_coords(depth=np.arange(len(states)))
        plot.decoded(ax, found)
        ax.set_yticks(np.arange(len(states)), [str(k) for k in states["depth"].values])
        ax.set_title(title)
    plot.save(fig, DOCS / "figures" / "lens_tokens.png", "png")


if __name__ == "__main__":
    main()
