"""Datasets -> matplotlib Axes, for every wing. Imports none of them.

Each function draws into given Axes and returns nothing; `save` writes a figure as PNG and SVG.
Curves differ in marker and line style as well as in colour, so that they survive greyscale.
"""

from depthsys.plot import sheets as sheets
from depthsys.plot.budget import budget_bars, budget_limit
from depthsys.plot.comparison import (
    agreement_by_order,
    certified_errors,
    linear_range,
    prompt_spread,
)
from depthsys.plot.control import (
    achieved,
    energies,
    layer_energies,
    pushes,
    schedule,
    single_layer_energies,
)
from depthsys.plot.coupling import coupling, trajectory_shape
from depthsys.plot.detached import (
    detached_gains,
    low_rank_errors,
    singular_values,
    stable_rank,
)
from depthsys.plot.effects import effect_against_price
from depthsys.plot.gains import error_budget, gain_curves
from depthsys.plot.lens import decoded, lens, lens_agreement
from depthsys.plot.ltv import (
    energy_ellipsoid,
    error_curves,
    gramian_eigenvalues,
    hankel_lines,
    hankel_map,
    io_image,
)
from depthsys.plot.reach import actuator_layers, controllability
from depthsys.plot.residual import (
    code_trajectories,
    inward_fractions,
    mutual_information,
    phase_plane,
    plane_trajectories,
    rotation_p_values,
    successive_cosines,
    teleportation,
    turns,
    unit_correlations,
    velocity,
)
from depthsys.plot.responses import responses
from depthsys.plot.scaling import scaling
from depthsys.plot.separation import auc_by_depth
from depthsys.plot.sizes import agreement_by_size
from depthsys.plot.spectra import eigenvalue_angles, eigenvalue_radii, layer_skip, spectra
from depthsys.plot.style import figure, save, shared_legend
from depthsys.plot.token_gains import earlier_shares, lag_curves, lag_shares, token_gains

__all__ = [
    "figure",
    "save",
    "shared_legend",
    "gain_curves",
    "auc_by_depth",
    "error_budget",
    "schedule",
    "effect_against_price",
    "energies",
    "achieved",
    "pushes",
    "layer_energies",
    "single_layer_energies",
    "controllability",
    "actuator_layers",
    "spectra",
    "earlier_shares",
    "eigenvalue_angles",
    "eigenvalue_radii",
    "layer_skip",
    "singular_values",
    "stable_rank",
    "low_rank_errors",
    "detached_gains",
    "unit_correlations",
    "successive_cosines",
    "velocity",
    "mutual_information",
    "phase_plane",
    "turns",
    "rotation_p_values",
    "plane_trajectories",
    "code_trajectories",
    "teleportation",
    "inward_fractions",
    "token_gains",
    "lag_curves",
    "lag_shares",
    "coupling",
    "trajectory_shape",
    "lens",
    "lens_agreement",
    "decoded",
    "hankel_map",
    "hankel_lines",
    "gramian_eigenvalues",
    "energy_ellipsoid",
    "io_image",
    "error_curves",
    "responses",
    "agreement_by_order",
    "agreement_by_size",
    "scaling",
    "budget_bars",
    "budget_limit",
    "certified_errors",
    "linear_range",
    "prompt_spread",
]
