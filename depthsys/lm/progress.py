"""Bars for long work."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from tqdm.auto import tqdm

Bar = Any  # a context manager with ``update(n)`` and ``close()``, as those of tqdm
_own: ContextVar[Callable[[str, int, str], Bar] | None] = ContextVar("bars", default=None)
# Whether work is a part of other work, which has a bar.
_QUIET = ContextVar("_QUIET", default=False)


@contextmanager
def shown_by(bars: Callable[[str, int, str], Bar]) -> Iterator[None]:
    """Let somebody else show the bars: called with title, total and unit."""
    before = _own.set(bars)
    try:
        yield
    finally:
        _own.reset(before)


def bar(title: str | None, total: int, unit: str) -> Bar:
    """A bar for work over two seconds, on a terminal only; none without a title."""
    if title is None or _QUIET.get():
        return tqdm(total=total, unit=unit, disable=True)
    if (bars := _own.get()) is not None:
        return bars(title, total, unit)
    return tqdm(total=total, desc=title, unit=unit, delay=1, leave=False, disable=None)


@contextmanager
def quiet() -> Iterator[None]:
    """No bars meanwhile, but those that are there."""
    token = _QUIET.set(True)
    try:
        yield
    finally:
        _QUIET.reset(token)


def is_shown() -> bool:
    """Whether there is a terminal to show a bar on."""
    return sys.stderr.isatty() and _own.get() is None


def whole_bar(seconds: float):
    """A bar over long work of many stages, in the seconds that are expected of it."""
    form = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
    return tqdm(total=seconds, desc="whole", leave=False, disable=None, bar_format=form)
