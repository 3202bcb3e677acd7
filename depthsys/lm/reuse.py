"""A task's surrogate on new prompts: what error to expect, and a cheap correction per prompt."""

from typing import Any

import numpy as np
import xarray as xr

from depthsys import ltv
from depthsys.fingerprints import why_another
from depthsys.lm.accuracy import gain_curve
from depthsys.lm.directions import directions
from depthsys.lm.gains import linear_gains
from depthsys.lm.kinds import kinds_checked
from depthsys.lm.of_run import of_run
from depthsys.lm.precision import rounding_of
from depthsys.lm.run import Run
from depthsys.lm.stamp import stamp

QUANTILES = (0.1, 0.5, 0.9)


@kinds_checked()
def expected_error(system: xr.Dataset, linear_operating: xr.Dataset) -> xr.Dataset:
    r"""What error a surrogate shared by prompts will have on a prompt it has not seen.

    A-priori: nothing is computed on the new prompt. The error on each operating prompt is taken
    as if the surrogate had been identified without it: with N prompts the mean gain without
    prompt p is :math:`\bar g - (g_p - \bar g)/(N - 1)`, and the surrogate is shifted by as much
    (exact for `Ensemble` of full rank with the concept readout, which is order 1 for one concept;
    a first-order estimate otherwise).

    Parameters
    ----------
    system
        From `identify`, one system.
    linear_operating
        `linear_gains` on the operating prompts of the system.

    Returns
    -------
    xr.Dataset
        ``relative_l2`` (prompt), the leave-one-out error of the terminal gains relative to those
        of that prompt; ``expected`` (quantile: 0.1, 0.5, 0.9), its quantiles: an error below the
        0.9 quantile is to be expected for nine new prompts of ten from the same source.

    Raises
    ------
    ValueError
        If the gains are of another model, readout or other prompts than the system's, or of fewer
        than two; or if the system has a batch dim.
    """
    _check_shared(system)
    for key, same in (("model_fingerprint", str), ("readout", _terminal)):
        known = [same(d.attrs[key]) for d in (system, linear_operating) if key in d.attrs]
        if len(set(known)) > 1:
            raise ValueError(
                f"`linear_operating` must have the {key} of `system`; got {known[1]!r} for "
                f"{known[0]!r}. Compute both with the same model and readout."
                f"{why_another(*known) if key == 'model_fingerprint' else ''}"
            )
    if linear_operating.attrs.get("prompts_sha256") != system.attrs.get("prompts_sha256"):
        raise ValueError(
            "`linear_operating` must come from the operating prompts of `system`; got another "
            "fingerprint. Use `lm.linear_gains(model, texts.operating, concept)`."
        )
    gain = _gains(linear_operating)
    n = gain.sizes["prompt"]
    if n < 2:
        raise ValueError(f"`linear_operating` must hold two prompts at least; got {n}. Add some.")
    without = gain_curve(system) - (gain - gain.mean("prompt")) / (n - 1)
    error = _relative(without, gain)
    quantiles = error.quantile(list(QUANTILES), dim="prompt")
    return xr.Dataset(
        {"relative_l2": error, "expected": quantiles},
        attrs={**linear_operating.attrs, "kind": "leave-one-out"},
    )


