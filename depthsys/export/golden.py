"""The golden trajectory: what a receiver replays to know that it got the right system.

Netcdf and HDF5 files arrive in MATLAB and Julia with their axes reversed, so every ``A_k`` arrives
transposed, and nothing complains because A is square. A random run from a fixed seed, stored beside
the matrices, tells: a transposed, shifted or shuffled system does not reproduce it.
"""

import numpy as np
import xarray as xr

from depthsys.ltv import check, simulate

SEED = 2603
RTOL = 1e-9


def golden_trajectory(system: xr.Dataset) -> xr.Dataset:
    """A random run of the system, the same at every call.

    Parameters
    ----------
    system
        A system; extra leading dims are batch dims.

    Returns
    -------
    xr.Dataset
        ``x0`` (state), zero in states that do not exist; ``u`` (layer, input); ``x`` (depth,
        state); ``y`` (depth, output). attrs: ``seed``.

    Raises
    ------
    ValueError
        If it is no system, or the run overflows.

    Examples
    --------
    >>> from depthsys import export, ltv
    >>> system = ltv.constant([[0.5]], [[1.0]], [[1.0]], horizon=2)
    >>> dict(export.golden_trajectory(system).sizes)
    {'state': 1, 'layer': 2, 'input': 1, 'depth': 3, 'output': 1}
    """
    check(system)
    random = np.random.default_rng(SEED)
    x0 = xr.DataArray(random.standard_normal(system.sizes["state"]), dims=["state"])
    if "order" in system.coords:
        first = system["order"].reset_coords(drop=True).isel(depth=0, drop=True)
        x0 = x0.where(xr.DataArray(np.arange(x0.size), dims=["state"]) < first, 0.0)
    u = random.standard_normal([system.sizes[d] for d in ("layer", "input")])
    u = xr.DataArray(u, dims=["layer", "input"])
    run = simulate(system, u, x0)
    found = xr.Dataset({"x0": x0, "u": u, "x": run["x"], "y": run["y"]}, attrs={"seed": SEED})
    return found.drop_vars(found.coords)


def check_golden(system: xr.Dataset, golden: xr.Dataset, where: str = "system") -> None:
    """Check that the system replays its golden trajectory.

    The error of ``x`` and ``y`` at each depth, relative to their largest norm up to there, must be
    at most 1e-9.

    Parameters
    ----------
    system
        What was read.
    golden
        What came with it, see `golden_trajectory`.
    where
        What to call it in the message.

    Raises
    ------
    ValueError
        If it does not: at which depth first, and whether it would with every A transposed; or if
        it is no system.
    """
    system = system.drop_vars("order", errors="ignore")
    check(system)
    replayed = simulate(system, golden["u"], golden["x0"])
    error, name, depth = _worst(replayed, golden)
    if error <= RTOL:
        return
    turned = system.copy()
    turned["A"] = system["A"].dims, system["A"].values.swapaxes(-1, -2)
    hint = (
        "It was changed after its export (send changes back with NAME_save.m or load_control.save, "
        "which store a new run), or its axes were shuffled"
    )
    if _worst(simulate(turned, golden["u"], golden["x0"]), golden)[0] <= RTOL:
        hint = "It does with every A transposed: a reader has reversed the axes"
    raise ValueError(
        f"`{where}` must replay its golden trajectory; got a relative error of {error:.1e} in "
        f"{name} at depth {depth} (allowed: {RTOL:.0e}). {hint}; export it again."
    )


def _worst(replayed: xr.Dataset, golden: xr.Dataset) -> tuple[float, str, int]:
    """The relative error where it first is too large, or the largest; in what, at which position.

    At the first depth: from there on everything is wrong, and that layer is to be looked at.
    """
    found = []
    for name, dim in (("x", "state"), ("y", "output")):
        if replayed[name].sizes != golden[name].sizes:
            return np.inf, name, 0
        wanted = golden[name].transpose("depth", dim, ...)
        got = replayed[name].transpose(*wanted.dims).values
        scale = np.maximum.accumulate(np.linalg.norm(wanted, axis=1), axis=0)
        error = np.linalg.norm(got - wanted.values, axis=1) / np.where(scale > 0, scale, 1.0)
        error = np.where(np.isnan(error), np.inf, error).reshape(len(error), -1).max(1)
        found += [(float(value), name, depth) for depth, value in enumerate(error)]
    wrong = [place for place in found if place[0] > RTOL]
    return min(wrong, key=lambda place: place[2]) if wrong else max(found)
