"""A language model as a dynamical system over depth. Loads torch and transformers."""

from depthsys.lm.accuracy import agreement, error_budget, error_gap, gain_report
from depthsys.lm.compare import compare
from depthsys.lm.concepts import logistic, mean_difference, pca, several, whitened
from depthsys.lm.exact import exact_system
from depthsys.lm.identify import identify
from depthsys.lm.jacobians import jacobians
from depthsys.lm.linear_range import linear_range
from depthsys.lm.linearize import linear_gains, mean_jvp, mean_vjp
from depthsys.lm.methods import (
    Adjoint,
    Arnoldi,
    Balanced,
    Ensemble,
    Krylov,
    Method,
    Pod,
    Random,
    TwoSided,
)
from depthsys.lm.model import DepthModel, Run
from depthsys.lm.prompts import Splits, Texts, read_texts
from depthsys.lm.readouts import LogitDifference
from depthsys.lm.reuse import corrected, expected_error
from depthsys.lm.verify import compare_energies, measure_gains, play, required_energy

__all__ = [
    "Adjoint",
    "Arnoldi",
    "Balanced",
    "DepthModel",
    "Ensemble",
    "Krylov",
    "LogitDifference",
    "Method",
    "Pod",
    "Random",
    "Run",
    "Splits",
    "Texts",
    "TwoSided",
    "agreement",
    "compare",
    "compare_energies",
    "corrected",
    "error_budget",
    "error_gap",
    "exact_system",
    "expected_error",
    "gain_report",
    "identify",
    "jacobians",
    "linear_gains",
    "linear_range",
    "logistic",
    "mean_difference",
    "mean_jvp",
    "mean_vjp",
    "measure_gains",
    "pca",
    "play",
    "read_texts",
    "required_energy",
    "several",
    "whitened",
]
