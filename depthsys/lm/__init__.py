"""A language model as a dynamical system over depth. Loads torch and transformers."""

from depthsys.lm.accuracy import agreement, error_budget, error_gap, gain_report
from depthsys.lm.block_coupling import coupling
from depthsys.lm.by_token import measure_token_gains, token_gains
from depthsys.lm.compare import compare, comparison_cost, kept_parts
from depthsys.lm.compression import compress
from depthsys.lm.concepts import logistic, mean_difference, paired_difference, pca, whitened
from depthsys.lm.contexts import Budget
from depthsys.lm.decoding import decode, lens_agreement
from depthsys.lm.detached import detached_spectra
from depthsys.lm.effect import steering_effect
from depthsys.lm.energies import miss_of_plan, required_energy
from depthsys.lm.exact import exact_system
from depthsys.lm.feedback import clamp, feedback, reflect
from depthsys.lm.free_directions import free_directions
from depthsys.lm.gains import linear_gains
from depthsys.lm.gains_plan import gains_plan
from depthsys.lm.identify import identify
from depthsys.lm.jacobian_lens import lens
from depthsys.lm.jacobians import jacobians
from depthsys.lm.lags import lag_map
from depthsys.lm.lens_files import read_lens, save_lens
from depthsys.lm.linear_range import linear_range
from depthsys.lm.linearize import Linearisation
from depthsys.lm.measure import measure_gains, measure_gains_at
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
from depthsys.lm.model import DepthModel
from depthsys.lm.optimal_plan import optimal_plan
from depthsys.lm.pairs import Pairs, read_pairs
from depthsys.lm.parts import Kept
from depthsys.lm.play_law import compare_feedback, play_law
from depthsys.lm.positions import After
from depthsys.lm.price_of_sharing import price_of_sharing
from depthsys.lm.prices import generation_effects
from depthsys.lm.products import mean_jvp, mean_vjp
from depthsys.lm.prompts import Splits, Texts, read_texts
from depthsys.lm.readouts import LogitDifference
from depthsys.lm.reconstruction import reconstruction, token_shares
from depthsys.lm.replay import play
from depthsys.lm.residual import residual_dynamics
from depthsys.lm.reuse import corrected, expected_error
from depthsys.lm.run import Run
from depthsys.lm.several import several
from depthsys.lm.shards import Crew, Here, ShardedRun
from depthsys.lm.skipping import layer_skip
from depthsys.lm.steering import equal_push_plan, steering
from depthsys.lm.step import Step, check_step
from depthsys.lm.sublayers import sublayer_states
from depthsys.lm.teleportation import teleport
from depthsys.lm.token_states import TokenStates
from depthsys.lm.trajectory import trajectory_shape
from depthsys.lm.verification import (
    amplitude_response,
    compare_energies,
    energies_over_splits,
)

__all__ = [
    "Adjoint",
    "After",
    "Arnoldi",
    "Balanced",
    "Budget",
    "Crew",
    "DepthModel",
    "Ensemble",
    "Here",
    "Kept",
    "Krylov",
    "Linearisation",
    "LogitDifference",
    "Method",
    "Pairs",
    "Pod",
    "Random",
    "Run",
    "ShardedRun",
    "Splits",
    "Step",
    "Texts",
    "TokenStates",
    "TwoSided",
    "agreement",
    "amplitude_response",
    "check_step",
    "clamp",
    "compare",
    "comparison_cost",
    "compare_energies",
    "compare_feedback",
    "compress",
    "corrected",
    "detached_spectra",
    "coupling",
    "decode",
    "energies_over_splits",
    "equal_push_plan",
    "error_budget",
    "error_gap",
    "exact_system",
    "expected_error",
    "feedback",
    "free_directions",
    "gain_report",
    "gains_plan",
    "generation_effects",
    "identify",
    "jacobians",
    "kept_parts",
    "lag_map",
    "layer_skip",
    "lens",
    "lens_agreement",
    "linear_gains",
    "linear_range",
    "logistic",
    "mean_difference",
    "mean_jvp",
    "mean_vjp",
    "measure_gains",
    "measure_gains_at",
    "measure_token_gains",
    "miss_of_plan",
    "optimal_plan",
    "paired_difference",
    "pca",
    "play",
    "play_law",
    "price_of_sharing",
    "read_lens",
    "read_pairs",
    "read_texts",
    "reconstruction",
    "reflect",
    "required_energy",
    "residual_dynamics",
    "several",
    "steering",
    "steering_effect",
    "token_shares",
    "sublayer_states",
    "teleport",
    "token_gains",
    "save_lens",
    "trajectory_shape",
    "whitened",
]
