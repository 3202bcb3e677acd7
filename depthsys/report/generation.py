"""Texts by strength, side by side."""

import xarray as xr

from depthsys.report.table import Report, Table

_WHERE = {
    "last": "the last token of the prompt",
    "generated": "every state that a new token is read from",
    "every": "every token",
}


def texts(found: xr.Dataset) -> Report:
    """A table for each prompt: the text at every strength.

    Parameters
    ----------
    found
        ``text`` (prompt, strength), with ``positions`` in attrs; ``not_met`` and ``warning`` of the
        plan where it has them.
    """
    positions = found.attrs["positions"]
    tables = [
        Table(
            header=("strength", "text"),
            rows=[
                (f"{strength:g}", " ".join(str(text).split()))
                for strength, text in zip(found["strength"].values, row.values, strict=True)
            ],
            title=one_line(str(prompt)),
            left=("text",),
        )
        for prompt, row in zip(found["prompt"].values, found["text"], strict=True)
    ]
    verdicts = [f"pushed: {_WHERE.get(positions, positions)}"]
    if "not_met" in found.attrs:
        verdicts.append(f"NOT MET: {found.attrs['not_met']}")
    if "warning" in found.attrs:
        verdicts.append(f"WARNING: {found.attrs['warning']}")
    return Report(tables, verdicts)


def one_line(text: str, most: int = 90) -> str:
    r"""A text without line breaks, cut.

    Examples
    --------
    >>> one_line("a\n b"), one_line("abcdefgh", 6)
    ('a b', 'abc...')
    """
    shown = " ".join(text.split())
    return shown if len(shown) <= most else f"{shown[: most - 3]}..."
