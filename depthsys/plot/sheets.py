"""Whole figures: what is written beside a result, and what the pages of the docs show.

Each function takes a Dataset and returns a figure, or None where the Dataset has nothing for it.
"""

from collections.abc import Mapping

import xarray as xr
from matplotlib.figure import Figure

from depthsys.plot import budget, comparison, control, gains, reach, sizes
from depthsys.plot.effects import effect_against_price
from depthsys.plot.scaling import scaling as scaling_of
from depthsys.plot.separation import auc_by_depth
from depthsys.plot.style import (
    figure,
    key_above,
    legend_beside,
    shared_legend,
)
from depthsys.plot.table import TINY
from depthsys.wording import small_order

# ------------------------------------------------------------------------------ main job


def gain_curves(result: xr.Dataset) -> Figure:
    """Measured and predicted gains, with and without layer 0."""
    fig, axes = figure(9.0, 3.6, columns=2)
    gains.gain_curves((axes[0], axes[1]), result)
    return fig


def error_budget(result: xr.Dataset) -> Figure:
    """Where the error of the surrogate comes from."""
    fig, axes = figure(6.8, 3.8)
    gains.error_budget(axes[0], result)
    return fig


def schedule(energies: xr.Dataset) -> Figure:
    """The minimum-energy schedule."""
    fig, axes = figure(6.4, 3.4)
    control.schedule(axes[0], energies)
    return fig


def energy(energies: xr.Dataset) -> Figure:
    """Energies of all schedules on the full model."""
    fig, axes = figure(7.0, 1.2 + 0.32 * energies.sizes["schedule"])
    control.energies(axes[0], energies)
    return fig


def pushes(plan: xr.Dataset) -> Figure:
    """Where a plan pushes, and how hard."""
    fig, axes = figure(7.5, 3.6)
    control.pushes(axes[0], plan)
    return fig


def push_energy(plan: xr.Dataset) -> Figure | None:
    """Where the energy of a plan goes, if the plan says what a push costs."""
    several = "input" in plan["u"].dims and plan.sizes["input"] > 1
    relative = plan.attrs.get("energy", "absolute") != "absolute"
    if relative and ("push" not in plan or (several and "direction" not in plan)):
        return None
    fig, axes = figure(7.5, 3.6)
    control.layer_energies(axes[0], plan)
    return fig


def single_layers(energies: xr.Dataset) -> Figure:
    """Energy that each layer alone needs."""
    fig, axes = figure(7.5, 3.6)
    control.single_layer_energies(axes[0], energies)
    return fig


def achieved(energies: xr.Dataset) -> Figure:
    """What a plan does over its amplitude, beside what is predicted."""
    fig, axes = figure(6.0, 4.2)
    control.achieved(axes[0], energies)
    return fig


def effects(found: xr.Dataset) -> Figure:
    """What steered texts are, against what steering costs."""
    fig, axes = figure(11.5, 4.4, columns=2)
    effect_against_price(axes[0], found, "log_odds_mean", "kl_mean", legend=False)
    effect_against_price(axes[1], found, "readout_new_shift", "perplexity_mean", legend=False)
    shared_legend(axes[:1])
    return fig


def separation(result: xr.Dataset) -> Figure | None:
    """How well the concept direction separates held-out texts at every depth."""
    if "auc_low" not in result:
        return None
    fig, axes = figure(6.4, 3.4)
    auc_by_depth(axes[0], {"the concept direction": result})
    axes[0].set_title("where the texts separate (ring: best depth; band: 95 %)")
    return fig


# ---------------------------------------------------------------------------- comparison


def agreement_by_order(table: xr.Dataset) -> Figure:
    """Error of every method against the order."""
    fig, axes = figure(8.0, 4.4)
    comparison.agreement_by_order(axes[0], table)
    return fig


def certified_errors(table: xr.Dataset) -> Figure:
    """Exact errors beside what is proved, for both references."""
    fig, axes = figure(13.0, 4.4, columns=2)
    for ax, reference in zip(axes, table["reference"].values, strict=True):
        comparison.certified_errors(ax, table, str(reference), legend=False)
    shared_legend(axes)
    return fig


def budget_bars(table: xr.Dataset) -> Figure:
    """Where the error comes from, at a small and at the largest order."""
    orders = sorted({small_order(table["order"].values), int(table["order"].max())})
    height = (1.5 + 0.6 * table.sizes["basis"]) * len(orders)
    fig, axes = figure(8.0, height, rows=len(orders))
    limit = budget.budget_limit(table, orders)
    for ax, order in zip(axes, orders, strict=True):
        budget.budget_bars(ax, table, order, limit=limit, legend=order == orders[0])
    return fig


def linear_range(table: xr.Dataset) -> Figure:
    """Error of the linear prediction against the size of the injection."""
    fig, axes = figure(8.0, 4.0)
    comparison.linear_range(axes[0], table)
    return fig


def prompt_spread(table: xr.Dataset) -> Figure | None:
    """Errors of single prompts, if the comparison has them."""
    if "prompt_relative_l2" not in table:
        return None
    fig, axes = figure(max(6.4, 1.1 * table.sizes["basis"]), 4.0)
    comparison.prompt_spread(axes[0], table, small_order(table["order"].values))
    return fig


# ------------------------------------------------------------------------ docs/reduction.md


def agreement_by_size(rows: xr.Dataset) -> Figure:
    """Agreement of several forms for models of rising size, from `study.by_size`."""
    fig, axes = figure(9, 7.5, rows=2)
    sizes.agreement_by_size(axes, rows)
    return fig


