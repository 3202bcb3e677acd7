"""The three splits of labelled texts, and how their sizes are written."""

SPLITS = ("concept", "operating", "held_out")


def split_sizes(text: str, argument: str) -> dict[str, int]:
    """Texts per class of every split, from "concept/operating/held-out".

    Parameters
    ----------
    text
        For example "400/200/200".
    argument
        What it is called where it was given.

    Raises
    ------
    ValueError
        If these are not three whole numbers >= 1.

    Examples
    --------
    >>> split_sizes("40/20/10", "sizes")
    {'concept': 40, 'operating': 20, 'held_out': 10}
    """
    parts = text.split("/")
    # more digits than any file has texts: int() of thousands would raise an error of its own
    sizes = [int(part) for part in parts if part.strip().isdecimal() and len(part) < 10]
    if not len(sizes) == len(parts) == len(SPLITS) or min(sizes) < 1:
        shown = text if len(text) <= 40 else f"{text[:40]}..."
        raise ValueError(
            f"`{argument}` must be three positive numbers concept/operating/held-out; got "
            f"{shown!r}. The default is 400/200/200 per class."
        )
    return dict(zip(SPLITS, sizes, strict=True))
