"""What one plan for all prompts loses against a plan for each."""

import numpy as np
import xarray as xr

from depthsys.lm.accuracy import mean_bounds
from depthsys.lm.optimal_plan import LEVEL, N_BOOTSTRAP, SEED


def price_of_sharing(shared: xr.Dataset, own: xr.Dataset) -> xr.Dataset:
    """What one plan for all prompts loses against a plan for each.

    Parameters
    ----------
    shared, own
        `optimal_plan` of the same prompts, target and energy, without and with ``per_prompt``.

    Returns
    -------
    xr.Dataset
        ``own_energy`` (bound): mean over the prompts that reach the target with a plan of their
        own, with its 95 % bootstrap interval; ``price`` (bound): the energy of the shared plan, by
        which their mean is shifted as much, over that mean. 1 if sharing costs nothing; it may be
        below 1, since a shared plan need not shift each prompt alike. The interval is that of the
        mean below it. ``n_reached``, ``n_prompts``; ``spread`` (output): the standard deviation
        over prompts of what the shared plan does, in parts of the largest target (their own plans
        have none).

    Raises
    ------
    ValueError
        If the two are not of the same prompts, target, energy and bound, or no prompt reaches it.
    """
    if "prompt" in shared["u"].dims or "prompt" not in own["u"].dims:
        raise ValueError(
            "`shared` must be one plan and `own` one per prompt; got "
            f"{dict(shared['u'].sizes)} and {dict(own['u'].sizes)}. Exchange them, or make `own` "
            "with `per_prompt=True`."
        )
    same = ("tokens_sha256", "energy", "readout", "max_relative_push", "hold", "layers")
    differ = [name for name in same if shared.attrs.get(name) != own.attrs.get(name)]
    if not np.array_equal(shared["target"].values, own["target"].values):
        differ.append("target")
    if differ:
        raise ValueError(
            f"`own` must be made as `shared` was; got another {', '.join(differ)}. Make both from "
            "the same run and options."
        )
    reached = own["reached"].values
    if not reached.any():
        raise ValueError(
            "`own` must reach the target for some prompt; got none. Ask for less, or widen the "
            "bound."
        )
    energy = own["energy"].isel(prompt=np.flatnonzero(reached))
    mean = mean_bounds(energy, n_bootstrap=N_BOOTSTRAP, level=LEVEL, seed=SEED)
    # a large mean makes a small price
    order = mean.isel(bound=[0, 2, 1]).assign_coords(bound=mean["bound"])
    largest = float(abs(shared["target"]).max())
    return xr.Dataset(
        {
            "own_energy": mean,
            "price": shared["energy"] / order,
            "n_reached": int(reached.sum()),
            "n_prompts": len(reached),
            "spread": shared["response"].std("prompt") / largest,
        },
        attrs={"n_bootstrap": N_BOOTSTRAP, "level": LEVEL, "energy": own.attrs["energy"]},
    )
