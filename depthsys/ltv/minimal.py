"""Minimal and balanced realizations of a system over its horizon."""

import numpy as np
import xarray as xr

from depthsys.ltv.basis import RTOL, balanced_basis_of_full_rank
from depthsys.ltv.gramians import System, values_and_resolution
from depthsys.ltv.matrix_free import state_sizes
from depthsys.ltv.project import project

_OWN = (
    "hankel_singular_values",
    "resolution",
    "rank_is_certified",
    "T",
    "T_inverse",
    "is_similarity",
)


def minimal_realization(system: System, *, rtol: float = RTOL) -> xr.Dataset:
    """The system without the states that are not reached or not seen within the horizon.

    A state at depth k counts if some input before k moves it and some output from k on reads it.
    So there is none at depth 0, there are few near both ends, and a mode that is unstable, or is
    reached by a later input only, is left out where it does not count. What is left is balanced.

    Parameters
    ----------
    system
        A system.
    rtol
        Hankel singular values below ``rtol`` times the largest at that depth count as zero, and
        so do those that rounding explains, see `balanced_basis`.

    Returns
    -------
    xr.Dataset
        A system with the same input-output map. ``order`` (depth) holds the ranks;
        ``hankel_singular_values`` (depth, index), output/input; ``resolution``, output/input: what
        rounding explains in the values and changes in the map; ``rank_is_certified`` (depth): True
        where all values that are kept are above it, so that fewer states do not do. attrs
        ``rtol``, ``certified``. MATLAB: `minreal`, python-control: `minimal_realization`, both for
        LTI over an infinite horizon.

    Raises
    ------
    ValueError
        If the system is not valid (see `check`), or ``rtol`` is not between 0 and 1.

    References
    ----------
    .. [1] Gohberg, Kaashoek and Lerer (1992), Minimality and realization of discrete time-varying
       systems, Operator Theory: Advances and Applications 56.

    Examples
    --------
    One of two states is seen, and two inputs come before depth 2:

    >>> from depthsys import ltv
    >>> s = ltv.constant([[2.0, 0.0], [1.0, 0.5]], [[1.0], [1.0]], [[1.0, 0.0]], horizon=3)
    >>> ltv.minimal_realization(s).order.values
    array([0, 1, 1, 1])
    """
    return _reduced(system, rtol)[0]


def balreal(system: System, *, allow_reduction: bool = True, rtol: float = RTOL) -> xr.Dataset:
    r"""The system in balanced coordinates :math:`z_k = T_k x_k`: both Gramians are diagonal.

    :math:`\bar A_l = T_{l+1} A_l T_l^{-1}`, :math:`\bar B_l = T_{l+1} B_l`,
    :math:`\bar C_k = C_k T_k^{-1}`; then :math:`P_k = Q_k = \mathrm{diag}\, \sigma(k)`.

    Parameters
    ----------
    system
        A system.
    allow_reduction
        Coordinates can only be balanced where the system is minimal: a finite-horizon system of
        constant size never is at its ends, since nothing has reached x_0. By default the states
        that do not count are left out there, as in `minimal_realization`; False refuses.
    rtol
        As for `minimal_realization`.

    Returns
    -------
    xr.Dataset
        What `minimal_realization` returns, with ``T`` (depth, state, feature) and ``T_inverse``
        (depth, feature, state), where feature is the old state: ``T T_inverse`` is the identity,
        and so is ``T_inverse T`` where ``is_similarity`` (depth) is True. MATLAB: `balreal`, for
        LTI.

    Raises
    ------
    ValueError
        If states would be left out and ``allow_reduction`` is False, or the system is not valid.

    References
    ----------
    .. [1] Verriest and Kailath (1983), On generalized balanced realizations, IEEE TAC 28(8),
       doi:10.1109/TAC.1983.1103315.

    Examples
    --------
    >>> from depthsys import ltv
    >>> s = ltv.constant([[0.5, 0.1], [0.0, 0.2]], [[1.0], [0.5]], [[1.0, 0.3]], horizon=6)
    >>> balanced = ltv.balreal(s)
    >>> balanced.is_similarity.values
    array([False, False,  True,  True,  True,  True, False])
    >>> P = ltv.reachability_gramian(balanced)[3].values
    >>> bool(abs(P - P.diagonal() * [[1, 0], [0, 1]]).max() < 1e-12)
    True
    """
    balanced, basis = _reduced(system, rtol)
    whole = balanced["order"] == state_sizes(system).assign_coords(depth=balanced["depth"])
    if not allow_reduction and not bool(whole.all()):
        sizes, ranks = state_sizes(system).values, balanced["order"].values
        raise ValueError(
            f"`system` must be minimal at every depth; got ranks {ranks} of {sizes} states. Pass "
            "`allow_reduction=True`, or cut out the depths where it is with `ltv.window`."
        )
    V, W = (basis[name].drop_vars("order") for name in "VW")
    return balanced.assign(
        T=W.transpose(..., "depth", "state", "feature"),
        T_inverse=V.transpose(..., "depth", "feature", "state"),
        is_similarity=whole.drop_vars("order", errors="ignore"),
    )


def _reduced(system: System, rtol: float) -> tuple[xr.Dataset, xr.Dataset]:
    if isinstance(system, xr.Dataset):  # what it says of itself is said anew
        system = system.drop_vars(_OWN, errors="ignore")
    basis = balanced_basis_of_full_rank(system, rtol)
    values, lost = values_and_resolution(system)
    resolution = xr.where(basis["model_resolution"] > lost, basis["model_resolution"], lost)
    values = values.assign_coords(index=np.arange(values.sizes["index"]))
    kept = values.where(values["index"] < basis["order"], np.inf)
    reduced = project(system, basis).assign(
        hankel_singular_values=values.drop_vars("index"),
        resolution=resolution.drop_vars("order", errors="ignore"),
        rank_is_certified=(kept.min("index") > lost).drop_vars("order", errors="ignore"),
    )
    return reduced.assign_attrs(certified=basis.attrs["certified"]), basis
