"""Numbers out of Datasets by labels, without the cost of a selection by xarray."""

from typing import Any

import numpy as np
import xarray as xr


def pick(data: xr.Dataset | None, name: str, *dims: str, **labels: Any) -> np.ndarray | None:
    """The values of a variable at labels, over the remaining dims in the order given.

    None where there is no such variable or label. Of inputs and outputs that are not asked for the
    first is taken.

    Examples
    --------
    >>> data = xr.Dataset({"a": (("x", "y"), [[1, 2], [3, 4]])}, {"y": ["left", "right"]})
    >>> pick(data, "a", "x", y="right"), pick(data, "a", "x", y="up"), pick(data, "b")
    (array([2., 4.]), None, None)
    """
    if data is None or name not in data.variables:
        return None
    variable = data.variables[name]
    index: list[Any] = []
    left = []
    for dim in variable.dims:
        if dim in labels:
            found = _place(data, str(dim), labels[str(dim)])
            if found is None:
                return None
            index.append(found)
        elif dim in dims:
            left.append(dim)
            index.append(slice(None))
        elif dim in ("input", "output"):
            index.append(0)
        else:
            return None
    if len(left) < len(dims):
        return None
    values = np.asarray(variable.values[tuple(index)])
    values = values.astype(float) if values.dtype.kind in "iuf" else values
    return values.transpose([left.index(dim) for dim in dims])


def _place(data: xr.Dataset, dim: str, label: Any) -> int | None:
    if dim not in data.variables:
        return None
    found = np.flatnonzero(data.variables[dim].values == label)
    return int(found[0]) if found.size else None


def number_of(data: xr.Dataset | None, name: str, **labels: Any) -> float:
    """One number; NaN where there is none."""
    found = pick(data, name, **labels)
    return float("nan") if found is None or found.dtype.kind not in "fb" else float(found)


def three(data: xr.Dataset | None, name: str, **labels: Any) -> tuple[float, float, float]:
    """An estimate with the ends of its interval; NaN where there is none."""
    found = [number_of(data, name, **labels, bound=b) for b in ("estimate", "low", "high")]
    return found[0], found[1], found[2]


def names_of(data: xr.Dataset | None, dim: str) -> list[str]:
    """The labels of a dim, as texts; none where it has none."""
    if data is None or dim not in data.variables:
        return []
    return [str(label) for label in data.variables[dim].values]
