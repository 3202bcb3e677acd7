"""The one Petrov-Galerkin projection, for every basis."""

import numpy as np
import xarray as xr

from depthsys.ltv.gramians import System
from depthsys.ltv.labels import aligned
from depthsys.ltv.matrices import DIMS, in_memory
from depthsys.ltv.matrix_free import (
    MatrixFree,
    in_parts,
    labels,
    n_depths,
    over_depth,
    state_size,
    transposed,
)
from depthsys.ltv.rounding import lengths
from depthsys.ltv.system import STAMP, batch_sizes, check

BIORTHOGONAL = 1e-7
BASIS_DIMS = ("depth", "feature", "state")


def project(system: System, basis: xr.Dataset) -> xr.Dataset:
    r"""The Petrov-Galerkin projection of a system onto a basis, for every method.

    :math:`\hat A_l = W_{l+1}^\top A_l V_l`, :math:`\hat B_l = W_{l+1}^\top B_l`,
    :math:`\hat C_k = C_k V_k`, :math:`\hat D = D`.

    Parameters
    ----------
    system
        The full system.
    basis
        ``V``, ``W`` (depth, feature, state) with ``W_k' V_k = I`` on the columns in use; feature
        is the state of the system. May have batch dims that the system lacks, and vice versa.

    Returns
    -------
    xr.Dataset
        The reduced system, with ``V`` and ``W`` (composed with those of the system, if it has
        them) and ``x_ref`` in the new coordinates. Variables with a dim state are dropped
        otherwise, all others kept.

    Raises
    ------
    ValueError
        If the basis does not fit the system or is not biorthogonal.

    Notes
    -----
    The initial state is zero at depth 0, where most bases have no column at all.
    """
    _check_basis(system, basis)
    basis = _beside(system, basis)
    V, W = (
        basis[name]
        .rename(feature="state", state="column")
        .transpose(..., "depth", "state", "column")
        for name in "VW"
    )

    def core(A, B, C, V, W):
        L = len(A)
        # operators have the states that exist at their depth, bases are padded
        V_here = [V[..., k, : c.shape[-1], :] for k, c in enumerate(C)]
        W_next = [transposed(W[..., k + 1, : C[k + 1].shape[-1], :]) for k in range(L)]
        small = (
            [W_next[k] @ (A[k] @ V_here[k]) for k in range(L)],
            [W_next[k] @ B[k] for k in range(L)],
            [C[k] @ V_here[k] for k in range(L + 1)],
        )
        return tuple(np.stack(np.broadcast_arrays(*parts), axis=-3) for parts in small)

    A, B, C = over_depth(
        core,
        system,
        "ABC",
        [["layer", "row", "reduced"], ["layer", "row", "input"], ["depth", "output", "reduced"]],
        V,
        W,
        extra_dims=[["depth", "state", "column"]] * 2,
        exclude=["column"],
    )
    A, B = (x.rename(row="state_next") for x in (A, B))
    A, C = (x.rename(reduced="state") for x in (A, C))
    return _reduced(system, basis, {"A": A, "B": B, "C": C})


