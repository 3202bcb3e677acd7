"""The golden trajectory: what a receiver replays to know that it got the right system.

Netcdf and HDF5 files arrive in MATLAB and Julia with their axes reversed, so every ``A_k`` arrives
transposed, and nothing complains because A is square. A random run from a fixed seed, stored beside
the matrices, tells: a transposed, shifted or shuffled system does not reproduce it. It covers A, B,
C and D; digests cover what else is in a file.
"""

import numpy as np
import xarray as xr

from depthsys.ltv import check, simulate
from depthsys.ltv.system import DIMS as MATRICES

SEED = 2603
RTOL = 1e-9
DIMS = {
    "x0": ("state",),
    "u": ("layer", "input"),
    "x": ("depth", "state"),
    "y": ("depth", "output"),
}


Pair = tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


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
    with np.errstate(over="ignore", invalid="ignore"):  # told by `simulate`
        run = simulate(system, u, x0)
    found = xr.Dataset({"x0": x0, "u": u, "x": run["x"], "y": run["y"]}, attrs={"seed": SEED})
    return found.drop_vars(found.coords)


def check_golden(system: xr.Dataset, golden: xr.Dataset, where: str = "system") -> None:
    r"""Check that the system replays its golden trajectory, step by step.

    From each stored state the next one and the output are computed. Every element must be within
    1e-9 of the stored one, relative to the size of the terms of its sum,
    :math:`|A_k||x_k| + |B_k||u_k|` or :math:`|C_k||x_k| + |D_k||u_k|`: an error cannot hide behind
    a large depth or a large output, and rounding that is left when terms cancel is none.

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
        If it does not: at which depth first, and whether it would with every A transposed; if
        the trajectory has other sizes than the system; or if it is no system.
    """
    system = system.drop_vars("order", errors="ignore")
    check(system)
    run = _run_of(system, golden, where)
    error, name, depth = _worst(system, run)
    if error <= RTOL:
        return
    turned = system.copy()
    turned["A"] = system["A"].dims, system["A"].values.swapaxes(-1, -2)
    hint = (
        "It was changed after its export (send changes back with NAME_save.m or load_control.save, "
        "which store a new run), or its axes were shuffled"
    )
    if _worst(turned, run)[0] <= RTOL:
        hint = "It does with every A transposed: a reader has reversed the axes"
    raise ValueError(
        f"`{where}` must replay its golden trajectory; got a relative error of {error:.1e} in "
        f"{name} at depth {depth} (allowed: {RTOL:.0e}). {hint}; export it again."
    )


def _run_of(system: xr.Dataset, golden: xr.Dataset, where: str) -> dict[str, np.ndarray]:
    """x0, u, x and y, batch dims first, where they have the sizes of the system."""
    run = {}
    for name, dims in DIMS.items():
        wanted = {dim: system.sizes[dim] for dim in dims}
        value = golden[name]
        got = {str(dim): n for dim, n in value.sizes.items()}
        if {d: got.get(d) for d in dims} != wanted or value.dtype.kind not in "fiu":
            raise ValueError(
                f"`{where}` must hold a golden {name} of numbers with {wanted}; got {got} of dtype "
                f"{value.dtype}. It belongs to another system; export it again."
            )
        run[name] = value.transpose(..., *dims).values
    return run


def _worst(system: xr.Dataset, run: dict[str, np.ndarray]) -> tuple[float, str, int]:
    """The relative error where it first is too large, or the largest; in what, at which position.

    At the first depth: that layer is to be looked at.
    """
    A, B, C, D = (system[name].transpose(..., *MATRICES[name]).values for name in "ABCD")
    x0, u, x, y = (run[name] for name in DIMS)
    last = np.zeros_like(u[..., :1, :])
    stepped = _deviation(((A, x[..., :-1, :]), (B, u)), x[..., 1:, :])
    read = _deviation(((C, x), (D, np.concatenate([u, last], axis=-2))), y)
    start = _relative(abs(x0 - x[..., 0, :]), abs(x0)).max(initial=0.0)
    found = [(float(start), "x", 0)]
    found += [(float(e), "x", k + 1) for k, e in enumerate(stepped)]
    found += [(float(e), "y", k) for k, e in enumerate(read)]
    wrong = [place for place in found if place[0] > RTOL]
    return min(wrong, key=lambda place: (place[2], place[1])) if wrong else max(found)


def _deviation(terms: Pair, wanted: np.ndarray) -> np.ndarray:
    """The largest relative error of sums of products at each position along depth."""
    with np.errstate(over="ignore", invalid="ignore"):
        one, two = (np.einsum("...ij,...j->...i", M, v) for M, v in terms)
        size = [np.einsum("...ij,...j->...i", abs(M), abs(v)) for M, v in terms]
        error = _relative(abs(one + two - wanted), size[0] + size[1])
    error = np.broadcast_to(error, np.broadcast_shapes(error.shape, wanted.shape))
    return np.moveaxis(error, -2, 0).reshape(error.shape[-2], -1).max(axis=1)


def _relative(error: np.ndarray, size: np.ndarray) -> np.ndarray:
    """0 / 0 is no error, anything else by 0 or infinity is, and what is not a number.

    Below the smallest normal number all is rounding.
    """
    size = np.where((size == 0) | np.isinf(size), 0.0, np.maximum(size, np.finfo(float).tiny))
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.where(error == 0, 0.0, error / size)
    return np.where(np.isnan(relative), np.inf, relative)
