"""What stands around the content of a prompt, and how a long prompt is cut inside it.

A tokenizer adds special tokens at both ends; a chat template puts a header before what the user
says and the beginning of the answer after it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

# two messages that begin and end unlike each other
_PROBES = ("depth", "layer of a model")


@dataclass(frozen=True)
class Ends:
    """Token ids around the content.

    Attributes
    ----------
    first, last
        What the tokenizer adds at the beginning and at the end.
    heads, tails
        What a chat template may put there.
    """

    first: tuple[int, ...] = ()
    last: tuple[int, ...] = ()
    heads: tuple[tuple[int, ...], ...] = ()
    tails: tuple[tuple[int, ...], ...] = ()

    def before(self, row: Sequence[int]) -> int:
        """How many tokens of a prompt stand before its content."""
        heads = [self.first, *self.heads, *(self.first + head for head in self.heads)]
        return max(_shared(row, head) for head in heads)

    def after(self, row: Sequence[int]) -> int:
        """How many tokens of a prompt stand after its content."""
        tails = [self.last, *self.tails, *(tail + self.last for tail in self.tails)]
        return max(_shared(row[::-1], tail[::-1]) for tail in tails)


def added(tokenizer: Any) -> Ends:
    """What the tokenizer adds to a text of its own accord."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return Ends(tuple(whole[:start]), tuple(whole[start + len(bare) :]))
    return Ends()


def undoubled(rows: list[list[int]], ends: Ends, tokenizer: Any) -> tuple[list[slice], str]:
    """Of every row what is no second copy of what the tokenizer adds; and that in words.

    A text that was made with a chat template, for example, may begin with the token that the
    tokenizer puts before every text.
    """
    first, last = list(ends.first), list(ends.last)
    begins = [bool(first) and row[: 2 * len(first)] == 2 * first for row in rows]
    starts = [len(first) if double else 0 for double in begins]
    rests = [row[start:] for row, start in zip(rows, starts, strict=True)]
    stops = [bool(last) and row[-2 * len(last) :] == 2 * last for row in rests]
    told = []
    for double, verb, ids in ((begins, "began", first), (stops, "ended", last)):
        if any(double):
            told.append(
                f"{sum(double)} of {len(rows)} texts {verb} with {tokenizer.decode(ids)!r}, which "
                "the tokenizer adds by itself: the second one was left out"
            )
    kept = [
        slice(start, len(row) - len(last) if stop else len(row))
        for row, start, stop in zip(rows, starts, stops, strict=True)
    ]
    return kept, "; ".join(told)


def template_ends(tokenizer: Any, ends: Ends) -> Ends:
    """The ends with those of the tokenizer's chat template, if it has one."""
    if not getattr(tokenizer, "chat_template", None):
        return ends
    heads, tails = set(), set()
    for answers in (True, False):
        try:
            one, other = (
                tokenizer.apply_chat_template(
                    [{"role": "user", "content": content}],
                    tokenize=False,
                    add_generation_prompt=answers,
                )
                for content in _PROBES
            )
        except Exception:  # a template raises what its author likes
            continue
        heads.add(one[: _shared(one, other)])
        tails.add(one[len(one) - _shared(one[::-1], other[::-1]) :])
    return replace(ends, heads=_all_ids(tokenizer, heads), tails=_all_ids(tokenizer, tails))


def cut(row: list[int], max_tokens: int, how: str, ends: Ends) -> list[int]:
    """A prompt that is too long, cut to ``max_tokens``, where it is not known what the text is.

    Parameters
    ----------
    row
        Its token ids.
    max_tokens
        What is left.
    how
        "right" keeps the first tokens. "left" keeps the last ones, and what the tokenizer puts
        before every text. "middle" keeps what stands around the content, the header of a chat
        template and the beginning of the answer for example, and leaves out the middle of the
        content: of an odd number of tokens that stay, the first part gets one more; a single one is
        the last, where the state is read.
    ends
        What stands around the content.

    Raises
    ------
    ValueError
        If no token of the content would be left.
    """
    before = after = 0
    if how == "left" and max_tokens > len(ends.first):
        before = _shared(row, ends.first)
    elif how == "middle":
        before, after = ends.before(row), ends.after(row)
    return cut_between(row, before, after, max_tokens, how)


def cut_between(row: list[int], before: int, after: int, max_tokens: int, how: str) -> list[int]:
    """The same, where so many tokens before and after the content stay.

    Raises
    ------
    ValueError
        If no token of the content would be left.
    """
    room = max_tokens - before - after
    if room < 1:
        raise ValueError(
            f"`max_tokens` must be above the {before + after} tokens around the content of a "
            f"prompt; got {max_tokens}. Raise it, or put less around it."
        )
    end = len(row) - after
    left = {"right": room, "left": 0, "middle": (room + 1) // 2 if room > 1 else 0}[how]
    return row[: before + left] + row[end - room + left : end] + row[end:]


def _all_ids(tokenizer: Any, strings: set[str]) -> tuple[tuple[int, ...], ...]:
    whole = sorted(string for string in strings if string)
    return tuple(tuple(tokenizer(s, add_special_tokens=False)["input_ids"]) for s in whole)


def _shared(row: Sequence, other: Sequence) -> int:
    """How many tokens, or characters, are the same from the beginning on."""
    pairs = enumerate(zip(row, other, strict=False))
    return next((n for n, (a, b) in pairs if a != b), min(len(row), len(other)))
