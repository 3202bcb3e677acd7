"""The bridge to time-invariant systems: python-control objects and their Gramians.

The infinite-horizon Gramians of a stable system come from slycot where it is installed (SB03OD and
AB09AD, the routines of MATLAB's and python-control's own functions) and from a squared Smith
iteration on factors where it is not. With ``horizon`` the Gramians are those of so many steps, by
the same doubling where the powers of A stay small, and no stability is needed: depth systems
usually have eigenvalues outside the unit circle.
"""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from depthsys.ltv.foreign import StateSpace as Matrices
from depthsys.ltv.foreign import state_space
from depthsys.ltv.gramians import compressed
from depthsys.ltv.matrices import compact
from depthsys.ltv.matrix_free import check_finite, state_sizes
from depthsys.ltv.rounding import CERTIFIABLE, EPS, certificate, lengths
from depthsys.ltv.system import batch_sizes, check, whole_number

if TYPE_CHECKING:
    from control import StateSpace

TAME = 10.0  # norm of a power of A up to which it is squared


def mean_lti(system: xr.Dataset) -> "StateSpace":
    """The depth-averaged surrogate: one discrete-time python-control system for all layers.

    A, B and D are means over layers; C is the mean over the depths at which something is read.
    It forgets how the layers differ: `compare` its `constant` form with the system before use.

    Parameters
    ----------
    system
        One system (no batch dims) with one state size at all depths.

    Returns
    -------
    control.StateSpace
        With ``dt=1`` and the names of the system; where it has none, states x[i], inputs u[i],
        outputs y[i].

    Raises
    ------
    ValueError
        If there are batch dims or the state size varies.
    """
    system = _square(system)
    C = system["C"].values
    read = C.any(axis=(1, 2))
    C = C[read].mean(0) if read.any() else C[0]
    A, B, D = (compact(system[name].values[: len(system["A"])]).mean(0) for name in "ABD")
    return _state_space(A, B, C, D, _names(system))


def layer_lti(system: xr.Dataset, layer: int, *, readout: int | None = None) -> "StateSpace":
    """One layer, frozen, as a discrete-time python-control system.

    Parameters
    ----------
    system
        One system (no batch dims) with one state size at all depths.
    layer
        Label of the layer l: A_l, B_l and D_l are used.
    readout
        Label of the depth whose C is used; l by default. A system that is read at its end only
        has C = 0 before it: pass its last depth.

    Raises
    ------
    ValueError
        If there are batch dims, the state size varies, or there is no such layer or depth.
    """
    system = _square(system)
    readout = layer if readout is None else readout
    for value, dim in ((layer, "layer"), (readout, "depth")):
        if value not in system[dim].values:
            first, last = system[dim].values[[0, -1]]
            raise ValueError(
                f"`{'layer' if dim == 'layer' else 'readout'}` must be in {first}..{last}; got "
                f"{value}. Use a label of the dim {dim!r}."
            )
    at = layer - int(system["layer"].values[0])
    C = system["C"].values[readout - int(system["depth"].values[0])]
    A, B, D = (system[name].values[at] for name in "ABD")
    return _state_space(A, B, C, D, _names(system))


def _square(system: xr.Dataset) -> xr.Dataset:
    """One system with one state size, without the zeros that pad it."""
    check(system)
    if extra := sorted(batch_sizes(system)):
        raise ValueError(
            f"`system` must have no batch dims; got {extra}. Select one member with `.isel`."
        )
    sizes = state_sizes(system).values
    if (sizes != sizes.flat[0]).any():
        raise ValueError(
            f"`system` must have one state size to be time-invariant; got orders {sizes}. Cut out "
            "the depths where it is constant with `ltv.window`, or embed it with `ltv.embed`."
        )
    own = slice(int(sizes.flat[0]))
    return system.isel(state=own, state_next=own)


