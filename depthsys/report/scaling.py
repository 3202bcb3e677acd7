"""Agreement against the size of models, by families: the tables of docs/scaling.md.

The numbers of every cell are kept as a plain dict, which goes into a JSON file as it is.
"""

from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import xarray as xr

from depthsys.report.table import Table, markdown
from depthsys.wording import fixed, number, percent_of_page

Row = dict[str, Any]
SHOWN = ("ensemble 4", "krylov 32", "arnoldi 32")
_AGREEMENT = ("relative_l2", "relative_l2_later", "spearman", "pearson")
_FLOORS = ("noise_floor", "noise_floor_later")
_OF_CELLS = ("auc", *_FLOORS)
_SIZES = ("n_parameters", "n_layers", "n_features")
_OF_ALL, _OF_METHODS = ("nonlinearity", "sampling"), ("averaging", "truncation")


def rows(tables: Mapping[str, xr.Dataset]) -> list[Row]:
    """The numbers of all cells of a family: estimates and intervals, nothing chosen.

    Parameters
    ----------
    tables
        Of `depthsys.study.scaling`, by what each method is called. Cells that are not there are
        left out.
    """
    first = next(iter(tables.values()))
    found = []
    for model in first["model"].values:
        for task in first["task"].values:
            for seed in first["seed"].values:
                at = {"model": model, "task": task, "seed": seed}
                if bool(first["relative_l2"].sel(at).notnull().all()):
                    found.append(_row({name: t.sel(at) for name, t in tables.items()}))
    return found


def _row(cells: Mapping[str, xr.Dataset]) -> Row:
    cell = next(iter(cells.values()))
    names = {"model": str(cell["model"].item()), "task": str(cell["task"].item())}
    return {
        **names,
        "seed": int(cell["seed"]),
        **{name: int(cell[name]) for name in _SIZES},
        **{name: _rounded(cell[name]) for name in _OF_CELLS},
        **{part: _triple(cell["budget"].sel(part=part)) for part in _OF_ALL},
        "methods": {
            name: {metric: _triple(one[metric]) for metric in _AGREEMENT}
            | {
                part: _rounded(one["budget"].sel(part=part, bound="estimate"))
                for part in _OF_METHODS
            }
            for name, one in cells.items()
        },
    }


def _triple(values: xr.DataArray) -> list[float]:
    return [_rounded(value) for value in values.sel(bound=["estimate", "low", "high"])]


def _rounded(value: Any) -> float:
    return float(f"{float(value):.5g}")


def page(stored: Mapping[str, list[Row]]) -> dict[str, str]:
    """The parts of docs/scaling.md by their names, from the rows of every family."""
    tables = {"trend": trend_table, "agreement": agreement_table, "budget": budget_table}
    return {name: markdown(table(stored)) for name, table in tables.items()}


# ------------------------------------------------------------------------------- all at once


def trend_table(stored: Mapping[str, list[Row]]) -> Table:
    """What becomes of every method when models grow: medians over texts and seeds, and ratios."""
    header = (
        "models", "method", "relative L2, smallest model first", "over its noise floor", "Spearman",
        "relative L2 without layer 0", "largest over smallest model", "clearly smaller",
        "clearly larger",
    )  # fmt: skip
    cells = []
    for family, own in stored.items():
        cells += [(family, method, *_trend(own, method)) for method in own[0]["methods"]]
        floors = [_in_turn(own, lambda row, name=name: row[name]) for name in _FLOORS]
        cells.append((family, "*noise floor*", floors[0], "", "", floors[1], "", "", ""))
    return Table(header, cells)


def _trend(own: list[Row], method: str) -> tuple[str, ...]:
    ratios, smaller, larger = against_smallest(own, method)
    over = by_size(own, lambda row: over_floor(row, method))
    ranks = by_size(own, lambda row: row["methods"][method]["spearman"][0])
    return (
        _in_turn(own, lambda row: row["methods"][method]["relative_l2"][0]),
        ", ".join(map(_times, over)),
        ", ".join(fixed([value]) for value in ranks),
        _in_turn(own, lambda row: row["methods"][method]["relative_l2_later"][0]),
        f"{_times(median(ratios))} ({_times(min(ratios))} to {_times(max(ratios))})",
        f"{smaller} of {len(ratios)}",
        f"{larger} of {len(ratios)}",
    )


