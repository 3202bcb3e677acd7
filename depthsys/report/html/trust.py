"""How far to trust results: what they say against themselves, each kind once with its cells."""

from collections.abc import Mapping

from depthsys.report.html.facts import Facts
from depthsys.report.html.svg import Markup, joined, tag
from depthsys.report.remarks import Remark
from depthsys.wording import counted, sentence

MOST_NAMED = 6  # names behind a remark; the rest is counted, and found in the cells
Doubts = Mapping[str, list[Remark]]  # of each cell, by its anchor


def remarks(facts: list[Facts], doubts: Doubts) -> list[Markup]:
    """A sentence for each kind of remark; of a single cell each as it is."""
    if len(facts) == 1:
        return [joined(sentence(each.said)) for each in doubts[facts[0].anchor]]
    kinds: dict[str, list[tuple[Facts, Remark]]] = {}
    for each in facts:
        for remark in doubts[each.anchor]:
            kinds.setdefault(remark.kind, []).append((each, remark))
    return [_of_kind(kind, rows, facts) for kind, rows in kinds.items()]


def _of_kind(kind: str, rows: list[tuple[Facts, Remark]], facts: list[Facts]) -> Markup:
    """What cells share, then what is measured, and that of each."""
    numbers: dict[str, dict[str, Facts]] = {}
    for each, remark in rows:
        numbers.setdefault(remark.own, {})[each.anchor] = each
    groups = [
        (name, own, cells)
        for own, here in numbers.items()
        for name, cells in _named(list(here.values()), facts)
    ]
    shown = [joined(name, _short(own)) for name, own, _ in groups[:MOST_NAMED]]
    left = sum(len(cells) for *_, cells in groups[MOST_NAMED:])
    more = f" and {counted(left, 'other cell')}" if left else ""
    count = counted(len({each.anchor for each, _ in rows}), "cell")
    measured = sentence(rows[0][1].measured or "said")
    return joined(f"{sentence(kind).rstrip('.')}. {measured} in {count}: ", _listed(shown), more)


def _named(cells: list[Facts], facts: list[Facts]) -> list[tuple[Markup, list[Facts]]]:
    """Names of cells that say the same: of a task or a model where all of it does."""
    found, left = [], {each.anchor: each for each in cells}
    for part in ("task", "model"):
        for name in dict.fromkeys(getattr(each.cell, part) for each in cells):
            whole = [each for each in facts if getattr(each.cell, part) == name]
            if 1 < len(whole) < len(facts) and all(each.anchor in left for each in whole):
                found.append((joined(f"all of {name}"), whole))
                left = {k: each for k, each in left.items() if each not in whole}
    return found + [
        (tag("a", each.name, href=f"#{anchor}"), [each]) for anchor, each in left.items()
    ]


def _short(own: str) -> str | None:
    """Numbers behind a name, whose intervals are not broken over lines."""
    return f"\u00a0{own}".replace(", ", ",\u00a0") if own else None


def _listed(names: list[Markup]) -> Markup:
    between = "; " if any("," in name for name in names) else ", "
    return joined(names[0], *(joined(between, name) for name in names[1:]))
