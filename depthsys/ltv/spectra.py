"""Spectra of the layers and of their products: rotation, departure from normality, rank, growth."""

from __future__ import annotations

import numpy as np
import scipy.linalg
import xarray as xr

from depthsys.ltv.matrix_free import checked_sizes, transposed
from depthsys.ltv.system import DIMS

LAYER = ("modulus", "angle", "norm", "departure", "symmetric_share")
DEPTH = ("rank_from_start", "rank_to_end", "growth_from_start", "growth_to_end", "modal_growth")


def spectra(system: xr.Dataset, *, update: bool = False) -> xr.Dataset:
    r"""Eigenvalues of every layer, how far it is from normal, and what becomes of their products.

    With :math:`\lambda_i` the eigenvalues of :math:`A_l`, :math:`N` the strictly upper part of its
    Schur form and :math:`\Phi(k, l) = A_{k-1} \cdots A_l`.

    Parameters
    ----------
    system
        A system with one state size at all depths, or any Dataset with ``A`` (layer, state_next,
        state) such as `depthsys.lm.jacobians` gives; may have batch dims.
    update
        Look at :math:`A_l - I`, what a residual block adds, instead of :math:`A_l`. The identity
        makes every block look near symmetric: its update shows what is not. Products over depth
        are of :math:`A_l` in either case.

    Returns
    -------
    xr.Dataset
        Per layer:

        ``modulus``, ``angle`` (layer, mode)
            Of the eigenvalues, by falling modulus; angles in radians, 0 for no rotation, with
            pairs of both signs.
        ``norm`` (layer)
            :math:`\|A_l\|_2`.
        ``departure`` (layer)
            Henrici's departure from normality :math:`\|N\|_F / \|A_l\|_F` [1]_, from 0 (normal:
            eigenvectors at right angles) to 1 (nilpotent).
        ``symmetric_share`` (layer)
            :math:`\|(A_l + A_l^\top)/2\|_F^2 / \|A_l\|_F^2`; the rest is antisymmetric.

        Per depth, L + 1 of them:

        ``rank_from_start``, ``rank_to_end`` (depth)
            Effective rank of :math:`\Phi(k, 0)` and of :math:`\Phi(L, k)`: the exponential of the
            entropy of its singular values over their sum [2]_, from 1 to the state size.
        ``growth_from_start``, ``growth_to_end`` (depth)
            :math:`\|\Phi(k, 0)\|_2` and :math:`\|\Phi(L, k)\|_2`.
        ``modal_growth`` (depth)
            :math:`\prod_{l<k} \max_i |\lambda_i(A_l)|`, what the start would grow by, were all
            layers normal with the same leading eigenvector. Growth beyond it is transient: of
            layers that hand on to each other what each of them is about to let decay.

        attrs ``of``: "layer" or "update".

    Raises
    ------
    ValueError
        If there is no ``A``, it is not finite, or the state size varies.

    Notes
    -----
    Eigenvalues of a matrix far from normal move by much where its entries move by little. The
    departure is taken from the Schur form, not as the difference
    :math:`\|A\|_F^2 - \sum |\lambda_i|^2`, which cancels where a matrix is near normal.

    References
    ----------
    .. [1] Henrici (1962), doi:10.1007/BF01386294.
    .. [2] Roy and Vetterli (2007), "The effective rank", EUSIPCO.
    .. [3] Fernando and Guitchounts (2026), arXiv:2605.14258, for depth of language models.

    Examples
    --------
    >>> from depthsys import ltv
    >>> turn = ltv.constant([[0.0, -0.5], [0.5, 0.0]], [[1.0], [0.0]], [[1.0, 0.0]], horizon=3)
    >>> found = ltv.spectra(turn)
    >>> found["modulus"].values[0], found["symmetric_share"].values[0]
    (array([0.5, 0.5]), np.float64(0.0))
    """
    A = square_maps(system)
    values, norm, departure, symmetric = xr.apply_ufunc(
        lambda a: _of_layers(a - np.eye(a.shape[-1]) if update else a),
        A,
        input_core_dims=[list(DIMS["A"])],
        output_core_dims=[["layer", "mode"], ["layer"], ["layer"], ["layer"]],
    )
    radius = abs(values + 1 if update else values).max("mode")  # of A in either case
    depths = xr.apply_ufunc(
        _of_products,
        A,
        radius,
        input_core_dims=[list(DIMS["A"]), ["layer"]],
        output_core_dims=[["depth"]] * 5,
    )
    layers = (abs(values), xr.apply_ufunc(np.angle, values), norm, departure, symmetric)
    found = dict(zip(LAYER, layers, strict=True)) | dict(zip(DEPTH, depths, strict=True))
    first = int(A["layer"].values[0]) if "layer" in A.coords else 0
    made = xr.Dataset(found).assign_coords(depth=np.arange(first, first + A.sizes["layer"] + 1))
    return made.assign_attrs(of="update" if update else "layer")


