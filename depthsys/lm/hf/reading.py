"""Which token of a prompt is the state, and which tokens are the text's."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from depthsys.lm.hf.rendering import Rendered
from depthsys.lm.hf.template import Ends, cut, cut_between
from depthsys.lm.kinds import short
from depthsys.prompting import Prompting

Spans = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Row:
    """Token ids of a prompt.

    Attributes
    ----------
    ids
        The ids.
    around
        How many of them stand before and after the text; None where that is not known.
    """

    ids: list[int]
    around: tuple[int, int] | None = None

    def until(self, end: int) -> "Row":
        """The first tokens."""
        if self.around is None:
            return Row(self.ids[:end])
        before, after = self.around
        gone = len(self.ids) - end
        return Row(self.ids[:end], (min(before, end), max(0, after - gone)))

    def cut(self, max_tokens: int, how: str, ends: Ends) -> "Row":
        """Cut in its text, or, where that is not known, as `depthsys.lm.hf.template.cut` does."""
        if self.around is None:
            return Row(cut(self.ids, max_tokens, how, ends))
        return Row(cut_between(self.ids, *self.around, max_tokens, how), self.around)

    @property
    def ends_in_text(self) -> bool:
        """Whether its last token may be cut."""
        return self.around is None or self.around[1] == 0


def check_tokenizer(tokenizer: Any, wanted: str) -> None:
    """ValueError if it cannot say which tokens are the text's, which is wanted for that."""
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"`tokenizer` must be a fast one for {wanted}: only these say which tokens are the "
            f"text's; got a {type(tokenizer).__name__}. Load a checkpoint with a tokenizer.json, "
            "or tokenize by yourself and give token ids."
        )


def spans_wanted(tokenizer: Any, prompting: Prompting) -> bool:
    """Whether tokens must be found in the strings; ValueError if the tokenizer cannot."""
    if prompting.read_at == "text" or prompting.marker is not None:
        check_tokenizer(tokenizer, f"read_at={prompting.read_at!r}")
        return True
    return not prompting.is_plain and getattr(tokenizer, "is_fast", False)


def around_text(spans: Spans, string: str, place: tuple[int, int]) -> tuple[int, int] | None:
    """How many tokens stand before and after the text; None if no token is the text's alone.

    A token that holds characters of both belongs to what stands around, except for the space
    before a text, which is part of its first word for most tokenizers.
    """
    start, end = place
    own = [
        number
        for number, (first, last) in enumerate(spans)
        if first < last and start < last <= end and (first >= start or string[first:start] == " ")
    ]
    return (own[0], len(spans) - own[-1] - 1) if own else None


def read_row(
    ids: list[int], spans: Spans, texts: Rendered, number: int, prompting: Prompting
) -> Row:
    """The row of that number up to the end of the text or of the marker; whole for others.

    Raises
    ------
    ValueError
        If the prompt has no token there.
    """
    string, place = texts.strings[number], texts.places[number]
    own = around_text(spans, string, place)
    row = Row(ids, None if prompting.is_plain else own or (len(ids), 0))
    if prompting.read_at == "text":
        if own is None:
            raise ValueError(
                f"`read_at` must be a token that is there; text number {number}, "
                f"{short(string[slice(*place)])}, has none of its own. Delete it, or use 'last'."
            )
        return row.until(len(ids) - own[1])
    if prompting.marker is not None:
        return row.until(_after_marker(spans, string, number, prompting.marker))
    return row


def check_marker_stays(row: Row, number: int, prompting: Prompting) -> None:
    """ValueError if cutting this row takes the end of the marker away."""
    if prompting.marker is None or not row.ends_in_text:
        return
    before = 0 if row.around is None else row.around[0]
    has_text = before < len(row.ids)
    if has_text and prompting.cut != "right":
        return
    others = ", or use cut='left' or 'middle'" if before < prompting.max_tokens else ""
    raise ValueError(
        f"`read_at` must be a marker that is not cut away; {short(prompting.marker)} in text "
        f"number {number} ends at token {len(row.ids)}, above max_tokens={prompting.max_tokens}"
        f"{'' if has_text else ', before the text'}. Raise `max_tokens` to {len(row.ids)}{others}."
    )


def until_index(ids: list[int], number: int, index: int) -> list[int]:
    """The tokens up to that of an index; ValueError if there is none."""
    if not -len(ids) <= index < len(ids):
        raise ValueError(
            f"`read_at` must be a token of every prompt; got {index} for number {number}, which "
            f"has {len(ids)} tokens. Use an index from {-len(ids)} to {len(ids) - 1}."
        )
    return ids[: index % len(ids) + 1]


def _after_marker(spans: Spans, string: str, number: int, marker: str) -> int:
    """How many tokens there are up to the one with the last character of the marker."""
    start = string.rfind(marker)
    if start < 0:
        raise ValueError(
            f"`read_at` must be a marker that stands in every prompt; {short(marker)} is not in "
            f"number {number}, {short(string)}. Put it into a `template`, or use 'last'."
        )
    last = start + len(marker) - 1
    at = [n for n, (first, after) in enumerate(spans) if first <= last < after]
    if not at:
        raise ValueError(
            f"`read_at` must be a marker whose end is part of a token; the tokenizer leaves out "
            f"that of {short(marker)} in number {number}. Use another marker."
        )
    return at[-1] + 1
