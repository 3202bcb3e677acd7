"""Convex quadratic programs with boxes, balls and cones, by the interior-point solver Clarabel.

Plans with bounds are such programs: an energy to be minimised, targets as equalities, and pushes
that stay below a part of the state. Without inequalities `least_norm` is exact and is used instead.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import csc_matrix, triu

# of Clarabel, relative to the (equilibrated) data: a plan is checked by its own residuals. The
# second is tried where rounding does not let it come that far.
TOLERANCE, COARSE = 1e-11, 1e-8
_SOLVED = ("Solved", "AlmostSolved")
_INFEASIBLE = ("PrimalInfeasible", "AlmostPrimalInfeasible")


def _clarabel() -> Any:
    """The solver, whose types are not stated; `import depthsys.ltv` loads none."""
    import clarabel

    return clarabel


class Program(NamedTuple):
    """The solution of a program and the multipliers that prove it.

    ``z`` (variable); ``equal`` (row): the derivative of the least cost with respect to b;
    ``stationarity``, what is left of the gradient of the Lagrangian relative to the gradient of
    the cost; ``found``: False where no point satisfies all constraints, and then z is NaN; ``gap``,
    what the least cost is above its dual bound, relative to it.
    """

    z: np.ndarray
    equal: np.ndarray
    stationarity: float
    found: bool
    gap: float = 0.0


def quadratic_program(
    P: np.ndarray,
    q: np.ndarray,
    A: np.ndarray,
    b: np.ndarray,
    *,
    lower: np.ndarray | None = None,
    upper: np.ndarray | None = None,
    balls: Sequence[tuple[np.ndarray, float]] = (),
    below: tuple[np.ndarray, np.ndarray] | None = None,
    cones: Sequence[tuple[np.ndarray, np.ndarray]] = (),
) -> Program:
    r"""The z that minimises :math:`\tfrac12 z^\top P z + q^\top z` within bounds.

    Subject to :math:`A z = b`, :math:`\text{lower} \le z \le \text{upper}`, :math:`F z \le f`,
    :math:`\|M_i z\| \le \rho_i` for every ball :math:`(M_i, \rho_i)`, and for every cone
    :math:`(M_j, m_j)` the first entry of :math:`M_j z + m_j` is at least the norm of the others.

    Parameters
    ----------
    P
        Positive semidefinite (variable, variable).
    q, A, b
        (variable), (row, variable), (row).
    lower, upper
        Bounds (variable), infinite where there is none.
    balls
        Matrices (row, variable) and radii.
    below
        F (row, variable) and f (row).
    cones
        Matrices (row, variable) and offsets (row).

    Raises
    ------
    numpy.linalg.LinAlgError
        If the solver ends neither with a solution nor with a proof that there is none.
    """
    n = len(q)
    solver = _clarabel()
    rows, limits, kinds = [A], [b], [solver.ZeroConeT(len(b))]
    for matrix, limit in _half_spaces(n, lower, upper, below):
        rows.append(matrix)
        limits.append(limit)
        kinds.append(solver.NonnegativeConeT(len(limit)))
    round_ones = [
        (np.concatenate([np.zeros((1, n)), matrix]), np.append(radius, np.zeros(len(matrix))))
        for matrix, radius in balls
    ]
    for matrix, offset in (*round_ones, *cones):
        rows.append(-matrix)
        limits.append(offset)
        kinds.append(solver.SecondOrderConeT(len(matrix)))
    whole, limit = np.concatenate(rows), np.concatenate(limits)
    parts = csc_matrix(triu(csc_matrix(P))), q, csc_matrix(whole), limit, kinds
    solution = solver.DefaultSolver(*parts, _settings(TOLERANCE)).solve()
    if str(solution.status) not in _SOLVED + _INFEASIBLE:
        solution = solver.DefaultSolver(*parts, _settings(COARSE)).solve()
    status = str(solution.status)
    if status in _INFEASIBLE:
        return Program(np.full(n, np.nan), np.full(len(b), np.nan), np.inf, False)
    if status not in _SOLVED:
        raise np.linalg.LinAlgError(
            f"the bounded problem must be solvable; got {status!r} of Clarabel. Widen the bounds, "
            "or ask for a smaller target."
        )
    z, duals = np.array(solution.x), np.array(solution.z)
    gradient = P @ z + q
    off = np.linalg.norm(gradient + whole.T @ duals)
    size = np.linalg.norm(gradient)
    cost, proved = float(solution.obj_val), float(solution.obj_val_dual)
    gap = abs(cost - proved) / (abs(cost) if cost else 1.0)
    # P z + q + A' y = 0 with y of the equalities: the least cost falls by y per unit of b
    return Program(z, -duals[: len(b)], float(off / (size if size > 0 else 1.0)), True, gap)


def _settings(tolerance: float) -> Any:
    settings = _clarabel().DefaultSettings()
    settings.verbose = False
    settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = tolerance
    settings.max_iter = 200
    return settings


def _half_spaces(
    n: int,
    lower: np.ndarray | None,
    upper: np.ndarray | None,
    below: tuple[np.ndarray, np.ndarray] | None,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Every F and f of F z <= f."""
    found = []
    for bound, sign in ((upper, 1.0), (lower, -1.0)):
        if bound is not None and np.isfinite(bound).any():
            at = np.isfinite(bound)
            found.append((sign * np.eye(n)[at], sign * np.asarray(bound)[at]))
    return [*found, below] if below is not None else found
