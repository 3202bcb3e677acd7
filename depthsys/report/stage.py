"""What a stage of a cell found, as arrays by name and label; a Dataset where one is asked for.

A page of fifty cells looks up some ten thousand numbers, for which a selection by xarray each would
take longer than all else.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import xarray as xr

Three = tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class Stage:
    """The result of a stage.

    Attributes
    ----------
    variables
        Dims and values by name, labels of dims among them.
    attrs
        Numbers and texts.
    """

    variables: Mapping[str, tuple[tuple[str, ...], np.ndarray]]
    attrs: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, data: "xr.Dataset") -> "Stage":
        """That of a Dataset."""
        read = {
            str(name): (tuple(map(str, variable.dims)), variable.values)
            for name, variable in data.variables.items()
        }
        return cls(read, dict(data.attrs))

    @cached_property
    def dataset(self) -> "xr.Dataset":
        """The same as a Dataset."""
        import xarray as xr

        return xr.Dataset(dict(self.variables), attrs=dict(self.attrs))

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Of all dims."""
        return {
            dim: size
            for dims, values in self.variables.values()
            for dim, size in zip(dims, values.shape, strict=True)
        }

    @cached_property
    def places(self) -> dict[str, dict[Any, int]]:
        """Where the labels of each dim are."""
        return {
            dim: {label: place for place, label in enumerate(self.variables[dim][1].tolist())}
            for dim in self.sizes
            if dim in self.variables
        }

    @property
    def separation(self) -> dict[str, np.ndarray]:
        """AUC over depth and the ends of its interval, those that are there."""
        names = ("auc", "auc_low", "auc_high")
        return {name: self.variables[name][1] for name in names if name in self.variables}

    def value(self, name: str, **labels: Any) -> np.ndarray:
        """Values of a variable at labels, over the dims that are left.

        Raises
        ------
        KeyError
            If there is no such variable, dim or label.
        """
        dims, values = self.variables[name]
        if unknown := labels.keys() - set(dims):
            raise KeyError(f"{name} has no dim {', '.join(sorted(unknown))}")
        at = (self.places[dim][labels[dim]] if dim in labels else slice(None) for dim in dims)
        return np.asarray(values[tuple(at)])

    def __contains__(self, name: object) -> bool:
        """Whether there is a variable of that name."""
        return name in self.variables


def pick(stage: Stage | None, name: str, *dims: str, **labels: Any) -> np.ndarray | None:
    """The values of a variable at labels, over the remaining dims in the order given.

    None where there is no such stage, variable or label. Of inputs and outputs that are not asked
    for the first is taken.

    Examples
    --------
    >>> stage = Stage({"a": (("x", "y"), np.eye(2)), "y": (("y",), np.array(["left", "right"]))})
    >>> pick(stage, "a", "x", y="right"), pick(stage, "a", "x", y="up"), pick(stage, "b")
    (array([0., 1.]), None, None)
    """
    if stage is None or name not in stage.variables:
        return None
    have, values = stage.variables[name]
    index: list[Any] = []
    left = []
    for dim in have:
        if dim in labels:
            place = stage.places.get(dim, {}).get(labels[dim])
            if place is None:
                return None
            index.append(place)
        elif dim in dims:
            left.append(dim)
            index.append(slice(None))
        elif dim in ("input", "output"):
            index.append(0)
        else:
            return None
    if len(left) < len(dims):
        return None
    found = np.asarray(values[tuple(index)])
    found = found.astype(float) if found.dtype.kind in "iuf" else found
    return found if len(left) < 2 else found.transpose([left.index(dim) for dim in dims])


def number_of(stage: Stage | None, name: str, **labels: Any) -> float:
    """One number; NaN where there is none."""
    found = pick(stage, name, **labels)
    return float("nan") if found is None or found.dtype.kind not in "fb" else float(found)


def three(stage: Stage | None, name: str, **labels: Any) -> Three:
    """An estimate with the ends of its interval; NaN where there is none."""
    found = [number_of(stage, name, **labels, bound=b) for b in ("estimate", "low", "high")]
    return found[0], found[1], found[2]


def names_of(stage: Stage | None, dim: str) -> list[str]:
    """The labels of a dim, as texts; none where it has none."""
    return [] if stage is None or dim not in stage else [str(n) for n in stage.variables[dim][1]]
