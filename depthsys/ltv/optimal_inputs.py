"""The input of least cost that starts, passes and ends where it should, within bounds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from depthsys.ltv.costs import RTOL, Costs, as_costs, checked_rtol
from depthsys.ltv.labels import beside_each_other, with_labels_of
from depthsys.ltv.least_norm import (
    EPS,
    LeastNorm,
    least_norm,
    left_to_reach,
    overflowing,
    rank_in_words,
)
from depthsys.ltv.matrix_free import labels, over_depth
from depthsys.ltv.quadratic_program import least_distance, least_in_box
from depthsys.ltv.response import as_state
from depthsys.ltv.riccati import lists, riccati
from depthsys.ltv.rounding import SAMPLES, YES, lengths
from depthsys.ltv.system import check
from depthsys.ltv.targets import bound, final_state, output_targets, pattern

Array = ArrayLike | xr.DataArray
MET = 1e-6  # relative distance below which a target counts as met


def optimal_inputs(
    system: xr.Dataset,
    *,
    x0: Array | None = None,
    x_final: Array | None = None,
    y_target: Array | None = None,
    lower: Array | None = None,
    upper: Array | None = None,
    Q: Array | None = None,
    R: Array | None = None,
    terminal: Array | None = None,
    N: Array | None = None,
    x_target: Array | None = None,
    u_target: Array | None = None,
    drift: Array | None = None,
    rtol: float = RTOL,
) -> xr.Dataset:
    r"""The input of least cost from an initial state, with exact targets and bounds.

    Minimises the cost of `lqr`, by default the energy :math:`\sum_l u_l^\top u_l`, subject to
    :math:`x_L = \text{x\_final}`, :math:`y_k = \text{y\_target}_k` wherever they are given, and
    :math:`\text{lower} \le u \le \text{upper}`.

    Parameters
    ----------
    system
        A system; extra leading dims are batch dims.
    x0
        Initial state (state); zero by default.
    x_final
        Exact state x_L (state); NaN where it is free.
    y_target
        Exact outputs (depth, output), NaN where they are free. A DataArray may have some of the
        depths and outputs only, by their labels.
    lower, upper
        Bounds on the input: a number, (input), or (layer, input); infinite where there is none.
    Q, R, terminal, N, x_target, u_target, drift
        The cost, as for `lqr`; Q and ``terminal`` are zero by default and R is the identity.
    rtol
        Ranks and reachability of the targets are decided with each of them scaled to unit size:
        relative singular values and residuals below ``rtol`` count as zero. Also as for `lqr`.

    Returns
    -------
    xr.Dataset
        ``u`` (layer, input), ``x`` (depth, state), ``y`` (depth, output), ``cost``;

        ``residual``
            Distance of the targets from the ``x`` and ``y`` above, each scaled to unit size,
            relative to the targets and to the terms that these states and outputs are sums of.
        ``target_rank``
            Number of independent targets.
        ``resolution``, ``target_rank_is_certified``
            What rounding explains in a singular value of the targets' map with its rows scaled to
            unit size; False where one is nearer to ``rtol`` than that.
        ``x_multipliers`` (state), ``y_multipliers`` (depth, output)
            Derivative of the cost with respect to each target, zero where there is none.
        ``lower_multipliers``, ``upper_multipliers`` (layer, input)
            What the cost falls by per unit that a bound is moved out: zero where the input keeps
            off it.
        ``stationarity``, ``bound_violation``
            What is left of the optimality conditions: the gradient of the Lagrangian relative to
            that of the cost, and by how much u passes a bound, in units of u.

        attrs: ``certified``, "yes", or "not certified" and why: where the rank is not, or where
        ``residual`` is above 1e-6: with modes that grow over many layers, rounding of u takes x
        away from any plan.

        nctpy: `get_control_inputs(A, T, B, x0, xf, "discrete", rho, S, xr)` is ``x_final=xf, Q=S,
        R=rho I, x_target=xr`` (``Q`` zero at layer 0: nctpy counts no cost there, a constant).

    Raises
    ------
    ValueError
        If an argument has the wrong size or labels or is not valid.
    numpy.linalg.LinAlgError
        If no input within the bounds reaches the targets, some input costs nothing, or the cost
        is beyond the largest number.

    Notes
    -----
    With :math:`u = -K x + \text{feedforward} + U^{-1} w` of `lqr` the cost is what `lqr` leaves,
    plus :math:`\|w\|^2`. So targets ask for the least w, as in `minimum_energy`, without a normal
    matrix; with bounds it is a least-distance problem, solved by `scipy.optimize.nnls`.

    References
    ----------
    .. [1] Kim et al. (2025), Nat. Commun. 16:11639: the discrete-time case of nctpy.
    .. [2] Lawson and Hanson, Solving Least Squares Problems (1974), chapter 23.

    Examples
    --------
    >>> from depthsys import ltv
    >>> s = ltv.constant([[1.0]], [[1.0]], [[1.0]], horizon=4)
    >>> plan = ltv.optimal_inputs(s, x0=[1.0], x_final=[3.0], upper=[[0.2], [1.0], [1.0], [1.0]])
    >>> plan.u.values.ravel(), plan.x.values.ravel()
    (array([0.2, 0.6, 0.6, 0.6]), array([1. , 1.2, 1.8, 2.4, 3. ]))
    >>> plan.x_multipliers.values, plan.upper_multipliers.values[0]
    (array([1.2]), array([0.8]))
    """
    check(system)
    checked_rtol(rtol)
    n, m = system.sizes["state"], system.sizes["input"]
    costs = as_costs(
        system,
        np.zeros((n, n)) if Q is None else Q,
        np.eye(m) if R is None else R,
        N,
        terminal,
        x_target=x_target,
        u_target=u_target,
        drift=drift,
        rtol=rtol,
    )
    wanted = {
        "x_final": final_state(system, x_final),
        "y_target": output_targets(system, y_target),
        "lower": bound(system, lower, "lower", -np.inf),
        "upper": bound(system, upper, "upper", np.inf),
        "x0": as_state(system, np.zeros(n) if x0 is None else x0, "x0", 0),
    }
    wanted = dict(zip(wanted, beside_each_other(wanted), strict=True))
    if bool((wanted["lower"] > wanted["upper"]).any()):
        raise ValueError("`lower` must be at most `upper`; got more somewhere. Swap them there.")
    extra = [costs.on_state, costs.on_input, costs.end, *wanted.values(), *(costs.affine or ())]
    dims = [*Costs.DIMS, *_WANTED, *(Costs.AFFINE_DIMS if costs.affine else ())]
    core = _Core(
        x_rows=pattern(wanted["x_final"], "x_final", ("state",)),
        y_rows=pattern(wanted["y_target"], "y_target", ("depth", "output")),
        bounded=any(bool(np.isfinite(wanted[side]).any()) for side in ("lower", "upper")),
        layers=labels(system, "layer"),
        rtol=rtol,
    )
    found = over_depth(
        core,
        system,
        "ABCD",
        list(_RESULTS.values()),
        *extra,
        extra_dims=dims,
        exclude=("row", "last_row"),
    )
    plan = xr.Dataset(dict(zip(_RESULTS, found, strict=True)))
    return with_labels_of(plan, system).assign_attrs(
        method="optimal_inputs", rtol=rtol, certified=_in_words(plan, rtol)
    )


def _in_words(plan: xr.Dataset, rtol: float) -> str:
    """The text of ``attrs["certified"]``."""
    residual = plan["residual"]
    missed, also = ~(residual <= MET), YES
    if bool(missed.any()):
        also = _missed(residual, int(missed.sum()))
    certain, resolution = plan["target_rank_is_certified"], plan["resolution"]
    return rank_in_words("target_rank", certain, resolution, rtol, also)


def _missed(residual: xr.DataArray, count: int) -> str:
    part = "" if residual.size == 1 else f" in {count} of {residual.size} cases"
    return (
        f"not certified{part}: rounding on the way leaves the targets off by "
        f"{float(residual.max()):.1e} of their size (`residual`)"
    )


_WANTED = (("state",), ("depth", "output"), ("layer", "input"), ("layer", "input"), ("state",))
_RESULTS = {
    "u": ["layer", "input"],
    "x": ["depth", "state"],
    "y": ["depth", "output"],
    "cost": [],
    "residual": [],
    "target_rank": [],
    "resolution": [],
    "target_rank_is_certified": [],
    "x_multipliers": ["state"],
    "y_multipliers": ["depth", "output"],
    "lower_multipliers": ["layer", "input"],
    "upper_multipliers": ["layer", "input"],
    "stationarity": [],
    "bound_violation": [],
}


@dataclass(frozen=True)
class _Core:
    """The plan of arrays (..., core dims), see `optimal_inputs`."""

    x_rows: np.ndarray
    y_rows: np.ndarray
    bounded: bool
    layers: np.ndarray
    rtol: float

    def __call__(
        self, A, B, C, D, on_state, on_input, end, x_final, y_target, lower, upper, x0, *affine
    ):
        given, drift = None, [np.zeros((A[0].shape[-2], 1))] * len(A)
        if affine:
            f, c, g = (value[..., None] for value in affine)
            drift = lists(c)
            given = (lists(f), drift, g)
        law = riccati(A, B, lists(on_state), lists(on_input), end, given, self._refused)
        loop = _Loop(
            (A, B, C, D),
            law.K,
            [np.linalg.inv(factor) for factor in law.U],
            [-k for k in law.k] or [np.zeros((B[0].shape[-1], 1))] * len(A),
            drift,
        )
        start = x0[..., None]
        u, x, y = loop.run(start)
        G, T, floor, lost = loop.maps(self.x_rows, self.y_rows)
        gap = left_to_reach(
            _beside(x_final[..., self.x_rows], y_target[..., self.y_rows]),
            _beside(x[..., -1, :][..., self.x_rows], y[..., self.y_rows]),
            A[0].shape[-1],
        )
        found = least_norm(G, gap, self.rtol, floor, lost)
        self._refuse_unreachable(found, G)
        sides = np.broadcast_arrays(lower - u, upper - u)
        w, rows, low, high, off, over, *exact = (
            self._within(loop, G, found.z, T, *sides)
            if self.bounded
            else _unbounded(G, found.z, found.multipliers, u)
        )
        alone = u
        u, x, y = loop.run(start, w.reshape(*w.shape[:-1], *u.shape[-2:]))
        if exact and not np.isnan(exact[0]).all():
            u, x, y = loop.run(start, u=np.where(np.isnan(exact[0]), u, alone + exact[0]))
        cost = ((law.S[0] @ start - (law.g[0] if affine else 0.0)) ** 2).sum((-2, -1))
        cost = cost + (law.rest[0][..., 0, 0] if affine else 0.0) + (w**2).sum(-1)
        self._refuse_overflow(cost, u)
        n_x = int(self.x_rows.sum())
        return (
            u,
            x,
            y,
            cost,
            self._residual(loop, (x_final, y_target), (u, x, y), G, floor),
            found.rank,
            found.resolution,
            found.certain,
            _scattered(rows[..., :n_x], self.x_rows),
            _scattered(rows[..., n_x:], self.y_rows),
            low,
            high,
            off,
            over,
        )

    def _residual(self, loop: _Loop, targets, run, G, floor) -> np.ndarray:
        """How far from the targets a run ends and passes, relative to what it is the sum of."""
        u, x, y = run
        rows = ((targets[0], x[..., -1, :]), (targets[1], y))
        wanted, reached, terms = (
            _beside(first[..., self.x_rows], second[..., self.y_rows])
            for first, second in (*zip(*rows, strict=True), loop.terms(u, x))
        )
        size = lengths(G)
        scale = np.where(size > floor, 1 / np.where(size > floor, size, 1.0), 0.0)
        off = np.linalg.norm((reached - wanted) * scale, axis=-1)
        whole = np.linalg.norm((np.abs(wanted) + terms) * scale, axis=-1)
        return off / np.where(whole > 0, whole, 1.0)

    def _refused(self, layer: int) -> Exception:
        return np.linalg.LinAlgError(
            "`R` must leave R + B' P B positive definite; got a singular one at layer "
            f"{self.layers[layer]}, where some input costs nothing. Give it a cost in R."
        )

    def _refuse_overflow(self, cost: np.ndarray, u: np.ndarray) -> None:
        if not np.isfinite(cost).all() and np.isfinite(u).all():
            raise np.linalg.LinAlgError(overflowing("cost", u))

    def _refuse_unreachable(self, found: LeastNorm, G: np.ndarray) -> None:
        if not (found.miss <= self.rtol).all():
            worst = np.unravel_index(found.miss.argmax(), found.miss.shape)
            raise np.linalg.LinAlgError(
                "`x_final` and `y_target` must be reachable; got relative residual "
                f"{found.miss.max():.1e} (rank {found.rank[worst]} of {G.shape[-2]} targets, rtol "
                f"{self.rtol:.0e}). Set some of them to NaN, or add inputs or layers."
            )

    def _within(self, loop, G, z, T, below, above):
        """The least w whose inputs keep within bounds, member by member."""
        layers, inputs = below.shape[-2:]
        batch = np.broadcast_shapes(G.shape[:-2], z.shape[:-1], T.shape[:-2], below.shape[:-2])
        size = _lengths(G)
        scale = np.where(size > 0, 1 / np.where(size > 0, size, 1.0), 0.0)
        core = [(G * scale, 2), (z, 1), (T, 2), (below, 2), (above, 2)]
        if not G.any():  # bounds alone
            core.append((loop.opened(), 2))
        arrays = [np.broadcast_to(a, (*batch, *a.shape[a.ndim - k :])) for a, k in core]
        results = []
        for member in np.ndindex(*batch):
            g, start, t, low, high, *inverse = (a[member] for a in arrays)
            low, high = low.ravel(), high.ravel()
            kept = [np.isfinite(low), np.isfinite(high)]
            lines = np.concatenate([t[kept[0]], -t[kept[1]]])
            least = np.concatenate([low[kept[0]], -high[kept[1]]])
            exact = np.full(low.size, np.nan)
            try:
                found = least_distance(g, start, lines, least, self.rtol)
            except np.linalg.LinAlgError:
                if not inverse:
                    raise
                found = None
            if found is None or (inverse and not found.found):
                found, exact = least_in_box(inverse[0], low, high)
            if not found.found:
                raise _none_within(g, start, t, low, high, f" for member {member}" * bool(batch))
            sides = np.zeros((2, low.size))
            sides[0, kept[0]] = found.unequal[: kept[0].sum()]
            sides[1, kept[1]] = found.unequal[kept[0].sum() :]
            exact = exact.reshape(layers, inputs)
            results.append((found, sides.reshape(2, layers, inputs), exact))
        shape = scale.shape[:-1]

        def gathered(values: list) -> np.ndarray:
            stack = np.stack(values)
            return stack.reshape((*batch, *stack.shape[1:]))

        return (
            gathered([f.w for f, *_ in results]),
            gathered([f.equal for f, *_ in results]) * np.broadcast_to(scale[..., 0], shape),
            gathered([s[0] for _, s, _ in results]),
            gathered([s[1] for _, s, _ in results]),
            gathered([np.asarray(f.stationarity) for f, *_ in results]),
            gathered([np.asarray(f.violation) for f, *_ in results]),
            gathered([exact for *_, exact in results]),
        )


@dataclass(frozen=True)
class _Loop:
    """The system under u = forward - K x + M w, with w as its input."""

    matrices: tuple[list[np.ndarray], ...]
    K: list[np.ndarray]
    M: list[np.ndarray]
    forward: list[np.ndarray]
    drift: list[np.ndarray]

    def run(
        self, x: np.ndarray, w: np.ndarray | None = None, u: np.ndarray | None = None
    ) -> tuple[np.ndarray, ...]:
        """Inputs, states and outputs (..., layer or depth, size) from x (..., state, 1).

        Under given inputs u, or those of the law with w.
        """
        A, B, C, D = self.matrices
        given = u
        inputs, states, outputs = [], [], []
        for k, read in enumerate(C):
            states.append(x)
            y = read @ x
            if k < len(A):
                u = self.forward[k] - self.K[k] @ x if given is None else given[..., k, :, None]
                if w is not None:
                    u = u + self.M[k] @ w[..., k, :, None]
                y = y + D[k] @ u
                x = A[k] @ x + B[k] @ u + self.drift[k]
                inputs.append(u)
            outputs.append(y)
        return tuple(
            np.stack(np.broadcast_arrays(*parts), axis=-3)[..., 0]
            for parts in (inputs, states, outputs)
        )

    def terms(self, u: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sizes of what the last state and the outputs (..., depth, output) are sums of."""
        A, B, C, D = self.matrices
        u, x = np.abs(u)[..., None], np.abs(x)[..., None]
        last = np.abs(A[-1]) @ x[..., -2, :, :] + np.abs(B[-1]) @ u[..., -1, :, :]
        outputs = [np.abs(read) @ x[..., k, :, :] for k, read in enumerate(C)]
        for k, direct in enumerate(D[: len(A)]):
            outputs[k] = outputs[k] + np.abs(direct) @ u[..., k, :, :]
        outputs = np.stack(np.broadcast_arrays(*outputs), axis=-3)
        return (last + np.abs(self.drift[-1]))[..., 0], outputs[..., 0]

    def maps(self, x_rows: np.ndarray, y_rows: np.ndarray) -> tuple[np.ndarray, ...]:
        """Maps from w to the targets and to u (..., row, column), and the targets' rounding.

        The latter of the last products alone, and on all the way, estimated with random errors.
        """
        A, B, C, D = self.matrices
        m, L, n = B[0].shape[-1], len(A), A[0].shape[-1]
        x, targets, floors, inputs, carried = np.zeros((n, L * m)), [], [], [], []
        floor, off = np.zeros(n), np.zeros((n, SAMPLES))
        rng = np.random.default_rng(0)
        for k, read in enumerate(C):
            rows = y_rows[k]
            y = read[..., rows, :] @ x
            noise = np.abs(read[..., rows, :]) @ _lengths(x)
            if k < L:
                u = -self.K[k] @ x
                batch = np.broadcast_shapes(u.shape[:-2], self.M[k].shape[:-2])
                u = np.broadcast_to(u, (*batch, *u.shape[-2:])).copy()
                u[..., k * m : (k + 1) * m] += self.M[k]
                inputs.append(u)
                y = y + D[k][..., rows, :] @ u
                noise = noise + np.abs(D[k][..., rows, :]) @ _lengths(u)
                floor = np.abs(A[k]) @ _lengths(x) + np.abs(B[k]) @ _lengths(u)
                x = A[k] @ x + B[k] @ u
            targets.append(y)
            floors.append(noise)
            carried.append(_lengths(read[..., rows, :] @ off))
            if k < L:
                new = EPS * n * floor * rng.standard_normal((n, SAMPLES))
                off = A[k] @ off - B[k] @ (self.K[k] @ off) + new
        G = _below([x[..., x_rows, :], *targets])
        local = EPS * n * _below([floor[..., x_rows, :], *floors])[..., 0]
        lost = _below([_lengths(off[..., x_rows, :]), *carried])[..., 0] * 3 / np.sqrt(SAMPLES)
        return G, _below(inputs), 16 * local, local + lost

    def opened(self) -> np.ndarray:
        """The map from u to w (..., row, column), the inverse of the one from w to u."""
        A, B = self.matrices[:2]
        m, L = B[0].shape[-1], len(A)
        x, rows = np.zeros((A[0].shape[-1], L * m)), []
        for k in range(L):
            own = np.zeros((m, L * m))
            own[:, k * m : (k + 1) * m] = np.eye(m)
            rows.append(np.linalg.solve(self.M[k], own + self.K[k] @ x))
            x = A[k] @ x + B[k] @ own
        return _below(rows)


