"""A model, prompts and a concept -> a low-order linear time-varying system."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace

import numpy as np
import xarray as xr

from depthsys import ltv
from depthsys.lm.accuracy import where_defined
from depthsys.lm.channels import Channels
from depthsys.lm.directions import as_concept
from depthsys.lm.kinds import short
from depthsys.lm.linearize import Linearisation
from depthsys.lm.methods import Ensemble, Method, Reduce
from depthsys.lm.of_run import of_run
from depthsys.lm.readouts import ReadoutLike
from depthsys.lm.response import io_bytes
from depthsys.lm.run import Run
from depthsys.lm.shards import ShardedRun, of_each


@of_run(once=False, shards=True)
def identify(
    run: Run,
    concept: xr.Dataset,
    method: Method | None = None,
    *,
    inputs: str = "concept",
    readout: ReadoutLike = "concept",
    part: str | Linearisation = "block",
    per_prompt: bool = False,
    keep_basis: bool = True,
) -> xr.Dataset:
    r"""Reduced system of the mean (or of each prompt's) frozen-context Jacobians.

    With :math:`\bar A_l` the mean over prompts of :math:`\partial f_l/\partial x` at the nominal
    state: :math:`\hat A_l = W_{l+1}^\top \bar A_l V_l`,
    :math:`\hat B_l = W_{l+1}^\top \bar A_l v_l`, :math:`\hat C_k = C_k V_k`. `Ensemble` reduces
    the mean response of the prompts instead of the response of the mean.

    Parameters
    ----------
    run
        The operating prompts; or a model and texts.
    concept
        ``direction`` (depth, feature), unit length: injected at the input of each block, and
        read at the end; (depth, input, feature) for several.
    method
        How it is reduced: `Ensemble()` (the default: it has the mean response of the prompts),
        `Krylov` (the paper's form, of order 32), `Arnoldi`, `Pod`, `Adjoint`, `TwoSided`,
        `Balanced` or `Random`, with their settings. All but `Ensemble` store their bases.
    inputs
        "concept": B = A v; "free": every direction of R^H may be pushed, B = A (for `Adjoint`,
        `Balanced`, `Random` and `Ensemble`).
    readout
        "concept": ``y_L = v_L' x_L`` only; "profile": ``y_k = v_k' x_k`` for k = 1..L (the
        terminal gains are the same); a `LogitDifference`; or a matrix (output, feature) read at
        the last depth, or (depth, output, feature).
    part
        Which derivative of a block A is, see `Linearisation`.
    per_prompt
        One system per prompt, with its own basis, along the batch dim ``prompt``.
    keep_basis
        Store ``V`` and ``W`` (depth, feature, state); for many prompts they are large.

    Returns
    -------
    xr.Dataset
        A system (see `ltv.system`) with ``V``, ``W`` (not for `Ensemble`: each prompt has its
        own), ``v``; ``x_ref``, ``y_ref``, the nominal run in reduced coordinates and its readout;
        ``state_norm`` (depth), mean of ``||x_k||``; ``y_std``, standard deviation of the nominal
        y_L over prompts (not with ``per_prompt``); ``router_margin`` (layer) for models with
        experts, least over the prompts, see `Run.router_margin`; and ``gain_full`` (layer, and
        output, input where there are several), the terminal gains before truncation, NaN where
        there is no direction. Full
        provenance in attrs, the coordinates ``input_name`` (input) and ``output_name`` (output); an
        order above the rank is no error, but ``note`` says so.

    Raises
    ------
    ValueError
        If an argument does not fit, or no input reaches any output.

    Notes
    -----
    `Krylov` costs, at layer l, l + 1 Jacobian-vector products per prompt and input; `Ensemble` one
    transposed product per layer and output (L + 1
    - l of them with the profile readout). No H x H matrix is formed. Memory beside the run
    does not grow with the number of prompts (the output of ``per_prompt`` does).

    The full-order system restricted to what the injections can reach has few states per depth, so
    it is propagated whole and reduced by the functions of `depthsys.ltv` (see `exact_system`).
    """
    method = Ensemble() if method is None else method
    if not isinstance(method, Method):
        raise TypeError(
            f"`method` must be one of the methods of lm, such as lm.Krylov(order=4); got "
            f"{short(method)}. Make one."
        )
    size = method.size(run.model.n_features)
    channels = Channels.checked(run.model, concept, inputs, readout, method.rtol, part)
    method = replace(method, rtol=channels.rtol)
    if channels.free and not method.takes_free_inputs:
        raise ValueError(
            f"`inputs` must be 'concept' for {type(method).__name__}: with free inputs everything "
            "is reached. Use Ensemble, Balanced, Adjoint or Random."
        )
    if per_prompt:
        system = _each_prompt(channels, run, method, size, keep_basis)
    else:
        system = _mean_of_prompts(channels, run, method, size, keep_basis)
    if not channels.free:
        v = as_concept(concept)["direction"]  # not rounded to the dtype of the model
        v = v if "input" in v.dims else v.expand_dims("input")
        dims = ("depth", "feature", "input")
        system["v"] = (dims, v.transpose(*dims).values.astype(np.float64))
        system["gain_full"] = where_defined(system["gain_full"], system)
    system = system.assign_coords(channels.names(concept))
    system.attrs |= {
        **channels.attrs("identify", run, concept),
        "method": type(method).__name__,
        "settings": json.dumps(asdict(method)),
        "order": size if method.tolerance is None else int(system["order"].max()),
        "per_prompt": int(per_prompt),
    }
    return ltv.check(system)


def reduced(method: Method, reduce: Reduce, size: int) -> xr.Dataset:
    """The system of the wanted order, of the rank if that is smaller, or within the tolerance."""
    if method.tolerance is not None:
        return reduce(tolerance=method.tolerance, rtol=method.rtol)
    system = reduced_to(reduce, size, method.rtol)
    if method.order is None:  # nobody asked for so many
        system.attrs.pop("note", None)
    return system


class NothingReachedError(ValueError):
    """No direction of a method is both reached and read."""


def reduced_to(reduce: Reduce, order: int, rtol: float | None) -> xr.Dataset:
    """The system of that order; of the rank if that is smaller, with a ``note`` in attrs."""
    size = order
    while True:
        try:
            system = reduce(order=size, rtol=rtol)
            break
        except ltv.RankError as error:
            if error.rank == 0:
                raise NothingReachedError(
                    f"`concept` must reach the readout; got rank 0 at order {size}: no push along "
                    "what the method keeps changes what is read. Choose another readout, direction "
                    "or method, or a larger order."
                ) from error
            size = error.rank
    return _noted(system, order) if size < order else system


def _noted(system: xr.Dataset, order: int) -> xr.Dataset:
    found = system["order"]
    found = found.max([d for d in found.dims if d != "depth"]).values.tolist()
    note = (
        f"order {order} is above the rank: the states per depth are {found}, and more would "
        "be the same model"
    )
    return system.assign_attrs(note=note)


def reduced_to_each(
    reduce: Reduce, orders: Sequence[int], rtol: float | None, *, nested: bool
) -> list[xr.Dataset | NothingReachedError]:
    """The system of every rising order, or why there is none.

    Of a ``nested`` method the largest is made, and the others are its leading states: a smaller
    order is part of a larger one.
    """
    if not nested:
        return [_reduced_or_error(reduce, order, rtol) for order in orders]
    largest = _reduced_or_error(reduce, orders[-1], rtol)
    if isinstance(largest, NothingReachedError):
        return [_reduced_or_error(reduce, order, rtol) for order in orders]
    size = int(largest["order"].max())
    found = []
    for order in orders:
        if order < size:
            found.append(_leading(largest, order))
        else:
            found.append(largest if order == size else _noted(largest, order))
    return found


def _reduced_or_error(reduce: Reduce, order: int, rtol) -> "xr.Dataset | NothingReachedError":
    try:
        return reduced_to(reduce, order, rtol)
    except NothingReachedError as error:
        return error


def _leading(system: xr.Dataset, order: int) -> xr.Dataset:
    """The system of the leading states of every depth."""
    small = system.isel(state=slice(order), state_next=slice(order))
    small = small.assign_coords(order=np.minimum(system["order"], order))
    small.attrs = {key: value for key, value in system.attrs.items() if key != "note"}
    return small.assign_attrs(order=order) if "order" in small.attrs else small


_NOMINAL = ("y_ref", "state_norm", "y_std", "router_margin", "gain_full")


def _mean_of_prompts(channels, run, method, size, keep_basis) -> xr.Dataset:
    full, reduce = method.prepared(channels, run, size)
    system = reduced(method, reduce, size)
    return _finished(system, full, keep_basis)


def _finished(system: xr.Dataset, full: xr.Dataset, keep_basis: bool) -> xr.Dataset:
    """The reduced system with what is known of the nominal run, and its bases if wanted."""
    about = {
        name: full[name].drop_vars("order", errors="ignore") for name in _NOMINAL if name in full
    }
    system = system.assign(about).drop_vars("hankel_singular_values", errors="ignore")
    return system if keep_basis else system.drop_vars(["V", "W"], errors="ignore")


def _each_prompt(
    channels: Channels, run: Run | ShardedRun, method: Method, size: int, keep_basis: bool
) -> xr.Dataset:
    found = list(of_each(run, _systems_of, channels, method, size, keep_basis, title="identify"))
    parts = [system for parts, _ in found for system in parts]
    starts = [0] if isinstance(run, Run) else [shard.start for shard in run.shards]
    rows = [start + r for start, (_, rows) in zip(starts, found, strict=True) for r in rows]
    notes = [part.attrs["note"] for part in parts if "note" in part.attrs]
    parts = _same_size(parts)
    system = xr.concat(
        parts,
        dim="prompt",
        data_vars="all",
        coords="minimal",
        compat="override",
        combine_attrs="drop_conflicts",
    )
    system = system.isel(prompt=np.argsort(np.concatenate(rows)))
    if notes:
        system.attrs["note"] = notes[0]
    return system.assign_coords(prompt=np.arange(len(run)))


def _systems_of(
    run: Run, channels: Channels, method: Method, size: int, keep_basis: bool
) -> tuple[list[xr.Dataset], list[np.ndarray]]:
    """The systems of every batch, along the dim prompt, and the row numbers of its prompts."""
    parts: list[xr.Dataset] = []
    rows: list[np.ndarray] = []
    work = lambda batch: method.prepared_each(channels, batch, size)  # noqa: E731
    for batch, (full, reduce) in run.in_step(work, "identify", held=each_bytes(channels, size)):
        system = _finished(reduced(method, reduce, size), full, keep_basis)
        parts.append(system.drop_vars("v", errors="ignore"))
        rows.append(batch.prompts)
    return parts, rows


def each_bytes(channels: Channels, size: int) -> int:
    """Bytes per prompt that wait while its system is found: directions of every depth."""
    model = channels.model
    n_inputs = 1 if channels.free else channels.v.shape[1]
    # reached and seen directions at every depth, and those of the method
    most = min(model.n_features, (n_inputs + channels.readout.n_outputs) * (model.n_layers + 1))
    directions = 8 * (model.n_layers + 1) * model.n_features * (2 * most + size)
    return directions + io_bytes(channels)


def _same_size(systems: list[xr.Dataset]) -> list[xr.Dataset]:
    """Pad the reduced states of several batches with zeros to one size."""
    size = max(s.sizes["state"] for s in systems)
    pads = [(0, size - s.sizes["state"]) for s in systems]
    return [
        s.pad(state=pad, state_next=pad, constant_values=0.0)
        for s, pad in zip(systems, pads, strict=True)
    ]
