"""What texts, splits, runs and models show of themselves: one line, and a small block of HTML.

The HTML is whole in itself, without scripts and without a colour of its own: it takes that of the
page, so that it can be read on light and on dark ones. All that comes from data is escaped.
"""

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from depthsys.lm.kinds import short
from depthsys.lm.precision import Arithmetic
from depthsys.prompting import in_words
from depthsys.splits import SPLITS
from depthsys.wording import counted, size

# Texts of each class that are shown, and characters of each.
SHOWN, CHARACTERS = 3, 160
# Characters of a cell, whatever it holds.
LONGEST = 400
# Characters of a fingerprint in a line, its kind included.
DIGITS = 11

_STYLE = """<style>
.depthsys{font:13px/1.5 system-ui,sans-serif;max-width:64em;color:inherit;background:none;
border:1px solid rgba(128,128,128,.45);border-radius:6px;padding:.5em .9em;margin:.3em 0}
.depthsys table{border-collapse:collapse;margin:.2em 0 .4em;font:inherit;color:inherit}
.depthsys tr,.depthsys td{background:none;color:inherit;border:0;text-align:left}
.depthsys td{padding:.05em 1.2em .05em 0;vertical-align:top;overflow-wrap:anywhere}
.depthsys td:first-child{opacity:.75;white-space:nowrap;overflow-wrap:normal}
.depthsys summary{cursor:pointer}
.depthsys .depthsys{border-width:0 0 0 2px;border-radius:0;margin-left:.4em}
</style>"""


@dataclass(frozen=True)
class Card:
    """What is shown of one thing.

    Attributes
    ----------
    kind
        Of what.
    line
        All of it in one line.
    facts
        Names and values.
    details
        Titles, and the facts that are shown when one asks for them, or a card of its own.
    """

    kind: str
    line: str
    facts: Sequence[tuple[str, str]]
    details: "Sequence[tuple[str, Sequence[tuple[str, str]] | Card]]" = ()

    def text(self) -> str:
        """In one line."""
        return f"{self.kind}({self.line})"

    def html(self) -> str:
        """As a block of HTML with its style."""
        return f"{_STYLE}{self._block()}"

    def _block(self) -> str:
        rows = [f"<strong>depthsys {html.escape(self.kind)}</strong>", _table(self.facts)]
        for title, more in self.details:
            inside = more._block() if isinstance(more, Card) else _table(more)
            rows.append(f"<details><summary>{html.escape(title)}</summary>{inside}</details>")
        return f'<div class="depthsys">{"".join(rows)}</div>'


def _table(rows: Iterable[tuple[str, str]]) -> str:
    cells = (
        f"<tr><td>{html.escape(name[:LONGEST])}</td><td>{html.escape(value[:LONGEST])}</td></tr>"
        for name, value in rows
        if value
    )
    return f"<table>{''.join(cells)}</table>"


def of_texts(texts: Any) -> Card:
    """Of `Texts`: how many of each class, and where they are from; some of them on demand."""
    counts = [int((texts.labels == label).sum()) for label in (0, 1)]
    each = [f"{n} of {short(name)}" for n, name in zip(counts, texts.classes, strict=True)]
    dropped = _dropped(texts, "with both labels")
    line = f"{len(texts)}: {', '.join(each)}; from {short(texts.source)}"
    facts = [
        ("texts", f"{len(texts)}"),
        ("classes", f"{', '.join(each)}; a higher readout means the latter"),
        ("source", texts.source),
        ("dropped", dropped.removeprefix("without ")),
    ]
    some = [
        (f"{texts.classes[label]}", _clipped(texts.texts[i]))
        for label in (0, 1)
        for i in np.flatnonzero(texts.labels == label)[:SHOWN]
    ]
    return Card("Texts", line + _behind(dropped), facts, [("some of the texts", some)])


def of_pairs(pairs: Any) -> Card:
    """Of `Pairs`: how many, what the sides are called, and some of them on demand."""
    negative, positive = map(short, pairs.classes)
    dropped = _dropped(pairs, "with a text on both sides")
    line = f"{pairs.n_pairs} pairs: {positive} against {negative}; from {short(pairs.source)}"
    facts = [
        ("pairs", f"{pairs.n_pairs}"),
        ("sides", f"{positive} against {negative}; a higher readout means the former"),
        ("source", pairs.source),
        ("dropped", dropped.removeprefix("without ")),
        ("note", pairs.letter_note),
    ]
    some = [
        (f"{i}, {side}", _clipped(text))
        for i in range(min(SHOWN, pairs.n_pairs))
        for side, text in zip(reversed(pairs.classes), pairs.texts[2 * i : 2 * i + 2], strict=True)
    ]
    return Card("Pairs", line + _behind(dropped), facts, [("some of the pairs", some)])