def _names(system: xr.Dataset) -> dict[str, list[str]]:
    """Names of the signals, by dim; python-control allows no dots, and no name twice."""
    found = {}
    for dim in ("state", "input", "output"):
        if f"{dim}_name" in system.coords:
            names = [str(name).replace(".", "_") for name in system[f"{dim}_name"].values]
            twice = len(set(names)) < len(names)
            found[dim] = [f"{n}[{i}]" for i, n in enumerate(names)] if twice else names
    return found


def _state_space(A, B, C, D, names: Mapping[str, list[str]], dt: Any = 1) -> "StateSpace":
    from control import StateSpace  # takes a second, and matplotlib with it

    given = {f"{dim}s": labels for dim, labels in names.items()}
    return StateSpace(A, B, C, D, dt=dt, remove_useless_states=False, **given)


def lti_gramians(
    lti: Any, horizon: int | None = None, *, use_slycot: bool | None = None
) -> xr.Dataset:
    """Reachability and observability Gramians of a discrete-time system.

    Parameters
    ----------
    lti
        A discrete-time ``StateSpace`` of python-control or scipy, or ``LTIModel`` of pyMOR.
    horizon
        Number of steps; infinitely many by default, for stable systems only. The work grows with
        its logarithm where the powers of A stay small (norm up to 10), and with the number itself
        from where they do not.
    use_slycot
        True or False to choose; by default slycot is used where it is installed.

    Returns
    -------
    xr.Dataset
        ``P``, ``Q`` (state, state_2). attrs: ``horizon`` ("infinite" or steps),
        ``spectral_radius``, ``solver``. python-control: `gram`.

    Raises
    ------
    TypeError
        If it is not a StateSpace.
    ValueError
        If it is continuous, or not stable and without a horizon.
    """
    R, S, attrs = _factors(lti, horizon, use_slycot)
    data = {name: (("state", "state_2"), F @ F.T) for name, F in (("P", R), ("Q", S))}
    return xr.Dataset(data, attrs=attrs)


def lti_hankel_singular_values(
    lti: Any, horizon: int | None = None, *, use_slycot: bool | None = None
) -> xr.DataArray:
    """Hankel singular values of a discrete-time system, largest first.

    With ``horizon`` h: of the map from h inputs to the h outputs after them. Parameters, attrs and
    errors as for `lti_gramians`; also attrs ``resolution``, what rounding explains in a value (of
    first order, output/input), and ``certified``, "yes", or "not certified" and why, where that is
    more than 0.1 % of the largest. python-control's `hsvd` refuses discrete time; MATLAB: `hsvd`.
    """
    lti = _given(lti)
    _, solver = _about(lti, horizon, use_slycot)
    R, S, attrs = _factors(lti, horizon, use_slycot)
    if solver == "slycot":
        values = _ab09ad(lti, None)[-1]
    else:
        values = np.zeros(lti.nstates)
        found = np.linalg.svd(S.T @ R, compute_uv=False)
        values[: len(found)] = found
    lost, top = _lost(lti, R, S, horizon), xr.DataArray(values.max(initial=0.0))
    ok = xr.DataArray(lost <= CERTIFIABLE * float(top) or lost == 0)
    said = certificate(ok, xr.DataArray(lost), top, "the largest value")
    attrs |= {"resolution": lost, "certified": said}
    return xr.DataArray(values, dims=["index"], name="hankel_singular_values", attrs=attrs)


