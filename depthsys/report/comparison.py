"""A comparison of reduction methods: its tables, and what was found."""

from dataclasses import dataclass

import numpy as np
import xarray as xr

from depthsys.report.table import Report, Table
from depthsys.wording import fixed, listed, number, percent, size, small_order, step_size

_MAIN = {"layers": "all", "injection": "absolute"}


def comparison(table: xr.Dataset) -> Report:
    """A few orders of every method of what `study.compare` found."""
    all_orders = table["order"].values
    orders = sorted({int(all_orders[0]), small_order(table["order"].values), int(all_orders[-1])})
    chosen = table.sel(order=orders)
    tables = [_agreement_table(chosen), _linear_table(chosen), _budget_table(table)]
    return Report(tables, verdicts(table))


def _agreement_table(table: xr.Dataset) -> Table:
    rows, last = [], []
    for name, order, row, ends in _rows(table):
        operating = row["relative_l2_operating"].sel(layers="all", bound="estimate")
        rows.append(
            (
                name,
                order,
                percent(row["relative_l2"].sel(_MAIN).values),
                percent(row["relative_l2"].sel(_MAIN | {"layers": "without_layer_0"}).values),
                percent([operating]),
                fixed(row["spearman"].sel(_MAIN).values),
            )
        )
        last += [len(rows) - 1] if ends else []
    floor = table["noise_floor"].sel(injection="absolute")
    noise = (percent([floor.sel(layers=name)]) for name in ("all", "without_layer_0"))
    rows.append(("noise", "", *noise))
    return Table(
        ("method", "order", "all layers", "without layer 0", "operating", "Spearman"),
        rows,
        title="Agreement with measured gains: relative L2 error with 95 % interval, and "
        "correlation",
        caption="held-out prompts (noise: what they show to a perfect prediction); operating: "
        "those that the systems are made of",
        left=("method", "all layers", "without layer 0", "Spearman"),
        last=frozenset(last),
    )


def _linear_table(table: xr.Dataset) -> Table:
    references = [str(name) for name in table["reference"].values]
    rows, last = [], []
    for name, order, row, ends in _rows(table):
        errors = []
        for reference in references:
            part = row.sel(reference=reference)
            ratio = float(part["ratio"])
            times = f" (x {number(ratio)})" if np.isfinite(ratio) else ""
            errors.append(percent([part["error"] / part["norm"]]) + times)
        states, seconds = str(int(row["states"])), f"{float(row['seconds']):.2g}"
        rows.append((name, order, states, *errors, seconds, size(float(row["bytes"]))))
        last += [len(rows) - 1] if ends else []
    names = (name.replace("_", " ") for name in references)
    return Table(
        ("method", "order", "states", *names, "seconds (all orders)", "bytes"),
        rows,
        title="Exact error of the input-output map / norm of the full linear system, and cost",
        caption="x n: n times the least error that a model of that order can have",
        left=("method",),
        last=frozenset(last),
    )


def _budget_table(table: xr.Dataset) -> Table:
    order = int(table["order"].max())
    parts = [str(part) for part in table["part"].values]
    budget = table["error_budget"].sel(order=order, layers="all", bound="estimate")
    rows = [
        (str(name), *(percent([budget.sel(basis=name, part=part)]) for part in parts))
        for name in table["basis"].values
    ]
    title = f"Error budget at order {order}: relative L2, all layers"
    return Table(("method", *parts), rows, title=title, left=("method",))


def _rows(table: xr.Dataset):
    orders = table["order"].values.tolist()
    for name in table["basis"].values:
        for order in orders:
            row = table.sel(basis=name, order=order)
            yield (str(name) if order == orders[0] else ""), str(order), row, order == orders[-1]


# --------------------------------------------------------------------------- what was found


@dataclass(frozen=True)
class _Miss:
    """Relative L2 error of a method at an order: estimate, low and high."""

    name: str
    values: tuple[float, float, float]


def verdicts(table: xr.Dataset) -> list[str]:
    """What the numbers say and how far to trust them."""
    small, large = small_order(table["order"].values), int(table["order"].max())
    ranked = _ranked(table, small)
    found = []
    if ranked:
        found += [_who_is_best(table, ranked, small), _largest_part(table, ranked[0].name, small)]
    else:
        found.append(f"no method has a known relative L2 error at order {small}")
    if large > small:
        found.append(_who_is_best(table, _ranked(table, large), large))
    found += [_linear_range(table), _certificates(table)]
    beyond = _beyond_the_rank(table, large)
    if beyond:
        found.append(beyond)
    if "prompt_relative_l2" in table:
        found.append(_single_prompts(table, small))
    return found


def _ranked(table: xr.Dataset, order: int) -> list[_Miss]:
    """Methods by error on held-out prompts, without those whose error is not known."""
    values = table["relative_l2"].sel(_MAIN).sel(order=order).transpose("basis", "bound").values
    misses = [
        _Miss(str(name), (float(row[0]), float(row[1]), float(row[2])))
        for name, row in zip(table["basis"].values, values, strict=True)
    ]
    known = [miss for miss in misses if np.isfinite(miss.values[0])]
    return sorted(known, key=lambda miss: miss.values[0])


