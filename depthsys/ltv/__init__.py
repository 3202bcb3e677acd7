"""Discrete, finite-horizon, linear time-varying systems as plain xarray Datasets.

Layers are time: ``x_{l+1} = A_l x_l + B_l u_l`` for layer l = 0..L-1, and
``y_k = C_k x_k + D_k u_k`` for depth k = 0..L. Never imports torch.
"""

from depthsys.ltv.actuators import Energy, Trace, Volume, actuator_layers
from depthsys.ltv.basis import (
    RankError,
    adjoint_basis,
    arnoldi_basis,
    balanced_basis,
    krylov_basis,
    pod_basis,
    random_basis,
    span_basis,
    two_sided_basis,
)
from depthsys.ltv.compare import compare
from depthsys.ltv.control import closed_loop, lqr, minimum_energy, state_gains
from depthsys.ltv.controllability import (
    controllability,
    modal_controllability,
    reachable_fraction,
)
from depthsys.ltv.gramians import (
    hankel_singular_values,
    observability_factors,
    observability_gramian,
    reachability_factors,
    reachability_gramian,
)
from depthsys.ltv.lti import (
    layer_lti,
    lti_balanced_truncation,
    lti_gramians,
    lti_hankel_singular_values,
    mean_lti,
)
from depthsys.ltv.matrix_free import MatrixFree
from depthsys.ltv.minimal import balreal, minimal_realization
from depthsys.ltv.norms import error_bounds, h2_norm, hankel_norm, induced_norm
from depthsys.ltv.project import project
from depthsys.ltv.realization import parallel, realization
from depthsys.ltv.response import embed, gains, io_matrix, simulate, transition
from depthsys.ltv.system import SCHEMA_VERSION, check, constant, system
from depthsys.ltv.window import concatenate, window

__all__ = [
    "SCHEMA_VERSION",
    "Energy",
    "MatrixFree",
    "RankError",
    "Trace",
    "Volume",
    "actuator_layers",
    "adjoint_basis",
    "arnoldi_basis",
    "balanced_basis",
    "balreal",
    "check",
    "closed_loop",
    "compare",
    "concatenate",
    "constant",
    "controllability",
    "embed",
    "error_bounds",
    "gains",
    "h2_norm",
    "hankel_norm",
    "hankel_singular_values",
    "induced_norm",
    "io_matrix",
    "krylov_basis",
    "layer_lti",
    "lqr",
    "lti_balanced_truncation",
    "lti_gramians",
    "lti_hankel_singular_values",
    "mean_lti",
    "minimal_realization",
    "minimum_energy",
    "modal_controllability",
    "observability_factors",
    "observability_gramian",
    "parallel",
    "pod_basis",
    "project",
    "random_basis",
    "reachability_factors",
    "reachability_gramian",
    "reachable_fraction",
    "realization",
    "simulate",
    "span_basis",
    "state_gains",
    "system",
    "transition",
    "two_sided_basis",
    "window",
]
