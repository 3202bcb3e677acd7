"""The schedule of least energy by mean gains."""

import numpy as np
import xarray as xr

from depthsys.lm.directions import as_concept, defined, direction_note, input_names
from depthsys.lm.energies import check_target, in_attrs
from depthsys.lm.gains import linear_gains
from depthsys.lm.kinds import short
from depthsys.lm.linearize import Linearisation
from depthsys.lm.of_run import of_run
from depthsys.lm.optimal_plan import weights_of
from depthsys.lm.readouts import ReadoutLike
from depthsys.lm.run import Run
from depthsys.lm.stamp import stamp
from depthsys.ltv.plan import ENERGIES, WHAT_IT_DOES, large_push, push_sizes, sign_in_words


@of_run(once=True, shards=True)
def gains_plan(
    run: Run,
    concept: xr.Dataset,
    target: float | np.ndarray,
    *,
    readout: ReadoutLike = "concept",
    energy: str = "relative",
    part: str | Linearisation = "block",
) -> xr.Dataset:
    r"""The schedule of least energy by the mean gains of prompts, of any kind of linearisation.

    :math:`\min \sum_l w_l |u_l|^2` with :math:`\sum_l g_l u_l = t`, where g are the mean of the
    prompts' `linear_gains`. No system is identified. With ``part=Linearisation(kind="detached")``
    it is the schedule that would be best if pushes went through the detached maps. Those give
    values, not changes, so it is made to be compared, by ``plans=`` of `compare_energies` or
    `generation_effects`.

    Parameters
    ----------
    run
        The operating prompts; or a model and texts.
    concept
        The directions that are pushed along.
    target
        Wanted mean shift of y_L, in the unit of the readout; one number for each output.
    readout
        See `identify`; of a profile the last depth counts.
    energy
        "relative" or "absolute", see `optimal_plan`.
    part
        Whose gains, see `Linearisation`.

    Returns
    -------
    xr.Dataset
        A plan: ``u`` (layer, input), unit of the state; ``energy``; ``gain`` (layer, output,
        input), the mean gains; ``weight`` (layer), of the energy; ``push`` (layer), a fraction of
        the state's norm; ``target`` (output).

    Raises
    ------
    ValueError
        If the target does not fit or cannot be reached by these gains, or the family has no
        such linearisation.
    """
    if energy not in ENERGIES:
        raise ValueError(f"`energy` must be one of {ENERGIES}; got {short(energy)}. Pick one.")
    check_target(target)
    kind = Linearisation.of(part)
    exists = defined(concept)[:-1]
    gains = linear_gains(run, concept, readout=readout, part=kind)
    gain, wanted = _whole_gain(gains, exists), np.atleast_1d(np.asarray(target, dtype=float))
    if wanted.shape != gain.shape[1:2]:
        raise ValueError(
            f"`target` must have one value for each of the {gain.shape[1]} outputs; got {target}. "
            "Give them all."
        )
    norm = gains["state_norm"].mean("prompt").values
    weights = weights_of(energy, np.append(norm, norm[-1]))
    cost = np.repeat(np.sqrt(weights), gain.shape[-1])
    rows = np.moveaxis(gain, 1, 0).reshape(len(wanted), -1) / cost
    scaled = np.linalg.lstsq(rows, wanted, rcond=None)[0]
    if np.linalg.norm(rows @ scaled - wanted) > 1e-6 * np.linalg.norm(wanted):
        raise ValueError(
            f"`target` must be reachable by the mean gains; got {target}. Choose another one."
        )
    u = (scaled / cost).reshape(len(weights), -1)
    names = input_names(concept)
    plan = xr.Dataset(
        {
            "u": (("layer", "input"), u),
            "energy": float(scaled @ scaled),
            "gain": (("layer", "output", "input"), gain),
            "weight": ("layer", weights),
            "target": ("output", wanted),
        },
        {"layer": np.arange(len(weights)), "input": names},
    )
    plan["push"] = push_sizes(plan["u"], _columns(concept), xr.DataArray(norm, dims="depth"))
    plan.attrs = {
        **stamp(run, "gains_plan"),
        **WHAT_IT_DOES,
        **kind.attrs,
        "energy": energy,
        "target_unit": "readout",
        "target": in_attrs(wanted),
        "readout": gains.attrs["readout"],
        **sign_in_words(concept.attrs, len(names)),
        **large_push(plan["push"]),
        **direction_note(concept),
    }
    return plan


def _whole_gain(gains: xr.Dataset, exists: np.ndarray) -> np.ndarray:
    """Mean gains (layer, output, input), 0 where there is no direction."""
    gain = gains["gain"].mean("prompt")
    for dim in ("output", "input"):
        if dim not in gain.dims:
            gain = gain.expand_dims(dim)
    values = gain.transpose("layer", "output", "input").values
    return np.where(exists[:, None], values, 0.0)


def _columns(concept: xr.Dataset) -> xr.DataArray:
    """Directions (depth, feature, input) without labels."""
    v = as_concept(concept)["direction"]
    v = v if "input" in v.dims else v.expand_dims("input")
    v = v.drop_vars([name for name in v.coords if name in ("depth", "input")])
    return v.transpose("depth", "feature", "input").reset_coords(drop=True)