def _who_is_best(table: xr.Dataset, ranked: list[_Miss], order: int) -> str:
    if not ranked:
        return f"no method has a known relative L2 error at order {order}"
    best = ranked[0]
    # the same curve but for rounding, as of every method that truncates nothing
    same = [miss for miss in ranked if miss.values[0] <= 1.001 * best.values[0]]
    others = ranked[len(same) :]
    text = (
        f"order {order}: {listed([miss.name for miss in same])} "
        f"{'has' if len(same) == 1 else 'have'} the smallest relative L2 error, "
        f"{percent(best.values)}"
    )
    if not others:
        return text
    lowest = {miss.name: _least_gap(table, miss.name, best.name, order) for miss in others}
    if not np.isfinite(list(lowest.values())).all():
        return f"{text}; without an interval nothing says how sure that is"
    close = [miss for miss in others if lowest[miss.name] <= 0]
    if close:
        names = listed([f"{miss.name} ({percent(miss.values[:1])})" for miss in close])
        return f"{text}; on resampled prompts (paired) it cannot be told from {names}"
    return (
        f"{text}; on resampled prompts (paired) it is below all others, next {others[0].name}, "
        f"{percent(others[0].values)}"
    )


def _least_gap(table: xr.Dataset, name: str, best: str, order: int) -> float:
    """Lower end of the paired interval of the difference of two errors."""
    from depthsys import lm

    measured = table[["measured_gain"]].rename(measured_gain="gain")
    curves = [table["surrogate_gain"].sel(basis=b, order=order, drop=True) for b in (name, best)]
    statistics = {k: int(table.attrs[k]) for k in ("n_bootstrap", "seed") if k in table.attrs}
    gap = lm.error_gap(curves[0], curves[1], measured, **statistics)
    return float(gap.sel(layers="all", bound="low"))


def _largest_part(table: xr.Dataset, name: str, order: int) -> str:
    row = table.sel(basis=name, order=order)
    error = float(row["relative_l2"].sel(_MAIN).sel(bound="estimate"))
    floor = float(table["noise_floor"].sel(_MAIN))
    budget = row["error_budget"].sel(layers="all", bound="estimate").drop_sel(part="total")
    beside = "below" if error <= floor else f"{number(error / floor, 2)} times"
    text = (
        f"that error of {name} is {beside} the sampling noise of {table.sizes['prompt']} held-out "
        f"prompts, {percent([floor])}"
    )
    known = budget.dropna("part")
    if not known.size:
        return text
    largest = known.isel(part=int(known.values.argmax()))
    text += f"; its largest part is {largest['part'].item()}, {percent([float(largest)])}"
    # parts are distances between curves: that their sum is larger than the total is usual
    if float(largest) > 1.5 * error:
        text += ", more than the whole: its parts cancel each other, which is partly luck"
    return text


def _linear_range(table: xr.Dataset) -> str:
    limit = float(table["step_limit"].sel(layers="all"))
    error = table["step_error"].sel(layers="all", bound="estimate").dropna("step")
    text = "exact linear gains (all layers) miss the measured ones by"
    relative = bool(table.attrs.get("relative", 0))
    if np.isfinite(limit):
        return f"{text} 5 % at pushes of {step_size(limit, relative)}"
    steps = error["step"].values.tolist()
    if steps and (error < 0.05).all():
        return f"{text} less than 5 % up to pushes of {step_size(max(steps), relative)}"
    if steps and (error > 0.05).all():
        return f"{text} more than 5 % at all pushes from {step_size(min(steps), relative)}"
    return f"{text} 5 % at a push that is not known"


def _certificates(table: xr.Dataset) -> str:
    error, slack = table["error"], table["resolution"]
    known = np.isfinite(error)
    outside = known & ((error < table["lower"] - slack) | (error > table["upper"] + slack))
    count, n_outside = int(known.sum()), int(outside.sum())
    if n_outside:
        return (
            f"{n_outside} of {count} exact errors lie outside their certificates by more than "
            "rounding: do not trust them"
        )
    bounded = table["upper"].notnull().any(["order", "reference"])
    proved = [str(name) for name in table["basis"].values[bounded.values]]
    above = f", and below the upper bound where one is proved ({listed(proved)})" if proved else ""
    return f"all {count} exact errors lie above the lower bound{above}{_not_certified(table)}"


def _not_certified(table: xr.Dataset) -> str:
    """The orders at which the lower bound says nothing, since rounding explains it."""
    lower, slack = table["lower"], table["resolution"]
    known = lower > slack
    if "lower_is_certified" in table:
        known = known & table["lower_is_certified"]
    others = [dim for dim in known.dims if dim != "order"]
    orders = [str(order) for order in table["order"].values[~known.all(others).values]]
    if not orders:
        return ""
    return (
        f"; the lower bound is not certified at order{'s' if len(orders) > 1 else ''} "
        f"{listed(orders)}: there it is below what rounding explains"
    )


def _beyond_the_rank(table: xr.Dataset, order: int) -> str:
    """One line in place of a note for every method."""
    states = table["states"].sel(order=order)
    few = [
        f"{name} ({int(states.sel(basis=name))} states)"
        for name in table["basis"].values
        if f"note_{name}" in table.attrs and int(states.sel(basis=name)) < order
    ]
    if not few:
        return ""
    return f"order {order} is above the rank of {listed(few)}: nothing is truncated there"


def _single_prompts(table: xr.Dataset, order: int) -> str:
    errors = table["prompt_relative_l2"].sel(order=order)
    median = errors.median("prompt_each")
    n_prompts = errors.sizes["prompt_each"]
    text = f"one system for each of {n_prompts} prompts, order {order}:"
    if not np.isfinite(median).any():
        return f"{text} no error is known"
    smallest = float(median.min())
    names = [str(name) for name in median["basis_each"].values[median.values <= 1.001 * smallest]]
    have = "has" if len(names) == 1 else "have"
    # few prompts have no tails
    tail, those = (0.05, "the middle 90 %") if n_prompts >= 20 else (0.0, "all of them")
    low, high = errors.sel(basis_each=names[0]).quantile([tail, 1 - tail], "prompt_each").values
    return (
        f"{text} {listed(names)} {have} the smallest median relative L2 error, "
        f"{percent([smallest])}; {those} lie from {percent([low])} to {percent([high])}"
    )
