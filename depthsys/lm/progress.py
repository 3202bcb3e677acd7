"""Bars for long work."""

import contextlib
import sys
from collections.abc import Iterator
from contextvars import ContextVar

from tqdm.auto import tqdm

# Whether work is a part of other work, which has a bar.
_QUIET = ContextVar("_QUIET", default=False)


def bar(title: str | None, total: int, unit: str):
    """A bar for work over two seconds, on a terminal only; none without a title."""
    disable = True if title is None or _QUIET.get() else None
    return tqdm(total=total, desc=title, unit=unit, delay=1, leave=False, disable=disable)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No bars meanwhile, but those that are there."""
    token = _QUIET.set(True)
    try:
        yield
    finally:
        _QUIET.reset(token)


def is_shown() -> bool:
    """Whether there is a terminal to show a bar on."""
    return sys.stderr.isatty()


def whole_bar(seconds: float):
    """A bar over long work of many stages, in the seconds that are expected of it."""
    form = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
    return tqdm(total=seconds, desc="whole", leave=False, disable=None, bar_format=form)