def _lengths(rows: np.ndarray) -> np.ndarray:
    return lengths(rows)[..., None]


def _below(matrices: list[np.ndarray]) -> np.ndarray:
    batch = np.broadcast_shapes(*(x.shape[:-2] for x in matrices))
    return np.concatenate([np.broadcast_to(x, (*batch, *x.shape[-2:])) for x in matrices], axis=-2)


def _beside(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    batch = np.broadcast_shapes(left.shape[:-1], right.shape[:-1])
    return np.concatenate([np.broadcast_to(x, (*batch, x.shape[-1])) for x in (left, right)], -1)


def _unbounded(G: np.ndarray, z: np.ndarray, multipliers: np.ndarray, u: np.ndarray):
    off = 2 * z - (np.swapaxes(G, -1, -2) @ multipliers[..., None])[..., 0]
    length = np.linalg.norm(2 * z, axis=-1)
    none = np.zeros((*z.shape[:-1], *u.shape[-2:]))
    stationarity = np.linalg.norm(off, axis=-1) / np.where(length > 0, length, 1.0)
    return z, multipliers, none, none, stationarity, np.zeros(z.shape[:-1])


def _scattered(values: np.ndarray, where: np.ndarray) -> np.ndarray:
    whole = np.zeros((*values.shape[:-1], *where.shape))
    whole[..., where] = values
    return whole


def _none_within(
    G: np.ndarray, w: np.ndarray, T: np.ndarray, low: np.ndarray, high: np.ndarray, member: str
) -> Exception:
    """The error that says how near the targets can be reached within the bounds."""
    from scipy.optimize import lsq_linear

    apart = high > low
    high = np.where(apart, high, low + 1e-12 * np.maximum(np.abs(low), 1e-300))
    per_input = np.linalg.solve(T.T, G.T).T  # T is square: one row per input
    goal = G @ w
    off = np.linalg.norm(per_input @ lsq_linear(per_input, goal, (low, high)).x - goal)
    size = np.linalg.norm(goal)
    if off <= 1e-6 * size:
        return np.linalg.LinAlgError(
            "`lower` and `upper` must leave a problem that can be solved to rounding; got one"
            f"{member} in which inputs reach the targets to {off / size:.1e}, and rounding hides "
            "which are best. Widen the bounds, or free some targets."
        )
    how = f"relative residual of {off / size:.1e}" if size > 0 else f"residual of {off:.1e}"
    return np.linalg.LinAlgError(
        f"`lower` and `upper` must let some input reach the targets; got none{member}: the nearest "
        f"one has a {how}. Widen the bounds, or free some targets."
    )
