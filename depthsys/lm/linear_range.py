"""How large a push may be before the response is no longer linear."""

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr

from depthsys.lm import measure
from depthsys.lm.accuracy import BOUNDS, LAYER_SETS, relative_l2_bounds
from depthsys.lm.gains import linear_gains
from depthsys.lm.kinds import GAINS_LIST, LINEAR_OR_NONE
from depthsys.lm.of_run import of_run
from depthsys.lm.readouts import ReadoutLike
from depthsys.lm.run import Run
from depthsys.lm.stamp import stamp
from depthsys.lm.step import Step, check_step

# Steps that are always tried, then decade by decade until the error passes the limit; the largest
# relative and absolute one.
STEPS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
LARGEST_STEP = {True: 10.0, False: 1e4}


@of_run(once=False, shards=True, kinds={"linear": LINEAR_OR_NONE, "measured": GAINS_LIST})
def linear_range(
    run: Run,
    concept: xr.Dataset,
    *,
    readout: ReadoutLike = "concept",
    relative: bool = True,
    limit: float = 0.05,
    linear: xr.Dataset | None = None,
    measured: Sequence[xr.Dataset] = (),
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> xr.Dataset:
    r"""The nonlinearity of measured gains against the step, and the step where it passes a limit.

    Parameters
    ----------
    run, concept, readout
        See `measure_gains`.
    relative
        Steps are fractions of the norm of each prompt's state, or the same for all, see `Step`.
    limit
        The relative L2 distance, over layers, of the mean measured gains from the mean exact
        linear ones that counts as the end of linearity.
    linear
        `linear_gains` of the same texts, if they are known.
    measured
        `measure_gains` of the same texts at central steps of that kind, if some are known.
    n_bootstrap, seed
        Of the 95 % percentile intervals over prompts.

    Returns
    -------
    xr.Dataset
        ``step_error`` (step, layers, bound), for steps from 0.01 to 0.5 and on in the series 1, 2,
        5 until the error has passed the limit for both layer sets (at most 10 times the norm of the
        state, or 1e4); ``step_limit``
        (layers), the step where it first rises above it, by interpolation of the logarithms; NaN
        if it is above at all steps or at none. Steps that rounding or overflow spoils are NaN, and
        named in attrs ``step_note``; overflow ends the search.
    """
    if not 0 < limit < np.inf:
        raise ValueError(f"`limit` must be a number > 0; got {limit}. The default is 0.05.")
    if linear is None:
        linear = linear_gains(run, concept, readout=readout)
    elif linear.attrs.get("tokens_sha256") != run.tokens_sha256:
        raise ValueError(
            "`linear` must come from `texts`; got gains of other prompts. Leave it out, or compute "
            "it from the same texts."
        )
    if not measured:
        # of none of the steps that are always tried could anything be said
        check_step(Step(max(STEPS), relative), run.model, run)
    known = {d.attrs["step"]: d for d in measured if _is_usable(d, run, linear, relative)}
    steps: list[float] = []
    errors: list[np.ndarray] = []
    spoilt: list[str] = []
    wanted = list(STEPS)
    while wanted:
        # all steps of a decade go through one replay
        together = [Step(step, relative) for step in wanted]
        overflow = False
        for step, found in zip(
            wanted, _measured(run, concept, together, readout, known), strict=True
        ):
            if overflow:
                break
            steps.append(step)
            if isinstance(found, xr.Dataset):
                errors.append(relative_l2_bounds(linear, found, n_bootstrap, seed))
                continue
            errors.append(np.full((2, 3), np.nan))
            spoilt.append(f"{step:g}: {found}")
            overflow = isinstance(found, FloatingPointError)
        # a model of one layer has no layers without layer 0
        estimates = np.array(errors)[:, : linear.sizes["layer"], 0]
        if overflow or (estimates > limit).any(0).all():
            break
        last = wanted[-1]
        decade = [1.0, 2.0, 5.0] if last < 1 else [2 * last, 4 * last, 10 * last]
        wanted = [step for step in decade if step <= LARGEST_STEP[relative]]
    table = np.array(errors)
    found = xr.Dataset(
        {
            "step_error": (("step", "layers", "bound"), table),
            "step_limit": ("layers", [_crossing(steps, table[:, i, 0], limit) for i in (0, 1)]),
        },
        coords={"step": steps, "layers": list(LAYER_SETS), "bound": list(BOUNDS)},
        attrs={**stamp(run, "linear_range"), "limit": limit, "relative": int(relative)},
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


def _is_usable(measured: xr.Dataset, run: Run, linear: xr.Dataset, relative: bool) -> bool:
    """Whether these are such central differences; ValueError if of other prompts or readout."""
    wanted = {
        "tokens_sha256": run.tokens_sha256,
        "model_fingerprint": linear.attrs.get("model_fingerprint"),
        "readout": linear.attrs.get("readout"),
    }
    other = [key for key, value in wanted.items() if measured.attrs.get(key) != value]
    if other:
        raise ValueError(
            f"`measured` must come from `texts`, with the same readout; got another {other[0]}. "
            "Leave it out."
        )
    return (measured.attrs["relative"], measured.attrs["difference"]) == (relative, "central")


def _measured(run, concept, steps: list[Step], readout, known: Mapping[float, xr.Dataset]) -> list:
    """Gains at every step, those that are known already not measured again."""
    new = [step for step in steps if step.size not in known]
    found = dict(zip(new, measure.measured(run, concept, new, readout), strict=True)) if new else {}
    return [known.get(step.size, found.get(step)) for step in steps]
