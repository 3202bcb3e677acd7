"""Discrete, finite-horizon, linear time-varying systems as plain xarray Datasets.

Layers are time: ``x_{l+1} = A_l x_l + B_l u_l`` for layer l = 0..L-1, and
``y_k = C_k x_k + D_k u_k`` for depth k = 0..L. Never imports torch.
"""

from depthsys.ltv.control import minimum_energy
from depthsys.ltv.gramians import (
    hankel_singular_values,
    observability_factors,
    observability_gramian,
    reachability_factors,
    reachability_gramian,
)
from depthsys.ltv.system import SCHEMA_VERSION, check, gains, io_matrix, simulate, system

__all__ = [
    "SCHEMA_VERSION",
    "check",
    "gains",
    "hankel_singular_values",
    "io_matrix",
    "minimum_energy",
    "observability_factors",
    "observability_gramian",
    "reachability_factors",
    "reachability_gramian",
    "simulate",
    "system",
]
