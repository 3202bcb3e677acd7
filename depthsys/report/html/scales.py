"""From numbers to places along an axis, with ticks at round numbers."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from depthsys.wording import number


@dataclass(frozen=True)
class Scale:
    """An axis.

    Attributes
    ----------
    low, high
        The numbers at its ends.
    start, end
        Their places.
    log
        Whether equal factors, not equal differences, are equally far apart.
    unit
        Behind every tick; "%" shows fractions in percent, "parameters" 168 M for 1.68e8.
    ticks
        Where ticks are; by default at round numbers.
    names
        What stands beside ``ticks``, in place of numbers.
    """

    low: float
    high: float
    start: float = 0.0
    end: float = 1.0
    log: bool = False
    unit: str = ""
    ticks: tuple[float, ...] = ()
    names: tuple[str, ...] = ()

    def __call__(self, value: float) -> float:
        """The place of a number; those beyond the ends are at the ends."""
        value = min(max(float(value), min(self.low, self.high)), max(self.low, self.high))
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def within(self, value: float) -> bool:
        """Whether a number lies between the ends, but for rounding."""
        slack = 1e-9 * abs(self.high - self.low)
        low, high = min(self.low, self.high), max(self.low, self.high)
        return bool(low - slack <= value <= high + slack)

    def over(self, start: float, end: float) -> "Scale":
        """The same between other places."""
        return replace(self, start=start, end=end)

    def labels(self, most: int = 5) -> list[tuple[float, str]]:
        """Ticks and what stands beside them; of names only some where there is no room."""
        if self.names:
            named = list(zip(self.ticks, self.names, strict=True))
            return named[:: math.ceil(len(named) / (most + 1))]
        return [(tick, self.label(tick)) for tick in self._ticks(most)]

    def label(self, value: float) -> str:
        """A number as the axis shows it."""
        if self.unit == "%":
            return f"{_plain(100 * value)}\u00a0%"
        if self.unit == "parameters":
            return _short(value)
        return f"{_plain(value)}{self.unit}"

    def _ticks(self, most: int) -> list[float]:
        if self.ticks:
            return [tick for tick in self.ticks if self.within(tick)]
        return (
            _decades(self.low, self.high, most) if self.log else _round(self.low, self.high, most)
        )


def linear(values: Iterable[float], *, zero: bool = False, **options) -> Scale:
    """An axis over all of the values that are finite; with ``zero`` it begins there."""
    found = _finite(values)
    low, high = (float(found.min()), float(found.max())) if found.size else (0.0, 1.0)
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if high - low < 1e-12 * max(abs(low), abs(high), 1e-300):
        room = 0.5 * abs(high) or 1.0
        low, high = (low, low + room) if zero else (low - room, high + room)
    room = 0.05 * (high - low)
    return Scale(low - (room if low else 0.0), high + (room if high else 0.0), **options)


def logarithmic(values: Iterable[float], *, decades: float = 8.0, **options) -> Scale:
    """An axis over all of the values that are above zero, of so many powers of ten at most."""
    found = _finite(values)
    found = found[found > 0]
    low, high = (float(found.min()), float(found.max())) if found.size else (0.1, 1.0)
    low = max(low, high * 10**-decades)
    if high / low < 2:
        low, high = low / 1.5, high * 1.5
    room = (high / low) ** 0.05
    return Scale(low / room, high * room, log=True, **options)


def counts(values: Iterable[float], most: int = 7, **options) -> Scale:
    """An axis of whole numbers, as layers are, with room for half a bar at both ends."""
    found = _finite(values)
    low, high = (int(found.min()), int(found.max())) if found.size else (0, 1)
    step = max(1, math.ceil((high - low) / most))
    step = next(n for n in (1, 2, 4, 5, 8, 10, 20, 25, 50, 100, step) if n >= step)
    ticks = tuple(float(n) for n in range(low, high + 1, step))
    return Scale(low - 0.6, high + 0.6, ticks=ticks, **options)


def rows(count: int) -> Scale:
    """An axis of rows, the first one at the upper end."""
    return Scale(count - 0.4, -0.6)


def _finite(values: Iterable[float]) -> np.ndarray:
    found = np.asarray(values if isinstance(values, np.ndarray) else list(values), dtype=float)
    return found[np.isfinite(found)]


def _round(low: float, high: float, most: int) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten: two at least, as one says nothing of a scale.

    Examples
    --------
    >>> _round(0.0, 1.0, 5), _round(-0.9, 1.9, 2)
    ([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], [0.0, 1.0])
    """
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    coarse = next(n for n in (1, 2, 5, 10) if power * n >= raw * (1 - 1e-9))
    found: list[float] = []
    for step in (power * n for n in (10, 5, 2, 1, 0.5) if n <= coarse):
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        digits = 12 - math.floor(math.log10(step))
        found = [round(n * step, digits) for n in range(first, last + 1)]
        if len(found) >= 2:
            break
    return found


def _decades(low: float, high: float, most: int) -> list[float]:
    """Powers of ten, only some where there are many; numbers between where there are few."""
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    if last - first >= 2:
        step = math.ceil((last - first) / most)
        return [10.0**n for n in range(first, last + 1, step)]
    for between in ((1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
        ticks = [n * 10.0**p for p in range(first - 1, last + 2) for n in between]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) >= 2:
            return ticks[:: math.ceil(len(ticks) / (most + 1))]
    return [low, high]


def _plain(value: float) -> str:
    """A tick without zeros at its end, and powers of ten as one writes them by hand."""
    size = abs(value)
    if size and not 1e-4 <= size < 1e5:
        digits, power = f"{value:.2e}".split("e")
        digits = digits.rstrip("0").rstrip(".")
        head = "" if digits == "1" else f"{digits}\u00b7"
        return f"{head}10{_raised(int(power))}"
    shown = f"{value:.6g}" if size >= 1 or not size else number(value, 3, zeros=False)
    return shown.replace("-", "\u2212")


def _short(value: float) -> str:
    """A count with three digits.

    Examples
    --------
    >>> _short(168_480), _short(1.1e9)
    ('168 k', '1.1 G')
    """
    powers = {"G": 1e9, "M": 1e6, "k": 1e3}
    unit = next((unit for unit, power in powers.items() if value >= power), "")
    return f"{value / powers.get(unit, 1):.3g} {unit}".rstrip()


def _raised(power: int) -> str:
    return str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
