"""What a result is of, and what it says against itself."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from depthsys.prompting import Prompting, in_words
from depthsys.wording import counted, fixed

_STEPS = "steps left out of the range of linearity: "
# what is said, and what stands before it where it does not say what it is about
_NOTES = {"direction_note": "", "note": "", "step_note": _STEPS, "import_note": ""}


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
        _separation(result, int(n_layers)),
    ]


def _separation(result: xr.Dataset, n_layers: int) -> str:
    auc, best = result["auc"].values, _best_depth(result)
    told = [f"{fixed([auc[0]])} at depth 0" if np.isfinite(auc[0]) else "no direction at depth 0"]
    if best not in (None, 0, n_layers):
        told.append(f"best {fixed(_auc_at(result, best))} at depth {best}")
    told.append(f"{fixed(_auc_at(result, -1))} at depth {n_layers}")
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
    return f"- AUC on {n_held_out} held-out texts: {', '.join(told)}; {text}"


def _best_depth(result: xr.Dataset) -> int | None:
    """Where held-out texts separate best; None if they are nowhere above chance."""
    auc = result["auc"].values
    return int(np.nanargmax(auc)) if (auc > 0.5).any() else None


def _auc_at(result: xr.Dataset, depth: int) -> list[float]:
    names = [name for name in ("auc", "auc_low", "auc_high") if name in result]
    return [float(result[name].values[depth]) for name in names]


def better_depth(result: xr.Dataset) -> list[str]:
    """A note where the concept is clearly seen better at a depth than where gains are read."""
    best = _best_depth(result)
    if best is None or "auc_low" not in result:
        return []
    last = _auc_at(result, -1)
    if not _auc_at(result, best)[1] > last[2]:
        return []
    return [
        f"the concept is seen better at depth {best} (AUC {fixed(_auc_at(result, best))}) than at "
        f"the last depth (AUC {fixed(last)}), where gains are read"
    ]


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
    said = attr_notes(result.attrs)
    return said + (better_depth(result) if "auc" in result else [])


def attr_notes(attrs: Mapping[str, Any]) -> list[str]:
    """The same of its attrs alone."""
    found = []
    if "concept_warning" in attrs:
        found.append(
            f"{attrs['concept_warning']}; gains are real, but do not call them gains of the concept"
        )
    if "adapter" in attrs:
        found.append(f"the model is {attrs['adapter']}")
    return found + [f"{before}{attrs[n]}" for n, before in _NOTES.items() if n in attrs]


_WHERE = {"right": "on the right", "left": "on the left", "middle": "in the middle"}


def text_notes(attrs: Mapping[str, Any]) -> list[str]:
    """What was done to texts, from the attrs of what was computed from them: dropped, cut."""
    said = in_words(Prompting.stored(attrs))
    found = [said] if said else []
    if attrs["n_duplicates"] or attrs["n_conflicts"]:
        both = "pairs with a text on both" if attrs.get("paired") else "texts that came with both"
        found.append(
            f"dropped before splitting: {attrs['n_duplicates']} duplicates, "
            f"{attrs['n_conflicts']} {both} {'sides' if attrs.get('paired') else 'labels'}"
        )
    if attrs.get("n_other"):
        found.append(f"left out: {counted(attrs['n_other'], 'row')} of other classes")
    cut = [attrs[f"n_cut_{name}"] for name in ("concept", "operating", "held_out")]
    if any(cut):
        found.append(
            f"cut {_WHERE[attrs.get('cut', 'right')]} at {attrs['max_tokens']} tokens: {cut[0]} "
            f"concept, {cut[1]} operating and {cut[2]} held-out texts"
        )
    for name, note in json.loads(attrs.get("token_notes", "{}")).items():
        found.append(f"{name.replace('_', '-')} texts: {note}")
    return found
