"""Whole figures of the measures of depth as dynamics, by the names in `study.measures`.

Each function takes the Dataset of a measure and returns a figure, or None where it has nothing to
show.
"""

import xarray as xr
from matplotlib.figure import Figure

from depthsys.plot import residual
from depthsys.plot.coupling import coupling as draw_coupling
from depthsys.plot.coupling import trajectory_shape as draw_shape
from depthsys.plot.detached import detached_gains as draw_gains
from depthsys.plot.detached import low_rank_errors as draw_errors
from depthsys.plot.detached import singular_values as draw_values
from depthsys.plot.detached import stable_rank as draw_ranks
from depthsys.plot.lens import lens_agreement as draw_agreement
from depthsys.plot.spectra import eigenvalue_angles as draw_angles
from depthsys.plot.spectra import eigenvalue_radii as draw_radii
from depthsys.plot.spectra import layer_skip as draw_skip
from depthsys.plot.spectra import spectra as draw_spectra
from depthsys.plot.style import figure
from depthsys.plot.token_gains import earlier_shares as draw_earlier
from depthsys.plot.token_gains import lag_curves as draw_curves
from depthsys.plot.token_gains import lag_shares as draw_shares
from depthsys.plot.token_gains import token_gains as draw_token_gains


def spectra(result: xr.Dataset) -> Figure:
    """Normality of the layers, effective ranks and growth of their products."""
    fig, axes = figure(13, 4.2, columns=3)
    draw_spectra(axes, _of(result, "layer"))
    return fig


def eigenvalue_angles(result: xr.Dataset) -> Figure:
    """Angles and radii of the eigenvalues of layers, and of what they add."""
    fig, axes = figure(12, 8, columns=2, rows=2)
    for column, of in enumerate(("layer", "update")):
        draw_angles(axes[column], _of(result, of))
        draw_radii(axes[2 + column], _of(result, of))
    return fig


def _of(result: xr.Dataset, of: str) -> xr.Dataset:
    return result.sel(of=of, drop=True).assign_attrs(of=of)


def coupling(result: xr.Dataset) -> Figure:
    """All pairs of layers."""
    fig, axes = figure(6.4, 5.2)
    draw_coupling(axes[0], result)
    return fig


def trajectory_shape(result: xr.Dataset) -> Figure:
    """Steps and norms along depth."""
    fig, axes = figure(11, 4.2, columns=2)
    draw_shape(axes, result)
    return fig


def lens_agreement(result: xr.Dataset) -> Figure:
    """What lenses read at every depth, against what the model says."""
    fig, axes = figure(11, 4.2, columns=2)
    draw_agreement(axes, result)
    return fig


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


def unit_continuity(result: xr.Dataset) -> Figure:
    """Correlations of units, and cosines of states, from sublayer to sublayer."""
    fig, (left, right) = figure(12, 4.2, columns=2)
    residual.unit_correlations(left, result)
    residual.successive_cosines(right, result)
    return fig


def velocity_information(result: xr.Dataset) -> Figure:
    """How far the state moves, and mutual information of units, from sublayer to sublayer."""
    fig, axes = figure(12, 4.2, columns=2 if result.sizes["unit"] else 1)
    residual.velocity(axes[0], result)
    if result.sizes["unit"]:
        residual.mutual_information(axes[1], result)
    return fig


def rotations(result: xr.Dataset) -> Figure | None:
    """Phase planes of some units, turns of all, and their p-values."""
    if not (result["turns"].notnull() & result["p_value"].notnull()).any():
        return None
    fig, (left, middle, right) = figure(14, 4.4, columns=3)
    residual.phase_plane(left, result)
    residual.turns(middle, result)
    residual.rotation_p_values(right, result)
    return fig


def trajectories(result: xr.Dataset) -> Figure:
    """Trajectories in the plane of two principal components, and in that of the autoencoder."""
    fig, (left, right) = figure(13, 5, columns=2)
    residual.plane_trajectories(left, result)
    residual.code_trajectories(right, _of_code(result))
    return fig


def _of_code(result: xr.Dataset) -> xr.Dataset:
    names = {"code_of": "code", "code_explained": "explained"}
    return result[[*names]].rename(names).rename(code_prompt="prompt")


def teleportation(result: xr.Dataset) -> Figure:
    """Where states that are put on a grid are carried, and how many come nearer to their way."""
    return teleportation_of(_flow(result, "flow_"))


def teleportation_near(result: xr.Dataset) -> Figure:
    """The same near the prompts' own places, without the prompts' own move."""
    return teleportation_of(_flow(result, "near_"), moving=True)


def _flow(result: xr.Dataset, prefix: str) -> xr.Dataset:
    flow = result[[str(n) for n in result.data_vars if str(n).startswith(prefix)]]
    flow = flow.rename({str(n): str(n).removeprefix(prefix) for n in flow.data_vars})
    flow = flow.rename(flow_prompt="prompt", plane="component")
    return flow.assign_attrs(n_sublayers=result.attrs.get("flow_n_sublayers", ""))


def teleportation_of(flow: xr.Dataset, *, moving: bool = False) -> Figure:
    """The same of a result of `lm.teleport`; ``moving`` as in `plot.teleportation`."""
    count = flow.sizes["start"]
    rows = -(-(count + 1) // 3)
    fig, axes = figure(13, 4 * rows, columns=3, rows=rows)
    residual.teleportation(axes[:count], flow, moving=moving)
    residual.inward_fractions(axes[count], flow)
    for ax in axes[count + 1 :]:
        ax.set_axis_off()
    return fig


def token_gains(result: xr.Dataset) -> Figure:
    """Gains of pushes at every token, over layers and lags."""
    fig, (left, right) = figure(12, 4.4, columns=2)
    draw_token_gains(left, result)
    draw_curves(right, result)
    return fig


def lag_shares(result: xr.Dataset) -> Figure:
    """How much of them a map over lags explains, and where in depth what is earlier counts."""
    fig, (left, middle, right) = figure(15, 4.4, columns=3)
    draw_shares(left, result)
    left.set_title("gain per unit of the state")
    draw_shares(middle, result.assign(explained=result["explained_relative"]))
    middle.set_title("gain per fraction of the state's norm")
    draw_earlier(right, result)
    right.set_title("gradient")
    return fig
