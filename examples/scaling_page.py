"""Put what two studies found of agreement against model size on its page, docs/scaling.md.

    depthsys study run examples/scaling_demo.toml --out out/scaling_demo.zarr
    depthsys study run examples/scaling_real.toml --out out/scaling_real.zarr
    python examples/scaling_page.py out/scaling_demo.zarr out/scaling_real.zarr

The numbers go to docs/scaling.json and from there, as they are, between the markers of the page;
the figure goes to docs/figures/scaling.png.
"""

import argparse
import json
from pathlib import Path

import xarray as xr

from depthsys import plot, study
from depthsys.plot import sheets
from depthsys.report.page import update
from depthsys.report.scaling import page, rows

DOCS = Path(__file__).parents[1] / "docs"
METHODS = {
    f"{basis} {order}": (basis, order)
    for basis, order in (
        ("ensemble", 4),
        ("balanced", 4),
        ("krylov", 4),
        ("krylov", 8),
        ("krylov", 32),
        ("arnoldi", 32),
    )
}
DRAWN = ("ensemble 4", "krylov 8", "krylov 32")
FAMILIES = ("demo family", "trained models")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("demo", type=Path, help="store of examples/scaling_demo.toml")
    parser.add_argument("real", type=Path, help="store of examples/scaling_real.toml")
    options = parser.parse_args()
    stores = dict(zip(FAMILIES, (options.demo, options.real), strict=True))
    found = {family: tables_of(store) for family, store in stores.items()}
    numbers = {family: rows(tables) for family, tables in found.items()}
    stored = DOCS / "scaling.json"
    stored.write_text(as_lines(numbers), encoding="utf-8")
    parts = page(json.loads(stored.read_text(encoding="utf-8")))
    update(DOCS / "scaling.md", {markers(name): part for name, part in parts.items()})
    drawn = {family: {name: own[name] for name in DRAWN} for family, own in found.items()}
    plot.save(sheets.scaling_by_family(drawn), DOCS / "figures" / "scaling.png", "png")


def tables_of(store: Path) -> dict[str, xr.Dataset]:
    return {
        name: study.scaling(store, basis=basis, order=order)
        for name, (basis, order) in METHODS.items()
    }


def as_lines(numbers: dict[str, list[dict]]) -> str:
    """JSON with a cell on every line."""
    families = [
        f"{json.dumps(family)}: [\n" + ",\n".join(map(json.dumps, own)) + "\n]"
        for family, own in numbers.items()
    ]
    return "{\n" + ",\n".join(families) + "\n}\n"


def markers(name: str) -> tuple[str, str]:
    """What stands before and after a part of the page."""
    return f"<!-- {name}: examples/scaling_page.py -->", f"<!-- end of {name} -->"


if __name__ == "__main__":
    main()
