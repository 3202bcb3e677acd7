"""What a comparison of reduction methods shows: its figures, its tables, and what was found."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from depthsys.job.folder import OutputFolder

if TYPE_CHECKING:
    import xarray as xr

_LEAST = 1e-3  # percent; less is rounding of float32, or not worth telling
_MIDDLE = 4  # the order of a surrogate that is meant to be small
_MAIN = {"layers": "all", "injection": "absolute"}


def draw_comparison(target: OutputFolder, table: "xr.Dataset") -> None:
    """Write the figures."""
    from depthsys import plot

    n_methods = table.sizes["basis"]
    fig, axes = plot.figure(8.0, 4.4)
    plot.agreement_by_order(axes[0], table)
    target.figure("agreement_by_order", fig)

    fig, axes = plot.figure(13.0, 4.4, columns=2)
    for ax, reference in zip(axes, table["reference"].values, strict=True):
        plot.certified_errors(ax, table, str(reference), legend=False)
    plot.shared_legend(axes)
    target.figure("certified_errors", fig)

    orders = sorted({middle_order(table), int(table["order"].max())})
    fig, axes = plot.figure(8.0, (1.4 + 0.5 * n_methods) * len(orders), rows=len(orders))
    for ax, order in zip(axes, orders, strict=True):
        limit = plot.budget_limit(table, orders)
        plot.budget_bars(ax, table, order, limit=limit, legend=order == orders[0])
    target.figure("budget_bars", fig)

    fig, axes = plot.figure(8.0, 4.0)
    plot.linear_range(axes[0], table)
    target.figure("linear_range", fig)

    if "prompt_relative_l2" in table:
        fig, axes = plot.figure(max(6.4, 1.1 * n_methods), 4.0)
        plot.prompt_spread(axes[0], table, middle_order(table))
        target.figure("prompt_spread", fig)


def middle_order(table: "xr.Dataset") -> int:
    """The order nearest to 4, the smaller of two."""
    return min(table["order"].values.tolist(), key=lambda order: abs(order - _MIDDLE))


# ------------------------------------------------------------------------------ the tables


def comparison_heading(table: "xr.Dataset") -> str:
    """Methods and orders in words."""
    orders = table["order"].values.tolist()
    n_methods = table.sizes["basis"]
    methods = "1 method" if n_methods == 1 else f"{n_methods} methods"
    many = f"orders {', '.join(map(str, orders))}" if len(orders) > 1 else f"order {orders[0]}"
    return f"{methods} at {many}"


def print_comparison(console: Console, table: "xr.Dataset") -> list[str]:
    """Print a few orders of every method; gives what was found in words."""
    all_orders = table["order"].values
    orders = sorted({int(all_orders[0]), middle_order(table), int(all_orders[-1])})
    chosen = table.sel(order=orders)
    for shown in (_agreement_table(chosen), _linear_table(chosen), _budget_table(table)):
        console.print()
        console.print(shown)
    return verdicts(table)


def _agreement_table(table: "xr.Dataset") -> Table:
    shown = _table(
        "Agreement with measured gains: relative L2 error with 95 % interval, and correlation",
        ("method", "order", "all layers", "without layer 0", "operating", "Spearman"),
        left=("method", "all layers", "without layer 0", "Spearman"),
    )
    for name, order, row, last in _rows(table):
        operating = row["relative_l2_operating"].sel(layers="all", bound="estimate")
        shown.add_row(
            name,
            order,
            percent(row["relative_l2"].sel(_MAIN).values),
            percent(row["relative_l2"].sel(_MAIN | {"layers": "without_layer_0"}).values),
            percent([float(operating)]),
            _correlation(row["spearman"].sel(_MAIN).values),
            end_section=last,
        )
    floor = table["noise_floor"].sel(injection="absolute")
    noise = (percent([float(floor.sel(layers=name))]) for name in ("all", "without_layer_0"))
    shown.add_row("noise", "", *noise)
    shown.caption = (
        "held-out prompts (noise: what they show to a perfect prediction); operating: those that "
        "the systems are made of"
    )
    return shown


def _table(title: str, columns: tuple[str, ...], left: tuple[str, ...]) -> Table:
    shown = Table(
        title=title,
        box=box.SIMPLE,
        padding=(0, 1, 0, 0),
        title_justify="left",
        caption_justify="left",
    )
    for name in columns:
        shown.add_column(name, justify="left" if name in left else "right")
    return shown


def _linear_table(table: "xr.Dataset") -> Table:
    references = [str(name) for name in table["reference"].values]
    names = [name.replace("_", " ") for name in references]
    columns = ("method", "order", "states", *names, "seconds (all orders)", "bytes")
    title = "Exact error of the input-output map / norm of the full linear system, and cost"
    shown = _table(title, columns, left=("method",))
    for name, order, row, last in _rows(table):
        errors = []
        for reference in references:
            part = row.sel(reference=reference)
            ratio = float(part["ratio"])
            times = f" (x {_digits(ratio, 3)})" if np.isfinite(ratio) else ""
            errors.append(percent([float(part["error"] / part["norm"])]) + times)
        states, seconds = str(int(row["states"])), f"{float(row['seconds']):.2g}"
        size = _size(float(row["bytes"]))
        shown.add_row(name, order, states, *errors, seconds, size, end_section=last)
    shown.caption = "x n: n times the least error that a model of that order can have"
    return shown


def _budget_table(table: "xr.Dataset") -> Table:
    order = int(table["order"].max())
    parts = [str(part) for part in table["part"].values]
    title = f"Error budget at order {order}: relative L2, all layers"
    shown = _table(title, ("method", *parts), left=("method",))
    budget = table["error_budget"].sel(order=order, layers="all", bound="estimate")
    for name in table["basis"].values:
        values = [percent([float(budget.sel(basis=name, part=part))]) for part in parts]
        shown.add_row(str(name), *values)
    return shown


def _rows(table: "xr.Dataset"):
    orders = table["order"].values.tolist()
    for name in table["basis"].values:
        for order in orders:
            row = table.sel(basis=name, order=order)
            yield (str(name) if order == orders[0] else ""), str(order), row, order == orders[-1]


def percent(values) -> str:
    """A fraction, or estimate, low and high, in percent."""
    estimate, *bounds = (100 * float(value) for value in values)
    if not np.isfinite(estimate):
        return "not known"
    if estimate < _LEAST:
        return f"< {_LEAST:g} %"
    text = f"{_digits(estimate, 3)} %"
    if bounds and np.isfinite(bounds).all():
        text += f" [{_digits(bounds[0], 2)}, {_digits(bounds[1], 2)}]"
    return text


def _digits(value: float, digits: int) -> str:
    """That many digits, and all before the decimal point."""
    large = 10**digits - 0.5 <= abs(value) < 1e7
    return f"{value:.0f}" if large else f"{value:#.{digits}g}".rstrip(".")


def _correlation(values) -> str:
    estimate, low, high = map(float, values)
    if not np.isfinite(estimate):
        return "not known"
    return f"{estimate:.2f}" + (f" [{low:.2f}, {high:.2f}]" if np.isfinite(low + high) else "")


def _size(n_bytes: float) -> str:
    powers = {"GB": 1e9, "MB": 1e6, "kB": 1e3}
    unit = next((unit for unit, size in powers.items() if n_bytes >= size), "B")
    return f"{n_bytes / powers.get(unit, 1):.3g} {unit}"


# --------------------------------------------------------------------------- what was found


@dataclass(frozen=True)
class _Miss:
    """Relative L2 error of a method at an order: estimate, low and high."""

    name: str
    values: tuple[float, float, float]

    @property
    def interval(self) -> tuple[float, float]:
        # a percentile interval of an error near its minimum can lie above the estimate
        known = [value for value in self.values if np.isfinite(value)]
        return min(known), max(known)


def verdicts(table: "xr.Dataset") -> list[str]:
    """What the numbers say and how far to trust them."""
    small, large = middle_order(table), int(table["order"].max())
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


def _ranked(table: "xr.Dataset", order: int) -> list[_Miss]:
    """Methods by error on held-out prompts, without those whose error is not known."""
    values = table["relative_l2"].sel(_MAIN).sel(order=order).transpose("basis", "bound").values
    misses = [
        _Miss(str(name), (float(row[0]), float(row[1]), float(row[2])))
        for name, row in zip(table["basis"].values, values, strict=True)
    ]
    known = [miss for miss in misses if np.isfinite(miss.values[0])]
    return sorted(known, key=lambda miss: miss.values[0])


def _who_is_best(table: "xr.Dataset", ranked: list[_Miss], order: int) -> str:
    if not ranked:
        return f"no method has a known relative L2 error at order {order}"
    best = ranked[0]
    # the same curve but for rounding, as of every method that truncates nothing
    same = [miss for miss in ranked if miss.values[0] <= 1.001 * best.values[0]]
    others = ranked[len(same) :]
    text = (
        f"order {order}: {_listed([miss.name for miss in same])} "
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
        names = _listed([f"{miss.name} ({percent(miss.values[:1])})" for miss in close])
        return f"{text}; on resampled prompts (paired) it cannot be told from {names}"
    return (
        f"{text}; on resampled prompts (paired) it is below all others, next {others[0].name}, "
        f"{percent(others[0].values)}"
    )


def _least_gap(table: "xr.Dataset", name: str, best: str, order: int) -> float:
    """Lower end of the paired interval of the difference of two errors."""
    from depthsys import lm

    measured = table[["measured_gain"]].rename(measured_gain="gain")
    curves = [table["surrogate_gain"].sel(basis=b, order=order, drop=True) for b in (name, best)]
    statistics = {k: int(table.attrs[k]) for k in ("n_bootstrap", "seed") if k in table.attrs}
    gap = lm.error_gap(curves[0], curves[1], measured, **statistics)
    return float(gap.sel(layers="all", bound="low"))


def _largest_part(table: "xr.Dataset", name: str, order: int) -> str:
    row = table.sel(basis=name, order=order)
    error = float(row["relative_l2"].sel(_MAIN).sel(bound="estimate"))
    floor = float(table["noise_floor"].sel(_MAIN))
    budget = row["error_budget"].sel(layers="all", bound="estimate").drop_sel(part="total")
    beside = "below" if error <= floor else f"{_digits(error / floor, 2)} times"
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


def _linear_range(table: "xr.Dataset") -> str:
    limit = float(table["step_limit"].sel(layers="all"))
    error = table["step_error"].sel(layers="all", bound="estimate").dropna("step")
    text = "exact linear gains (all layers) miss the measured ones by"
    if np.isfinite(limit):
        return f"{text} 5 % at injections of {limit:.2g}"
    if error.size and (error < 0.05).all():
        return f"{text} less than 5 % up to injections of {float(error['step'].max()):g}"
    if error.size and (error > 0.05).all():
        return f"{text} more than 5 % at all injections from {float(error['step'].min()):g}"
    return f"{text} 5 % at an injection that is not known"


def _certificates(table: "xr.Dataset") -> str:
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
    above = f", and below the upper bound where one is proved ({_listed(proved)})" if proved else ""
    return f"all {count} exact errors lie above the lower bound{above}"


def _beyond_the_rank(table: "xr.Dataset", order: int) -> str:
    """One line in place of a note for every method."""
    states = table["states"].sel(order=order)
    few = [
        f"{name} ({int(states.sel(basis=name))} states)"
        for name in table["basis"].values
        if f"note_{name}" in table.attrs and int(states.sel(basis=name)) < order
    ]
    if not few:
        return ""
    return f"order {order} is above the rank of {_listed(few)}: nothing is truncated there"


def _single_prompts(table: "xr.Dataset", order: int) -> str:
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
        f"{text} {_listed(names)} {have} the smallest median relative L2 error, "
        f"{percent([smallest])}; {those} lie from {percent([low])} to {percent([high])}"
    )


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
