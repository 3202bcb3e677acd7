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

_ROUNDING = 1e-10  # a relative error below this is rounding
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
        plot.certified_errors(ax, table, str(reference))
    target.figure("certified_errors", fig)

    orders = sorted({middle_order(table), int(table["order"].max())})
    fig, axes = plot.figure(8.0, (1.4 + 0.5 * n_methods) * len(orders), rows=len(orders))
    for ax, order in zip(axes, orders, strict=True):
        plot.budget_bars(ax, table, order)
    target.figure("budget_bars", fig)

    fig, axes = plot.figure(8.0, 4.0)
    plot.linear_range(axes[0], table)
    target.figure("linear_range", fig)

    if "prompt_relative_l2" in table:
        each = table[["prompt_relative_l2", "basis"]].rename(prompt_each="prompt")
        fig, axes = plot.figure(max(6.4, 1.1 * n_methods), 4.0)
        plot.prompt_spread(axes[0], each, middle_order(table))
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
    console.print(_agreement_table(chosen))
    console.print(_linear_table(chosen))
    console.print(_budget_table(table))
    return verdicts(table)


def _agreement_table(table: "xr.Dataset") -> Table:
    shown = Table(
        title="Agreement with measured gains, 95 % intervals over prompts", box=box.SIMPLE
    )
    for name, justify in (
        ("method", "left"),
        ("order", "right"),
        ("relative L2", "left"),
        ("without layer 0", "left"),
        ("on operating prompts", "left"),
        ("Spearman", "left"),
    ):
        shown.add_column(name, justify=justify, no_wrap=True)
    for name, order, row, last in _rows(table):
        operating = row["relative_l2_operating"].sel(layers="all")
        shown.add_row(
            name,
            order,
            percent(row["relative_l2"].sel(_MAIN).values),
            percent(row["relative_l2"].sel(_MAIN | {"layers": "without_layer_0"}).values),
            percent(operating.values),
            _correlation(row["spearman"].sel(_MAIN).values),
            end_section=last,
        )
    floor = table["noise_floor"].sel(injection="absolute")
    shown.add_row(
        "noise",
        "",
        *(percent([float(floor.sel(layers=layers))]) for layers in ("all", "without_layer_0")),
    )
    return shown


def _linear_table(table: "xr.Dataset") -> Table:
    shown = Table(
        title="Exact error against the full linear systems, and cost",
        caption="times the least that any model of that order has; single run",
        box=box.SIMPLE,
    )
    names = [str(name).replace("_", " ") for name in table["reference"].values]
    for name in ("method", "order", "states", *names, "seconds", "bytes"):
        shown.add_column(name, justify="left" if name == "method" else "right", no_wrap=True)
    for name, order, row, last in _rows(table):
        errors = []
        for reference in table["reference"].values:
            part = row.sel(reference=reference)
            error = percent([float(part["error"] / part["norm"])])
            ratio = float(part["ratio"])
            errors.append(error + (f" (x {ratio:.3g})" if np.isfinite(ratio) else ""))
        seconds, states = float(row["seconds"]), int(row["states"])
        shown.add_row(
            name,
            order,
            str(states),
            *errors,
            f"{seconds:.2g}",
            _size(float(row["bytes"])),
            end_section=last,
        )
    return shown


def _budget_table(table: "xr.Dataset") -> Table:
    order = int(table["order"].max())
    parts = [str(part) for part in table["part"].values]
    shown = Table(title=f"Error budget at order {order}, relative L2, all layers", box=box.SIMPLE)
    for name in ("method", *parts):
        shown.add_column(name, justify="left" if name == "method" else "right", no_wrap=True)
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
    if abs(estimate) <= 100 * _ROUNDING:
        return "0"
    text = f"{_digits(estimate, 3)} %"
    if bounds and np.isfinite(bounds).all():
        text += f" [{_digits(bounds[0], 2)}, {_digits(bounds[1], 2)}]"
    return text


def _digits(value: float, digits: int) -> str:
    """That many digits, and all before the decimal point."""
    large = 10**digits - 0.5 <= abs(value) < 1e7
    return f"{value:.0f}" if large else f"{value:.{digits}g}"


def _correlation(values) -> str:
    estimate, low, high = map(float, values)
    if not np.isfinite(estimate):
        return "not known"
    return f"{estimate:.3f}" + (f" [{low:.2f}, {high:.2f}]" if np.isfinite(low + high) else "")


