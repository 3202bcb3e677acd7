"""Bars for long work."""

import sys

from tqdm.auto import tqdm


def bar(title: str | None, total: int, unit: str):
    """A bar for work over two seconds, on a terminal only; none without a title."""
    disable = True if title is None else None
    return tqdm(total=total, desc=title, unit=unit, delay=1, leave=False, disable=disable)


def is_shown() -> bool:
    """Whether there is a terminal to show a bar on."""
    return sys.stderr.isatty()


def whole_bar(seconds: float):
    """A bar over long work of many stages, in the seconds that are expected of it."""
    form = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
    return tqdm(total=seconds, desc="whole", leave=False, disable=None, bar_format=form)