def square_maps(system: xr.Dataset) -> xr.DataArray:
    """A of a Dataset, whose layers map a state to one of the same size."""
    if not isinstance(system, xr.Dataset) or "A" not in system:
        raise ValueError(
            f"`system` must be a Dataset with A; got {type(system).__name__}. Make one by "
            "`ltv.system`, or by `lm.jacobians`."
        )
    A = system["A"]
    if not set(DIMS["A"]) <= set(A.dims) or A.sizes["state_next"] != A.sizes["state"]:
        raise ValueError(
            f"`system` must have square A (layer, state_next, state); got {dict(A.sizes)}. Only a "
            "map of a state to itself has eigenvalues."
        )
    if "order" in system and len(np.unique(sizes := checked_sizes(system).values)) > 1:
        raise ValueError(
            f"`system` must have one state size at all depths; got orders {sizes}. Only a map of "
            "a state to itself has eigenvalues."
        )
    A = A.astype(np.float64)
    if not np.isfinite(A).all():
        raise ValueError("`system` must be finite; got NaN or infinity in A. Look where it is.")
    return A


def _of_layers(A: np.ndarray) -> tuple[np.ndarray, ...]:
    """What is known of every layer by itself: eigenvalues, norm, departure, symmetric share."""
    flat = A.reshape(-1, *A.shape[-2:])
    values, departure = np.empty(flat.shape[:2], complex), np.empty(len(flat))
    for number, one in enumerate(flat):
        values[number], departure[number] = _schur(one)
    order = np.argsort(-np.abs(values), axis=-1, kind="stable")
    values = np.take_along_axis(values, order, axis=-1).reshape(A.shape[:-1])
    size = np.linalg.norm(A, axis=(-2, -1))
    symmetric = np.linalg.norm((A + transposed(A)) / 2, axis=(-2, -1))
    whole = np.where(size > 0, size, 1.0)
    return (
        values,
        np.linalg.norm(A, 2, axis=(-2, -1)),
        departure.reshape(A.shape[:-2]) / whole,
        (symmetric / whole) ** 2,
    )


def _schur(A: np.ndarray) -> tuple[np.ndarray, float]:
    """Eigenvalues of a real matrix, and the norm of the strictly upper part of its Schur form.

    The real form takes a third of the time of the complex one. Its blocks [[a, b], [c, a]] with
    b c < 0 stand for a pair a +- i sqrt(-b c); in the complex form such a block is upper
    triangular with |b + c| above its diagonal (their Frobenius norms are equal), and what is above
    the blocks keeps its norm.
    """
    T = scipy.linalg.schur(A, output="real")[0]
    b, c = np.diag(T, 1), np.diag(T, -1)
    imaginary = np.sqrt(np.abs(b)) * np.sqrt(np.abs(c))  # their product may leave the range
    values = np.diag(T).astype(complex)
    values[:-1] += 1j * imaginary
    values[1:] -= 1j * imaginary
    upper = np.triu(T, 1)
    upper[np.arange(len(b)), np.arange(1, len(T))] += c
    return values, float(np.linalg.norm(upper))


def _of_products(A: np.ndarray, radius: np.ndarray) -> tuple[np.ndarray, ...]:
    """What is known of the products from the start, and to the end; and of those of radii."""
    horizon = A.shape[-3]
    start = end = np.broadcast_to(np.eye(A.shape[-1]), (*A.shape[:-3], *A.shape[-2:]))
    from_start, to_end = [_values(start)], [_values(end)]
    for layer in range(horizon):
        start = A[..., layer, :, :] @ start
        end = end @ A[..., horizon - 1 - layer, :, :]
        from_start.append(_values(start))
        to_end.append(_values(end))
    modal = np.concatenate([np.ones((*radius.shape[:-1], 1)), np.cumprod(radius, axis=-1)], axis=-1)
    ranks, growths = zip(*((_rank(s), s[..., 0]) for s in from_start), strict=True)
    ranks_end, growths_end = zip(*((_rank(s), s[..., 0]) for s in to_end[::-1]), strict=True)
    stacked = (np.stack(each, axis=-1) for each in (ranks, ranks_end, growths, growths_end))
    return (*stacked, modal)


def _values(matrix: np.ndarray) -> np.ndarray:
    return np.linalg.svd(matrix, compute_uv=False)


def _rank(s: np.ndarray) -> np.ndarray:
    """The exponential of the entropy of singular values; 0 of a matrix of zeros."""
    total = s.sum(axis=-1, keepdims=True)
    share = s / np.where(total > 0, total, 1.0)
    entropy = -(share * np.log(np.where(share > 0, share, 1.0))).sum(axis=-1)
    return np.where(total[..., 0] > 0, np.exp(entropy), 0.0)
