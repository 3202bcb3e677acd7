"""One table of reduction methods against orders, checked on the full nonlinear model."""

import operator
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from time import perf_counter
from typing import Any

import numpy as np
import xarray as xr

from depthsys.lm.accuracy import (
    INJECTIONS,
    agreement,
    error_budget,
    error_gap,
    gain_curve,
    injected,
)
from depthsys.lm.channels import Channels
from depthsys.lm.concepts import mean_difference
from depthsys.lm.directions import as_concept, direction_note
from depthsys.lm.forecast import ALGEBRA, Sizes, forecast
from depthsys.lm.full import MeanFull
from depthsys.lm.gains import linear_gains
from depthsys.lm.identify import NothingReachedError, reduced_to_each
from depthsys.lm.kinds import CONCEPT_OR_NONE, MODEL, THREE_SPLITS, kinds_checked
from depthsys.lm.linear_range import linear_range
from depthsys.lm.measure import measure_gains_at
from depthsys.lm.methods import METHODS, Method, checked_orders, named_methods
from depthsys.lm.model import DepthModel
from depthsys.lm.of_run import as_run
from depthsys.lm.parts import WHOLE, Kept, Parts, begun_parts, identity_of, kept_in, of_concept
from depthsys.lm.progress import is_shown
from depthsys.lm.prompt_rows import each_prompt, filled
from depthsys.lm.prompts import SPLITS, Splits, Texts
from depthsys.lm.readouts import ReadoutLike
from depthsys.lm.references import References
from depthsys.lm.run import Run
from depthsys.lm.stamp import stamp, which
from depthsys.lm.step import Step, check_step

_AUC = ("auc", "auc_low", "auc_high")
_INJECTION = xr.Variable("injection", list(INJECTIONS))
_STORED = ("A", "B", "C", "D")


