"""Coupling of layers: whether the singular vectors of one layer diagonalise another."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from depthsys.ltv.matrix_free import transposed
from depthsys.ltv.spectra import square_maps
from depthsys.ltv.system import DIMS, whole_number

FORMS = ("signed", "absolute")


def coupling(
    system: xr.Dataset, *, top: int = 10, form: str = "signed", update: bool = True
) -> xr.Dataset:
    r"""How far the leading singular vectors of one layer are from diagonalising another.

    With :math:`J_l = A_l - I = U_l S_l V_l^\top` and the leading K columns and values,

    .. math:: m(l, l') = \frac{\|U_{l'}^\top J_l V_{l'} - S_l\|_F}{\|S_l\|_F} .

    Parameters
    ----------
    system
        A system with one state size at all depths, or any Dataset with ``A`` (layer, state_next,
        state) such as `depthsys.lm.jacobians` gives; may have batch dims.
    top
        K, how many singular directions.
    form
        "signed", the published formula [1]_; or "absolute", what the authors' code computes
        (``coupling/metrics.py``): the magnitudes of the entries of :math:`U_{l'}^\top J_l V_{l'}`.
        It calls two layers coupled that act along the same directions with opposite signs, and is
        never the larger of the two.
    update
        Of :math:`A_l - I`, what a residual block adds; False for :math:`A_l` itself.

    Returns
    -------
    xr.Dataset
        ``coupling`` (layer, layer_2): m(l, l'), 0 where the K leading directions of layer l' are
        those of layer l, in the same order; 1 where they see nothing of it. It is above 1 where
        they see it with other signs (up to 2, signed) or other parts of it. Not symmetric.
        ``singular_value`` (layer, index): the K largest of :math:`J_l`. attrs ``top``, ``form``,
        ``of``.

    Raises
    ------
    ValueError
        If there is no square ``A``, it is not finite, ``top`` is not in 1..n, there is no such
        form, or a layer is zero.

    Notes
    -----
    Singular vectors of values that are (nearly) equal are not determined: m is not, either, for
    such layers. The paper correlates -m with how well models do, and calls that coupling.

    References
    ----------
    .. [1] Aubry, Meng, Sugolov and Papyan (2025), "Transformer Block Coupling and its Correlation
       with Generalization in LLMs", arXiv:2407.07810; formula and code as at
       sugolov.github.io/coupling and github.com/sugolov/coupling.

    Examples
    --------
    >>> from depthsys import ltv
    >>> A = [[[3.0, 0.0], [0.0, 2.0]], [[2.0, 0.0], [0.0, 3.0]]]  # the same axes in another order
    >>> s = ltv.system(A, [[[1.0], [0.0]]] * 2, [[[1.0, 0.0]]] * 3)
    >>> ltv.coupling(s, top=2)["coupling"].values.round(3)
    array([[0.   , 0.632],
           [0.632, 0.   ]])
    """
    A = square_maps(system)
    check_form(form)
    check_top(top, A.sizes["state"])
    M, s = xr.apply_ufunc(
        lambda a: turned(a - np.eye(a.shape[-1]) if update else a, top),
        A,
        input_core_dims=[list(DIMS["A"])],
        output_core_dims=[["layer", "layer_2", "index_2", "index"], ["layer", "index"]],
    )
    found = xr.Dataset(
        {
            "coupling": (
                (*(d for d in M.dims if d not in ("index", "index_2")),),
                mismatch(M.values, s.values, form),
            ),
            "singular_value": s,
        }
    ).assign_coords(A.coords)
    if "layer" in A.coords:
        found = found.assign_coords(layer_2=A["layer"].values)
    of = "update" if update else "layer"
    return found.assign_attrs(top=top, form=form, of=of)


def mismatch(M: np.ndarray, s: np.ndarray, form: str) -> np.ndarray:
    r""":math:`\|M - \mathrm{diag}(s)\|_F / \|s\|` of matrices (..., layer, layer_2, K, K).

    Parameters
    ----------
    M
        :math:`U_{l'}^\top J_l V_{l'}`.
    s
        (..., layer, K), the values of layer l.
    form
        See `coupling`.
    """
    size = np.linalg.norm(s, axis=-1)
    if not (size > 0).all():
        raise ValueError(
            "`system` must have no layer whose map (update) is zero; got one without singular "
            f"values at layer {int(np.argwhere(size == 0)[0][-1])}. Leave it out."
        )
    S = s[..., :, None, :, None] * np.eye(s.shape[-1])
    left = np.abs(M) if form == "absolute" else M
    return np.linalg.norm(left - S, axis=(-2, -1)) / size[..., None]


def check_form(form: Any) -> None:
    """ValueError unless there is such a form."""
    if not isinstance(form, str) or form not in FORMS:
        got = repr(form) if isinstance(form, str) else type(form).__name__
        raise ValueError(f"`form` must be one of {FORMS}; got {got}. Pick one.")


def check_top(top: Any, size: int) -> None:
    """ValueError unless this is a number of singular directions."""
    whole_number(top, "top", 1, size, "It is how many singular directions are compared.")


def turned(J: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    """Every layer in the singular vectors of every layer, and the leading values of each."""
    U, s, Vt = np.linalg.svd(J)
    U, s, V = U[..., :top], s[..., :top], transposed(Vt[..., :top, :])
    # (..., layer, layer_2, K, K): no pair is made larger than its answer
    M = transposed(U)[..., None, :, :, :] @ (J[..., :, None, :, :] @ V[..., None, :, :, :])
    return M, s