def _lost(lti: Matrices, R: np.ndarray, S: np.ndarray, horizon: int | None) -> float:
    """What rounding explains in S' R: `resolution_of` with the sums over all times from Gramians.

    An error made before the present is seen by the outputs after it through A^j S, one made after
    it is reached by the inputs before through A^j R: root sums of squares over j, times the root
    of the number of steps that count.
    """
    A, B, C = lti.A, lti.B, lti.C
    steps = None if horizon is None else int(horizon)
    try:
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            later, earlier = (
                _smith(a, F) if steps is None else _finite_sum(a, F, steps)
                for a, F in ((A.T, S), (A, R))
            )
            r, s, t, u = (lengths(F) for F in (R, S, later, earlier))
            total = t @ (np.abs(A) @ r + lengths(B)) + s @ (np.abs(A) @ u)
            total = total + lengths(C.T) @ u
            sizes = 2 * len(A) + R.shape[1] + S.shape[1]
            count = max(1.0, *(_quotient(x, y) for x, y in ((t, s), (u, r))))
            return float(EPS * sizes * count * total) if np.isfinite(total) else np.inf
    except np.linalg.LinAlgError:
        return np.inf


def _quotient(whole: np.ndarray, part: np.ndarray) -> float:
    """The largest ratio of a row's length over all times to that at one."""
    known = part > 0
    return float((whole[known] / part[known]).max(initial=1.0))


def lti_balanced_truncation(
    lti: Any, order: int, horizon: int | None = None, *, use_slycot: bool | None = None
) -> "StateSpace":
    """Balanced truncation of a discrete-time system, with ``dt``, D and names of signals kept.

    python-control's `balred` treats discrete systems as continuous and is wrong for them.
    Over an infinite horizon the error is at most twice the sum of the distinct truncated
    `lti_hankel_singular_values`; with a ``horizon`` no bound is proved (the truncated Gramians of
    one window do not satisfy the Lyapunov inequality): use `constant` and `balanced_basis` instead.

    Other parameters and errors as for `lti_gramians`.

    Raises
    ------
    ValueError
        If ``order`` is not in 1..rank.
    """
    lti = _given(lti)
    values = lti_hankel_singular_values(lti, horizon, use_slycot=use_slycot).values
    rank = int((values > 1e-12 * values[0]).sum()) if values[0] > 0 else 0
    if whole_number(order, "order") > rank:
        raise ValueError(
            f"`order` must be at most the rank, {rank} (rtol 1e-12); got {order}. A larger model "
            "would be the same model."
        )
    _, solver = _about(lti, horizon, use_slycot)
    names = {dim: labels for dim, labels in lti.names.items() if dim != "state"}
    if solver == "slycot":
        A, B, C, _ = _ab09ad(lti, int(order))
        return _state_space(A, B, C, lti.D, names, lti.dt)
    R, S, _ = _factors(lti, horizon, use_slycot)
    U, s, Zt = np.linalg.svd(S.T @ R, full_matrices=False)
    scale = s[:order] ** -0.5
    V, W = R @ (Zt[:order].T * scale), S @ (U[:, :order] * scale)
    return _state_space(W.T @ lti.A @ V, W.T @ lti.B, lti.C @ V, lti.D, names, lti.dt)


def _given(lti: Any) -> Matrices:
    """The matrices of a discrete-time system with at least one state."""
    if isinstance(lti, Matrices):
        return lti
    try:
        found = state_space(lti, "lti")
    except TypeError:
        found = None
    if found is None:
        raise TypeError(
            f"`lti` must be a python-control StateSpace; got {type(lti).__name__}. Make one with "
            "`control.ss(A, B, C, D, 1)` or `ltv.mean_lti(system)`."
        )
    if found.nstates == 0:
        raise ValueError("`lti` must have at least one state; got a pure gain. Its error is zero.")
    if found.continuous:
        raise ValueError(
            f"`lti` must be in discrete time; got dt = {found.dt}. Use `control.sample_system` "
            "first."
        )
    return found