@kinds_checked(model=MODEL, texts=THREE_SPLITS, concept=CONCEPT_OR_NONE)
def compare(
    model: DepthModel,
    texts: Splits[Texts] | Splits[Run],
    methods: Sequence[str] | Mapping[str, Method] = tuple(METHODS),
    orders: Sequence[int] = (1, 2, 4, 8, 16, 32),
    *,
    concept: xr.Dataset | None = None,
    readout: ReadoutLike = "profile",
    eps: float | None = None,
    relative: bool = True,
    n_each: int | None = 64,
    ablate_eps: bool = True,
    n_bootstrap: int = 1000,
    seed: int = 0,
    partial: str | os.PathLike[str] | None = None,
    force: bool = False,
    keep_partial: bool = False,
) -> xr.Dataset:
    r"""Every reduction method at every order: against the full model, and against what is proved.

    Two linear systems are the references: ``mean_system``, that of the mean Jacobians, and
    ``mean_response``, the mean of the prompts' exact linear responses. All methods but `Ensemble`
    reduce the first; the second is what a surrogate shared by prompts should have.

    Parameters
    ----------
    model
        The model.
    texts
        Splits, of texts or of runs: concept (for the direction), operating (for
        identification), held_out (for checks).
    methods
        Names of `METHODS`, or a mapping from names of your own to methods with settings; their
        ``order`` is ignored, a ``tolerance`` is refused.
    orders
        Rising whole numbers, at most the width of the model.
    concept
        Directions; by default `mean_difference` on ``texts.concept``.
    readout
        See `identify`. The profile is what reduction methods are compared with; its terminal
        gains are those of the concept readout.
    eps, relative
        Step of the measured gains, see `Step`.
    n_each
        So many held-out prompts also get a system each, by every method; None for all, 0 for
        none.
    ablate_eps
        Also find the step at which the response stops being linear, see `linear_range`.
    n_bootstrap, seed
        Of the 95 % percentile intervals, which resample prompts.
    partial
        Folder in which what is finished is kept until all of it is: the same call after an
        interruption goes on there, see `kept_parts`. None keeps nothing.
    force
        Drop what is in ``partial`` if it was begun with another model, other texts or settings,
        instead of refusing to go on.
    keep_partial
        Leave ``partial`` at the end, which else is removed: the same call takes all from there, as
        long as what is made of the table is not written.

    Returns
    -------
    xr.Dataset
        Against the full nonlinear model, per method (``basis``) and order:

        ``spearman``, ``pearson``, ``relative_l2``, ``max_relative_error``
            (basis, order, injection, layers, bound), see `agreement`; on held-out prompts, absolute
            and relative injections, with and without layer 0. ``noise_floor`` (injection,
            layers). ``relative_l2_operating`` (basis, order, layers, bound): against gains
            measured on the operating prompts. ``relative_l2_gap`` (basis, order, layers, bound):
            ``relative_l2`` minus that of the first method at that order, paired, see `error_gap`.
        ``error_budget``
            (basis, order, part, layers, bound), see `error_budget`.
        ``surrogate_gain``
            (basis, order, layer), beside ``measured_gain``, ``linear_gain`` (prompt, layer),
            ``measured_gain_operating``, ``linear_gain_operating`` (prompt_operating, layer) and
            ``mean_system_gain`` (layer); with output and input where there are several.

        Against the full linear systems (``reference``), in output/input:

        ``error``, ``h2_error``, ``terminal_error``
            (basis, order, reference): exact induced, Frobenius and terminal-gain errors of the
            input-output map; ``norm``, ``h2_norm``, ``terminal_norm`` (reference).
        ``lower``, ``ratio``, ``upper``
            No model of that order is better than ``lower`` (order, reference); ``ratio`` is
            error / lower, NaN where lower is below ``resolution`` (reference), what the rounding
            of the products explains (there ``lower_is_certified`` is False); ``upper`` (basis,
            order, reference) is proved for balanced against the mean system and for ensemble
            against the mean response, NaN elsewhere.

        Cost:

        ``seconds``, ``bytes``, ``states``
            (basis, order): wall time of the full system (shared by the methods that reduce the
            same one), of the method's own directions at the largest order, and of the reduction;
            the stored matrices; the states really kept at any depth.

        Linearity: ``step_error``, ``step_limit``, see `linear_range`.

        One system per prompt (``basis_each``), on the first ``n_each`` held-out prompts:
        ``prompt_gain`` (basis_each, order, prompt_each, layer), ``prompt_relative_l2`` against the
        measured gains of that prompt, ``prompt_error``, ``prompt_error_ratio``, ``prompt_lower``,
        ``prompt_upper``, ``prompt_norm`` against its exact linear map; and ``prompt_seconds``
        (basis_each), for all these prompts and orders.

    Raises
    ------
    ValueError
        If an argument does not fit; before any long work.

    Notes
    -----
    Times are single runs on whatever machine this is: informative, not a benchmark.
    """
    concept = None if concept is None else as_concept(concept)
    named = named_methods(methods)
    sizes = checked_orders(orders, model.n_features)
    step = Step(eps, relative)
    if n_each is not None and n_each < 0:
        raise ValueError(f"`n_each` must be >= 0; got {n_each}. 0 means none, None all.")
    if n_bootstrap < 1:
        raise ValueError(f"`n_bootstrap` must be >= 1; got {n_bootstrap}. The default is 1000.")
    settings = _settings(named, sizes, step, n_each, ablate_eps, n_bootstrap, seed)
    kept: dict[str, Any] = {"force": force, "keep": keep_partial}
    with begun_parts(partial, model, texts, concept, readout, settings, **kept) as parts:
        return parts(
            WHOLE,
            lambda: _compared(model, texts, named, sizes, concept, readout, parts, **settings),
        )


