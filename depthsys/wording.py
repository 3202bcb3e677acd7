"""How numbers, names and orders are told: in tables, verdicts, figures and pages alike."""

from collections.abc import Iterable, Mapping
from math import isfinite
from typing import SupportsFloat


def number(value: float, digits: int = 3, *, zeros: bool = True) -> str:
    """That many significant digits, and all that stand before the decimal point.

    Parameters
    ----------
    value, digits
        The number and its digits.
    zeros
        Whether zeros at the end are kept, so that all numbers show the same digits.

    Examples
    --------
    >>> number(2.0), number(1234.5), number(2.0, 2, zeros=False)
    ('2.00', '1234', '2')
    """
    if 10**digits - 0.5 <= abs(value) < 1e7:
        return f"{value:.0f}"
    return f"{value:#.{digits}g}".rstrip(".") if zeros else f"{value:.{digits}g}"


def percent(
    values: Iterable[SupportsFloat],
    digits: int = 3,
    *,
    zeros: bool = True,
    least: float = 1e-3,
    small: str | None = None,
    unknown: str = "not known",
) -> str:
    """A fraction in percent, or estimate, low and high: the interval has two digits.

    Parameters
    ----------
    values
        The fraction, or estimate, low and high. An interval that is not finite is left out.
    digits, zeros
        See `number`.
    least
        Percent; what is less is rounding, or not worth telling.
    small
        What stands for a size below that; by default "< 0.001 %". In an interval it is 0.
    unknown
        What stands for a number that is not finite.

    Examples
    --------
    >>> percent([0.05, 0.01, 0.2]), percent([1e-9]), percent([0.05], 2, zeros=False)
    ('5.00 % [1.0, 20]', '< 0.001 %', '5 %')
    """
    estimate, *bounds = (100 * float(value) for value in values)
    if not isfinite(estimate):
        return unknown
    text = f"{number(estimate, digits, zeros=zeros)} %"
    if abs(estimate) < least:
        text = f"< {least:g} %" if small is None else small
        if max(map(abs, bounds), default=0.0) < least:
            return text
    if not bounds or not all(map(isfinite, bounds)):
        return text
    shown = ("0" if abs(b) < least else number(b, min(digits, 2), zeros=zeros) for b in bounds)
    return f"{text} [{', '.join(shown)}]"


def percent_of_page(values: Iterable[SupportsFloat]) -> str:
    """As `percent`, for the pages of the docs: two digits at most.

    Examples
    --------
    >>> percent_of_page([0.05]), percent_of_page([0.05, 0.01, 1.2]), percent_of_page([1e-5])
    ('5 %', '5 % [1, 120]', '< 0.01 %')
    """
    return percent(values, 2, zeros=False, least=0.01, unknown="-")


def fixed(values: Iterable[SupportsFloat], places: int = 2, *, unknown: str = "not known") -> str:
    """A number with that many places after the point, or estimate, low and high.

    Examples
    --------
    >>> fixed([0.5]), fixed([0.5, 0.25, 1.0]), fixed([float("nan")], unknown="-")
    ('0.50', '0.50 [0.25, 1.00]', '-')
    """
    estimate, *bounds = map(float, values)
    if not isfinite(estimate):
        return unknown
    shown = ", ".join(f"{bound:.{places}f}" for bound in bounds)
    interval = f" [{shown}]" if bounds and all(map(isfinite, bounds)) else ""
    return f"{estimate:.{places}f}{interval}"


def asked_for(attrs: Mapping[str, object]) -> str:
    """The target of a plan as it was asked for, in brackets, where it had a unit of its own.

    Examples
    --------
    >>> asked_for({"target_asked": "2std"}), asked_for({"target_asked": "0.5"}), asked_for({})
    (' (2std)', '', '')
    """
    text = str(attrs.get("target_asked", ""))
    return f" ({text})" if text.endswith(("std", "log-odds")) else ""


def size(n_bytes: float) -> str:
    """Bytes with three digits and a unit.

    Examples
    --------
    >>> size(12_345), size(7)
    ('12.3 kB', '7 B')
    """
    powers = {"GB": 1e9, "MB": 1e6, "kB": 1e3}
    unit = next((unit for unit, power in powers.items() if n_bytes >= power), "B")
    return f"{n_bytes / powers.get(unit, 1):.3g} {unit}"


def listed(names: list[str]) -> str:
    """Names in a sentence.

    Examples
    --------
    >>> listed(["a"]), listed(["a", "b", "c"])
    ('a', 'a, b and c')
    """
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def counted(count: int, what: str) -> str:
    """A count and what it is of.

    Examples
    --------
    >>> counted(1, "state"), counted(3, "state")
    ('1 state', '3 states')
    """
    return f"{count} {what}{'' if count == 1 else 's'}"


def step_size(eps: float, relative: bool) -> str:
    """A step of a push, as one says it.

    Examples
    --------
    >>> step_size(0.01, True), step_size(0.1, False)
    ("1 % of the state's norm", '0.1')
    """
    return f"{100 * eps:.3g} % of the state's norm" if relative else f"{eps:.3g}"


def outside(values: Iterable[SupportsFloat]) -> int:
    """On which side of its own interval an estimate lies: -1 below, 1 above, 0 within.

    Examples
    --------
    >>> outside([0.01, 0.02, 0.05]), outside([0.06, 0.02, 0.05]), outside([0.03, float("nan"), 1])
    (-1, 1, 0)
    """
    estimate, low, high = map(float, values)
    return int(estimate > high) - int(estimate < low)


def small_order(orders: Iterable[int]) -> int:
    """The order that stands for a small surrogate: nearest to 4, the smaller of two.

    Examples
    --------
    >>> small_order([1, 2, 8]), small_order([3, 5])
    (2, 3)
    """
    return min(map(int, orders), key=lambda order: (abs(order - 4), order))


def separation_warning(auc: float, low: float, high: float) -> tuple[str, str]:
    """Of a direction whose AUC may be chance: what is wrong with it, and that with the numbers.

    Examples
    --------
    >>> separation_warning(0.4, 0.2, 0.6)[1]
    'the direction does not separate held-out texts at the last depth: AUC 0.40 [0.20, 0.60]'
    """
    verdict = "does not separate held-out texts" if high >= 0.5 else "orders held-out texts wrongly"
    # good separation is as possible as none: the interval decides, not the AUC in it
    if high >= 0.7:
        verdict = "cannot be told from chance with so few held-out texts"
    said = f"the direction {verdict} at the last depth"
    return said, f"{said}: AUC {fixed([auc, low, high])}"


def sentence(said: str) -> str:
    """A text with a capital at its beginning.

    Examples
    --------
    >>> sentence("no direction"), sentence("AUC 0.5"), sentence("")
    ('No direction', 'AUC 0.5', '')
    """
    return said[:1].upper() + said[1:]
