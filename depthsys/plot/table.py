"""Reading the tables that are drawn, and saying in words what they hold."""

from collections.abc import Iterable

import numpy as np
import xarray as xr

from depthsys import wording
from depthsys.plot.style import check_dims

TINY = 1e-10  # percent; a relative error of float64 results below this is rounding
ERRORS = {
    "relative_l2": "relative L2 error (%)",
    "max_relative_error": "largest relative error (%)",
}
CORRELATIONS = {
    "spearman": "Spearman correlation of the gains",
    "pearson": "Pearson correlation of the gains",
}
MAKE = "Make it with `depthsys compare`."
_BOUNDS = ("estimate", "low", "high")


def held(table: xr.Dataset, *names: str, name: str = "table", cure: str = MAKE) -> xr.Dataset:
    """The Dataset, once it is known to hold the variables."""
    if not isinstance(table, xr.Dataset):
        raise TypeError(f"`{name}` must be a Dataset; got {type(table).__name__}. {cure}")
    missing = [wanted for wanted in names if wanted not in table.variables]
    if missing:
        raise ValueError(
            f"`{name}` must hold {list(names)}; got {sorted(map(str, table.variables))} without "
            f"{missing}. {cure}"
        )
    return table


def chosen(table: xr.Dataset, **wanted: object) -> xr.Dataset:
    """The part of the table with those labels."""
    for dim, label in wanted.items():
        one_of(dim, label, table[dim].values.tolist() if dim in table.coords else [])
    return table.sel(wanted)


def one_of(argument: str, value: object, allowed: Iterable) -> None:
    """Refuse a value that is not allowed."""
    if value not in list(allowed):
        raise ValueError(f"`{argument}` must be one of {list(allowed)}; got {value!r}. Pick one.")


def bounds(values: xr.DataArray, *dims: str, name: str = "table") -> list[np.ndarray]:
    """Estimate, low and high, each (dims)."""
    check_dims(values, name, (*dims, "bound"), finite=False)
    if not set(_BOUNDS) <= set(values["bound"].values.tolist()):
        raise ValueError(
            f"`bound` must hold {list(_BOUNDS)}; got {values['bound'].values.tolist()}. {MAKE}"
        )
    return [values.sel(bound=bound).transpose(*dims).values for bound in _BOUNDS]


def said(name: str, values: np.ndarray) -> str:
    """The name, and how many of its values are missing."""
    missing = int((~np.isfinite(values)).sum())
    if missing == len(values):
        return f"{name} (no value)"
    return f"{name} ({missing} of {len(values)} missing)" if missing else name


def percent(*values: float, least: float = TINY) -> str:
    """A value, or estimate, low and high, that are in percent already."""
    fractions = (value / 100 for value in values)
    return wording.percent(fractions, 2, zeros=False, least=least, small="0 (to rounding)")


def times(value: float) -> str:
    """A multiple, always with three digits.

    Examples
    --------
    >>> times(1.0), times(0.31416), times(44.08), times(5350.0)
    ('1.00 ×', '0.314 ×', '44.1 ×', '5350 ×')
    """
    return f"{wording.number(value, 3)} ×"


def number(value: float) -> str:
    """Two digits, or all before the decimal point."""
    return wording.number(value, 2, zeros=False)


def words(label: str) -> str:
    """A label without underscores."""
    return "all layers" if label == "all" else str(label).replace("_", " ")