def kept_parts(
    partial: str | os.PathLike,
    texts: Splits,
    methods: Sequence[str] | Mapping[str, Method] = tuple(METHODS),
    orders: Sequence[int] = (1, 2, 4, 8, 16, 32),
    *,
    readout: ReadoutLike = "profile",
    eps: float | None = None,
    relative: bool = True,
    n_each: int | None = 64,
    ablate_eps: bool = True,
    n_bootstrap: int = 1000,
    seed: int = 0,
    model: DepthModel | None = None,
    concept: xr.Dataset | None = None,
    known: Mapping[str, Any] | None = None,
) -> Kept:
    """What an interrupted `compare` has left in ``partial``. Nothing is computed or written.

    Parameters
    ----------
    partial, texts, methods, orders, readout, eps, relative, n_each, ablate_eps, n_bootstrap, seed
        Of the comparison that is to go on there, see `compare`.
    model, concept
        Where they are there already; else they are taken for those that it was begun with.
    known
        What is known of them before they are there: ``dtype``, ``max_tokens``, ``model_width``,
        and the name of the method that finds the ``concept``.

    Raises
    ------
    ValueError
        If the folder holds other things, or its progress cannot be read.
    """
    named = named_methods(methods)
    step = Step(eps, relative)
    settings = _settings(named, list(orders), step, n_each, ablate_eps, n_bootstrap, seed)
    identity = identity_of(model, texts, readout, settings) | dict(known or {})
    return kept_in(partial, identity | (of_concept(concept) if concept is not None else {}))


def _settings(
    named: Mapping[str, Method],
    orders: list[int],
    step: Step,
    n_each: int | None,
    ablate_eps: bool,
    n_bootstrap: int,
    seed: int,
) -> dict[str, Any]:
    """What the parts of a comparison depend on, beside model and prompts."""
    return {
        "methods": {name: [type(m).__name__, asdict(m)] for name, m in named.items()},
        "orders": orders,
        "eps": float(step.size),
        "relative": bool(step.relative),
        "n_each": None if n_each is None else operator.index(n_each),
        "ablate_eps": bool(ablate_eps),
        "n_bootstrap": operator.index(n_bootstrap),
        "seed": operator.index(seed),
    }


def _compared(
    model: DepthModel,
    texts: Splits[Texts] | Splits[Run],
    named: dict[str, Method],
    sizes: list[int],
    concept: xr.Dataset | None,
    readout: ReadoutLike,
    part: Parts,
    *,
    eps: float,
    relative: bool,
    n_each: int | None,
    ablate_eps: bool,
    n_bootstrap: int,
    seed: int,
    **others: object,
) -> xr.Dataset:
    if concept is not None:  # before any long work
        Channels.checked(model, concept, "concept", readout, None)
    if is_shown():
        sizing = {"concept": concept, "readout": readout, "n_each": n_each, "kept": part.kept}
        part.show(comparison_cost(model, texts, named, sizes, ablate_eps=ablate_eps, **sizing))
    step = Step(eps, relative)
    check_step(step, model)
    operating, held_out = (as_run(model, t) for t in (texts.operating, texts.held_out))
    if not relative:  # judged by the states; before any long work
        check_step(step, model, held_out)
    if concept is None:
        concept = part("concept", lambda: mean_difference(model, texts.concept, held_out=held_out))
    channels = _channels_at_the_end(model, concept, readout)
    statistics = {"n_bootstrap": n_bootstrap, "seed": seed}
    truth = _Truth(operating, held_out, concept, readout, step, statistics, part)
    table = _all_methods(MeanFull(channels, operating, named, sizes[-1], part), sizes, truth)
    part.done(ALGEBRA)
    about = {
        "readout": channels.readout.name,
        "concept": concept.attrs.get("method", "given"),
        "eps": eps,
        "relative": int(relative),
        "least_step": truth.measured.attrs["least_step"],
        **direction_note(concept),
        "level": 0.95,
        **statistics,
    }
    if ablate_eps:
        linearity = part(
            "linear range",
            lambda: linear_range(
                held_out,
                concept,
                readout=readout,
                relative=relative,
                linear=truth.linear,
                measured=[truth.measured],
                **statistics,
            ),
        )
        table = table.assign(linearity[["step_error", "step_limit"]])
        about |= {k: v for k, v in linearity.attrs.items() if k == "step_note"}
    table = table.assign({name: concept[name] for name in _AUC if name in concept})
    if n_each != 0:
        count = len(held_out) if n_each is None else min(n_each, len(held_out))
        each = part(
            "one system per prompt",
            lambda: each_prompt(channels, held_out, count, named, sizes, truth.measured),
        )
        table = table.assign(each)
    if "warning" in concept.attrs:
        about["concept_warning"] = concept.attrs["warning"]
    table.attrs = {**table.attrs, **_origin(operating, held_out), **about}
    return table.assign_coords(layer=np.arange(model.n_layers))


