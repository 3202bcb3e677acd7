"""Which tokens a push acts on: the last one of the prompt, every one, those that are written, ...

Predictions of a linear system are of pushes at the last token of the prompt: those are exact up to
the model's nonlinearity. What pushes at other tokens do can only be measured.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# "last": the last token of the prompt, whose state writes the first new token. "generated": that
# one and every new token, so every state that a new token is read from. "every": all tokens of
# the prompt and all new ones, as llama.cpp, repeng and steering-vectors push.
POSITIONS = ("last", "generated", "every")
_AFTER = "after "


@dataclass(frozen=True)
class After:
    """The tokens behind a marker in the prompt, and all new ones.

    Parameters
    ----------
    marker
        A text, or token ids. The last occurrence in a prompt counts. Of a text the first token
        that is pushed is the one behind the token in which the marker ends.

    Raises
    ------
    TypeError, ValueError
        If it is neither, or empty.

    Examples
    --------
    >>> After("Answer:"), After([7, 8]).marker
    (After(marker='Answer:'), (7, 8))
    """

    marker: str | Sequence[int]

    def __post_init__(self):
        given = self.marker
        if not isinstance(given, str):
            try:
                whole = [int(token) for token in given]
            except (TypeError, ValueError) as error:
                raise TypeError(
                    f"`marker` must be a text or token ids; got {given!r:.60}. Write "
                    "lm.After('Answer:')."
                ) from error
            object.__setattr__(self, "marker", tuple(whole))
        if not self.marker:
            raise ValueError(
                "`marker` must not be empty; got nothing. Use the positions 'every' for all tokens."
            )

    def __str__(self) -> str:
        return _AFTER + json.dumps(self.marker)


Positions = str | After


def checked(positions: Positions, argument: str = "positions") -> Positions:
    """Positions as given, or from the text that a plan holds.

    Raises
    ------
    ValueError
        If there are none such.

    Examples
    --------
    >>> checked("last"), checked('after "Answer:"')
    ('last', After(marker='Answer:'))
    """
    if isinstance(positions, After) or positions in POSITIONS:
        return positions
    if isinstance(positions, str) and positions.startswith(_AFTER):
        try:
            return After(json.loads(positions.removeprefix(_AFTER)))
        except (ValueError, TypeError):
            pass  # told below
    raise ValueError(
        f"`{argument}` must be one of {POSITIONS} or lm.After(marker); got {positions!r:.60}. Pick "
        "one."
    )


def decoder(tokenizer: Any) -> Callable[[Sequence[int]], str] | None:
    """Token ids -> text with all special tokens, as the tokenizer has them; None without one."""
    if tokenizer is None:
        return None

    def decode(ids: Sequence[int]) -> str:
        return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    return decode


def prediction(positions: Positions) -> dict[str, str]:
    """The attr that says whether a linear system can predict pushes there."""
    exact = "of pushes at the last token of the prompt, as linear systems predict them"
    measured = "none: what pushes at these tokens do is measured, no linear system predicts it"
    return {"prediction": exact if positions == "last" else measured}


def starts(
    rows: Sequence[Sequence[int]],
    after: After,
    decode: Callable[[Sequence[int]], str] | None = None,
) -> list[int]:
    """Index of the first token behind the last marker, in every prompt.

    Parameters
    ----------
    rows
        Token ids of every prompt, without padding.
    after
        The marker.
    decode
        Token ids -> text, special tokens included; needed for a marker that is a text.

    Raises
    ------
    ValueError
        If a prompt has no such marker, or a text is to be found without a tokenizer.
    """
    if isinstance(after.marker, str) and decode is None:
        raise ValueError(
            f"`positions` must mark token ids where there is no tokenizer; got {after.marker!r}. "
            "Write lm.After([1, 2, 3]), or give a DepthModel with a tokenizer."
        )
    found = []
    for number, row in enumerate(rows):
        if isinstance(after.marker, str):
            start = _after_text([int(i) for i in row], after.marker, decode)
        else:
            start = _after_ids(row, after.marker)
        if start is None:
            shown = decode(row) if decode is not None else list(row)
            raise ValueError(
                f"`positions` must mark a place in every prompt; got {after.marker!r:.60}, which "
                f"is not in prompt number {number}, {_short(shown)}. Choose another marker."
            )
        found.append(start)
    return found


def _short(shown) -> str:
    text = repr(shown)
    return text if len(text) <= 70 else f"{text[:67]}..."


def _after_ids(row: Sequence[int], marker: Sequence[int]) -> int | None:
    size = len(marker)
    ids = [int(token) for token in row]
    for begin in range(len(ids) - size, -1, -1):
        if ids[begin : begin + size] == list(marker):
            return begin + size
    return None


def _after_text(row: list[int], marker: str, decode) -> int | None:
    """Fewest leading tokens whose text has all the markers of the whole."""
    count = decode(row).count(marker)
    if not count:
        return None
    low, high = 1, len(row)
    while low < high:
        middle = (low + high) // 2
        if decode(row[:middle]).count(marker) >= count:
            high = middle
        else:
            low = middle + 1
    return low


def pushed(
    positions: Positions,
    columns: range,
    n_prompt: int,
    begins: np.ndarray | None = None,
) -> np.ndarray:
    """Which columns of a batch are pushed (row, column); one row where all are alike.

    Parameters
    ----------
    positions
        Where pushes act.
    columns
        The columns, counted from the first one of the batch, padding included.
    n_prompt
        Columns of the prompts.
    begins
        For `After`: the column of the first pushed token of every row.

    Examples
    --------
    >>> pushed("generated", range(2, 5), 4).tolist()
    [[False, True, True]]
    """
    at = np.arange(columns.start, columns.stop)[None]
    if positions == "last":
        return at == n_prompt - 1
    if positions == "generated":
        return at >= n_prompt - 1
    if positions == "every":
        return at >= 0
    return at >= np.asarray(begins)[:, None]
