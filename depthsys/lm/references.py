"""What reduced models of a comparison are held against: the maps of the full linear systems."""

import numpy as np
import xarray as xr

from depthsys import ltv
from depthsys.lm.full import MeanFull
from depthsys.lm.methods import Method
from depthsys.lm.precision import rounding_of
from depthsys.ltv.norms import bounds_of, rounded_values, spectral_norm

REFERENCES = ("mean_system", "mean_response")
# What a difference of two maps cannot resolve, over their norm: ten roundings of float32, to which
# Hugging Face steps down in the blocks of most families even in a float64 model.
RESOLUTION = 10 * float(np.finfo(np.float32).eps)
_MAP = ("depth", "output", "layer", "input")


class References:
    """The input-output maps of the full linear systems, their norms and certificates."""

    def __init__(self, full: MeanFull, orders: list[int]):
        mean, response = ltv.io_matrix(full.mean_system), full.mean_response["io"]
        maps = [mean.transpose(*_MAP), response.transpose(*_MAP)]
        self.maps = xr.concat(maps, dim=xr.Variable("reference", list(REFERENCES)))
        self.values, self.rounding = rounded_values(self.maps)
        self.lower = bounds_of(self.values, orders, self.rounding)["lower"]
        coarse = max(RESOLUTION, 10 * rounding_of(full.channels.model))
        self.resolution = coarse * spectral_norm(self.maps)

    def errors(self, system: xr.Dataset, method: Method) -> dict[str, xr.DataArray]:
        """Exact errors against both references, and the proved bound."""
        difference = self.maps - ltv.io_matrix(system).transpose(*_MAP)
        upper = xr.full_like(self.resolution, np.nan)
        if method.proved_against is not None:
            proved = bounds_of(self.values, system["order"], self.rounding)["upper"]
            upper = proved.where(proved["reference"] == method.proved_against)
        return {"error": spectral_norm(difference), "upper": upper, **_sizes(difference, "error")}

    def finished(self, table: xr.Dataset) -> xr.Dataset:
        """The table with what does not depend on the method."""
        ratio = (table["error"] / self.lower).where(self.lower > self.resolution)
        terminal = self.maps.isel(depth=-1, drop=True).transpose("reference", "layer", ...)
        single = [d for d in ("output", "input") if terminal.sizes[d] == 1]
        gain = terminal.sel(reference="mean_system", drop=True).squeeze(single, drop=True)
        about = {
            "lower": self.lower,
            "lower_is_certified": self.lower > self.resolution,
            "ratio": ratio,
            "resolution": self.resolution,
            "norm": spectral_norm(self.maps),
            "mean_system_gain": gain.drop_vars("layer"),
        }
        return table.assign(about | _sizes(self.maps, "norm"))


def _sizes(maps: xr.DataArray, name: str) -> dict[str, xr.DataArray]:
    squares = (maps**2).sum(["output", "layer", "input"])
    return {
        f"h2_{name}": squares.sum("depth") ** 0.5,
        f"terminal_{name}": squares.isel(depth=-1, drop=True) ** 0.5,
    }