def _reduced(system: System, basis: xr.Dataset, small: dict[str, xr.DataArray]) -> xr.Dataset:
    """The projected matrices as a system, with what the full one says about itself."""
    about = {key: basis.attrs[key] for key in ("method", "order", "rtol") if key in basis.attrs}
    V, W = basis["V"], basis["W"]
    kept: dict[str, xr.DataArray] = {}
    if isinstance(system, MatrixFree):
        small["D"] = xr.DataArray(np.stack(system.D), dims=list(DIMS["D"]))
        attrs = STAMP
    else:
        small["D"] = system["D"]
        attrs = {**STAMP, **system.attrs}
        if "x_ref" in system:
            kept["x_ref"] = xr.dot(
                W.rename(feature="full"), system["x_ref"].rename(state="full"), dim="full"
            )
        for name in ("V", "W"):
            if name in system:
                own = system[name].rename(state="inner")
                part = (V if name == "V" else W).rename(feature="inner")
                kept[name] = xr.dot(own, part, dim="inner")
        for name, variable in system.data_vars.items():
            if not {"state", "state_next"} & set(variable.dims) and str(name) not in DIMS:
                kept[str(name)] = variable
    if "V" not in kept:
        kept |= {"V": V, "W": W}
    last = {**DIMS, "x_ref": ("depth", "state"), "V": BASIS_DIMS, "W": BASIS_DIMS}
    data = {
        name: array.transpose(..., *last[name]) if name in last else array
        for name, array in {**small, **kept}.items()
    }
    ds = xr.Dataset({k: v.drop_vars("order", errors="ignore") for k, v in data.items()})
    depth = labels(system, "depth")
    order = (V != 0).any("feature").sum("state") if "order" not in basis else basis["order"]
    return check(
        ds.assign_coords(layer=depth[:-1], depth=depth, order=order).assign_attrs(
            {**attrs, **about}
        )
    )


def _check_basis(system: System, basis: xr.Dataset) -> None:
    if not isinstance(basis, xr.Dataset) or not {"V", "W"} <= set(basis.data_vars):
        raise ValueError(
            f"`basis` must be a Dataset with V and W; got {type(basis).__name__}. Make one with "
            "`ltv.balanced_basis(system, order=4)`."
        )
    wanted = {"depth": n_depths(system), "feature": state_size(system)}
    for name in ("V", "W"):
        in_memory(basis[name], f"basis.{name}")
        got = dict(basis[name].sizes)
        if {d: got.get(d) for d in wanted} != wanted or "state" not in got:
            raise ValueError(
                f"`basis` must have {name} with dims {wanted} and state; got {got}. Make it from "
                "the same system."
            )
        if not np.isfinite(basis[name].values).all():
            raise ValueError(f"`basis` must be finite; got nan or inf in {name}. Make it again.")
    V, W = (basis[name].transpose(..., *BASIS_DIMS) for name in "VW")
    off, allowed = xr.apply_ufunc(
        lambda *pair: in_parts(_deviation, pair, [BASIS_DIMS] * 2, [[], []]),
        V,
        W,
        input_core_dims=[list(BASIS_DIMS)] * 2,
        output_core_dims=[[], []],
    )
    if bool((off > allowed).any()):
        raise ValueError(
            f"`basis` must satisfy W_k' V_k = I; got a deviation of {float(off.max()):.1e} where "
            "rounding allows less. Multiply W by the inverse transpose of V' W."
        )


def _beside(system: System, basis: xr.Dataset) -> xr.Dataset:
    """The basis with its features in the order of the states of the system."""
    depth = labels(system, "depth")
    if "depth" in basis.coords and not np.array_equal(basis["depth"], depth):
        raise ValueError(
            f"`basis` must have the depths of the system, {depth}; got {basis['depth'].values}. "
            "Make it from the same system."
        )
    batch = {d for name in "VW" for d in basis.variables[name].dims} - {*BASIS_DIMS}
    shared = batch & set(batch_sizes(system)) if batch and isinstance(system, xr.Dataset) else ()
    if "feature" not in basis.coords and not shared:
        return basis
    found = {n: aligned(basis[n], f"basis.{n}", system, state="", feature="state") for n in "VW"}
    rest = basis.drop_vars(["V", "W", "feature", "depth", "state"], errors="ignore")
    return rest.assign(found)


def _deviation(V: np.ndarray, W: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Largest |W_k' V_k - I|, and what rounding in that product explains: long columns cancel."""
    used = (V != 0).any(-2)
    identity = np.eye(V.shape[-1]) * (used[..., None, :] & used[..., None])
    off = np.abs(transposed(W) @ V - identity).max((-3, -2, -1))
    longest = [lengths(transposed(x)).max(-1) for x in (V, W)]  # squares might overflow
    length = (longest[0] * longest[1]).max(-1)
    return off, BIORTHOGONAL + 1000 * np.finfo(float).eps * length
