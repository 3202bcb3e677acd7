"""What the measures of depth as dynamics found: for a console, and for a page.

Each has a file of this folder that says which of its curves are shown, and what they say.
"""

import xarray as xr

from depthsys.report.dynamics import (
    coupling,
    detached,
    detached_gains,
    lens,
    residual,
    shape,
    skip,
    spectra,
    tokens,
)
from depthsys.report.dynamics.shown import Shown
from depthsys.report.stage import Stage
from depthsys.report.table import Report

SHOWN: dict[str, Shown] = {
    "spectra": spectra.SHOWN,
    "skip": skip.SHOWN,
    "detached": detached.SHOWN,
    "detached_gains": detached_gains.SHOWN,
    "residual": residual.SHOWN,
    "coupling": coupling.SHOWN,
    "shape": shape.SHOWN,
    "lens": lens.SHOWN,
    "tokens": tokens.SHOWN,
}


def dynamics(name: str, result: xr.Dataset) -> Report:
    """What the measure of that name found."""
    return SHOWN[name].report(Stage.of(result))