def scaling(table: xr.Dataset) -> Figure:
    """Agreement and every part of its budget against model size; see `depthsys.plot.scaling`."""
    parts = [str(part) for part in table["part"].values] if "budget" in table else []
    shown = [name for name in ("relative_l2", "spearman") if name in table]
    shown += [part for part in parts if part != "total"]
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    fig, axes = figure(4.0 * columns + 1.4, 3.2 * rows + 0.8, columns=columns, rows=rows)
    for place, (ax, quantity) in enumerate(zip(axes, shown, strict=False)):
        scaling_of(ax, table, quantity, names=place < columns)
    for ax in axes[len(shown) :]:
        ax.set_visible(False)
    shared_legend(axes[:1])
    return fig


_PARTS = ("sampling", "averaging", "truncation", "nonlinearity")


def scaling_by_family(families: Mapping[str, Mapping[str, xr.Dataset]]) -> Figure:
    """Errors of methods and the parts of their budgets against size, a column per family of models.

    Each family has the same methods, by their names, with tables as `depthsys.plot.scaling` draws
    them. Parts are those of the last method; sampling and nonlinearity are those of all methods.
    What is nowhere more than rounding is left out. All errors have one axis, but nonlinearity, far
    below the others, has its own.
    """
    methods = list(next(iter(families.values())))
    named = {
        family: {method: _with_sizes(table) for method, table in tables.items()}
        for family, tables in families.items()
    }
    last = [tables[methods[-1]] for tables in named.values()]
    parts = [part for part in _PARTS if any(_has(table, part) for table in last)]
    rows = [(name, "relative_l2") for name in methods] + [(methods[-1], part) for part in parts]
    drawn = {
        (row, column): _one_quantity(tables[row[0]], row[1])
        for row in rows
        for column, tables in enumerate(named.values())
    }
    fig, axes = figure(4.9 * len(named), 2.1 * len(rows) + 2, columns=len(named), rows=len(rows))
    for ax, ((name, quantity), column) in zip(axes, drawn, strict=True):
        own = quantity == "nonlinearity"
        alike = [t for (row, _), t in drawn.items() if (row[1] == "nonlinearity") == own]
        table = drawn[(name, quantity), column]
        scaling_of(ax, table, quantity, names=(name, quantity) == rows[0], alike=alike)
        whose = name if quantity in ("relative_l2", "averaging", "truncation") else "all methods"
        what = quantity if quantity in _PARTS else "relative L2 error"
        ax.set_ylabel(f"{whose}\n{what} (%)")
        if (name, quantity) != rows[-1]:
            ax.set_xlabel("")
    longest = max(len(str(name)) for table in last for name in table["model"].values)
    for ax, below, family in zip(axes, axes[len(named) :], named, strict=False):
        # above the turned names of the models
        ax.set_title(family, pad=12 + 4.6 * longest, fontweight="bold")
        key_above(below, ncols=3)
    return fig


def _with_sizes(table: xr.Dataset) -> xr.Dataset:
    """Models that are named with their numbers of parameters."""
    counted = map(sizes.counted_parameters, table["n_parameters"].values)
    names = [f"{name}, {size}" for name, size in zip(table["model"].values, counted, strict=True)]
    return table.assign_coords(model=names)


def _one_quantity(table: xr.Dataset, quantity: str) -> xr.Dataset:
    """Only what is drawn: anything else would stretch the axis."""
    if quantity not in _PARTS:
        return table.drop_vars("budget")
    return table[["n_parameters", "budget"]].sel(part=[quantity])


def _has(table: xr.Dataset, part: str) -> bool:
    """Whether anything of that part is more than rounding."""
    values = table["budget"].sel(part=part, bound="estimate")
    return bool((100 * values > TINY).any())


def controllability(measures: xr.Dataset) -> Figure:
    """Ranks over depth and energies over layers, from `ltv.controllability`."""
    fig, axes = figure(11, 4, columns=2)
    reach.controllability(axes, measures)
    return fig


def agreement_and_certificates(table: xr.Dataset) -> Figure:
    """Both for one model and task, side by side; attrs ``model`` and ``task``."""
    fig, (left, right) = figure(12, 4.5, columns=2)
    comparison.agreement_by_order(left, table)
    comparison.certified_errors(right, table, reference="mean_response")
    left.set_title(f"{table.attrs['model']}, {table.attrs['task']}")
    right.set_title("against the mean exact response")
    return fig


def budget_and_range(table: xr.Dataset) -> Figure:
    """Error budget at order 4 and the range of linearity, side by side."""
    fig, axes = figure(12, max(4.5, 1.5 + 0.5 * table.sizes["basis"]), columns=2)
    budget.budget_bars(axes[0], table, order=4)
    comparison.linear_range(axes[1], table)
    return fig


def separation_of_tasks(tables: Mapping[str, xr.Dataset]) -> Figure:
    """AUC against depth of several tasks on one model, without their intervals."""
    fig, axes = figure(9.0, 4.2)
    auc_by_depth(axes[0], tables, bands=False)
    legend_beside(axes[0])
    return fig


def gains_of_tasks(tables: Mapping[str, xr.Dataset]) -> Figure:
    """Measured gains of several tasks on one model, and those of three surrogates.

    Without layer 0, whose gain dwarfs the others, see `gains.gain_curves`.
    """
    columns = min(len(tables), 4)
    rows = -(-len(tables) // columns)
    fig, axes = figure(3.4 * columns, 2.7 * rows, columns=columns, rows=rows)
    for ax, (name, table) in zip(axes, tables.items(), strict=False):
        gains.gains_of_surrogates(ax, table.isel(layer=slice(1, None)))
        ax.set_title(name)
    for ax in axes[len(tables) :]:
        ax.set_visible(False)
    for ax in axes[::columns]:
        ax.set_ylabel("gain")
    shared_legend(axes)
    fig.suptitle("without layer 0, whose gain would take the whole scale", fontsize="medium")
    return fig
