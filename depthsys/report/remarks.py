"""What a result says against itself: a sentence, and what of it is the same for many results."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from depthsys.prompting import Prompting, in_words
from depthsys.wording import counted, fixed, separation_warning

_NOT_OF_THE_CONCEPT = "gains are real, but do not call them gains of the concept"
_WHERE = {"right": "on the right", "left": "on the left", "middle": "in the middle"}
Separation = Mapping[str, np.ndarray]  # auc, auc_low, auc_high over depth, those that are known


@dataclass(frozen=True)
class Remark:
    """What is to be minded of a result.

    Attributes
    ----------
    said
        All of it, where it stands for itself.
    common
        What is said once where many results have such a remark; empty where that is all of it.
    measured
        What is told of each of them.
    own
        That of this one, in brief.
    """

    said: str
    common: str = ""
    measured: str = ""
    own: str = ""

    @property
    def kind(self) -> str:
        """What remarks of a kind share."""
        return self.common or self.said


def of_attrs(attrs: Mapping[str, Any], separation: Separation | None = None) -> list[Remark]:
    """What the attributes of a result say against it; ``separation`` is that of its direction."""
    known = separation or {}
    found = []
    if "concept_warning" in attrs:
        found.append(of_direction(str(attrs["concept_warning"]), known, gains=True))
    if "adapter" in attrs:
        found.append(Remark(f"the model is {attrs['adapter']}"))
    if "direction_note" in attrs:
        found.append(_without_direction(str(attrs["direction_note"]), known))
    if "note" in attrs:
        found.append(Remark(str(attrs["note"])))
    if "step_note" in attrs:
        common = "steps were left out of the range of linearity"
        said, own = f"steps left out of the range of linearity: {attrs['step_note']}", "step_note"
        found.append(Remark(said, common, "why", str(attrs[own])))
    if "import_note" in attrs:
        found.append(Remark(str(attrs["import_note"])))
    return found


def of_direction(warning: str, separation: Separation, *, gains: bool) -> Remark:
    """A direction that does not separate; ``gains`` are told of it, or only the direction."""
    rest = f"; {_NOT_OF_THE_CONCEPT}" if gains else ""
    last = auc_at(separation, -1)
    if len(last) == 3:
        verdict, said = separation_warning(*last)
        if said == warning:
            return Remark(f"{said}{rest}", f"{verdict}{rest}", "AUC [95 %]", fixed(last))
    return Remark(f"{warning}{rest}")


def _without_direction(note: str, separation: Separation) -> Remark:
    auc = separation.get("auc")
    depths = [] if auc is None else np.flatnonzero(~np.isfinite(auc)).tolist()
    if not depths:
        return Remark(note)
    own = f"depth{'s' * (len(depths) > 1)} {', '.join(map(str, depths))}"
    return Remark(note, "there is no direction where texts cannot be told apart", "where", own)


def best_depth(separation: Separation) -> int | None:
    """Where held-out texts separate best; None if they are nowhere above chance."""
    auc = separation["auc"]
    return int(np.nanargmax(auc)) if (auc > 0.5).any() else None


def auc_at(separation: Separation, depth: int) -> list[float]:
    """The AUC at a depth and, where it has one, its interval."""
    names = [name for name in ("auc", "auc_low", "auc_high") if name in separation]
    return [float(separation[name][depth]) for name in names]


def better_depth(separation: Separation) -> list[Remark]:
    """Where the concept is clearly seen better at a depth than where gains are read."""
    best = best_depth(separation)
    if best is None or "auc_low" not in separation:
        return []
    last, there = auc_at(separation, -1), auc_at(separation, best)
    if not there[1] > last[2]:
        return []
    common = "the concept is seen better at another depth than at the last one, where gains are"
    return [
        Remark(
            f"the concept is seen better at depth {best} (AUC {fixed(there)}) than at "
            f"the last depth (AUC {fixed(last)}), where gains are read",
            f"{common} read",
            "AUC there, and at the last depth",
            f"{fixed(there[:1])} at depth {best}, and {fixed(last[:1])}",
        )
    ]


def of_texts(attrs: Mapping[str, Any]) -> list[Remark]:
    """What was done to texts, from the attrs of what was computed from them: dropped, cut."""
    said = in_words(Prompting.stored(attrs))
    found = [Remark(said)] if said else []
    found += _dropped(attrs) + _cut(attrs)
    for name, note in json.loads(attrs.get("token_notes", "{}")).items():
        whose = "texts" if "n_lines" in attrs else f"{name.replace('_', '-')} texts"
        found.append(
            Remark(
                f"{whose}: {note}",
                "texts whose tokens are to be minded",
                whose,
                note,
            )
        )
    return found


def _dropped(attrs: Mapping[str, Any]) -> list[Remark]:
    found = []
    twice, both = attrs["n_duplicates"], attrs["n_conflicts"]
    if twice or both:
        paired = bool(attrs.get("paired"))
        what = "pairs with a text on both sides" if paired else "texts that came with both labels"
        said = f"dropped before splitting: {twice} duplicates, {both} {what}"
        measured = f"duplicates and {what}" if both else "duplicates"
        own = f"{twice} and {both}" if both else f"{twice}"
        found.append(Remark(said, "texts were dropped before splitting", measured, own))
    if attrs.get("n_other"):
        rows = counted(attrs["n_other"], "row")
        said, common = f"left out: {rows} of other classes", "rows of other classes were left out"
        found.append(Remark(said, common, "rows", str(attrs["n_other"])))
    return found


def _cut(attrs: Mapping[str, Any]) -> list[Remark]:
    lines = attrs.get("n_lines")
    names = ("concept", "operating", "held_out") if lines is None else ("operating",)
    cut = [attrs[f"n_cut_{name}"] for name in names]
    if not any(cut):
        return []
    where = f"cut {_WHERE[attrs.get('cut', 'right')]} at {attrs['max_tokens']} tokens"
    if lines is not None:
        own = f"{cut[0]} of {counted(lines, 'text')}"
        return [Remark(f"{where}: {own}", f"texts were {where}", "texts", own)]
    said = f"{where}: {cut[0]} concept, {cut[1]} operating and {cut[2]} held-out texts"
    measured = "concept/operating/held-out texts"
    return [Remark(said, f"texts were {where}", measured, "/".join(map(str, cut)))]
