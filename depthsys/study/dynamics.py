"""The measures of depth as dynamics: each takes a cell and returns a Dataset, as `study.steps` do.

Their names are those of `study.measures.MEASURES`. Those of whole Jacobians look at the first
``settings.n_jacobians`` of the operating texts, the others at all of them.
"""

import json

import numpy as np
import xarray as xr

from depthsys import lm, ltv
from depthsys.lm.progress import bar
from depthsys.study.cell import Cell
from depthsys.study.meanings import explained
from depthsys.study.measures import COMPRESSED, COUPLED, FLOWN, MEASURES, NEAR
from depthsys.study.steps import find_concept, with_origin, with_separation

ALONE = 4  # prompts whose own spectra are taken, beside those of the mean


def measured(cell: Cell, name: str, concept: xr.Dataset | None = None) -> xr.Dataset:
    """What the measure of that name finds, with what it means and where it comes from.

    ``concept`` are the directions of those that are about one; they are found where they are not
    given.
    """
    take = globals()[name]
    if not MEASURES[name].of_concept:
        return with_origin(explained(name, take(cell)), cell)
    concept = find_concept(cell) if concept is None else concept
    found = explained(name, with_separation(take(cell, concept), concept))
    return with_origin(found.assign_attrs(concept=cell.settings.concept), cell)


def spectra(cell: Cell) -> xr.Dataset:
    """Spectra of the mean Jacobians of the layers, of what they add, and of some prompts' own.

    The variables of `ltv.spectra`, those of single layers with a dim ``of``: "layer" and "update",
    which is A_l - I; and the same of `ALONE` prompts by themselves with ``_each`` behind their
    names, along ``prompt``.
    """
    few = cell.few
    mean = lm.jacobians(few)
    own = lm.jacobians(cell.first(min(ALONE, len(few))), per_prompt=True)
    with bar("spectra", 2 + own.sizes["prompt"], "system") as shown:

        def spectra_of(system: xr.Dataset, **how) -> xr.Dataset:
            found = ltv.spectra(system, **how)
            shown.update(1)
            return found

        both = [spectra_of(mean, update=update) for update in (False, True)]
        alone = [spectra_of(own.isel(prompt=[n])) for n in range(own.sizes["prompt"])]
    of = xr.DataArray(["layer", "update"], dims="of", name="of")
    by_layer = [str(name) for name in both[0].data_vars if "layer" in both[0][name].dims]
    found = xr.concat([each[by_layer] for each in both], of, combine_attrs="drop")
    found = found.merge(both[0].drop_vars(by_layer))
    each = xr.concat(alone, "prompt").drop_vars(("modulus", "angle"))
    named = {str(name): f"{name}_each" for name in each.data_vars}
    found = found.merge(each.rename(named).drop_vars("prompt", errors="ignore"))
    return found.assign_attrs(mean.attrs | {"n_jacobians": len(few), "part": "block"})


def skip(cell: Cell, concept: xr.Dataset) -> xr.Dataset:
    """What leaving out each layer does to every operating prompt; see `lm.layer_skip`."""
    return lm.layer_skip(cell.operating, concept, readout=cell.settings.readout)


def detached(cell: Cell) -> xr.Dataset:
    """How detached maps reproduce values, what each token gives of them, and their spectra.

    The variables of `lm.detached_spectra`; those of `lm.reconstruction` as ``error_block``,
    ``error_attention``, ``error_mlp`` and ``error_stack``; and those of `lm.token_shares`.
    """
    few = cell.few
    errors = lm.reconstruction(few)
    named = {str(name): f"error_{name}" for name in errors.data_vars}
    parts = [lm.detached_spectra(few), errors.rename(named), lm.token_shares(few)]
    found = xr.merge(parts, combine_attrs="drop")
    return found.assign_attrs(parts[0].attrs | {"n_jacobians": len(few)})