def of_splits(splits: Any) -> Card:
    """Of `Splits` of texts, runs, or whatever was made of them."""
    parts = [(name, getattr(splits, name)) for name in SPLITS]
    cards = [(name, part._card) for name, part in parts if hasattr(part, "_card")]
    dropped = _dropped(splits, "with both labels")
    if len(cards) < len(parts):  # of other things than texts and runs of them
        line = ", ".join(f"{name}: {short(part)}" for name, part in parts)
        facts = [(name, short(part)) for name, part in parts]
    else:
        kind = {"Texts": "texts", "Pairs": "texts in pairs"}.get(cards[0][1].kind, "runs")
        line = f"{splits.sizes} per class, {kind}: {'/'.join(SPLITS)}"
        facts = [(name, card.line) for name, card in cards]
    facts += [("seed", f"{splits.seed}"), ("dropped before", dropped.removeprefix("without "))]
    details = [(name.replace("_", "-"), card) for name, card in cards]
    return Card("Splits", f"{line}; seed {splits.seed}{_behind(dropped)}", facts, details)


def of_run(run: Any) -> Card:
    """Of a `Run`: its prompts, model and where the contexts lie. Nothing is computed for it."""
    model, lengths = run.model, [len(row) for row in run.rows]
    shortest, longest = min(lengths, default=0), max(lengths, default=0)
    tokens = ""
    if run.tokens == "all":
        tokens = _where(run.tokens_place, run.tokens_nbytes)
    line = (
        f"{len(run)} prompts, {run.n_cut} of them cut; {run.n_layers} layers, "
        f"{model.n_features} features, {len(run.numbers)} batches, "
        f"{model.dtype_name}, {model.device}; context: {run.place}"
        f"{_behind(tokens and f'states of all tokens: {run.tokens_place}')}"
    )
    cut = f"{run.n_cut}, {model.prompting.cut}, at {model.max_tokens} tokens" if run.n_cut else "0"
    facts = [
        ("prompts", f"{len(run)}, of {shortest} to {longest} tokens"),
        ("cut", cut),
        ("note", run.token_note or ""),
        ("batches", f"{len(run.numbers)}"),
        ("contexts", _where(run.place, run.nbytes)),
        ("states of all tokens", tokens),
        ("fingerprint", f"{run.tokens_sha256} of the tokens"),
    ]
    details: list[tuple[str, Any]] = [("model", of_model(model))] if hasattr(model, "hf") else []
    if hasattr(run.texts, "_card"):
        details.append(("texts", run.texts._card))
    return Card("Run", line, facts, details)


def of_model(model: Any) -> Card:
    """Of a `DepthModel`: family, size, arithmetic, device, fingerprint; its contract on demand."""
    family, arithmetic = type(model.hf).__name__, Arithmetic.of(model).name
    n_moving, mark = model.blocks.residence.n_moving, str(model.fingerprint)
    waiting = f"{counted(n_moving, 'layer')} wait in memory or files" if n_moving else ""
    line = (
        f"{short(model.name)}, {family}, L={model.n_layers}, H={model.n_features}, {arithmetic}, "
        f"{model.device}{_behind(waiting)}{_behind(model.adapter or '')}; {mark[:DIGITS]}"
    )
    prompting = [
        ("prompts", in_words(model.prompting) or "the texts as they are"),
        ("longest", f"{counted(model.max_tokens, 'token')}, cut: {model.prompting.cut}"),
        ("batches", "of unlike lengths, padded on the left" if model.left_padding else "by length"),
    ]
    facts = [
        ("name", model.name),
        ("family", family),
        ("size", f"L x H = {model.n_layers} x {model.n_features}"),
        ("arithmetic", f"{arithmetic}, on {model.device}"),
        ("weights", waiting),
        ("adapter", model.adapter or ""),
        ("source", f"{model.source}, revision {model.revision}"),
        ("fingerprint", mark),
    ]
    report = getattr(model, "contract", {})  # one that has broken it has none
    checks = [(name, f"{value:.1e}") for name, value in report.items()]
    details = [("prompts", prompting), ("contract: largest relative errors", checks)]
    return Card("DepthModel", line, facts, details)


def _where(place: str, nbytes: int) -> str:
    if place == "again":
        return "computed again when needed"
    return f"{place}, {size(nbytes)}" if nbytes else place


def _dropped(texts: Any, both: str) -> str:
    counts = (
        (texts.n_duplicates, counted(texts.n_duplicates, "duplicate")),
        (texts.n_conflicts, f"{texts.n_conflicts} {both}"),
        (texts.n_other, f"{texts.n_other} of other classes"),
    )
    told = ", ".join(said for n, said in counts if n)
    return f"without {told}" if told else ""


def _behind(said: str) -> str:
    return f"; {said}" if said else ""


def _clipped(text: Any) -> str:
    """A text, or token ids, with what cannot be seen written out."""
    if not isinstance(text, str):
        ids = ", ".join(map(str, text[: CHARACTERS // 8]))
        return f"{ids}{', ...' if len(text) > CHARACTERS // 8 else ''}"
    return repr(text[:CHARACTERS])[1:-1] + "..." * (len(text) > CHARACTERS)
