"""A wanted shift of the readout, and the unit that it is said in. Loads nothing."""

import re
from dataclasses import dataclass
from typing import Any

READOUT, STD, LOG_ODDS = "readout", "std", "log-odds"
UNITS = (READOUT, STD, LOG_ODDS)
_UNITS = {"": READOUT, "std": STD, "sd": STD, "log-odds": LOG_ODDS, "logodds": LOG_ODDS}
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?"


@dataclass(frozen=True)
class Shift:
    """By how much the mean readout is to move, and in which unit.

    Parameters
    ----------
    size
        Not zero; negative moves towards the other class.
    unit
        "readout": that of y_L; "std": standard deviations of the nominal readout over the operating
        prompts; "log-odds": by how much the log-odds of the class are to change, as a linear
        discriminant reads them off the readout (see `in_readout`).

    Raises
    ------
    ValueError
        If the size is zero or not finite, or there is no such unit.
    """

    size: float
    unit: str = READOUT

    def __post_init__(self):
        if self.unit not in UNITS:
            raise ValueError(
                f"`unit` must be one of {', '.join(UNITS)}; got {self.unit!r}. Pick one."
            )
        if not 0 < abs(self.size) < float("inf"):
            raise ValueError(
                f"`target` must be finite and not zero; got {self.size}. Give a shift."
            )

    @classmethod
    def read(cls, text: "str | float | Shift") -> "Shift":
        """From what is typed.

        Raises
        ------
        ValueError
            If it is no number, with std or log-odds behind it or nothing.

        Examples
        --------
        >>> Shift.read("1.5std"), Shift.read("-2 log-odds")
        (Shift(size=1.5, unit='std'), Shift(size=-2.0, unit='log-odds'))
        >>> str(Shift.read("0.3"))
        '0.3'
        """
        if isinstance(text, Shift):
            return text
        if not isinstance(text, str):
            return cls(float(text))
        found = re.fullmatch(rf"\s*({_NUMBER})\s*([a-z-]*)\s*", text.lower())
        if found is None or found[2] not in _UNITS:
            raise ValueError(
                "`target` must be a number, alone (in the unit of the readout) or with std or "
                f"log-odds behind it; got {text!r}. Write it as in 1std."
            )
        return cls(float(found[1]), _UNITS[found[2]])

    def __str__(self) -> str:
        return f"{self.size:g}" + {READOUT: "", STD: "std", LOG_ODDS: " log-odds"}[self.unit]

    def in_readout(self, system: Any) -> float:
        """The shift in the unit of the readout of a system with one output.

        Parameters
        ----------
        system
            From `lm.identify`: its ``y_std``, and for log-odds its ``log_odds_per_unit`` (depth),
            which `lm.mean_difference` and others find on held-out texts.

        Raises
        ------
        ValueError
            If the system has several outputs or does not know what the unit needs.
        """
        if self.unit == READOUT:
            return self.size
        name = "y_std" if self.unit == STD else "log_odds_per_unit"
        if name not in system:
            cure = "Identify it again with held-out texts, or give the target in std."
            raise ValueError(
                f"`target` in {self.unit} needs `{name}` of the system; got none there. {cure}"
            )
        value = system[name]
        value = value if self.unit == STD else value.isel(depth=-1)
        if value.size != 1:
            raise ValueError(
                f"`target` in {self.unit} must be of one output; got {value.size}. Give a number "
                "for each output, in its own unit."
            )
        scale = float(value)
        if not 0 < abs(scale) < float("inf"):
            raise ValueError(
                f"`target` in {self.unit} needs a readout that varies; got {name} = {scale:g}. "
                "Give it in the unit of the readout."
            )
        return self.size * scale if self.unit == STD else self.size / scale
