"""Linear time-varying systems as xarray Datasets: built, and checked."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from depthsys._version import __version__
from depthsys.ltv.foreign import discrete_system
from depthsys.ltv.matrices import (
    DIMS,
    OPTIONAL_DIMS,
    OWN_DIMS,
    compact,
    in_memory,
    is_ragged,
    one_matrix,
    padded_lists,
    refuse_complex,
    stacked_arrays,
    unmasked,
)

SCHEMA_VERSION = 2
STAMP = {"depthsys_version": __version__, "schema_version": SCHEMA_VERSION}

# dims of results, and of what is made on the way to them
_RESULT_DIMS = {
    "order", "index", "basis", "column", "column_out", "row", "reduced", "full", "inner", "sample",
    "state_2", "input_2", "output_2", "pick", "mode",
}  # fmt: skip
LAST_D = "`D` must be zero at the last depth; got non-zero values. There is no input at depth L."


def system(
    A: ArrayLike | Sequence[ArrayLike],
    B: ArrayLike | Sequence[ArrayLike],
    C: ArrayLike | Sequence[ArrayLike],
    D: ArrayLike | Sequence[ArrayLike] | None = None,
    *,
    batch_dims: Sequence[str] = (),
    attrs: Mapping[str, Any] | None = None,
) -> xr.Dataset:
    r"""A system ``x_{l+1} = A_l x_l + B_l u_l``, ``y_k = C_k x_k + D_k u_k`` as a Dataset.

    Parameters
    ----------
    A
        Arrays (layer, state_next, state), or a list of L matrices whose sizes may vary with
        depth as long as they chain.
    B
        (layer, state_next, input), or a list of L matrices.
    C
        (depth, output, state), or a list of L + 1 matrices: the last one reads x_L.
    D
        (depth, output, input), or a list of L + 1 matrices; zero by default. The last
        one must be zero: there is no input at depth L.
    batch_dims
        Names of leading dims that all four arrays share, for example ``("prompt",)``.
    attrs
        Provenance to store beside the library and schema version.

    Returns
    -------
    xr.Dataset
        ``A``, ``B``, ``C``, ``D`` in float64; the coordinate ``order`` (depth) holds the size
        of the state. Lists of varying sizes are padded with zeros to the largest order.

    Raises
    ------
    ValueError
        If the sizes do not chain or a value is not finite; the message says where.

    Examples
    --------
    Two layers, one input, read at the end: the input of layer 0 is halved by layer 1.

    >>> from depthsys import ltv
    >>> s = ltv.system(A=[[[0.5]], [[0.5]]], B=[[[1.0]], [[1.0]]], C=[[[0.0]], [[0.0]], [[1.0]]])
    >>> ltv.gains(s).values.ravel()
    array([0.5, 1. ])
    """
    _check_labels({"A": A, "B": B, "C": C, "D": D})
    if any(is_ragged(x) for x in (A, B, C, D)):
        if batch_dims:
            raise ValueError(
                f"`batch_dims` must be empty for lists of matrices; got {tuple(batch_dims)}. "
                "Build one system each and join them with `ltv.stack(systems, dim='prompt')`."
            )
        arrays, order = padded_lists(A, B, C, D)
    else:
        arrays, order = stacked_arrays(A, B, C, D)
    taken = OWN_DIMS | _RESULT_DIMS
    if (
        isinstance(batch_dims, str)
        or taken & set(batch_dims)
        or len(set(batch_dims)) < len(batch_dims)
    ):
        raise ValueError(
            f"`batch_dims` must be a list of different names other than {sorted(taken)}; got "
            f"{batch_dims!r}. For example ['prompt']."
        )
    if arrays[0].ndim - 3 != len(batch_dims):
        raise ValueError(
            f"`batch_dims` must name every leading dim of the arrays; got {tuple(batch_dims)} for "
            f"shape {arrays[0].shape}. Pass for example `batch_dims=['prompt']`."
        )
    data = {
        name: ((*batch_dims, *DIMS[name]), value)
        for name, value in zip("ABCD", arrays, strict=True)
    }
    ds = xr.Dataset(
        data,
        coords={
            "layer": np.arange(arrays[0].shape[-3]),
            "depth": np.arange(arrays[2].shape[-3]),
            "order": ("depth", order),
        },
        attrs={**STAMP, **(attrs or {})},
    )
    return check(ds)


def constant(
    A: Any,
    B: ArrayLike | None = None,
    C: ArrayLike | None = None,
    D: ArrayLike | None = None,
    *,
    horizon: int,
) -> xr.Dataset:
    """A time-invariant system over a finite horizon, as a system with the same maps everywhere.

    Parameters
    ----------
    A
        (state_next, state), or a discrete-time ``StateSpace`` of python-control or scipy, or a
        discrete-time ``LTIModel`` of pyMOR: then B, C and D are its own, and so are the names of
        its states, inputs and outputs.
    B, C, D
        (state_next, input), (output, state), (output, input); D is zero by default, and is
        always zero at the last depth, where there is no input. A sampling time is not kept.
    horizon
        Number of layers L, at least 1.

    Returns
    -------
    xr.Dataset
        A system, with ``state_name`` (state), ``input_name`` (input) and ``output_name`` (output)
        where they have names.

    Raises
    ------
    TypeError
        If B or C is missing, or given beside a ``StateSpace``; or if ``A`` is another object, such
        as a transfer function.
    ValueError
        If the horizon is not a positive whole number, or the ``StateSpace`` is continuous.

    Notes
    -----
    One matrix of each is stored: ``A``, ``B`` and ``C`` repeat it as views that cannot be written
    to. To change a single layer, copy first: ``system.copy(deep=True)``.

    Examples
    --------
    >>> from depthsys import ltv
    >>> s = ltv.constant([[0.5]], [[1.0]], [[1.0]], horizon=3)
    >>> ltv.gains(s).values.ravel()
    array([0.25, 0.5 , 1.  ])
    """
    whole_number(horizon, "horizon")
    names: dict[str, list[str]] = {}
    if (given := discrete_system(A, "A")) is not None:
        if not (B is None and C is None and D is None):
            raise TypeError("`B`, `C`, `D` must be left out beside a StateSpace; got some of them.")
        A, B, C, D, names = given.A, given.B, given.C, given.D, dict(given.names)
    if B is None or C is None:
        raise TypeError("`B` and `C` must be given beside a matrix A; got None. Pass both.")
    _check_labels({"A": A, "B": B, "C": C, "D": D})
    A, B, C = (one_matrix(x, name) for x, name in ((A, "A"), (B, "B"), (C, "C")))
    D = np.zeros((len(C), B.shape[1])) if D is None else one_matrix(D, "D")
    n, m, p = len(A), B.shape[1], len(C)
    wanted = {"A": (n, n), "B": (n, m), "C": (p, n), "D": (p, m)}
    for (name, want), value in zip(wanted.items(), (A, B, C, D), strict=True):
        if value.shape != want:
            raise ValueError(
                f"`{name}` must have shape {want} = {DIMS[name][1:]}; got {value.shape}. Rows of A "
                "and B are states at the next step, columns of A and C states at this one."
            )
    feedthrough = np.broadcast_to(np.zeros_like(D), (horizon + 1, p, m))
    if D.any():
        feedthrough = feedthrough.copy()
        feedthrough[:-1] = D
    views = {
        "A": np.broadcast_to(A, (horizon, n, n)),
        "B": np.broadcast_to(B, (horizon, n, m)),
        "C": np.broadcast_to(C, (horizon + 1, p, n)),
        "D": feedthrough,
    }
    coords: dict[str, Any] = {
        "layer": np.arange(horizon),
        "depth": np.arange(horizon + 1),
        "order": ("depth", np.full(horizon + 1, n)),
    }
    coords |= {f"{dim}_name": (dim, np.array(labels)) for dim, labels in names.items()}
    return check(xr.Dataset({k: (DIMS[k], v) for k, v in views.items()}, coords, STAMP))


def _check_labels(given: Mapping[str, Any]) -> None:
    """ValueError where two labelled arrays call the same states, inputs or outputs differently."""
    known: dict[str, tuple[str, np.ndarray]] = {}
    for name, value in given.items():
        for dim in set(DIMS[name]) & set(getattr(value, "coords", ())) - {"layer", "depth"}:
            kind, labels = str(dim).removesuffix("_next"), value[dim].values
            first, others = known.setdefault(kind, (name, labels))
            if not np.array_equal(labels, others):
                raise ValueError(
                    f"`{name}` must have the labels of `{first}` along {kind!r}, {others}; got "
                    f"{labels}. Bring both into one order: `.sel({dim}=[...])`."
                )


def check(system: xr.Dataset) -> xr.Dataset:
    """Validate a system and return it unchanged.

    Raises
    ------
    TypeError
        If it is not an xarray Dataset.
    ValueError
        If a variable or dim is missing, empty or repeated, sizes do not chain, layers or depths
        are not in order, the labels of ``state`` and ``state_next`` differ, a value is not finite,
        or the schema is newer than this library.
    """
    if not isinstance(system, xr.Dataset):
        raise TypeError(
            f"`system` must be an xarray Dataset; got {type(system).__name__}. "
            "Build one with `depthsys.ltv.system(A, B, C)`."
        )
    _check_schema(system)
    for name, dims in DIMS.items():
        if name not in system:
            raise ValueError(
                f"`system` must hold the variable {name!r}; got {sorted(map(str, system))}. "
                "Build it with `depthsys.ltv.system(A, B, C)`."
            )
        _check_variable(system, name, dims)
    for name, dims in OPTIONAL_DIMS.items():
        if name in system:
            _check_variable(system, name, dims)
    _check_batch(system)
    sizes = system.sizes
    if sizes["layer"] < 1 or sizes["depth"] != sizes["layer"] + 1:
        raise ValueError(
            f"`system` must have L >= 1 layers and L + 1 depths; got layer={sizes['layer']}, "
            f"depth={sizes['depth']}. C and D have one matrix per depth 0..L; `ltv.window` cuts "
            "them together."
        )
    for dim in ("layer", "depth"):
        _check_counts(system, dim)
    first = [counts(system, dim)[0] for dim in ("layer", "depth")]
    if first[0] != first[1]:
        raise ValueError(
            f"`depth` must start where `layer` starts; got {first[1]} and {first[0]}. Layer l maps "
            "the state at depth l to depth l + 1."
        )
    if sizes["state_next"] != sizes["state"]:
        raise ValueError(
            f"`system` must store square A; got state_next={sizes['state_next']}, "
            f"state={sizes['state']}. Pad varying sizes with zeros (`ltv.system` does)."
        )
    _check_state_labels(system)
    if "order" in system.variables:
        _check_order(system)
    if np.any(compact(system.variables["D"].isel(depth=-1).values)):
        raise ValueError(LAST_D)
    return system


def counts(system: xr.Dataset, dim: str) -> np.ndarray:
    """The labels of the layers or depths; positions where there are none."""
    known = system.variables.get(dim)
    return np.arange(system.sizes[dim]) if known is None else known.values


def batch_sizes(system: xr.Dataset) -> dict[str, int]:
    """The batch dims of a system with their sizes."""
    own = {d for dims in DIMS.values() for d in dims}
    parts = (system.variables[v] for v in DIMS)
    return {str(d): n for part in parts for d, n in part.sizes.items() if d not in own}


def _check_batch(system: xr.Dataset) -> None:
    """A batch dim must not be called what a result calls its own dims."""
    if taken := sorted(_RESULT_DIMS & batch_sizes(system).keys()):
        raise ValueError(
            f"`system` must name its batch dims otherwise than results do; got {taken}. Rename "
            f"them: `system.rename({{{taken[0]!r}: 'case'}})`."
        )


def _check_state_labels(system: xr.Dataset) -> None:
    """A state has one label, whether an A maps from it or to it."""
    if "state" not in system.coords or "state_next" not in system.coords:
        return
    here, after = (system[dim].values for dim in ("state", "state_next"))
    if not np.array_equal(here, after):
        raise ValueError(
            f"`state_next` must have the labels of `state`, {here}; got {after}. Put them in the "
            "same order, `system.sel(state_next=system.state.values)`."
        )


def _check_schema(system: xr.Dataset) -> None:
    schema = system.attrs.get("schema_version", SCHEMA_VERSION)
    if not isinstance(schema, (int, np.integer)) or schema < 1:
        raise ValueError(
            f"`schema_version` must be a whole number >= 1; got {schema!r}. This file was not "
            "written by depthsys: build the system with `depthsys.ltv.system(A, B, C)`."
        )
    if schema > SCHEMA_VERSION:
        raise ValueError(
            f"`system` must have schema_version <= {SCHEMA_VERSION}; got {schema}. "
            "It was written by a newer depthsys: upgrade this one."
        )


def _check_variable(system: xr.Dataset, name: str, dims: tuple[str, ...]) -> None:
    variable = system.variables[name]
    if variable.dims[-len(dims) :] != dims:
        raise ValueError(
            f"`{name}` must end in dims {dims}; got {variable.dims}. Use `.transpose(..., "
            f"{', '.join(map(repr, dims))})` after renaming; to select one input or output keep "
            "its dim, `.isel(output=[0])`."
        )
    if len(set(variable.dims)) < len(variable.dims):
        raise ValueError(
            f"`{name}` must name each dim once; got {variable.dims}. Rename the batch dim."
        )
    if 0 in variable.shape:
        raise ValueError(f"`{name}` must not be empty; got sizes {dict(variable.sizes)}. Add some.")
    in_memory(variable, name)
    values = compact(variable.values)
    refuse_complex(values, name)
    # one sum is far cheaper than a mask of the array, and shows any nan or inf
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(values.sum(dtype=np.float64)):
            return
    finite = np.isfinite(values)
    if name == "v":  # where a depth has no direction, all of it is NaN
        finite |= np.isnan(values).all(axis=variable.get_axis_num("feature"), keepdims=True)
    if not finite.all():
        where = np.argwhere(~finite)[0]
        place = ", ".join(f"{d}={i}" for d, i in zip(variable.dims, where, strict=True))
        raise ValueError(
            f"`{name}` must be finite; got {values[tuple(where)]} at {place}. "
            "Find the layer that overflowed before building the system."
        )


def _check_order(system: xr.Dataset) -> None:
    """States beyond the order of a padded system do not exist: nothing enters or leaves them."""
    n = system.sizes["state"]
    order = system.variables["order"]  # variables know no labels, and need none here
    values = order.values
    if (values == n).all():
        return
    if not ((values >= 0) & (values <= n)).all():
        raise ValueError(
            f"`order` must be in 0..{n}, the size of the state; got {values}. Drop the "
            "coordinate, or build the system again."
        )
    missing = xr.Variable(["state"], np.arange(n)) >= order
    before = _at_layers(missing, slice(-1))
    after = _at_layers(missing, slice(1, None), state="state_next")
    for name, beyond in (("A", before | after), ("B", after), ("C", missing)):
        if ((system.variables[name] != 0) & beyond).values.any():
            raise ValueError(
                f"`{name}` must be zero in states beyond `order`; got other values. Drop the "
                "coordinate `order` if these states exist."
            )


def _at_layers(value: xr.Variable, part: slice, **names: str) -> xr.Variable:
    names = {"depth": "layer", **names}
    return xr.Variable([names.get(str(d), d) for d in value.dims], value.isel(depth=part).values)


def _check_counts(system: xr.Dataset, dim: str) -> None:
    """The labels of layers and depths count up by one: a shuffled system is not this system."""
    labels = counts(system, dim)
    if not np.issubdtype(labels.dtype, np.integer) or (np.diff(labels) != 1).any():
        raise ValueError(
            f"`{dim}` must count up by one; got {labels}. Use `.sortby({dim!r})`, and `ltv.window` "
            "to cut a piece out of the depth."
        )


def as_named(value: Any, name: str, *options: Mapping[str, int | None]) -> xr.DataArray:
    """An argument with named dims: a DataArray by its names, a plain array by its position.

    ``options`` are the sizes it may have, None for any; further dims of a DataArray are batch
    dims. ValueError or TypeError for anything else, for complex and for non-finite values.
    """
    if isinstance(value, xr.DataArray):
        fitting = [dims for dims in options if set(dims) <= set(value.dims)]
        fitting.sort(key=len, reverse=True)
        got: Any = dict(value.sizes)
    else:
        array = plain(value, name)
        fitting = [dims for dims in options if len(dims) == array.ndim]
        got = f"shape {array.shape}"
        if fitting:
            value = xr.DataArray(array, dims=list(fitting[0]))
    wanted = fitting[0] if fitting else options[0]
    if not fitting or any(n not in (None, value.sizes[d]) for d, n in wanted.items()):
        sizes = " or ".join(
            str({d: "any" if n is None else n for d, n in dims.items()}) for dims in options
        )
        raise ValueError(
            f"`{name}` must have dims {sizes}; got {got}. Pass an array of that shape, or a "
            "DataArray with these dims (and batch dims, if you like)."
        )
    in_memory(value, name)
    refuse_complex(value.values, name)
    if not np.isfinite(compact(value.values)).all():
        raise ValueError(f"`{name}` must be finite; got nan or inf. Look at where it comes from.")
    return value.transpose(..., *wanted).astype(np.float64)


def plain(value: Any, name: str) -> np.ndarray:
    """What has no named dims, as an array; ValueError where that would compute or unmask it."""
    unmasked(value, name)
    in_memory(value, name)
    return np.asarray(value)


def is_whole(value: Any) -> TypeGuard[int]:
    """Whether it is a whole number: True and 2.0 are none."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def whole_number(
    value: Any, name: str, least: int = 1, most: int | None = None, cure: str = "Pass a count."
) -> int:
    """A whole number in a range, or ValueError."""
    if not is_whole(value) or value < least or (most is not None and value > most):
        among = f">= {least}" if most is None else f"in {least}..{most}"
        raise ValueError(
            f"`{name}` must be a whole number {among}; got {reprlib.repr(value)}. {cure}"
        )
    return int(value)
