"""A language model as a dynamical system over depth. Loads torch and transformers."""

from depthsys.lm.accuracy import agreement, error_budget, gain_report
from depthsys.lm.concepts import mean_difference
from depthsys.lm.identify import Krylov, identify
from depthsys.lm.jacobians import jacobians
from depthsys.lm.linearize import linear_gains, mean_jvp, mean_vjp
from depthsys.lm.model import DepthModel, Run
from depthsys.lm.prompts import Splits, Texts, read_texts
from depthsys.lm.verify import compare_energies, measure_gains, play, required_energy

__all__ = [
    "DepthModel",
    "Krylov",
    "Run",
    "Splits",
    "Texts",
    "agreement",
    "compare_energies",
    "error_budget",
    "gain_report",
    "identify",
    "jacobians",
    "linear_gains",
    "mean_difference",
    "mean_jvp",
    "mean_vjp",
    "measure_gains",
    "play",
    "read_texts",
    "required_energy",
]
