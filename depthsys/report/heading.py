"""What a result is of, and what it says against itself."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from depthsys.report.remarks import auc_at, best_depth, better_depth, of_attrs, of_texts
from depthsys.wording import counted, fixed


def heading(result: xr.Dataset, now: Mapping[str, Any] | None = None) -> list[str]:
    """Which model, texts and concept a result is of, and how well the concept separates.

    The interval of the best depth does not know that it was chosen among depths: by chance the best
    of many lies higher than it is.

    Parameters
    ----------
    result
        A system of `study.identify`, a table of `study.compare`, or an effect of `study.verify`.
    now
        Attrs of what was computed from it, where that is another Dataset: its model may have moved.
    """
    attrs = result.attrs
    negative, positive = json.loads(attrs["classes"])
    model = (attrs if now is None else now)["model"]
    if "basis" in result.dims:
        n_layers, n_features = attrs["n_layers"], attrs["n_features"]
        what = comparison_in_words(result)
    elif "tokens" in result.dims:
        n_layers, n_features, what = attrs["n_layers"], attrs["n_features"], "a control vector"
    else:
        n_layers = result.sizes["layer"]
        n_features = attrs["n_features"] if "v" not in result else result["v"].sizes["feature"]
        what = system_in_words(result)
    return [
        f"{model}: L = {n_layers}, H = {n_features}, {attrs['dtype']}, {what}, "
        f"{attrs['readout']} readout",
        f"texts {attrs['texts']}, {attrs['split']} per class, seed {attrs['seed']}; the readout "
        f"grows from label {negative!r} to {positive!r}",
        f"- {separation(result, int(n_layers))}",
    ]


def separation(result: xr.Dataset, n_layers: int) -> str:
    """How well the concept of a result separates held-out texts, in words."""
    known = _separation_of(result)
    auc, best = known["auc"], best_depth(known)
    told = [f"{fixed([auc[0]])} at depth 0" if np.isfinite(auc[0]) else "no direction at depth 0"]
    if best not in (None, 0, n_layers):
        told.append(f"best {fixed(auc_at(known, best))} at depth {best}")
    told.append(f"{fixed(auc_at(known, -1))} at depth {n_layers}")
    direction = f"the concept direction ({result.attrs['concept']})"
    verdict = "separates" if auc[-1] >= 0.8 else "weakly separates" if auc[-1] >= 0.6 else ""
    if "concept_warning" in result.attrs:
        text = "see the warning below"
    elif verdict:
        text = f"{direction} {verdict} held-out texts there"
    else:
        text = (
            f"{direction} hardly separates held-out texts there: its gains are real, but do not "
            "call them gains of the concept"
        )
    n_held_out = 2 * int(result.attrs["split"].split("/")[2])
    if "paired_accuracy" in result:
        names = ("paired_accuracy", "paired_low", "paired_high")
        share = fixed([float(result[name].values[-1]) for name in names])
        told[-1] += f" (of {n_held_out // 2} pairs, {share} ordered rightly)"
    return f"AUC on {n_held_out} held-out texts: {', '.join(told)}; {text}"


def system_in_words(system: xr.Dataset) -> str:
    """Method and order of a system."""
    settings = json.loads(system.attrs.get("settings", "{}"))
    largest, asked = int(system["order"].max()), settings.get("order", system.attrs["order"])
    tolerance = settings.get("tolerance")
    order = f"order {largest}"
    if tolerance is not None:
        order += f" for tolerance {tolerance:g}"
    elif asked is not None and largest < asked:
        order += f" ({int(asked)} asked for)"
    changed = system.attrs.get("changed_by")
    by = f", changed by {changed}" if changed else ""
    return f"{system.attrs['method']}{by}, {order}"


def comparison_in_words(table: xr.Dataset) -> str:
    """Methods and orders of a comparison."""
    orders = table["order"].values.tolist()
    many = f"orders {', '.join(map(str, orders))}" if len(orders) > 1 else f"order {orders[0]}"
    return f"{counted(table.sizes['basis'], 'method')} at {many}"


def notes(result: xr.Dataset) -> list[str]:
    """What a result says against itself."""
    known = _separation_of(result)
    found = of_attrs(result.attrs, known) + (better_depth(known) if known else [])
    return [remark.said for remark in found]


def text_notes(attrs: Mapping[str, Any]) -> list[str]:
    """What was done to texts, from the attrs of what was computed from them: dropped, cut."""
    return [remark.said for remark in of_texts(attrs)]


def _separation_of(result: xr.Dataset) -> dict[str, np.ndarray]:
    names = ("auc", "auc_low", "auc_high")
    return {n: result[n].values for n in names if n in result} if "auc" in result else {}
