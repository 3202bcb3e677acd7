"""What the variables of measures mean, and their units: ``long_name`` and ``units`` in their attrs.

A colleague who is sent a file alone must be able to read it. "state" is the unit of the residual
stream, "readout" that of the readout, "energy" that of attrs ``energy`` (relative: 1, absolute:
state^2), "1" a number without one.
"""

import xarray as xr

from depthsys.export import schema

_SEPARATION = {
    **{name: schema.MEANINGS[name] for name in ("auc", "auc_low", "auc_high")},
    "log_odds_per_unit": ("slope of the log odds of the class along the direction", "1/state"),
    "paired_accuracy": ("share of held-out pairs that the direction orders rightly", "1"),
    "paired_low": ("lower end of its 95 % interval", "1"),
    "paired_high": ("upper end of its 95 % interval", "1"),
}
_SPECTRA = {
    "norm": ("spectral norm of the layer", "1"),
    "departure": ("departure from normality of the layer, 0 normal, 1 nilpotent", "1"),
    "symmetric_share": ("share of the symmetric part in the squared Frobenius norm", "1"),
    "rank_from_start": ("effective rank of the product of layers from the start", "1"),
    "rank_to_end": ("effective rank of the product of layers to the end", "1"),
    "growth_from_start": ("spectral norm of the product of layers from the start", "1"),
    "growth_to_end": ("spectral norm of the product of layers to the end", "1"),
    "modal_growth": ("product of the spectral radii of the layers from the start", "1"),
}
_RING = "points at that distance from the prompt's own place"
_FLOW = {
    "begin": ("where states are put in the plane", "state"),
    "end": ("where they end", "state"),
    "own_begin": ("where the prompt's own state begins", "state"),
    "own_end": ("where the prompt's own state ends", "state"),
    "inward": ("whether the state ends nearer to the own one than it begins", ""),
    "radius": ("outer edge of the ring about the prompt's own place", "state"),
    "points": (f"number of {_RING}", "1"),
    "inward_fraction": (f"share of {_RING} that go inward", "1"),
    "inward_share": ("share of all points that go inward", "1"),
    "contraction": ("median of the distance at the end over that at the start", "1"),
    "basin_radius": ("edge up to which half or more go inward in every ring", "state"),
}
MEANINGS: dict[str, dict[str, tuple[str, str]]] = {
    "spectra": {
        "modulus": ("modulus of each eigenvalue, falling", "1"),
        "angle": ("angle of each eigenvalue", "rad"),
        **_SPECTRA,
        **{f"{n}_each": (f"{told}, of one prompt", unit) for n, (told, unit) in _SPECTRA.items()},
    },
    "skip": {
        "predicted": ("shift of the readout without the layer, by the linear system", "readout"),
        "shift": ("shift of the readout without the layer, on the full model", "readout"),
        "state_error": ("change of the last state without the layer, of its norm", "1"),
        "kl": ("divergence of the next token's distribution from the whole model's", "nat"),
        "update": ("norm of what the layer adds, of the norm of its input", "1"),
    },
    "detached": {
        "singular_value": ("singular values of the detached map, falling", "1"),
        "stable_rank": ("squared Frobenius norm over squared spectral norm", "1"),
        "low_rank_error": ("relative error of the value where so many directions are kept", "1"),
        "own_share": ("share of the value that the last token's own way makes", "1"),
        "projection": ("cosine of the state with left vectors of the last layer's map", "1"),
        "output_token": ("tokens that left vectors are read as, best first", "token id"),
        "input_token": ("tokens that right vectors are read as, best first", "token id"),
        "output_text": ("their texts", ""),
        "input_text": ("their texts", ""),
        "error_block": ("relative error of the value of the block", "1"),
        "error_attention": ("relative error of the output of attention", "1"),
        "error_mlp": ("relative error of the output of the MLP", "1"),
        "error_without_biases": ("relative error of the block without the bias term", "1"),
        "error_stack": ("relative error of the last state from all embeddings", "1"),
        "error_stack_without_biases": ("the same without bias terms", "1"),
        "share": ("share of each token in the last state, 0 the last token", "1"),
        "bias_share": ("share of the biases of each layer in the last state", "1"),
    },
    "detached_gains": {
        "relative_l2": ("error of the mean gains against measured ones", "1"),
        "spearman": ("rank correlation of the mean gains with measured ones", "1"),
        "measured_gain": ("measured gain of each layer", "readout/state"),
        "exact_gain": ("gain of each layer by Jacobians", "readout/state"),
        "detached_gain": ("gain of each layer by detached maps", "readout/state"),
        "energy": ("energy that the schedule needs on held-out prompts", "energy"),
        "energy_low": ("lower end of its 95 % interval", "energy"),
        "energy_high": ("upper end of its 95 % interval", "energy"),
        "multiple": ("energy over that of the schedule by exact gains", "1"),
    },
    "residual": {
        "mean": ("mean of each unit over prompts", "state"),
        "deviation": ("standard deviation of each unit over prompts", "state"),
        "correlation": ("correlation over prompts of a unit with itself a sublayer later", "1"),
        "correlation_quantile": ("its quantiles over units", "1"),
        "norm": ("norm of the state", "state"),
        "density": ("(sum |x|)^2 / (H sum x^2), 1 where all units are equally large", "1"),
        "cosine": ("cosine of the state with the next one", "1"),
        "velocity": ("distance of the state to the next one", "state"),
        "update_cosine": ("cosine of successive updates", "1"),
        "prompt_turns": ("mean number of turns of the units of one prompt, clockwise", "turn"),
        "mutual_information": ("information of a unit about itself a sublayer later", "nat"),
        "mutual_information_shuffled": ("the same with prompts exchanged", "nat"),
        "turns": ("turns of the mean trajectory of each unit, clockwise", "turn"),
        "turns_shuffled": ("their mean where sublayers are in random order", "turn"),
        "p_value": ("two-sided, that turns depend on the order of sublayers", "1"),
        "q_value": ("p value adjusted for the number of units (Benjamini and Hochberg)", "1"),
        "centre": ("mean of the states of all sublayers", "state"),
        "axes": ("principal components, rows of unit length", "1"),
        "explained": ("share of variance of each component", "1"),
        "score": ("states of single prompts along the components", "state"),
        "mean_score": ("mean state of all prompts along the components", "state"),
        "code_of": ("code of the autoencoder", "1"),
        "code_loss": ("mean squared error over the variance", "1"),
        "code_explained": ("share of variance of left-out prompts that is kept", "1"),
        "code_explained_at": ("the same of one sublayer", "1"),
        "code_explained_within": ("the same about the mean of that sublayer", "1"),
        **{f"flow_{n}": (f"all over the plane: {told}", u) for n, (told, u) in _FLOW.items()},
        **{f"near_{n}": (f"near their own place: {told}", u) for n, (told, u) in _FLOW.items()},
    },
    "coupling": {
        "coupling": ("misfit of layer in the singular vectors of layer_2", "1"),
        "singular_value": ("leading singular values of what each layer adds", "1"),
        "of_others": ("mean coupling of the layer with the others", "1"),
        "of_closest": ("least coupling of the layer with another", "1"),
    },
    "shape": {
        "line_shape": ("line-shape score, 1 for a straight line", "1"),
        "length_ratio": ("length of the way over the distance of its ends", "1"),
        "step": ("norm of what each layer adds", "state"),
        "norm": ("norm of the state", "state"),
        "spacing_rate": ("slope of the log of the steps", "1/layer"),
        "spacing_r2": ("share of variance that its line explains", "1"),
        "growth_rate": ("slope of the log of the norms", "1/layer"),
        "growth_r2": ("share of variance that its line explains", "1"),
        "growth_variation": ("variance of the log of growth over its squared mean", "1"),
    },
    "lens": {
        "agreement": ("1 where the likeliest next token is the model's, else 0", "1"),
        "kl": ("divergence of the model's next-token distribution from the reader's", "nat"),
        "share": ("norm of the mean Jacobian over the root mean square of the prompts' own", "1"),
        "J": ("mean Jacobian of the last state by the state at each depth", "1"),
        "prompt_norm": ("root mean square Frobenius norm of the prompts' Jacobians", "1"),
        "x_ref": ("mean state at each depth", "state"),
        "x_end": ("mean last state", "state"),
        "given_agreement": ("1 where the lens that was given reads the model's token", "1"),
        "given_kl": ("divergence of the model's distribution from that lens's", "nat"),
        "given_cosine": ("cosine of that lens's matrix with the one made here", "1"),
        "given_size": ("norm of that lens's matrix over that of the one made here", "1"),
    },
    "tokens": {
        "gain": ("gain of a push at the token so many places before the last", "readout/state"),
        "gradient_norm": ("gain of the worst direction there", "readout/state"),
        "state_norm": ("norm of the state there", "state"),
        "n_tokens": ("number of tokens of the prompt", "1"),
        "readout": ("nominal readout", "readout"),
        "mean": ("mean gain over prompts", "readout/state"),
        "spread": ("standard deviation of the gains over prompts", "readout/state"),
        "rms": ("root mean square gain over prompts", "readout/state"),
        "n_prompts": ("number of prompts that have such a token", "1"),
        "explained": ("share of the mean square of gains that is explained, by layer", "1"),
        "explained_in_all": ("the same of all layers together", "1"),
        "explained_relative": ("the same of gains per fraction of the state's norm", "1"),
        "earlier_share": ("share of the squared gradient at earlier tokens", "1"),
        "decay_rate": ("slope of -log rms over the lag", "1/token"),
        "decay_rate_r2": ("how well its line fits", "1"),
        "decay_power": ("slope of -log rms over log lag", "1"),
        "decay_power_r2": ("how well its line fits", "1"),
    },
}


def explained(name: str, found: xr.Dataset) -> xr.Dataset:
    """What the measure of that name found, with ``long_name`` and ``units`` of its variables.

    Raises
    ------
    KeyError
        If a variable has no meaning here: add it.
    """
    known = MEANINGS[name] | _SEPARATION
    return found.assign(
        {
            variable: found[variable].assign_attrs(
                dict(zip(("long_name", "units"), known[str(variable)], strict=True))
            )
            for variable in found.data_vars
        }
    )