def _about(lti: Matrices, horizon: int | None, use_slycot: bool | None) -> tuple[dict, str]:
    """What to say about the computation; and who does it."""
    radius = float(np.abs(np.linalg.eigvals(lti.A)).max())
    if horizon is None and radius >= 1:
        raise ValueError(
            f"`lti` must be stable over an infinite horizon; got spectral radius {radius:.4g}. "
            "Pass `horizon=`, the number of layers: finite Gramians need no stability."
        )
    if horizon is not None:
        whole_number(horizon, "horizon")
    installed = find_spec("slycot") is not None
    if use_slycot and not installed:
        raise ImportError(
            "`use_slycot` must be left out where slycot is not installed; got True. "
            "`pip install depthsys[control]` installs it."
        )
    if horizon is not None:
        solver = "finite sum"
    else:
        solver = "slycot" if (installed if use_slycot is None else use_slycot) else "scipy"
    about = {"horizon": "infinite" if horizon is None else int(horizon)}
    return {**about, "spectral_radius": radius, "solver": solver}, solver


def _factors(lti, horizon, use_slycot) -> tuple[np.ndarray, np.ndarray, dict]:
    lti = _given(lti)
    attrs, solver = _about(lti, horizon, use_slycot)
    A, B, C = lti.A, lti.B, lti.C
    if solver == "finite sum":
        # P after `horizon` inputs; Q before as many outputs
        R, S = _finite_sum(A, B, int(horizon)), _finite_sum(A.T, C.T, int(horizon))
    elif solver == "slycot":
        R, S = _sb03od(A, B), _sb03od(A.T, C.T)
    else:
        R, S = _smith(A, B), _smith(A.T, C.T)
    return R, S, attrs


def _finite_sum(A: np.ndarray, B: np.ndarray, steps: int) -> np.ndarray:
    """R with R R' = sum_{j < steps} A^j B B' A'^j.

    By doubling as long as the powers of A stay small: the rounding of a square is eps times the
    square of the norm, in which what is small in a growing system would drown. From there on step
    by step.
    """
    R, power, done = compressed(B), A, 1  # R of `done` steps, power = A^done
    with np.errstate(over="ignore", invalid="ignore"):
        for odd in (bit == "1" for bit in bin(steps)[3:]):
            if np.linalg.norm(power, 2) > TAME:
                break
            R, power, done = _beside(R, power @ R), power @ power, 2 * done
            if odd:
                R, power, done = _beside(B, A @ R), A @ power, done + 1
        for _ in range(done, steps):
            R = _beside(A @ R, B)
    return R


def _beside(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    both = np.hstack([left, right])
    check_finite(both, "a Gramian")
    return compressed(both)


def _smith(A: np.ndarray, B: np.ndarray) -> np.ndarray:
    """R with R R' = sum_j A^j B B' A'^j, by doubling the number of terms (squared Smith).

    On factors, so that small Hankel singular values survive, which they do not when scipy's
    Lyapunov solution is factored. Penzl (1999), doi:10.1137/S1064827598347666.
    """
    R, power = compressed(B), A
    while np.linalg.norm(power) > np.finfo(float).eps:
        R = compressed(np.hstack([R, power @ R]))
        power = power @ power
    return compressed(np.hstack([R, power @ R]))


def _sb03od(A: np.ndarray, B: np.ndarray) -> np.ndarray:
    """The same factor by SLICOT: A X A' - X = -B B' with X = U U', U upper triangular."""
    import slycot

    n = len(A)
    square = np.zeros((n, n))  # the wrapper wants room for the factor in B
    factor = compressed(B)
    square[:, : factor.shape[1]] = factor
    U, scale, _ = slycot.sb03od(n, n, A.copy(), np.zeros((n, n)), square, "D", trans="T")
    return U / scale


def _ab09ad(lti, order: int | None) -> tuple[np.ndarray, ...]:
    """Balanced truncation by SLICOT, job B. (Never job N nor AB09BD: see the interop facts.)"""
    import slycot

    n, m, p = lti.nstates, lti.B.shape[1], lti.C.shape[0]
    _, A, B, C, values = slycot.ab09ad(
        "D", "B", "N", n, m, p, lti.A.copy(), lti.B.copy(), lti.C.copy(), nr=order
    )
    return A, B, C, values
