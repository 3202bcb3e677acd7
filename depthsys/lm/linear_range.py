"""How large a push may be before the response is no longer linear."""

import numpy as np
import xarray as xr

from depthsys.lm.accuracy import BOUNDS, LAYER_SETS, relative_l2_bounds
from depthsys.lm.linearize import linear_gains
from depthsys.lm.model import DepthModel
from depthsys.lm.prompts import Texts
from depthsys.lm.readouts import LogitDifference
from depthsys.lm.verify import SmallStepError, measure_gains

# Steps that are always tried, then decade by decade until the error passes the limit.
STEPS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
LARGEST_STEP = 1e4


def linear_range(
    model: DepthModel,
    texts: Texts,
    concept: xr.Dataset,
    *,
    readout: str | LogitDifference | xr.DataArray = "concept",
    limit: float = 0.05,
    linear: xr.Dataset | None = None,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> xr.Dataset:
    r"""The nonlinearity of measured gains against the step, and the step where it passes a limit.

    Parameters
    ----------
    model, texts, concept, readout
        See `measure_gains`.
    limit
        The relative L2 distance, over layers, of the mean measured gains from the mean exact
        linear ones that counts as the end of linearity.
    linear
        `linear_gains` of the same texts, if they are known.
    n_bootstrap, seed
        Of the 95 % percentile intervals over prompts.

    Returns
    -------
    xr.Dataset
        ``step_error`` (step, layers, bound), for steps from 0.01 to 0.5 and on in the series 1, 2,
        5 until the error has passed the limit for both layer sets (at most 1e4); ``step_limit``
        (layers), the step where it first rises above it, by interpolation of the logarithms; NaN
        if it is above at all steps or at none. Steps that rounding or overflow spoils are NaN, and
        named in attrs ``step_note``; overflow ends the search.
    """
    if not 0 < limit < np.inf:
        raise ValueError(f"`limit` must be a number > 0; got {limit}. The default is 0.05.")
    if linear is None:
        linear = linear_gains(model, texts, concept, readout=readout)
    elif linear.attrs.get("tokens_sha256") != model.which(texts)["tokens_sha256"]:
        raise ValueError(
            "`linear` must come from `texts`; got gains of other prompts. Leave it out, or compute "
            "it from the same texts."
        )
    steps: list[float] = []
    errors: list[np.ndarray] = []
    spoilt: list[str] = []
    wanted = list(STEPS)
    while wanted:
        step = wanted.pop(0)
        steps.append(step)
        try:
            measured = measure_gains(model, texts, concept, eps=step, readout=readout)
            errors.append(relative_l2_bounds(linear, measured, n_bootstrap, seed))
        except (FloatingPointError, SmallStepError) as error:
            errors.append(np.full((2, 3), np.nan))
            spoilt.append(f"{step:g}: {error}")
            if isinstance(error, FloatingPointError):
                break
        # a model of one layer has no layers without layer 0
        estimates = np.array(errors)[:, : linear.sizes["layer"], 0]
        passed = (estimates > limit).any(0).all()
        if not wanted and not passed:
            decade = [1.0, 2.0, 5.0] if step < 1 else [2 * step, 4 * step, 10 * step]
            wanted = [s for s in decade if s <= LARGEST_STEP]
    table = np.array(errors)
    found = xr.Dataset(
        {
            "step_error": (("step", "layers", "bound"), table),
            "step_limit": ("layers", [_crossing(steps, table[:, i, 0], limit) for i in (0, 1)]),
        },
        coords={"step": steps, "layers": list(LAYER_SETS), "bound": list(BOUNDS)},
        attrs={**model.provenance("linear_range"), "limit": limit, **model.which(texts)},
    )
    if spoilt:
        found.attrs["step_note"] = "; ".join(spoilt)
    return found


def _crossing(steps: list[float], errors: np.ndarray, limit: float) -> float:
    """Where the error first rises above the limit."""
    rises = np.flatnonzero((errors[:-1] <= limit) & (errors[1:] > limit))
    if len(rises) == 0:
        return np.nan
    after = rises[0] + 1
    x = np.log(steps[after - 1 : after + 1])
    y = np.log(np.maximum(errors[after - 1 : after + 1], 1e-300))
    return float(np.exp(np.interp(np.log(limit), y, x)))
