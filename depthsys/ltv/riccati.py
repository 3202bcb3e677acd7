"""The recursion behind the regulator and, run the other way on the transposes, the estimator."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from depthsys.ltv.matrix_free import transposed
from depthsys.ltv.rounding import lengths

EPS = np.finfo(float).eps
SMALL = 1e-250  # of a square: from here on products of it lose digits
TAME = 1e-3  # part of its own diagonal that the recursion of products must keep
Matrices = Sequence[np.ndarray]


class Law(NamedTuple):
    r"""What the recursion finds: :math:`u_l = -K_l x_l - k_l` and the cost-to-go of every depth.

    The cost-to-go from x is :math:`\|S_k x - g_k\|^2 + \text{rest}_k`; another input costs
    :math:`\|U_l (u + K_l x + k_l)\|^2` more, with U upper triangular: :math:`U^\top U = R + B^\top
    P B`. k, g and rest are empty without targets and drifts.
    """

    K: list[np.ndarray]
    S: list[np.ndarray]
    U: list[np.ndarray]
    k: list[np.ndarray]
    g: list[np.ndarray]
    rest: list[np.ndarray]


def riccati(
    A: Matrices,
    B: Matrices,
    on_state: Matrices,
    on_input: Matrices,
    end: np.ndarray,
    affine: tuple[Matrices, Matrices, np.ndarray] | None,
    refused: Callable[[int], Exception],
) -> Law:
    r"""Square-root Riccati recursion from the last depth.

    A layer costs :math:`\|F_l x + E_l u - f_l\|^2` with F = ``on_state`` and E = ``on_input``, the
    last depth :math:`\|S x - g\|^2` with S = ``end``; ``affine`` are f, c and g (..., size, 1)
    with c what is added to the next state. ``refused`` makes the error of a layer at which some
    input costs nothing.

    Notes
    -----
    One QR of :math:`\begin{bmatrix} E & F & -f \\ S B & S A & S c - g \end{bmatrix}` per layer:
    its first rows say which input is best, the others what is left. No cost is squared and no
    terms cancel, so P = S'S is semidefinite to the last digit.
    """
    n_inputs = B[0].shape[-1]
    S, g = [end], [] if affine is None else [affine[2]]
    rest = [] if affine is None else [np.zeros((*affine[2].shape[:-2], 1, 1))]
    K, U, k = [], [], []
    for layer in reversed(range(len(A))):
        top: list[Any] = [on_input[layer], on_state[layer]]
        bottom: list[Any] = [S[0] @ B[layer], S[0] @ A[layer]]
        if affine is not None:
            top.append(-affine[0][layer])
            bottom.append(S[0] @ affine[1][layer] - g[0])
        sizes = lengths(transposed(top[0])) + lengths(transposed(np.abs(S[0]) @ np.abs(B[layer])))
        found: Any = np.linalg.qr(_stack(top, bottom), mode="r")
        n_states = A[layer].shape[-1]
        rows, columns = slice(n_inputs), slice(n_inputs, n_inputs + n_states)
        upper = found[..., rows, rows]
        if _singular(upper, sizes):
            raise refused(layer)
        gain = np.linalg.solve(upper, found[..., rows, n_inputs:])
        U.insert(0, upper)
        K.insert(0, gain[..., :n_states])
        S.insert(0, found[..., columns, columns])
        if affine is not None:
            k.insert(0, gain[..., n_states:])
            g.insert(0, -found[..., columns, n_inputs + n_states :])
            below = found[..., n_inputs + n_states :, n_inputs + n_states :]
            rest.insert(0, rest[0] + (below**2).sum((-2, -1), keepdims=True))
    return Law(K, S, U, k, g, rest)


def by_products(
    A: Matrices,
    B: Matrices,
    Q: np.ndarray,
    R: np.ndarray,
    least: np.ndarray,
    least_at_end: np.ndarray,
    terminal: np.ndarray,
) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]] | None:
    r"""K, P and U by products and one Cholesky factor per layer, which squares the costs.

    Returned only where that loses nothing, else None. With ``least`` :math:`\lambda` (..., layer),
    :math:`P \ge Q \ge \lambda \,\mathrm{diag}\, Q`, so that in units of its own diagonal P is at
    least :math:`\lambda \min_i q_i / p_i`: known before anything has cancelled.
    """
    if not (least_at_end >= TAME).all():
        return None
    K, P, U = [], [terminal], []
    for layer in reversed(range(len(A))):
        a, b, q = A[layer], B[layer], Q[..., layer, :, :]
        seen = transposed(P[0] @ b)
        on_input = R[..., layer, :, :] + seen @ b
        on_state = q + transposed(a) @ (P[0] @ a)
        kept = least[..., layer, None] * _diagonal(q)
        if not (kept >= TAME * _diagonal(on_state)).all() or not _is_far(on_input, on_state):
            return None
        try:
            lower = np.linalg.cholesky((on_input + transposed(on_input)) / 2)
        except np.linalg.LinAlgError:
            return None
        if not (_diagonal(lower) ** 2 >= TAME * _diagonal(on_input)).all():
            return None
        half = np.linalg.solve(lower, seen @ a)
        left = on_state - transposed(half) @ half
        K.insert(0, np.linalg.solve(transposed(lower), half))
        P.insert(0, (left + transposed(left)) / 2)
        U.insert(0, transposed(lower))
    return K, P, U


def _is_far(*matrices: np.ndarray) -> bool:
    """Whether the squares on the diagonals are far from overflow and, but for zero, underflow."""
    sizes = [_diagonal(matrix) for matrix in matrices]
    return all((((x > SMALL) & (x < 1 / SMALL)) | (x == 0)).all() for x in sizes)


def _diagonal(matrix: np.ndarray) -> np.ndarray:
    return np.diagonal(matrix, axis1=-2, axis2=-1)


def lists(stack: np.ndarray) -> list[np.ndarray]:
    """The matrices of a stack (..., layer, rows, columns)."""
    return [stack[..., k, :, :] for k in range(stack.shape[-3])]


def stacked_up(matrices: Sequence[np.ndarray]) -> np.ndarray:
    """A list of matrices as (..., layer, rows, columns)."""
    return np.stack(np.broadcast_arrays(*matrices), axis=-3)


def _stack(top: list[np.ndarray], bottom: list[np.ndarray]) -> np.ndarray:
    """Blocks as one matrix in every member of a batch, the largest rows first.

    Householder QR keeps the small rows, here those of cheap inputs, only below large ones.
    """
    batch = np.broadcast_shapes(*(block.shape[:-2] for block in [*top, *bottom]))
    rows = [
        np.concatenate([np.broadcast_to(b, (*batch, *b.shape[-2:])) for b in row], axis=-1)
        for row in (top, bottom)
    ]
    whole = np.concatenate(rows, axis=-2)
    falling = np.argsort(-np.abs(whole).max(-1), axis=-1, kind="stable")
    return np.take_along_axis(whole, falling[..., None], axis=-2)


def _singular(upper: np.ndarray, sizes: np.ndarray) -> bool:
    """Whether some input costs nothing beside the others, to rounding and in its own unit.

    ``sizes`` (..., n) are those of the terms that the columns are sums of: what is below their
    rounding is zero.
    """
    length = lengths(transposed(upper))
    pivots = np.abs(np.diagonal(upper, axis1=-2, axis2=-1))
    allowed = 16 * EPS * (upper.shape[-1] + 4)
    nothing = (length <= allowed * sizes) | (pivots <= allowed * length)
    return bool(nothing.any())


def squares(factors: Matrices) -> list[np.ndarray]:
    """S'S of every factor, exactly symmetric."""
    products = [transposed(s) @ s for s in factors]
    return [(p + transposed(p)) / 2 for p in products]
