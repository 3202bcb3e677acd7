"""Discrete, finite-horizon, linear time-varying systems as plain xarray Datasets.

Layers are time: ``x_{l+1} = A_l x_l + B_l u_l`` for layer l = 0..L-1, and
``y_k = C_k x_k + D_k u_k`` for depth k = 0..L. Never imports torch.
"""

from depthsys.ltv.actuators import Energy, Trace, Volume, actuator_layers
from depthsys.ltv.bands import bands
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
from depthsys.ltv.batch import stack
from depthsys.ltv.compare import compare
from depthsys.ltv.controllability import (
    controllability,
    modal_controllability,
    reachable_fraction,
)
from depthsys.ltv.coupling import coupling
from depthsys.ltv.gramians import (
    hankel_singular_values,
    observability_factors,
    observability_gramian,
    reachability_factors,
    reachability_gramian,
)
from depthsys.ltv.kalman import kalman_filter, lqe
from depthsys.ltv.lqr import closed_loop, input_increments, lqr, lqry
from depthsys.ltv.lti import (
    layer_lti,
    lti_balanced_truncation,
    lti_gramians,
    lti_hankel_singular_values,
    mean_lti,
)
from depthsys.ltv.markov import era, markov_parameters
from depthsys.ltv.matrix_free import MatrixFree
from depthsys.ltv.minimal import balreal, minimal_realization
from depthsys.ltv.minimum_energy import minimum_energy
from depthsys.ltv.norms import error_bounds, h2_norm, hankel_norm, induced_norm
from depthsys.ltv.optimal_inputs import optimal_inputs
from depthsys.ltv.periodic import cyclic, floquet_multipliers, lift, repeat
from depthsys.ltv.project import project
from depthsys.ltv.realization import parallel, realization
from depthsys.ltv.response import (
    embed,
    gains,
    impulse_response,
    io_matrix,
    simulate,
    step_response,
    transition,
)
from depthsys.ltv.sampling import sample_system
from depthsys.ltv.spectra import spectra
from depthsys.ltv.system import SCHEMA_VERSION, check, constant, system
from depthsys.ltv.terminal_gains import state_gains
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
    "bands",
    "check",
    "closed_loop",
    "compare",
    "concatenate",
    "constant",
    "controllability",
    "cyclic",
    "embed",
    "era",
    "error_bounds",
    "floquet_multipliers",
    "gains",
    "h2_norm",
    "hankel_norm",
    "hankel_singular_values",
    "impulse_response",
    "induced_norm",
    "input_increments",
    "io_matrix",
    "kalman_filter",
    "krylov_basis",
    "layer_lti",
    "lift",
    "lqe",
    "lqr",
    "lqry",
    "lti_balanced_truncation",
    "lti_gramians",
    "lti_hankel_singular_values",
    "markov_parameters",
    "mean_lti",
    "minimal_realization",
    "minimum_energy",
    "modal_controllability",
    "observability_factors",
    "observability_gramian",
    "optimal_inputs",
    "parallel",
    "pod_basis",
    "project",
    "random_basis",
    "reachability_factors",
    "reachability_gramian",
    "reachable_fraction",
    "realization",
    "repeat",
    "sample_system",
    "simulate",
    "span_basis",
    "spectra",
    "coupling",
    "stack",
    "state_gains",
    "step_response",
    "system",
    "transition",
    "two_sided_basis",
    "window",
]