def _size(n_bytes: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000:
            break
        n_bytes /= 1000
    return f"{n_bytes:.3g} {unit}"


# --------------------------------------------------------------------------- what was found


@dataclass(frozen=True)
class _Best:
    """A method at the smallest order that gives its smallest error, to the digits shown."""

    name: str
    order: int
    values: tuple[float, float, float]

    @property
    def interval(self) -> tuple[float, float]:
        # a percentile interval of an error near its minimum can lie above the estimate
        known = [value for value in self.values if np.isfinite(value)]
        return min(known), max(known)

    def __str__(self) -> str:
        return f"{self.name} at order {self.order}"


def verdicts(table: "xr.Dataset") -> list[str]:
    """What the numbers say and how far to trust them."""
    ranked = _ranked(table)
    if not ranked:
        return ["no method has a relative L2 error that is a number: look at the gains"]
    best = ranked[0]
    found = [
        _who_is_best(ranked),
        _beside_the_noise(table, best),
        _largest_part(table, best),
        _linear_range(table),
        _certificates(table),
    ]
    if "prompt_relative_l2" in table:
        found.append(_single_prompts(table))
    return found


def _ranked(table: "xr.Dataset") -> list[_Best]:
    values = table["relative_l2"].sel(_MAIN).transpose("basis", "order", "bound")
    found = []
    for name, rows in zip(table["basis"].values, values.values, strict=True):
        estimates = np.where(np.isfinite(rows[:, 0]), rows[:, 0], np.inf)
        if np.isfinite(estimates.min()):
            first = int((estimates <= 1.001 * estimates.min()).argmax())
            order = int(table["order"][first])
            found.append(_Best(str(name), order, tuple(map(float, rows[first]))))
    return sorted(found, key=lambda best: best.values[0])


def _who_is_best(ranked: list[_Best]) -> str:
    best, *others = ranked
    text = f"smallest relative L2 error of all layers: {best}, {percent(best.values)}"
    if not others:
        return text
    if not np.isfinite(best.values).all():
        return f"{text}; without intervals nothing says how sure that is"
    close = [other for other in others if other.interval[0] <= best.interval[1]]
    if not close:
        return (
            f"{text}; its interval lies below that of the next, {others[0]} with "
            f"{percent(others[0].values)}"
        )
    names = _listed([f"{other.name} (order {other.order})" for other in close])
    return f"{text}; by their intervals it cannot be told from {names}"


def _beside_the_noise(table: "xr.Dataset", best: _Best) -> str:
    n_prompts = table.sizes["prompt"]
    floor = float(table["noise_floor"].sel(_MAIN))
    noise = f"{n_prompts} held-out prompts alone show {percent([floor])} to a perfect prediction"
    if best.values[0] <= floor:
        text = f"{noise}: the error of {best} is sampling noise, and lesser ones cannot be seen"
    else:
        text = f"{noise}: the error of {best} is {best.values[0] / floor:.2g} times that"
    operating = table["relative_l2_operating"].sel(basis=best.name, order=best.order, layers="all")
    return f"{text}; on the operating prompts it is {percent(operating.values)}"


def _largest_part(table: "xr.Dataset", best: _Best) -> str:
    budget = table["error_budget"].sel(layers="all", bound="estimate").drop_sel(part="total")
    parts = []
    last = int(table["order"].max())
    for name, order in ((best.name, best.order), *((str(n), last) for n in table["basis"].values)):
        values = budget.sel(basis=name, order=order)
        if np.isfinite(values).any():
            part = str(values["part"].values[int(values.fillna(-1).values.argmax())])
            parts.append((name, order, part, float(values.sel(part=part))))
    if not parts:
        return "no part of the error budget is known"
    name, order, part, value = parts[0]
    text = f"largest part of the error of {name} at order {order}: {part}, {percent([value])}"
    others = [entry for entry in parts[1:] if entry[0] != best.name]
    if others:
        name, order, part, value = max(others, key=lambda entry: entry[3])
        text += f"; of any method at order {order}: {part}, {percent([value])}, in {name}"
    return f"{text} (parts may cancel each other)"


def _linear_range(table: "xr.Dataset") -> str:
    limit = float(table["step_limit"].sel(layers="all"))
    steps = table["step"].values
    error = table["step_error"].sel(layers="all", bound="estimate")
    text = "exact linear gains miss the measured ones"
    if np.isfinite(limit):
        return f"{text} by 5 % at injections of {limit:.2g} (all layers)"
    if (error < 0.05).all():
        return f"{text} by less than 5 % up to injections of {steps.max():g} (all layers)"
    if (error > 0.05).all():
        return f"{text} by more than 5 % at all injections from {steps.min():g} (all layers)"
    return f"{text} by 5 % at an injection that is not known"


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
    proved = [
        str(name)
        for name in table["basis"].values
        if np.isfinite(table["upper"].sel(basis=name)).any()
    ]
    above = f", and below the upper bound where one is proved ({_listed(proved)})" if proved else ""
    return f"all {count} exact errors lie above the lower bound{above}"


def _single_prompts(table: "xr.Dataset") -> str:
    order = middle_order(table)
    errors = table["prompt_relative_l2"].sel(order=order)
    median = errors.median("prompt_each")
    if not np.isfinite(median).any():
        return f"one system per prompt at order {order}: no error is a number"
    name = str(median["basis_each"].values[int(median.fillna(np.inf).values.argmin())])
    low, high = errors.sel(basis_each=name).quantile([0.05, 0.95], "prompt_each").values
    return (
        f"one system per prompt at order {order}: {name} has the smallest median error, "
        f"{percent([float(median.sel(basis_each=name))])}; 90 % of {errors.sizes['prompt_each']} "
        f"prompts lie from {percent([low])} to {percent([high])}"
    )


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
