"""What a control vector does here: shifts of readouts, pushed at the last or at every token."""

import numpy as np
import xarray as xr

from depthsys.lm.accuracy import mean_bounds
from depthsys.lm.directions import direction
from depthsys.lm.gains import linear_gains
from depthsys.lm.kinds import Kind
from depthsys.lm.of_run import of_run
from depthsys.lm.replay import TOKENS, play
from depthsys.lm.run import Run
from depthsys.lm.stamp import stamp
from depthsys.ltv.plan import LARGE_PUSH

OUTPUTS = ("concept", "own")
VECTOR = Kind(
    "a control vector with `direction` and `u`",
    lambda given: isinstance(given, xr.Dataset) and {"direction", "u"} <= set(given),
    "`export.read_control_vector` gives one.",
)


@of_run(once=False, shards=True, kinds={"vector": VECTOR})
def steering_effect(
    run: Run,
    concept: xr.Dataset,
    vector: xr.Dataset,
    *,
    n_bootstrap: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> xr.Dataset:
    r"""What a control vector does to readouts of the last token, beside its linear prediction.

    Two readouts: "concept", :math:`v_L^\top x_L` of the concept; and "own", the state at depth L
    along the vector's own last direction.

    Parameters
    ----------
    run
        Prompts that neither the concept nor the vector was made of; or a model and texts.
    concept
        One direction per depth, for the readout.
    vector
        From `export.read_control_vector`; or any plan with ``direction`` (depth, feature), ``u``
        (layer) and, if there is a push behind the last block, ``u_end``.
    n_bootstrap, level, seed
        Of the percentile intervals, which resample prompts.

    Returns
    -------
    xr.Dataset
        ``response`` (prompt, tokens, output), with the vector minus without it, at the "last" token
        as plans are played, and at "every" token of the prompt as llama.cpp, repeng and
        steering-vectors do it. ``predicted`` (prompt, output), what the exact linear system of each
        prompt says of the push at the last token: no linear system here has inputs at the tokens
        before it. ``response_mean`` (tokens, output, bound) and ``predicted_mean`` (output,
        bound): mean over prompts with its interval. ``readout_std`` (output), standard deviation
        over prompts of the nominal readout, by which a shift is judged. ``push`` (prompt, depth):
        size of the push over the norm of the last token's state; ``push_mean``, ``push_max``
        (depth). attrs ``warning`` where ``push_mean`` is above 0.3 at some depth.

    Raises
    ------
    ValueError
        If the vector does not fit the model, or the concept has no direction at the last depth.
    FloatingPointError
        If a push is so large that a state overflows.
    """
    own = direction(run.model, vector).double().cpu().numpy()
    towards = direction(run.model, concept).double().cpu().numpy()
    if not towards[-1].any():
        raise ValueError(
            "`concept` must have a direction at the last depth, which is read; got none there. "
            "Find it with other texts."
        )
    last = int(np.flatnonzero(own.any(-1))[-1])
    rows = xr.DataArray(np.stack([towards[-1], own[last]]), dims=("output", "feature"))
    played = [play(run, vector, vector, readout=rows, tokens=tokens) for tokens in TOKENS]
    response = xr.concat([one.response.isel(scale=0, drop=True) for one in played], "tokens")
    response = response.transpose("prompt", "tokens", "output")
    linear = linear_gains(run, vector, readout=rows)
    u, end = vector["u"].drop_vars("layer", errors="ignore"), _end(vector)
    gain = linear["gain"].drop_vars("layer").fillna(0.0)  # where there is no direction u is 0
    predicted = xr.dot(gain, u, dim="layer") + end * (rows.values @ own[-1])
    predicted = predicted.transpose("prompt", "output")
    states = run.states
    norm = np.linalg.norm(states.transpose("prompt", "depth", "feature").values, axis=-1)
    push = abs(np.append(u.values, end)) / norm
    bounds = {"n_bootstrap": n_bootstrap, "level": level, "seed": seed}
    result = xr.Dataset(
        {
            "response": response,
            "predicted": predicted,
            "response_mean": mean_bounds(response, **bounds),
            "predicted_mean": mean_bounds(predicted, **bounds),
            "readout_std": linear["readout"].std("prompt"),
            "push": (("prompt", "depth"), push),
            "push_mean": ("depth", push.mean(axis=0)),
            "push_max": ("depth", push.max(axis=0)),
        },
        coords={"tokens": list(TOKENS), "output": list(OUTPUTS), "depth": states["depth"].values},
        attrs={**stamp(run, "steering_effect"), **bounds, "own_depth": last},
    )
    return result.assign_attrs(_warning(result))


def _end(vector: xr.Dataset) -> float:
    return float(vector["u_end"]) if "u_end" in vector else 0.0


def _warning(result: xr.Dataset) -> dict[str, str]:
    """The attr that says where the push is large; or none."""
    mean = result["push_mean"].values
    if not (mean > LARGE_PUSH).any():
        return {}
    where = np.flatnonzero(mean > LARGE_PUSH)
    return {
        "warning": f"the push is more than {LARGE_PUSH:g} of the state's norm at depth"
        f"{'s' * (len(where) > 1)} {', '.join(map(str, where))} (largest {mean.max():.2f} at depth "
        f"{int(mean.argmax())}): nothing linear can be expected of it, and texts that it writes "
        "may fall apart"
    }