def _channels_at_the_end(model: DepthModel, concept: xr.Dataset, readout: ReadoutLike) -> Channels:
    """Checked channels; ValueError for a readout of earlier depths alone."""
    channels = Channels.checked(model, concept, "concept", readout, None)
    if channels.readout.tokens is None and not bool(channels.readout.rows[-1].any()):
        raise ValueError(
            "`readout` must read the last depth, where gains are measured; got rows that are zero "
            "there. Use `ltv.compare` on `lm.exact_system` for other depths."
        )
    return channels


def _all_methods(full: MeanFull, sizes: list[int], truth: "_Truth") -> xr.Dataset:
    """The rows of all methods, and what they are compared with."""
    references = References(full, sizes)
    rows = [
        _method_table(full, name, method, sizes, truth, references)
        for name, method in full.methods.items()
    ]
    table = filled([row for row, _ in rows], xr.Variable("basis", list(full.methods)))
    for _, note in rows:  # where an order is above the rank, or a method finds nothing
        table.attrs |= note
    table = references.finished(table).assign(truth.variables)
    table["mean_system_gain"] = truth.known(table["mean_system_gain"])
    table["relative_l2_gap"] = truth.gaps(table["surrogate_gain"])
    return table


def _origin(operating: Run, held_out: Run) -> dict[str, str | int]:
    """Attrs of a comparison: which model, which prompts."""
    model = held_out.model
    return {
        **stamp(held_out, "compare"),
        **{f"operating_{key}": value for key, value in which(operating).items()},
        "n_layers": model.n_layers,
        "n_features": model.n_features,
        "n_parameters": sum(p.numel() for p in model.hf.parameters()),
        "n_held_out": len(held_out),
        "n_operating": len(operating),
    }


@kinds_checked(model=MODEL, texts=THREE_SPLITS)
def comparison_cost(
    model: DepthModel,
    texts: Splits[Texts] | Splits[Run],
    methods: Sequence[str] | Mapping[str, Method] = tuple(METHODS),
    orders: Sequence[int] = (1, 2, 4, 8, 16, 32),
    *,
    concept: xr.Dataset | None = None,
    readout: ReadoutLike = "profile",
    n_each: int | None = 64,
    ablate_eps: bool = True,
    kept: Collection[str] = (),
) -> xr.Dataset:
    """What `compare` would do and cost, without doing it: see `forecast`.

    Parameters
    ----------
    model, texts, methods, orders, concept, readout, n_each, ablate_eps
        See `compare`. Without a ``concept`` one with a single direction is counted.
    kept
        Parts that are on disk already, see `kept_parts`.

    Returns
    -------
    xr.Dataset
        Per ``stage``: ``passes``, ``rows``, ``seconds``, ``bytes``, ``kept``.
    """
    n_inputs = n_outputs = 1
    if concept is not None:
        channels = Channels.checked(model, concept, "concept", readout, None)
        n_inputs, n_outputs = channels.v.shape[1], channels.readout.n_outputs
    elif isinstance(readout, xr.DataArray):
        n_outputs = readout.sizes["output"]
    n_held_out = len(texts.held_out)
    return forecast(
        model,
        {name: getattr(texts, name) for name in SPLITS},
        Sizes(
            named_methods(methods),
            checked_orders(orders, model.n_features),
            n_inputs,
            n_outputs,
            n_held_out if n_each is None else min(n_each, n_held_out),
            ablate_eps,
        ),
        finds_concept=concept is None,
        kept=kept,
    )


