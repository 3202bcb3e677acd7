"""Bars for long work."""

from tqdm.auto import tqdm


def bar(title: str | None, total: int, unit: str):
    """A bar for work over two seconds, on a terminal only; none without a title."""
    disable = True if title is None else None
    return tqdm(total=total, desc=title, unit=unit, delay=1, leave=False, disable=disable)
