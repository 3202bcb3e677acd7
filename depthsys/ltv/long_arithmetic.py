"""The input-output map and its factors in as many digits as they need, for small systems.

A mode that is reached and not seen, or seen and not reached, may grow without bound while the map
stays small: double precision then loses the map in the rounding of the mode. Here states are
integers times a power of two, wide enough that the result is right to double precision. The
entries of A, B and C are taken as they are stored, since every float is such an integer.
"""

from dataclasses import dataclass

import numpy as np

from depthsys.ltv.rounding import EPS, TINY, frobenius, lengths, transposed

LIMIT = 3_000_000  # products of long numbers, about half a second
WIDEST = 8192  # bits behind the binary point
GUARD = 12  # bits beyond double precision


@dataclass(frozen=True)
class LongMap:
    """A map with the factors that make it, rounded once, for one system without batch dims.

    ``G`` (depth, output, layer, input) has at most the error ``error`` (Frobenius); ``reached[k]``
    (state, column) are the responses at depth k to a unit input at every earlier layer, oldest
    first, and ``seen[k]`` (state, column) the transposed rows by which the outputs from depth k on
    read the state.
    """

    G: np.ndarray
    error: float
    reached: list[np.ndarray]
    seen: list[np.ndarray]


def affordable(L: int, n: int, m: int, p: int, members: int, *, both: bool = False) -> bool:
    """Whether that many systems of this size are few and small enough for long numbers."""
    columns = (L * m, (L + 1) * p)
    return members * L * n * n * (sum(columns) if both else min(columns)) // 2 <= LIMIT


def long_map(A, B, C, R, S, *, both: bool = False) -> LongMap | None:
    """The strictly causal map C Phi B of one system; None if that takes too many digits.

    ``R`` and ``S`` are its factors in double precision: they say how many digits are needed.
    ``both`` asks for ``reached`` and ``seen``; else only the side of fewer columns is run.
    """
    L, m, p = len(A), B[0].shape[-1], C[0].shape[-2]
    forwards = L * m <= (L + 1) * p
    bits = 128
    while bits <= WIDEST:
        first = _forwards(A, B, C, S, bits) if forwards else _backwards(A, B, C, R, bits)
        size = frobenius(first.G.reshape(-1, L * m))
        missing = first.error / max(EPS * size, TINY) if size > 0 else np.inf
        if missing <= 2.0**-GUARD or (size == 0 and bits >= 1024):
            break
        more = int(np.log2(missing)) + 2 * GUARD if np.isfinite(missing) else bits
        bits += max(more, 64)
    else:
        return None
    parts = [first]
    if both:
        parts.append(_backwards(A, B, C, R, bits) if forwards else _forwards(A, B, C, S, bits))
    return LongMap(
        first.G,
        float(first.error + max(EPS * size, TINY * first.G.size)),
        next((part.reached for part in parts if part.reached), []),
        next((part.seen for part in parts if part.seen), []),
    )


def _forwards(A, B, C, S, bits: int) -> LongMap:
    """Inputs propagated to outputs."""
    L, m, p = len(A), B[0].shape[-1], C[0].shape[-2]
    reached, readouts = _propagated([None, *A[1:]], B, C, bits)
    G = np.zeros((L + 1, p, L, m))
    for k in range(1, L + 1):
        G[k, :, :k, :] = readouts[k].reshape(p, k, m)
    lost = [lengths(s).sum() * np.sqrt(k * m) for k, s in enumerate(S)]
    return LongMap(G, 2.0 ** (1 - bits) * float(sum(lost)), reached, [])


def _backwards(A, B, C, R, bits: int) -> LongMap:
    """Outputs propagated to inputs: the same recursion on the transposes, from the end."""
    L, m, p = len(A), B[0].shape[-1], C[0].shape[-2]
    columns, readouts = _propagated(
        [None, *(transposed(a) for a in A[:0:-1]), transposed(A[0])],
        [transposed(c) for c in C[::-1]],
        [None, *(transposed(b) for b in B[::-1]), None],
        bits,
    )
    G, seen = np.zeros((L + 1, p, L, m)), []
    for layer in range(L):
        # columns of depth L first
        block = readouts[L - layer].reshape(m, L - layer, p)[:, ::-1]
        G[layer + 1 :, :, layer, :] = np.moveaxis(block, 0, -1)
    for k in range(L + 1):
        part = columns[L + 1 - k]
        seen.append(part.reshape(len(part), L + 1 - k, p)[:, ::-1].reshape(len(part), -1))
    lost = [lengths(r).sum() * np.sqrt((L + 1 - k) * p) for k, r in enumerate(R)]
    return LongMap(G, 2.0 ** (1 - bits) * float(sum(lost)), [], seen)


def _propagated(A, B, C, bits: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """X_{t+1} = [A_t X_t, B_t] from no columns, and C_t X_t, rounded to doubles at the end.

    A_0 is not used; a C_t that is None reads nothing.
    """
    X = np.zeros((len(B[0]), 0), dtype=object)
    states, readouts = [np.zeros(X.shape)], [np.zeros((0, 0))]
    for t, b in enumerate(B):
        new = _shifted(*_integers(b), bits)
        if t:
            whole, power = _integers(A[t])
            new = np.hstack([_shifted(whole @ X, power, 0), new])
        X = new
        states.append(_doubles(X, -bits))
        c = C[t + 1] if t + 1 < len(C) else None
        if c is None:
            readouts.append(np.zeros((0, 0)))
        else:
            whole, power = _integers(c)
            readouts.append(_doubles(whole @ X, power - bits))
    return states, readouts


def _integers(matrix: np.ndarray) -> tuple[np.ndarray, int]:
    """Python integers and the power of two by which they are the matrix, exactly."""
    mantissa, exponent = np.frexp(matrix)
    exponent = np.where(matrix == 0, 0, exponent - 53)
    lowest = int(exponent[matrix != 0].min()) if matrix.any() else 0
    shift = np.where(matrix == 0, 0, exponent - lowest)
    return (mantissa * 2.0**53).astype(np.int64).astype(object) << shift.astype(object), lowest


def _shifted(whole: np.ndarray, power: int, bits: int) -> np.ndarray:
    """The integers times 2**(power + bits), rounded down."""
    by = power + bits
    return whole << by if by >= 0 else whole >> -by


def _doubles(whole: np.ndarray, power: int) -> np.ndarray:
    """The integers times 2**power as the nearest doubles."""
    if power >= 0:
        return (whole << power).astype(float)
    one = 1 << -power  # the quotient of two Python integers is the nearest double
    return np.frompyfunc(lambda v: v / one, 1, 1)(whole).astype(float)