class _Truth:
    """What the full model does: measured and exact linear gains of both kinds of prompts."""

    def __init__(self, operating: Run, held_out: Run, concept, readout, step, statistics, part):
        self.measured, self.operating = (
            part(name, lambda run=run: measure_gains_at(run, concept, [step], readout=readout)[0])
            for name, run in (
                ("measured gains", held_out),
                ("measured gains, operating", operating),
            )
        )
        self.linear, self.linear_operating = (
            part(name, lambda run=run: linear_gains(run, concept, readout=readout))
            for name, run in (("linear gains", held_out), ("linear gains, operating", operating))
        )
        self._statistics = statistics

    def agreement(self, system: xr.Dataset) -> xr.Dataset:
        """All that is said about one surrogate beside these gains."""
        fits = [
            agreement(system, self.measured, injection=kind, **self._statistics)
            for kind in INJECTIONS
        ]
        row = xr.concat(fits, dim=_INJECTION).drop_vars("noise_floor")
        operating = agreement(system, self.operating, **self._statistics)
        row["relative_l2_operating"] = operating["relative_l2"]
        budget = error_budget(
            system, self.measured, self.linear, self.linear_operating, **self._statistics
        )
        row["error_budget"] = budget["error"]
        row["surrogate_gain"] = self.known(gain_curve(system))
        row.attrs = {}
        return row

    def known(self, curve: xr.DataArray) -> xr.DataArray:
        """A gain curve, NaN where there is no direction."""
        exists = self.measured["gain"].notnull().any("prompt")
        curve = curve.drop_vars("layer", errors="ignore")
        return curve.where(exists.drop_vars("layer"))

    def gaps(self, curves: xr.DataArray) -> xr.DataArray:
        """Paired differences of the errors of all curves to those of the first basis."""
        columns = []
        for order in curves["order"].values:
            same = curves.sel(order=order, drop=True)
            rows = [
                error_gap(row.drop_vars("basis"), same[0], self.measured, **self._statistics)
                for row in same
            ]
            columns.append(xr.concat(rows, dim=curves["basis"]))
        return xr.concat(columns, dim=curves["order"]).transpose("basis", "order", ...)

    @property
    def variables(self) -> dict[str, xr.DataArray]:
        """The gains of all prompts, and the noise floor of their mean."""
        perfect = [
            agreement(
                injected(self.measured, kind).mean("prompt"),
                self.measured,
                injection=kind,
                n_bootstrap=1,
            )
            for kind in INJECTIONS
        ]
        rename = {"prompt": "prompt_operating"}
        return {
            "noise_floor": xr.concat([fit["noise_floor"] for fit in perfect], dim=_INJECTION),
            "measured_gain": self.measured["gain"],
            "measured_gain_relative": injected(self.measured, "relative"),
            "linear_gain": self.linear["gain"],
            "measured_gain_operating": self.operating["gain"].rename(rename),
            "linear_gain_operating": self.linear_operating["gain"].rename(rename),
        }


def _method_table(
    full: MeanFull,
    name: str,
    method: Method,
    orders: list[int],
    truth: "_Truth",
    references: References,
) -> tuple[xr.Dataset | None, dict[str, str]]:
    """All rows of one method, None if it finds nothing, and a note about its orders."""
    system_of, reduce, shared = full.prepared(name)
    begin = perf_counter()
    systems = reduced_to_each(reduce, orders, full.rtol_of(method), nested=method.nested)
    seconds = shared + perf_counter() - begin
    rows: list[xr.Dataset | None] = []
    note: dict[str, str] = {}
    for order, system in zip(orders, systems, strict=True):
        if isinstance(system, NothingReachedError):
            rows.append(None)
            note = {f"note_{name}": f"order {order}: {system}"}
            continue
        if f"note_{name}" not in note and "note" in system.attrs:
            note = {f"note_{name}": system.attrs["note"]}
        elif "note" in system.attrs and rows[-1] is not None:
            rows.append(rows[-1])  # above the rank nothing changes
            continue
        system = system.assign({v: system_of[v] for v in ("state_norm", "gain_full")})
        system.attrs |= which(full.run)
        row = truth.agreement(system).assign(references.errors(system, method))
        row["seconds"] = seconds
        row["bytes"] = _stored_bytes(system, system_of)
        row["states"] = int(system["order"].max())
        rows.append(row)
    if all(row is None for row in rows):
        return None, note
    return filled(rows, xr.Variable("order", orders)), note


def _stored_bytes(system: xr.Dataset, full: xr.Dataset) -> int:
    """Bytes of the matrices, and of the two bases where there is one pair for all prompts."""
    size = sum(system[name].nbytes for name in _STORED)
    if "V" in full:
        size += 2 * full.sizes["depth"] * full.sizes["feature"] * system.sizes["state"] * 8
    return size