def _in_turn(own: list[Row], error: Callable[[Row], float]) -> str:
    return ", ".join(percent_of_page([value]) for value in by_size(own, error))


def by_size(own: list[Row], value: Callable[[Row], float]) -> list[float]:
    """The median over texts and seeds of every model, the smallest first."""
    return [median(value(row) for row in rows) for rows in _models(own)]


def over_floor(row: Row, method: str) -> float:
    """The error of a cell as a multiple of what a perfect prediction would show."""
    return row["methods"][method]["relative_l2"][0] / row["noise_floor"]


def against_smallest(own: list[Row], method: str) -> tuple[list[float], int, int]:
    """Errors of the largest model over those of the smallest, for the same texts and seed.

    Also in how many the error is clearly smaller, and clearly larger: by 95 % intervals over
    prompts that do not overlap. Cells without their match are left out.
    """
    smallest, *_, largest = _models(own)
    first = {(row["task"], row["seed"]): row["methods"][method]["relative_l2"] for row in smallest}
    ratios, smaller, larger = [], 0, 0
    for row in largest:
        if (row["task"], row["seed"]) not in first:
            continue
        error, low, high = row["methods"][method]["relative_l2"]
        before, low_before, high_before = first[row["task"], row["seed"]]
        ratios.append(error / before)
        smaller += high < low_before
        larger += low > high_before
    return ratios, smaller, larger


def _models(own: list[Row]) -> list[list[Row]]:
    sizes = sorted({(row["n_parameters"], row["model"]) for row in own})
    return [[row for row in own if row["model"] == model] for _, model in sizes]


def _times(value: float) -> str:
    return number(value, 2)


# ----------------------------------------------------------------------------- cell by cell


def agreement_table(stored: Mapping[str, list[Row]]) -> Table:
    """Errors and rank correlations of three methods, a line for every model and texts."""
    header = ["model (L x H, parameters)", "texts", "AUC", "noise floor"]
    for method in SHOWN:
        header += [f"{method}: relative L2", "Spearman"]
    cells = []
    for own in _pairs(stored):
        floor = median(row["noise_floor"] for row in own)
        auc = fixed([median(row["auc"] for row in own)], unknown="-")
        line = [auc, percent_of_page([floor])]
        for method in SHOWN:
            line.append(_with_seeds(own, method))
            ranks = [row["methods"][method]["spearman"][0] for row in own]
            line.append(f"{median(ranks):.2f} ({min(ranks):.2f} to {max(ranks):.2f})")
        cells.append((*_named(own), *line))
    return Table(tuple(header), cells)


def budget_table(stored: Mapping[str, list[Row]]) -> Table:
    """The parts of the error, medians over seeds, a line for every model and texts."""
    methods = ("ensemble 4", "krylov 4", "krylov 8", "krylov 32", "arnoldi 32")
    header = ["model (L x H, parameters)", "texts", "nonlinearity", "sampling"]
    header += ["averaging (not ensemble)", *(f"truncation, {method}" for method in methods)]
    cells = []
    for own in _pairs(stored):
        line = [percent_of_page([median(row[part][0] for row in own)]) for part in _OF_ALL]
        line.append(_part(own, "krylov 32", "averaging"))
        line += [_part(own, method, "truncation") for method in methods]
        cells.append((*_named(own), *line))
    return Table(tuple(header), cells)


def _pairs(stored: Mapping[str, list[Row]]) -> list[list[Row]]:
    """The seeds of every model and texts: family by family, the smallest model first."""
    found = []
    for own in stored.values():
        for rows in _models(own):
            tasks = dict.fromkeys(row["task"] for row in rows)
            found += [[row for row in rows if row["task"] == task] for task in tasks]
    return found


def _named(own: list[Row]) -> tuple[str, str]:
    row = own[0]
    size = f"{row['n_layers']} x {row['n_features']}, {row['n_parameters']:,}"
    return f"{row['model']} ({size})", row["task"]


def _with_seeds(own: list[Row], method: str) -> str:
    """The seed in the middle with its interval over prompts, then the smallest and the largest."""
    errors = sorted(row["methods"][method]["relative_l2"] for row in own)
    ends = (percent_of_page([errors[i][0]]) for i in (0, -1))
    return f"{percent_of_page(errors[(len(errors) - 1) // 2])} ({' to '.join(ends)})"


def _part(own: list[Row], method: str, part: str) -> str:
    return percent_of_page([median(row["methods"][method][part] for row in own)])