def detached_gains(cell: Cell, concept: xr.Dataset) -> xr.Dataset:
    """Gains of the detached maps beside those of Jacobians and measured ones, and their plan.

    ``measured_gain``, ``exact_gain`` and ``detached_gain`` (prompt, layer) of the operating
    prompts; ``relative_l2`` and ``spearman`` (gains: exact, detached; layers; bound) against the
    measured ones. ``energy`` (schedule: exact, detached), what the schedule of least energy by
    these gains really needs on held-out prompts to shift the readout by one standard deviation,
    with ``multiple`` of that by exact gains.
    """
    settings, step = cell.settings, lm.Step(cell.settings.eps, cell.settings.step == "relative")
    (measured,) = lm.measure_gains_at(cell.operating, concept, [step], readout=settings.readout)
    exact = lm.linear_gains(cell.operating, concept, readout=settings.readout)
    kind = lm.Linearisation(kind="detached")
    held = lm.linear_gains(cell.operating, concept, readout=settings.readout, part=kind)
    gains = xr.DataArray(["exact", "detached"], dims="gains", name="gains")
    agreed = [lm.agreement(each, measured, paired=True) for each in (exact, held)]
    both = xr.concat(agreed, gains, combine_attrs="drop")[["relative_l2", "spearman"]]
    named = {"measured_gain": measured, "exact_gain": exact, "detached_gain": held}
    found = both.assign({name: each["gain"] for name, each in named.items()})
    target = exact["readout"].std("prompt").values
    plans = {
        str(name): lm.gains_plan(
            cell.operating, concept, target, readout=settings.readout, energy=settings.energy,
            part=part,
        )
        for name, part in {"exact": "block", "detached": kind}.items()
    }  # fmt: skip
    needed = lm.required_energy(
        cell.held_out,
        concept,
        xr.concat([p["u"] for p in plans.values()], xr.Variable("schedule", list(plans))),
        target if target.ndim else float(target),
        amplitude=np.sqrt([float(plan["energy"]) for plan in plans.values()]),
        weights=plans["exact"]["weight"],
        readout=settings.readout,
    )
    energy = needed[["energy", "energy_low", "energy_high"]]
    found = found.merge(energy.assign(multiple=energy["energy"] / energy["energy"][0]))
    target_note = {"target": json.dumps(np.atleast_1d(target).tolist()), "energy": settings.energy}
    return found.assign_attrs(held.attrs | target_note)


def residual(cell: Cell) -> xr.Dataset:
    """The residual stream over sublayers; see `lm.residual_dynamics`, `compress` and `teleport`.

    What the autoencoder finds of some prompts has ``code_`` before its names, its prompts are along
    ``code_prompt``. What becomes of states of a few prompts that are put elsewhere has ``flow_``
    where they are put all over the plane, the rest of the state being the mean; ``near_`` where
    they are put within `NEAR` spreads of their own place, the rest being their own. Their prompts
    are along ``flow_prompt``, components along ``plane``.
    """
    seed = cell.settings.seed
    found = lm.residual_dynamics(cell.operating, seed=seed)
    code = lm.compress(lm.sublayer_states(cell.first(COMPRESSED)), seed=seed)
    flow = lm.teleport(cell.first(FLOWN), found)
    code = code.rename(prompt="code_prompt", code="code_of").rename(
        {n: f"code_{n}" for n in ("loss", "explained", "explained_at", "explained_within")}
    )
    near = lm.teleport(cell.first(FLOWN), found, span=NEAR, outside="own")
    placed = [
        one.rename({str(n): f"{prefix}_{n}" for n in one.data_vars})
        for prefix, one in (("flow", flow), ("near", near))
    ]
    flows = xr.merge(placed, combine_attrs="drop").rename(prompt="flow_prompt", component="plane")
    about = {"flow_n_sublayers": flow.attrs["n_sublayers"],
             "code_hidden": code.attrs["hidden"], "code_epochs": code.attrs["epochs"]}  # fmt: skip
    return xr.merge(
        [found, code.drop_vars(("layer", "before")), flows], combine_attrs="override"
    ).assign_attrs(about)


def tokens(cell: Cell, concept: xr.Dataset) -> xr.Dataset:
    """Gains of pushes at every token of the operating prompts, and what a map over lags explains.

    The variables of `lm.token_gains` and of `lm.lag_map`; and ``explained_relative`` (layer, by),
    of gains per fraction of the norm of the state. Of several outputs it is about the last one.
    """
    found = lm.token_gains(cell.operating, concept, readout=cell.settings.readout)
    found = found.isel({d: -1 for d in ("output", "input") if d in found.dims})
    maps = [lm.lag_map(found, relative=relative) for relative in (False, True)]
    relative = {"explained_relative": maps[1]["explained"]}
    return found.merge(maps[0]).assign(relative).assign_attrs(found.attrs)