@of_run(once=True, at=1, shards=True)
def corrected(system: xr.Dataset, run: Run, concept: xr.Dataset) -> xr.Dataset:
    """The surrogate corrected for each new prompt: exact terminal gains, by one backward pass.

    The residual between a prompt's exact linear gains and those of the surrogate is itself a
    system of order 1 per output (a terminal readout has Hankel blocks of that rank), which is put
    in parallel with the surrogate. No new identification is made.

    Parameters
    ----------
    system
        From `identify`, one system with the readout "concept" or "profile".
    run
        The new prompts; or a model and texts.
    concept
        The directions of the system.

    Returns
    -------
    xr.Dataset
        Systems along the batch dim ``prompt``, with the states of the surrogate and one more per
        output; outputs before the last depth are those of the surrogate. ``error_before`` (prompt)
        is the relative L2 error of the surrogate's gains on each prompt, exact a posteriori;
        ``gain_full`` the exact gains; ``state_norm`` (prompt, depth) that of these prompts (NaN at
        the last depth); ``v``.

    Raises
    ------
    ValueError
        If the system has a batch dim, another readout, or directions that are not the concept's.
    """
    model = run.model
    _check_fits(system, model, concept)
    linear = linear_gains(run, concept)
    residual = (_gains(linear) - gain_curve(system)).transpose("prompt", "layer", ...)
    # what is left of equal gains is rounding, not a state
    rounding = 10 * rounding_of(model) * abs(_gains(linear)).max()
    residual = residual.where(abs(residual) > rounding, 0.0)
    channels = [d for d in ("output", "input") if d not in residual.dims]
    residual = residual.expand_dims(channels).transpose("prompt", "layer", "output", "input")
    n_prompts, n_layers, n_outputs, n_inputs = residual.shape
    io = np.zeros((n_prompts, n_layers + 1, n_outputs, n_layers, n_inputs))
    io[:, -1] = np.nan_to_num(np.moveaxis(residual.values, 1, 2))  # nothing to correct
    correction = ltv.realization(
        xr.DataArray(io, dims=("prompt", "depth", "output", "layer", "input")),
        rtol=rounding_of(model),
    )
    whole = ltv.parallel(system, correction)
    whole["error_before"] = _relative(gain_curve(system), _gains(linear))
    whole["gain_full"] = linear["gain"]
    whole["v"] = system["v"]
    # of these prompts; x_L is not looked at
    norm = linear["state_norm"].rename(layer="depth")
    whole["state_norm"] = norm.reindex(depth=system["depth"]).drop_vars("order", errors="ignore")
    whole.attrs |= {**stamp(run, "corrected"), "per_prompt": 1}
    return whole


def _check_shared(system: xr.Dataset) -> None:
    if "prompt" in system.dims:
        raise ValueError(
            "`system` must be one system shared by prompts; got a batch. A prompt's own system "
            "needs no correction."
        )


def _terminal(readout: str) -> str:
    """The profile has the terminal gains of the concept readout."""
    return "concept" if readout == "profile" else readout


def _check_fits(system: xr.Dataset, model: Any, concept: xr.Dataset) -> None:
    _check_shared(system)
    mark = system.attrs.get("model_fingerprint", model.fingerprint)
    if mark != model.fingerprint:
        raise ValueError(
            "`system` must come from `model`; got another fingerprint. Identify again."
            f"{why_another(mark, model.fingerprint)}"
        )
    if system.attrs.get("readout") not in ("concept", "profile"):
        raise ValueError(
            "`system` must read the concept at the last depth (readout 'concept' or 'profile'); "
            f"got {system.attrs.get('readout')!r}. Identify with one of these."
        )
    if system.attrs.get("inputs", "concept") != "concept":
        raise ValueError(
            "`system` must be driven along the concept; got inputs 'free'. Identify it with "
            "`inputs='concept'`."
        )
    v = directions(model, concept).double().cpu().numpy()
    known = system["v"].transpose("depth", "input", "feature").values if "v" in system else None
    known = None if known is None else np.nan_to_num(known)  # no direction is zero in v
    if known is None or known.shape != v.shape or abs(known - v).max() > 1e-5:
        raise ValueError(
            "`concept` must be the one of `system`; got other directions. Pass the Dataset that "
            "`identify` got."
        )


def _gains(linear: xr.Dataset) -> xr.DataArray:
    return linear["gain"].drop_vars("layer", errors="ignore")


def _relative(curve: xr.DataArray, gain: xr.DataArray) -> xr.DataArray:
    """Relative L2 distance of curves from the gains of each prompt (prompt)."""
    channels = [d for d in gain.dims if d != "prompt"]
    curve = curve.drop_vars("layer", errors="ignore")
    return ((curve - gain) ** 2).sum(channels) ** 0.5 / (gain**2).sum(channels) ** 0.5
