"""Whole figures of the measures of depth as dynamics, by the names in `study.measures`.

Each function takes the Dataset of a measure and returns a figure, or None where it has nothing to
show.
"""

import xarray as xr
from matplotlib.figure import Figure

from depthsys.plot.detached import detached_gains as draw_gains
from depthsys.plot.detached import low_rank_errors as draw_errors
from depthsys.plot.detached import singular_values as draw_values
from depthsys.plot.detached import stable_rank as draw_ranks
from depthsys.plot.spectra import eigenvalue_angles as draw_angles
from depthsys.plot.spectra import layer_skip as draw_skip
from depthsys.plot.spectra import spectra as draw_spectra
from depthsys.plot.style import figure
from depthsys.plot.token_gains import lag_curves as draw_curves
from depthsys.plot.token_gains import lag_shares as draw_shares
from depthsys.plot.token_gains import token_gains as draw_token_gains


def spectra(result: xr.Dataset) -> Figure:
    """Normality of the layers, effective ranks and growth of their products."""
    fig, axes = figure(13, 4.2, columns=3)
    draw_spectra(axes, _of(result, "layer"))
    return fig


def eigenvalue_angles(result: xr.Dataset) -> Figure:
    """Angles of the eigenvalues of layers, and of what they add."""
    fig, (left, right) = figure(12, 4.2, columns=2)
    draw_angles(left, _of(result, "layer"))
    draw_angles(right, _of(result, "update"))
    return fig


def _of(result: xr.Dataset, of: str) -> xr.Dataset:
    return result.sel(of=of, drop=True).assign_attrs(of=of)


def layer_skip(result: xr.Dataset) -> Figure:
    """What leaving out each layer does to the readout."""
    result = result.isel(output=-1) if "output" in result.dims else result
    fig, axes = figure(8, 4)
    draw_skip(axes[0], result)
    return fig


def detached_spectra(result: xr.Dataset) -> Figure:
    """Singular values, stable rank and low-rank errors of detached maps."""
    fig, (left, middle, right) = figure(13, 4.4, columns=3)
    draw_values(left, result.sel(map="from_start"))
    draw_ranks(middle, result)
    draw_errors(right, result.sel(map="from_start"))
    return fig


def detached_gains(result: xr.Dataset) -> Figure:
    """Gains of detached maps beside measured ones and those of Jacobians."""
    result = result.isel(output=-1) if "output" in result.dims else result
    fig, axes = figure(8, 4)
    draw_gains(axes[0], result)
    return fig


def token_gains(result: xr.Dataset) -> Figure:
    """Gains of pushes at every token, over layers and lags."""
    fig, (left, right) = figure(12, 4.4, columns=2)
    draw_token_gains(left, result)
    draw_curves(right, result)
    return fig


def lag_shares(result: xr.Dataset) -> Figure:
    """How much of them a map over lags explains, per unit and per fraction of the state."""
    fig, (left, right) = figure(12, 4.4, columns=2)
    draw_shares(left, result)
    left.set_title("gain per unit of the state")
    draw_shares(right, result.assign(explained=result["explained_relative"]))
    right.set_title("gain per fraction of the state's norm")
    return fig