def coupling(cell: Cell) -> xr.Dataset:
    """Coupling of all pairs of layers, and of each layer with the others; see `lm.coupling`.

    ``of_others`` and ``of_closest`` (prompt, layer): mean and least of m(l, l') over other layers.
    """
    few = cell.few
    found = lm.coupling(few, top=min(COUPLED, cell.model.n_features))
    others = found["coupling"].where(found["layer"] != found["layer_2"])
    found["of_others"] = others.mean("layer_2")
    found["of_closest"] = others.min("layer_2")
    return found.assign_attrs(n_jacobians=len(few))


def shape(cell: Cell) -> xr.Dataset:
    """How straight the ways of operating prompts are; see `lm.trajectory_shape`."""
    return lm.trajectory_shape(cell.operating)


def lens(cell: Cell) -> xr.Dataset:
    """How well a lens of some operating prompts reads held-out ones; see `lm.lens_agreement`.

    Where all parts are the same texts, the others of them; attrs ``own_prompts`` is 1 where there
    are no others. ``share`` (depth) is what the mean holds of the prompts' own Jacobians. The lens
    itself is there as `lm.lens` has it, its attrs as one text, ``lens_attrs``: see `lens_in`.
    """
    few = cell.few
    made = lm.lens(few)
    found = _of_others(cell, lm.lens_agreement(cell.held_out, made))
    own = _are_same(cell) and len(few) == len(cell.held_out)
    found["share"] = ("depth", np.linalg.norm(made["J"], axis=(1, 2)) / made["prompt_norm"].values)
    told = {"n_jacobians": len(few), "own_prompts": int(own), "lens_attrs": json.dumps(made.attrs)}
    return found.merge(made, combine_attrs="drop").assign_attrs(found.attrs | told)


def _are_same(cell: Cell) -> bool:
    return cell.texts.held_out is cell.texts.operating


def _of_others(cell: Cell, agreed: xr.Dataset) -> xr.Dataset:
    """Without the prompts that the lens is made of, where there are others."""
    n_few = len(cell.few)
    own = _are_same(cell) and n_few < len(cell.held_out)
    return agreed.isel(prompt=slice(n_few, None)) if own else agreed


def beside_given(cell: Cell, found: xr.Dataset, given: xr.Dataset) -> xr.Dataset:
    """What `lens` found, and how a lens that was given reads the same prompts.

    Adds, at its depths and NaN at others: ``given_agreement`` and ``given_kl`` (depth, prompt), as
    it is read without a mean; ``given_cosine`` (depth) of its matrix with that found here, both as
    vectors; ``given_size`` (depth), its Frobenius norm over that one's. attrs ``given_definition``
    and ``given_n_prompts``.
    """
    read = _of_others(cell, lm.lens_agreement(cell.held_out, given)).sel(reader="J-lens", drop=True)
    dims = ("depth", "feature_out", "feature")
    depths = given["depth"].values
    theirs, ours = (one["J"].sel(depth=depths).transpose(*dims).values.astype(np.float64)
                    for one in (given, lens_in(found)))  # fmt: skip
    sizes, own_sizes = (np.linalg.norm(J, axis=(1, 2)) for J in (theirs, ours))
    beside = read[["agreement", "kl"]].rename(agreement="given_agreement", kl="given_kl")
    beside["given_cosine"] = "depth", np.einsum("dij,dij->d", theirs, ours) / (sizes * own_sizes)
    beside["given_size"] = "depth", sizes / own_sizes
    beside = beside.reindex(depth=found["depth"].values).drop_vars("prompt", errors="ignore")
    about = {f"given_{n}": given.attrs[n] for n in ("definition", "n_prompts") if n in given.attrs}
    return explained("lens", found.merge(beside, combine_attrs="drop")).assign_attrs(
        found.attrs | about
    )


def lens_in(result: xr.Dataset) -> xr.Dataset:
    """The lens of what the measure `lens` found."""
    names = [name for name in MEASURES["lens"].large if name in result]
    made = result[names]
    made = made.drop_vars([name for name in made.coords if name != "depth"])
    return made.drop_attrs().assign_attrs(json.loads(result.attrs["lens_attrs"]))
